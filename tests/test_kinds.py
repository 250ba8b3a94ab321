"""A kind of endpoint that only this file knows goes through everything: a kind is one file."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from cells_in_process import InProcessRunner
from conftest import outstanding, until
from fmgauge.cli import main
from fmgauge.config.model import Config, Experiment
from fmgauge.config.strict import Strict, Text
from fmgauge.endpoints import Kind, Resource, bring_up, clean_up, register
from fmgauge.endpoints.kinds import KINDS
from fmgauge.endpoints.ledger import LedgerEvent, append
from fmgauge.endpoints.protocol import Outcome, endpoint_of
from fmgauge.endpoints.release import standing
from fmgauge.errors import EndpointError
from fmgauge.records import Endpoint
from fmgauge.runs import Run, RunFolder, open_run
from fmgauge.transport import Clock
from scripted_server import ScriptedServer, answer
from simulated_runs import probe


class RentedEndpoint(Strict):
    """What a config says of a machine that is rented by the hour."""

    kind: Literal["rented"] = Field(description="A rented machine.")
    landlord: Text = Field(description="A folder: a file for each machine that is let.")


class RentedKind(Kind[RentedEndpoint]):
    """A machine that is rented, and costs money until it is given back: a file in a folder.

    All machines answer at the address in the landlord's file `address`.
    """

    name = "rented"
    resource_types = ("rented_contract", "rented_machine")
    answered_by = "on a rented machine"

    def endpoint(self, experiment: Experiment, wanted: RentedEndpoint) -> Endpoint:
        """It speaks the chat API."""
        return endpoint_of(experiment, owned=True)

    def plan(self, run: Run, experiment: Experiment, attempt: int) -> Sequence[Resource]:
        """A contract, which costs nothing, and the machine."""
        name = f"{run.run_id}-{experiment.name}-{attempt}"
        place = Path(experiment.endpoint.landlord) / name
        contract, machine = self.resource_types
        return (
            Resource(contract, f"{name}-contract", f"{place}-contract"),
            Resource(machine, name, str(place), usd_per_hour=2.5),
        )

    def create(self, run: Run, wanted: RentedEndpoint, planned: LedgerEvent) -> LedgerEvent:
        """Rent it, unless the landlord is sold out, or lets it and does not say so."""
        is_machine = planned.resource_type == "rented_machine"
        if is_machine and (Path(wanted.landlord) / "sold-out").exists():
            raise EndpointError("no machine is to be had")
        self.place(planned).touch()
        if is_machine and (Path(wanted.landlord) / "forgetful").exists():
            raise EndpointError("no answer from the landlord")
        return planned

    def wait(
        self,
        run: Run,
        endpoint: Endpoint,
        created: Sequence[LedgerEvent],
        clock: Clock,
        deadline_s: float,
    ) -> Endpoint:
        """The landlord tells the address."""
        return replace(endpoint, base_url=(self.place(created[-1]).parent / "address").read_text())

    def ended(self, run: RunFolder, created: Sequence[LedgerEvent]) -> str | None:
        """The landlord took it back."""
        return None if self.place(created[-1]).exists() else "the landlord took it back"

    def delete(self, run: RunFolder, event: LedgerEvent) -> Outcome:
        """Give it back, where the landlord is at home."""
        if (self.place(event).parent / "on-holiday").exists():
            raise EndpointError("the landlord is on holiday")
        if not self.place(event).exists():
            return "already_gone" if event.event == "created" else "never_created"
        self.place(event).unlink()
        return "ended"

    def settings(self, wanted: RentedEndpoint) -> Iterator[str]:
        """Whose it is."""
        yield f"of {Path(wanted.landlord).name}"

    def place(self, event: LedgerEvent) -> Path:
        """The file of a rented thing."""
        return Path(event.arn or "nowhere")


def let_configs_have(annotation: object) -> None:
    """Make `annotation` the type of an experiment's endpoint: the config's union."""
    Experiment.model_fields["endpoint"].annotation = annotation
    for model in (Experiment, Config):
        model.model_rebuild(force=True)


def make_known() -> object:
    """Register the kind, and give the config's union its type; the union as it was."""
    register(RentedKind())
    before = Experiment.model_fields["endpoint"].annotation
    kinds = Annotated[RentedEndpoint | before, Field(discriminator="kind")]
    let_configs_have(kinds)
    return before


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The kind is known while a test of this file runs."""
    before = make_known()
    yield
    let_configs_have(before)
    del KINDS["rented"]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """What answers for every machine."""
    with ScriptedServer(answer) as running:
        yield running


@pytest.fixture
def landlord(tmp_path: Path, server: ScriptedServer) -> Path:
    """The landlord's folder."""
    folder = tmp_path / "landlord"
    folder.mkdir()
    (folder / "address").write_text(server.base_url)
    return folder


def let(landlord: Path) -> set[str]:
    """What is let at the moment."""
    return {path.name for path in landlord.iterdir() if path.name.startswith("probe-")}


def rented(folder: Path, landlord: Path, **changes: object) -> Path:
    """A config whose two candidates run on rented machines."""
    return probe(folder, endpoint={"kind": "rented", "landlord": str(landlord)}, **changes)


def test_it_goes_through_the_whole_pipeline_and_is_given_back(tmp_path, landlord, server, capfd):
    """Measured, named in the report, its resources in the ledger, and nothing is let at the end."""
    code = main(["run", str(rented(tmp_path, landlord))], runner=InProcessRunner())

    assert code in (0, 3), capfd.readouterr()
    (folder,) = (tmp_path / "results").iterdir()
    with (folder / "metrics.csv").open(newline="") as file:
        assert all(int(row["n_ok"]) > 0 for row in csv.DictReader(file))
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    of_one = [(e["event"], e["resource_type"]) for e in events if e["experiment"] == "one"]
    kinds = ("rented_contract", "rented_machine")
    assert of_one == [
        *((event, kind) for kind in kinds for event in ("planned", "created")),
        *(("deleted", kind) for kind in reversed(kinds)),
    ]
    assert let(landlord) == set()
    report = (folder / "report.md").read_text()
    assert "`simulated` on a rented machine." in report
    assert "of landlord" in report
    assert len(server.requests) > 8


@pytest.fixture
def run(tmp_path: Path, landlord: Path) -> Run:
    """A run of its own whose two candidates are rented."""
    return open_run(rented(tmp_path, landlord), "probe-1")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("sold-out", "no machine is to be had"), ("forgetful", "no answer from the landlord")],
)
def test_one_that_cannot_be_had_fails_and_leaves_nothing(run, landlord, trouble, reason):
    """The contract is given back, and so is a machine that was let although create failed."""
    (landlord / trouble).touch()

    endpoints = bring_up(run)

    assert [(one.state, one.error) for one in endpoints] == [("failed", reason)] * 2
    assert let(landlord) == set()
    assert standing(run) == ()


def test_one_that_stands_is_kept(run, landlord):
    """Bringing up again rents nothing more."""
    bring_up(run)
    before = let(landlord)

    endpoints = bring_up(run)

    assert [one.resource for one in endpoints] == ["probe-1-one-1", "probe-1-two-1"]
    assert let(landlord) == before


def test_half_of_one_is_not_taken_for_a_whole_one(run, landlord):
    """Killed after the contract: that is given back, and the next attempt has both."""
    (experiment, _) = run.config.experiments
    contract, _ = RentedKind().plan(run, experiment, 1)
    event = LedgerEvent("created", contract.resource_type, contract.name, run.run_id, "2026-12-01")
    append(run.ledger_path, replace(event, arn=contract.arn, experiment="one", attempt=1))
    Path(contract.arn).touch()

    (one, _) = bring_up(run)

    assert (one.state, one.resource) == ("ready", "probe-1-one-2")
    assert {name for name in let(landlord) if "-one-" in name} == {
        "probe-1-one-2",
        "probe-1-one-2-contract",
    }


def test_what_cannot_be_given_back_is_told_and_no_second_one_is_rented(run, landlord):
    """Its cost and the reason are in the error, and in what clean-up leaves."""
    bring_up(run)
    (landlord / "on-holiday").touch()
    (landlord / "probe-1-one-1").unlink()  # so a new one is wanted
    before = let(landlord)

    (one, two) = bring_up(run)
    left = clean_up(run).left

    assert (one.state, two.state) == ("failed", "ready")
    assert "STILL RUNNING: probe-1-one-1 at $2.5 an hour (the landlord is on holiday)" in one.error
    assert let(landlord) == before
    assert len(left) == 4
    assert "probe-1-two-1 at $2.5 an hour (the landlord is on holiday)" in left


def test_a_kind_that_would_delete_another_s_resources_is_refused():
    """Neither its name nor its types of resources may be known already."""
    with pytest.raises(ValueError, match="is known"):
        register(RentedKind())


@pytest.mark.whole
def test_what_a_killed_run_rented_is_given_back_by_clean_up(tmp_path, landlord, monkeypatch, capfd):
    """From the ledger alone, by its kind; what it cost while it stood is told beside its name."""
    config = rented(tmp_path, landlord, duration_s=60)
    process = subprocess.Popen([sys.executable, __file__, "run", str(config)], cwd=tmp_path)
    until(lambda: process.poll() is not None or list(tmp_path.glob("results/*/progress.json")))
    process.kill()
    process.wait()
    machines = {name for name in let(landlord) if not name.endswith("-contract")}
    (folder,) = (tmp_path / "results").iterdir()
    monkeypatch.chdir(tmp_path)

    code = main(["clean-up", folder.name])

    assert (code, len(machines)) == (0, 2)
    told = capfd.readouterr().out
    assert all(f"{folder.name}: ended {name} at $2.5 an hour" in told for name in machines)
    assert (let(landlord), outstanding(folder)) == (set(), set())


if __name__ == "__main__":
    make_known()
    raise SystemExit(main(sys.argv[1:], runner=InProcessRunner()))

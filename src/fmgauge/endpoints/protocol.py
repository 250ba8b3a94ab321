"""What a kind of endpoint can do: the one protocol that all kinds follow.

Knows the life of an endpoint from plan to deletion, and what is said of it; no kind by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from fmgauge.config import LoadedConfig
from fmgauge.config.model import Experiment
from fmgauge.endpoints.ledger import LedgerEvent
from fmgauge.errors import Problem
from fmgauge.records import Endpoint, RequestRecord
from fmgauge.runs import Run, RunFolder, now_utc
from fmgauge.transport import Clock

Outcome = Literal["ended", "already_gone", "never_created", "left"]
"""How a resource that was to be deleted was found: it stood and is deleted now, it had gone by
itself, it had never come to be, or it cannot be deleted and may still stand."""

Settings = TypeVar("Settings", contravariant=True)


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that is about to be created, as the ledger will know it."""

    resource_type: str  # one of its kind's
    name: str
    arn: str | None = None  # or what else finds it again, as far as that is known beforehand
    usd_per_hour: float | None = None  # billed while it stands, loaded or idle; None: nothing is


def endpoint_of(experiment: Experiment, *, owned: bool, **more: Any) -> Endpoint:
    """The endpoint of `experiment`, ready as far as is known; `more` are fields of Endpoint."""
    return Endpoint(
        experiment=experiment.name,
        kind=experiment.endpoint.kind,
        state="ready",
        model=experiment.model.name,
        instance_type=experiment.instance_type,
        instance_count=experiment.instance_count,
        owned=owned,
        created_at=now_utc().isoformat() if owned else None,
        **{"base_url": None} | more,
    )


class Kind(Protocol[Settings]):
    """One kind of endpoint. `Settings` is what a config says of one, with the kind's own keys.

    A kind that points at what exists plans nothing, and so creates and deletes nothing. Of what
    goes wrong outside this program, every method tells by an EndpointError and no other.
    """

    name: str
    """What it is called in configs, in endpoints.json and in tables."""
    resource_types: tuple[str, ...] = ()
    """The ledger's names for what it creates; it deletes nothing else."""
    first_answer_within_s: float = 60.0
    """The longest from the first create call to the first answer."""

    # --- before anything is created

    def problems(self, loaded: LoadedConfig, experiment: Experiment) -> Iterator[Problem]:
        """What keeps the endpoint of `experiment` from ever coming up, found offline."""
        yield from ()

    def prepare(self, loaded: LoadedConfig, wanted: Settings) -> None:
        """Make what a new endpoint needs beforehand, before any clock runs."""
        return

    # --- its life

    def plan(self, run: Run, experiment: Experiment, attempt: int) -> Sequence[Resource]:
        """What the `attempt`-th endpoint of `experiment` consists of, in the order of creation.

        The same attempt has the same plan. No name is another resource's or attempt's.
        """
        return ()

    def create(self, run: Run, wanted: Settings, planned: LedgerEvent) -> LedgerEvent:
        """Create what is `planned`; its event with what identifies it from now on.

        Where it raises EndpointError, `delete` is called with `planned`: it may exist all the same.
        """
        raise ValueError(f"{self.name} creates nothing")

    def wait(
        self,
        run: Run,
        endpoint: Endpoint,
        created: Sequence[LedgerEvent],
        clock: Clock,
        deadline_s: float,
    ) -> Endpoint:
        """`endpoint` with its address, as soon as it may be asked.

        Raises EndpointError with the reason where it never may, or `clock` passes `deadline_s`.
        """
        return endpoint

    def ended(self, run: RunFolder, created: Sequence[LedgerEvent]) -> str | None:
        """Why the endpoint that is `created` can answer no more; None while it can.

        `created` is one attempt, in the order of its plan; where the program was killed, one of it
        may be planned alone. A load asks several times a second, so this is cheap, or remembers
        what it found. An EndpointError says that it could not be told.
        """
        return None

    def delete(self, run: RunFolder, event: LedgerEvent) -> Outcome:
        """Delete what `event` left standing; say how it was found. The ledger alone is known.

        What was planned and not noted as created is looked for, by its name or ARN.
        """
        return "left"

    # --- its requests

    def endpoint(self, experiment: Experiment, wanted: Settings) -> Endpoint:
        """How its requests are addressed, signed and decoded, as far as the config tells."""

    def first_question(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint` as the first question is put to it."""
        return endpoint

    # --- what is said of it

    answered_by: str
    """Where its model answered, to follow the model's name in a sentence."""
    is_simulated: bool = False
    """Whether no model runs, and nothing is billed."""
    is_local: bool = False
    """Whether it runs on the machine that sends the load."""
    serve_example: str = ""
    """An endpoint that `serve` can serve, as a config has it; none where it serves none."""

    def settings(self, wanted: Settings) -> Iterator[str]:
        """What sets one endpoint of this kind apart from another, in a few words each."""

    def model_file(self, wanted: Settings) -> Path | None:
        """The file that its model was read from, where it was one that the config names."""
        return None

    def has_random_weights(self, wanted: Settings) -> bool:
        """Whether fmgauge made its model up."""
        return False

    def remedy(self, endpoint: Endpoint, answer: RequestRecord) -> str:
        """What can be done about a first answer that was none, as a sentence; or nothing."""
        return ""

    def explained(self, run: RunFolder, created: Sequence[LedgerEvent], reason: str) -> str:
        """`reason`, and what the endpoint itself had to say."""
        return reason

    def serve_command(
        self, wanted: Settings, *, lease: Path, ready: Path, port: int
    ) -> Sequence[str]:
        """The command line that serves one without a run, where there is a `serve_example`."""
        raise ValueError(f"{self.name} cannot be served")

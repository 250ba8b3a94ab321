"""A run's exit codes, failures, signals and resume, its cells run in the tests' own process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml

from cells_in_process import InProcessRunner
from conftest import QUICKSTART, command, outstanding, processes_of, until
from fmgauge.cli import main
from fmgauge.config import planned_stages
from fmgauge.decision import read_decision, write_decision
from fmgauge.endpoints import bring_up
from fmgauge.errors import ConfigError
from fmgauge.pipeline.notebooks import NOTEBOOKS, NotebookError, PapermillRunner, notebooks_folder
from fmgauge.pipeline.preflight import preflight
from fmgauge.pipeline.sequence import missing_steps
from fmgauge.records import held, write_json
from fmgauge.runs import open_run
from simulated_runs import probe

VALID_OR_NOT = (0, 3)  # 3: this machine was too busy to send the load in time
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a config whose one run has come to its end."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["run", str(probe(folder))], runner=InProcessRunner()) in VALID_OR_NOT
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A config, and the folder of its finished run, for one test to change."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "probe.yml", run_folder(tmp_path / "results")


def run_folder(results: Path) -> Path:
    """The only run's folder, once it is there."""
    until(lambda: list(results.glob("probe-*/manifest.json")))
    return next(results.glob("probe-*"))


def stages_done(folder: Path) -> list[Path]:
    """The stages whose records are complete."""
    return sorted(folder.glob("requests/*/*/*/stage.json"))


def step_states(folder: Path) -> dict[str, str]:
    """The state of each step, from the manifest."""
    steps = json.loads((folder / "manifest.json").read_text())["steps"]
    return {name: step["state"] for name, step in steps.items()}


STAGES, DECISION, REPORT = "stages", "decision.json", "report.html"


@pytest.mark.parametrize(
    ("written", "needed"),
    [
        ([], NOTEBOOKS[1:5]),
        ([STAGES], NOTEBOOKS[3:5]),
        ([STAGES, DECISION], NOTEBOOKS[4:5]),
        ([STAGES, DECISION, REPORT], ()),
        ([DECISION, REPORT, STAGES], NOTEBOOKS[3:5]),
        ([STAGES, REPORT, DECISION], NOTEBOOKS[4:5]),
    ],
    ids=lambda value: "-".join(value) or "nothing",
)
def test_a_step_is_needed_where_its_files_are_missing_or_old(tmp_path, written, needed):
    """Files in the order of writing: what is older than what it is made from is made anew."""
    run = open_run(QUICKSTART, "half", [f"run.results_dir={tmp_path}"])
    for workload in run.config.workloads:
        write_json(run.payloads_path(workload.name), {})
    stages = [run.stage_folder(s.key) / "stage.json" for s in planned_stages(run.config)]
    for at_s, name in enumerate(written, start=1_000_000):
        for path in stages if name == STAGES else [run.folder / name]:
            write_json(path, {})
            os.utime(path, (at_s, at_s))

    assert missing_steps(run) == needed


def test_a_run_goes_through_all_notebooks_and_leaves_nothing_running(finished):
    """It has an answer and a report, and every server that was created is deleted."""
    _, folder = finished

    assert step_states(folder) == dict.fromkeys(NOTEBOOKS, "done")
    assert (folder / "report.html").exists()
    assert outstanding(folder) == set()
    assert processes_of(folder) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.whole),
    ],
)
def test_a_signal_ends_the_run_cleanly(called, tmp_path, number, code):
    """Ctrl-C or SIGTERM in the middle of the load: clean-up runs and nothing is left."""
    results = tmp_path / "results"

    def interrupt() -> None:
        until(lambda: stages_done(run_folder(results)))
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()

    done = called("run", probe(tmp_path, concurrency=[1, 2, 3, 4, 5, 6, 7, 8]))

    assert done.returncode == code
    folder = run_folder(results)
    assert outstanding(folder) == set()
    assert processes_of(folder) == []
    states = step_states(folder)
    assert (states["3_run_inference"], states["6_clean_up"]) == ("interrupted", "done")
    said = [line.split(" after ")[0] for line in done.stdout.splitlines()]
    name = signal.Signals(number).name
    told = [
        f"{name}: ending 3_run_inference, then cleaning up",
        "3_run_inference: interrupted",
        "6_clean_up: running",
        "6_clean_up: done",
    ]
    assert [line for line in said if line in told] == told
    again = shlex.join(command("run", tmp_path / "probe.yml", "--resume", folder.name))
    assert said[-1] == f"To go on: {again}"


def test_a_failing_notebook_is_told_and_cleaned_up_after(called, finished):
    """Records that cannot be read fail notebook 4: exit code 1, and clean-up still runs."""
    config, folder = finished
    next(folder.glob("requests/*/*/*/*.parquet")).write_bytes(b"no parquet")
    (folder / "decision.json").unlink()

    done = called("run", config, "--resume", folder)

    assert done.returncode == 1
    assert f"See {folder / 'notebooks' / '4_compute_metrics.ipynb'}" in done.stdout
    assert step_states(folder)["4_compute_metrics"] == "failed"
    assert "6_clean_up: done" in done.stdout


class SpoilingRunner(InProcessRunner):
    """Spoils the rows before the first notebook reads them, and after they were checked."""

    def run(self, source: Path, executed: Path, parameters: Mapping[str, str]) -> None:
        """Execute the notebook on rows that are no JSON."""
        Path("rows.jsonl").write_text('{"word": "one"}\n{"word": \n')
        super().run(source, executed, parameters)


def test_data_that_a_notebook_finds_unusable_are_bad_input(tmp_path, monkeypatch, capfd):
    """Exit code 2 with the file that is wrong, as if it had been found before; clean-up runs."""
    monkeypatch.chdir(tmp_path)

    code = main(["run", str(probe(tmp_path))], runner=SpoilingRunner())

    assert code == 2
    assert step_states(run_folder(tmp_path / "results"))["1_prepare_data"] == "failed"
    told = capfd.readouterr().out
    assert "rows.jsonl" in told
    assert "6_clean_up: done" in told


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_tells_whether_a_candidate_was_found(called, finished, code):
    """3 where no stage is chosen for the workload of interest: that, too, is an answer."""
    config, folder = finished
    decision = read_decision(folder / "decision.json")
    (answer,), best = decision.recommendations, decision.stages[0]
    chosen, closest = (None, best) if code else (best, None)
    answers = (replace(answer, chosen=chosen, closest=closest),)
    write_decision(folder / "decision.json", replace(decision, recommendations=answers))
    (folder / "report.html").touch()  # newer than the decision: nothing is missing

    assert called("run", config, "--resume", folder).returncode == code


def test_an_endpoint_that_is_not_there_is_told_at_once(called, tmp_path):
    """Step 2 names the experiment that will not be measured; the others, and the report, go on."""
    gone = "experiments.1.endpoint={kind: openai, base_url: 'http://127.0.0.1:9/v1'}"

    done = called("run", probe(tmp_path), "--set", gone)

    assert done.returncode in VALID_OR_NOT, done.stdout + done.stderr
    told = done.stdout.index("two will not be measured: ")
    assert done.stdout.index("2_deploy_endpoints: done") < told
    assert told < done.stdout.index("3_run_inference: running")
    report = (run_folder(tmp_path / "results") / "report.md").read_text()
    assert "cannot connect" in report


def test_a_finished_run_resumed_runs_nothing_but_clean_up(called, finished):
    """--resume of a complete run skips every step, and `report` rebuilds the last two."""
    config, folder = finished

    with held(folder / ".pipeline.lock", "works on it"):
        refused = called("run", config, "--resume", folder.name)
        not_rebuilt = called("report", folder)
    resumed = called("run", config, "--resume", folder.name)
    rebuilt = called("report", folder)

    assert (refused.returncode, not_rebuilt.returncode) == (1, 1)
    for done in (refused, not_rebuilt):
        assert f"process {os.getpid()} works on {folder.name}" in done.stderr

    assert [f"{name}: skipped" in resumed.stdout for name in NOTEBOOKS] == [True] * 5 + [False]
    assert resumed.returncode in VALID_OR_NOT
    assert rebuilt.returncode == resumed.returncode
    assert "4_compute_metrics: done" in rebuilt.stdout
    assert "3_run_inference" not in rebuilt.stdout


def test_papermill_tells_the_error_of_a_cell_and_keeps_the_kernel_s_own_noise(tmp_path):
    """A cell's error comes back by name; what its process prints goes beside the notebook."""
    source, executed = tmp_path / "noisy.ipynb", tmp_path / "out" / "noisy.ipynb"
    executed.parent.mkdir()
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
    parameters = nbformat.v4.new_code_cell("said = ''", metadata={"tags": ["parameters"]})
    noise = nbformat.v4.new_code_cell("import os; os.write(2, said.encode()); 1 / 0")
    notebook.cells = [parameters, noise]
    nbformat.write(notebook, source)

    with pytest.raises(NotebookError) as raised:
        PapermillRunner().run(source, executed, {"said": "not for the terminal"})

    assert (raised.value.error_name, raised.value.error_text) == (
        "ZeroDivisionError",
        "division by zero",
    )
    assert (tmp_path / "out" / "noisy.log").read_text() == "not for the terminal"


EDITS = {"another load": ("duration_s: ", "duration_s: 1"), "not YAML": ("run:", "run: {")}


@pytest.mark.parametrize("edit", EDITS)
def test_notebook_6_needs_no_config_that_can_be_read(tmp_path, monkeypatch, edit):
    """A server that was started with the config as it was is ended, whatever it is now."""
    monkeypatch.chdir(tmp_path)
    config = probe(tmp_path)
    run = open_run(config, "by-hand")
    bring_up(run)
    config.write_text(config.read_text().replace(*EDITS[edit]))

    clean_up_by_hand(config)

    assert outstanding(run.folder) == set()
    assert processes_of(run.folder) == []


def test_notebook_6_makes_no_folder_for_a_run_that_is_not_there(tmp_path):
    """It fails instead, and nothing appears."""
    config = probe(tmp_path)

    with pytest.raises(NotebookError):
        clean_up_by_hand(config)

    assert not (tmp_path / "results").exists()


def clean_up_by_hand(config: Path) -> None:
    """Execute notebook 6 for the run that is called by-hand."""
    source = notebooks_folder() / "6_clean_up.ipynb"
    parameters = {"config_path": str(config), "run_id": "by-hand"}
    InProcessRunner().run(source, config.parent / "executed.ipynb", parameters)


def planned_with(load: str) -> str:
    """What is said before a run of the quickstart's first experiment under `load`."""
    data = yaml.safe_load(QUICKSTART.read_text())
    first = {**data["experiments"][0], "load": [yaml.safe_load(load)]}
    changes = [f"experiments={json.dumps([first])}", "budgets.spend_usd=null"]
    return preflight(QUICKSTART, changes, offline=True)[0]


@pytest.mark.parametrize("end", ["duration_s: 6", "duration_s: 6, requests: 10"])
def test_a_plan_of_known_length_is_told_as_such(end):
    """Two stages whose windows a duration bounds, whatever else does."""
    load = f"{{kind: open_loop, request_rate: [2], warmup_s: 1, {end}}}"

    said = planned_with(load)

    assert ", 14 s to 56 s under load, then each stage's drain; projected cost $" in said


def test_a_plan_that_only_a_count_ends_is_told_as_the_least_that_it_takes():
    """The warm-up of its two stages is known, the price of that time, and the requests."""
    said = planned_with("{kind: closed_loop, concurrency: [1], requests: 10, warmup_s: 3}")

    told = ", 6 s to 6 min 24 s under load and as long as 20 requests take, then each stage's drain"
    assert told in said


def test_a_plan_whose_rate_tells_how_long_its_count_takes_is_told_as_such():
    """Two stages of 10 requests at 2 a second, after 3 seconds of warm-up: 8 seconds each."""
    said = planned_with("{kind: open_loop, request_rate: [2], requests: 10, warmup_s: 3}")

    assert ", 16 s to 1 min 4 s under load, then each stage's drain; projected cost $" in said


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (
            "{kind: closed_loop, concurrency: [1, 1000000], duration_s: 6}",
            r"experiments\.0\.load\.0\.concurrency\.1: 1000000 requests in flight need as many "
            r"local ports: \d+ exist\. Lower it",
        ),
        (
            "{kind: open_loop, request_rate: [1], max_in_flight: 1000000, duration_s: 6}",
            r"experiments\.0\.load\.0\.max_in_flight: 1000000 requests in flight need as many",
        ),
    ],
)
def test_more_connections_than_this_machine_has_are_refused(load, told):
    """Before anything is started, with file, line, key and remedy."""
    with pytest.raises(ConfigError, match=told):
        planned_with(load)


def test_more_connections_than_a_worker_may_open_are_refused(tmp_path):
    """With a hard limit of 200 open files, 150 in flight are too many for one worker."""
    config = Path(shutil.copy(QUICKSTART, tmp_path))
    command = [
        *("prlimit", "--nofile=200:200", sys.executable, "-m", "fmgauge.cli", "check", str(config)),
        *("--offline", "--set", "budgets.spend_usd=null", "--set", "run.workers=1"),
        *("--set", "experiments.0.load.0.concurrency=[150]"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "150 connections of one worker need as many open files: 136 may be" in done.stderr

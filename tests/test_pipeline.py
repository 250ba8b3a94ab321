"""Clean-up whatever happens, resume of what is missing, and notebooks run by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import QUICKSTART, processes_of, small_overrides, until
from fmgauge.config import planned_stages
from fmgauge.deploy import bring_up
from fmgauge.errors import ConfigError
from fmgauge.pipeline.notebooks import NOTEBOOKS, notebooks_folder
from fmgauge.pipeline.preflight import preflight
from fmgauge.pipeline.sequence import missing_steps
from fmgauge.records import held, write_json
from fmgauge.runs import find_run, open_run

ENDED_WITHIN_S = 30.0


def run_folder(results: Path) -> Path:
    """The only run's folder, once it is there."""
    until(lambda: list(results.glob("quickstart-*/manifest.json")))
    return next(results.glob("quickstart-*"))


def stages_done(folder: Path) -> list[Path]:
    """The stages whose records are complete."""
    return sorted(folder.glob("requests/*/*/concurrency-*/stage.json"))


def step_states(folder: Path) -> dict[str, str]:
    """The state of each step, from the manifest."""
    steps = json.loads((folder / "manifest.json").read_text())["steps"]
    return {name: step["state"] for name, step in steps.items()}


def outstanding(folder: Path) -> set[str]:
    """Names that the ledger calls created and not deleted."""
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    named = {
        kind: {e["name"] for e in events if e["event"] == kind} for kind in ("created", "deleted")
    }
    return named["created"] - named["deleted"]


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_cleanly(started, tmp_path, number, code):
    """Ctrl-C or SIGTERM in the middle of the load: clean-up runs and nothing is left."""
    process = started("run", QUICKSTART, *small_overrides(tmp_path))
    folder = run_folder(tmp_path)
    until(lambda: stages_done(folder))

    process.send_signal(number)

    assert process.wait(timeout=60) == code
    assert outstanding(folder) == set()
    assert processes_of(folder) == []
    states = step_states(folder)
    assert (states["3_run_inference"], states["6_clean_up"]) == ("interrupted", "done")
    output = (tmp_path / "output-0.txt").read_text().splitlines()
    said = [line.split(" after ")[0] for line in output]
    name = signal.Signals(number).name
    assert said[-5:-1] == [
        f"{name}: ending 3_run_inference, then cleaning up",
        "3_run_inference: interrupted",
        "6_clean_up: running",
        "6_clean_up: done",
    ]
    assert said[-1].startswith(f"To go on: {sys.executable} -m fmgauge.cli run {QUICKSTART} --set ")
    assert said[-1].endswith(f" --resume {folder.name}")


def test_a_killed_run_ends_its_servers_and_resumes(started, fmgauge, tmp_path):
    """After kill -9 the servers end by their lease; --resume keeps every finished stage."""
    process = started("run", QUICKSTART, *small_overrides(tmp_path))
    folder = run_folder(tmp_path)
    until(lambda: len(stages_done(folder)) >= 2)
    process.kill()
    process.wait()
    until(lambda: processes_of(folder) == [], ENDED_WITHIN_S)
    before = {path: path.stat().st_mtime_ns for path in stages_done(folder)}
    options = small_overrides(tmp_path)

    done = fmgauge("run", QUICKSTART, *options, "--resume", folder.name)

    assert done.returncode in (0, 3), done.stdout + done.stderr
    after = {path: path.stat().st_mtime_ns for path in stages_done(folder)}
    assert len(after) == 8
    assert before.items() <= after.items()
    assert "1_prepare_data: skipped" in done.stdout
    assert outstanding(folder) == set()


def test_a_failing_notebook_is_told_and_cleaned_up_after(fmgauge, started, tmp_path):
    """Records that cannot be read fail notebook 4: exit code 1, and clean-up still runs."""
    process = started("run", QUICKSTART, *small_overrides(tmp_path, duration_s=0.5))
    folder = run_folder(tmp_path)
    process.wait(timeout=120)
    next(folder.glob("requests/*/*/*/*.parquet")).write_bytes(b"no parquet")
    (folder / "decision.json").unlink()

    done = fmgauge(
        "run", QUICKSTART, *small_overrides(tmp_path, duration_s=0.5), "--resume", folder
    )

    assert done.returncode == 1
    assert "4_compute_metrics" in done.stdout
    assert step_states(folder)["4_compute_metrics"] == "failed"
    assert "6_clean_up: done" in done.stdout


def test_no_candidate_within_budget_is_exit_code_3(fmgauge, tmp_path):
    """A budget that nothing can meet is an answer, told by exit code 3 and a report."""
    options = small_overrides(tmp_path, duration_s=0.5)

    done = fmgauge("run", QUICKSTART, *options, "--set", "budgets.usd_per_10k_txn=0.0001")

    assert done.returncode == 3, done.stdout + done.stderr
    assert (run_folder(tmp_path) / "report.html").exists()


def test_an_endpoint_that_is_not_there_is_told_at_once(fmgauge, tmp_path):
    """Step 2 names the experiment that will not be measured; the others, and the report, go on."""
    options = small_overrides(tmp_path, duration_s=0.5)
    gone = "experiments.1.endpoint={kind: openai, base_url: 'http://127.0.0.1:9/v1'}"

    done = fmgauge("run", QUICKSTART, *options, "--set", gone)

    assert done.returncode in (0, 3), done.stdout + done.stderr
    told = done.stdout.index("llamacpp-7m will not be measured: ")
    assert done.stdout.index("2_deploy_endpoints: done") < told
    assert told < done.stdout.index("3_run_inference: running")
    report = (run_folder(tmp_path) / "report.md").read_text()
    assert "cannot connect" in report


def test_a_finished_run_resumed_runs_nothing_but_clean_up(fmgauge, tmp_path):
    """--resume of a complete run skips every step, and `report` rebuilds the last two."""
    options = small_overrides(tmp_path, duration_s=0.5)
    first = fmgauge("run", QUICKSTART, *options)
    assert first.returncode in (0, 3), first.stdout + first.stderr
    folder = run_folder(tmp_path)

    with held(folder / ".pipeline.lock", "works on it"):
        refused = fmgauge("run", QUICKSTART, *options, "--resume", folder.name)
        not_rebuilt = fmgauge("report", folder)
    resumed = fmgauge("run", QUICKSTART, *options, "--resume", folder.name)
    rebuilt = fmgauge("report", folder)

    assert (refused.returncode, not_rebuilt.returncode) == (1, 1)
    for done in (refused, not_rebuilt):
        assert f"process {os.getpid()} works on {folder.name}" in done.stderr

    assert [f"{name}: skipped" in resumed.stdout for name in NOTEBOOKS] == [True] * 5 + [False]
    assert rebuilt.returncode == first.returncode
    assert "4_compute_metrics: done" in rebuilt.stdout
    assert "3_run_inference" not in rebuilt.stdout


def test_notebooks_run_one_by_one_with_papermill(tmp_path):
    """Plain papermill, one notebook after another, with a server that died in the pause."""
    prices = Path("data", "prices", "local.yaml")
    (tmp_path / prices).parent.mkdir(parents=True)
    shutil.copy(QUICKSTART.parents[1] / prices, tmp_path / prices)
    text = QUICKSTART.read_text().replace("[1, 2, 4], duration_s: 9.5", "[1], duration_s: 0.5")
    config = tmp_path / "config.yml"
    config.write_text(text)
    folder = tmp_path / "results" / "by-hand"

    for name in NOTEBOOKS:
        papermill_one(name, config, tmp_path)
        if name == "2_deploy_endpoints":
            processes_of(folder)[0].kill()
            until(lambda: len(processes_of(folder)) == 1)

    run = find_run(str(folder))
    assert all(run.stage_folder(stage.key).exists() for stage in planned_stages(run.config))
    assert (folder / "report.html").exists()
    assert outstanding(folder) == set()
    assert processes_of(folder) == []


EDITS = {"another load": ("duration_s: ", "duration_s: 1"), "not YAML": ("run:", "run: {")}


@pytest.mark.parametrize("edit", EDITS)
def test_notebook_6_needs_no_config_that_can_be_read(tmp_path, edit):
    """A server that was started with the config as it was is ended, whatever it is now."""
    (tmp_path / "pyproject.toml").touch()
    config = tmp_path / "config.yml"
    data = yaml.safe_load(QUICKSTART.read_text())
    load = {"kind": "closed_loop", "concurrency": [1], "duration_s": 5}
    profile = {"step_s": 0.01, "prefill_token_s": 0.0, "decode_sequence_s": 0.0}
    endpoint = {"kind": "simulated", "profile": profile}
    one = {**data["experiments"][0], "endpoint": endpoint, "load": [load]}
    text = yaml.safe_dump({**data, "experiments": [one]})
    config.write_text(text)
    run = open_run(config, "by-hand")
    bring_up(run)
    config.write_text(text.replace(*EDITS[edit]))

    papermill_one("6_clean_up", config, tmp_path)

    assert outstanding(run.folder) == set()
    assert processes_of(run.folder) == []


def test_notebook_6_makes_no_folder_for_a_run_that_is_not_there(tmp_path):
    """It fails instead, and nothing appears."""
    config = tmp_path / "config.yml"
    config.write_text(QUICKSTART.read_text())

    with pytest.raises(subprocess.CalledProcessError):
        papermill_one("6_clean_up", config, tmp_path)

    assert not (tmp_path / "results").exists()


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


def papermill_one(name: str, config: Path, cwd: Path) -> None:
    """Execute one notebook with papermill's own command."""
    subprocess.run(
        [
            *(sys.executable, "-m", "papermill", "--no-progress-bar"),
            *(str(notebooks_folder() / f"{name}.ipynb"), str(cwd / f"{name}.out.ipynb")),
            *("-p", "config_path", str(config), "-p", "run_id", "by-hand"),
        ],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        timeout=120,
        check=True,
    )

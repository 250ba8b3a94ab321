"""Two that work on one run at a time: who is refused, what is left alone, and who goes on."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from conftest import processes_of, until
from fmgauge.records import read_stage, stage_folders

pytestmark = pytest.mark.whole

CONFIG = """\
run: {{name: probe, seed: 7}}
workloads:
  - name: plain
    source: {{kind: jsonl, paths: [rows.jsonl]}}
    template: "Say {{{{ word }}}}."
experiments:
  - name: one
    model: {{name: simulated}}
    endpoint:
      kind: simulated
      profile: {{step_s: 0.01, prefill_token_s: 0, decode_sequence_s: 0}}
    instance_type: local-cpu
    workloads: [plain]
    load:
      - {{kind: closed_loop, concurrency: [1, 2], duration_s: {duration_s}, warmup_s: 0.2}}
prices: {{hourly_usd: {{local-cpu: 0.1}}}}
"""
BY_HAND = """
import sys
from fmgauge.endpoints import serving
from fmgauge.load import run_stages
from fmgauge.runs import open_run

run = open_run(sys.argv[1], sys.argv[2])
with serving(run) as served:
    run_stages(run, served.endpoints, on_experiment_done=served.release)
"""
Started = Callable[..., "subprocess.Popen[str]"]
Done = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def loading(tmp_path: Path, started: Started) -> Iterator[Callable[[float], Path]]:
    """Start a pipeline whose two stages take so long each; the run's folder once it loads."""
    rows = [json.dumps({"word": f"word{number}"}) for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")

    def load(duration_s: float) -> Path:
        (tmp_path / "config.yml").write_text(CONFIG.format(duration_s=duration_s))
        process = started("run", "config.yml")
        until(lambda: process.poll() or list(tmp_path.glob("results/*/progress.json")))
        return next(tmp_path.glob("results/*"))

    yield load
    until(lambda: processes_of(tmp_path / "results") == [])


def by_hand(folder: Path) -> subprocess.Popen[str]:
    """What notebook 3 does, by hand, on the run in `folder`."""
    code = [sys.executable, "-c", BY_HAND, str(folder / "config.yaml"), folder.name]
    return subprocess.Popen(code, cwd=folder.parents[1], stderr=subprocess.PIPE, text=True)


def holder_of(lock: Path) -> psutil.Process:
    """The process whose id stands in the lock file."""
    return psutil.Process(int(lock.read_text()))


def pipeline_of(folder: Path) -> psutil.Process:
    """The pipeline that works on the run in `folder`."""
    return holder_of(folder / ".pipeline.lock")


def servers_created(folder: Path) -> list[str]:
    """The names of all servers that the run ever had."""
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [event["name"] for event in events if event["event"] == "created"]


def statuses(folder: Path) -> set[str]:
    """How the measured requests of all the run's stages ended."""
    tables = [read_stage(path)[1] for path in stage_folders(folder / "requests")]
    rows = [row for table in tables for row in table.select(["phase", "status"]).to_pylist()]
    return {row["status"] for row in rows if row["phase"] == "measured"}


def test_whoever_comes_to_a_run_that_is_loaded_is_refused(
    loading: Callable[[float], Path], fmgauge: Done, tmp_path: Path
) -> None:
    """A notebook by hand, a second pipeline, report and clean-up: each names who is there."""
    folder = loading(600)
    pipeline, kernel = pipeline_of(folder), holder_of(folder / ".load.lock")
    lease = json.loads((folder / "lease.json").read_text())["holder"]

    notebook = by_hand(folder)
    resumed = fmgauge("run", "config.yml", "--resume", folder.name)
    report = fmgauge("report", folder.name)
    one = fmgauge("clean-up", folder.name)
    every = fmgauge("clean-up")
    _, told = notebook.communicate(timeout=60)

    works = f"process {pipeline.pid} works on {folder.name}"
    assert f"process {kernel.pid} brings up or loads the endpoints of {folder.name}" in told
    assert [works in done.stderr for done in (resumed, report, one)] == [True] * 3
    codes = [done.returncode for done in (notebook, resumed, report, one, every)]
    assert codes == [1, 1, 1, 1, 0]
    assert f"clean-up {folder.name} --force" in one.stderr
    assert f"{folder.name}: left alone: {works}" in every.stdout
    place = tmp_path.resolve() / "results"
    assert every.stdout.splitlines()[-1] == (
        f"1 run(s) looked at in {place}, 1 of them in use and left alone; "
        "0 resource(s) of the others left running."
    )
    assert servers_created(folder) == ["simulated-one-1"]
    assert (lease, kernel.ppid()) == ("pipeline", pipeline.pid)
    assert json.loads((folder / "progress.json").read_text())["failed"] == 0
    forced = fmgauge("clean-up", folder.name, "--force")
    assert f"{folder.name}: ended simulated-one-1" in forced.stdout
    pipeline.terminate()


def test_a_second_pipeline_goes_on_where_the_first_was_killed(
    loading: Callable[[float], Path], fmgauge: Done
) -> None:
    """At once after kill -9, while the killed one's notebook may still be there."""
    folder = loading(2)

    pipeline_of(folder).kill()
    done = fmgauge("run", "config.yml", "--resume", folder.name)

    assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: a busy client's figures
    assert statuses(folder) == {"ok"}


def test_a_notebook_by_hand_goes_on_where_a_pipeline_was_killed(
    loading: Callable[[float], Path], fmgauge: Done
) -> None:
    """Its load outlasts the lease of the killed one by far, on the same server."""
    folder = loading(10)
    pipeline_of(folder).kill()

    notebook = by_hand(folder)
    _, told = notebook.communicate(timeout=120)

    assert (notebook.returncode, told) == (0, "")
    assert statuses(folder) == {"ok"}
    assert servers_created(folder) == ["simulated-one-1"]
    assert json.loads((folder / "lease.json").read_text())["holder"] == "by hand"


def test_a_pipeline_leaves_what_is_loaded_by_hand(
    loading: Callable[[float], Path], fmgauge: Done
) -> None:
    """It is refused, and its clean-up does not end the server below the load that goes on."""
    folder = loading(600)
    pipeline_of(folder).kill()
    notebook = by_hand(folder)
    until(lambda: (folder / ".load.lock").read_text() == str(notebook.pid))

    done = fmgauge("run", "config.yml", "--resume", folder.name)

    assert done.returncode == 1
    assert f"process {notebook.pid} brings up or loads" in done.stdout
    assert "STILL RUNNING: what another process uses" in done.stdout
    servers = [process for process in processes_of(folder) if process.pid != notebook.pid]
    assert len(servers) == 1
    notebook.kill()
    notebook.communicate()
    assert fmgauge("clean-up", folder.name).returncode == 0


def test_a_server_that_is_killed_stops_its_stage_and_is_brought_up_on_resume(
    loading: Callable[[float], Path], fmgauge: Done
) -> None:
    """Its records are kept aside, the stage counts as not run, and --resume measures it."""
    folder = loading(4)
    stages = folder / "requests" / "one" / "plain"
    second = stages / ".concurrency-2.partial"
    until(second.exists)

    (server,) = (p for p in processes_of(folder) if "simulated_server" in " ".join(p.cmdline()))
    pipeline = pipeline_of(folder)
    server.kill()
    until(lambda: pipeline.status() == psutil.STATUS_ZOMBIE)  # this test's own child
    (row,) = (r for r in metrics_rows(folder) if r["stage"] == "concurrency-2")
    kept = stages.joinpath("concurrency-2.failed", "failure.json").exists()
    resumed = fmgauge("run", "config.yml", "--resume", folder.name)

    assert kept
    assert row["status"].startswith(f"not run: its server ended (process {server.pid})")
    assert resumed.returncode in (0, 3), resumed.stdout + resumed.stderr
    assert {row["status"] for row in metrics_rows(folder)} == {"ok"}
    assert servers_created(folder) == ["simulated-one-1", "simulated-one-2"]
    assert statuses(folder) == {"ok"}


def metrics_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (folder / "metrics.csv").open() as table:
        return list(csv.DictReader(table))

"""What several test files share: the command line, and a small sibling of the quickstart."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

from cells_in_process import InProcessRunner
from fmgauge import cli

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yml"

_ON_ONE_WORKER = (
    *("test_end_to_end.py", "test_pipeline.py", "test_report.py"),
    *("test_faults.py", "test_leaks.py"),
)
_SLOW = (*_ON_ONE_WORKER, "test_two_actors.py", "test_whole_runs.py", "test_kinds.py")

settings.register_profile("light", deadline=None, max_examples=20)
settings.register_profile("whole", deadline=None)
settings.load_profile("light")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give tests that share finished runs to one worker, and every other to whoever is free."""
    from xdist.scheduler import LoadScopeScheduling

    class OneRunOneWorker(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return file if file.endswith(_ON_ONE_WORKER) else nodeid

    return OneRunOneWorker(config, log)


def pytest_configure() -> None:
    """Hear Ctrl-C, and have the children hear it, also where the suite runs in the background.

    A shell has what it starts there ignore SIGINT, and whatever that starts inherits it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over all that was imported: it would look there often."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.path.name not in _SLOW)


def small_overrides(results_dir: Path, duration_s: float = 1.5) -> list[str]:
    """`--set` options that make the quickstart small: 2 experiments, 1 or 2 in flight, short."""
    settings = {
        "run.results_dir": results_dir,
        "experiments.0.load.0.concurrency": "[1, 2]",
        "experiments.0.load.0.duration_s": duration_s,
        "experiments.0.load.0.warmup_s": 0.3,
        "experiments.1.load.0.concurrency": "[1, 2]",
        "experiments.1.load.0.duration_s": duration_s,
        "experiments.1.load.0.warmup_s": 0.3,
    }
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def command(*arguments: object) -> list[str]:
    """The command line that runs fmgauge as a user's shell would."""
    return [sys.executable, "-m", "fmgauge.cli", *map(str, arguments)]


@pytest.fixture
def fmgauge(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run fmgauge to its end in a folder of its own."""

    def run(*arguments: object, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=180, check=False
        )

    return run


@pytest.fixture
def called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call fmgauge in this process and a folder of its own; the outcome is as of a process.

    Notebooks' cells run in this process, too.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [cli.__file__])

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        typed = [str(argument) for argument in arguments]
        try:
            code = cli.main(typed, runner=InProcessRunner())
        except SystemExit as usage:  # argparse's way out
            code = usage.code
        return subprocess.CompletedProcess(typed, code, *capfd.readouterr())

    return call


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start fmgauge and leave it running; whatever still lives at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        with (tmp_path / f"output-{len(processes)}.txt").open("w") as output:
            process = subprocess.Popen(
                command(*arguments), cwd=tmp_path, stdout=output, stderr=output, text=True
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that a module's tests fill once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what fmgauge builds cached in the module's folder, not in the user's."""
    monkeypatch.setenv("FMGAUGE_CACHE_DIR", str(shared_cache))


def until(condition: Callable[[], object], deadline_s: float = 60.0) -> None:
    """Wait until `condition` holds; AssertionError where it does not by the deadline."""
    ends_at_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_at_s, "the condition did not come true in time"
        time.sleep(0.05)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Live processes, this one aside, whose command line names `folder`."""
    return [
        process
        for process in psutil.process_iter(["pid", "cmdline", "status"])
        if process.pid != os.getpid()
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(folder) in part for part in process.info["cmdline"] or [])
    ]


def outstanding(folder: Path) -> set[str]:
    """Names that a run's ledger calls created and not deleted."""
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    named = {
        kind: {e["name"] for e in events if e["event"] == kind} for kind in ("created", "deleted")
    }
    return named["created"] - named["deleted"]


HOLDER = """
import sys
from pathlib import Path
from fmgauge.records import held
with held(Path(sys.argv[1]), "works on it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[int]:
    """Another process holds `lock` for as long as the block lasts; gives its id."""
    command = [sys.executable, "-c", HOLDER, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()

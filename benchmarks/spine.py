"""The limits that the project sets itself for set-up, start-up, overhead and memory, measured.

`make bench` runs it on the checkout it stands in: a first `make run` in a fresh clone with empty
caches, a second one, the commands' start-up, the time outside the measured stages, and the memory
of the whole process tree. It prints one Markdown table; exit code 1 where a limit is not kept.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
REPEATS = 5


@dataclass(frozen=True)
class Limit:
    """One figure, its limit, and what was measured."""

    name: str
    limit: float
    unit: str
    measured: float

    @property
    def kept(self) -> bool:
        """Whether the measured figure is below the limit."""
        return self.measured < self.limit


class TreeMemory(threading.Thread):
    """Samples the proportional memory of a process tree, detached servers included."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self._root = str(root)
        self._ended = threading.Event()
        self.peak_gb = 0.0

    def run(self) -> None:
        """Sample twice a second until told to end."""
        while not self._ended.wait(0.5):
            self.peak_gb = max(self.peak_gb, self._now_gb())

    def end(self) -> float:
        """Stop sampling; the peak in GB."""
        self._ended.set()
        self.join()
        return self.peak_gb

    def _now_gb(self) -> float:
        total = 0
        for process in psutil.process_iter(["cmdline"]):
            try:
                if any(self._root in part for part in process.info["cmdline"] or []):
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", memory.uss)  # shared pages once, on Linux
            except psutil.Error:
                continue
        return total / 1e9


def timed(command: list[str], cwd: Path, env: dict[str, str]) -> float:
    """Wall seconds of a command that must end well."""
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def median_time(command: list[str], cwd: Path, env: dict[str, str]) -> float:
    """Median wall seconds of several runs, after one that warms the disk's cache."""
    timed(command, cwd, env)
    return statistics.median(timed(command, cwd, env) for _ in range(REPEATS))


def cold_environment(scratch: Path) -> dict[str, str]:
    """The environment with every cache in an empty folder."""
    caches = {"UV_CACHE_DIR": "uv", "PIP_CACHE_DIR": "pip", "XDG_CACHE_HOME": "xdg"}
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**kept, **{key: str(scratch / name) for key, name in caches.items()}}


def outside_stages_s(run_folder: Path, wall_s: float) -> float:
    """The part of a run that was not spent in its stages."""
    stages = run_folder.glob("requests/*/*/*/stage.json")
    return wall_s - sum(json.loads(path.read_text())["finished_at_s"] for path in stages)


def measured_limits(scratch: Path) -> list[Limit]:
    """Every limit, measured in a fresh clone below `scratch`."""
    clone, env = scratch / "fmgauge", cold_environment(scratch)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    first_s = timed(["make", "run"], clone, env)
    memory = TreeMemory(clone)
    memory.start()
    second_s = timed(["make", "run"], clone, env)
    peak_gb = memory.end()
    newest = max(clone.glob("results/quickstart-*"), key=lambda path: path.name)
    tool = str(clone / ".venv" / "bin" / "fmgauge")
    return [
        Limit("`make run`, fresh clone, empty caches", 360, "s", first_s),
        Limit("`make run` again", 180, "s", second_s),
        Limit("outside the measured stages", 25, "s", outside_stages_s(newest, second_s)),
        Limit("`fmgauge --help`", 0.4, "s", median_time([tool, "--help"], clone, env)),
        Limit(
            "`fmgauge check configs/quickstart.yml`",
            1.5,
            "s",
            median_time([tool, "check", "configs/quickstart.yml"], clone, env),
        ),
        Limit("memory of the whole tree", 1.5, "GB", peak_gb),
    ]


def main() -> int:
    """Measure, print the table, and say by the exit code whether every limit is kept."""
    scratch = Path(tempfile.mkdtemp(prefix="fmgauge-bench-"))
    try:
        limits = measured_limits(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print("| what | limit | measured | kept |\n|---|---|---|---|")
    for limit in limits:
        kept = "yes" if limit.kept else "NO"
        print(f"| {limit.name} | {limit.limit} {limit.unit} | {limit.measured:.2f} | {kept} |")
    return 0 if all(limit.kept for limit in limits) else 1


if __name__ == "__main__":
    sys.exit(main())

"""One client against the reference server: both pinned, its CPU time taken, the truth read.

Knows processes and files; not what is made of the numbers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from clients import Asked, Client, Reported
from reference import CLIENT_CORE, ReferenceServer, Truth, pinned

START_UP_S = 120.0  # guidellm takes 40 s to its first request
AFTERMATH_S = 300.0  # and LLMeter long after its last

# Nothing is to be asked of the network, and no tool is to report home. aiperf is alone in refusing
# a local tokenizer when told so; it is given the same one and has no use for the network either.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Trial:
    """What one client did under one load; `failure` says why there is nothing to compare."""

    asked: Asked
    truth: Truth | None
    reported: Reported | None
    cpu_ms_per_request: float | None  # of the whole process tree, within the window
    server_busy_share: float | None  # the server's own core, within the window
    folder: Path
    failure: str | None = None

    @property
    def window(self) -> tuple[float, float]:
        """The measured window, by the server's truth."""
        assert self.truth is not None
        return self.truth.window(self.asked.warmup_s, self.asked.seconds)


@dataclass(frozen=True)
class _Sample:
    """The client's CPU time and the server's counts at one instant."""

    cpu_s: float
    served: int
    busy_share: float


@contextmanager
def trial_of(client: Client, asked: Asked, options: Mapping[str, float | bool]) -> Iterator[Trial]:
    """Run `client` against a fresh server; one that cannot do it gives a Trial with a failure.

    The files of the trial last as long as the context; those of a failure are kept.
    """
    client.prepare()
    folder = Path(tempfile.mkdtemp(prefix=f"fmgauge-bench-{client.name}-"))
    trial = _run(client, asked, options, folder)
    yield trial
    if trial.failure is None:
        shutil.rmtree(folder, ignore_errors=True)


def _run(client: Client, asked: Asked, options: Mapping[str, float | bool], folder: Path) -> Trial:
    with ReferenceServer(folder, options) as server:
        with (folder / "output.txt").open("wb") as output:
            command = pinned(CLIENT_CORE, client.command(asked, server.base_url, folder))
            env = _environment(client)
            process = subprocess.Popen(
                command, env=env, cwd=folder, stdout=output, stderr=subprocess.STDOUT
            )
            samples = _samples(process, server, asked)
            failure = _ended(process)
        truth = server.truth()
    return _trial(client, asked, folder, truth, samples, failure)


def _trial(
    client: Client,
    asked: Asked,
    folder: Path,
    truth: Truth,
    samples: list[_Sample],
    failure: str | None,
) -> Trial:
    reported = None
    if failure is None and truth.rows.empty:
        failure = "sent no request"
    if failure is None:
        try:
            reported = client.reported(folder)
        except (OSError, ValueError, KeyError) as error:
            failure = f"its report could not be read: {error!r}"
    cpu_ms, busy_share = None, None
    if len(samples) == 2 and samples[1].served > samples[0].served:
        n = samples[1].served - samples[0].served
        cpu_ms = 1e3 * (samples[1].cpu_s - samples[0].cpu_s) / n
        busy_share = samples[1].busy_share
    return Trial(asked, truth, reported, cpu_ms, busy_share, folder, failure)


def _environment(client: Client) -> dict[str, str]:
    dropped = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"NO_COLOR": "1"} | ({} if client.name == "aiperf" else OFFLINE)


def _samples(
    process: subprocess.Popen[bytes], server: ReferenceServer, asked: Asked
) -> list[_Sample]:
    """Two samples, at the window's ends. Only two: taking one costs both cores some work."""
    deadline = time.monotonic() + START_UP_S
    while server.stats()["max_in_flight"] < 2:  # as Truth.window has it
        if process.poll() is not None or time.monotonic() > deadline:
            return []
        time.sleep(0.1)
    time.sleep(asked.warmup_s)
    first = _sample(process, server, reset=True)
    time.sleep(0.9 * asked.seconds)  # before any client begins to end
    return [first, _sample(process, server, reset=False)] if process.poll() is None else []


def _sample(process: subprocess.Popen[bytes], server: ReferenceServer, *, reset: bool) -> _Sample:
    cpu_s = _tree_cpu_s(process.pid)
    stats = server.stats(reset=reset)
    return _Sample(cpu_s, 0 if reset else stats["served"], stats["busy_share"])


def _tree_cpu_s(pid: int) -> float:
    """User and system time of a process and of its descendants that live."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for one in tree:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _ended(process: subprocess.Popen[bytes]) -> str | None:
    """Wait for the client; why it did not end well, if it did not."""
    try:
        code = process.wait(timeout=AFTERMATH_S)
    except subprocess.TimeoutExpired:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
        process.wait()
        return f"did not end within {AFTERMATH_S:.0f} s of the window"
    return f"ended with {code}" if code else None

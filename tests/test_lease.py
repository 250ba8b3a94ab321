"""A lease that changes hands: who takes it over when its holder has died, and who must not."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import until
from fmgauge.emulator import lease
from fmgauge.runs import now_utc
from simulated_runs import Simulated, profile, simulated

NOTEBOOK = """
import sys
from pathlib import Path
from fmgauge.emulator.lease import hold
with hold(Path(sys.argv[1]), "by hand", 600, 2.0):
    print("inside", flush=True)
    sys.stdin.read()
"""


@contextmanager
def notebook(path: Path, **environment: str) -> Iterator[None]:
    """A process that holds the lease at `path` by hand while this is open."""
    process = subprocess.Popen(
        [sys.executable, "-c", NOTEBOOK, str(path)],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        yield
        process.kill()


def holder_of(path: Path) -> str | None:
    """Who holds the lease that has not expired."""
    found = lease.read_lease(path)
    return None if found is None or found.expired(now_utc()) else found.holder


def is_up(server: Simulated) -> bool:
    """Whether the server answers."""
    try:
        address = f"{server.base_url.removesuffix('/v1')}/health"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.whole  # four seconds of waiting
def test_a_notebook_by_hand_takes_over_from_a_pipeline_that_died(tmp_path: Path) -> None:
    """It began while the lease was the pipeline's; the server outlives that lease."""
    path = tmp_path / "lease.json"
    with simulated(tmp_path, profile=profile()) as server:
        lease.renew(path, "pipeline", 3.0)  # the last words of a pipeline
        with notebook(path):
            assert holder_of(path) == "pipeline"
            until(lambda: holder_of(path) == "by hand", deadline_s=20)
            watch = lease.LeaseWatch(path)
            assert [watch.over() for _ in range(3)] == [False] * 3
            assert is_up(server)


@pytest.mark.whole  # four seconds of waiting
def test_a_notebook_that_a_pipeline_runs_does_not_take_over(tmp_path: Path) -> None:
    """Its kernel goes on when the pipeline is killed; the server ends by the pipeline's lease."""
    path = tmp_path / "lease.json"
    with simulated(tmp_path, profile=profile()) as server:
        lease.renew(path, "pipeline", 1.0)
        with notebook(path, FMGAUGE_RUN_BY_PIPELINE="123"):
            until(lambda: not is_up(server), deadline_s=20)

    assert holder_of(path) is None


@pytest.mark.parametrize("holder", ["by hand", "pipeline"])
def test_a_living_pipeline_s_lease_is_its_own(tmp_path: Path, holder: lease.Holder) -> None:
    """While it renews, a notebook beside it changes nothing; a pipeline takes any lease."""
    path = tmp_path / "lease.json"
    lease.renew(path, holder, 600)
    with lease.hold(path, "pipeline", ttl_s=60, every_s=0.02), notebook(path):
        first = lease.read_lease(path)
        until(lambda: lease.read_lease(path) != first, deadline_s=20)
        assert holder_of(path) == "pipeline"

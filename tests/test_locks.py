"""One process at a time: who holds a lock, who is refused, and what frees it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fmgauge.errors import StepError
from fmgauge.records import held
from fmgauge.records.locks import holder

HOLDER = """
import sys
from pathlib import Path
from fmgauge.records import held
with held(Path(sys.argv[1]), "holds it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_refused_with_its_id(tmp_path: Path) -> None:
    """So that whoever meets it can look what that process is."""
    path = tmp_path / "folder" / ".lock"

    with held_elsewhere(path) as process, pytest.raises(StepError) as refused, held(path, "writes"):
        pass

    expected = f"process {process.pid} writes. Wait until it has ended, or end it"
    assert str(refused.value) == expected


def test_a_holder_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    """The system frees it; the file that stays behind holds nobody up."""
    path = tmp_path / ".lock"
    with held_elsewhere(path) as process:
        process.kill()
        process.wait()

        with held(path, "writes"):
            assert path.exists()


def test_a_lock_that_was_given_back_can_be_held_again(tmp_path: Path) -> None:
    """Also by the same process, also after an error inside."""
    path = tmp_path / ".lock"
    with pytest.raises(ValueError, match="inside"), held(path, "writes"):
        raise ValueError("inside")

    with held(path, "writes"), pytest.raises(StepError, match="writes"), held(path, "writes"):
        pass


def test_patience_waits_for_the_holder_s_end(tmp_path: Path) -> None:
    """A holder that is about to end keeps nobody from going on."""
    path = tmp_path / ".lock"
    with held_elsewhere(path) as process:
        ender = threading.Timer(0.3, process.kill)
        ender.start()

        with held(path, "writes", patience_s=30):
            assert process.wait() != 0


def test_the_holder_of_a_lock_is_named_to_whoever_looks(tmp_path: Path) -> None:
    """Looking takes nothing: the file says the same, and the second look finds the same."""
    path = tmp_path / ".lock"
    with held_elsewhere(path) as process:
        looks = [holder(path), holder(path)]

        assert looks == [f"process {process.pid}"] * 2
        assert path.read_text() == str(process.pid)


def test_a_lock_whose_holder_died_has_none(tmp_path: Path) -> None:
    """The process id still stands in the file, but the lock is what says that one lives."""
    path = tmp_path / ".lock"
    with held_elsewhere(path) as process:
        process.kill()
        process.wait()

        assert holder(path) is None
        assert path.read_text() == str(process.pid)


def test_a_lock_that_was_never_held_has_no_holder(tmp_path: Path) -> None:
    """To look makes no file."""
    assert holder(tmp_path / ".lock") is None
    assert not (tmp_path / ".lock").exists()


def test_whoever_looks_keeps_nobody_from_holding(tmp_path: Path) -> None:
    """A lock is held while others look at it all the time; a look lasts an instant."""
    path, done = tmp_path / ".lock", threading.Event()
    with held(path, "writes"):
        pass

    def look() -> None:
        while not done.is_set():
            holder(path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(100):
            with held(path, "writes", patience_s=5):
                pass
    finally:
        done.set()
        looking.join()

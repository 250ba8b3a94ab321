"""One process at a time: a file that is locked for as long as its holder lives.

Knows the lock and who holds it; not what it guards. The system frees it when a process dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fmgauge.errors import StepError

_POLL_S = 0.1
_LOOK_S = 0.1  # longer than `holder` keeps a lock that it looks at


@contextmanager
def held(path: Path, what: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock at `path`, on one machine. StepError where another process `what`, with its id.

    So long as `patience_s` is waited for that one to end. A file system without locks guards
    nothing, and keeps nobody from working.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        for _ in range(round(max(patience_s, _LOOK_S) / _POLL_S)):
            if _taken(lock):
                break
            time.sleep(_POLL_S)
        else:
            if not _taken(lock):
                raise _refused(lock, what)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def holder(path: Path) -> str | None:
    """The living process that holds the lock at `path`, as "process 123"; None where none does.

    The text of the lock file stays as it is. A lock that is free is taken for an instant.
    """
    try:
        with path.open() as lock:
            return None if _taken(lock, fcntl.LOCK_SH) else _written_in(lock)
    except FileNotFoundError:
        return None


def _taken(lock: TextIO, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _written_in(lock: TextIO) -> str:
    lock.seek(0)
    process_id = lock.read().strip()
    return f"process {process_id}" if process_id else "another process"


def _refused(lock: TextIO, what: str) -> StepError:
    return StepError(f"{_written_in(lock)} {what}. Wait until it has ended, or end it")

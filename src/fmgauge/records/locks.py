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


@contextmanager
def held(path: Path, what: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock at `path`, on one machine. StepError where another process `what`, with its id.

    So long as `patience_s` is waited for that one to end. A file system without locks guards
    nothing, and keeps nobody from working.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        for _ in range(int(patience_s / _POLL_S)):
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


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _refused(lock: TextIO, what: str) -> StepError:
    lock.seek(0)
    holder = lock.read().strip()
    process = f"process {holder}" if holder else "another process"
    return StepError(f"{process} {what}. Wait until it has ended, or end it")

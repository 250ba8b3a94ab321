"""Writes a stage's rows while it goes on, in a thread that gives way to everything else.

Knows threads and priorities; not what is in a row, nor how a stage's files look.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from fmgauge.load.link import rows_of
from fmgauge.records import StageWriter

_MOST_PENDING_BYTES = 64 * 2**20  # beyond it rows wait in the workers, and nothing is lost
_LOWEST_PRIORITY = 19


class Recorder:
    """Takes the workers' frames at once, and has them written as the processor finds time."""

    def __init__(self, writer: StageWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(1, "fmgauge-recorder", initializer=_give_way)
        self._pending: deque[tuple[Future[None], int]] = deque()  # with the bytes of each
        self._pending_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._collect(most_bytes=0)

    def take(self, frames: Sequence[bytes], *, worker: int, origin_s: float) -> None:
        """Have a worker's rows written. Raises what an earlier writing raised."""
        n_bytes = sum(map(len, frames))
        self._pending.append((self._pool.submit(self._write, frames, worker, origin_s), n_bytes))
        self._pending_bytes += n_bytes
        self._collect(most_bytes=_MOST_PENDING_BYTES)

    def _collect(self, *, most_bytes: int) -> None:
        """Forget what was written; wait until no more than so much is not."""
        while self._pending and (self._pending[0][0].done() or self._pending_bytes > most_bytes):
            written, n_bytes = self._pending.popleft()
            written.result()
            self._pending_bytes -= n_bytes

    def _write(self, frames: Sequence[bytes], worker: int, origin_s: float) -> None:
        for frame in frames:
            self._writer.write(rows_of(frame), worker=worker, origin_s=origin_s)


def _give_way() -> None:
    """Let a worker on the same core go first. Only Linux has priorities of single threads.

    A thread of low priority still ends its slice of some milliseconds when a worker wakes up, and
    an arrival would be stamped that much late; an idle one is interrupted at once.
    """
    if sys.platform != "linux":
        return
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # some sandboxes know priorities only
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)

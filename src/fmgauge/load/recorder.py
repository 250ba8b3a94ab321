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

_MOST_PENDING = 2000  # batches; beyond it the workers' sockets fill, and nothing is lost
_LOWEST_PRIORITY = 19


class Recorder:
    """Takes the workers' frames at once, and has them written as the processor finds time."""

    def __init__(self, writer: StageWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(1, "fmgauge-recorder", initializer=_give_way)
        self._pending: deque[Future[None]] = deque()

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
            self._collect(len(self._pending))

    def take(self, frames: Sequence[bytes], *, worker: int, origin_s: float) -> None:
        """Have a worker's rows written. Raises what an earlier writing raised."""
        self._pending.append(self._pool.submit(self._write, frames, worker, origin_s))
        self._collect(len(self._pending) - _MOST_PENDING)

    def _collect(self, n_waited_for: int) -> None:
        """Forget what was written; wait for at least so many."""
        while self._pending and (self._pending[0].done() or n_waited_for > 0):
            self._pending.popleft().result()
            n_waited_for -= 1

    def _write(self, frames: Sequence[bytes], worker: int, origin_s: float) -> None:
        for frame in frames:
            self._writer.write(rows_of(frame), worker=worker, origin_s=origin_s)


def _give_way() -> None:
    """Let a worker on the same core go first. Only Linux has priorities of single threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)

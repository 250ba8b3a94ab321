"""The timing model in real time: its tokens are delivered as their instants come.

Knows the event loop's timers and the clock that it is given; not what a token's bytes are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fmgauge.emulator.batching import Batching, Job, Token
from fmgauge.transport import Clock

# Loop timers tick in milliseconds, and may fire early: the last stretch is waited out by turns of
# the loop, in which connections go on being read.
_TIMER_TICK_S = 0.001


class InRealTime:
    """Drives `batching` by `clock`, and calls `deliver` with each token when its instant has come.

    A wake-up that comes late delivers all that is due, in order; nothing is skipped. The model's
    own instants do not move with it.
    """

    def __init__(
        self, batching: Batching, clock: Clock, deliver: Callable[[Token], object]
    ) -> None:
        self._batching = batching
        self._now_s = clock.now_s
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._waiting = False

    def fits(self, job: Job) -> bool:
        """Whether the server could ever hold this job."""
        return self._batching.fits(job)

    def submit(self, job: Job) -> bool:
        """Take in a job that is there now; False where the queue is full."""
        taken = self._batching.submit(job, self._now_s())
        self._wait()
        return taken

    def cancel(self, name: str) -> None:
        """Forget a job; nothing happens where it has ended."""
        self._batching.cancel(name, self._now_s())

    def _wake(self) -> None:
        self._waiting = False
        due_s, now_s = self._batching.next_step_ends_s, self._now_s()
        if due_s is not None and due_s <= now_s:
            for token in self._batching.advance(now_s):
                self._deliver(token)
        self._wait()

    def _wait(self) -> None:
        """Have this woken at the end of the step in progress, if there is one."""
        due_s = self._batching.next_step_ends_s
        if due_s is None or self._waiting:
            return
        self._waiting = True
        left_s = due_s - self._now_s()
        if left_s > 2 * _TIMER_TICK_S:
            self._loop.call_later(left_s - _TIMER_TICK_S, self._wake)
        else:
            self._loop.call_soon(self._wake)

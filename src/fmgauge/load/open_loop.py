"""Open loop: requests at instants settled beforehand, however slow the answers are.

Knows when each is due; not how the instants were drawn, nor what an answer looks like.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from fmgauge.config.model import OpenLoop
from fmgauge.load.arrivals import Instants, stage_seed, warmup_arrivals, window_arrivals
from fmgauge.load.link import Link, Shard, StageTask, Status
from fmgauge.load.sending import Sending
from fmgauge.load.shard import StageShard
from fmgauge.records import Phase
from fmgauge.transport import Clock

_OPENED_AHEAD_S = 1.0  # connections for the requests of so much time are opened ahead
_MOST_OPENED_AHEAD = 256
_SENT_AT_ONCE = 32  # before answers that have arrived are read
_SENT_LATE_S = 0.01  # at the window's end: what has been due for longer will not be sent


class _Waiting(NamedTuple):
    """An arrival that waits for a free place: its prompt and instant, and since when it does."""

    phase: Phase
    number: int
    due_s: float
    since_s: float


class OpenLoopShard(StageShard):
    """One worker's part of an open loop: every `count`-th arrival of the stage's schedules.

    A request is sent at its instant, or as soon after it as the loop comes to it, never before; an
    answer that is slow holds nothing back, except at `max_in_flight`, where what is due waits in
    turn for a free place. A client that cannot send as fast as the schedule asks ends the window in
    time: what it has not come to by then is counted, and never sent.
    """

    def __init__(self, task: StageTask, shard: Shard, link: Link, clock: Clock) -> None:
        super().__init__(task, shard, link, clock)
        assert isinstance(task.asked.load, OpenLoop)
        assert task.asked.request_rate is not None
        self._load: OpenLoop = task.asked.load
        self._request_rate = task.asked.request_rate
        seed = stage_seed(task.seed, task.key, task.replication)
        cap = self._load.max_in_flight
        self._most_in_flight = math.inf if cap is None else shard.share(cap)
        self._most_measured = self._load.requests or math.inf
        self._waiting: deque[_Waiting] = deque()
        self._ended_s = array("d")  # how long each took that has ended in the warm-up
        self._n_due = 0
        self._timer: asyncio.Handle | None = None
        self._is_warm = False
        self._count_end_s = self._last_counted_s(seed)
        warmup = warmup_arrivals(self._load, self._request_rate, seed=seed)
        window = window_arrivals(self._load, self._request_rate, seed=seed)
        self._arrivals = self._own(warmup)  # of this part: number in the schedule, instant in it
        self._of_window = self._own(window)
        self._next, self._first = next(self._arrivals), next(self._of_window)  # both drawn by now

    @property
    def _connections(self) -> int:
        ahead = math.ceil(self._request_rate * _OPENED_AHEAD_S / self._shard.count)
        return int(min(ahead, _MOST_OPENED_AHEAD, self._most_in_flight))

    def _own(self, schedule: Iterator[Instants]) -> Iterator[tuple[int, float]]:
        """This part's arrivals: their numbers in the whole schedule, and their instants."""
        n, index, count = 0, self._shard.index, self._shard.count
        for chunk in schedule:
            first = (index - n) % count
            yield from zip(
                range(n + first, n + chunk.size, count), chunk[first::count].tolist(), strict=True
            )
            n += chunk.size

    def _last_counted_s(self, seed: int) -> float:
        """When the last of `requests` is due, from the window's start on; inf without a count."""
        n, wanted = 0, self._load.requests
        if wanted is not None:
            for chunk in window_arrivals(self._load, self._request_rate, seed=seed):
                if wanted <= n + chunk.size:
                    return float(chunk[wanted - n - 1])
                n += chunk.size
        return math.inf

    def _start(self) -> None:
        self._wait()

    def _begin_window(self) -> None:
        self._wait()  # the next arrival may be one of the window

    def _end_of_window(self) -> float:
        counted_s = self._warmup_end_s + self._count_end_s
        self._window_end_s = min(self._window_end_s, counted_s)
        return super()._end_of_window()

    # --- what is due ------------------------------------------------------------------------------

    @property
    def _due_s(self) -> float:
        """When the next arrival is due, by the clock."""
        return (self._warmup_end_s if self._is_warm else self._origin_s) + self._next[1]

    @property
    def _phase(self) -> Phase:
        """The phase of the next arrival."""
        if not self._is_warm:
            return "warmup"
        due_s, told_s = self._due_s, self._origin_s + self._link.window_ends_s
        return "measured" if due_s < told_s and self._next[0] < self._most_measured else "drain"

    def _look_for_window(self, now_s: float) -> None:
        """Go on with the window's schedule once nothing of the warm-up's is to be sent any more."""
        start_s = self._warmup_end_s
        if not self._is_warm and (self._due_s >= start_s or now_s - start_s > _SENT_LATE_S):
            self._is_warm, self._arrivals, self._next = True, self._of_window, self._first

    def _wait(self) -> None:
        """Have what is due next sent at its instant, or in the loop's next turn."""
        if self._timer is not None:
            self._timer.cancel()
        now_s = self._clock.now_s()
        self._look_for_window(now_s)
        left_s = self._due_s - now_s
        if left_s <= 0:
            self._timer = self._loop.call_soon(self._send_due)
        else:
            self._timer = self._loop.call_later(left_s, self._send_due)

    def _send_due(self) -> None:
        """Send what is due by now, some of it at a time; nothing where a timer fired early."""
        if self._stopping:
            return
        now_s = self._clock.now_s()
        for _ in range(_SENT_AT_ONCE):
            self._look_for_window(now_s)
            if self._due_s > now_s:
                break
            self._arrived()
        self._wait()

    def _arrived(self) -> None:
        """Send the next arrival, or have it wait for a place."""
        phase, due_s, number = self._phase, self._due_s, self._next[0]
        self._next = next(self._arrivals)
        self._n_due += phase == "measured"
        if self.in_flight < self._most_in_flight:
            self._send(phase, number, due_s)
        else:
            self.held_back += phase == "measured"
            self._waiting.append(_Waiting(phase, number, due_s, self._clock.now_s()))

    def _complete_window(self) -> None:
        """Send what came due just now; count the rest, and leave out what is overdue after it."""
        now_s = self._clock.now_s()
        self._look_for_window(now_s)
        while self._phase == "measured":
            if now_s - self._due_s <= _SENT_LATE_S:
                self._arrived()
            else:
                self.n_unsent += 1
                self._next = next(self._arrivals)
        while self._due_s < now_s:
            self._next = next(self._arrivals)
        self._wait()

    # --- what becomes of it -----------------------------------------------------------------------

    def _counted_done(self, at_s: float) -> bool:
        none_waits = not self._waiting or self._waiting[0].phase == "drain"
        return none_waits and self._phase == "drain" and super()._counted_done(self._clock.now_s())

    def _unsent(self) -> Iterator[Sending]:
        for waiting in self._waiting:
            if waiting.phase != "drain":
                yield self._made(*waiting)

    def _place_free(self, sending: Sending) -> None:
        if self._warmup_end_s == math.inf:
            self._ended_s.append(sending.finished_at_s - sending.intended_at_s)
        if self._waiting and self.in_flight < self._most_in_flight:
            self._send(*self._waiting.popleft())

    def _status(self) -> Status:
        now_s = self._clock.now_s()
        ended_s, going_on_s = b"", b""
        if self._warmup_end_s == math.inf:
            sent_s = (one.intended_at_s for one in self._client.in_flight if type(one) is Sending)
            waiting_s = (one.due_s for one in self._waiting)
            going_on_s = array("d", [now_s - due_s for due_s in chain(sent_s, waiting_s)]).tobytes()
            ended_s, self._ended_s = self._ended_s.tobytes(), array("d")
        outstanding = self.in_flight + len(self._waiting)
        return Status(
            self._phase_at(now_s),
            self.in_flight,
            outstanding,
            self._n_due,
            ended_s=ended_s,
            going_on_s=going_on_s,
        )

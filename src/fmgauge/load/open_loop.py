"""Open loop: requests at instants settled beforehand, however slow the answers are.

Knows when each is due; not how the instants were drawn, nor what an answer looks like.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from fmgauge.config.model import OpenLoop
from fmgauge.load.arrivals import arrivals_s, later_arrivals_s, shard, stage_seed
from fmgauge.load.link import Link, Shard, StageTask
from fmgauge.load.sending import Sending
from fmgauge.load.shard import StageShard
from fmgauge.records import Phase
from fmgauge.transport import Clock

_OPENED_AHEAD_S = 1.0  # connections for the requests of so much time are opened ahead
_MOST_OPENED_AHEAD = 256
_AT_ONCE = 4096  # instants


class _Waiting(NamedTuple):
    """An arrival that waits for a free place: its number and instant, and since when it does."""

    number: int
    due_s: float
    since_s: float


class OpenLoopShard(StageShard):
    """One worker's part of an open loop: every `count`-th arrival of the stage's one schedule.

    A request is sent at its instant, or as soon after it as the loop comes to it, never before; an
    answer that is slow holds nothing back, except at `max_in_flight`, where what is due waits in
    turn for a free place.
    """

    def __init__(self, task: StageTask, shard: Shard, link: Link, clock: Clock) -> None:
        super().__init__(task, shard, link, clock)
        assert isinstance(task.planned.load, OpenLoop)
        assert task.planned.request_rate is not None
        self._load: OpenLoop = task.planned.load
        self._request_rate = task.planned.request_rate
        self._seed = stage_seed(task.seed, task.planned.key, task.replication)
        cap = self._load.max_in_flight
        self._most_in_flight = math.inf if cap is None else shard.share(cap)
        self._waiting: deque[_Waiting] = deque()
        self._next_number = shard.index
        self._schedule = arrivals_s(self._load, self._request_rate, seed=self._seed)
        self._n_warmup = int((self._schedule < self._load.warmup_s).sum())
        self._n_counted = self._schedule.size
        self._later = later_arrivals_s(self._load, self._request_rate, seed=self._seed, after_s=0.0)

    @property
    def _connections(self) -> int:
        ahead = math.ceil(self._request_rate * _OPENED_AHEAD_S / self._shard.count)
        return int(min(ahead, _MOST_OPENED_AHEAD, self._most_in_flight))

    def _start(self) -> None:
        if self._load.requests == self._n_counted - self._n_warmup:
            self._window_end_s = self._origin_s + float(self._schedule[-1])
        self._arrivals = self._instants()
        self._next_s = next(self._arrivals)
        self._send_due()

    def _instants(self) -> Iterator[float]:
        """This shard's instants on the clock, without end: of warm-up and window, then the rest.

        Numbers are made of some at a time: a list of all would be as many objects, and take long.
        """
        index, count = self._shard.index, self._shard.count
        own = shard(self._schedule, index, count)
        for begun in range(0, own.size, _AT_ONCE):
            yield from (own[begun : begun + _AT_ONCE] + self._origin_s).tolist()
        n = self._n_counted
        for chunk in self._later:
            first = (index - n) % count
            yield from (chunk[first::count] + self._origin_s).tolist()
            n += chunk.size

    def _send_due(self) -> None:
        """Send all that is due by now, and wait for the next instant."""
        if not self._stopping:
            self._send_until(self._clock.now_s())
            self._at(self._next_s, self._send_due)

    def _send_until(self, now_s: float) -> None:
        while self._next_s <= now_s:
            number, due_s = self._next_number, self._next_s
            self._next_number += self._shard.count
            self._next_s = next(self._arrivals)
            self._arrived(number, due_s)

    def _counted_done(self, at_s: float) -> bool:
        none_waits = not self._waiting or self._waiting[0].number >= self._n_counted
        all_came = self._next_number >= self._n_counted
        return none_waits and all_came and super()._counted_done(self._clock.now_s())

    def _complete_window(self) -> None:
        self._send_until(self._window_end_s)

    def _unsent(self) -> Iterator[Sending]:
        for number, due_s, since_s in self._waiting:
            if number < self._n_counted:
                yield self._made(*self._place_of(number), due_s, since_s)

    def _arrived(self, number: int, due_s: float) -> None:
        if self.in_flight < self._most_in_flight:
            self._send_numbered(number, due_s)
        else:
            self.held_back += self._n_warmup <= number < self._n_counted
            self._waiting.append(_Waiting(number, due_s, self._clock.now_s()))

    def _send_numbered(self, number: int, due_s: float, since_s: float | None = None) -> None:
        """Send arrival `number` of the stage, which has waited for a free place since then."""
        self._send(*self._place_of(number), due_s, since_s)

    def _place_of(self, number: int) -> tuple[Phase, int]:
        """The phase of arrival `number` of the stage, and its number within that."""
        if number < self._n_warmup:
            return "warmup", number
        if number < self._n_counted:
            return "measured", number - self._n_warmup
        return "drain", number - self._n_counted

    def _place_free(self, sending: Sending) -> None:
        if self._waiting and self.in_flight < self._most_in_flight:
            self._send_numbered(*self._waiting.popleft())

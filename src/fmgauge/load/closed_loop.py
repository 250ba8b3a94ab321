"""Closed loop: exactly `concurrency` requests in flight, each end sending the next one at once.

Knows when a place becomes free; not what an answer looks like, nor what its latency is.
"""

from __future__ import annotations

from heapq import heappop, heappush

from fmgauge.config.model import ClosedLoop
from fmgauge.load.link import Link, Shard, StageTask
from fmgauge.load.sending import Sending
from fmgauge.load.shard import PAUSE_AFTER_REFUSAL_S, StageShard
from fmgauge.transport import Clock

_LONGEST_RAMP_UP_S = 5.0
UNSERVED = (429, 503)


class ClosedLoopShard(StageShard):
    """One worker's places of a closed loop.

    There are no waves: the end of any request sends the next one of its place, within the same
    turn of the loop, or after `think_time_s`. A request that could not be sent at all (nobody
    listens), or was refused for want of capacity, frees its place only after a pause of
    `PAUSE_AFTER_REFUSAL_S`, so that a server is not asked thousands of times a second for nothing.
    """

    def __init__(self, task: StageTask, shard: Shard, link: Link, clock: Clock) -> None:
        super().__init__(task, shard, link, clock)
        assert isinstance(task.planned.load, ClosedLoop)
        assert task.planned.concurrency is not None
        self._load: ClosedLoop = task.planned.load
        self._concurrency = task.planned.concurrency
        self._numbers = dict.fromkeys(("warmup", "measured", "drain"), shard.index)
        requests = self._load.requests
        self._measured_left = None if requests is None else shard.share(requests)
        self._due_s: list[float] = []  # a heap: when the places that pause are to ask again

    @property
    def _connections(self) -> int:
        return self._shard.share(self._concurrency)

    def _start(self) -> None:
        """Send each place's first request, spread evenly over the ramp-up."""
        if self._measured_left == 0:
            self._window_end_s = self._warmup_end_s
        gap_s = ramp_up_s(self._load) / self._concurrency
        for place in range(self._shard.index, self._concurrency, self._shard.count):
            self._ask_at(self._origin_s + gap_s * place)

    def _ask_at(self, due_s: float) -> None:
        """Have a place ask at an instant of the clock."""
        heappush(self._due_s, due_s)
        self._at(due_s, lambda: self._ask_due(self._clock.now_s()))

    def _ask_due(self, now_s: float) -> None:
        while self._due_s and self._due_s[0] <= now_s:
            self._ask(heappop(self._due_s))

    def _counted_done(self, at_s: float) -> bool:
        none_is_due = not self._due_s or self._due_s[0] >= self._window_end_s
        return none_is_due and super()._counted_done(at_s)

    def _complete_window(self) -> None:
        while self._due_s and self._due_s[0] < self._window_end_s:
            self._ask(heappop(self._due_s))

    def _ask(self, due_s: float) -> None:
        """Send a place's next request, unless the stage is over."""
        if self._stopping:
            return
        phase = self._phase_at(due_s)
        if phase == "measured" and self._measured_left == 0:
            phase = "drain"  # due before the last of the count, but come to after it
        number = self._numbers[phase]
        self._numbers[phase] = number + self._shard.count
        if phase == "measured" and self._measured_left is not None:
            self._count_measured(due_s)
        self._send(phase, number, due_s)

    def _count_measured(self, due_s: float) -> None:
        assert self._measured_left is not None
        self._measured_left -= 1
        if self._measured_left == 0:
            self._window_end_s = due_s

    def _place_free(self, sending: Sending) -> None:
        pause_s = self._pause_s(sending)
        if pause_s == 0:
            self._ask(sending.finished_at_s)
        else:
            self._ask_at(sending.finished_at_s + pause_s)

    def _pause_s(self, sending: Sending) -> float:
        refused = sending.sent_at_s is None or sending.http_status in UNSERVED
        think_time_s = self._load.think_time_s
        return max(think_time_s, PAUSE_AFTER_REFUSAL_S) if refused else think_time_s


def ramp_up_s(load: ClosedLoop) -> float:
    """Over how long the first requests are spread: as the config says, else half of the warm-up."""
    if load.ramp_up_s is not None:
        return load.ramp_up_s
    return min(load.warmup_s / 2, _LONGEST_RAMP_UP_S)

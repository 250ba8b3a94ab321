"""Closed loop: exactly `concurrency` requests in flight, each end sending the next one at once.

Knows when a place becomes free; not what an answer looks like, nor what its latency is.
"""

from __future__ import annotations

from heapq import heappop, heappush

from fmgauge.config.model import ClosedLoop
from fmgauge.load.link import Link, Shard, StageTask, Status
from fmgauge.load.sending import Sending
from fmgauge.load.shard import StageShard
from fmgauge.records import PAUSE_AFTER_REFUSAL_S, REFUSALS
from fmgauge.transport import Clock

_LONGEST_RAMP_UP_S = 5.0


class ClosedLoopShard(StageShard):
    """One worker's places of a closed loop.

    There are no waves: the end of any request sends the next one of its place, within the same
    turn of the loop, or after `think_time_s`. A request that could not be sent at all (nobody
    listens), was refused because the server is full, or met a server's error frees its place only
    after a pause of `PAUSE_AFTER_REFUSAL_S`, so that a server is not asked thousands of times a
    second for nothing.
    """

    def __init__(self, task: StageTask, shard: Shard, link: Link, clock: Clock) -> None:
        super().__init__(task, shard, link, clock)
        assert isinstance(task.asked.load, ClosedLoop)
        assert task.asked.concurrency is not None
        self._load: ClosedLoop = task.asked.load
        self._concurrency = task.asked.concurrency
        self._numbers = dict.fromkeys(("warmup", "measured", "drain"), shard.index)
        requests = self._load.requests
        self._measured_left = None if requests is None else shard.share(requests)
        self._due: list[
            tuple[float, bool]
        ] = []  # a heap: when places ask, whether for the first time
        self._n_cold = shard.share(self._concurrency)  # places that have not ended an answer yet
        self._first = set[str]()  # ids of the first requests of places, until they end

    @property
    def _connections(self) -> int:
        return self._shard.share(self._concurrency)

    def _start(self) -> None:
        """Send each place's first request, spread evenly over the ramp-up."""
        gap_s = ramp_up_s(self._load) / self._concurrency
        for place in range(self._shard.index, self._concurrency, self._shard.count):
            self._ask_at(self._origin_s + gap_s * place, is_first=True)

    def _begin_window(self) -> None:
        if self._measured_left == 0:
            self._window_end_s = self._warmup_end_s

    def _status(self) -> Status:
        n_due = self._numbers["measured"] // self._shard.count
        phase = self._phase_at(self._clock.now_s())
        return Status(phase, self.in_flight, self.in_flight, n_due, self._n_cold)

    def _ask_at(self, due_s: float, *, is_first: bool = False) -> None:
        """Have a place ask at an instant of the clock."""
        heappush(self._due, (due_s, is_first))
        self._at(due_s, self._ask_due)

    def _ask_due(self) -> None:
        now_s = self._clock.now_s()
        while self._due and self._due[0][0] <= now_s:
            self._ask(*heappop(self._due))

    def _counted_done(self, at_s: float) -> bool:
        none_is_due = not self._due or self._due[0][0] >= self._window_end_s
        return none_is_due and super()._counted_done(at_s)

    def _complete_window(self) -> None:
        while self._due and self._due[0][0] < self._window_end_s:
            self._ask(*heappop(self._due))

    def _ask(self, due_s: float, is_first: bool = False) -> None:
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
        sent = self._send(phase, number, due_s)
        if is_first:
            self._first.add(sent.request_id)

    def _count_measured(self, due_s: float) -> None:
        assert self._measured_left is not None
        self._measured_left -= 1
        if self._measured_left == 0:
            self._window_end_s = due_s

    def _place_free(self, sending: Sending) -> None:
        if sending.request_id in self._first:
            self._first.remove(sending.request_id)
            self._n_cold -= 1
        pause_s = self._pause_s(sending)
        if pause_s == 0:
            self._ask(sending.finished_at_s)
        else:
            self._ask_at(sending.finished_at_s + pause_s)

    def _pause_s(self, sending: Sending) -> float:
        refused = sending.sent_at_s is None or sending.http_status in REFUSALS
        think_time_s = self._load.think_time_s
        return max(think_time_s, PAUSE_AFTER_REFUSAL_S) if refused else think_time_s


def ramp_up_s(load: ClosedLoop) -> float:
    """Over how long the first requests are spread: as the config says, else half of the warm-up."""
    if load.ramp_up_s is not None:
        return load.ramp_up_s
    return min(load.warmup_s / 2, _LONGEST_RAMP_UP_S)

"""How long an event loop's turns are in which answers arrive, and how late that makes stamps.

Knows reads and their stamps; not what was read. A connection adds each read's stamp, no more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

_SHORT_S = 0.001  # what stamps are late by within less does not matter
_PAUSE_S = 0.0002  # a loop that has not read for so long has waited for something to read
_SLOT_S = 0.0001  # how finely lags are told apart
_MOST_SAMPLES = 8  # of a turn's stamps


class Lag(NamedTuple):
    """How late something was, in seconds: 99 % of it at most so much, all of it at most so much."""

    p99_s: float
    max_s: float


class Turns:
    """The turns of a loop in which there was something to read, and how late the stamps were.

    What is read in a turn has come since the turn before began to read, first come, first read;
    where the loop has waited in between, it has come just now. So each stamp is late by what was
    left of the turn before when its bytes came, and by what is over of its own turn. Where many
    answers come at one instant, as a batching server's do, no share of the time could tell that.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, now_s: Callable[[], float]) -> None:
        self.stamps: list[float] = []  # of the reads of this turn so far
        self._loop, self._now_s = loop, now_s
        self._began_s = self._ended_s = float("-inf")  # the turn before
        self.restart()

    def restart(self) -> None:
        """Forget what was measured, and begin anew."""
        self._n_in_time = 0
        self._n_late: Counter[int] = Counter()  # stamps by their lag, in slots
        self._most_s = 0.0

    def begin(self) -> None:
        """Learn of a turn's first read: the turn is over when the loop comes to what is soon."""
        self._loop.call_soon(self._end)

    def lag(self) -> Lag:
        """How late the stamps were; 0 where no turn was of a length that matters."""
        beyond = (self._n_in_time + self._n_late.total()) / 100
        for slot in sorted(self._n_late, reverse=True):
            beyond -= self._n_late[slot]
            if beyond < 0:
                return Lag(min((slot + 1) * _SLOT_S, self._most_s), self._most_s)
        return Lag(0.0, self._most_s)

    def _end(self) -> None:
        now_s, stamps = self._now_s(), self.stamps
        began_s = stamps[0]
        since_s = self._began_s if began_s - self._ended_s < _PAUSE_S else began_s
        self._began_s, self._ended_s = began_s, now_s
        if now_s - since_s < _SHORT_S:
            self._n_in_time += len(stamps)
        else:
            self._note(since_s, stamps)
        stamps.clear()

    def _note(self, since_s: float, stamps: list[float]) -> None:
        """Take in a turn whose bytes have come one after the other between `since_s` and now.

        Some stamps stand for all, so that a turn costs next to nothing; each stands for as many as
        its place says, and the counts add up to the turn's.
        """
        n, came_in_s = len(stamps), stamps[0] - since_s
        step = -(-n // _MOST_SAMPLES)
        for first in range(0, n, step):
            weight = min(step, n - first)
            place = first + weight // 2
            lag_s = stamps[place] - since_s - came_in_s * (place + 0.5) / n
            self._n_late[int(lag_s / _SLOT_S)] += weight
            self._most_s = max(self._most_s, lag_s)

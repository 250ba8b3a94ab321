"""When a stage's window begins and ends: rules on what workers report, for all of them at once.

Pure: knows reports and instants, which are seconds since the stage began; no clocks, no sockets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fmgauge.config import LoadLevel
from fmgauge.config.model import Budgets
from fmgauge.load.link import Status, WindowBegins, WindowEnds
from fmgauge.records import WarmupEnd, WindowEnd
from fmgauge.statistics import (
    GROWTH_BATCHES,
    Growth,
    censored_quantile,
    growth,
    samples_needed,
)

AHEAD_S = 0.25  # from a decision to the instant it is about: every worker hears of it by then
WARM_SHARE = 0.95  # of the places that have ended an answer; of the latencies that have had time
FOR_A_MEAN = 30  # requests
_DECIDES_S = 0.5  # before the window would end
_LOOKS_AGAIN = 1.03  # times the warm-up so far, until its latencies are looked at once more
_OUTLASTS = 1.5  # times the 95th percentile of latency: the first estimates of it are low
_NO_START_UP = 2.0  # times it, after which growth is that of a backlog
_STEP_S = 0.5  # the least by which a window is extended
_MARGIN = 1.1  # of the time by which a window is extended, since arrivals scatter

Instants = NDArray[np.float64]


def requests_needed(budgets: Budgets) -> int:
    """How many measured requests the statistics need that budgets on latencies bind."""
    limits = (budgets.latency_s, budgets.ttft_s, budgets.tpot_s)
    names = {
        name
        for family in limits
        if family is not None
        for name, limit in family.model_dump().items()
        if limit is not None
    }
    needed = [
        FOR_A_MEAN if name == "mean" else samples_needed(int(name[1:]) / 100) for name in names
    ]
    return max(needed, default=0)


@dataclass
class Steering:
    """A stage's two decisions, taken for all of its workers: when to measure, and until when.

    A closed loop is warm when 95 % of its places have ended an answer. An open loop is warm when it
    has lasted for half as long again as the 95th percentile of its latency, and what is due and has
    not ended neither grows nor shrinks any more. The window ends as asked, or later with the
    requests that the budgets need; a backlog that clearly grows ends warm-up and window early.
    """

    asked: LoadLevel
    needed: int
    window_start_s: float | None = None
    window_end_s: float | None = None  # None as long as only a count may end the window
    warmup_end: WarmupEnd = "steady"
    window_end: WindowEnd = "asked"
    _ended_s: list[Instants] = field(default_factory=list)  # how long each request took
    _seen: list[tuple[float, int]] = field(default_factory=list)  # instant, outstanding
    _look_s: float = 0.0
    _candidate_s: float = math.inf
    _is_settled: bool = False
    _is_half_seen: bool = False

    def __post_init__(self) -> None:
        load = self.asked.load
        if load.requests is not None:  # never more; and just so many, where only they end it
            self.needed = min(self.needed, load.requests) if load.duration_s else load.requests
        if self.asked.is_ramp:
            self.needed = 0
        growth(range(GROWTH_BATCHES))  # scipy is imported now, and not while the load runs

    def look(
        self, now_s: float, reports: Sequence[Status], ended_s: bytes = b""
    ) -> WindowBegins | WindowEnds | None:
        """What to tell every worker, after each one's latest report.

        `ended_s` holds those of all reports since the last look, packed as reports have them.
        """
        if ended_s:
            self._ended_s.append(np.frombuffer(ended_s))
        self._seen.append((now_s, sum(report.outstanding for report in reports)))
        if self.window_start_s is None:
            return self._looked_at_warmup(now_s, reports)
        return None if self._is_settled else self._looked_at_window(now_s, reports)

    # --- warm-up ----------------------------------------------------------------------------------

    def _looked_at_warmup(self, now_s: float, reports: Sequence[Status]) -> WindowBegins | None:
        load, most_s = self.asked.load, self.asked.most_warmup_s
        if now_s + 2 * AHEAD_S < load.warmup_s:
            return None
        how = self._how_warm(now_s, reports)
        if how is None and now_s + AHEAD_S < most_s:
            return None
        self.warmup_end = how or "capped"
        start_s = max(load.warmup_s, now_s + AHEAD_S)
        self.window_start_s = start_s
        self._seen.clear()
        self._ended_s.clear()
        if load.duration_s is not None or load.duration_max_s is not None:
            self._candidate_s = start_s + (load.duration_s or load.duration_max_s or 0.0)
        if load.duration_s is not None and not self.needed:
            self.window_end_s = self._candidate_s
        return WindowBegins(start_s, self.window_end_s)

    def _how_warm(self, now_s: float, reports: Sequence[Status]) -> WarmupEnd | None:
        if self.asked.concurrency is not None:
            n_cold = sum(report.n_cold for report in reports)
            return "steady" if n_cold <= (1 - WARM_SHARE) * self.asked.concurrency else None
        if now_s < self._look_s:
            return None
        self._look_s = _LOOKS_AGAIN * now_s
        self._ended_s = [np.concatenate([np.zeros(0), *self._ended_s])]
        going_on_s = np.concatenate([np.frombuffer(report.going_on_s) for report in reports])
        p95_s = censored_quantile(self._ended_s[0], going_on_s, WARM_SHARE)
        if now_s <= _OUTLASTS * p95_s:
            return None
        if self._grows(now_s / 2, now_s):
            return "overloaded" if now_s > _NO_START_UP * p95_s else None
        line = self._growth(now_s / 2, now_s)
        return None if line is not None and line.falls else "steady"

    # --- window -----------------------------------------------------------------------------------

    def _looked_at_window(self, now_s: float, reports: Sequence[Status]) -> WindowEnds | None:
        start_s = self.window_start_s
        assert start_s is not None
        if not self._is_half_seen and self._is_clearly_behind(now_s, start_s):
            return self._ends("overloaded", now_s + AHEAD_S)
        if self.window_end_s is not None or now_s < max(
            self._candidate_s - _DECIDES_S, start_s + AHEAD_S
        ):
            return None
        n_due = sum(report.n_due for report in reports)
        end_s = max(self._candidate_s, now_s + AHEAD_S)
        last_s = start_s + self.asked.most_window_s(start_s)
        is_last = self._candidate_s >= last_s
        by_then = n_due * (end_s - start_s) / (now_s - start_s) if is_last else n_due
        if by_then >= self.needed:
            is_asked = self._candidate_s <= start_s + (self.asked.load.duration_s or math.inf)
            return self._ends("asked" if is_asked else "extended", end_s)
        if is_last or self._grows(start_s, now_s):
            return self._ends("capped" if is_last else "overloaded", end_s)
        missing_s = (now_s - start_s) * (self.needed - n_due) / max(n_due, 0.5)
        later_s = max(self._candidate_s, now_s + _DECIDES_S + max(_STEP_S, _MARGIN * missing_s))
        self._candidate_s = min(later_s, last_s)
        return None

    def _ends(self, how: WindowEnd, at_s: float) -> WindowEnds:
        self._is_settled = True
        self.window_end, self.window_end_s = how, at_s
        return WindowEnds(at_s)

    def _is_clearly_behind(self, now_s: float, start_s: float) -> bool:
        """Whether a backlog grew, looked at once, halfway through the window asked for.

        By far, unless one had grown in the warm-up already.
        """
        if now_s < (start_s + self._candidate_s) / 2:
            return False
        self._is_half_seen = True
        return self._grows(start_s, now_s, clearly=self.warmup_end != "overloaded")

    def _grows(self, from_s: float, to_s: float, *, clearly: bool = False) -> bool:
        """Whether what is outstanding grew over that time, as no stable load lets it."""
        line = self._growth(from_s, to_s, 0.999 if clearly else 0.99)
        n_arrivals = self.asked.level * (to_s - from_s)
        return line is not None and line.is_backlog(n_arrivals, clearly=clearly)

    def _growth(self, from_s: float, to_s: float, confidence: float = 0.99) -> Growth | None:
        """The growth of what is outstanding; None of closed loops, ramps, and too short a time."""
        if self.asked.request_rate is None or self.asked.is_ramp:
            return None
        seen = np.array([one for one in self._seen if from_s <= one[0] <= to_s])
        if len(seen) < 2 * GROWTH_BATCHES:
            return None
        edges_s = np.linspace(from_s, to_s, GROWTH_BATCHES + 1)[1:-1]
        batches = np.split(seen[:, 1], np.searchsorted(seen[:, 0], edges_s))
        if not all(batch.size for batch in batches):
            return None
        return growth([float(batch.mean()) for batch in batches], confidence)

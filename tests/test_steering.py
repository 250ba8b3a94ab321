"""When a window begins and ends, on simulated series of which the truth is known; no clocks."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fmgauge.config import PlannedStage
from fmgauge.config.model import Budgets, Limits, OpenLoop
from fmgauge.load.arrivals import warmup_arrivals, window_arrivals
from fmgauge.load.link import Status, WindowBegins
from fmgauge.load.steering import Steering, requests_needed
from fmgauge.metrics.rates import outstanding, window_share
from fmgauge.statistics import Growth, growth
from simulated_runs import closed_loop, open_loop

EVERY_S = 0.1
Answers = Callable[[np.ndarray], np.ndarray]
"""Instants at which requests are due to those at which they have ended."""


def opened(rate: float, **changes: Any) -> PlannedStage:
    """An open loop with the warm-up of 5 s that is the default, and a window of 30 s."""
    return open_loop(rate, **{"warmup_s": 5.0, "duration_s": 30.0, **changes})


def closed(concurrency: int, **changes: Any) -> PlannedStage:
    """A closed loop with a warm-up of 5 s and a window of 30 s."""
    return closed_loop(concurrency, **{"warmup_s": 5.0, "duration_s": 30.0, **changes})


@dataclass(frozen=True)
class Played:
    """A stage that was played through: its decisions, and all requests."""

    steering: Steering
    due_s: np.ndarray
    ended_s: np.ndarray

    @property
    def window_s(self) -> tuple[float, float]:
        """The window that was decided."""
        assert self.steering.window_start_s is not None
        assert self.steering.window_end_s is not None
        return self.steering.window_start_s, self.steering.window_end_s

    @property
    def n_measured(self) -> int:
        """Requests that were due in the window."""
        begin_s, end_s = self.window_s
        return int(((self.due_s >= begin_s) & (self.due_s < end_s)).sum())

    @property
    def served_rate(self) -> float:
        """Requests per second by the shares of them that lie in the window, as metrics count."""
        begin_s, end_s = self.window_s
        shares = window_share(self.due_s, self.ended_s, self.window_s)
        return float(shares.sum()) / (end_s - begin_s)

    @property
    def fell_behind(self) -> bool:
        """Whether what was outstanding grew over the window."""
        return self.line.is_backlog(self.n_measured)

    @property
    def line(self) -> Growth:
        """How what was outstanding went over the window, by the figures of the metrics."""
        requests: Any = SimpleNamespace(intended_s=self.due_s, finished_s=self.ended_s)
        found = outstanding(requests, self.window_s, is_steady_load=True)
        return Growth(
            found["outstanding_growth"],
            found["outstanding_growth_ci_low"],
            found["outstanding_mean"],
        )


def play(stage: PlannedStage, answers: Answers, *, seed: int = 1, needed: int = 0) -> Played:
    """Play an open-loop stage: its own schedules, ended as `answers` says, reported to it."""
    steering = Steering(stage, needed)
    load, rate = stage.load, stage.level
    assert isinstance(load, OpenLoop)
    longest_s = 4 * (load.warmup_s + (load.duration_s or 60.0)) + 130.0
    warmup = _until(longest_s, warmup_arrivals(load, rate, seed=seed))
    _decide(steering, warmup, answers(warmup), 0.0, lambda: steering.window_start_s is not None)
    start_s = steering.window_start_s
    assert start_s is not None
    window = start_s + _until(longest_s, window_arrivals(load, rate, seed=seed))
    due_s = np.concatenate([warmup[warmup < start_s], window])
    ended_s = answers(due_s)
    settled_at_s = longest_s + start_s
    _decide(steering, due_s, ended_s, start_s, lambda: _is_over(steering), settled_at_s)
    return Played(steering, due_s, ended_s)


def _is_over(steering: Steering) -> bool:
    return steering.window_end_s is not None and steering.window_end != "asked"


def _decide(
    steering: Steering,
    due_s: np.ndarray,
    ended_s: np.ndarray,
    from_s: float,
    is_over: Callable[[], bool],
    to_s: float = math.inf,
) -> None:
    """Report every tenth of a second until that is decided, or the window is over."""
    now_s, start_s = from_s, steering.window_start_s
    while not is_over() and now_s < min(to_s, steering.window_end_s or math.inf):
        before_s, now_s = now_s, now_s + EVERY_S
        is_due, going_on = due_s <= now_s, ended_s > now_s
        just = is_due & ~going_on & (ended_s > before_s)
        n_due = 0 if start_s is None else int((is_due & (due_s >= start_s)).sum())
        report = Status(
            "warmup",
            0,
            outstanding=int((is_due & going_on).sum()),
            n_due=n_due,
            going_on_s=array("d", now_s - due_s[is_due & going_on]).tobytes(),
        )
        steering.look(now_s, [report], array("d", (ended_s - due_s)[just]).tobytes())


def _until(end_s: float, chunks: Any) -> np.ndarray:
    taken = [next(chunks)]
    while taken[-1][-1] < end_s:
        taken.append(next(chunks))
    schedule = np.concatenate(taken)
    return schedule[schedule < end_s]


def lasting(latency_s: float) -> Answers:
    """A server of unlimited capacity that takes so long for each answer."""
    return lambda due_s: due_s + latency_s


def scattered(mean_s: float, sigma: float, seed: int) -> Answers:
    """A server of unlimited capacity whose latencies are lognormal."""
    drawn = np.random.default_rng(seed).lognormal(math.log(mean_s) - sigma**2 / 2, sigma, 200_000)
    return lambda due_s: due_s + drawn[: due_s.size]


def queueing(places: int, mean_s: float, seed: int, sigma: float = 0.6) -> Answers:
    """A server of so many places, served in turn, each for a lognormal time."""
    drawn = np.random.default_rng(seed).lognormal(math.log(mean_s) - sigma**2 / 2, sigma, 200_000)

    def answers(due_s: np.ndarray) -> np.ndarray:
        free_s, ended_s = [0.0] * places, np.empty(due_s.size)
        for place, (at_s, service_s) in enumerate(zip(due_s, drawn, strict=False)):
            ended_s[place] = max(at_s, heapq.heappop(free_s)) + service_s
            heapq.heappush(free_s, ended_s[place])
        return ended_s

    return answers


# --- open loop: steady before measured ------------------------------------------------------------


@pytest.mark.parametrize("latency_s", [1.0, 5.0, 15.0, 30.0])
@pytest.mark.parametrize("rate", [2.0, 8.0])
def test_a_server_that_keeps_up_is_measured_at_the_rate_asked(rate: float, latency_s: float):
    """However long an answer takes: within 2 %, and so is the price, which is its inverse."""
    played = play(opened(rate, arrivals="constant"), lasting(latency_s))

    assert played.served_rate == pytest.approx(rate, rel=0.02)
    assert rate / played.served_rate == pytest.approx(1.0, rel=0.02)
    assert (played.steering.warmup_end, played.fell_behind) == ("steady", False)


@pytest.mark.parametrize(
    ("mean_s", "sigma"),
    [
        (1.0, 0.6),
        pytest.param(5.0, 0.6, marks=pytest.mark.whole),
        pytest.param(15.0, 0.3, marks=pytest.mark.whole),
        pytest.param(15.0, 0.6, marks=pytest.mark.whole),
    ],
)
def test_poisson_arrivals_are_served_at_the_rate_at_which_they_came(mean_s: float, sigma: float):
    """Over 60 seeds what was served and what was due in the window are equal within 2 %."""
    runs = [
        play(opened(8.0, arrivals="poisson"), scattered(mean_s, sigma, seed), seed=seed)
        for seed in range(60)
    ]

    served = sum(run.served_rate for run in runs)
    due = sum(run.n_measured / (run.window_s[1] - run.window_s[0]) for run in runs)
    assert served == pytest.approx(due, rel=0.02)
    assert sum(run.fell_behind for run in runs) <= 1


def test_the_window_begins_once_an_answer_has_had_time():
    """With answers of 15 s, after half as long again; soon after that."""
    start_s, _ = play(opened(4.0, arrivals="constant"), lasting(15.0)).window_s

    assert 22.5 < start_s < 26.0


def test_a_quick_server_is_measured_after_the_warm_up_asked_for():
    """Its window begins at warmup_s and ends duration_s later, exactly."""
    assert play(opened(4.0, arrivals="constant"), lasting(0.5)).window_s == (5.0, 35.0)


def test_a_load_that_does_not_become_steady_in_time_says_so():
    """With a cap of 10 s on the warm-up, answers of 15 s are measured all the same."""
    played = play(opened(4.0, arrivals="constant", warmup_max_s=10.0), lasting(15.0))

    assert played.steering.warmup_end == "capped"
    assert played.window_s[0] == pytest.approx(10.0, abs=0.2)


# --- open loop: overload --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_an_overload_of_half_is_always_found(seed: int):
    """32 places that serve 16 requests/s, asked for 24: the backlog grows, and it ends early."""
    stage = opened(24.0, duration_s=60.0)
    played = play(stage, queueing(32, 2.0, seed), seed=seed, needed=5000)

    assert played.fell_behind
    assert played.window_s[1] < 5.0 + 60.0  # not four times as long


@pytest.mark.whole
def test_a_small_overload_is_nearly_always_found():
    """Asked for 1.1 times what it serves, for 2,600 requests: nine of ten seeds."""
    stage = opened(17.6, duration_s=148.0)
    runs = [play(stage, queueing(32, 2.0, seed), seed=seed) for seed in range(10)]

    assert sum(run.fell_behind for run in runs) >= 9


@pytest.mark.whole
def test_a_busy_server_that_keeps_up_is_hardly_ever_accused():
    """At nine tenths of what it serves at most 1 of 40 seeds."""
    stage = opened(14.4, duration_s=60.0)
    runs = [play(stage, queueing(32, 2.0, seed), seed=seed) for seed in range(40)]

    assert sum(run.fell_behind for run in runs) <= 1
    assert sum(run.steering.warmup_end == "overloaded" for run in runs) == 0
    assert sum(run.steering.window_end == "overloaded" for run in runs) == 0


# --- until the budgets' requests are measured -----------------------------------------------------


def test_the_window_goes_on_until_its_budgets_have_their_requests():
    """A p95 needs 72 requests: at 2 a second that takes 36 s instead of 30."""
    played = play(opened(2.0, arrivals="constant"), lasting(0.5), needed=72)

    assert 72 <= played.n_measured <= 76
    assert played.steering.window_end == "extended"


def test_the_window_takes_at_most_four_times_what_was_asked():
    """With 368 requests needed at 1 a second, 5 s of warm-up and 30 s of window end at 140 s."""
    played = play(opened(1.0, arrivals="constant"), lasting(0.5), needed=368)

    assert played.window_s == (5.0, pytest.approx(140.0))
    assert played.steering.window_end == "capped"


def test_the_window_s_own_limit_wins():
    """duration_max_s of 40 ends it there."""
    played = play(opened(1.0, arrivals="constant", duration_max_s=40.0), lasting(0.5), needed=368)

    assert played.window_s == (5.0, pytest.approx(45.0))


def test_a_count_is_a_maximum():
    """With requests: 50 the window need not last for 72, and not for longer than asked for 50."""
    stage = opened(2.0, arrivals="constant", requests=50)
    played = play(stage, lasting(0.5), needed=72)

    assert played.steering.window_end == "asked"


def test_a_ramp_has_the_window_it_asked_for():
    """Its rate is drawn over duration_s, whatever budgets need, and its growth is no backlog."""
    stage = opened(2.0, arrivals="ramp", ramp_to_rate=40.0)
    played = play(stage, lasting(1.0), needed=3000)

    assert played.window_s == (5.0, 35.0)


@pytest.mark.parametrize(
    ("limits", "needed"),
    [
        ({}, 0),
        ({"latency_s": Limits(mean=1)}, 30),
        ({"latency_s": Limits(mean=1), "ttft_s": Limits(p95=1)}, 72),
        ({"tpot_s": Limits(p99=1, p50=1)}, 368),
    ],
)
def test_budgets_need_the_requests_of_their_most_demanding_statistic(limits, needed: int):
    """30 for a mean, 72 for a p95, 368 for a p99, none without a limit on a latency."""
    assert requests_needed(Budgets(**limits)) == needed


# --- closed loop ----------------------------------------------------------------------------------


def looked(stage: PlannedStage, cold: Sequence[int], needed: int = 0) -> Steering:
    """A closed loop that reports these numbers of places without an answer, one a second."""
    steering = Steering(stage, needed)
    for second, n_cold in enumerate(cold):
        told = steering.look(float(second), [Status("warmup", 0, 0, 0, n_cold)])
        if isinstance(told, WindowBegins):
            break
    return steering


def test_a_closed_loop_is_warm_when_nearly_every_place_has_an_answer():
    """19 of 20 is 95 %; before that the window does not begin, although warmup_s has passed."""
    steering = looked(closed(20), [20, 20, 20, 20, 20, 20, 9, 2, 1, 0])

    assert (steering.window_start_s, steering.warmup_end) == (8.25, "steady")


def test_a_closed_loop_of_few_places_waits_for_all_of_them():
    """One of four is more than 5 %."""
    steering = looked(closed(4), [4, 4, 4, 4, 4, 1, 1, 0])

    assert steering.window_start_s == 7.25


def test_a_closed_loop_that_never_answers_is_measured_in_the_end():
    """After four times what was asked less one window, which is 110 s."""
    steering = looked(closed(4), [4] * 200)

    assert (steering.window_start_s, steering.warmup_end) == (110.25, "capped")


def test_all_workers_reports_count():
    """Two workers with one cold place each are not warm where 20 places are asked."""
    steering = Steering(closed(20), 0)
    reports = [Status("warmup", 0, 0, 0, 1), Status("warmup", 0, 0, 0, 1)]

    assert steering.look(6.0, reports) is None
    assert steering.look(7.0, [reports[0], Status("warmup", 0)]) == WindowBegins(7.25, 37.25)


# --- a backlog that goes away ---------------------------------------------------------------------


def draining(stalled_s: float, gap_s: float) -> Answers:
    """A server that serves one request after the other, the first one only after a stall."""

    def answers(due_s: np.ndarray) -> np.ndarray:
        free_s, ended_s = stalled_s, np.empty(due_s.size)
        for place, at_s in enumerate(due_s):
            free_s = ended_s[place] = max(at_s, free_s) + gap_s
        return ended_s

    return answers


def test_an_earlier_backlog_that_goes_away_in_the_window_is_seen():
    """A stall of 6 s is worked off at 12 requests/s while 10 come: 10.9/s are served at first."""
    stage = opened(10.0, arrivals="constant", warmup_s=1.0, duration_s=20.0)
    played = play(stage, draining(6.0, 1 / 12))

    assert played.line.is_draining(played.n_measured)
    assert not played.fell_behind


@pytest.mark.parametrize("mean_s", [1.0, 5.0, pytest.param(15.0, marks=pytest.mark.whole)])
def test_a_load_that_is_steady_hardly_ever_seems_to_drain(mean_s: float):
    """At most 2 of 60 seeds, also in a window of two mean latencies."""
    stage = opened(8.0, arrivals="poisson")
    runs = [play(stage, scattered(mean_s, 0.6, seed), seed=seed) for seed in range(60)]

    assert sum(run.line.is_draining(run.n_measured) for run in runs) <= 2


def test_a_fall_is_a_drain_by_the_limits_of_a_backlog():
    """From 60 to 20 requests it is, from 60 to 58 it is not, and a rise never."""
    fall, slight, rise = (growth(np.linspace(60, to, 10)) for to in (20.0, 58.0, 100.0))

    assert [line.is_draining(70) for line in (fall, slight, rise)] == [True, False, False]

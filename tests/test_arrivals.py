"""Arrival schedules against the distributions asked for, bounds, seeds and shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fmgauge.config.model import OpenLoop
from fmgauge.load.arrivals import stage_seed, warmup_arrivals, window_arrivals
from fmgauge.records import StageKey

KINDS: dict[str, dict[str, Any]] = {
    "constant": {},
    "poisson": {},
    "gamma": {"burstiness": 0.3},
    "ramp": {"ramp_to_rate": 60.0},
}


def load_of(arrivals: str = "poisson", **changes: Any) -> OpenLoop:
    """An open loop with a window of 100 s, with changes."""
    asked = {"duration_s": 100.0, **KINDS[arrivals], **changes}
    return OpenLoop(kind="open_loop", request_rate=(20.0,), arrivals=arrivals, **asked)


def before(end_s: float, chunks: Iterator[np.ndarray]) -> np.ndarray:
    """The part of a schedule that lies before an instant."""
    taken = [next(chunks)]
    while taken[-1][-1] < end_s:
        taken.append(next(chunks))
    schedule = np.concatenate(taken)
    return schedule[schedule < end_s]


def window(load: OpenLoop, request_rate: float, seed: int, end_s: float = 100.0) -> np.ndarray:
    """The arrivals of the window."""
    return before(end_s, window_arrivals(load, request_rate, seed=seed))


def warmup(load: OpenLoop, request_rate: float, seed: int, end_s: float = 100.0) -> np.ndarray:
    """The arrivals of a warm-up of 100 s."""
    return before(end_s, warmup_arrivals(load, request_rate, seed=seed))


SCHEDULES = {"warmup": warmup, "window": window}


def looks_like(sample: np.ndarray, cdf: Any) -> bool:
    """Whether a Kolmogorov-Smirnov test does not tell `sample` from the distribution."""
    return stats.kstest(sample, cdf).pvalue > 0.01


# --- the process asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("of", SCHEDULES)
@pytest.mark.parametrize(("request_rate", "n"), [(0.5, 50), (20.0, 2000), (2000.0, 200_000)])
def test_constant_arrivals_are_constant(of, request_rate, n):
    """Every gap is the same, the first arrival half of one after the start."""
    schedule = SCHEDULES[of](load_of("constant"), request_rate, 1)

    assert schedule[0] == pytest.approx(0.5 / request_rate)
    assert np.diff(schedule) == pytest.approx(1 / request_rate, rel=1e-6)
    assert schedule.size == n


@pytest.mark.parametrize("of", SCHEDULES)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("request_rate", [20.0, 200.0])
def test_poisson_gaps_are_exponential(of, seed, request_rate):
    """Gaps of a Poisson process are exponential with the mean 1 / rate."""
    gaps = np.diff(SCHEDULES[of](load_of(), request_rate, seed))

    assert looks_like(gaps, stats.expon(scale=1 / request_rate).cdf)


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 8.0])
def test_gamma_gaps_are_gamma_distributed(burstiness):
    """Burstiness is the shape; the mean gap stays 1 / rate."""
    gaps = np.diff(window(load_of("gamma", burstiness=burstiness), 20.0, 4))

    assert looks_like(gaps, stats.gamma(burstiness, scale=1 / (20.0 * burstiness)).cdf)


def test_a_test_of_the_wrong_distribution_fails():
    """The test that the others rest on tells bursty gaps from exponential ones."""
    gaps = np.diff(window(load_of("gamma"), 20.0, 4))

    assert not looks_like(gaps, stats.expon(scale=1 / 20.0).cdf)


def test_bursty_arrivals_do_not_begin_with_a_burst():
    """The mean count of the first 10 gaps' time is 10 within 3 deviations, not 4.5 above it."""
    load = load_of("gamma", burstiness=0.1)
    counts = [window(load, 1.0, seed, end_s=10.0).size for seed in range(400)]

    assert abs(np.mean(counts) - 10.0) < 3 * np.std(counts) / len(counts) ** 0.5


@pytest.mark.parametrize("to_rate", [2.0, 20.0, 60.0])
def test_a_ramp_s_rate_goes_in_a_straight_line(to_rate):
    """In the window arrivals are spread as the integral of a rate from 20 to `to_rate`."""
    schedule = window(load_of("ramp", ramp_to_rate=to_rate), 20.0, 5)

    def cdf(at_s: np.ndarray) -> np.ndarray:
        return (20.0 * at_s + (to_rate - 20.0) * at_s**2 / 200.0) / (50.0 * (20.0 + to_rate))

    assert looks_like(schedule, cdf)


def test_a_ramp_warms_up_at_its_first_rate():
    """The warm-up of 100 s holds about 2,000 arrivals, evenly spread as a Poisson process's are."""
    schedule = warmup(load_of("ramp"), 20.0, 6)

    assert abs(schedule.size - 2000) < 4 * 2000**0.5
    assert looks_like(schedule, stats.uniform(0, 100.0).cdf)


def test_after_a_ramp_its_last_rate_is_kept():
    """Gaps after the window are exponential with the mean 1 / ramp_to_rate."""
    schedule = window(load_of("ramp"), 20.0, 12, end_s=200.0)

    assert looks_like(np.diff(schedule[schedule > 100.0]), stats.expon(scale=1 / 60.0).cdf)


@pytest.mark.parametrize(
    ("arrivals", "expected", "deviation"),
    [("constant", 2000, 0), ("poisson", 2000, 45), ("gamma", 2000, 82), ("ramp", 4000, 63)],
)
def test_as_many_arrive_as_the_rate_says(arrivals, expected, deviation):
    """Rate times time, within three standard deviations of the process's own count."""
    assert abs(window(load_of(arrivals), 20.0, 7).size - expected) <= 3 * deviation


def test_a_ramp_without_an_end_is_an_error():
    """It has no rate to go to."""
    with pytest.raises(ValueError, match="ramp_to_rate"):
        next(window_arrivals(load_of("ramp", ramp_to_rate=None), 20.0, seed=1))


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", SCHEDULES)
def test_a_seed_makes_one_schedule(of):
    """The same seed gives the same instants, another seed others."""
    first, again, other = (SCHEDULES[of](load_of(), 20.0, seed).tolist() for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_warm_up_and_window_are_drawn_apart():
    """The window's arrivals are no repetition of the warm-up's."""
    assert warmup(load_of(), 20.0, 1).tolist() != window(load_of(), 20.0, 1).tolist()


def test_every_candidate_gets_the_same_arrivals():
    """The experiment is not in a stage's seed."""
    one, two = (StageKey(name, "w", "rate-2") for name in ("one", "two"))

    assert stage_seed(7, one) == stage_seed(7, two)


def test_stages_have_seeds_of_their_own():
    """Run's seed, workload, stage and replication each make another one."""
    seeds = {
        stage_seed(seed, StageKey("e", workload, stage), replication)
        for seed, workload, stage, replication in itertools.product(
            (7, 8), ("w", "v"), ("rate-2", "rate-4"), (0, 1)
        )
    }

    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine():
    """The first 63 bits of BLAKE2b-64 of the lines 7, w, rate-2, 0: equal runs stay comparable."""
    assert stage_seed(7, StageKey("e", "w", "rate-2")) == 4056539741372535733


LOADS = st.one_of(
    st.builds(load_of, st.just("constant")),
    st.builds(load_of, duration_s=st.floats(0.01, 50)),
    st.builds(load_of, st.just("gamma"), burstiness=st.floats(0.01, 1e4)),
    st.builds(load_of, st.just("ramp"), ramp_to_rate=st.floats(0.01, 1e3)),
)


@given(LOADS, st.floats(0.01, 200.0), st.integers(0, 2**63 - 1))
def test_any_schedule_ascends_from_the_start(asked, request_rate, seed):
    """No arrival is negative, none goes back, from chunk to chunk either, and they never end."""
    for chunks in (
        window_arrivals(asked, request_rate, seed=seed),
        warmup_arrivals(asked, request_rate, seed=seed),
    ):
        schedule = np.concatenate(list(itertools.islice(chunks, 3)))

        assert np.all(np.diff(schedule, prepend=0.0) >= 0)
        assert schedule.size > 4096

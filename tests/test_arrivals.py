"""Arrival schedules against the distributions asked for, bounds, seeds and shards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fmgauge.config.model import OpenLoop
from fmgauge.load.arrivals import arrivals_s, later_arrivals_s, shard, stage_seed
from fmgauge.records import StageKey

KINDS: dict[str, dict[str, Any]] = {
    "constant": {},
    "poisson": {},
    "gamma": {"burstiness": 0.3},
    "ramp": {"ramp_to_rate": 60.0},
}


def load_of(arrivals: str = "poisson", **changes: Any) -> OpenLoop:
    """An open loop of 5 s of warm-up and a window of 100 s, with changes."""
    asked = {"duration_s": 100.0, **KINDS[arrivals], **changes}
    return OpenLoop(kind="open_loop", request_rate=(20.0,), arrivals=arrivals, **asked)


def looks_like(sample: np.ndarray, cdf: Any) -> bool:
    """Whether a Kolmogorov-Smirnov test does not tell `sample` from the distribution."""
    return stats.kstest(sample, cdf).pvalue > 0.01


# --- the process asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(("request_rate", "n"), [(0.5, 52), (20.0, 2100), (2000.0, 210_000)])
def test_constant_arrivals_are_constant(request_rate, n):
    """Every gap is the same, the first arrival half of one after the start."""
    schedule = arrivals_s(load_of("constant"), request_rate, seed=1)

    assert schedule[0] == pytest.approx(0.5 / request_rate)
    assert np.diff(schedule) == pytest.approx(1 / request_rate, rel=1e-6)
    assert schedule.size == n


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("request_rate", [20.0, 200.0])
def test_poisson_gaps_are_exponential(seed, request_rate):
    """Gaps of a Poisson process are exponential with the mean 1 / rate."""
    gaps = np.diff(arrivals_s(load_of(), request_rate, seed=seed))

    assert looks_like(gaps, stats.expon(scale=1 / request_rate).cdf)


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 8.0])
def test_gamma_gaps_are_gamma_distributed(burstiness):
    """Burstiness is the shape; the mean gap stays 1 / rate."""
    gaps = np.diff(arrivals_s(load_of("gamma", burstiness=burstiness), 20.0, seed=4))

    assert looks_like(gaps, stats.gamma(burstiness, scale=1 / (20.0 * burstiness)).cdf)


def test_a_test_of_the_wrong_distribution_fails():
    """The test that the others rest on tells bursty gaps from exponential ones."""
    gaps = np.diff(arrivals_s(load_of("gamma"), 20.0, seed=4))

    assert not looks_like(gaps, stats.expon(scale=1 / 20.0).cdf)


@pytest.mark.parametrize("to_rate", [2.0, 20.0, 60.0])
def test_a_ramp_s_rate_goes_in_a_straight_line(to_rate):
    """In the window arrivals are spread as the integral of a rate from 20 to `to_rate`."""
    schedule = arrivals_s(load_of("ramp", ramp_to_rate=to_rate), 20.0, seed=5)
    s = schedule[schedule >= 5.0] - 5.0

    def cdf(at_s: np.ndarray) -> np.ndarray:
        return (20.0 * at_s + (to_rate - 20.0) * at_s**2 / 200.0) / (50.0 * (20.0 + to_rate))

    assert looks_like(s, cdf)


def test_a_ramp_warms_up_at_its_first_rate():
    """The warm-up of 100 s holds about 2,000 arrivals, evenly spread as a Poisson process's are."""
    schedule = arrivals_s(load_of("ramp", warmup_s=100.0), 20.0, seed=6)
    warmup = schedule[schedule < 100.0]

    assert abs(warmup.size - 2000) < 4 * 2000**0.5
    assert looks_like(warmup, stats.uniform(0, 100.0).cdf)


@pytest.mark.parametrize(
    ("arrivals", "expected", "deviation"),
    [("constant", 2100, 0), ("poisson", 2100, 46), ("gamma", 2100, 84), ("ramp", 4100, 64)],
)
def test_as_many_arrive_as_the_rate_says(arrivals, expected, deviation):
    """Rate times time, within three standard deviations of the process's own count."""
    assert abs(arrivals_s(load_of(arrivals), 20.0, seed=7).size - expected) <= 3 * deviation


def test_a_ramp_without_an_end_is_an_error():
    """It has no rate to go to."""
    with pytest.raises(ValueError, match="ramp_to_rate"):
        arrivals_s(load_of("ramp", ramp_to_rate=None), 20.0, seed=1)


# --- the window's end -----------------------------------------------------------------------------


@pytest.mark.parametrize("arrivals", KINDS)
def test_a_window_ends_with_its_duration(arrivals):
    """The last arrival is before 105 s, and the next of the schedule is not."""
    asked = load_of(arrivals)
    later = later_arrivals_s(asked, 20.0, seed=8, after_s=0.0)

    assert arrivals_s(asked, 20.0, seed=8)[-1] < 105.0 <= next(later)[0]


@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma"])
@pytest.mark.parametrize("requests", [1, 4096, 5000])
def test_a_window_ends_with_its_last_request(arrivals, requests):
    """A count is of arrivals in the window; those of the warm-up are not among them."""
    asked = load_of(arrivals, duration_s=None, requests=requests)

    assert np.sum(arrivals_s(asked, 20.0, seed=9) >= 5.0) == requests


@pytest.mark.parametrize(("requests", "duration_s"), [(10, 100.0), (10_000, 3.0)])
def test_a_window_ends_with_the_first_of_time_and_count(requests, duration_s):
    """The schedule is the shorter one of the two that either alone would give."""
    both = arrivals_s(load_of(requests=requests, duration_s=duration_s), 20.0, seed=10)
    alone = [
        arrivals_s(load_of(duration_s=duration_s), 20.0, seed=10),
        arrivals_s(load_of(requests=requests, duration_s=None), 20.0, seed=10),
    ]

    assert both.tolist() == min(alone, key=len).tolist()


def test_a_window_without_an_end_is_an_error():
    """Such a schedule would have none either."""
    with pytest.raises(ValueError, match="nothing ends the window"):
        arrivals_s(load_of(duration_s=None), 20.0, seed=1)


# --- after the window -----------------------------------------------------------------------------


@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma"])
def test_the_load_goes_on_as_it_began(arrivals):
    """A short window and what follows it are one schedule: that of a longer window."""
    short, long = load_of(arrivals, duration_s=30.0), load_of(arrivals, duration_s=250.0)
    later = later_arrivals_s(short, 20.0, seed=11, after_s=0.0)
    whole = np.concatenate([arrivals_s(short, 20.0, seed=11), *itertools.islice(later, 2)])
    expected = arrivals_s(long, 20.0, seed=11)

    assert whole[: expected.size].tolist() == expected.tolist()


def test_after_a_ramp_its_last_rate_is_kept():
    """Gaps after the window are exponential with the mean 1 / ramp_to_rate."""
    later = next(later_arrivals_s(load_of("ramp"), 20.0, seed=12, after_s=105.0))

    assert looks_like(np.diff(later), stats.expon(scale=1 / 60.0).cdf)


@pytest.mark.parametrize("arrivals", KINDS)
def test_nothing_comes_before_it_is_asked_for(arrivals):
    """Arrivals before `after_s` are left out, those after it come, chunk after chunk."""
    chunks = later_arrivals_s(load_of(arrivals), 20.0, seed=13, after_s=150.0)
    later = np.concatenate(list(itertools.islice(chunks, 3)))

    assert later[0] >= 150.0
    assert later.size > 4096
    assert np.all(np.diff(later) >= 0)


# --- seeds and shards -----------------------------------------------------------------------------


def test_a_seed_makes_one_schedule():
    """The same seed gives the same instants, another seed others."""
    first, again, other = (arrivals_s(load_of(), 20.0, seed=seed).tolist() for seed in (1, 1, 2))

    assert first == again
    assert first != other


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
    st.builds(load_of, st.just("constant"), duration_s=st.floats(0.01, 50)),
    st.builds(load_of, duration_s=st.floats(0.01, 50), warmup_s=st.floats(0, 10)),
    st.builds(load_of, duration_s=st.none(), requests=st.integers(1, 500)),
    st.builds(load_of, st.just("gamma"), burstiness=st.floats(0.01, 1e4)),
    st.builds(load_of, st.just("ramp"), ramp_to_rate=st.floats(0.01, 1e3)),
)


@settings(deadline=None, max_examples=60)
@given(LOADS, st.floats(0.01, 200.0), st.integers(0, 2**63 - 1))
def test_any_schedule_ascends_from_the_start_to_the_window_s_end(asked, request_rate, seed):
    """No arrival is negative, none comes after the end, and none goes back."""
    schedule = arrivals_s(asked, request_rate, seed=seed)

    assert np.all(np.diff(schedule, prepend=0.0) >= 0)
    assert asked.duration_s is None or np.all(schedule < asked.warmup_s + asked.duration_s)
    assert asked.requests is None or np.sum(schedule >= asked.warmup_s) <= asked.requests


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 300), st.integers(1, 9))
def test_shards_partition_a_schedule(n, count):
    """Every arrival is in one worker's shard, and no two workers differ by more than one."""
    schedule = np.arange(n, dtype=np.float64)
    shards = [shard(schedule, index, count) for index in range(count)]

    assert sorted(np.concatenate(shards)) == schedule.tolist()
    assert max(map(len, shards)) - min(map(len, shards)) <= 1

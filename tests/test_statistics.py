"""Percentiles, intervals and sample sizes against reference values and exact sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmgauge.statistics import (
    OrderStatistics,
    effective_sample_size,
    lag1_autocorrelation,
    mean_interval,
    percentile,
    percentile_interval,
    percentile_ranks,
    quantile,
    samples_needed,
)

levels = st.floats(0.05, 0.99)
samples = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


def exactly(n: int, p: float, successes: range) -> float:
    """The chance that n trials of chance p have a number of successes in the range."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in successes)


@pytest.mark.parametrize(("p", "needed"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_samples_needed_for_a_finite_interval(p, needed):
    """The reference row for 95 %; the median needs 6: 2 * 0.5**6 is below 5 %, 2 * 0.5**5 not."""
    assert samples_needed(p) == needed


@pytest.mark.parametrize(("p", "ranks"), [(0.95, (936, 964)), (0.99, (983, 997))])
def test_ranks_at_a_thousand_samples(p, ranks):
    """The reference ranks of the 95 % interval at n = 1000."""
    assert percentile_ranks(1000, p) == ranks


@given(levels, st.integers(1, 400))
def test_interval_is_finite_exactly_from_the_samples_needed(p, n):
    """Both ranks exist in the sample if and only if it holds the samples needed."""
    low, high = percentile_ranks(n, p)

    assert (low >= 1 and high <= n) == (n >= samples_needed(p))


@given(levels, st.integers(1, 150), st.sampled_from([0.8, 0.95, 0.99]))
def test_ranks_cover_what_they_promise(p, n, confidence):
    """Each tail outside the ranks holds at most half of what the confidence leaves."""
    low, high = percentile_ranks(n, p, confidence)
    tail = (1 - confidence) / 2

    assert exactly(n, p, range(low)) <= tail + 1e-9
    assert exactly(n, p, range(high, n + 1)) <= tail + 1e-9


@pytest.mark.parametrize("p", [0.0, 1.0, 95.0])
def test_a_percentile_is_given_as_a_fraction(p):
    """95 is not taken for 0.95."""
    with pytest.raises(ValueError, match="fractions"):
        samples_needed(p)


@given(samples, levels)
def test_quantile_is_linear_between_order_statistics(values, p):
    """It agrees with numpy's linear quantile, as far as the sample's spread allows it."""
    expected = float(np.quantile(values, p))
    hair = 1e-6 + 1e-8 * (max(values) - min(values))

    assert quantile(values, p) == pytest.approx(expected, rel=1e-6, abs=hair)


def test_quantile_between_finite_and_infinite_is_infinite():
    """A percentile that touches a failure is not a number of seconds."""
    assert quantile([1.0, 2.0, math.inf], 0.75) == math.inf


def test_quantile_on_a_finite_sample_beside_an_infinite_one_is_finite():
    """0.07 * 100 is 7.000000000000001 to a machine; that hair is no step towards the failure."""
    values = [*(float(i) for i in range(8)), *[math.inf] * 93]

    assert quantile(values, 0.07) == 7.0


def test_quantile_of_nothing_is_nan():
    """An empty sample has no quantile."""
    assert math.isnan(quantile([], 0.5))


@pytest.mark.parametrize(("n", "expected"), [(71, math.nan), (72, 67.45)])
def test_percentile_is_nan_below_the_samples_needed(n, expected):
    """71 samples carry no p95; of 0..71 it is 0.95 * 71."""
    values = [float(i) for i in range(n)]

    assert percentile(values, 0.95) == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.floats(0, 1e3), min_size=36, max_size=300), st.sampled_from([0.5, 0.9]))
def test_percentile_lies_in_its_interval(values, p):
    """The estimate is between the bounds, and both bounds are samples."""
    low, high = percentile_interval(values, p)

    assert low <= percentile(values, p) <= high
    assert {low, high} <= set(values)


@given(st.lists(st.floats(0, 1e3), min_size=72, max_size=200), st.integers(0, 20))
def test_failures_never_make_a_percentile_smaller(values, n_failed):
    """Replacing the fastest samples by +inf can only raise the percentile."""
    with_failures = sorted(values)[n_failed:] + [math.inf] * n_failed

    assert percentile(with_failures, 0.95) >= percentile(values, 0.95)


def test_percentile_interval_covers_the_truth():
    """Over 500 seeded samples of 200 it holds the true p90 in at least 93 %."""
    rng = np.random.default_rng(1)
    truth = math.log(10)  # p90 of the unit exponential
    bounds = [percentile_interval(rng.exponential(size=200), 0.9) for _ in range(500)]

    assert np.mean([low <= truth <= high for low, high in bounds]) >= 0.93


def test_percentile_interval_is_nan_below_the_samples_needed():
    """A sample too small for a finite interval has none."""
    assert all(math.isnan(bound) for bound in percentile_interval([1.0] * 5, 0.5))


def sought(values, ranks, *, hold, at_once):
    """The order statistics of `ranks`, and how often the sample had to be shown for them."""
    found = OrderStatistics(hold=hold)
    for showing in range(1, 10):
        for start in range(0, len(values), at_once):
            found.add(np.array(values[start : start + at_once]))
        if found.seek(ranks):
            return [found.value_at(rank) for rank in ranks], showing
    raise AssertionError("the ranks were never found")


tied = st.sampled_from([0.0, 0.02, math.nextafter(0.02, 1), 0.25, 1.0, math.inf])


@given(
    st.lists(tied | st.floats(allow_nan=False), min_size=1, max_size=80),
    st.sampled_from([0, 1, 5, 1000]),
    st.integers(1, 9),
    st.data(),
)
def test_order_statistics_of_a_sample_in_pieces_are_exact(values, hold, at_once, data):
    """However little is held, ties and neighbours told apart by the last bit included."""
    ranks = sorted(data.draw(st.sets(st.integers(1, len(values)), min_size=1)))

    found, n_showings = sought(values, ranks, hold=hold, at_once=at_once)

    assert found == [sorted(values)[rank - 1] for rank in ranks]
    assert n_showings <= 4


def test_a_percentile_in_pieces_needs_two_showings():
    """Once to see where it lies, once to pick it, where what lies there can be held."""
    values = np.random.default_rng(5).gamma(4.0, 0.005, size=100_000)

    found, n_showings = sought(values, [50_000, 99_000], hold=10_000, at_once=1000)

    assert found == list(np.sort(values)[[49_999, 98_999]])
    assert n_showings == 2


def test_no_rank_is_found_at_once():
    """Whoever wants nothing need not show the sample again."""
    assert sought([1.0], [], hold=1, at_once=1) == ([], 1)


def test_mean_interval_of_uncorrelated_samples_is_student_s():
    """Mean 7/3, deviation 1.2111, six samples, t = 2.5706 from the table of 5 degrees."""
    low, high = mean_interval([1.0, 3.0, 2.0, 4.0, 1.0, 3.0])
    half_width = 2.5706 * 1.21106 / math.sqrt(6)

    assert (low, high) == pytest.approx((7 / 3 - half_width, 7 / 3 + half_width), abs=1e-4)


def test_mean_interval_widens_with_correlation():
    """Each sample taken ten times is worth fewer samples, not ten times more."""
    values = np.random.default_rng(2).normal(size=50)
    widths = [high - low for low, high in map(mean_interval, (values, np.repeat(values, 10)))]

    assert widths[1] > 0.9 * widths[0]


def test_mean_interval_covers_the_truth():
    """Over 500 seeded samples of 40 independent normals it holds the mean in 92 to 98 %."""
    rng = np.random.default_rng(3)
    bounds = [mean_interval(rng.normal(5.0, 1.0, size=40)) for _ in range(500)]

    assert 0.92 <= np.mean([low <= 5.0 <= high for low, high in bounds]) <= 0.98


@pytest.mark.parametrize("value", [0.25, 0.1, 0.0])
def test_mean_interval_of_a_constant_is_the_constant(value):
    """No spread, no width; what a sum of tenths is off by is no spread."""
    assert mean_interval([value] * 10) == pytest.approx((value, value), abs=1e-15)


@pytest.mark.parametrize("values", [[], [1.0], [0.0] * 4 + [1.0] * 4])
def test_mean_interval_is_nan_where_samples_are_worth_less_than_two(values):
    """None, one, or a single step from low to high: nothing to estimate a spread from."""
    assert all(math.isnan(bound) for bound in mean_interval(values))


def test_lag1_autocorrelation_by_hand():
    """Deviations -1.5, -0.5, 0.5, 1.5: products 0.75 - 0.25 + 0.75 over squares 5."""
    assert lag1_autocorrelation([1.0, 2.0, 3.0, 4.0]) == pytest.approx(1.25 / 5)


def test_effective_sample_size_of_an_autoregression():
    """With a lag-1 correlation of 0.8 nine samples are worth one."""
    rng = np.random.default_rng(4)
    values = np.zeros(100_000)
    for i, noise in enumerate(rng.normal(size=values.size - 1)):
        values[i + 1] = 0.8 * values[i] + noise

    assert effective_sample_size(values) == pytest.approx(values.size / 9, rel=0.05)


@given(samples)
def test_effective_sample_size_never_exceeds_the_sample(values):
    """Alternating samples are not counted as more than they are."""
    assert 0 <= effective_sample_size(values) <= len(values)

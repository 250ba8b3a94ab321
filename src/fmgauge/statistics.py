"""Percentiles and intervals from samples. Pure; knows nothing of requests, models or prices.

Every probability is a fraction in (0, 1). Samples may hold +inf, never NaN. What a sample cannot
carry is NaN, so that nobody prints it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Sample = Sequence[float] | NDArray[np.float64]


def percentile_ranks(n: int, p: float, confidence: float = 0.95) -> tuple[int, int]:
    """Ranks, from 1, of the order statistics that bound the `p` percentile of `n` samples.

    The exact binomial interval for independent samples. Rank 0 means no finite lower bound and
    rank n + 1 no finite upper bound: the sample is too small.
    """
    tail = (1 - confidence) / 2
    return _binomial_quantile(tail, n, p), _binomial_quantile(1 - tail, n, p) + 1


@cache
def samples_needed(p: float, confidence: float = 0.95) -> int:
    """Fewest samples whose two-sided interval for the `p` percentile is finite on both sides."""
    _check_probabilities(p, confidence)
    n = math.ceil(math.log((1 - confidence) / 2) / math.log(max(p, 1 - p)))
    while not _is_finite(percentile_ranks(n, p, confidence), n):
        n += 1  # the logarithms round; the ranks decide
    return n


def quantile(values: Sample, p: float) -> float:
    """The `p` quantile, linear between order statistics (Hyndman and Fan's type 7); NaN of none.

    Arithmetic only: whether the sample carries it is `percentile`'s question. Between a finite
    value and +inf lies +inf.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if ordered.size == 0:
        return math.nan
    place = round(p * (ordered.size - 1), 9)  # 0.07 * 100 is 7, not a hair above it
    below, fraction = math.floor(place), place - math.floor(place)
    if fraction == 0 or ordered[below] == ordered[below + 1]:
        return float(ordered[below])
    return float(ordered[below] + fraction * (ordered[below + 1] - ordered[below]))


def percentile(values: Sample, p: float, confidence: float = 0.95) -> float:
    """The `p` quantile where the sample carries it, NaN below `samples_needed(p)` samples."""
    return quantile(values, p) if len(values) >= samples_needed(p, confidence) else math.nan


def percentile_interval(values: Sample, p: float, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds on the `p` percentile by order statistics; NaN below `samples_needed(p)` samples.

    Exact for independent samples. Latencies behind a queue are not independent: within one run
    the interval is optimistic.
    """
    if len(values) < samples_needed(p, confidence):
        return math.nan, math.nan
    low, high = percentile_ranks(len(values), p, confidence)
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return float(ordered[low - 1]), float(ordered[high - 1])


def lag1_autocorrelation(values: Sample) -> float:
    """Correlation of each sample with the next one, in the order given; 0 for a constant."""
    deviations = np.asarray(values, dtype=np.float64) - np.mean(values)
    square_sum = float(deviations @ deviations)
    return float(deviations[:-1] @ deviations[1:]) / square_sum if square_sum > 0 else 0.0


def effective_sample_size(values: Sample) -> float:
    """How many independent samples the ordered ones are worth, by their lag-1 autocorrelation.

    n (1 - r) / (1 + r), and never more than n: a negative r is not taken as a gift.
    """
    r = lag1_autocorrelation(values)
    return len(values) * min(1.0, (1 - r) / (1 + r))


def mean_interval(values: Sample, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean, from the effective sample size; values in time order.

    Within one run, hence optimistic: correlation beyond lag 1 and drift are not in it. NaN below
    an effective sample of 2.
    """
    n_effective = effective_sample_size(values) if len(values) > 1 else 0.0
    if n_effective < 2:
        return math.nan, math.nan
    from scipy.special import stdtrit

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    t = float(stdtrit(n_effective - 1, (1 + confidence) / 2))
    half_width = t * deviation / math.sqrt(n_effective)
    return mean - half_width, mean + half_width


def _binomial_quantile(probability: float, n: int, p: float) -> int:
    """Smallest k with P(X <= k) >= probability, X successes in n trials of chance p."""
    from scipy.special import bdtr

    return bisect_left(range(n), probability, key=lambda k: float(bdtr(k, n, p)))


def _is_finite(ranks: tuple[int, int], n: int) -> bool:
    return ranks[0] >= 1 and ranks[1] <= n


def _check_probabilities(*probabilities: float) -> None:
    if not all(0 < probability < 1 for probability in probabilities):
        raise ValueError(f"{probabilities} are not fractions between 0 and 1")

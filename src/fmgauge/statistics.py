"""Percentiles and intervals from samples. Pure; knows nothing of requests, models or prices.

Every probability is a fraction in (0, 1). Samples may hold +inf, never NaN. What a sample cannot
carry is NaN, so that nobody prints it. Whatever is told of a sample can be found from pieces of it,
in memory that does not grow with the sample: `OrderStatistics` and `Moments`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sample = Sequence[float] | Floats
ValueAt = Callable[[int], float]
"""A rank, from 1, to the order statistic of that rank."""


# --- percentiles ---------------------------------------------------------------------------------


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
    return _quantile(in_order(values), len(values), p) if len(values) else math.nan


def percentile(values: Sample, p: float, confidence: float = 0.95) -> float:
    """The `p` quantile where the sample carries it, NaN below `samples_needed(p)` samples."""
    return percentile_with_interval(in_order(values), len(values), p, confidence)[0]


def percentile_interval(values: Sample, p: float, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds on the `p` percentile by order statistics; NaN below `samples_needed(p)` samples.

    Exact for independent samples. Latencies behind a queue are not independent: within one run
    the interval is optimistic.
    """
    _, low, high = percentile_with_interval(in_order(values), len(values), p, confidence)
    return low, high


def percentile_with_interval(
    value_at: ValueAt, n: int, p: float, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The `p` percentile of `n` samples and its bounds, from the order statistics it needs."""
    if n < samples_needed(p, confidence):
        return math.nan, math.nan, math.nan
    low, high = percentile_ranks(n, p, confidence)
    return _quantile(value_at, n, p), value_at(low), value_at(high)


def ranks_needed(n: int, p: float, confidence: float = 0.95) -> set[int]:
    """The ranks for which `percentile_with_interval` asks."""
    if n < samples_needed(p, confidence):
        return set()
    below, fraction = _place(n, p)
    return {*percentile_ranks(n, p, confidence), below, below + (fraction > 0)}


def in_order(values: Sample) -> ValueAt:
    """The order statistics of a sample that is held whole."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return lambda rank: float(ordered[rank - 1])


def _quantile(value_at: ValueAt, n: int, p: float) -> float:
    rank, fraction = _place(n, p)
    below = value_at(rank)
    if fraction == 0 or (above := value_at(rank + 1)) == below:
        return below
    return below + fraction * (above - below)


def _place(n: int, p: float) -> tuple[int, float]:
    """The rank below the `p` quantile of `n` samples, and how far on towards the next it lies."""
    place = round(p * (n - 1), 9)  # 0.07 * 100 is 7, not a hair above it
    return math.floor(place) + 1, place - math.floor(place)


# --- order statistics of a sample that is too large to hold --------------------------------------

_DIGITS = (20, 16, 16, 12)  # bits of a double looked at in turn: first sign, exponent, 0.4 %
_SIGN = np.uint64(1 << 63)
Keys = NDArray[np.uint64]


class OrderStatistics:
    """Exact order statistics of a sample that is shown in pieces, as often as it takes.

    Show all of it with `add`, then `seek` ranks; while that says no, show the same sample again
    and `seek` the same ranks. At most `hold` values are kept, and counts of a fixed number of
    bins: of every wanted rank, each showing settles more of the bits, as in a radix sort.
    """

    def __init__(self, hold: int = 1 << 22) -> None:
        self._hold = hold
        self._level = 0
        self._open: Keys = np.zeros(1, np.uint64)  # the bins that hold wanted ranks, by first bits
        self._before = np.zeros(1, np.int64)  # how many values of the sample lie below each bin
        self._counts = np.zeros((1, 1 << _DIGITS[0]), np.int64)
        self._coarse = np.zeros(0, np.bool_)  # which of the first bins hold a wanted rank
        self._held: list[Keys] | None = None
        self._found: dict[int, float] = {}

    def add(self, values: Floats) -> None:
        """Show the next piece of the sample."""
        keys, slots = self._wanted(_keys(values))
        if self._held is None:
            digits = _DIGITS[self._level]
            digit = (keys >> np.uint64(_bits_left(self._level))).view(np.int64)
            bins = (slots << digits) + (digit & ((1 << digits) - 1))
            np.add.at(self._counts.reshape(-1), bins, 1)
        else:
            self._held.append(keys)

    def seek(self, ranks: Iterable[int]) -> bool:
        """Whether the values of `ranks`, from 1, are known now; else show the sample once more."""
        wanted = sorted(set(ranks))
        if self._found or not wanted:
            return True
        if self._held is None:
            self._narrow(wanted)
        else:
            self._pick(wanted)
        return bool(self._found)

    def value_at(self, rank: int) -> float:
        """The order statistic of a rank that was sought and found."""
        return self._found[rank]

    def _wanted(self, keys: Keys) -> tuple[Keys, NDArray[np.intp]]:
        """Those keys that lie in an open bin, and in which one."""
        if not self._level:
            return keys, np.zeros(1, np.intp)
        keys = keys[self._coarse[(keys >> np.uint64(_bits_left(0))).view(np.int64)]]
        first_bits = keys >> np.uint64(_bits_left(self._level - 1))
        slots = np.searchsorted(self._open, first_bits).clip(max=self._open.size - 1)
        inside = self._open[slots] == first_bits
        return keys[inside], slots[inside]

    def _slot_of(self, wanted: list[int]) -> NDArray[np.int64]:
        return np.searchsorted(self._before, wanted, side="left") - 1

    def _narrow(self, wanted: list[int]) -> None:
        """Go on with those bins alone that hold a wanted rank."""
        digits = _DIGITS[self._level]
        counts = self._counts.ravel()
        first_of_slot = np.concatenate([[0], np.cumsum(self._counts.sum(axis=1))[:-1]])
        total = np.cumsum(counts)
        slots = self._slot_of(wanted)
        places = np.array(wanted) - self._before[slots] + first_of_slot[slots]
        bins = np.unique(np.searchsorted(total, places, side="left"))
        of_slot = bins >> digits
        within = total[bins] - counts[bins] - first_of_slot[of_slot]
        digit = (bins & ((1 << digits) - 1)).astype(np.uint64)
        self._before = self._before[of_slot] + within
        self._open = (self._open[of_slot] << np.uint64(digits)) | digit
        if not self._level:
            self._coarse = np.zeros(1 << digits, np.bool_)
            self._coarse[bins] = True
        self._level += 1
        if self._level == len(_DIGITS):  # every bit is known
            values = _values(self._open)
            slots = self._slot_of(wanted)
            self._found = {r: float(values[s]) for r, s in zip(wanted, slots, strict=True)}
        elif counts[bins].sum() <= self._hold:
            self._counts, self._held = np.zeros((0, 0), np.int64), []
        else:
            self._counts = np.zeros((bins.size, 1 << _DIGITS[self._level]), np.int64)

    def _pick(self, wanted: list[int]) -> None:
        """Find the wanted ranks among the values of their bins, which are held."""
        held = np.sort(np.concatenate(self._held or [np.zeros(0, np.uint64)]))
        starts = np.searchsorted(held >> np.uint64(_bits_left(self._level - 1)), self._open)
        slots = self._slot_of(wanted)
        values = _values(held[starts[slots] + np.array(wanted) - self._before[slots] - 1])
        self._found = {rank: float(value) for rank, value in zip(wanted, values, strict=True)}


def _bits_left(level: int) -> int:
    """Bits of a key that are not looked at yet once `level` is."""
    return 64 - sum(_DIGITS[: level + 1])


def _keys(values: Floats) -> Keys:
    """Unsigned integers that are ordered as the doubles are whose bits they came from."""
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    negative = (bits & _SIGN).any()
    return np.where(bits & _SIGN, ~bits, bits | _SIGN) if negative else bits | _SIGN


def _values(keys: Keys) -> Floats:
    bits = np.where(keys & _SIGN, keys & ~_SIGN, ~keys)
    return bits.view(np.float64)


# --- means ---------------------------------------------------------------------------------------

_ROUNDING = 8 * 2.0**-52  # a smaller spread, relative to the mean, is rounding


@dataclass(frozen=True, slots=True)
class Moments:
    """What a mean and its interval need to know of an ordered sample."""

    n: int
    mean: float  # NaN of none
    square_sum: float  # of the deviations from the mean
    neighbour_sum: float  # of the products of each deviation with the next one

    @property
    def lag1_autocorrelation(self) -> float:
        """Correlation of each sample with the next one; 0 for a constant."""
        return 0.0 if self._is_constant else self.neighbour_sum / self.square_sum

    @property
    def effective_size(self) -> float:
        """How many independent samples these are worth: n (1 - r) / (1 + r), never more than n."""
        r = self.lag1_autocorrelation
        return self.n * min(1.0, (1 - r) / (1 + r))

    @property
    def deviation(self) -> float:
        """The standard deviation, from n - 1."""
        return 0.0 if self._is_constant else math.sqrt(self.square_sum / (self.n - 1))

    @property
    def _is_constant(self) -> bool:
        return bool(self.square_sum <= self.n * (_ROUNDING * self.mean) ** 2)


def moments(values: Sample) -> Moments:
    """The moments of a sample that is held whole, in the order given."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return Moments(0, math.nan, 0.0, 0.0)
    mean = float(sample.mean())
    deviations = sample - mean
    square_sum = float(deviations @ deviations)
    return Moments(sample.size, mean, square_sum, float(deviations[:-1] @ deviations[1:]))


def lag1_autocorrelation(values: Sample) -> float:
    """Correlation of each sample with the next one, in the order given; 0 for a constant."""
    return moments(values).lag1_autocorrelation


def effective_sample_size(values: Sample) -> float:
    """How many independent samples the ordered ones are worth, by their lag-1 autocorrelation.

    n (1 - r) / (1 + r), and never more than n: a negative r is not taken as a gift.
    """
    return moments(values).effective_size


def mean_interval(values: Sample, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean, from the effective sample size; values in time order.

    Within one run, hence optimistic: correlation beyond lag 1 and drift are not in it. NaN below
    an effective sample of 2.
    """
    return interval_of_mean(moments(values), confidence)


def interval_of_mean(sample: Moments, confidence: float = 0.95) -> tuple[float, float]:
    """`mean_interval` from the moments of the values."""
    n_effective = sample.effective_size if sample.n > 1 else 0.0
    if n_effective < 2:
        return math.nan, math.nan
    from scipy.special import stdtrit

    t = float(stdtrit(n_effective - 1, (1 + confidence) / 2))
    half_width = t * sample.deviation / math.sqrt(n_effective)
    return sample.mean - half_width, sample.mean + half_width


# --- is it steady --------------------------------------------------------------------------------

GROWTH_BATCHES = 10


@dataclass(frozen=True, slots=True)
class Growth:
    """A straight line through a series, by what it rises from the first instant to the last."""

    size: float
    low: float  # its one-sided lower bound
    mean: float  # of the series

    def is_backlog(self, n_arrivals: float, *, clearly: bool = False) -> bool:
        """Whether requests that are due and not ended pile up, as behind no stable queue.

        Beyond chance, by more than 10 % of their mean, by more than twice what `n_arrivals` scatter
        by, and by more than three times what two instants far apart of a stable load without any
        queue differ by. `clearly` where it is 50 % of the mean and twice the scatter.
        """
        share, times = (0.5, 4) if clearly else (0.1, 2)
        scatter = max(times * math.sqrt(n_arrivals), 3 * math.sqrt(2 * self.mean))
        return self.low > 0 and self.size > share * self.mean and self.size > scatter

    def is_draining(self, n_arrivals: float) -> bool:
        """Whether an earlier backlog goes away, so that more is served than arrives.

        By the limits of a backlog but for the last, since the mean holds what goes away.
        """
        return self.falls and -self.size > 2 * math.sqrt(n_arrivals)

    @property
    def falls(self) -> bool:
        """Whether the series falls by more than 10 % of its mean, and not by a swing alone."""
        return self._fall.low > 0 and self._fall.size > 0.1 * self.mean

    @property
    def _fall(self) -> Growth:
        """The same line, seen as a fall."""
        return Growth(-self.size, self.low - 2 * self.size, self.mean)


def growth(batch_means: Sample, confidence: float = 0.99) -> Growth:
    """The growth of a series over its whole span, from the means of equally long batches of it.

    Batches as long as a few of the series' own swings are nearly independent, which single values
    behind a queue are not. NaN below three batches.
    """
    means = np.asarray(batch_means, dtype=np.float64)
    if means.size < 3:
        return Growth(math.nan, math.nan, float(means.mean()) if means.size else math.nan)
    from scipy.special import stdtrit

    places = (np.arange(means.size) + 0.5) / means.size - 0.5  # of each batch's middle, in spans
    spread = float(places @ places)
    size = float(places @ means) / spread
    left = means - means.mean() - size * places
    deviation = math.sqrt(float(left @ left) / (means.size - 2) / spread)
    low = size - float(stdtrit(means.size - 2, confidence)) * deviation
    return Growth(size, low, float(means.mean()))


def censored_quantile(ended: Sample, going_on: Sample, p: float) -> float:
    """The `p` quantile of durations of which some still go on; inf where that is not known yet.

    Kaplan and Meier's estimate: `going_on` holds how long each of those has lasted so far. The
    quantile of what has ended alone would be biased to the quick.
    """
    ended = np.sort(np.asarray(ended, dtype=np.float64))
    lasting = np.sort(np.asarray(going_on, dtype=np.float64))
    at_risk = ended.size - np.arange(ended.size) + lasting.size
    at_risk = at_risk - np.searchsorted(lasting, ended, side="left")
    surviving = np.cumprod(1 - 1 / at_risk)
    place = int(np.searchsorted(-surviving, p - 1 - _ROUNDING, side="left"))
    return float(ended[place]) if place < ended.size else math.inf


# --- probabilities -------------------------------------------------------------------------------


def _binomial_quantile(probability: float, n: int, p: float) -> int:
    """Smallest k with P(X <= k) >= probability, X successes in n trials of chance p."""
    from scipy.special import bdtr

    return bisect_left(range(n), probability, key=lambda k: float(bdtr(k, n, p)))


def _is_finite(ranks: tuple[int, int], n: int) -> bool:
    return ranks[0] >= 1 and ranks[1] <= n


def _check_probabilities(*probabilities: float) -> None:
    if not all(0 < probability < 1 for probability in probabilities):
        raise ValueError(f"{probabilities} are not fractions between 0 and 1")

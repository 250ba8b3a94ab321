"""Inter-token latencies of a stage, exactly, without holding them: they are read several times.

Knows gaps between chunks; no percentiles' meaning and no failures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fmgauge.metrics.requests import Flags, Floats, Requests, TokenChunks, served_chunks
from fmgauge.records import Batches
from fmgauge.statistics import Moments, OrderStatistics


class GapSample:
    """The ITL samples of measured successes that streamed: one per token after the first chunk.

    A chunk of k counted tokens gives k samples of its gap / k; an uncounted one its whole gap once.
    `see` is shown every piece of the stage once; `settle` reads on until the rest is known too.
    """

    def __init__(self) -> None:
        self.n = 0
        self._sums: list[float] = []
        self._ordered = OrderStatistics()
        self._ends: list[Floats] = []  # of each request its first gap and its last; NaN without any

    def see(self, requests: Requests, chunks: TokenChunks) -> None:
        """Take in the next piece of the stage."""
        gap_s, row = _gaps(chunks, requests.measured & requests.ok & requests.streamed)
        self.n += gap_s.size
        self._sums.append(float(gap_s.sum()))
        self._ordered.add(gap_s)
        self._ends.append(_ends(gap_s, row, len(requests)))

    def settle(
        self, batches: Batches, order: NDArray[np.intp], ranks: Iterable[int]
    ) -> tuple[Moments, OrderStatistics]:
        """The moments, in the order of sending `order`, and the order statistics of `ranks`."""
        wanted = {rank for rank in ranks if rank <= self.n}
        is_known = self._ordered.seek(wanted)
        moments = self._moments(batches, order, show_again=not is_known)
        while not is_known and not self._ordered.seek(wanted):
            for served, chunks in served_chunks(batches):
                self._ordered.add(_gaps(chunks, served)[0])
        return moments, self._ordered

    def _moments(self, batches: Batches, order: NDArray[np.intp], *, show_again: bool) -> Moments:
        if not self.n:
            return Moments(0, math.nan, 0.0, 0.0)
        mean = math.fsum(self._sums) / self.n
        squares, neighbours = [], [_across_requests(np.concatenate(self._ends)[order], mean)]
        for served, chunks in served_chunks(batches):
            gap_s, row = _gaps(chunks, served)
            if show_again:
                self._ordered.add(gap_s)
            deviations = gap_s - mean
            squares.append(float(deviations @ deviations))
            products = deviations[:-1] * deviations[1:]
            neighbours.append(float(products[row[:-1] == row[1:]].sum()))
        return Moments(self.n, mean, math.fsum(squares), math.fsum(neighbours))


def _gaps(chunks: TokenChunks, chosen: Flags) -> tuple[Floats, NDArray[np.intp]]:
    """The samples of the chosen requests, and which request each is of."""
    row = chunks.row
    later = np.flatnonzero((row[1:] == row[:-1]) & chosen[row[1:]]) + 1
    gap_s, row = chunks.at_s[later] - chunks.at_s[later - 1], row[later]
    if chunks.tokens is None:
        return gap_s, row
    tokens = np.nan_to_num(np.maximum(chunks.tokens[later], 1.0), nan=1.0).astype(np.int64)
    return np.repeat(gap_s / tokens, tokens), np.repeat(row, tokens)


def _ends(gap_s: Floats, row: NDArray[np.intp], n_requests: int) -> Floats:
    """First and last sample of each request, in two columns."""
    ends = np.full((n_requests, 2), math.nan)
    if gap_s.size:
        first = np.flatnonzero(np.diff(row, prepend=-1))
        last = np.append(first[1:], row.size) - 1
        ends[row[first]] = np.column_stack([gap_s[first], gap_s[last]])
    return ends


def _across_requests(ends: Floats, mean: float) -> float:
    """Products of one request's last deviation with the first of the next that has any."""
    deviations = ends[~np.isnan(ends[:, 0])] - mean
    return float(deviations[:-1, 1] @ deviations[1:, 0])

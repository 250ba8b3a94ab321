"""Latency columns: means over successes, percentiles in which every failure is infinitely slow.

Knows which latencies a load's headline is made of; no rates, prices or budgets.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fmgauge.metrics.columns import (
    FROM_INTENDED,
    METRIC_COLUMNS,
    PERCENTILES,
    STATISTICS,
    Value,
    with_interval,
)
from fmgauge.metrics.gaps import GapSample
from fmgauge.metrics.requests import Floats, Requests
from fmgauge.records import Batches
from fmgauge.statistics import (
    Moments,
    ValueAt,
    in_order,
    interval_of_mean,
    moments,
    percentile_with_interval,
    ranks_needed,
)


def latencies(
    measured: Requests, itl: dict[str, Value], *, from_intended: bool
) -> dict[str, Value]:
    """Every latency column of a stage, from its measured requests in sending order.

    `itl` are the columns of ITL. `from_intended` says which end-to-end latency is the headline,
    `latency_*`: in open loop that from the instant at which the schedule wanted to send.
    """
    ok = measured[measured.ok]
    n_failed = len(measured) - len(ok)
    found: dict[str, Value] = {}
    for name in ("ttft_s", "tpot_s", "e2e_latency_s"):
        found |= _statistics(name, getattr(ok, name), n_failed)
    for name in FROM_INTENDED:
        values = getattr(ok, name)
        found |= _statistics(name, values, n_failed) if from_intended else _empty(name)
    send_delay = _statistics("send_delay_s", measured.send_delay_s, 0)
    headline = f"e2e_latency_s{'_from_intended' if from_intended else ''}"
    return {
        **found,
        **itl,
        **{
            name.replace(headline, "latency"): found[name]
            for statistic in STATISTICS
            for name in with_interval(f"{headline}_{statistic}")
        },
        **{name: value for name, value in send_delay.items() if name in METRIC_COLUMNS},
    }


def itl_columns(
    gaps: GapSample, batches: Batches, order: NDArray[np.intp], measured: Requests
) -> dict[str, Value]:
    """The columns of ITL; a failure stands for as many samples as a success has on average."""
    n_ok = int(measured.ok.sum())
    n_failed = len(measured) - n_ok
    failed_gaps = math.ceil(n_failed * max(gaps.n / n_ok, 1.0)) if n_ok else n_failed
    n = gaps.n + failed_gaps
    ranks = {rank for p in PERCENTILES.values() for rank in ranks_needed(n, p)}
    found, ordered = gaps.settle(batches, order, ranks)
    return _columns("itl_s", found, _failures_last(ordered.value_at, gaps.n), n)


def _statistics(name: str, values: Floats, n_failed: int) -> dict[str, Value]:
    defined = values[~np.isnan(values)]
    value_at = _failures_last(in_order(defined), defined.size)
    return _columns(name, moments(defined), value_at, defined.size + n_failed)


def _failures_last(value_at: ValueAt, n_finite: int) -> ValueAt:
    """Order statistics of a sample to which failures were added, each as +inf."""
    return lambda rank: value_at(rank) if rank <= n_finite else math.inf


def _columns(name: str, found: Moments, value_at: ValueAt, n: int) -> dict[str, Value]:
    """Mean and percentiles with intervals; no duration is below 0, so neither is a lower end."""
    low, high = interval_of_mean(found)
    triples = {"mean": (found.mean, float(np.maximum(low, 0.0)), high)}
    triples |= {label: percentile_with_interval(value_at, n, p) for label, p in PERCENTILES.items()}
    return {
        column: value
        for label, triple in triples.items()
        for column, value in zip(with_interval(f"{name}_{label}"), triple, strict=True)
    }


def _empty(name: str) -> dict[str, Value]:
    return {
        column: math.nan
        for statistic in STATISTICS
        for column in with_interval(f"{name}_{statistic}")
    }

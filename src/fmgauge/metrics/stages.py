"""One stage's records to its row of metrics, read some at a time. Pure, but for that reading."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fmgauge.metrics.client import client_columns
from fmgauge.metrics.columns import FAILURES, Value, ratio
from fmgauge.metrics.gaps import GapSample
from fmgauge.metrics.latencies import itl_columns, latencies
from fmgauge.metrics.prices import prices
from fmgauge.metrics.rates import (
    StreamedTokens,
    mean_paused,
    outstanding,
    window_rates,
    within_limits,
)
from fmgauge.metrics.requests import STATUSES, Floats, Requests, read_requests, sending_order
from fmgauge.pricing import Price
from fmgauge.records import Batches, StageInfo

if TYPE_CHECKING:
    from fmgauge.config.model import Budgets


def stage_summary(
    info: StageInfo,
    batches: Batches,
    price: Price,
    budgets: Budgets,
    *,
    holds_level: bool = True,
) -> dict[str, Value]:
    """Every measured column of one stage that was run, from its records of all phases.

    `holds_level` says whether the load was to keep the stage's concurrency in flight throughout
    the window, as a closed loop without think time does.
    """
    is_open = info.kind == "open_loop"
    window_s = (info.window_start_s, info.window_end_s)
    tokens, gaps = StreamedTokens(window_s), GapSample()
    requests = read_requests(batches, tokens.see, gaps.see)
    order = sending_order(requests)
    good = within_limits(requests, budgets, from_intended=is_open)
    rates = window_rates(requests, tokens.in_window, window_s, good)
    measured = requests[order[requests.measured[order]]]
    itl = itl_columns(gaps, batches, order, measured)
    latency = latencies(measured, itl, from_intended=is_open)
    client = client_columns(
        info,
        measured,
        budgets,
        mean_in_flight=rates["mean_in_flight"],
        mean_paused=mean_paused(requests, window_s),
        holds_level=holds_level,
    )
    return {
        "status": "ok",
        "duration_s": info.window_end_s - info.window_start_s,
        "warmup_s": info.window_start_s,
        "warmup_end": info.warmup_end or "",
        "window_end": info.window_end or "",
        "n_unsent": info.n_unsent,
        **rates,
        **outstanding(requests, window_s, is_steady_load=is_open and info.arrivals != "ramp"),
        **_outcomes(measured),
        **_token_counts(measured),
        **latency,
        **client,
        **prices(price, rates, measured, latency, holds_level=holds_level and not is_open),
    }


def _outcomes(measured: Requests) -> dict[str, Value]:
    n, n_ok = len(measured), int(measured.ok.sum())
    by_status = np.bincount(measured.status, minlength=len(STATUSES))
    return {
        "n_requests": n,
        "n_ok": n_ok,
        "n_failed": n - n_ok,
        "error_rate": ratio(n - n_ok, n),
        **{f"n_{status}": int(by_status[STATUSES.index(status)]) for status in FAILURES},
        "n_resent": int(measured.resent.sum()),
    }


def _token_counts(measured: Requests) -> dict[str, Value]:
    ok = measured[measured.ok]
    told = {"server": ok.counted_by_server.any(), "tokenizer": (~ok.counted_by_server).any()}
    return {
        "prompt_token_count_mean": _mean(ok.prompt_tokens),
        "completion_token_count_mean": _mean(ok.output_tokens),
        "n_doubtful_counts": int(ok.doubtful.sum()),
        "n_unstreamed": int(ok.unstreamed.sum()),
        "output_limit_share": _mean(ok.hit_limit.astype(np.float64)),
        "token_source": "+".join(source for source, is_used in told.items() if is_used) or "none",
    }


def _mean(values: Floats) -> float:
    """The mean of what is known."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan

"""What a stage's window held, per second. Knows shares of a request's time; no latencies."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from fmgauge.metrics.columns import ratio
from fmgauge.metrics.requests import Flags, Floats, Requests, TokenChunks
from fmgauge.records import PAUSE_AFTER_REFUSAL_S, REFUSALS
from fmgauge.statistics import GROWTH_BATCHES, growth

if TYPE_CHECKING:
    from fmgauge.config.model import Budgets

Window = tuple[float, float]
_TIMER_S = 0.002  # by which a pause may be longer than it was to be


class StreamedTokens:
    """Output tokens of ok requests that streamed, by the instants at which they arrived."""

    def __init__(self, window_s: Window) -> None:
        self._window_s = window_s
        self._sums: list[float] = []

    def see(self, requests: Requests, chunks: TokenChunks) -> None:
        """Count the next piece of the stage.

        Where chunks' own tokens are not counted, the request's are spread over them evenly.
        """
        tokens = (requests.output_tokens / np.maximum(chunks.n_chunks, 1))[chunks.row]
        if chunks.tokens is not None:
            tokens = np.where(np.isnan(chunks.tokens), tokens, chunks.tokens)
        inside = (chunks.at_s >= self._window_s[0]) & (chunks.at_s < self._window_s[1])
        streamed = (requests.ok & requests.streamed)[chunks.row]
        self._sums.append(float(tokens[inside & streamed].sum()))

    @property
    def in_window(self) -> float:
        """Tokens in the window; NaN where an answer's tokens were never counted."""
        return math.fsum(self._sums)


def window_share(start_s: Floats, end_s: Floats, window_s: Window) -> Floats:
    """The share of each [start, end] that lies in the window; an instant lies in it or not."""
    w0, w1 = window_s
    overlap_s = np.clip(np.minimum(end_s, w1) - np.maximum(start_s, w0), 0.0, None)
    length_s = end_s - start_s
    instant = (start_s >= w0) & (start_s < w1)
    return np.where(length_s > 0, overlap_s / np.where(length_s > 0, length_s, 1.0), instant)


def window_rates(
    requests: Requests, streamed_tokens: float, window_s: Window, good: Flags
) -> dict[str, float]:
    """What the window held, per second, from every request that overlaps it, of any phase.

    A request counts by the share of its life that lies in the window, so neither end of the
    window favours short requests or long ones. Only ok requests carry throughput, and of those
    only the `good` ones, within every latency limit, goodput.
    """
    length_s, ok = window_s[1] - window_s[0], requests.ok
    share = window_share(requests.start_s, requests.end_s, window_s)
    whole = _weighted_sum(requests.output_tokens, share, ok & ~requests.streamed)
    served_per_s = ratio(float(share[ok].sum()), length_s)
    return {
        "request_rate": served_per_s,
        "transactions_per_minute": 60 * served_per_s,
        "goodput_per_min": 60 * ratio(float(share[ok & good].sum()), length_s),
        "prompt_token_throughput": ratio(
            _weighted_sum(requests.prompt_tokens, share, ok), length_s
        ),
        "completion_token_throughput": ratio(streamed_tokens + whole, length_s),
        "mean_in_flight": ratio(_in_flight_s(requests, window_s), length_s),
        "in_flight_max": in_flight_max(requests, window_s),
    }


def _in_flight_s(requests: Requests, window_s: Window) -> float:
    """Seconds of the window that requests of every status were under way, added up."""
    start_s, finished_s = requests.start_s, requests.finished_s
    share = window_share(start_s, finished_s, window_s)
    return float((share * (finished_s - start_s)).sum())


def outstanding(requests: Requests, window_s: Window, *, is_steady_load: bool) -> dict[str, float]:
    """How many requests were due and not ended, on average, and by how much that grew.

    From the intended instant on, so that what waits for a free place counts. Growth is that of the
    window's batch means; NaN where the load itself is no constant rate.
    """
    edges_s = np.linspace(*window_s, GROWTH_BATCHES + 1)
    begun_s, ended_s = requests.intended_s, requests.finished_s
    length_s = ended_s - begun_s
    seconds = [
        float((window_share(begun_s, ended_s, (begin, end)) * length_s).sum())
        for begin, end in itertools.pairwise(edges_s.tolist())
    ]
    means = [ratio(one, (window_s[1] - window_s[0]) / GROWTH_BATCHES) for one in seconds]
    line = growth(means)
    return {
        "outstanding_mean": line.mean,
        "outstanding_growth": line.size if is_steady_load else math.nan,
        "outstanding_growth_ci_low": line.low if is_steady_load else math.nan,
    }


def mean_paused(requests: Requests, window_s: Window) -> float:
    """How many places of a closed loop stood empty on average, each for a while after a refusal."""
    refused = np.isnan(requests.sent_s) | np.isin(requests.http_status, list(REFUSALS))
    pause_s = PAUSE_AFTER_REFUSAL_S + _TIMER_S
    free_s = requests.finished_s[refused]
    share = window_share(free_s, free_s + pause_s, window_s)
    return ratio(float(share.sum()) * pause_s, window_s[1] - window_s[0])


def in_flight_max(requests: Requests, window_s: Window) -> float:
    """Most requests of every status that were under way at one instant of the window.

    One that ends at the instant at which another starts has left its place by then.
    """
    n = len(requests)
    at_s = np.concatenate([requests.finished_s, requests.start_s])
    step = np.repeat(np.array([-1, 1]), n)
    order = np.argsort(at_s, kind="stable")  # of equal instants, ends come first
    in_flight = np.concatenate([[0], np.cumsum(step[order])])
    begin, end = np.searchsorted(at_s[order], window_s, side="left")
    return float(in_flight[begin : end + 1].max())


def _weighted_sum(values: Floats, share: Floats, chosen: Flags) -> float:
    """Sum over the chosen requests that overlap the window; NaN where one was never counted."""
    overlapping = chosen & (share > 0)
    return float((values * share)[overlapping].sum())


def within_limits(requests: Requests, budgets: Budgets, *, from_intended: bool) -> Flags:
    """Which requests are themselves within every latency limit, whatever statistic it binds.

    Latency and TTFT count from the intended instant in open loop. A TPOT of one token breaks no
    limit; tokens that all came at once, or no token's instant, cannot be shown to keep one.
    """
    within = np.ones(len(requests), dtype=bool)
    latency_s, ttft_s = requests.e2e_latency_s, requests.ttft_s
    if from_intended:
        latency_s, ttft_s = requests.e2e_latency_s_from_intended, requests.ttft_s_from_intended
    tpot_s = np.where(requests.unstreamed, math.inf, np.nan_to_num(requests.tpot_s, nan=0.0))
    families = ((budgets.latency_s, latency_s), (budgets.ttft_s, ttft_s), (budgets.tpot_s, tpot_s))
    for limits, own in families:
        given = [limit for limit in limits.model_dump().values() if limit] if limits else []
        if given:
            within &= own <= min(given)
    return within

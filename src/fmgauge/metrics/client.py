"""Whether the client held the load that was asked of it, and why not. Knows limits, no verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fmgauge.metrics.columns import Value, ratio
from fmgauge.metrics.requests import Requests
from fmgauge.records import StageInfo

if TYPE_CHECKING:
    from fmgauge.config.model import Budgets

# What a client may cost before a stage says so; docs/metrics.md gives the reasons. A send that is
# late by less than a tenth of the time to first token that is allowed changes no verdict.
MOST_SEND_DELAY_S = 0.010  # at the 99th percentile, or
MOST_DELAY_OF_TTFT_LIMIT = 0.10  # of the tightest limit on TTFT, where that is more
LATE_SHARE = 0.01  # of the requests, sent late or never: beyond the 99th percentile
MOST_LOOP_LAG_S = 0.005  # at the 99th percentile
MOST_CPU_SHARE = 0.9  # of one core
LEAST_HELD = 0.99  # of a closed loop's concurrency, on average


def client_columns(
    info: StageInfo,
    measured: Requests,
    budgets: Budgets,
    *,
    mean_in_flight: float,
    mean_paused: float,
    holds_level: bool,
) -> dict[str, Value]:
    """What the client had to do, whether its schedule was kept, and where it was the bottleneck."""
    asked = (info.request_rate or math.nan) * (info.window_end_s - info.window_start_s)
    use = info.client
    ttft_s = _tightest_ttft_s(budgets)
    reasons = [
        *_late_sends(info, measured, max(MOST_SEND_DELAY_S, MOST_DELAY_OF_TTFT_LIMIT * ttft_s)),
        *_overload(info, max(MOST_LOOP_LAG_S, MOST_DELAY_OF_TTFT_LIMIT * ttft_s)),
    ]
    if holds_level:
        reasons += _slack(info, mean_in_flight, mean_paused)
    return {
        "achieved_rate_ratio": ratio(len(measured), asked),
        "held_back": info.held_back,
        "client_cpu_share": use.cpu_share if use else math.nan,
        "loop_lag_s_p99": use.loop_lag_p99_s if use else math.nan,
        "loop_lag_s_max": use.loop_lag_max_s if use else math.nan,
        "client_limited": "; ".join(reasons),
    }


def _tightest_ttft_s(budgets: Budgets) -> float:
    """The tightest limit on TTFT; 0 without one."""
    limits = budgets.ttft_s.model_dump().values() if budgets.ttft_s else ()
    return min((limit for limit in limits if limit is not None), default=0.0)


def _late_sends(info: StageInfo, measured: Requests, most_s: float) -> Iterator[str]:
    """Whether more than one in a hundred was sent late or never, as a 99th percentile would say."""
    late = measured.own_delay_s > most_s  # a limit in flight was asked for
    n_late, n_unsent = int(late.sum()), info.n_unsent
    n = int(np.isfinite(measured.sent_s).sum()) + n_unsent
    if n_late + n_unsent <= LATE_SHARE * n:
        return
    if n_late:
        n_connecting = int((late & (measured.connected_s > measured.intended_s)).sum())
        because = f" ({n_connecting:,} of them waited for a connection)" if n_connecting else ""
        late_by = f"more than {_milliseconds(most_s)} late"
        yield f"{n_late:,} of {n:,} requests were sent {late_by}{because}"
    if n_unsent:
        unsent = f"{n_unsent:,} of {n:,} requests were never sent, because the client was too slow"
        yield f"{unsent}{_achieved(info, int((measured.sent_s < info.window_end_s).sum()))}"


def _achieved(info: StageInfo, n_sent: int) -> str:
    """The rate of sending in the window instead of the one that was asked for, if one was."""
    length_s = info.window_end_s - info.window_start_s
    if not info.request_rate or not length_s:
        return ""
    return f": it achieved {_rate(n_sent / length_s)} of {_rate(info.request_rate)} requests/s"


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def _overload(info: StageInfo, most_lag_s: float) -> Iterator[str]:
    if info.client is None:
        return
    lag_s, cpu_share = info.client.loop_lag_p99_s, info.client.cpu_share
    if lag_s > most_lag_s:
        yield f"the client's event loop was late by {_milliseconds(lag_s)} at the 99th percentile"
    if cpu_share > MOST_CPU_SHARE:
        yield f"the client used {100 * cpu_share:.0f} % of a core"
    if info.client.ran_out_of:
        yield f"the client ran out of {info.client.ran_out_of}"


def _slack(info: StageInfo, mean_in_flight: float, mean_paused: float) -> Iterator[str]:
    """Whether places stood empty that no refusal had emptied on purpose."""
    held = mean_in_flight + mean_paused
    if info.concurrency is not None and held < LEAST_HELD * info.concurrency:
        on_average = f"{mean_in_flight:.4g} requests were in flight on average"
        yield f"{on_average} instead of {info.concurrency}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"

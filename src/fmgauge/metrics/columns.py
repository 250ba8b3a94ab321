"""The columns of metrics.csv: their names, order and types. docs/metrics.md says what they mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

from fmgauge.records import Status

if TYPE_CHECKING:
    import pandas as pd

Value = str | int | float | None  # None: no such count, of a whole number that may be missing

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", *PERCENTILES)
LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_latency_s")
FROM_INTENDED = ("ttft_s_from_intended", "e2e_latency_s_from_intended")  # of open loops alone
FAILURES = tuple(status for status in get_args(Status) if status != "ok")
NO_RECORDS = "not run: no records"  # of a stage that nothing kept from being run: its turn to come
PER_TOKEN = "per-token"  # stands for the instance type where tokens are priced

SEED_COLUMNS = (
    "experiment_name",
    "payload_file",
    "instance_type",
    "instance_count",
    "concurrency",
    "error_rate",
    "prompt_token_count_mean",
    "prompt_token_throughput",
    "completion_token_count_mean",
    "completion_token_throughput",
    "latency_mean",
    "latency_p50",
    "latency_p95",
    "latency_p99",
    "transactions_per_minute",
    "price_per_txn",
)
COUNTS = (
    *("n_requests", "n_ok", "n_failed", *(f"n_{status}" for status in FAILURES)),
    *("n_resent", "n_doubtful_counts", "n_unstreamed", "held_back", "n_unsent"),
)
CLIENT_COLUMNS = (
    *("in_flight_max", "achieved_rate_ratio", "held_back", "n_unsent"),
    *("client_cpu_share", "loop_lag_s_p99", "loop_lag_s_max", "client_limited"),
)
STEADY_COLUMNS = (
    *("warmup_s", "warmup_end", "window_end"),
    *("outstanding_mean", "outstanding_growth", "outstanding_growth_ci_low"),
)
_TEXT_COLUMNS = {
    *("experiment_name", "payload_file", "instance_type", "workload", "stage"),
    *("warmup_end", "window_end"),
    *("model", "endpoint_kind", "kind", "arrivals", "status", "token_source", "client_limited"),
}


def with_interval(name: str) -> tuple[str, str, str]:
    """A figure's column and those of its interval's ends."""
    return name, f"{name}_ci_low", f"{name}_ci_high"


PRICE_COLUMNS = (
    *with_interval("price_per_txn"),
    *with_interval("usd_per_10k_txn"),
    *("usd_per_1m_output_tokens", "usd_per_1m_total_tokens"),
)


def _columns() -> tuple[str, ...]:
    """Every column of metrics.csv in order, the seed's first."""
    families = [f"{f}_{s}" for f in (*LATENCIES, *FROM_INTENDED) for s in STATISTICS]
    headline = [column for s in STATISTICS for column in with_interval(f"latency_{s}")]
    columns = (
        *SEED_COLUMNS,
        *("workload", "stage", "model", "endpoint_kind", "kind", "arrivals", "request_rate_asked"),
        *("status", "duration_s", "request_rate", "goodput_per_min", "mean_in_flight"),
        *STEADY_COLUMNS,
        *(name for name in COUNTS if name not in CLIENT_COLUMNS),
        *PRICE_COLUMNS,
        *headline,
        *(column for name in families for column in with_interval(name)),
        *(f"send_delay_s_{statistic}" for statistic in STATISTICS),
        *CLIENT_COLUMNS,
        *("output_limit_share", "token_source"),
    )
    return tuple(dict.fromkeys(columns))


METRIC_COLUMNS = _columns()


def metrics_frame(rows: list[dict[str, Value]]) -> pd.DataFrame:
    """Rows as the metrics table: every column, in order, in its type; empty where a row has none.

    Empty is NaN; <NA> for the concurrency, which an open loop does not have; "" for what is said
    of arrivals, of the client and of how warm-up and window ended.
    """
    import pandas as pd

    texts = dict.fromkeys(("arrivals", "client_limited", "warmup_end", "window_end"), "")
    frame = pd.DataFrame([{**texts, **row} for row in rows], columns=list(METRIC_COLUMNS))
    whole = {name: "int64" for name in ("instance_count", *COUNTS)}
    maybe = {"concurrency": "Int64"}
    others = _TEXT_COLUMNS | whole.keys() | maybe.keys()
    real = {name: "float64" for name in METRIC_COLUMNS if name not in others}
    return frame.astype({**whole, **maybe, **real})


def ratio(part: float, whole: float) -> float:
    """`part` / `whole`; NaN where `whole` is 0, for then there is nothing to divide among."""
    return part / whole if whole != 0 else math.nan

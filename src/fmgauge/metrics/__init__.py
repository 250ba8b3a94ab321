"""Request records to one row per stage. Pure functions of records.

Knows what every column of metrics.csv means (docs/metrics.md says it in words); knows no clocks,
endpoints or budgets' verdicts. A latency runs from the instant a request was sent, and in open loop
also from the instant at which the schedule wanted to send it.
"""

from fmgauge.metrics.columns import (
    FAILURES,
    METRIC_COLUMNS,
    NO_RECORDS,
    PER_TOKEN,
    PERCENTILES,
    SEED_COLUMNS,
    STATISTICS,
    metrics_frame,
)
from fmgauge.metrics.rates import window_share
from fmgauge.metrics.requests import request_table
from fmgauge.metrics.stages import stage_summary
from fmgauge.metrics.tables import (
    compute_metrics,
    experiment_costs,
    read_metrics,
    write_metrics,
)

__all__ = [
    "FAILURES",
    "METRIC_COLUMNS",
    "NO_RECORDS",
    "PERCENTILES",
    "PER_TOKEN",
    "SEED_COLUMNS",
    "STATISTICS",
    "compute_metrics",
    "experiment_costs",
    "metrics_frame",
    "read_metrics",
    "request_table",
    "stage_summary",
    "window_share",
    "write_metrics",
]

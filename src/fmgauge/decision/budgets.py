"""The limits that a config sets, and the columns that they bind. Knows no figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fmgauge.config import Config
from fmgauge.config.model import Limits


@dataclass(frozen=True)
class Budget:
    """One upper limit: the metric's column, the words and the unit that a report uses for it."""

    metric: str  # column of the metrics table, such as latency_mean or ttft_s_p95
    label: str  # such as "Latency" or "TTFT p95"
    limit: float
    unit: Literal["s", "usd", ""]


def budgets_of(config: Config) -> tuple[Budget, ...]:
    """The limits that `config` binds, in the order in which they are reported."""
    given = config.budgets
    latencies = (
        *_latency_budgets("Latency", "latency", given.latency_s),
        *_latency_budgets("TTFT", "ttft_s", given.ttft_s),
        *_latency_budgets("TPOT", "tpot_s", given.tpot_s),
    )
    label, limit = "cost per 10k transactions", given.usd_per_10k_txn
    cost = (Budget("usd_per_10k_txn", label, limit, "usd"),) if limit is not None else ()
    return (*latencies, *cost, Budget("error_rate", "error rate", given.error_rate, ""))


def _latency_budgets(words: str, column: str, limits: Limits | None) -> list[Budget]:
    given: dict[str, float | None] = limits.model_dump() if limits else {}
    return [
        Budget(f"{column}_{name}", words if name == "mean" else f"{words} {name}", limit, "s")
        for name, limit in given.items()
        if limit is not None
    ]


def column_of(metric: str, row: Mapping[str, Any]) -> str:
    """The column in which a stage holds what a budget calls `metric`.

    In open loop a TTFT counts from the instant at which the request was to be sent, as `latency`
    does there by itself: a wait that the endpoint caused is part of what it made users wait.
    """
    if row["kind"] != "open_loop":
        return metric
    return re.sub("^ttft_s_", "ttft_s_from_intended_", metric)

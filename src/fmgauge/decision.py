"""Which stage to buy: budgets against metrics, and the cheapest stage that meets them all.

Knows budgets and prices per transaction; knows no files, plots or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "FAIL", "UNDECIDED"]


@dataclass(frozen=True)
class Budget:
    """One upper limit: the metric's column, the words and the unit that a report uses for it."""

    metric: str  # column of the metrics table, such as latency_mean or ttft_s_p95
    label: str  # such as "Latency" or "TTFT p95"
    limit: float
    unit: Literal["s", "usd", ""]


@dataclass(frozen=True)
class BudgetCheck:
    """One budget held against one stage; `value` is None where it could not be measured."""

    metric: str
    value: float | None
    limit: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class StageVerdict:
    """One stage against every budget; it meets them when every check passes."""

    experiment: str
    workload: str
    stage: str
    concurrency: int
    instance_type: str
    price_per_txn: float | None
    meets_budgets: bool
    checks: tuple[BudgetCheck, ...]


@dataclass(frozen=True)
class Recommendation:
    """The answer for one workload, overall or on one instance type.

    Where no stage meets every budget, `chosen` is None and `closest` is the stage that came
    closest, with the reason in words.
    """

    workload: str
    instance_type: str | None  # None: over all instance types
    chosen: StageVerdict | None
    closest: StageVerdict | None
    reason: str


@dataclass(frozen=True)
class Decision:
    """Verdicts on every stage and the recommendation for every workload."""

    workload_of_interest: str
    budgets: tuple[Budget, ...]
    stages: tuple[StageVerdict, ...]
    recommendations: tuple[Recommendation, ...]  # one per workload, in the config's order
    per_instance: tuple[Recommendation, ...]  # one per workload and instance type

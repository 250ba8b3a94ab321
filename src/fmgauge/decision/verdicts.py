"""One stage held against every budget, and the order in which stages are preferred.

Knows budgets, prices per transaction and caveats; recommends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fmgauge.config.stages import load_label
from fmgauge.decision.amounts import amounts_apart, excess
from fmgauge.decision.budgets import Budget, column_of
from fmgauge.decision.caveats import Caveat, caveats_of
from fmgauge.metrics import NO_RECORDS, PER_TOKEN, PERCENTILES
from fmgauge.records import StageKey
from fmgauge.statistics import samples_needed

Row = dict[str, Any]  # one stage's metrics by column
Verdict = Literal["PASS", "FAIL", "UNDECIDED"]


@dataclass(frozen=True)
class BudgetCheck:
    """One budget held against one stage; `value` is None where it could not be measured."""

    metric: str  # as the budget names it
    column: str  # of the metrics table, where the value stands
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
    concurrency: int | None  # None in open loop
    request_rate: float | None  # mean arrivals per second asked for; None in closed loop
    arrivals: str | None
    instance_type: str
    price_per_txn: float | None
    meets_budgets: bool
    checks: tuple[BudgetCheck, ...]
    think_time_s: float = 0.0  # that each user of a closed loop pauses before the next question
    caveats: tuple[Caveat, ...] = ()
    latency_mean_s: float | None = None

    @property
    def label(self) -> str:
        """The load level in words, such as 4 in flight or 2 requests/s."""
        return load_label(self.concurrency, self.request_rate, self.arrivals, self.think_time_s)

    @property
    def name(self) -> str:
        """The stage in words."""
        return f"{self.experiment} on {self.instance_type} at {self.label}"

    @property
    def is_ramp(self) -> bool:
        """Whether its load rose or fell all along, so that it is no level to recommend."""
        return self.arrivals == "ramp"

    @property
    def is_valid(self) -> bool:
        """Whether no caveat forbids a choice by its figures."""
        return not self.invalid_because

    @property
    def invalid_because(self) -> tuple[Caveat, ...]:
        """The caveats that forbid a choice by its figures."""
        return tuple(caveat for caveat in self.caveats if caveat.is_invalid)

    @property
    def has_figures(self) -> bool:
        """Whether a request was measured; then the share that failed, always a budget, is known.

        A price alone is no sign of it: warm-up requests that end in the window make one.
        """
        return any(
            check.metric == "error_rate" and check.value is not None for check in self.checks
        )

    @property
    def is_eligible(self) -> bool:
        """Whether it can be recommended: a valid level within every budget, at a known price."""
        return self.meets_budgets and self.is_valid and self.has_price and not self.is_ramp

    @property
    def has_price(self) -> bool:
        """Whether the price of a transaction is known."""
        return self.price_per_txn is not None

    @property
    def _line(self) -> tuple[object, ...]:
        """What stages that differ in nothing but their level have in common."""
        return self.experiment, self.workload, self.arrivals, self.think_time_s

    @property
    def _level(self) -> float:
        return float(self.concurrency or self.request_rate or 0)

    def is_highest_of(self, stages: Iterable[StageVerdict]) -> bool:
        """Whether none of `stages` put its experiment under more load of the same kind."""
        return self._level == max(one._level for one in stages if one._line == self._line)

    def could_be_cheaper(self, stages: Iterable[StageVerdict]) -> bool:
        """Whether it is the edge of what was tried: an hour's price is shared by more requests.

        Only of a stage that could be chosen; a price per token does not fall with the load.
        """
        return self.instance_type != PER_TOKEN and self.is_eligible and self.is_highest_of(stages)


def standing(stage: StageVerdict) -> tuple[float, ...]:
    """Where a stage stands among others, as a key that sorts the preferred one first.

    What has figures comes before what has none, a level before a ramp, and a valid stage before
    one that is not. Then the budgets count: fewest failed, fewest undecided, smallest excess over
    a limit. Stages within every budget are alike there, and go by price, then by mean latency.
    """
    verdicts = [check.verdict for check in stage.checks]
    excesses = () if stage.meets_budgets else map(_overshoot, stage.checks)
    return (
        not stage.has_figures,
        stage.is_ramp,
        not stage.is_valid,
        verdicts.count("FAIL"),
        verdicts.count("UNDECIDED"),
        max(excesses, default=0.0),
        math.inf if stage.price_per_txn is None else stage.price_per_txn,
        math.inf if stage.latency_mean_s is None else stage.latency_mean_s,
    )


def _overshoot(check: BudgetCheck) -> float:
    """How often the limit goes into the value; 0 where undecided, infinite where nothing is known.

    Over a limit of 0 no ratio exists: there a value of 0.02 counts as 1.02.
    """
    if check.value is None:
        return 0.0 if check.verdict == "UNDECIDED" else math.inf
    return check.value / check.limit if check.limit > 0 else 1 + check.value


# --- one row of the metrics table ----------------------------------------------------------------


def stage_verdict(
    row: Row, budgets: Sequence[Budget], pauses: Mapping[StageKey, float]
) -> StageVerdict:
    """The verdict on the stage whose metrics are `row`; `pauses` are the think times by stage."""
    checks = tuple(_check(budget, row) for budget in budgets)
    is_open = row["kind"] == "open_loop"
    return StageVerdict(
        experiment=row["experiment_name"],
        workload=row["workload"],
        stage=row["stage"],
        concurrency=None if is_open else int(row["concurrency"]),
        request_rate=float(row["request_rate_asked"]) if is_open else None,
        arrivals=row["arrivals"] if is_open else None,
        instance_type=row["instance_type"],
        price_per_txn=_finite(row["price_per_txn"]),
        meets_budgets=all(check.verdict == "PASS" for check in checks),
        checks=checks,
        think_time_s=pauses.get(
            StageKey(row["experiment_name"], row["workload"], row["stage"]), 0.0
        ),
        caveats=caveats_of(row),
        latency_mean_s=_finite(row["latency_mean"]),
    )


def _check(budget: Budget, row: Row) -> BudgetCheck:
    column = column_of(budget.metric, row)
    raw = float(row[column])
    verdict, reason = _judged(budget, raw, row)
    return BudgetCheck(budget.metric, column, _finite(raw), budget.limit, verdict, reason)


def _judged(budget: Budget, value: float, row: Row) -> tuple[Verdict, str]:
    """The verdict on one budget, and why. A stage whose every request failed meets none at all."""
    if row["n_ok"] == 0:
        unmeasured = row["status"] in ("ok", NO_RECORDS) and row["n_requests"] == 0
        return "UNDECIDED" if unmeasured else "FAIL", why_no_success(row)
    if math.isinf(value):
        failed = f"{row['n_failed']} of {row['n_requests']} requests failed"
        return "FAIL", f"{budget.label} falls on a failed request: {failed}"
    if math.isnan(value):
        return "UNDECIDED", _why_unmeasured(budget, row)
    shown, limit = amounts_apart(value, budget.limit, budget.unit)
    if value <= budget.limit:
        return "PASS", f"{budget.label} {shown} is within {limit}"
    return "FAIL", f"{budget.label} {shown} is above {limit}{excess(value, budget.limit)}"


def why_no_success(row: Row) -> str:
    """Why a stage has no successful request."""
    if row["status"] != "ok":
        return str(row["status"])
    if row["n_requests"] == 0:
        return "no request was measured"
    return f"no request succeeded: {row['n_requests']} of {row['n_requests']} failed"


def _why_unmeasured(budget: Budget, row: Row) -> str:
    """Why a stage with successes has no figure: too few requests, or none that defines it."""
    if budget.unit == "usd":
        return f"{budget.label} is unknown: {why_no_price(row)}"
    family, _, statistic = column_of(budget.metric, row).rpartition("_")
    p = PERCENTILES.get(statistic)
    needed = samples_needed(p) if p else 1
    if row["n_requests"] < needed and not math.isnan(row[f"{family}_mean"]):
        return f"{budget.label} needs ≥ {needed} requests, has {row['n_requests']}"
    undefined = f"{budget.label} is not defined for enough of the {row['n_requests']} requests"
    n_unstreamed = row.get("n_unstreamed", 0)
    if family == "tpot_s" and n_unstreamed:
        return f"{undefined}: of {row['n_ok']} answers {n_unstreamed} came all at once"
    return undefined


def why_no_price(row: Row) -> str:
    """Why a stage with successes has no price."""
    if row["instance_type"] == PER_TOKEN:
        return "tokens were not counted"
    if row["duration_s"] == 0:
        return "the window has no length, as where it held a single request"
    return "no successful request was under way in the window"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

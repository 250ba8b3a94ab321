"""Which stage to buy: budgets against metrics, and the cheapest stage that meets them all.

Knows budgets and prices per transaction; knows no plots, clocks or endpoints. A Decision holds no
NaN and no infinity: what could not be measured is None, with the reason in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import TypeAdapter

from fmgauge.config import Config
from fmgauge.config.model import Limits
from fmgauge.config.stages import load_label, think_times
from fmgauge.metrics import NO_RECORDS, PER_TOKEN, PERCENTILES
from fmgauge.records import StageKey, write_atomically
from fmgauge.statistics import samples_needed

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]  # one stage's metrics by column
Verdict = Literal["PASS", "FAIL", "UNDECIDED"]

_KEPT_UP = 0.9  # of the rate sent in a window that must be served in it, lest a stage fell behind
_MOST_CUT = 2.0  # requests by which a window's ends may cut a stage that kept up


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

    @property
    def label(self) -> str:
        """The load level in words, such as 4 in flight or 2 requests/s."""
        return load_label(self.concurrency, self.request_rate, self.arrivals, self.think_time_s)

    @property
    def is_ramp(self) -> bool:
        """Whether its load rose or fell all along, so that it is no level to recommend."""
        return self.arrivals == "ramp"

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

        Only of a stage that meets every budget; a price per token does not fall with the load.
        """
        is_hourly = self.instance_type != PER_TOKEN and self.price_per_txn is not None
        return is_hourly and self.meets_budgets and self.is_highest_of(stages)


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


def decide(metrics: pd.DataFrame, config: Config) -> Decision:
    """Hold every stage against every budget, and recommend the cheapest one that meets them all.

    `metrics` is the metrics table. A tie in price goes to the lower mean latency. A stage where a
    budget is undecided does not meet the budgets; a figure that no budget binds fails nothing. A
    ramp gets its verdicts, but is never recommended, for its load was not one level.
    """
    budgets, pauses = budgets_of(config), think_times(config)
    rows = [{str(name): value for name, value in row.items()} for row in metrics.to_dict("records")]
    candidates = [_Candidate(row, _stage_verdict(row, budgets, pauses)) for row in rows]
    overall, per_instance = [], []
    for workload in config.workloads:
        pool = [c for c in candidates if c.verdict.workload == workload.name]
        overall.append(_recommendation(workload.name, None, pool))
        for kind in dict.fromkeys(c.verdict.instance_type for c in pool):
            of_kind = [c for c in pool if c.verdict.instance_type == kind]
            per_instance.append(_recommendation(workload.name, kind, of_kind))
    return Decision(
        workload_of_interest=config.workload_of_interest,
        budgets=budgets,
        stages=tuple(candidate.verdict for candidate in candidates),
        recommendations=tuple(overall),
        per_instance=tuple(per_instance),
    )


def decision_json(decision: Decision) -> bytes:
    """`decision` as indented JSON; `read_decision` gives it back exactly."""
    return orjson.dumps(decision, option=orjson.OPT_INDENT_2) + b"\n"


def write_decision(path: Path, decision: Decision) -> None:
    """Write `decision` as JSON, whole or not at all."""
    write_atomically(path, decision_json(decision))


def read_decision(path: Path) -> Decision:
    """The decision in the file at `path`. pydantic.ValidationError where it holds another thing."""
    return TypeAdapter(Decision).validate_json(path.read_bytes())


# --- one stage -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """A stage's metrics beside its verdict."""

    row: Row
    verdict: StageVerdict

    @property
    def name(self) -> str:
        """The stage in words."""
        stage = self.verdict
        return f"{stage.experiment} on {stage.instance_type} at {stage.label}"

    @property
    def is_eligible(self) -> bool:
        """Whether it can be recommended: a level that meets every budget at a known price."""
        stage = self.verdict
        return stage.meets_budgets and stage.price_per_txn is not None and not stage.is_ramp

    @property
    def rank(self) -> tuple[float, float]:
        """Cheaper first, then lower mean latency."""
        price = self.verdict.price_per_txn
        return math.inf if price is None else price, float(self.row["latency_mean"])

    @property
    def distance(self) -> tuple[int, int, float, float]:
        """How far from meeting the budgets: checks failed, undecided, worst overshoot, price."""
        return *shortfall(self.verdict), self.rank[0]


def _stage_verdict(
    row: Row, budgets: Sequence[Budget], pauses: Mapping[StageKey, float]
) -> StageVerdict:
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
        return "UNDECIDED" if unmeasured else "FAIL", _without_success(row)
    if math.isinf(value):
        failed = f"{row['n_failed']} of {row['n_requests']} requests failed"
        return "FAIL", f"{budget.label} falls on a failed request: {failed}"
    if math.isnan(value):
        return "UNDECIDED", _unmeasured(budget, row)
    shown, limit = _figures(value, budget)
    if value <= budget.limit:
        return "PASS", f"{budget.label} {shown} is within {limit}"
    return "FAIL", f"{budget.label} {shown} is above {limit}{_excess(value, budget)}"


def _without_success(row: Row) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    if row["n_requests"] == 0:
        return "no request was measured"
    return f"no request succeeded: {row['n_requests']} of {row['n_requests']} failed"


def _unmeasured(budget: Budget, row: Row) -> str:
    """Why a stage with successes has no figure: too few requests, or none that defines it."""
    if budget.unit == "usd":
        return f"{budget.label} is unknown: {_unpriced(row)}"
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


def _unpriced(row: Row) -> str:
    """Why a stage with successes has no price."""
    if row["instance_type"] == PER_TOKEN:
        return "tokens were not counted"
    if row["duration_s"] == 0:
        return "the window has no length, as where it held a single request"
    return "no successful request was under way in the window"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def shortfall(stage: StageVerdict) -> tuple[int, int, float]:
    """How far a stage is from meeting the budgets: checks failed, undecided, worst overshoot."""
    verdicts = [check.verdict for check in stage.checks]
    return verdicts.count("FAIL"), verdicts.count("UNDECIDED"), max(map(_overshoot, stage.checks))


def _overshoot(check: BudgetCheck) -> float:
    """How often the limit goes into the value; 0 where undecided, infinite where nothing is known.

    Over a limit of 0 no ratio exists: there a value of 0.02 counts as 1.02.
    """
    if check.value is None:
        return 0.0 if check.verdict == "UNDECIDED" else math.inf
    return check.value / check.limit if check.limit > 0 else 1 + check.value


# --- the answer ----------------------------------------------------------------------------------


def _recommendation(workload: str, kind: str | None, pool: Sequence[_Candidate]) -> Recommendation:
    """The cheapest of `pool` that meets every budget, or else what came closest."""
    answer = _answer(workload, kind, pool)
    missing = sum(candidate.row["status"] == NO_RECORDS for candidate in pool)
    if not missing:
        return answer
    unfinished = f"The run is not finished: {missing} of {len(pool)} stages have no records."
    return replace(answer, reason=f"{answer.reason} {unfinished}")


def _answer(workload: str, kind: str | None, pool: Sequence[_Candidate]) -> Recommendation:
    within = sorted((c for c in pool if c.is_eligible), key=lambda c: c.rank)
    if within:
        reason = _told_of_chosen(within, pool)
        return Recommendation(workload, kind, within[0].verdict, None, reason)
    measured = [candidate for candidate in pool if candidate.row["n_requests"] > 0]
    levels = [candidate for candidate in measured if not candidate.verdict.is_ramp]
    if measured and not levels:
        closest = min(measured, key=lambda candidate: candidate.distance)
        reason = "No stage can be recommended: only ramps were measured, whose load is not one "
        return Recommendation(workload, kind, None, closest.verdict, f"{reason}level.")
    if not measured:
        causes = "; ".join(dict.fromkeys(_without_success(candidate.row) for candidate in pool))
        reason = f"No stage can be recommended: nothing was measured ({causes})."
        return Recommendation(workload, kind, None, None, reason)
    closest = min(levels, key=lambda candidate: candidate.distance)
    reason = _with_caveats(_why_none(closest, len(_without_ramps(pool))), closest, pool)
    return Recommendation(workload, kind, None, closest.verdict, reason)


def _without_ramps(pool: Sequence[_Candidate]) -> list[_Candidate]:
    return [candidate for candidate in pool if not candidate.verdict.is_ramp]


def _told_of_chosen(within: Sequence[_Candidate], pool: Sequence[_Candidate]) -> str:
    """Why the cheapest of `within` was chosen, and whether more load might be cheaper still."""
    best, levels = within[0].verdict, _without_ramps(pool)
    unpriced = sum(c.verdict.meets_budgets for c in levels) - len(within)
    reason = _why_chosen(within, len(levels), " at a known price" if unpriced else "")
    stages = [candidate.verdict for candidate in levels]
    second = next((c.verdict for c in within if c.verdict.experiment != best.experiment), None)
    edges = [edge_caveat(best, stages), next_edge_caveat(second, stages) if second else ""]
    return _with_caveats(" ".join([reason, *filter(None, edges)]), within[0], pool)


def edge_caveat(stage: StageVerdict, stages: Iterable[StageVerdict]) -> str:
    """A sentence on a stage that is the edge of what was tried; "" of any other."""
    if not stage.could_be_cheaper(stages):
        return ""
    return (
        f"{stage.experiment} was tried with no more than {stage.label}, which keeps every budget: "
        "a higher load may be cheaper still."
    )


def next_edge_caveat(stage: StageVerdict, stages: Iterable[StageVerdict]) -> str:
    """The like of the second in price, which might be the first under more load."""
    if not stage.could_be_cheaper(stages):
        return ""
    return (
        f"The next in price, {stage.experiment}, was tried with no more than {stage.label}: it may "
        "be the cheaper one under a higher load."
    )


def _why_chosen(within: Sequence[_Candidate], n_stages: int, known: str) -> str:
    """The winner's figures, and what it won against; `known` tells that others have no price."""
    (price, latency_s), best = within[0].rank, within[0]
    cost = _amount(price * 1e4, "usd", 4)
    figures = f"{cost} per 10k transactions at a mean latency of {_amount(latency_s, 's', 3)}"
    if n_stages == 1:
        place = "it meets every budget and is the only stage"
    elif len(within) == 1:
        place = f"it is the only one of {n_stages} stages that meets every budget{known}"
    elif within[1].rank[0] == price:
        place = (
            f"it has the lowest price of the {len(within)} of {n_stages} stages that meet every "
        )
        place += f"budget{known}, and the lowest latency at that price"
    else:
        place = f"it is the cheapest of the {len(within)} of {n_stages} stages that meet every "
        place += f"budget{known}"
    return f"{best.name} costs {figures}; {place}."


def _with_caveats(reason: str, stage: _Candidate, pool: Sequence[_Candidate]) -> str:
    """`reason`, then what else is to be known of the stage, and which stages were left out."""
    told = [reason, behind_caveat(stage.row), client_caveat(stage.row), _ramps_left_out(pool)]
    return " ".join(filter(None, told))


def _ramps_left_out(pool: Sequence[_Candidate]) -> str:
    """How many ramps did not compete, and which candidates have nothing else."""
    levels = {candidate.verdict.experiment for candidate in _without_ramps(pool)}
    ramps = [candidate.verdict for candidate in pool if candidate.verdict.is_ramp]
    if not ramps:
        return ""
    which = "1 ramp is" if len(ramps) == 1 else f"{len(ramps)} ramps are"
    only = list(dict.fromkeys(one.experiment for one in ramps if one.experiment not in levels))
    nothing_else = f", and {', '.join(only)} had nothing else" if only else ""
    return f"{which} left out, for the load of a ramp is not one level{nothing_else}."


def rate_behind(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Requests/s sent in the window and requests/s served in it, where clearly fewer were served.

    Only of open loops, and only what succeeded in the end counts as sent: a backlog grew. None of
    a stage that kept up.
    """
    if row["kind"] != "open_loop" or not row["n_ok"]:
        return None
    n_sent, duration_s = row["n_ok"], row["duration_s"]
    n_served = row["request_rate"] * duration_s
    if not n_sent - n_served > max((1 - _KEPT_UP) * n_sent, _MOST_CUT):
        return None
    return n_sent / duration_s, n_served / duration_s


def behind_caveat(row: Mapping[str, Any]) -> str:
    """A sentence on a stage that served clearly less than was sent to it; "" of any other."""
    rates = rate_behind(row)
    if rates is None:
        return ""
    sent, served = (_amount(rate, "", 3) for rate in rates)
    return (
        f"There it fell behind: {served} of {sent} requests/s sent were served, so the longer that "
        "load lasts, the longer answers take."
    )


def client_caveat(row: Mapping[str, Any]) -> str:
    """A sentence on a stage whose client was the bottleneck; "" of any other."""
    if not row["client_limited"]:
        return ""
    return (
        f"There the client that sent the load was the bottleneck ({row['client_limited']}): "
        "the figures are partly its own."
    )


def _why_none(closest: _Candidate, n_stages: int) -> str:
    """What came closest, and every budget that it missed."""
    missed = [check.reason for check in closest.verdict.checks if check.verdict != "PASS"]
    reasons = "; ".join(dict.fromkeys(missed)) or f"the price is unknown: {_unpriced(closest.row)}"
    if n_stages == 1:
        return f"The only stage, {closest.name}, does not qualify: {reasons}."
    none = "can be recommended" if closest.verdict.meets_budgets else "meets every budget"
    return f"None of {n_stages} stages {none}. Closest is {closest.name}: {reasons}."


# --- figures in words ----------------------------------------------------------------------------


def _figures(value: float, budget: Budget) -> tuple[str, str]:
    """Value and limit in words, with as many digits as it takes to tell them apart."""
    limit = _amount(budget.limit, budget.unit, 12)
    digits = 4 if budget.unit == "usd" else 3
    while _amount(value, budget.unit, digits) == limit and value != budget.limit and digits < 17:
        digits += 1
    return _amount(value, budget.unit, digits), limit


def _amount(value: float, unit: str, digits: int) -> str:
    """A number with its unit, rounded to so many significant digits, never in powers of ten."""
    number = format(Decimal(f"{value:.{digits}g}"), "f")
    return {"s": f"{number} s", "usd": f"${number}"}.get(unit, number)


def _excess(value: float, budget: Budget) -> str:
    if budget.limit == 0:
        return ""
    return f" by {_amount((value / budget.limit - 1) * 100, '', 2)} %"

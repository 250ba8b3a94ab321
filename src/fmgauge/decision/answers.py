"""The answer for a workload: the cheapest valid stage within every budget, and why it is that.

Knows verdicts and their order; knows no plots, clocks or endpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fmgauge.config import Config
from fmgauge.config.stages import think_times
from fmgauge.decision.amounts import amount
from fmgauge.decision.budgets import Budget, budgets_of
from fmgauge.decision.verdicts import (
    Row,
    StageVerdict,
    stage_verdict,
    standing,
    why_no_price,
    why_no_success,
)
from fmgauge.metrics import NO_RECORDS

if TYPE_CHECKING:
    import pandas as pd

_MOST_NAMED = 3  # stages that one sentence names


@dataclass(frozen=True)
class Recommendation:
    """The answer for one workload, overall or on one instance type.

    Where no valid stage meets every budget, `chosen` is None and `closest` is the stage that came
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


def decide(metrics: pd.DataFrame, config: Config) -> Decision:
    """Hold every stage against every budget, and recommend the cheapest one that meets them all.

    `metrics` is the metrics table. A tie in price goes to the lower mean latency. A stage where a
    budget is undecided does not meet the budgets; a figure that no budget binds fails nothing. A
    stage that is not valid gets its verdicts, but is never recommended; nor is a ramp, because its
    load was not one level.
    """
    budgets, pauses = budgets_of(config), think_times(config)
    rows = [{str(name): value for name, value in row.items()} for row in metrics.to_dict("records")]
    candidates = [_Candidate(row, stage_verdict(row, budgets, pauses)) for row in rows]
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


@dataclass(frozen=True)
class _Candidate:
    """A stage's metrics and its verdict."""

    row: Row
    verdict: StageVerdict


def _recommendation(workload: str, kind: str | None, pool: Sequence[_Candidate]) -> Recommendation:
    """The cheapest of `pool` that is valid and meets every budget, or else what came closest."""
    answer = _answer(workload, kind, sorted(pool, key=lambda one: standing(one.verdict)))
    statuses = [candidate.row["status"] for candidate in pool]
    parts = [answer.reason]
    if missing := statuses.count(NO_RECORDS):
        parts.append(f"The run is not finished: {missing} of {len(pool)} stages have no records.")
    failed = [status for status in statuses if status not in ("ok", NO_RECORDS)]
    if failed and answer.closest is not answer.chosen:  # else the reason gives the causes
        were = "was" if len(failed) == 1 else "were"
        parts.append(f"{len(failed)} of {len(pool)} stages {were} not run.")
    return replace(answer, reason=" ".join(parts))


def _answer(workload: str, kind: str | None, ordered: Sequence[_Candidate]) -> Recommendation:
    """The answer on stages of which the preferred one stands first."""
    verdicts = [candidate.verdict for candidate in ordered]
    if not any(verdict.has_figures for verdict in verdicts):
        causes = "; ".join(dict.fromkeys(why_no_success(candidate.row) for candidate in ordered))
        reason = f"No stage can be recommended: nothing was measured ({causes})."
        return Recommendation(workload, kind, None, None, reason)
    levels = [verdict for verdict in verdicts if not verdict.is_ramp]
    within = [verdict for verdict in levels if verdict.is_eligible]
    if within:
        best = within[0]
        parts = [_why_chosen(within, levels), *_edges(within, levels)]
        parts += [caveat.long for caveat in best.caveats]
        parts += [left_out_sentence(best, levels), _ramps_left_out(verdicts)]
        return Recommendation(workload, kind, best, None, " ".join(filter(None, parts)))
    closest = ordered[0]
    if closest.verdict.is_ramp:
        reason = "No stage can be recommended: only ramps were measured, whose load is not one "
        return Recommendation(workload, kind, None, closest.verdict, f"{reason}level.")
    parts = [*_why_none(closest, levels), _ramps_left_out(verdicts)]
    return Recommendation(workload, kind, None, closest.verdict, " ".join(filter(None, parts)))


# --- a stage was chosen --------------------------------------------------------------------------


def _why_chosen(within: Sequence[StageVerdict], levels: Sequence[StageVerdict]) -> str:
    """The figures of the cheapest of `within`, and what it won against."""
    best, price = within[0], within[0].price_per_txn or 0.0
    figures = f"{amount(price * 1e4, 'usd', 4)} per 10k transactions"
    if best.latency_mean_s is not None:
        figures += f" at a mean latency of {amount(best.latency_mean_s, 's', 3)}"
    met = [verdict for verdict in levels if verdict.meets_budgets]
    known = " at a known price" if any(v.is_valid and not v.has_price for v in met) else ""
    invalid = not all(verdict.is_valid for verdict in met)
    of_all = f"{len(within)} of {len(levels)} stages that meet every budget{known}"
    of_all += " and are valid" if invalid else ""
    if len(levels) == 1:
        place = "it meets every budget and is the only stage"
    elif len(within) == 1:
        place = f"it is the only one of {len(levels)} stages that meets every budget{known}"
        place += " and is valid" if invalid else ""
    elif within[1].price_per_txn == price:
        place = f"it has the lowest price of the {of_all}, and the lowest latency at that price"
    else:
        place = f"it is the cheapest of the {of_all}"
    return f"{best.name} costs {figures}; {place}."


def _edges(within: Sequence[StageVerdict], levels: Sequence[StageVerdict]) -> tuple[str, str]:
    """Whether the first in price, or the first of another candidate, was the edge of its loads."""
    best = within[0]
    second = next((stage for stage in within if stage.experiment != best.experiment), None)
    return edge_caveat(best, levels), next_edge_caveat(second, levels) if second else ""


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


def left_out_sentence(chosen: StageVerdict, stages: Iterable[StageVerdict]) -> str:
    """Which of `stages` meet every budget for less and are not valid; "" where there are none."""
    most = math.inf if chosen.price_per_txn is None else chosen.price_per_txn
    cheaper = [
        stage
        for stage in stages
        if stage.meets_budgets
        and not (stage.is_valid or stage.is_ramp)
        and stage.price_per_txn is not None
        and stage.price_per_txn < most
    ]
    if not cheaper:
        return ""
    are = "stage that is" if len(cheaper) == 1 else "stages that are"
    return f"Left out: {len(cheaper)} cheaper {are} not valid: {_with_causes(cheaper)}."


def _with_causes(stages: Iterable[StageVerdict]) -> str:
    """Stages with what makes them invalid, the preferred ones first and most of many left out."""
    ordered = sorted(stages, key=standing)
    named = [
        f"{stage.name} ({'; '.join(caveat.short for caveat in stage.invalid_because)})"
        for stage in ordered[:_MOST_NAMED]
    ]
    more = len(ordered) - len(named)
    return "; ".join([*named, f"and {more} more"] if more else named)


def _ramps_left_out(stages: Iterable[StageVerdict]) -> str:
    """How many ramps did not compete, and which candidates have nothing else."""
    stages = list(stages)
    levels = {stage.experiment for stage in stages if not stage.is_ramp}
    ramps = [stage for stage in stages if stage.is_ramp]
    if not ramps:
        return ""
    which = "1 ramp is" if len(ramps) == 1 else f"{len(ramps)} ramps are"
    only = list(dict.fromkeys(one.experiment for one in ramps if one.experiment not in levels))
    nothing_else = f", and {', '.join(only)} had nothing else" if only else ""
    return f"{which} left out, for the load of a ramp is not one level{nothing_else}."


# --- no stage was chosen -------------------------------------------------------------------------


def _why_none(closest: _Candidate, levels: Sequence[StageVerdict]) -> list[str]:
    """Which stages meet every budget and are not valid, and what the closest stage lacks."""
    stage = closest.verdict
    invalid = [verdict for verdict in levels if verdict.meets_budgets and not verdict.is_valid]
    said = []
    if invalid:
        is_one = len(invalid) == 1
        meet = "stage that meets every budget is" if is_one else "stages that meet every budget are"
        said.append(f"{len(invalid)} {meet} not valid: {_with_causes(invalid)}.")
    if stage in invalid:
        return [*said, *(caveat.meaning for caveat in stage.invalid_because)]
    missed = [check.reason for check in stage.checks if check.verdict != "PASS"]
    reasons = (
        "; ".join(dict.fromkeys(missed)) or f"the price is unknown: {why_no_price(closest.row)}"
    )
    if len(levels) == 1:
        said.append(f"The only stage, {stage.name}, does not qualify: {reasons}.")
    else:
        none = "can be recommended" if stage.meets_budgets else "meets every budget"
        said += [] if invalid else [f"None of {len(levels)} stages {none}."]
        said.append(f"Closest is {stage.name}: {reasons}.")
    return [*said, *(caveat.long for caveat in stage.caveats)]

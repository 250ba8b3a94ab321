"""The report's tables as Markdown. Knows which figures stand where; computes none of them.

A figure that could not be measured is worded, never left blank: not run, n/a with the number of
requests it needs, or infinite where the failures reach that far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmgauge.config.model import Experiment
from fmgauge.decision import BudgetCheck, StageVerdict, column_of
from fmgauge.endpoints import kind_of
from fmgauge.metrics import PERCENTILES
from fmgauge.records import Endpoint
from fmgauge.report import wording
from fmgauge.report.escaping import Markdown, code, escaped, shortened, table
from fmgauge.report.load_levels import OPEN, is_concurrency_only, label_of, labels_of
from fmgauge.report.material import NOT_RUN, Material, Row, cut_off, instance_of
from fmgauge.report.method import stage_notes
from fmgauge.statistics import samples_needed

if TYPE_CHECKING:
    import pandas as pd

_INFORMATION = {
    "experiment_name": str,
    "payload_file": str,
    "instance_type": str,
    "concurrency": str,
    "error_rate": wording.short,
    "prompt_token_count_mean": wording.whole,
    "prompt_token_throughput": wording.whole,
    "completion_token_count_mean": wording.whole,
    "completion_token_throughput": wording.whole,
    "latency_mean": wording.short,
    "latency_p50": wording.short,
    "latency_p95": wording.short,
    "latency_p99": wording.short,
    "transactions_per_minute": wording.whole,
    "price_per_txn": wording.price,
}
_SEED_CRITERIA = {
    "error_rate": "error_rate_text",
    "latency_mean": "latency_mean_text",
    "usd_per_10k_txn": "price_per_10k_txn_text",
}
_LONGEST_ERROR = 160  # characters


def figure(row: Row, column: str, words: Any = wording.fixed) -> str:
    """The figure of a stage's metrics that `column` names, or in words why there is none.

    Of an open-loop stage a TTFT is the one from the intended instant, as its budgets bind it.
    """
    value = row[column_of(column, row)]
    if isinstance(value, str) or math.isfinite(value):
        return str(words(value))
    if row["status"] != "ok":
        return NOT_RUN
    return _why_missing(row, column_of(column, row), float(value))


def _why_missing(row: Row, column: str, value: float) -> str:
    family, _, statistic = column.rpartition("_")
    p = PERCENTILES.get(statistic)
    if p is not None and math.isinf(value):
        return f"∞ ({wording.percent(row['error_rate'])} failed)"
    is_defined = p is not None and math.isfinite(row[f"{family}_mean"])
    if p is not None and is_defined and row["n_requests"] < samples_needed(p):
        return f"n/a (needs ≥ {samples_needed(p)})"
    return "n/a (all failed)" if row["n_requests"] and not row["n_ok"] else "n/a"


# --- the seed's tables --------------------------------------------------------------------------


def information_table(row: Row) -> Markdown:
    """The figures of one stage, as Information and Value."""
    rows = [
        ("load", label_of(row))
        if name == "concurrency" and (row["kind"] == OPEN or row["think_time_s"])
        else (name, figure(row, name, words))
        for name, words in _INFORMATION.items()
    ]
    return table(("Information", "Value"), rows)


def failed_table(material: Material) -> Markdown:
    """Every stage that does not meet the budgets; within a budget is green, beyond is bold red."""
    names = _criteria(material)
    as_seed = is_concurrency_only(material.metrics)  # a level is then a bare number
    load = "concurrency" if as_seed else "load"
    columns = ("experiment_name", "payload_file", load, *names.values())
    missed = [stage for stage in material.decision.stages if not stage.meets_budgets]
    levels = [stage.concurrency if as_seed else stage.label for stage in missed]
    rows = (
        _failed_row(material.row(stage), level, stage, list(names))
        for stage, level in zip(missed, levels, strict=True)
    )
    return table(columns, rows)


def _criteria(material: Material) -> dict[str, str]:
    """Metric and column of the seed's three criteria, then of every other configured budget."""
    others = [b.metric for b in material.decision.budgets if b.metric not in _SEED_CRITERIA]
    return {**_SEED_CRITERIA, **{metric: f"{metric}_text" for metric in others}}


def _failed_row(row: Row, level: object, stage: StageVerdict, metrics: list[str]) -> list[object]:
    checks = {check.metric: check for check in stage.checks if row["status"] == "ok"}
    cells = [_judged(figure(row, metric), checks.get(metric)) for metric in metrics]
    return [row["experiment_name"], row["payload_file"], level, *cells]


def _judged(text: str, check: BudgetCheck | None) -> Markdown:
    """`text` in the verdict's colour; plain where no budget binds it or nothing was decided."""
    if check is None or check.verdict == "UNDECIDED":
        return escaped(text)
    if check.verdict == "PASS":
        return Markdown("<span style='color:green'>{}</span>").fill(text)
    return Markdown("<span style='color:red'>**{}**</span>").fill(text)


def costs_table(costs: pd.DataFrame) -> Markdown:
    """Time under load and cost of each experiment."""
    rows = [
        (
            cost["experiment_name"],
            cost["instance_type"],
            wording.fixed(cost["duration_in_seconds"]),
            wording.price(cost["cost"]),
        )
        for cost in costs.to_dict("records")
    ]
    return table(tuple(costs.columns), rows)


# --- every stage, every failure -----------------------------------------------------------------


def stages_table(material: Material) -> Markdown:
    """Every planned stage with its latencies, rate, price and verdict, run or not."""
    columns = (
        *("experiment", "dataset", "load", "budgets", "requests", "error rate"),
        *("USD per 10k", "latency mean, s", "TTFT mean, ms", "TPOT mean, ms"),
        *("transactions/min", "latency p50, s", "latency p95, s", "latency p99, s"),
        "TTFT p95, ms",
    )
    stages = material.decision.stages
    rows = [_stage_row(material.row(stage), stage) for stage in stages]
    notes = [stage_notes(material.row(stage), stage) for stage in stages]
    if not any(notes):
        return table(columns, rows)
    noted = ([*row, note or "none"] for row, note in zip(rows, notes, strict=True))
    return table((*columns, "notes"), noted)


def _stage_row(row: Row, stage: StageVerdict) -> list[object]:
    milliseconds = wording.milliseconds
    return [
        row["experiment_name"],
        row["workload"],
        stage.label,
        _verdict(row, stage),
        row["n_requests"],
        figure(row, "error_rate", wording.percent),
        _with_interval(row, "usd_per_10k_txn", wording.fixed),
        _with_interval(row, "latency_mean", wording.fixed),
        _with_interval(row, "ttft_s_mean", milliseconds, per_unit=1000),
        figure(row, "tpot_s_mean", milliseconds),
        figure(row, "transactions_per_minute", wording.whole),
        *(figure(row, f"latency_{p}") for p in ("p50", "p95", "p99")),
        figure(row, "ttft_s_p95", milliseconds),
    ]


def _with_interval(row: Row, column: str, words: Any, per_unit: int = 1) -> str:
    """A figure, then its within-run interval in brackets where the metrics hold one.

    `words` shows `per_unit` times the value; the interval gets the figure's decimals.
    """
    source = column_of(column, row)
    low, high = (row.get(f"{source}_ci_{end}", math.nan) for end in ("low", "high"))
    text = figure(row, column, words)
    if not (math.isfinite(low) and math.isfinite(high)):
        return text
    return f"{text} ({wording.like(text, low * per_unit)} to {wording.like(text, high * per_unit)})"


def _verdict(row: Row, stage: StageVerdict) -> str:
    if row["status"] != "ok":
        return NOT_RUN
    verdicts = {check.verdict for check in stage.checks}
    words = {"FAIL": "missed", "UNDECIDED": "undecided", "PASS": "met"}
    verdict = next(word for name, word in words.items() if name in verdicts)
    return verdict if stage.is_valid else f"{verdict}, not valid"


def failures_table(material: Material) -> Markdown | None:
    """Failed requests by stage and kind, each with the first error; None without any.

    A drain request that was cut off at its stage's end did not fail.
    """
    requests = material.requests
    failed = requests[(requests["status"] != "ok") & ~cut_off(requests)]
    if failed.empty:
        return None
    labels = {(s.experiment, s.workload, s.stage): s.label for s in material.decision.stages}
    keys = ["experiment", "workload", "stage", "status", "http_status"]
    groups = failed.groupby(keys, dropna=False, sort=False)
    columns = ("experiment", "dataset", "load", "kind", "HTTP status", "measured")
    rows = (_failure_row(key, labels, of) for key, of in groups)
    return table((*columns, "in warm-up or drain", "first error"), rows)


def _failure_row(
    key: tuple[Any, ...], labels: Mapping[tuple[str, str, str], str], group: pd.DataFrame
) -> list[object]:
    experiment, workload, name, kind, http_status = key
    n_measured = int((group["phase"] == "measured").sum())
    errors = group["error"].dropna()
    first = code(shortened(errors.iloc[0], _LONGEST_ERROR)) if len(errors) else "none"
    status = "none" if math.isnan(http_status) else f"{http_status:.0f}"
    stage = (experiment, workload, labels[experiment, workload, name], kind)
    return [*stage, status, n_measured, len(group) - n_measured, first]


def not_run_table(metrics: pd.DataFrame) -> Markdown | None:
    """Stages that were planned and not run, with the reason; None where all were run."""
    missing = metrics[metrics["status"] != "ok"]
    if missing.empty:
        return None
    groups = missing.groupby(["experiment_name", "workload", "status"], sort=False)
    return table(
        ("experiment", "dataset", "load", "reason"),
        (
            (
                name,
                workload,
                labels_of(group),
                code(shortened(_reason(str(status)), _LONGEST_ERROR)),
            )
            for (name, workload, status), group in groups
        ),
    )


def _reason(status: str) -> str:
    return status.removeprefix(f"{NOT_RUN}: ")


# --- what it ran on -----------------------------------------------------------------------------


def endpoints_table(material: Material) -> Markdown:
    """Where each experiment's model answered, with what settings, and how soon."""
    columns = (
        "experiment",
        "model",
        "endpoint",
        "instance",
        "settings",
        "first answer, s",
        "state",
    )
    return table(columns, (_endpoint_row(material, e) for e in material.experiments))


def _endpoint_row(material: Material, experiment: Experiment) -> list[object]:
    endpoint = material.endpoints.get(experiment.name)
    started_s = endpoint.first_answer_s if endpoint else None
    count = f"{experiment.instance_count} of " if experiment.instance_count > 1 else ""
    return [
        experiment.name,
        code(experiment.model.name),
        experiment.endpoint.kind,
        f"{count}{instance_of(experiment)}",
        ", ".join(kind_of(experiment.endpoint).settings(experiment.endpoint)),
        "n/a" if started_s is None else wording.fixed(started_s),
        _state(endpoint),
    ]


def _state(endpoint: Endpoint | None) -> Markdown:
    if endpoint is None:
        return Markdown("never brought up")
    if endpoint.error is None:
        return escaped(endpoint.state)
    words = "{} ({})" if endpoint.state == "ready" else "{}: {}"  # a busy server is kept
    return Markdown(words).fill(endpoint.state, code(shortened(endpoint.error, _LONGEST_ERROR)))


def machine_table(material: Material) -> Markdown:
    """The machine that sent the load, the run, and the versions that made it."""
    manifest, machine = material.manifest, material.manifest["machine"]
    rows = [
        ("run", material.run_id),
        ("processor", machine["processor"]),
        ("cores", machine["cores"]),
        ("memory, GiB", machine["memory_gib"]),
        ("system", machine["system"]),
        ("Python", machine["python"]),
        *manifest["versions"].items(),
        ("commit", manifest.get("commit") or "not from a checkout"),
        ("seed", manifest["seed"]),
    ]
    return table(("Item", "Value"), rows)

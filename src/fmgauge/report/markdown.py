"""report.md from a run's material. Knows which piece stands where; words and draws nothing."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from fmgauge.report import findings, method, tables
from fmgauge.report.escaping import Markdown, cell, code, escaped
from fmgauge.report.material import Material

if TYPE_CHECKING:
    from jinja2 import Environment


def report_markdown(material: Material) -> str:
    """The whole report as GitHub's Markdown; pictures and the config lie beside it."""
    template = _environment().get_template("report.md.j2")
    return template.render(**_sentences(material), **_tables(material))


@cache
def _environment() -> Environment:
    """Templates whose every value is escaped as Markdown, unless this package wrote it.

    Jinja's own escaping is HTML's, which Markdown does not take; `finalize` sees every value that
    a template prints, so no template can forget.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fmgauge.report"),
        autoescape=False,
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment


def _sentences(material: Material) -> dict[str, Any]:
    return {
        "made_at": material.made_at.strftime("%Y-%m-%d %H:%M:%S.%f"),
        "measured": findings.measured(material),
        "summary": findings.summary(material),
        "details": findings.details(material),
        "comparison": findings.comparison_sentence(material),
        "failed_criteria": findings.failed_criteria(material),
        "costs": findings.costs(material),
        "datasets": findings.datasets_sentence(material),
        "reading": findings.readings(material),
        "how_measured": method.how_measured(material),
    }


def _tables(material: Material) -> dict[str, Any]:
    recommendation = material.recommendation
    shown = recommendation.chosen or recommendation.closest
    all_met = all(stage.meets_budgets for stage in material.decision.stages)
    return {
        "information": tables.information_table(material.row(shown)) if shown else None,
        "failed_table": None if all_met else tables.failed_table(material),
        "costs_table": tables.costs_table(material.costs),
        "per_instance": _per_instance(material),
        "stages_table": tables.stages_table(material),
        "failures_table": tables.failures_table(material),
        "not_run_table": tables.not_run_table(material.metrics),
        "machine_table": tables.machine_table(material),
        "endpoints_table": tables.endpoints_table(material),
    }


def _per_instance(material: Material) -> list[dict[str, Markdown]]:
    return [
        {
            "dataset": code(f"payload_{one.workload}.jsonl"),
            "instance": code(one.instance_type),
            "recommendation": findings.recommendation_sentence(material, one),
        }
        for one in material.decision.per_instance
    ]

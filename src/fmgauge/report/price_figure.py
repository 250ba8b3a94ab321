"""The business summary: price and performance of the candidates. Knows bars; decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fmgauge.decision import Budget, StageVerdict, standing
from fmgauge.report import wording
from fmgauge.report.drawing import (
    BLUE,
    BUDGET,
    GREY,
    INK,
    LABEL,
    LEGEND,
    TITLE,
    fitted_figure,
    interval,
    missing,
    plain,
    quiet,
    short_names,
)
from fmgauge.report.escaping import shortened
from fmgauge.report.material import Material, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TALL_ROWS = 12  # more candidates than this get one line of label each
_KINDS = {
    "winner": "cheapest within every budget",
    "closest": "came closest, not within every budget",
    "meets": "within every budget",
    "misses": "not within every budget",
    "ramp": "a ramp, no level to choose",
    "invalid": "not valid",
}
_STYLES: dict[str, dict[str, Any]] = {
    "winner": {"color": BLUE},
    "closest": {"facecolor": "white", "edgecolor": BLUE, "hatch": "////", "linewidth": 1.2},
    "meets": {"color": GREY},
    "misses": {"facecolor": "white", "edgecolor": GREY, "hatch": "////", "linewidth": 0.8},
    "ramp": {"facecolor": "white", "edgecolor": GREY, "hatch": "....", "linewidth": 0.8},
    "invalid": {"facecolor": "white", "edgecolor": GREY, "hatch": "xxxx", "linewidth": 0.8},
}
_BESIDE: dict[str, Any] = {
    **LABEL,
    "xytext": (4, 0),
    "textcoords": "offset points",
    "va": "center",
    "annotation_clip": False,
    "zorder": 5,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # above a budget's line
}


class _Bar(NamedTuple):
    """One row of the picture: a candidate's stage, its metrics, and which kind of bar it gets."""

    label: str
    row: Row
    price: float  # infinite where none is known
    kind: str


class _Panel(NamedTuple):
    """One measure of the candidates."""

    title: str
    column: str
    budget: Budget | None
    words: Callable[[float], str]


def business_summary(material: Material) -> Figure:
    """Price, latency and throughput of every experiment at its best stage, budgets as lines.

    Where there is one experiment only: of each of its stages.
    """
    bars = _bars(material)
    height_in = 0.6 if len(bars) <= _MOST_TALL_ROWS else 0.27
    figure = fitted_figure(1.5 + height_in * len(bars))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, panel in zip(panels, _panels(material), strict=True):
        _draw_panel(axes, bars, panel)
    panels[0].set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=9)
    panels[0].set_ylim(len(bars) - 0.4, -0.6)
    for bar, tick in zip(bars, panels[0].get_yticklabels(), strict=True):
        tick.set_fontweight("bold" if bar.kind == "winner" else "normal")
    _legend(figure, bars)
    figure.suptitle(_title(material), fontsize=11, color=INK)
    return figure


def n_budget_lines(material: Material) -> int:
    """How many budgets lie on their panel's scale, so that the picture has a line for them."""
    bars = _bars(material)
    return sum(_limit_shown(bars, panel) < math.inf for panel in _panels(material))


def _title(material: Material) -> str:
    single = len(material.experiments) == 1
    subject = "every load level" if single else "each candidate at its best load level"
    return plain(f"{shortened(material.workload, 40)}: {subject}, cheapest first")


def _bars(material: Material) -> list[_Bar]:
    stages = material.stage_verdicts(material.workload)
    if len(material.experiments) > 1:
        stages = _best_stages(stages)
    tall = len(stages) <= _MOST_TALL_ROWS
    names = short_names([experiment.name for experiment in material.experiments], 30)
    bars = [
        _Bar(
            _label(stage, names[stage.experiment], tall) + (_shortcomings(stage, material) * tall),
            material.row(stage),
            _price(stage),
            _kind(stage, material),
        )
        for stage in stages
    ]
    return sorted(bars, key=lambda bar: bar.price)


def _best_stages(stages: Sequence[StageVerdict]) -> list[StageVerdict]:
    """The stage that stands for each experiment: the one that the decision prefers."""
    names = dict.fromkeys(stage.experiment for stage in stages)
    return [min((s for s in stages if s.experiment == name), key=standing) for name in names]


def _price(stage: StageVerdict) -> float:
    return math.inf if stage.price_per_txn is None else stage.price_per_txn


def _kind(stage: StageVerdict, material: Material) -> str:
    if stage == material.recommendation.chosen:
        return "winner"
    if not stage.is_valid:
        return "invalid"
    if stage == material.recommendation.closest:
        return "closest"
    if stage.is_ramp:
        return "ramp"
    return "meets" if stage.meets_budgets else "misses"


def _label(stage: StageVerdict, name: str, tall: bool) -> str:
    if not tall:
        return f"{name}, {stage.label}"
    return f"{name}\n{plain(shortened(stage.instance_type, 18))}, {stage.label}"


def _shortcomings(stage: StageVerdict, material: Material) -> str:
    """A line of label with the budgets that a stage misses, and what makes it invalid, if any."""
    if material.row(stage)["status"] != "ok":
        return ""
    names = {budget.metric: budget.label for budget in material.decision.budgets}
    names["usd_per_10k_txn"] = "price"
    verdicts = {"FAIL": "misses", "UNDECIDED": "not decided:"}
    parts = [
        f"{words} {', '.join(names[c.metric] for c in stage.checks if c.verdict == verdict)}"
        for verdict, words in verdicts.items()
        if any(c.verdict == verdict for c in stage.checks)
    ]
    parts += [caveat.name for caveat in stage.invalid_because[:1]]
    return f"\n{shortened('; '.join(parts), 38)}" if parts else ""


def _panels(material: Material) -> tuple[_Panel, ...]:
    budgets = {budget.metric: budget for budget in material.decision.budgets}
    price, latency = budgets.get("usd_per_10k_txn"), budgets.get("latency_mean")
    return (
        _Panel("Price, USD per 10k transactions", "usd_per_10k_txn", price, wording.fixed),
        _Panel("Mean latency, s", "latency_mean", latency, wording.fixed),
        _Panel("Transactions per minute", "transactions_per_minute", None, wording.whole),
    )


def _draw_panel(axes: Axes, bars: Sequence[_Bar], panel: _Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    for place, bar in enumerate(bars):
        _draw_bar(axes, place, bar, panel)
    limit = _limit_shown(bars, panel)
    shown = limit < math.inf
    if shown:
        axes.axvline(limit, zorder=3, **BUDGET)
    end = max(_top(bars, panel), limit if shown else 0) * 1.42  # room for numbers at bars' ends
    axes.set_xlim(0, end)
    axes.set_title(_panel_title(panel, shown), **TITLE)
    ticks = MaxNLocator(nbins=3).tick_values(0, end)
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= 0.85 * end])  # clear of the next panel
    quiet(axes, grid="x")


def _top(bars: Sequence[_Bar], panel: _Panel) -> float:
    values = [float(bar.row[panel.column]) for bar in bars]
    return max((value for value in values if math.isfinite(value)), default=0.0) or 1.0


def _limit_shown(bars: Sequence[_Bar], panel: _Panel) -> float:
    """The panel's budget where it lies on the scale of its bars; infinite where no line is."""
    limit = panel.budget.limit if panel.budget else math.inf
    return limit if limit <= 3 * _top(bars, panel) else math.inf


def _panel_title(panel: _Panel, shown: bool) -> str:
    if panel.budget is None:
        return f"{panel.title}\n"
    limit = wording.limit(panel.budget.limit)
    limit = plain(f"${limit}") if panel.budget.unit == "usd" else f"{limit} s"
    where = "dashed" if shown else "beyond the scale"
    return f"{panel.title}\nbudget ≤ {limit} ({where})"


def _draw_bar(axes: Axes, place: int, bar: _Bar, panel: _Panel) -> None:
    """A bar with its interval, and its value beyond both; in words where there is no value."""
    value = float(bar.row[panel.column])
    if not math.isfinite(value):
        axes.annotate(missing(bar.row), (0, place), **_BESIDE)
        return
    axes.barh(place, value, height=0.55, zorder=2, **_STYLES[bar.kind])
    low, high = interval(bar.row, panel.column)
    if low < high:
        axes.plot([low, high], [place, place], color=INK, linewidth=1.2, zorder=4)
    weight = "bold" if bar.kind == "winner" else "normal"
    end = high if low < high else value
    axes.annotate(panel.words(value), (end, place), weight=weight, **_BESIDE)


def _legend(figure: Figure, bars: Sequence[_Bar]) -> None:
    from matplotlib.patches import Patch

    drawn = {bar.kind for bar in bars if math.isfinite(bar.price)}
    patches = [Patch(label=_KINDS[kind], **_STYLES[kind]) for kind in _KINDS if kind in drawn]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=3, **LEGEND)

"""Latency against prompt tokens and against load. Knows points and lines; computes no latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from fmgauge.report import wording
from fmgauge.report.drawing import (
    BLUE,
    BUDGET,
    INK,
    MARKERS,
    PALE,
    TITLE,
    interval,
    legend_above,
    legend_columns,
    missing,
    name_axes,
    palette,
    panel_grid,
    quiet,
    say,
    short_names,
    title_length,
)
from fmgauge.report.escaping import shortened
from fmgauge.report.load_levels import (
    LINE,
    OPEN,
    axis_name,
    axis_of,
    kinds_of,
    names_of,
    units_of,
    with_levels,
)
from fmgauge.report.material import Material, Row, rows_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 5000
_GAP_HEIGHT = 0.06  # of a panel, for one experiment's stages without a latency
_MOST_LINES = 6  # more lines than this in one panel cannot be told apart


# --- prompt tokens against latency --------------------------------------------------------------


def measured_points(requests: pd.DataFrame) -> pd.DataFrame:
    """The measured requests that have both a prompt length and a latency."""
    measured = requests[requests["phase"] == "measured"]
    return measured.dropna(subset=["prompt_tokens", "latency_s"])


def drawn_points(requests: pd.DataFrame) -> pd.DataFrame:
    """The measured points, thinned to MOST_POINTS by a seeded draw, the same in every build."""
    points = measured_points(requests)
    return points.sample(MOST_POINTS, random_state=0) if len(points) > MOST_POINTS else points


def tokens_vs_latency(material: Material) -> Figure:
    """Prompt tokens against end-to-end latency, one point a request, one panel an experiment."""
    loads, kinds = names_of(material.metrics), kinds_of(material.metrics)
    levels = list(dict.fromkeys(loads.values()))
    drawn = drawn_points(material.requests)
    points = drawn.assign(level=drawn["stage"].map(loads))
    names = [experiment.name for experiment in material.experiments]
    abreast = legend_columns(levels)
    figure, panels = panel_grid(len(names), 0.25 + 0.2 * math.ceil(len(levels) / abreast))
    labels = short_names(names, title_length(len(names)))
    for axes, name in zip(panels, names, strict=True):
        _draw_points(axes, points[points["experiment"] == name], levels)
        axes.set_title(labels[name], **TITLE)
    if len(points):
        panels[0].set_ylim(0, points["latency_s"].max() * 1.08)
        unit = "load" if len(kinds) > 1 else units_of(material.metrics, kinds[0])
        legend_above(figure, _level_handles(levels), abreast, unit)
    else:
        panels[0].set(xticks=[], yticks=[])
    name_axes(figure, "Prompt tokens, all datasets", "End-to-end latency, s")
    return figure


def _draw_points(axes: Axes, points: pd.DataFrame, levels: Sequence[str]) -> None:
    import seaborn as sns

    if points.empty:
        say(axes, "no request succeeded")
    else:
        sns.scatterplot(  # type: ignore[no-untyped-call]
            points,
            x="prompt_tokens",
            y="latency_s",
            hue="level",
            style="level",
            hue_order=levels,
            style_order=levels,
            palette=_level_colors(levels),
            markers=_level_markers(levels),
            s=18,
            alpha=0.7,
            linewidth=0.3,
            legend=False,
            ax=axes,
        )
    axes.set(xlabel="", ylabel="")
    quiet(axes, grid="both")


def _level_colors(levels: Sequence[str]) -> dict[str, Any]:
    """Light to dark as the load rises, in steps that grey printing keeps."""
    return dict(zip(levels, palette("viridis_r", len(levels) + 1)[1:], strict=True))


def _level_markers(levels: Sequence[str]) -> dict[str, str]:
    return {level: MARKERS[place % len(MARKERS)] for place, level in enumerate(levels)}


def _level_handles(levels: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    colors, markers = _level_colors(levels), _level_markers(levels)
    return [
        Line2D([], [], color=colors[n], marker=markers[n], linestyle="", label=n, markersize=5)
        for n in levels
    ]


# --- load against latency -----------------------------------------------------------------------


class _Line(NamedTuple):
    """One experiment under one kind of load: its stages in order, `level` among their columns."""

    name: str
    kind: str
    arrivals: str
    think_time_s: float
    rows: pd.DataFrame

    @property
    def label(self) -> str:
        """Its name; Poisson arrivals and users who do not pause, the rule, go without saying."""
        if self.think_time_s:
            return f"{self.name}, {wording.limit(self.think_time_s)} s think time"
        return self.name if self.arrivals in ("", "poisson") else f"{self.name}, {self.arrivals}"

    @property
    def load(self) -> str:
        """What its levels are, in words."""
        unit = units_of(self.rows, self.kind)
        return unit if self.arrivals in ("", "poisson") else f"{unit}, {self.arrivals}"


def concurrency_vs_latency(material: Material) -> Figure:
    """Mean end-to-end latency of the workload of interest by load level, with its intervals.

    A few experiments share one panel for each kind of load; many get a panel each, with the
    others in grey behind. A closed loop's level is the requests in flight, an open loop's the
    rate: they never share an axis.
    """
    rows = with_levels(material.metrics[material.metrics["workload"] == material.workload])
    lines, kinds = _lines(rows), kinds_of(rows)
    limits = [b.limit for b in material.decision.budgets if b.metric == "latency_mean"]
    limits = [limit for limit in limits if limit <= 3 * _top_of_lines(rows)]
    together = max(sum(line.kind == kind for line in lines) for kind in kinds) <= _MOST_LINES
    draw = _draw_together if together else _draw_apart
    figure, panels = draw(lines, limits)
    shown = kinds if together else [line.kind for line in lines]
    _scale(list(zip(panels, shown, strict=True)), rows, limits)
    workload = shortened(material.workload, 60)
    name_axes(figure, f"{axis_name(rows)}; dataset {workload}", "Mean end-to-end latency, s")
    return figure


def _lines(rows: pd.DataFrame) -> list[_Line]:
    """The lines of one workload: closed loops first, then by experiment as they come."""
    places = {name: place for place, name in enumerate(rows.sort_index()["experiment_name"])}
    lines = []
    for (name, kind, arrivals, pause_s), one in rows.groupby(LINE, sort=False):
        lines.append(_Line(str(name), str(kind), str(arrivals), float(str(pause_s)), one))
    return sorted(lines, key=lambda line: (line.kind, places[line.name]))


def _draw_together(lines: Sequence[_Line], limits: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """One panel a kind of load; an experiment has the same colour in both."""
    kinds = list(dict.fromkeys(line.kind for line in lines))
    labels = short_names(list(dict.fromkeys(line.label for line in lines)), 40)
    styles = {
        label: {"color": color, "marker": marker, "label": labels[label]}
        for label, color, marker in zip(
            labels, palette("colorblind", len(labels)), cycle(MARKERS), strict=False
        )
    }
    n_columns = 3 if max(map(len, labels.values())) <= 26 else 2
    n_rows = math.ceil((len(labels) + len(limits)) / n_columns)
    legend_in = 0.22 * n_rows - 0.15
    figure, panels = panel_grid(len(kinds), legend_in, share_x=len(kinds) == 1)
    handles: dict[str, Any] = {}
    for axes, kind in zip(panels, kinds, strict=True):
        own = [line for line in lines if line.kind == kind]
        if len(kinds) > 1:
            axes.set_title(_panel_title(own), **TITLE)
        handles |= _draw_lines(axes, own, styles)
    legend_above(figure, [*handles.values(), *_draw_limits(panels, limits)], n_columns)
    return figure, panels


def _panel_title(lines: Sequence[_Line]) -> str:
    import pandas as pd

    title = axis_of(pd.concat([line.rows for line in lines]), lines[0].kind)
    return shortened(title, title_length(2))


def _draw_lines(
    axes: Axes, lines: Sequence[_Line], styles: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Lines in one panel, and a row of crosses for each that has gaps; handles by label."""
    handles = {}
    for place, line in enumerate(lines):
        style = styles[line.label]
        handles[line.label] = _draw_line(axes, line.rows, **style)
        rank = sum(_has_gap(earlier.rows) for earlier in lines[:place])
        _mark_gaps(axes, line.rows, 0.96 - _GAP_HEIGHT * rank, style["color"])
    return handles


def _draw_apart(lines: Sequence[_Line], limits: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """One panel a line, the others of its kind in grey behind it."""
    from matplotlib.collections import LineCollection

    alike = len({line.kind for line in lines}) == 1
    several = len({line.load for line in lines}) > 1  # then each says which it is
    figure, panels = panel_grid(
        len(lines), 0.15 if limits else 0.0, share_x=alike, title_lines=1 + several
    )
    names = short_names(list(dict.fromkeys(one.name for one in lines)), title_length(len(lines)))
    for axes, own in zip(panels, lines, strict=True):
        behind = [
            one.rows[["level", "latency_mean"]].to_numpy() for one in lines if one.kind == own.kind
        ]
        axes.add_collection(LineCollection(behind, colors=PALE, linewidths=0.8, zorder=1))
        _draw_line(axes, own.rows, color=BLUE, marker="o")
        if own.rows["latency_mean"].isna().all():
            say(axes, missing(rows_of(own.rows)[0]))
        axes.set_title(names[own.name] + (f"\n{own.load}" if several else ""), **TITLE)
    handles = _draw_limits(panels, limits)
    if handles:
        legend_above(figure, handles, 1)
    return figure, panels


def _draw_line(axes: Axes, rows: pd.DataFrame, **style: Any) -> Any:
    """One experiment's means with their intervals, where there are means."""
    done = rows[rows["latency_mean"].notna()]
    arms = [_arms(row) for row in rows_of(done)]
    return axes.errorbar(
        done["level"],
        done["latency_mean"],
        yerr=[[below for below, _ in arms], [above for _, above in arms]],
        capsize=3,
        markersize=5,
        linewidth=1.5,
        zorder=3,
        **style,
    )


def _has_gap(rows: pd.DataFrame) -> bool:
    return bool(rows["latency_mean"].isna().any())


def _mark_gaps(axes: Axes, rows: pd.DataFrame, height: float, color: Any) -> None:
    """A cross above the lines for each stage of which no latency came, and why."""
    transform = axes.get_xaxis_transform()
    for row in rows_of(rows[rows["latency_mean"].isna()]):
        place = (row["level"], height)
        axes.plot(*place, "x", color=color, transform=transform)
        offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(missing(row), place, xycoords=transform, fontsize=8, color=INK, **offset)


def _arms(row: Row) -> tuple[float, float]:
    """How far the interval reaches below and above the mean; 0 where there is none."""
    low, high = interval(row, "latency_mean")
    mean = float(row["latency_mean"])
    return (max(0.0, mean - low), max(0.0, high - mean)) if low <= high else (0.0, 0.0)


def _draw_limits(panels: Sequence[Axes], limits: Sequence[float]) -> list[Any]:
    """The budgets on the mean as dashed lines in every panel; the handles of one panel's."""
    drawn = [
        axes.axhline(limit, zorder=2, label=f"budget: {wording.limit(limit)} s", **BUDGET)
        for axes in panels
        for limit in limits
    ]
    return drawn[: len(limits)]


def _top_of_lines(rows: pd.DataFrame) -> float:
    means = rows["latency_mean"].fillna(0) if rows["latency_mean"].notna().any() else [1.0]
    highs = rows["latency_mean_ci_high"].fillna(0)
    return float(max([*means, *highs]))


def _scale(panels: Sequence[tuple[Axes, str]], rows: pd.DataFrame, limits: Sequence[float]) -> None:
    """One height for all panels, and each kind of load its own logarithmic axis."""
    unit = {OPEN: "/s"} if len(kinds_of(rows)) > 1 else {}
    for axes, kind in panels:
        own = rows[rows["kind"] == kind]
        levels = sorted({float(level) for level in own["level"]})
        ticks = _apart(levels, 1.25 if len(panels) == 1 else 1.9)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{level:g}{unit.get(kind, '')}" for level in ticks])
        axes.minorticks_off()
        axes.set_xlim(levels[0] / 1.3, levels[-1] * 1.5)
        quiet(axes, grid="y")
    n_gaps = max(_n_with_gaps(rows[rows["kind"] == kind]) for _, kind in panels)
    top = max([_top_of_lines(rows), *limits]) * 1.1
    axes = panels[0][0]  # the panels share their height
    axes.set_ylim(0, top / (1 - _GAP_HEIGHT * (n_gaps if len(panels) < 3 else 0)))


def _n_with_gaps(rows: pd.DataFrame) -> int:
    return sum(_has_gap(one) for _, one in rows.groupby(LINE, sort=False))


def _apart(levels: Sequence[float], ratio: float) -> list[float]:
    """Levels that leave room for their labels on a logarithmic axis."""
    kept: list[float] = []
    for level in levels:
        if not kept or level >= ratio * kept[-1]:
            kept.append(level)
    return kept

"""Latency against prompt tokens and against load. Knows points and lines; computes no latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    return measured.dropna(subset=["prompt_tokens", "e2e_latency_s"])


def drawn_points(requests: pd.DataFrame) -> pd.DataFrame:
    """The measured points, thinned to MOST_POINTS by a seeded draw, the same in every build."""
    points = measured_points(requests)
    return points.sample(MOST_POINTS, random_state=0) if len(points) > MOST_POINTS else points


def tokens_vs_latency(material: Material) -> Figure:
    """Prompt tokens against end-to-end latency, one point a request, one panel an experiment."""
    points = drawn_points(material.requests)
    names = [experiment.name for experiment in material.experiments]
    levels = sorted(int(level) for level in material.metrics["concurrency"].unique())
    figure, panels = panel_grid(len(names), legend_in=0.45)
    labels = short_names(names, title_length(len(names)))
    for axes, name in zip(panels, names, strict=True):
        _draw_points(axes, points[points["experiment"] == name], levels)
        axes.set_title(labels[name], **TITLE)
    if len(points):
        panels[0].set_ylim(0, points["e2e_latency_s"].max() * 1.08)
        legend_above(figure, _level_handles(levels), min(len(levels), 12), "requests in flight")
    else:
        panels[0].set(xticks=[], yticks=[])
    name_axes(figure, "Prompt tokens, all datasets", "End-to-end latency, s")
    return figure


def _draw_points(axes: Axes, points: pd.DataFrame, levels: Sequence[int]) -> None:
    import seaborn as sns

    if points.empty:
        say(axes, "no request succeeded")
    else:
        sns.scatterplot(  # type: ignore[no-untyped-call]
            points,
            x="prompt_tokens",
            y="e2e_latency_s",
            hue="concurrency",
            style="concurrency",
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


def _level_colors(levels: Sequence[int]) -> dict[int, Any]:
    """Light to dark as the load rises, in steps that grey printing keeps."""
    return dict(zip(levels, palette("viridis_r", len(levels) + 1)[1:], strict=True))


def _level_markers(levels: Sequence[int]) -> dict[int, str]:
    return {level: MARKERS[place % len(MARKERS)] for place, level in enumerate(levels)}


def _level_handles(levels: Sequence[int]) -> list[Any]:
    from matplotlib.lines import Line2D

    colors, markers = _level_colors(levels), _level_markers(levels)
    return [
        Line2D([], [], color=colors[n], marker=markers[n], linestyle="", label=str(n), markersize=5)
        for n in levels
    ]


# --- concurrency against latency ----------------------------------------------------------------


def concurrency_vs_latency(material: Material) -> Figure:
    """Mean end-to-end latency of the workload of interest by concurrency, with its intervals.

    A few experiments share one panel; many get a panel each, with the others in grey behind.
    """
    rows = material.metrics[material.metrics["workload"] == material.workload]
    lines = [(str(name), one.sort_values("concurrency")) for name, one in _by_experiment(rows)]
    limits = [b.limit for b in material.decision.budgets if b.metric == "latency_mean"]
    limits = [limit for limit in limits if limit <= 3 * _top_of_lines(rows)]
    draw = _draw_together if len(lines) <= _MOST_LINES else _draw_apart
    figure, panels = draw(lines, limits)
    _scale(panels, rows, limits)
    workload = shortened(material.workload, 60)
    across = f"Concurrency, requests in flight (dataset {workload})"
    name_axes(figure, across, "Mean end-to-end latency, s")
    return figure


def _by_experiment(rows: pd.DataFrame) -> Any:
    return rows.groupby("experiment_name", sort=False)


def _draw_together(
    lines: Sequence[tuple[str, pd.DataFrame]], limits: Sequence[float]
) -> tuple[Figure, list[Axes]]:
    colors = palette("colorblind", len(lines))
    labels = short_names([name for name, _ in lines], 40)
    n_columns = 3 if max(map(len, labels.values())) <= 26 else 2
    n_rows = math.ceil((len(lines) + len(limits)) / n_columns)
    figure, panels = panel_grid(1, legend_in=0.22 * n_rows - 0.15)
    handles = []
    for place, (name, one) in enumerate(lines):
        style = {"color": colors[place], "marker": MARKERS[place], "label": labels[name]}
        handles.append(_draw_line(panels[0], one, **style))
        rank = sum(_has_gap(earlier) for _, earlier in lines[:place])
        _mark_gaps(panels[0], one, 0.96 - _GAP_HEIGHT * rank, colors[place])
    legend_above(figure, handles + _draw_limits(panels, limits), n_columns)
    return figure, panels


def _draw_apart(
    lines: Sequence[tuple[str, pd.DataFrame]], limits: Sequence[float]
) -> tuple[Figure, list[Axes]]:
    from matplotlib.collections import LineCollection

    figure, panels = panel_grid(len(lines), legend_in=0.15 if limits else 0.0)
    paths = [one[["concurrency", "latency_mean"]].to_numpy() for _, one in lines]
    labels = short_names([name for name, _ in lines], title_length(len(lines)))
    for axes, (name, own) in zip(panels, lines, strict=True):
        axes.add_collection(LineCollection(paths, colors=PALE, linewidths=0.8, zorder=1))
        _draw_line(axes, own, color=BLUE, marker="o")
        if own["latency_mean"].isna().all():
            say(axes, missing(rows_of(own)[0]))
        axes.set_title(labels[name], **TITLE)
    handles = _draw_limits(panels, limits)
    if handles:
        legend_above(figure, handles, 1)
    return figure, panels


def _draw_line(axes: Axes, rows: pd.DataFrame, **style: Any) -> Any:
    """One experiment's means with their intervals, where there are means."""
    done = rows[rows["latency_mean"].notna()]
    arms = [_arms(row) for row in rows_of(done)]
    return axes.errorbar(
        done["concurrency"],
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
        place = (row["concurrency"], height)
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


def _scale(panels: Sequence[Axes], rows: pd.DataFrame, limits: Sequence[float]) -> None:
    levels = sorted(int(level) for level in rows["concurrency"].unique())
    ticks = _apart(levels, 1.25 if len(panels) == 1 else 1.9)
    panels[0].set_xscale("log", base=2)  # the panels share their axes
    panels[0].set_xticks(ticks, [str(level) for level in ticks])
    panels[0].minorticks_off()
    for axes in panels:
        quiet(axes, grid="y")
    n_gaps = sum(_has_gap(one) for _, one in _by_experiment(rows)) if len(panels) == 1 else 0
    panels[0].set_ylim(0, max([_top_of_lines(rows), *limits]) * 1.1 / (1 - _GAP_HEIGHT * n_gaps))
    panels[0].set_xlim(levels[0] / 1.3, levels[-1] * 1.5)


def _apart(levels: Sequence[int], ratio: float) -> list[int]:
    """Levels that leave room for their labels on a logarithmic axis."""
    kept: list[int] = []
    for level in levels:
        if not kept or level >= ratio * kept[-1]:
            kept.append(level)
    return kept

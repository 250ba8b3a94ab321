"""The error rates: one field a stage. Knows how to draw shares; counts no failures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fmgauge.report import wording
from fmgauge.report.drawing import (
    INK,
    LABEL,
    PALE,
    TITLE,
    VERMILION,
    WIDTH_IN,
    fitted_figure,
    plain,
    short_names,
)
from fmgauge.report.escaping import shortened
from fmgauge.report.load_levels import axis_name, ticks_of
from fmgauge.report.material import NOT_RUN, Material

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_GRIDS_ABREAST = 3
_CHAR_IN, _FIELD_IN, _FIELD_GAP_IN = 0.07, 0.42, 0.05  # of a label, and the least of a field
_UNKNOWN: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": PALE,
    "hatch": "////",
    "linewidth": 0,
}


def error_rates(material: Material) -> Figure:
    """The failed share of every stage: one grid a workload, candidates down, load across."""
    workloads = [workload.name for workload in material.config.workloads]
    ticks = ticks_of(material.metrics)
    names = short_names([experiment.name for experiment in material.experiments], 32)
    field_in = (WIDTH_IN - _CHAR_IN * max(map(len, names.values()))) / len(ticks)
    n_columns = _grids_abreast(len(workloads), field_in)
    n_rows = math.ceil(len(workloads) / n_columns)
    upright_in = _upright_in(ticks.values(), field_in / n_columns)
    figure = fitted_figure(0.7 + n_rows * (0.75 + 0.3 * len(names) + upright_in))
    panels = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
    for axes, workload in zip(panels, workloads, strict=False):
        shares = _shares(material, workload, list(ticks))
        _draw_grid(axes, shares, [ticks[str(stage)] for stage in shares], _top(material.metrics))
        axes.set_title(plain(shortened(workload, 34)), **TITLE)
        axes.tick_params(axis="x", labelrotation=90 if upright_in else 0)
    for axes in panels[len(workloads) :]:
        axes.set_visible(False)
    figure.suptitle(_title(material.metrics), fontsize=11, color=INK)
    figure.supxlabel(axis_name(material.metrics), **LABEL)
    return figure


def _grids_abreast(n_grids: int, field_in: float) -> int:
    """How many grids stand side by side: so many as leave room for the words in their fields."""
    return max(1, min(_MOST_GRIDS_ABREAST, n_grids, int(field_in / _FIELD_IN)))


def _upright_in(ticks: Iterable[str], field_in: float) -> float:
    """How much height the texts below a grid take more where they must stand upright, else 0."""
    longest_in = _CHAR_IN * max(map(len, ticks))
    return longest_in if longest_in > field_in - _FIELD_GAP_IN else 0.0


def _title(metrics: pd.DataFrame) -> str:
    rates = metrics["error_rate"].dropna()
    if rates.empty:
        return "No request was measured"
    if (rates == 0).all():
        return "No measured request failed"
    return f"Failed share of the measured requests, up to {wording.percent(rates.max())}"


def _top(metrics: pd.DataFrame) -> float:
    """The share that gets the full colour: the highest, but small ones stay pale."""
    return max([0.05, *(float(rate) for rate in metrics["error_rate"].dropna())])


def _shares(material: Material, workload: str, order: Sequence[str]) -> pd.DataFrame:
    """Failed share by experiment (rows) and stage (columns); NaN where none is known."""
    rows = material.metrics[material.metrics["workload"] == workload]
    grid = rows.pivot(index="experiment_name", columns="stage", values="error_rate")
    names = [experiment.name for experiment in material.experiments]
    return grid.reindex(names, columns=[stage for stage in order if stage in grid])


def _draw_grid(axes: Axes, grid: pd.DataFrame, ticks: Sequence[str], top: float) -> None:
    import seaborn as sns

    n_rows, n_columns = grid.shape
    colors = sns.light_palette(VERMILION, as_cmap=True)  # type: ignore[no-untyped-call]
    axes.pcolormesh(grid.to_numpy(), vmin=0, vmax=top, cmap=colors, edgecolors="white", lw=1.5)
    size = 8 if n_columns <= 4 else 7
    for y, rates in enumerate(grid.to_numpy()):
        for x, rate in enumerate(rates):
            _write_field(axes, x, y, float(rate), size)
    labels = short_names([str(name) for name in grid.index], 32)
    axes.set_yticks([y + 0.5 for y in range(n_rows)], list(labels.values()))
    axes.set_xticks([x + 0.5 for x in range(n_columns)], ticks)
    axes.set_ylim(n_rows, 0)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.spines[:].set_visible(False)


def _write_field(axes: Axes, x: int, y: int, rate: float, size: int) -> None:
    """The share in words; a field without one is hatched."""
    if math.isnan(rate):
        from matplotlib.patches import Rectangle

        axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, **_UNKNOWN))
    words = NOT_RUN if math.isnan(rate) else wording.percent(rate)
    axes.text(x + 0.5, y + 0.5, words, ha="center", va="center", fontsize=size, color=INK)

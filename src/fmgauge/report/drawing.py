"""What the report's pictures share: size, colours, grids of panels, legends, PNG. Knows no data.

Colours are seaborn's palette for the colour-blind, and a marker, a hatch or a word says the same
again. Every picture is 9 inches wide, and as high as its candidates need. Nothing here touches
matplotlib's global state.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fmgauge.report.escaping import shortened
from fmgauge.report.material import NOT_RUN, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, DPI = 9.0, 150
INK, GREY, PALE = "#333333", "#8c8c8c", "#d9d9d9"
BLUE, VERMILION = "#0173b2", "#d55e00"  # of the colour-blind palette
BUDGET: dict[str, Any] = {"color": INK, "linestyle": (0, (5, 3)), "linewidth": 1.2}
MARKERS = "osD^vPX*<>"
LABEL: dict[str, Any] = {"fontsize": 9, "color": INK}
TITLE: dict[str, Any] = {**LABEL, "loc": "left"}
LEGEND: dict[str, Any] = {"fontsize": 8.5, "title_fontsize": 8.5, "frameon": False}

_LEFT_IN, _RIGHT_IN, _BOTTOM_IN = 0.75, 0.12, 0.5
_GAP_IN, _TITLE_IN = 0.15, 0.3  # between columns, and above each row
_TITLE_LINE_IN = 0.16  # each further line of a title
_TICKS_IN = 0.2  # below each row that has an axis of its own
_LEGEND_CHAR_IN, _LEGEND_HANDLE_IN = 0.072, 0.57  # of a legend's entry


def fitted_figure(height_in: float) -> Figure:
    """A figure whose margins fit its texts; for few panels, since the fitting takes its time."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")


def panel_grid(
    n_panels: int, legend_in: float, *, share_x: bool = True, title_lines: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure with `n_panels` panels of one height, `legend_in` inches left above them.

    They share the axis across too, unless it means another thing in each.
    """
    from matplotlib.figure import Figure

    n_columns = columns_of(n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    panel_in = max(1.2, 3.6 - 0.8 * (n_columns - 1))
    above_in = _TITLE_IN + _TITLE_LINE_IN * (title_lines - 1) + (0 if share_x else _TICKS_IN)
    height_in = legend_in + _BOTTOM_IN + n_rows * (panel_in + above_in)
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI)
    grid = figure.subplots(n_rows, n_columns, sharex=share_x, sharey=True, squeeze=False).ravel()
    figure.subplots_adjust(
        left=_LEFT_IN / WIDTH_IN,
        right=1 - _RIGHT_IN / WIDTH_IN,
        top=1 - (legend_in + above_in) / height_in,
        bottom=_BOTTOM_IN / height_in,
        wspace=_GAP_IN / _panel_width_in(n_columns),
        hspace=above_in / panel_in,
    )
    for axes in grid[n_panels:]:
        axes.set_visible(False)
    for axes in grid[n_panels - n_columns : n_panels]:
        axes.tick_params(labelbottom=True)
    return figure, list(grid[:n_panels])


def columns_of(n_panels: int) -> int:
    """How many panels stand side by side, at most 5."""
    return n_panels if n_panels <= 3 else min(5, math.ceil(math.sqrt(n_panels)))


def title_length(n_panels: int) -> int:
    """How many characters of a title fit above one of `n_panels` panels."""
    return int(11.5 * _panel_width_in(columns_of(n_panels)))


def _panel_width_in(n_columns: int) -> float:
    return (WIDTH_IN - _LEFT_IN - _RIGHT_IN - (n_columns - 1) * _GAP_IN) / n_columns


def name_axes(figure: Figure, across: str, up: str) -> None:
    """Name the axes that all panels share, with their units."""
    figure.supxlabel(plain(across), y=0.1 / figure.get_figheight(), va="bottom", **LABEL)
    figure.supylabel(plain(up), x=0.1 / WIDTH_IN, ha="left", **LABEL)


def legend_above(figure: Figure, handles: Sequence[Any], n_columns: int, title: str = "") -> None:
    """One legend for all panels, at the figure's top."""
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 1.0)}
    figure.legend(handles=handles, ncols=n_columns, title=title or None, **place, **LEGEND)


def legend_columns(labels: Sequence[str]) -> int:
    """How many entries of a legend fit side by side, one at least."""
    entry_in = _LEGEND_HANDLE_IN + _LEGEND_CHAR_IN * max(map(len, labels), default=0)
    return max(1, min(len(labels), int(WIDTH_IN / entry_in)))


def palette(name: str, n_colors: int) -> list[Any]:
    """So many colours of one of seaborn's palettes."""
    import seaborn as sns

    return list(sns.color_palette(name, n_colors))  # type: ignore[no-untyped-call]


def quiet(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Light grid behind the data, no box around it."""
    axes.grid(True, axis=grid, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(labelsize=8, length=0, colors=INK)


def say(axes: Axes, words: str) -> None:
    """Words in the middle of a panel that has nothing to draw."""
    axes.text(0.5, 0.4, words, transform=axes.transAxes, ha="center", **LABEL)


def missing(row: Row) -> str:
    """Why a stage has no figure, in two words."""
    if row["status"] != "ok":
        return NOT_RUN
    if row["n_ok"]:
        return "not known"
    return "all failed" if row["n_requests"] else "no request"


def interval(row: Row, name: str) -> tuple[float, float]:
    """The bounds of an interval; NaN where the metrics hold none."""
    return float(row.get(f"{name}_ci_low", math.nan)), float(row.get(f"{name}_ci_high", math.nan))


def short_names(names: Sequence[str], most: int) -> dict[str, str]:
    """Each name as a label of at most about `most` characters, no two labels alike.

    Where a name is too long, the words that all names begin with go first, then its middle.
    """
    n_shared = _n_shared(names) if len(names) > 1 else 0
    labels = {
        name: name if len(name) <= most else shortened(f"…{name[n_shared:]}", most)
        for name in names
    }
    if len(set(labels.values())) < len(labels):
        labels = {
            name: f"{number}: {label}" for number, (name, label) in enumerate(labels.items(), 1)
        }
    return {name: plain(label) for name, label in labels.items()}


def _n_shared(names: Sequence[str]) -> int:
    """How many characters all names begin with, up to the end of a word."""
    letters = list(zip(*names, strict=False))
    alike = next((n for n, column in enumerate(letters) if len(set(column)) > 1), len(letters))
    return len(re.sub(r"[^\W_]+$", "", names[0][:alike]))


def plain(text: str) -> str:
    """`text` for matplotlib, which takes what stands between two dollar signs as mathematics."""
    return text.replace("$", r"\$")


def watermark(figure: Figure, word: str) -> None:
    """Write a word across a figure, faint enough to read all else through it."""
    figure.text(
        *(0.5, 0.5, word),
        ha="center",
        va="center",
        rotation=18,
        fontsize=64,
        color="black",
        alpha=0.08,
        in_layout=False,
    )


def png(figure: Figure) -> bytes:
    """The figure as PNG, without a note on what wrote it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script the font lacks
        canvas = FigureCanvasAgg(figure)
        canvas.print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()

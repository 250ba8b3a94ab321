"""What a load level is called, and where it stands among others. Knows both kinds of load.

Knows no figures: only the columns of the metrics table that say what was asked of a stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmgauge.config.stages import load_label
from fmgauge.report.material import Row, rows_of

if TYPE_CHECKING:
    import pandas as pd

CLOSED, OPEN = "closed_loop", "open_loop"
KINDS = (CLOSED, OPEN)
LINE = ["experiment_name", "kind", "arrivals"]  # the stages of one workload that form a line
AXIS = {CLOSED: "Concurrency, requests in flight", OPEN: "Request rate, requests/s"}


def kinds_of(frame: pd.DataFrame) -> list[str]:
    """The kinds of load in the metrics table, closed loop first."""
    return [kind for kind in KINDS if (frame["kind"] == kind).any()]


def is_closed_only(frame: pd.DataFrame) -> bool:
    """Whether the metrics table holds no open-loop stage, so that a level is a concurrency."""
    return OPEN not in kinds_of(frame)


def label_of(row: Row) -> str:
    """A stage's load level in words, such as 4 in flight or 2 requests/s."""
    if row["kind"] == OPEN:
        return load_label(None, float(row["request_rate_asked"]), row["arrivals"])
    return load_label(int(row["concurrency"]), None, None)


def labels_of(frame: pd.DataFrame) -> str:
    """Several stages' load levels, each unit once: 1, 2, 4 in flight; 0.5, 2 requests/s."""
    by_unit: dict[str, list[str]] = {}
    for row in rows_of(frame):
        label = label_of(row)
        unit = label.partition(" ")[2].replace("request/s", "requests/s")
        by_unit.setdefault(unit, []).append(label)
    return "; ".join(
        labels[0] if len(labels) == 1 else f"{', '.join(one.split()[0] for one in labels)} {unit}"
        for unit, labels in by_unit.items()
    )


def with_levels(frame: pd.DataFrame) -> pd.DataFrame:
    """The metrics table in order of load, beside it `level` (a number) and `label` (words).

    Closed loops come first, by requests in flight; then open loops, by requests per second.
    """
    in_flight = frame["concurrency"].astype("Float64").to_numpy("float64", na_value=float("nan"))
    level = frame["request_rate_asked"].where(frame["kind"] == OPEN, in_flight)
    labels = [label_of(row) for row in rows_of(frame)]
    levelled: pd.DataFrame = frame.assign(level=level, label=labels)
    return levelled.sort_values(["kind", "level", "arrivals"], kind="stable")


def ticks_of(frame: pd.DataFrame) -> dict[str, str]:
    """Each stage's name and the shortest text that tells its level, in order of load.

    Where both kinds of load stand side by side, they are written as 4 in flight and 2/s.
    """
    mixed = len(kinds_of(frame)) > 1
    rows = rows_of(with_levels(frame).drop_duplicates("stage"))
    return {row["stage"]: _tick(row, mixed) for row in rows}


def _tick(row: Row, mixed: bool) -> str:
    if row["kind"] == CLOSED:
        return f"{row['level']:.0f}{' in flight' if mixed else ''}"
    arrivals = "" if row["arrivals"] == "poisson" else f" {row['arrivals']}"
    return f"{row['level']:g}{'/s' if mixed else ''}{arrivals}"


def names_of(frame: pd.DataFrame) -> dict[str, str]:
    """Each stage's name and what a list calls its level, with its unit where there are several."""
    if len(kinds_of(frame)) < 2:
        return ticks_of(frame)
    rows = rows_of(with_levels(frame).drop_duplicates("stage"))
    return {row["stage"]: label_of(row) for row in rows}


def axis_name(kinds: list[str]) -> str:
    """What an axis of load levels shows."""
    if len(kinds) > 1:
        return "Load: requests in flight, or requests per second (/s)"
    return AXIS[kinds[0]] if kinds else AXIS[CLOSED]

"""What a load level is called, and where it stands among others. Knows both kinds of load.

Knows no figures: only the columns of the metrics table that say what was asked of a stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fmgauge.config.stages import load_label
from fmgauge.report.material import Row, rows_of
from fmgauge.report.wording import limit

if TYPE_CHECKING:
    import pandas as pd

CLOSED, OPEN = "closed_loop", "open_loop"
KINDS = (CLOSED, OPEN)
LINE = ["experiment_name", "kind", "arrivals", "think_time_s"]  # alike in one line of stages


def kinds_of(frame: pd.DataFrame) -> list[str]:
    """The kinds of load in the metrics table, closed loop first."""
    return [kind for kind in KINDS if (frame["kind"] == kind).any()]


def is_concurrency_only(frame: pd.DataFrame) -> bool:
    """Whether every level of the metrics table is a number of requests kept in flight."""
    return OPEN not in kinds_of(frame) and not _pauses(frame)


def _pauses(frame: pd.DataFrame) -> list[float]:
    """The think times of the users in the metrics table, shortest first."""
    return sorted({float(pause_s) for pause_s in frame["think_time_s"] if pause_s})


def label_of(row: Row) -> str:
    """A stage's load level in words, such as 4 in flight or 2 requests/s."""
    if row["kind"] == OPEN:
        return load_label(None, float(row["request_rate_asked"]), row["arrivals"])
    return load_label(int(row["concurrency"]), None, None, row["think_time_s"])


def labels_of(frame: pd.DataFrame) -> str:
    """Several stages' load levels, each unit once: 1, 2, 4 in flight; 0.5, 2 requests/s."""
    by_unit: dict[str, list[str]] = {}
    for row in rows_of(frame):
        label = label_of(row)
        unit = label.partition(" ")[2].replace("request/s", "requests/s")
        unit = unit.replace("user,", "users,")
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

    Where several kinds of level stand side by side, they are written as 4 in flight, 6 users and
    2/s; a stage's name may be of users in one experiment and not in another.
    """
    rows = rows_of(with_levels(frame))
    mixed = len({_unit(row) for row in rows}) > 1
    return _alternatives((row["stage"], _tick(row, mixed)) for row in rows)


def _alternatives(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each name with what it is called, or with all that it is called."""
    found: dict[str, list[str]] = {}
    for name, words in named:
        found.setdefault(name, []).append(words)
    return {name: " or ".join(dict.fromkeys(words)) for name, words in found.items()}


def _unit(row: Row) -> str:
    if row["kind"] == OPEN:
        return "/s"
    return " users" if row["think_time_s"] else " in flight"


def _tick(row: Row, mixed: bool) -> str:
    arrivals = "" if row["arrivals"] in ("", "poisson") else f" {row['arrivals']}"
    number = f"{row['level']:g}" if row["kind"] == OPEN else f"{row['level']:.0f}"
    return f"{number}{_unit(row) if mixed else ''}{arrivals}"


def names_of(frame: pd.DataFrame) -> dict[str, str]:
    """Each stage's name and what a list calls its level, with its unit where there are several."""
    rows = rows_of(with_levels(frame))
    if len({_unit(row) for row in rows}) < 2:
        return ticks_of(frame)
    return _alternatives((row["stage"], label_of(row)) for row in rows)


def units_of(frame: pd.DataFrame, kind: str) -> str:
    """What the levels of one kind of load count: requests in flight, users, or requests/s."""
    if kind == OPEN:
        return "requests/s"
    own = frame[frame["kind"] == CLOSED]
    pauses = _pauses(own)
    if not pauses:
        return "requests in flight"
    users = f"users, {' or '.join(map(limit, pauses))} s think time"
    return users if (own["think_time_s"] > 0).all() else f"requests in flight or {users}"


def axis_of(frame: pd.DataFrame, kind: str) -> str:
    """What an axis of one kind of load shows."""
    return f"{'Request rate' if kind == OPEN else 'Concurrency'}, {units_of(frame, kind)}"


def axis_name(frame: pd.DataFrame) -> str:
    """What an axis of the metrics table's load levels shows."""
    kinds = kinds_of(frame)
    if len(kinds) > 1:
        return f"Load: {units_of(frame, CLOSED)}, or requests per second (/s)"
    return axis_of(frame, kinds[0] if kinds else CLOSED)

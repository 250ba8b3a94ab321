"""The ledger: what a run created, one event a line, on disk before anything is created.

Knows events and their file; not how a resource is created or deleted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import orjson

EventKind = Literal["planned", "created", "deleted", "never_created"]
_NEWLINE = b"\n"


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """One thing that happened to one resource of a run, at a wall-clock time (UTC, ISO 8601).

    A cloud resource is known by its `arn`, a process by `pid` and `process_created_at` (seconds
    since 1970, as the system tells it). `usd_per_hour` is billed while it stands, loaded or not.
    """

    event: EventKind
    resource_type: str
    name: str
    run_id: str
    at: str
    owned: bool = True
    arn: str | None = None
    pid: int | None = None
    process_created_at: float | None = None
    experiment: str | None = None
    attempt: int | None = None  # counts the experiment's endpoints, from 1
    usd_per_hour: float | None = None


def append(path: Path, event: LedgerEvent) -> None:
    """Add `event` to the ledger at `path`; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = orjson.dumps(event) + _NEWLINE
    with path.open("ab+") as ledger:
        ledger.write(line if _ends_whole(path) else _NEWLINE + line)
        ledger.flush()
        os.fsync(ledger.fileno())
    _sync_folder(path.parent)


def _ends_whole(path: Path) -> bool:
    """Whether the last line is complete; a killed process may have left half of one."""
    with path.open("rb") as ledger:
        if ledger.seek(0, os.SEEK_END) == 0:
            return True
        ledger.seek(-1, os.SEEK_END)
        return ledger.read(1) == _NEWLINE


def _sync_folder(folder: Path) -> None:
    """Have the file's name on the disk, too, not only its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_ledger(path: Path) -> tuple[LedgerEvent, ...]:
    """The events in the ledger at `path` in the order of writing; none where there is no file.

    A line that a killed process left half-written tells nothing: its event is one that had not
    happened yet (`planned`), or that clean-up finds out again (the others).
    """
    if not path.exists():
        return ()
    values = (_parsed(line) for line in path.read_bytes().split(_NEWLINE))
    events = (LedgerEvent(**value) for value in values if value is not None)
    return tuple(event if event.experiment else _of_experiment(event) for event in events)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict):
        return None
    return {name: value[name] for name in LedgerEvent.__slots__ if name in value}  # others: later's


def _of_experiment(event: LedgerEvent) -> LedgerEvent:
    """`event` as it is written since events name their experiment: earlier, names alone did.

    A server of experiment `one` was called `llamacpp-one-1`, and its type `llamacpp_server`.
    """
    kind, (name, _, number) = (
        event.resource_type.removesuffix("_server"),
        event.name.rpartition("-"),
    )
    attempt = int(number) if number.isdecimal() else None
    return replace(event, experiment=name.removeprefix(f"{kind}-"), attempt=attempt)


def outstanding(events: Iterable[LedgerEvent]) -> tuple[LedgerEvent, ...]:
    """The latest event of each resource that was planned or created and has not gone since."""
    latest: dict[tuple[str, str], LedgerEvent] = {}
    for event in events:
        key = (event.resource_type, event.name)
        if event.event in ("deleted", "never_created"):
            latest.pop(key, None)
        else:
            latest[key] = event
    return tuple(latest.values())


def last_attempt(events: Iterable[LedgerEvent], experiment: str) -> int:
    """The number of the newest endpoint that was planned for `experiment`; 0 before the first."""
    return max((e.attempt or 0 for e in events if e.experiment == experiment), default=0)


def closing(event: LedgerEvent, kind: EventKind, at: str) -> LedgerEvent:
    """The event that closes what `event` left outstanding."""
    return replace(event, event=kind, at=at)

"""Deletes what the ledger calls outstanding, each by its kind, and notes what became of it.

Knows the ledger; not why something is to be deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fmgauge.endpoints.kinds import kind_that_creates
from fmgauge.endpoints.ledger import (
    EventKind,
    LedgerEvent,
    append,
    closing,
    outstanding,
    read_ledger,
)
from fmgauge.endpoints.protocol import Outcome
from fmgauge.errors import FmgaugeError
from fmgauge.runs import RunFolder, now_utc

_NOTED: dict[Outcome, EventKind] = {
    "ended": "deleted",
    "already_gone": "deleted",
    "never_created": "never_created",
}


def standing(run: RunFolder, experiment: str | None = None) -> tuple[LedgerEvent, ...]:
    """What this run planned or created and has not noted as gone, of one experiment or of all."""
    return tuple(
        event
        for event in outstanding(read_ledger(run.ledger_path))
        if event.owned and experiment in (None, event.experiment)
    )


def attempts(events: Sequence[LedgerEvent]) -> list[list[LedgerEvent]]:
    """The events of one experiment by attempt, the newest one first."""
    numbers = sorted({event.attempt or 0 for event in events}, reverse=True)
    return [[e for e in events if (e.attempt or 0) == number] for number in numbers]


@dataclass(frozen=True)
class Deletion:
    """What became of a resource that was to be deleted."""

    event: LedgerEvent
    outcome: Outcome
    reason: str = ""  # why it is left

    def __str__(self) -> str:
        """The resource's name, what it costs while it stands, and why it does."""
        cost = f" at ${self.event.usd_per_hour:.4g} an hour" if self.event.usd_per_hour else ""
        return f"{self.event.name}{cost}{f' ({self.reason})' if self.reason else ''}"


def deleted(run: RunFolder, event: LedgerEvent) -> Deletion:
    """Delete the resource of `event`, note it in the ledger, and say how it was found.

    One that cannot be deleted, or noted, is left, and so is one of a type that is not known here.
    """
    kind = kind_that_creates(event.resource_type)
    try:
        outcome = kind.delete(run, event) if kind else "left"
        if outcome in _NOTED:
            append(run.ledger_path, closing(event, _NOTED[outcome], now_utc().isoformat()))
    except (FmgaugeError, OSError) as error:
        return Deletion(event, "left", str(error))
    return Deletion(event, outcome)


def release(run: RunFolder, experiment: str) -> list[Deletion]:
    """Delete all that stands for `experiment`, last things first; what had to be left."""
    found = [deleted(run, event) for event in reversed(standing(run, experiment))]
    return [one for one in found if one.outcome == "left"]

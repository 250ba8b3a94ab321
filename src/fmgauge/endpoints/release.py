"""Deletes what the ledger calls outstanding, each by its kind, and notes what became of it.

Knows the ledger; not why something is to be deleted.
"""

from __future__ import annotations

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


def deleted(run: RunFolder, event: LedgerEvent) -> Outcome:
    """Delete the resource of `event`, note it in the ledger, and say how it was found.

    One of a type that this version cannot delete is left.
    """
    kind = kind_that_creates(event.resource_type)
    outcome = kind.delete(run, event) if kind else "left"
    if outcome in _NOTED:
        append(run.ledger_path, closing(event, _NOTED[outcome], now_utc().isoformat()))
    return outcome


def release(run: RunFolder, experiment: str) -> None:
    """Delete all that stands for `experiment`, last things first."""
    for event in reversed(standing(run, experiment)):
        deleted(run, event)

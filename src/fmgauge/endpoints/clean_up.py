"""Ends what a run created and still has, from the ledger alone; as often as it is asked.

Knows the ledger; not endpoints.json, and nothing that the run did not create.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

from fmgauge.emulator.lease import RUN_BY_PIPELINE
from fmgauge.endpoints.protocol import Outcome
from fmgauge.endpoints.release import deleted, standing
from fmgauge.errors import StepError
from fmgauge.records.locks import held, holder
from fmgauge.runs import RunFolder


@dataclass(frozen=True)
class CleanUpReport:
    """What became of the resources that were not yet noted as gone.

    Each by its name in the ledger, what it costs while it stands, and why it had to be left.
    """

    ended: tuple[str, ...]  # ran, and was ended now
    left: tuple[str, ...]  # could not be ended
    already_gone: tuple[str, ...] = ()  # had ended by itself, or was never created


class RunInUse(StepError):
    """Another living process works on the run."""


def clean_up(run: RunFolder, *, force: bool = False) -> CleanUpReport:
    """End every resource that this run created and that still exists; note it in the ledger.

    Raises RunInUse, and ends nothing, where another living process works on the run or loads its
    endpoints, unless `force`.
    """
    user = None if force else _user_of(run)
    if user is not None:
        raise RunInUse(
            f"{user} works on {run.run_id}, so nothing of it was ended. Wait until that process "
            f"has ended, or give `fmgauge clean-up {run.run_id} --force`"
        )
    with ExitStack() as alone:
        if not force:
            try:
                alone.enter_context(held(run.load_lock_path, f"works on {run.run_id}"))
            except StepError as error:  # somebody came since
                raise RunInUse(str(error)) from error
        deletions = [deleted(run, event) for event in reversed(standing(run))]

    def found(*wanted: Outcome) -> tuple[str, ...]:
        return tuple(str(deletion) for deletion in deletions if deletion.outcome in wanted)

    return CleanUpReport(found("ended"), found("left"), found("already_gone", "never_created"))


def _user_of(run: RunFolder) -> str | None:
    """The living process that uses the run, this one and the pipeline that runs it aside."""
    own = {f"process {os.getpid()}", f"process {os.environ.get(RUN_BY_PIPELINE)}"}
    users = (
        holder(path) for path in (run.pipeline_lock_path, run.use_lock_path, run.load_lock_path)
    )
    return next((user for user in users if user is not None and user not in own), None)

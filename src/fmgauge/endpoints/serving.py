"""Endpoints that stay up while they are being used, and go as soon as they are not.

Knows leases and release; not how anything is created or deleted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fmgauge.emulator.lease import RUN_BY_PIPELINE, hold
from fmgauge.endpoints.bring_up import (
    BY_HAND_TTL_S,
    HEARTBEAT_S,
    KILLED_ENDS_WITHIN_S,
    bring_up,
)
from fmgauge.endpoints.kinds import kind_of
from fmgauge.endpoints.ledger import LedgerEvent
from fmgauge.endpoints.release import attempts, release, standing
from fmgauge.errors import EndpointError, StepError
from fmgauge.records import Endpoint, held
from fmgauge.runs import Run

PIPELINE_TTL_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """The endpoints of a run by experiment, for as long as they are needed."""

    run: Run
    endpoints: dict[str, Endpoint]
    created: dict[str, list[LedgerEvent]] = field(default_factory=dict)  # by this run

    def release(self, experiment: str) -> None:
        """Delete the endpoint of `experiment` if this run owns it: its last stage has ended.

        What cannot be deleted now stays in the ledger, and clean-up tries again.
        """
        self.created.pop(experiment, None)
        release(self.run, experiment)

    def ended(self, experiment: str) -> str | None:
        """Why the endpoint of `experiment` can answer no more.

        None while it can, and where this run did not create it, or has released it. A load may ask
        several times a second.
        """
        created = self.created.get(experiment)
        if not created:
            return None
        try:
            return kind_of(self.endpoints[experiment]).ended(self.run, created)
        except EndpointError as error:  # its requests will tell
            _log.warning("%s: whether its endpoint has ended cannot be told: %s", experiment, error)
            return None


@contextmanager
def serving(run: Run) -> Iterator[Serving]:
    """The run's endpoints, brought up again where they have gone, kept alive while inside.

    Afterwards an endpoint that was not released lives until clean-up, or as long as its lease where
    it has one. Raises what `bring_up` does, and StepError where there is nothing to send.
    """
    for workload in run.config.workloads:
        if not run.payloads_path(workload.name).exists():
            nothing = (
                f"there are no payloads of workload {workload.name!r}, so nothing is brought up"
            )
            raise StepError(f"{nothing}. Run notebook 1_prepare_data first")
    uses = f"brings up or loads the endpoints of {run.run_id}"
    with (
        held(run.use_lock_path, uses, patience_s=KILLED_ENDS_WITHIN_S),
        hold(run.lease_path, "by hand", BY_HAND_TTL_S, HEARTBEAT_S),
    ):
        endpoints = {endpoint.experiment: endpoint for endpoint in bring_up(run)}
        created = {name: _noted(run, name) for name in endpoints}
        yield Serving(run, endpoints, created)


def _noted(run: Run, experiment: str) -> list[LedgerEvent]:
    """The newest endpoint of `experiment`, where all of it is noted as created."""
    newest = next(iter(attempts(standing(run, experiment))), [])
    return newest if all(event.event == "created" for event in newest) else []


@contextmanager
def hold_lease(run: Run) -> Iterator[None]:
    """Let the run's servers live while the pipeline does, and seconds longer.

    Kernels that are started meanwhile know by their environment which pipeline runs them.
    """
    os.environ[RUN_BY_PIPELINE] = str(os.getpid())
    try:
        with hold(run.lease_path, "pipeline", PIPELINE_TTL_S, HEARTBEAT_S):
            yield
    finally:
        os.environ.pop(RUN_BY_PIPELINE, None)

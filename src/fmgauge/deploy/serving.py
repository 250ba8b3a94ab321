"""Endpoints that stay up while they are being used, and go as soon as they are not.

Knows leases and release; not how a server is started or ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from fmgauge.deploy import local_servers
from fmgauge.deploy.bring_up import BY_HAND_TTL_S, bring_up
from fmgauge.emulator.lease import hold
from fmgauge.records import Endpoint
from fmgauge.runs import Run

HEARTBEAT_S = 2.0
PIPELINE_TTL_S = 10.0


@dataclass(frozen=True)
class Serving:
    """The endpoints of a run by experiment, for as long as they are needed."""

    run: Run
    endpoints: dict[str, Endpoint]

    def release(self, experiment: str) -> None:
        """End the endpoint of `experiment` if this run owns it: its last stage has ended."""
        for event in local_servers.outstanding_servers(self.run, experiment):
            local_servers.close(self.run, event)


@contextmanager
def serving(run: Run) -> Iterator[Serving]:
    """The run's endpoints, brought up again where they have gone, kept alive while inside.

    Afterwards an endpoint that was not released lives as long as its lease.
    """
    with hold(run.lease_path, "by hand", BY_HAND_TTL_S, HEARTBEAT_S):
        endpoints = {endpoint.experiment: endpoint for endpoint in bring_up(run)}
        yield Serving(run, endpoints)


def hold_lease(run: Run) -> AbstractContextManager[None]:
    """Let the run's servers live while the pipeline does, and seconds longer."""
    return hold(run.lease_path, "pipeline", PIPELINE_TTL_S, HEARTBEAT_S)

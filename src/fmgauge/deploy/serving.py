"""Endpoints that stay up while they are being used, and go as soon as they are not.

Knows leases and release; not how a server is started or ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fmgauge.deploy import local_servers
from fmgauge.deploy.bring_up import (
    BY_HAND_TTL_S,
    HEARTBEAT_S,
    KILLED_ENDS_WITHIN_S,
    bring_up,
)
from fmgauge.deploy.local_servers import Server
from fmgauge.emulator.lease import RUN_BY_PIPELINE, hold
from fmgauge.records import Endpoint, held
from fmgauge.runs import Run

PIPELINE_TTL_S = 10.0


@dataclass(frozen=True)
class Serving:
    """The endpoints of a run by experiment, for as long as they are needed."""

    run: Run
    endpoints: dict[str, Endpoint]
    servers: dict[str, Server] = field(default_factory=dict)  # this run's own, by experiment

    def release(self, experiment: str) -> None:
        """End the endpoint of `experiment` if this run owns it: its last stage has ended."""
        self.servers.pop(experiment, None)
        for event in local_servers.outstanding_servers(self.run, experiment):
            local_servers.close(self.run, event)

    def ended(self, experiment: str) -> str | None:
        """Why the endpoint of `experiment` can answer no more: its server's process has ended.

        None while it lives, and where this run owns no server of that experiment or has released
        it. This looks at one process alone, so a load may ask several times a second.
        """
        server = self.servers.get(experiment)
        if server is None or server.is_alive():
            return None
        return server.with_its_log(f"its server ended (process {server.process.pid})")


@contextmanager
def serving(run: Run) -> Iterator[Serving]:
    """The run's endpoints, brought up again where they have gone, kept alive while inside.

    Afterwards an endpoint that was not released lives as long as its lease. Raises what `bring_up`
    does.
    """
    uses = f"brings up or loads the endpoints of {run.run_id}"
    with (
        held(run.use_lock_path, uses, patience_s=KILLED_ENDS_WITHIN_S),
        hold(run.lease_path, "by hand", BY_HAND_TTL_S, HEARTBEAT_S),
    ):
        endpoints = {endpoint.experiment: endpoint for endpoint in bring_up(run)}
        yield Serving(run, endpoints, local_servers.noted_servers(run))


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

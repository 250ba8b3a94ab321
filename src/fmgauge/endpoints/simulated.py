"""Simulated servers on this machine: a timing model answers, and no model runs.

Knows presets and profiles; not how a server's process lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fmgauge.config import LoadedConfig
from fmgauge.config.model import Experiment
from fmgauge.config.refusals import nearest
from fmgauge.config.simulated import Faults, SimulatedEndpoint
from fmgauge.emulator import simulated_server
from fmgauge.emulator.presets import PRESETS
from fmgauge.endpoints.local_server import LocalServerKind
from fmgauge.endpoints.protocol import endpoint_of
from fmgauge.errors import Problem
from fmgauge.records import Endpoint


class SimulatedKind(LocalServerKind[SimulatedEndpoint]):
    """A timing model of a server."""

    name = "simulated"
    module = simulated_server.MODULE
    answered_by = "on a simulated server"
    is_simulated = True
    serve_example = f"{{kind: simulated, preset: {next(iter(PRESETS))}}}"

    def problems(self, loaded: LoadedConfig, experiment: Experiment) -> Iterator[Problem]:
        """A preset that there is not."""
        preset = getattr(experiment.endpoint, "preset", None)
        if preset is not None and preset not in PRESETS:
            index = loaded.config.experiments.index(experiment)
            location = ("experiments", index, "endpoint", "preset")
            yield loaded.problem(
                location, f"there is no preset {preset!r}", nearest(preset, PRESETS)
            )

    def command(
        self, loaded: LoadedConfig, wanted: SimulatedEndpoint, *, lease: Path, ready: Path
    ) -> Sequence[str]:
        """The command line that starts it."""
        return simulated_server.command(endpoint=wanted, lease=lease, ready=ready)

    def serve_command(
        self, wanted: SimulatedEndpoint, *, lease: Path, ready: Path, port: int
    ) -> Sequence[str]:
        """The command line that serves it without a run."""
        return simulated_server.command(endpoint=wanted, lease=lease, ready=ready, port=port)

    def endpoint(self, experiment: Experiment, wanted: SimulatedEndpoint) -> Endpoint:
        """It speaks whichever of OpenAI's APIs the config names."""
        return endpoint_of(experiment, owned=True, api=wanted.api)

    def first_question(self, endpoint: Endpoint) -> Endpoint:
        """The first answer is not to fail by a drawn fault: those are for the load to find."""
        return replace(endpoint, extra_body=endpoint.extra_body | simulated_server.NO_FAULT)

    def settings(self, wanted: SimulatedEndpoint) -> Iterator[str]:
        """What it imitates, and whether it misbehaves."""
        yield f"{wanted.api} API"
        yield f"preset {wanted.preset}" if wanted.preset else "a profile of the config's own"
        yield f"seed {wanted.seed}"
        yield "with faults" if wanted.faults != Faults() else "without faults"

"""The kinds of server that run on this machine: what differs between them, and nothing else.

Knows which module serves which kind of endpoint and how it is told what to do; not when.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmgauge.config import LoadedConfig
from fmgauge.config.model import LlamacppEndpoint
from fmgauge.config.refusals import nearest
from fmgauge.config.simulated import SimulatedEndpoint
from fmgauge.emulator import llamacpp_server, simulated_server
from fmgauge.emulator.gguf_model import built_model
from fmgauge.emulator.presets import PRESETS
from fmgauge.errors import Problem

LocalEndpoint = LlamacppEndpoint | SimulatedEndpoint

# Every prompt is computed in full, and every answer has the length that was asked for.
_LLAMACPP_BODY: dict[str, Any] = {"cache_prompt": False, "ignore_eos": True, "temperature": 0.0}

MODULES = {  # by the ledger's type of resource
    "llamacpp_server": llamacpp_server.MODULE,
    "simulated_server": simulated_server.MODULE,
}


def resource_type(kind: str) -> str:
    """What the ledger calls a server of a kind of endpoint."""
    return f"{kind}_server"


def kind_of(resource_type: str) -> str:
    """The kind of endpoint that such a server is for."""
    return resource_type.removesuffix("_server")


def prepare(loaded: LoadedConfig, endpoint: LocalEndpoint) -> None:
    """Make what the endpoint's server needs, before any clock runs: a model, where it has one."""
    if isinstance(endpoint, LlamacppEndpoint):
        _model_path(loaded, endpoint)


def command(
    loaded: LoadedConfig, endpoint: LocalEndpoint, *, lease: Path, ready: Path
) -> list[str]:
    """The command line that starts the endpoint's server."""
    match endpoint:
        case LlamacppEndpoint():
            return llamacpp_server.command(
                model=_model_path(loaded, endpoint),
                parallel=endpoint.parallel,
                threads=endpoint.threads,
                context_tokens=endpoint.context_tokens,
                lease=lease,
                ready=ready,
            )
        case SimulatedEndpoint():
            return simulated_server.command(endpoint=endpoint, lease=lease, ready=ready)


def request_fields(endpoint: LocalEndpoint) -> dict[str, Any]:
    """Fields for records.Endpoint: how requests to the endpoint's server look."""
    match endpoint:
        case LlamacppEndpoint():
            return {"extra_body": dict(_LLAMACPP_BODY)}
        case SimulatedEndpoint():
            return {"api": endpoint.api}


def preset_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """Every name of a preset that there is not."""
    for index, experiment in enumerate(loaded.config.experiments):
        endpoint = experiment.endpoint
        if isinstance(endpoint, SimulatedEndpoint) and endpoint.preset not in (None, *PRESETS):
            location = ("experiments", index, "endpoint", "preset")
            problem = f"there is no preset {endpoint.preset!r}"
            yield loaded.problem(location, problem, nearest(endpoint.preset or "", PRESETS))


def _model_path(loaded: LoadedConfig, endpoint: LlamacppEndpoint) -> Path:
    """The GGUF file that `endpoint` serves, built where the config names none."""
    if endpoint.gguf is None:
        return built_model(endpoint.layers, endpoint.width).path
    return loaded.resolve(endpoint.gguf)

"""Simulated endpoints served in the foreground, without a run, until somebody says stop.

Knows which servers and for how long; not what signals or command lines are.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from fmgauge.config import LoadedConfig
from fmgauge.config.refusals import nearest
from fmgauge.config.simulated import SimulatedEndpoint
from fmgauge.deploy import local_servers, processes
from fmgauge.deploy.bring_up import HEARTBEAT_S
from fmgauge.deploy.local_kinds import preset_problems
from fmgauge.deploy.local_servers import Server
from fmgauge.deploy.serving import PIPELINE_TTL_S
from fmgauge.emulator import simulated_server
from fmgauge.emulator.lease import hold
from fmgauge.emulator.presets import PRESETS
from fmgauge.errors import ConfigError, EndpointError, Problem
from fmgauge.transport import RealClock

_LISTENS_WITHIN_S = 30.0
_POLL_S = 0.1
_QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {  # by API: its path, and what to ask there
    "chat": (
        "chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},
    ),
    "completions": ("completions", {"prompt": "Hello", "max_tokens": 8}),
    "responses": ("responses", {"input": "Hello", "max_output_tokens": 8}),
}


def serve(
    loaded: LoadedConfig,
    *,
    experiment: str | None = None,
    port: int = 0,
    stopped: Callable[[], bool],
    say: Callable[[str], object],
) -> None:
    """Serve the config's simulated endpoints, or that of one experiment, until `stopped()`.

    Each is a process of its own. They listen on `port` and the ones after it, or on free ones where
    it is 0, and `say` tells each one's address, how to try the first, and how to stop. Nothing is
    left behind; also where this process is killed, they end within seconds. Raises ConfigError
    where there is none to serve, EndpointError where one does not come up or ends by itself.
    """
    chosen = _chosen(loaded, experiment)
    with _started(chosen, port) as servers:
        base_urls = [_base_url(server) for server in servers]
        for server, base_url in zip(servers, base_urls, strict=True):
            say(f"{server.name}: {base_url} (simulated)")
        say(f"Try it: {_curl(next(iter(chosen.values())), base_urls[0])}")
        say(f"Ctrl-C stops {'it' if len(servers) == 1 else 'them'}.")
        while not stopped():
            _refuse_ended(servers)
            time.sleep(_POLL_S)


def _curl(endpoint: SimulatedEndpoint, base_url: str) -> str:
    """A command line that asks the endpoint for a streamed answer of eight tokens."""
    path, question = _QUESTIONS[endpoint.api]
    body = orjson.dumps(question | {"stream": True}).decode()
    arguments = ["-H", "content-type: application/json", "-d", body]
    return f"curl -N {base_url}/{path} {shlex.join(arguments)}"


def _base_url(server: Server) -> str:
    clock = RealClock()
    try:
        deadline_s = clock.now_s() + _LISTENS_WITHIN_S
        return local_servers.base_url_once_listening(server, clock, deadline_s)
    except EndpointError as error:
        reason = server.last_log_lines() or "nothing was printed"
        raise EndpointError(f"the server of {server.name}: {error}: {reason}") from error


def _chosen(loaded: LoadedConfig, name: str | None) -> dict[str, SimulatedEndpoint]:
    """The simulated endpoints to serve, by experiment."""
    if problems := list(preset_problems(loaded)):
        raise ConfigError(*problems)
    simulated = {
        experiment.name: experiment.endpoint
        for experiment in loaded.config.experiments
        if isinstance(experiment.endpoint, SimulatedEndpoint)
    }
    if not simulated:
        problem = "no experiment has a simulated endpoint"
        remedy = f"Give one endpoint: {{kind: simulated, preset: {next(iter(PRESETS))}}}"
        raise ConfigError(Problem(str(loaded.path), None, "experiments", problem, remedy))
    if name is None:
        return simulated
    if name not in simulated:
        problem = f"no experiment {name!r} has a simulated endpoint"
        raise ConfigError(Problem("--experiment", None, "", problem, nearest(name, simulated)))
    return {name: simulated[name]}


@contextmanager
def _started(endpoints: Mapping[str, SimulatedEndpoint], port: int) -> Iterator[list[Server]]:
    """A server for each endpoint, ended when this is left; their files lie in a folder as long."""
    servers: list[Server] = []
    with tempfile.TemporaryDirectory(prefix="fmgauge-serve-") as name:
        folder = Path(name)
        lease = folder / "lease.json"
        with hold(lease, "pipeline", PIPELINE_TTL_S, HEARTBEAT_S):
            try:
                for number, (experiment, endpoint) in enumerate(endpoints.items()):
                    ready = folder / f"{experiment}.ready.json"
                    command_line = simulated_server.command(
                        endpoint=endpoint, lease=lease, ready=ready, port=port and port + number
                    )
                    log_path = folder / f"{experiment}.log"
                    servers.append(local_servers.launch(experiment, command_line, ready, log_path))
                yield servers
            finally:
                for server in servers:
                    processes.end(server.process)


def _refuse_ended(servers: Sequence[Server]) -> None:
    for server in servers:
        if not server.is_alive():
            reason = server.last_log_lines() or "nothing was printed"
            raise EndpointError(f"the server of {server.name} ended by itself: {reason}")

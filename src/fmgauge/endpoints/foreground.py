"""Endpoints served in the foreground, without a run, until somebody says stop.

Knows which servers and for how long; not of which kind, nor what signals or command lines are.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from fmgauge.config import LoadedConfig
from fmgauge.config.model import Experiment
from fmgauge.config.refusals import nearest
from fmgauge.emulator.lease import hold
from fmgauge.endpoints import processes
from fmgauge.endpoints.bring_up import HEARTBEAT_S
from fmgauge.endpoints.kinds import KINDS, kind_of
from fmgauge.endpoints.local_server import ServerFiles, base_url_once_listening, launch
from fmgauge.endpoints.processes import ProcessId
from fmgauge.endpoints.serving import PIPELINE_TTL_S
from fmgauge.errors import ConfigError, EndpointError, Problem
from fmgauge.records import Payload
from fmgauge.transport import RealClock
from fmgauge.wire import format_of

_LISTENS_WITHIN_S = 30.0
_POLL_S = 0.1
_QUESTION = Payload("try it", "Hello", None, 1, max_output_tokens=8)


@dataclass(frozen=True)
class _Server:
    """One server: the experiment that it stands for, its process and its files."""

    experiment: Experiment
    process: ProcessId
    files: ServerFiles

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment.name

    def base_url(self) -> str:
        """Its address as soon as it listens; EndpointError where it does not."""
        clock = RealClock()
        deadline_s = clock.now_s() + _LISTENS_WITHIN_S
        try:
            return base_url_once_listening(self.files.ready, self.process, clock, deadline_s)
        except EndpointError as error:
            raise EndpointError(f"the server of {self.name}: {error}: {self.printed()}") from error

    def printed(self) -> str:
        """The last that it printed."""
        return self.files.last_log_lines() or "nothing was printed"


def serve(
    loaded: LoadedConfig,
    *,
    experiment: str | None = None,
    port: int = 0,
    stopped: Callable[[], bool],
    say: Callable[[str], object],
) -> None:
    """Serve the config's endpoints that need no hardware, or one experiment's, until `stopped()`.

    Each is a process of its own. They listen on `port` and the ones after it, or on free ones where
    it is 0, and `say` tells each one's address, how to try the first, and how to stop. Nothing is
    left behind; also where this process is killed, they end within seconds. Raises ConfigError
    where there is none to serve, EndpointError where one does not come up or ends by itself.
    """
    with _started(_chosen(loaded, experiment), port) as servers:
        base_urls = [server.base_url() for server in servers]
        for server, base_url in zip(servers, base_urls, strict=True):
            say(f"{server.name}: {base_url} ({server.experiment.endpoint.kind})")
        say(f"Try it: {_curl(servers[0].experiment, base_urls[0])}")
        say(f"Ctrl-C stops {'it' if len(servers) == 1 else 'them'}.")
        while not stopped():
            _refuse_ended(servers)
            time.sleep(_POLL_S)


def _curl(experiment: Experiment, base_url: str) -> str:
    """A command line that asks an endpoint for a streamed answer of eight tokens."""
    endpoint = kind_of(experiment.endpoint).endpoint(experiment, experiment.endpoint)
    form = format_of(endpoint)
    body = orjson.dumps(form.body(endpoint, _QUESTION)).decode()
    arguments = ["-H", "content-type: application/json", "-d", body]
    return f"curl -N {base_url}/{form.path} {shlex.join(arguments)}"


def _chosen(loaded: LoadedConfig, name: str | None) -> list[Experiment]:
    """The experiments whose endpoints to serve."""
    experiments = loaded.config.experiments
    problems = [one for e in experiments for one in kind_of(e.endpoint).problems(loaded, e)]
    if problems:
        raise ConfigError(*problems)
    served = {e.name: e for e in experiments if kind_of(e.endpoint).serve_example}
    kinds = [kind for kind in KINDS.values() if kind.serve_example]
    words = " or ".join(kind.name for kind in kinds)
    if not served:
        problem = f"no experiment has a {words} endpoint"
        remedy = f"Give one endpoint: {kinds[0].serve_example}"
        raise ConfigError(Problem(str(loaded.path), None, "experiments", problem, remedy))
    if name is None:
        return list(served.values())
    if name not in served:
        problem = f"no experiment {name!r} has a {words} endpoint"
        raise ConfigError(Problem("--experiment", None, "", problem, nearest(name, served)))
    return [served[name]]


@contextmanager
def _started(experiments: Sequence[Experiment], port: int) -> Iterator[list[_Server]]:
    """A server for each, ended when this is left; their files lie in a folder as long."""
    servers: list[_Server] = []
    with tempfile.TemporaryDirectory(prefix="fmgauge-serve-") as name:
        folder = Path(name)
        lease = folder / "lease.json"
        with hold(lease, "pipeline", PIPELINE_TTL_S, HEARTBEAT_S):
            try:
                for number, one in enumerate(experiments):
                    ready = folder / f"{one.name}.ready.json"
                    files = ServerFiles(ready, folder / f"{one.name}.log")
                    command = kind_of(one.endpoint).serve_command(
                        one.endpoint, lease=lease, ready=ready, port=port and port + number
                    )
                    servers.append(_Server(one, launch(command, files.log), files))
                yield servers
            finally:
                for server in servers:
                    processes.end(server.process)


def _refuse_ended(servers: Sequence[_Server]) -> None:
    for server in servers:
        if processes.running(server.process) is None:
            raise EndpointError(f"the server of {server.name} ended by itself: {server.printed()}")

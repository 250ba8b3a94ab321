"""A run's own servers on this machine: planned in the ledger, started, found again, ended.

Knows the ledger's names for them and their files; not which kinds there are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fmgauge.config.model import Experiment
from fmgauge.deploy import processes
from fmgauge.deploy.ledger import (
    EventKind,
    LedgerEvent,
    append,
    closing,
    outstanding,
    read_ledger,
    times_planned,
)
from fmgauge.deploy.local_kinds import MODULES, LocalEndpoint, command, kind_of, resource_type
from fmgauge.deploy.processes import ProcessId
from fmgauge.emulator.ready_file import ready_base_url
from fmgauge.errors import EndpointError
from fmgauge.runs import Run, RunFolder, now_utc
from fmgauge.transport import Clock

Outcome = Literal["ended", "already_gone", "left"]

_POLL_S = 0.02
_LOG_LINES = 6


@dataclass(frozen=True)
class Server:
    """One server that was started: its name in the ledger, its process, its files."""

    name: str
    process: ProcessId
    ready_path: Path
    log_path: Path

    def is_alive(self) -> bool:
        """Whether its process lives."""
        return processes.running(self.process) is not None

    def ends_within(self, patience_s: float) -> bool:
        """Wait for its end, no longer than `patience_s`; say whether it has ended."""
        return processes.ends_within(self.process, patience_s)

    def last_log_lines(self) -> str:
        """The last lines that this server printed, joined by bars."""
        if not self.log_path.exists():
            return ""
        lines = self.log_path.read_text(errors="replace").split("\n")
        return " | ".join([line.strip() for line in lines if line.strip()][-_LOG_LINES:])

    def with_its_log(self, reason: str) -> str:
        """`reason`, and how this server's log ends."""
        return f"{reason}; {self.log_path.name} ends with: {self.last_log_lines() or 'nothing'}"


def start(run: Run, experiment: Experiment, endpoint: LocalEndpoint) -> Server:
    """Start a server for `experiment`, written in the ledger before and after.

    Raises EndpointError where the process cannot be started.
    """
    prefix = _name_prefix(endpoint.kind, experiment.name)
    name = f"{prefix}-{times_planned(read_ledger(run.ledger_path), prefix) + 1}"
    ready_path = _ready_path(run, name)
    command_line = command(run.loaded, endpoint, lease=run.lease_path, ready=ready_path)
    now = now_utc().isoformat()
    planned = LedgerEvent("planned", resource_type(endpoint.kind), name, run.run_id, now)
    append(run.ledger_path, planned)
    try:
        server = launch(name, command_line, ready_path, _log_path(run, name))
    except EndpointError:
        append(run.ledger_path, closing(planned, "never_created", now_utc().isoformat()))
        raise
    append(run.ledger_path, _created(planned, server.process))
    return server


def launch(name: str, command_line: Sequence[str], ready_path: Path, log_path: Path) -> Server:
    """Start a server's process; EndpointError where it cannot be started."""
    try:
        process = processes.start_detached(command_line, log_path, os.environ)
    except OSError as error:
        raise EndpointError(f"the server's process cannot be started: {error}") from error
    return Server(name, process, ready_path, log_path)


def _created(planned: LedgerEvent, process: ProcessId) -> LedgerEvent:
    return replace(
        planned,
        event="created",
        at=now_utc().isoformat(),
        pid=process.pid,
        process_created_at=process.created_at,
    )


def _name_prefix(kind: str, experiment: str) -> str:
    return f"{kind}-{experiment}"


def _ready_path(run: RunFolder, name: str) -> Path:
    return run.logs_folder / f"{name}.ready.json"


def _log_path(run: RunFolder, name: str) -> Path:
    return run.logs_folder / f"{name}.log"


def base_url_once_listening(server: Server, clock: Clock, deadline_s: float) -> str:
    """The server's address, ending in /v1, as soon as it listens.

    Raises EndpointError where its process ends first, or `clock` passes `deadline_s`.
    """
    while not server.ready_path.exists():
        if not server.is_alive():
            raise EndpointError("the server ended before it listened")
        if clock.now_s() > deadline_s:
            raise EndpointError("the server does not listen")
        time.sleep(_POLL_S)
    return ready_base_url(server.ready_path)


def outstanding_servers(run: RunFolder, experiment: str | None = None) -> tuple[LedgerEvent, ...]:
    """This run's servers that may still run, of one experiment or of all."""
    events = outstanding(read_ledger(run.ledger_path))
    return tuple(
        event
        for event in events
        if event.owned
        and event.resource_type in MODULES
        and experiment in (None, _experiment_of(event))
    )


def _experiment_of(event: LedgerEvent) -> str:
    return event.name.rpartition("-")[0].removeprefix(
        _name_prefix(kind_of(event.resource_type), "")
    )


def living_server(run: RunFolder, experiment: str) -> Server | None:
    """The server of `experiment` whose process lives, or None."""
    for event in outstanding_servers(run, experiment):
        if process := _process(run, event):
            return _server(run, event, process)
    return None


def noted_servers(run: RunFolder) -> dict[str, Server]:
    """This run's servers that are noted as created and not as ended, by experiment."""
    return {
        _experiment_of(event): _server(run, event, process)
        for event in outstanding_servers(run)
        if (process := _noted_process(event))
    }


def _server(run: RunFolder, event: LedgerEvent, process: ProcessId) -> Server:
    return Server(event.name, process, _ready_path(run, event.name), _log_path(run, event.name))


def close(run: RunFolder, event: LedgerEvent) -> Outcome:
    """End the server that `event` left outstanding, note it in the ledger, say how it was found."""
    process = _process(run, event)
    if process is not None and not processes.end(process):
        return "left"
    listened = _ready_path(run, event.name).exists()
    was_created = process is not None or event.event == "created" or listened
    kind: EventKind = "deleted" if was_created else "never_created"
    append(run.ledger_path, closing(event, kind, now_utc().isoformat()))
    return "already_gone" if process is None else "ended"


def _process(run: RunFolder, event: LedgerEvent) -> ProcessId | None:
    """The server's process as the ledger knows it, else the one whose command line names it.

    A process that was planned but not noted as created is found by the second way alone. One whose
    command line names another folder is that run's: this folder is a copy of it.
    """
    ready_path = _ready_path(run, event.name)
    noted = _noted_process(event)
    found = None if noted is None else processes.running(noted)
    if found is not None:
        own = os.path.realpath(ready_path)
        is_own = any(os.path.realpath(part) == own for part in found.cmdline())
        return noted if is_own else None
    arguments = [MODULES[event.resource_type], str(ready_path)]
    return processes.running_with(arguments)


def _noted_process(event: LedgerEvent) -> ProcessId | None:
    if event.pid is None or event.process_created_at is None:
        return None
    return ProcessId(event.pid, event.process_created_at)

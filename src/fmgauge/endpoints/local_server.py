"""Kinds whose endpoint is a server of this run's own, a detached process on this machine.

Knows how such a process is named, started, found again and ended; not what it answers with.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fmgauge.config import LoadedConfig
from fmgauge.config.model import Experiment
from fmgauge.emulator.ready_file import ready_base_url
from fmgauge.endpoints import processes
from fmgauge.endpoints.ledger import LedgerEvent
from fmgauge.endpoints.processes import ProcessId
from fmgauge.endpoints.protocol import Kind, Outcome, Resource
from fmgauge.errors import EndpointError
from fmgauge.records import Endpoint
from fmgauge.runs import Run, RunFolder
from fmgauge.transport import Clock

_POLL_S = 0.02
_LOG_LINES = 6

Settings = TypeVar("Settings", contravariant=True)


@dataclass(frozen=True)
class ServerFiles:
    """The files of one server: what it writes once it listens, and what it prints."""

    ready: Path
    log: Path

    def last_log_lines(self) -> str:
        """The last lines that this server printed, joined by bars."""
        if not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").split("\n")
        return " | ".join([line.strip() for line in lines if line.strip()][-_LOG_LINES:])


class LocalServerKind(Kind[Settings]):
    """A server that is started as `python -m <module>` and lives as long as the run's lease."""

    module: str
    is_local = True

    @property
    def resource_types(self) -> tuple[str, ...]:  # type: ignore[override]
        """One process."""
        return (f"{self.name}_server",)

    @abstractmethod
    def command(
        self, loaded: LoadedConfig, wanted: Settings, *, lease: Path, ready: Path
    ) -> Sequence[str]:
        """The command line that starts it.

        It ends with the lease in the file `lease`, and writes its address to `ready`.
        """

    def plan(self, run: Run, experiment: Experiment, attempt: int) -> Sequence[Resource]:
        """One server."""
        (resource_type,) = self.resource_types
        return [Resource(resource_type, f"{self.name}-{experiment.name}-{attempt}")]

    def create(self, run: Run, wanted: Settings, planned: LedgerEvent) -> LedgerEvent:
        """Start its process."""
        files = _files(run, planned)
        command = self.command(run.loaded, wanted, lease=run.lease_path, ready=files.ready)
        process = launch(command, files.log)
        return replace(planned, pid=process.pid, process_created_at=process.created_at)

    def wait(
        self,
        run: Run,
        endpoint: Endpoint,
        created: Sequence[LedgerEvent],
        clock: Clock,
        deadline_s: float,
    ) -> Endpoint:
        """Its address, once it listens."""
        event = created[-1]  # an earlier one may stand that could not be ended
        process = _process(run, event, self.module)
        base_url = base_url_once_listening(_files(run, event).ready, process, clock, deadline_s)
        return replace(endpoint, base_url=base_url)

    def ended(self, run: RunFolder, created: Sequence[LedgerEvent]) -> str | None:
        """That its process has ended. While it lives, this looks at one process alone."""
        event = created[-1]
        if _process(run, event, self.module) is not None:
            return None
        return self.explained(run, created, f"its server ended (process {event.pid})")

    def delete(self, run: RunFolder, event: LedgerEvent) -> Outcome:
        """End its process, if that lives."""
        process = _process(run, event, self.module)
        if process is not None:
            return "ended" if processes.end(process) else "left"
        was_created = event.event == "created" or _files(run, event).ready.exists()
        return "already_gone" if was_created else "never_created"

    def explained(self, run: RunFolder, created: Sequence[LedgerEvent], reason: str) -> str:
        """`reason`, and how the server's log ends."""
        event = created[-1]
        files = _files(run, event)
        return f"{reason}; {files.log.name} ends with: {files.last_log_lines() or 'nothing'}"


def launch(command: Sequence[str], log_path: Path) -> ProcessId:
    """Start a server's process; EndpointError where it cannot be started."""
    try:
        return processes.start_detached(command, log_path, os.environ)
    except OSError as error:
        raise EndpointError(f"the server's process cannot be started: {error}") from error


def base_url_once_listening(
    ready_path: Path, process: ProcessId | None, clock: Clock, deadline_s: float
) -> str:
    """A server's address, ending in /v1, as soon as it listens.

    Raises EndpointError where its process ends first, or `clock` passes `deadline_s`.
    """
    while not ready_path.exists():
        if process is None or processes.running(process) is None:
            raise EndpointError("the server ended before it listened")
        if clock.now_s() > deadline_s:
            raise EndpointError("the server does not listen")
        time.sleep(_POLL_S)
    return ready_base_url(ready_path)


def _files(run: RunFolder, event: LedgerEvent) -> ServerFiles:
    logs = run.logs_folder
    return ServerFiles(logs / f"{event.name}.ready.json", logs / f"{event.name}.log")


def _process(run: RunFolder, event: LedgerEvent, module: str) -> ProcessId | None:
    """The server's process as the ledger knows it, else the one whose command line names it.

    A process that was planned but not noted as created is found by the second way alone. One whose
    command line names another folder is that run's: this folder is a copy of it.
    """
    ready_path = _files(run, event).ready
    noted = ProcessId(event.pid or 0, event.process_created_at or 0.0)
    arguments = processes.command_line(noted) if event.pid else None
    if arguments is None:
        return processes.running_with([module, str(ready_path)])
    own = os.path.realpath(ready_path)
    return noted if any(os.path.realpath(part) == own for part in arguments) else None

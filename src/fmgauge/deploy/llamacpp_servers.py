"""A run's own llama.cpp servers: planned in the ledger, started, found again, ended.

Knows the ledger's names for them and their files; not what is asked of them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fmgauge.config.model import Experiment, LlamacppEndpoint
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
from fmgauge.deploy.processes import ProcessId
from fmgauge.emulator import llamacpp_server
from fmgauge.emulator.gguf_model import built_model
from fmgauge.errors import EndpointError
from fmgauge.records import read_json
from fmgauge.runs import Run, RunFolder, now_utc
from fmgauge.transport import Clock

RESOURCE_TYPE = "llamacpp_server"
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
    log_offset: int  # earlier servers of the experiment wrote what stands before it

    def last_log_lines(self) -> str:
        """The last lines that this server printed, joined by bars."""
        with self.log_path.open("rb") as log:
            log.seek(self.log_offset)
            lines = log.read().decode(errors="replace").split("\n")
        return " | ".join([line.strip() for line in lines if line.strip()][-_LOG_LINES:])


def model_path(run: Run, endpoint: LlamacppEndpoint) -> Path:
    """The GGUF file that `endpoint` serves, built where the config names none."""
    if endpoint.gguf is None:
        return built_model(endpoint.layers, endpoint.width).path
    return run.loaded.resolve(endpoint.gguf)


def start(run: Run, experiment: Experiment, endpoint: LlamacppEndpoint, model: Path) -> Server:
    """Start a server for `experiment`, written in the ledger before and after.

    Raises EndpointError where the process cannot be started.
    """
    prefix = _name_prefix(experiment.name)
    name = f"{prefix}-{times_planned(read_ledger(run.ledger_path), prefix) + 1}"
    planned = LedgerEvent("planned", RESOURCE_TYPE, name, run.run_id, now_utc().isoformat())
    append(run.ledger_path, planned)
    ready_path, log_path = _ready_path(run, name), run.logs_folder / f"{experiment.name}.log"
    log_offset = log_path.stat().st_size if log_path.exists() else 0
    command = llamacpp_server.command(
        model=model,
        parallel=endpoint.parallel,
        threads=endpoint.threads,
        context_tokens=endpoint.context_tokens,
        lease=run.lease_path,
        ready=ready_path,
    )
    process = _started(run, planned, command, log_path)
    return Server(name, process, ready_path, log_path, log_offset)


def _started(run: Run, planned: LedgerEvent, command: list[str], log_path: Path) -> ProcessId:
    try:
        process = processes.start_detached(command, log_path, os.environ)
    except OSError as error:
        append(run.ledger_path, closing(planned, "never_created", now_utc().isoformat()))
        raise EndpointError(f"the server's process cannot be started: {error}") from error
    created = LedgerEvent(
        event="created",
        resource_type=RESOURCE_TYPE,
        name=planned.name,
        run_id=run.run_id,
        at=now_utc().isoformat(),
        pid=process.pid,
        process_created_at=process.created_at,
    )
    append(run.ledger_path, created)
    return process


def _name_prefix(experiment: str) -> str:
    return f"llamacpp-{experiment}"


def _ready_path(run: RunFolder, name: str) -> Path:
    return run.logs_folder / f"{name}.ready.json"


def base_url_once_listening(server: Server, clock: Clock, deadline_s: float) -> str:
    """The server's address, ending in /v1, as soon as it listens.

    Raises EndpointError where its process ends first, or `clock` passes `deadline_s`.
    """
    while not server.ready_path.exists():
        if processes.running(server.process) is None:
            raise EndpointError("the server ended before it listened")
        if clock.now_s() > deadline_s:
            raise EndpointError("the server does not listen")
        time.sleep(_POLL_S)
    base_url: str = read_json(server.ready_path)["base_url"]
    return base_url


def outstanding_servers(run: RunFolder, experiment: str | None = None) -> tuple[LedgerEvent, ...]:
    """This run's servers that may still run, of one experiment or of all."""
    events = outstanding(read_ledger(run.ledger_path))
    return tuple(
        event
        for event in events
        if event.owned
        and event.resource_type == RESOURCE_TYPE
        and experiment in (None, _experiment_of(event))
    )


def _experiment_of(event: LedgerEvent) -> str:
    return event.name.rpartition("-")[0].removeprefix(_name_prefix(""))


def is_running(run: RunFolder, name: str) -> bool:
    """Whether the server that the ledger calls `name` is alive."""
    named = [event for event in outstanding_servers(run) if event.name == name]
    return any(_process(run, event) for event in named)


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

    A process that was planned but not noted as created is found by the second way alone.
    """
    if event.pid is not None and event.process_created_at is not None:
        noted = ProcessId(event.pid, event.process_created_at)
        if processes.running(noted):
            return noted
    return processes.running_with([llamacpp_server.MODULE, str(_ready_path(run, event.name))])

"""Detached processes: start one, find it again later, end it and nothing else.

Knows pids, start times and signals; not what a process does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_POLL_S = 0.02
_SAME_START_S = 1.0  # how far two readings of one process's start may lie apart
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its pid may be used again, its pid with its start time may not."""

    pid: int
    created_at: float  # seconds since 1970, as the system tells it


def start_detached(
    command: Sequence[str], log_path: Path, environment: Mapping[str, str]
) -> ProcessId:
    """Start `command` in a session of its own, its output appended to `log_path`.

    It outlives this process and gets no signal from its terminal. Raises OSError where it cannot
    be started.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log_path), _APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(command[0], list(command), environment, file_actions=streams, setsid=True)
    return ProcessId(pid, psutil.Process(pid).create_time())


def running(process: ProcessId) -> psutil.Process | None:
    """The process itself, or None where it has ended; another one with its pid is not it."""
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.created_at) < _SAME_START_S
        return found if same and not _is_ended(found) else None
    except psutil.NoSuchProcess:
        return None


def command_line(process: ProcessId) -> list[str] | None:
    """What `process` was started as, or None where it has ended."""
    found = running(process)
    try:
        return None if found is None else found.cmdline()
    except psutil.NoSuchProcess:  # just now
        return None


def _is_ended(found: psutil.Process) -> bool:
    """Whether nothing is left of it but its exit status; our own child's is collected."""
    if found.status() != psutil.STATUS_ZOMBIE:
        return False
    try:
        if found.ppid() == os.getpid():
            found.wait(timeout=0)
    except psutil.TimeoutExpired:  # its first thread has ended, others are about to
        return False
    return True


def running_with(arguments: Sequence[str]) -> ProcessId | None:
    """The process whose command line holds all of `arguments`, or None."""
    wanted = set(arguments)
    for found in psutil.process_iter(["cmdline", "create_time"]):
        # Another user's command line is None where it may not be read.
        if wanted <= set(found.info["cmdline"] or ()):
            process = ProcessId(found.pid, found.info["create_time"])
            return process if running(process) else None
    return None


def end(process: ProcessId, patience_s: float = 5.0) -> bool:
    """End `process` with SIGTERM, then SIGKILL, and wait until it is gone; say whether it is."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        found = running(process)
        if found is None:
            return True
        try:
            found.send_signal(number)
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False
        if ends_within(process, patience_s):
            return True
    return False


def ends_within(process: ProcessId, patience_s: float) -> bool:
    """Wait until `process` has ended, and say whether it has.

    Nothing left but an exit status is an end, collected by now or not.
    """
    for _ in range(max(1, round(patience_s / _POLL_S))):
        if running(process) is None:
            return True
        time.sleep(_POLL_S)
    return running(process) is None

"""How many connections this machine gives one process. Knows descriptors and ports; no requests."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # of Linux
_USUAL_PORTS = 16_384  # IANA's range, which other systems take theirs from
_WITHOUT_A_LIMIT = 10_240  # macOS refuses more, whatever its hard limit says (its OPEN_MAX)


def most_descriptors(hard: int | None = None) -> int:
    """The most files and sockets that a process may raise its own limit to, below `hard`.

    Without one, this process's hard limit.
    """
    if hard is None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WITHOUT_A_LIMIT if hard == resource.RLIM_INFINITY else hard


def allow_most_descriptors() -> None:
    """Raise this process's limit on open files and sockets as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = most_descriptors()
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_ports() -> int:
    """The most connections that this machine can have to one address and port."""
    try:
        first, last = map(int, _PORT_RANGE.read_text().split())
    except (FileNotFoundError, PermissionError):
        return _USUAL_PORTS
    return last - first + 1


def ran_out_of(number: int | None, *, has_connected: bool) -> str:
    """What this machine had no more of, by an error's number; "" of any other error.

    An address that cannot be assigned means that the ports ran out only where earlier connections
    were made: otherwise this machine has no network of that address's family.
    """
    if number in (errno.EMFILE, errno.ENFILE):
        return "file descriptors"
    return "local ports" if number == errno.EADDRNOTAVAIL and has_connected else ""

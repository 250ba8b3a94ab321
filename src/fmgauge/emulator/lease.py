"""A lease: until when a detached server may live, in a file that its holder keeps renewing.

Knows who holds it and until when, by the wall clock; not which servers read it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from fmgauge.records import read_json, write_json
from fmgauge.runs import now_utc

Holder = Literal["pipeline", "by hand"]

RUN_BY_PIPELINE = "FMGAUGE_RUN_BY_PIPELINE"
"""The environment variable by which a kernel knows its pipeline: that one's process id."""

_EXPIRED_POLLS = 3  # in a row: after a machine's sleep the holder gets its chance to renew
_ASKS_AGAIN_S = 0.5  # a server ends two to three seconds after its lease has expired

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """Who lets the servers live, and until when (UTC, ISO 8601)."""

    holder: Holder
    expires_at: str

    def expired(self, now: datetime) -> bool:
        """Whether the lease has run out at `now`."""
        return now >= datetime.fromisoformat(self.expires_at)


def read_lease(path: Path) -> Lease | None:
    """The lease in the file at `path`; None where there is none."""
    try:
        return Lease(**read_json(path))
    except FileNotFoundError:
        return None


def expired(path: Path, now: datetime) -> bool:
    """Whether the lease at `path` has run out at `now`; one that is not there has."""
    lease = read_lease(path)
    return lease is None or lease.expired(now)


class LeaseWatch:
    """A server's look at its lease, to be taken every `poll_s` seconds."""

    poll_s = 1.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._expired_polls = 0

    def over(self) -> bool:
        """Look once; whether the lease has been found expired often enough to end."""
        self._expired_polls = self._expired_polls + 1 if expired(self._path, now_utc()) else 0
        return self._expired_polls >= _EXPIRED_POLLS


def renew(path: Path, holder: Holder, ttl_s: float) -> bool:
    """Let the servers live `ttl_s` seconds from now; say whether `holder` may decide that.

    A notebook run by hand leaves a pipeline's lease alone until it has expired, so that servers
    still end with the pipeline; the pipeline always takes over. A notebook that a pipeline runs
    never renews: where the pipeline was killed, its kernel may go on for some seconds, and the
    servers are to end all the same. Such a kernel has inherited `RUN_BY_PIPELINE`.
    """
    now = now_utc()
    if holder == "by hand" and (RUN_BY_PIPELINE in os.environ or _held_by_pipeline(path, now)):
        return False
    expires_at = now + timedelta(seconds=ttl_s)
    write_json(path, asdict(Lease(holder, expires_at.isoformat())))
    return True


def _held_by_pipeline(path: Path, now: datetime) -> bool:
    lease = read_lease(path)
    return lease is not None and lease.holder == "pipeline" and not lease.expired(now)


@contextmanager
def hold(path: Path, holder: Holder, ttl_s: float, every_s: float) -> Iterator[None]:
    """Renew the lease at `path` now and every `every_s` seconds while inside.

    Each time it is decided anew whether `holder` may, so the lease of a pipeline that died is
    taken over before the servers end. Afterwards a pipeline's lease has expired, one by hand goes
    on.
    """
    renew(path, holder, ttl_s)
    done = threading.Event()
    heartbeat = threading.Thread(
        target=_keep_renewing, args=(path, holder, ttl_s, every_s, done), name="lease", daemon=True
    )
    heartbeat.start()
    try:
        yield
    finally:
        done.set()
        heartbeat.join()
        if holder == "pipeline":
            _try_to_renew(path, holder, 0.0)


def _keep_renewing(
    path: Path, holder: Holder, ttl_s: float, every_s: float, done: threading.Event
) -> None:
    pause_s = min(every_s, _ASKS_AGAIN_S)
    while not done.wait(pause_s):
        is_renewed = _try_to_renew(path, holder, ttl_s)
        pause_s = every_s if is_renewed else min(every_s, _ASKS_AGAIN_S)


def _try_to_renew(path: Path, holder: Holder, ttl_s: float) -> bool:
    try:
        return renew(path, holder, ttl_s)
    except OSError as error:  # a full disk may have room again before the lease runs out
        _log.warning("cannot renew the lease %s: %s", path, error)
        return False

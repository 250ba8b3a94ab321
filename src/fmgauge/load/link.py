"""What passes between a stage's worker and whoever started it: frames over a socket.

Knows framing and what kinds of message there are; not what is in a row, nor what a worker does.
"""

from __future__ import annotations

import marshal
import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fmgauge.config import LoadLevel, PlannedStage
from fmgauge.records import ClientUse, Endpoint, Payload, Row, StageKey

_HEAD = struct.Struct("!IB")  # length of what follows, and its kind
_ROWS, _MESSAGE = 0, 1
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StageTask:
    """A stage as its workers are told of it: no config, and a secret is named, never held."""

    key: StageKey
    asked: LoadLevel
    endpoint: Endpoint
    payloads: Sequence[Payload]
    seed: int
    replication: int = 0
    keep_text: bool = False

    @classmethod
    def of(
        cls, planned: PlannedStage, endpoint: Endpoint, payloads: Sequence[Payload], seed: int
    ) -> StageTask:
        """The task of `planned`."""
        asked = LoadLevel(planned.load, planned.level)
        return cls(planned.key, asked, endpoint, payloads, seed)


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a stage one worker has: part `index` of `count`."""

    index: int
    count: int

    def share(self, whole: int) -> int:
        """This part of `whole` things; all parts together are exactly the whole."""
        return whole // self.count + (self.index < whole % self.count)


@dataclass(frozen=True, slots=True)
class Run:
    """To a worker: prepare for this part of a stage."""

    task: StageTask
    shard: Shard


@dataclass(frozen=True, slots=True)
class Ready:
    """From a worker: its connections are open, it can begin."""


@dataclass(frozen=True, slots=True)
class Begin:
    """To every worker: the stage begins at this instant of the measuring clock."""

    origin_s: float


@dataclass(frozen=True, slots=True)
class WindowBegins:
    """To every worker: measure from this instant on, and until when where that is known.

    In seconds since the stage began.
    """

    start_s: float
    end_s: float | None


@dataclass(frozen=True, slots=True)
class WindowEnds:
    """To every worker: measure until this instant, in seconds since the stage began."""

    end_s: float


@dataclass(frozen=True, slots=True)
class Status:
    """From a worker, now and then: what it is doing.

    The packed doubles, as `array("d")` has them, are seconds since each request was due; they come
    during the warm-up of an open loop alone.
    """

    phase: str
    in_flight: int
    outstanding: int = 0  # due and not ended: in flight, or waiting for a place
    n_due: int = 0  # in the window so far, and sent
    n_cold: int = 0  # places of a closed loop that have not ended an answer yet
    ended_s: bytes = b""  # how long each took that has ended since the last status
    going_on_s: bytes = b""  # for how long each that is outstanding has lasted


@dataclass(frozen=True, slots=True)
class Alive:
    """From a worker, every second from the first turn of a stage's loop to its last: it turns."""


@dataclass(frozen=True, slots=True)
class CountedEnded:
    """From a worker: all that it sent before the window's end has ended."""


@dataclass(frozen=True, slots=True)
class Stop:
    """To every worker: end what is in flight, and sum up."""


@dataclass(frozen=True, slots=True)
class Summary:
    """From a worker, last: the facts of its part. Instants are seconds since the stage began."""

    window_end_s: float
    finished_at_s: float
    client: ClientUse
    held_back: int
    n_unsent: int = 0


class Link(Protocol):
    """A worker's side: whom it tells of itself, and who tells it when to begin and to stop."""

    window_ends_s: float
    """Until when to measure, in seconds since the stage began; inf until that is known."""

    async def ready(self) -> float:
        """Tell that all is prepared; wait for the start, and return its instant."""

    async def window_begins(self) -> float:
        """Wait until the load is steady; from when on to measure, in seconds since the start."""

    def emit(self, rows: list[Row]) -> None:
        """Give away the rows of requests that have ended."""

    def status(self, status: Status) -> None:
        """Tell what is going on, for displays and for whoever decides when to measure."""

    async def counted_ended(self) -> None:
        """Tell that nothing of warm-up and window is in flight; wait until all may stop."""


def rows_frame(rows: list[Row]) -> bytes:
    """Rows as one frame: marshal is the fastest there is for plain values."""
    body = marshal.dumps(rows)
    return _HEAD.pack(len(body), _ROWS) + body


def rows_of(body: bytes) -> list[Row]:
    """The rows in a frame's body."""
    rows: list[Row] = marshal.loads(body)
    return rows


def message_frame(message: Any) -> bytes:
    """A message as one frame."""
    body = pickle.dumps(message)
    return _HEAD.pack(len(body), _MESSAGE) + body


class FrameReader:
    """Takes frames from a socket as their bytes come."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self.ended = False

    def read(self) -> list[Any]:
        """The messages that are whole after one read; one of type bytes is for `rows_of`.

        Blocks if the socket does and nothing is there; `ended` says that the other side is gone.
        """
        try:
            data = self._connection.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        self.ended = not data
        self._buffer += data
        return self._whole()

    def _whole(self) -> list[Any]:
        """Take every frame that is whole out of the buffer."""
        buffer, place, messages = self._buffer, 0, []
        while len(buffer) - place >= _HEAD.size:
            length, kind = _HEAD.unpack_from(buffer, place)
            end = place + _HEAD.size + length
            if end > len(buffer):
                break
            body = bytes(buffer[place + _HEAD.size : end])
            messages.append(body if kind == _ROWS else pickle.loads(body))
            place = end
        del buffer[:place]
        return messages

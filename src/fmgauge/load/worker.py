"""A worker process: runs parts of stages, one after the other, for whoever holds the other end.

`python -m fmgauge.load.worker FD`: FD is an inherited socket. Knows processes and the link; not
what a stage does. It ends when the other end is closed, and at once if that happens in a stage.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import sys
from collections import deque
from typing import Any

from fmgauge.config.model import ClosedLoop
from fmgauge.load.closed_loop import ClosedLoopShard
from fmgauge.load.link import (
    Alive,
    Begin,
    CountedEnded,
    FrameReader,
    Link,
    Ready,
    Run,
    Shard,
    StageTask,
    Status,
    Stop,
    Summary,
    WindowBegins,
    WindowEnds,
    message_frame,
    rows_frame,
)
from fmgauge.load.open_loop import OpenLoopShard
from fmgauge.records import Row
from fmgauge.transport import Clock, RealClock, run_event_loop
from fmgauge.transport.limits import allow_most_descriptors

_ALIVE_EVERY_S = 1.0
_ALIVE = message_frame(Alive())


async def run_shard(task: StageTask, shard: Shard, link: Link, clock: Clock) -> Summary:
    """Run one part of a stage, giving its rows to `link`; the facts of that part."""
    kind = ClosedLoopShard if isinstance(task.asked.load, ClosedLoop) else OpenLoopShard
    return await kind(task, shard, link, clock).run()


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end decides
    allow_most_descriptors()  # each request in flight needs one
    connection = socket.socket(fileno=int(sys.argv[1]))
    reader = FrameReader(connection)
    while not reader.ended:
        for message in reader.read():
            if isinstance(message, Run):  # else what was said as its part of a stage ended
                _run(message, connection, reader)
                gc.collect()


def _run(message: Run, connection: socket.socket, reader: FrameReader) -> None:
    link = SocketLink(connection, reader)
    try:
        summary = run_event_loop(_linked(message, link), every_s=60)
    finally:
        connection.setblocking(True)
        link.send_backlog()
    connection.sendall(message_frame(summary))


async def _linked(message: Run, link: SocketLink) -> Summary:
    link.attach()
    try:
        return await run_shard(message.task, message.shard, link, RealClock())
    finally:
        link.detach()


class SocketLink:
    """The worker's side of its socket while a stage runs: never blocks the loop.

    It tells every second that the loop turns, also while connections are opened, a server keeps
    everybody waiting, or a look-up of addresses is not to be ended: silence is the worker's own.
    """

    def __init__(self, connection: socket.socket, reader: FrameReader) -> None:
        self._connection = connection
        self._reader = reader
        self._backlog: deque[bytes] = deque()
        self._attached = False
        self.window_ends_s = math.inf

    def attach(self) -> None:
        """Begin to listen, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[float] = self._loop.create_future()
        self._window: asyncio.Future[float] = self._loop.create_future()
        self._may_stop = asyncio.Event()
        self._connection.setblocking(False)
        self._loop.add_reader(self._connection.fileno(), self._on_readable)
        self._attached = True
        self._loop.call_soon(self._say_alive)

    def detach(self) -> None:
        """Stop listening; what the loop still ends is told of until it is closed."""
        self._attached = False
        self._loop.remove_reader(self._connection.fileno())
        self._loop.remove_writer(self._connection.fileno())

    async def ready(self) -> float:
        """Tell that all is prepared; wait for the start, and return its instant."""
        self._send(message_frame(Ready()))
        return await self._begun

    async def window_begins(self) -> float:
        """Wait until the load is steady; from when on to measure, in seconds since the start."""
        return await self._window

    def emit(self, rows: list[Row]) -> None:
        """Give away the rows of requests that have ended."""
        self._send(rows_frame(rows))

    def status(self, status: Status) -> None:
        """Tell what is going on, for displays and for whoever decides when to measure."""
        self._send(message_frame(status))

    async def counted_ended(self) -> None:
        """Tell that nothing of warm-up and window is in flight; wait until all may stop."""
        self._send(message_frame(CountedEnded()))
        await self._may_stop.wait()

    def send_backlog(self) -> None:
        """Send what waits, as far as the socket takes it (all, where it may block)."""
        while self._backlog:
            frame = self._backlog.popleft()
            try:
                sent = self._connection.send(frame)
            except BlockingIOError:
                sent = 0
            if sent < len(frame):
                self._backlog.appendleft(frame[sent:])
                if not self._connection.getblocking():
                    return

    def _send(self, frame: bytes) -> None:
        waiting = bool(self._backlog)
        self._backlog.append(frame)
        if not waiting:
            self._drain()

    def _drain(self) -> None:
        self.send_backlog()
        if self._backlog:
            self._loop.add_writer(self._connection.fileno(), self._drain)
        else:
            self._loop.remove_writer(self._connection.fileno())

    def _say_alive(self) -> None:
        """Tell that the loop turns, or go on with what waits and tells it, too."""
        if not self._backlog:
            self._backlog.append(_ALIVE)
        if self._attached:
            self._drain()
        else:
            self.send_backlog()
        self._loop.call_later(_ALIVE_EVERY_S, self._say_alive)

    def _on_readable(self) -> None:
        for message in self._reader.read():
            self._take(message)
        if self._reader.ended:
            os._exit(1)  # nobody is left to tell, and every second of load may cost money

    def _take(self, message: Any) -> None:
        match message:
            case Begin(origin_s):
                self._begun.set_result(origin_s)
            case WindowBegins(start_s, end_s):
                self.window_ends_s = math.inf if end_s is None else end_s
                self._window.set_result(start_s)
            case WindowEnds(end_s):
                self.window_ends_s = end_s
            case Stop():
                self._may_stop.set()


if __name__ == "__main__":
    main()

"""The server's side of HTTP/1.1 on loopback: bytes in, whole requests out, bytes back.

Knows connections, keep-alive and framing; not what is asked or answered. It can also break the
protocol: close at any byte, or reset.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools

from fmgauge.transport import Clock

MAX_BODY_BYTES = 64 * 2**20
_RESET_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time
_WAITING_CONNECTIONS = 4096  # of the listening socket: a burst must not see refusals


@dataclass(frozen=True, slots=True)
class Request:
    """One request, whole. Header names are in lower case."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    arrived_at_s: float


Answerer = Callable[["Connection", Request], None]


class HttpFront:
    """Listens on 127.0.0.1 and hands every request, with its connection, to `answer`."""

    def __init__(self, answer: Answerer, clock: Clock, *, slow_accept_s: float = 0.0) -> None:
        self.answer = answer
        self.clock = clock
        self.slow_accept_s = slow_accept_s
        self.accepted = 0
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int) -> int:
        """Listen on `port`, or on a free one where it is 0; the port. OSError where it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", port, backlog=_WAITING_CONNECTIONS
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def close(self) -> None:
        """Listen no more, and drop every connection."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection, on which one request at a time is answered.

    Whoever answers calls `send` as often as it likes, then `finish`; or `close`, or `reset`.
    `on_lost` is called where the client leaves before that.
    """

    def __init__(self, front: HttpFront) -> None:
        self.number = front.accepted
        self.on_lost: Callable[[], None] | None = None
        self._front = front
        self._now_s = front.clock.now_s
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._busy = False
        self._keep_alive = True
        self._unread: list[bytes] | None = None  # while the server is slow to accept
        self._begin_message()
        front.accepted += 1

    # --- what an answer may do ----------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Hand `data` to the socket now, and to the event loop what the socket does not take.

        Past the event loop, which may put off a write until all that is due has been computed: so
        the instant before this call is the instant of sending.
        """
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() == 0:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                pass
            except OSError:  # the client has gone; connection_lost tells the rest
                self._transport.abort()
                return
        if data:
            self._transport.write(data)

    def finish(self) -> None:
        """The answer is complete: go on with the next request, or close if none may follow."""
        self.on_lost = None
        self._busy = bool(self._waiting)
        if not self._keep_alive:
            self._transport.close()
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._answer_next)

    def close(self) -> None:
        """Close once what was sent is out."""
        self.on_lost = None
        self._transport.close()

    def reset(self) -> None:
        """Close with a RST."""
        connection: socket.socket = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
        self.abort()

    def abort(self) -> None:
        """Close without waiting for anything."""
        self.on_lost = None
        self._transport.abort()

    # --- called by the event loop ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read, or where the server accepts slowly, a while later."""
        self._transport = cast(asyncio.Transport, transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._descriptor = connection.fileno()
        self._parser = httptools.HttpRequestParser(self)
        self._front.connections.add(self)
        if self._front.slow_accept_s:
            self._unread = []
            asyncio.get_running_loop().call_later(self._front.slow_accept_s, self._read_at_last)

    def data_received(self, data: bytes) -> None:
        """Parse one read; every request that it completes is answered in its turn."""
        if self._unread is not None:
            self._unread.append(data)
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(HTTPStatus.BAD_REQUEST)
        if self._size > MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever was answering."""
        self._front.connections.discard(self)
        self._waiting.clear()
        del self._parser  # it holds this object's methods
        if self.on_lost is not None:
            self.on_lost()

    # --- called by the parser -------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """Keep a piece of the address."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Let a client that asks first send its body."""
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, up to the largest that is allowed."""
        self._size += len(body)
        if self._size <= MAX_BODY_BYTES:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Queue the request that is now whole, and answer it if none is being answered."""
        request = Request(
            self._parser.get_method().decode("latin-1"),
            self._url.decode("latin-1").partition("?")[0],
            self._headers,
            b"".join(self._pieces),
            self._now_s(),
        )
        if self._size <= MAX_BODY_BYTES:
            self._waiting.append((request, self._parser.should_keep_alive()))
            self._begin_message()
            if not self._busy:
                self._answer_next()

    # --- the request being read -----------------------------------------------------------------

    def _begin_message(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._size = 0

    def _read_at_last(self) -> None:
        unread, self._unread = self._unread, None
        if unread and not self._transport.is_closing():
            self.data_received(b"".join(unread))

    def _answer_next(self) -> None:
        if not self._waiting:  # the client has gone
            return
        request, self._keep_alive = self._waiting.popleft()
        self._busy = True
        self._front.answer(self, request)

    def _refuse(self, status: HTTPStatus) -> None:
        if not self._transport.is_closing():
            self.send(response(status, b"", "text/plain", "connection: close\r\n"))
            self._transport.close()


def response(status: int, body: bytes, content_type: str, headers: str = "") -> bytes:
    """A whole response of known length; `headers` are further lines, each with its line end."""
    head = (
        f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode("latin-1") + body


def stream_head(content_type: str, headers: str = "") -> bytes:
    """The head of a response that comes in chunks."""
    return (
        f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncache-control: no-cache\r\n"
        f"transfer-encoding: chunked\r\n{headers}\r\n"
    ).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of such a response."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"

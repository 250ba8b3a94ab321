"""HTTP/1.1 and TLS, timed at the socket: when bytes were sent, and when each read brought bytes.

Knows connections, HTTP's framing and the measuring clock, of which it is the only reader. Does not
know what the bytes mean, which requests there are, or when to send them.

A read is stamped first thing in `data_received`, before anything is decoded; a request is stamped
as it is handed to the socket. No task and no timer exists per request: an answer's end calls back,
and the callback may send the next request at once.
"""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import httptools

MAX_RESPONSE_BYTES = 64 * 2**20
CONNECT_TIMEOUT_S = 10.0
_LOST_AT_ONCE_S = 1.0
_CROSSING_S = 0.25  # longest that a request and a close may have been on the wire past each other

FailureKind = Literal["connection_error", "timeout", "truncated", "stream_error", "cancelled"]
T = TypeVar("T")


class Clock(Protocol):
    """What every instant is read from."""

    def now_s(self) -> float:
        """Seconds since an instant of the clock's own."""


class RealClock:
    """The machine's monotonic clock, of the highest resolution there is."""

    now_s = staticmethod(time.perf_counter)


class Origin(NamedTuple):
    """Where connections go."""

    host: str
    port: int
    tls: bool


class Failure(NamedTuple):
    """Why an exchange has no complete answer."""

    kind: FailureKind
    message: str


def origin_of(url: str) -> Origin:
    """Host, port and scheme of an http or https address; ValueError where it has none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"no http or https address: {url!r}")
    tls = parts.scheme == "https"
    return Origin(parts.hostname, parts.port or (443 if tls else 80), tls)


class Exchange:
    """One request and what came back. Instants are the clock's; None where it never came so far.

    `on_body(stamp_s, data)` gets the body bytes of one read and the instant of that read.
    `on_end(exchange)` is called once, after the last of them, whatever the end was.
    """

    __slots__ = (
        "connected_at_s",
        "deadline_s",
        "failure",
        "finished_at_s",
        "first_byte_at_s",
        "headers",
        "http_status",
        "on_body",
        "on_end",
        "request",
        "resent",
        "reused",
        "sent_at_s",
    )

    def __init__(
        self,
        request: bytes,
        on_body: Callable[[float, bytes], None],
        on_end: Callable[[Exchange], None],
    ) -> None:
        self.request = request
        self.on_body = on_body
        self.on_end = on_end
        self.deadline_s = 0.0
        self.connected_at_s: float | None = None  # None on a connection that carried others before
        self.sent_at_s: float | None = None
        self.first_byte_at_s: float | None = None
        self.finished_at_s = 0.0
        self.http_status: int | None = None
        self.headers: dict[bytes, bytes] = {}  # names in lower case
        self.failure: Failure | None = None
        self.reused = False
        self.resent = False


class Client:
    """Sends requests to one origin, each over a connection of its own while it is in flight.

    Connections are kept and reused. One that the server closed between two requests is replaced
    without a word: also where its close crossed a request on the wire, which is then sent again,
    once, on a new connection and with a new `sent_at_s`. From then on an origin that closes right
    after an answer gets a new connection for every request. A close that comes later than two
    messages can cross is the server's answer to the request: that request failed.
    """

    def __init__(
        self,
        origin: Origin,
        clock: Clock,
        *,
        timeout_s: float,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self.origin = origin
        self.now_s = clock.now_s
        self.reuse_connections = True
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._loop = asyncio.get_running_loop()
        self._tls = ssl.create_default_context() if origin.tls else None
        self._addresses: list[str] = []
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._in_flight: dict[Exchange, _Connection | asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, connections: int) -> None:
        """Open connections ahead of the first request; those that fail show when requests do."""
        opened = await asyncio.gather(*(self._connected() for _ in range(connections)))
        self._idle.extend(connection for connection in opened if connection is not None)

    def send(self, exchange: Exchange) -> None:
        """Send a request at once where a connection is free, else as soon as one is made."""
        exchange.deadline_s = self.now_s() + self._timeout_s
        connection = self._idle_connection()
        if connection is None:
            self._send_anew(exchange)
        else:
            self._in_flight[exchange] = connection
            connection.start(exchange)
        if self._timer is None:
            self._watch()

    def fail(self, exchange: Exchange, kind: FailureKind, message: str) -> None:
        """End an exchange without its answer; its connection is given up."""
        carrier = self._in_flight[exchange]
        if isinstance(carrier, _Connection):
            carrier.give_up()
        else:
            carrier.cancel()
        self.break_off(exchange, Failure(kind, message), self.now_s())

    def break_off(self, exchange: Exchange, failure: Failure, stamp_s: float) -> None:
        """End an exchange that its connection can carry no further."""
        exchange.failure = failure
        self.end(exchange, stamp_s)

    def end(self, exchange: Exchange, stamp_s: float) -> None:
        """Note that an exchange is over and tell its owner."""
        del self._in_flight[exchange]
        exchange.finished_at_s = stamp_s
        on_end = exchange.on_end
        del exchange.on_end, exchange.on_body  # rings of references would wait for the collector
        on_end(exchange)

    def keep(self, connection: _Connection) -> None:
        """Take back a connection whose answer is complete."""
        self._idle.append(connection)

    def resend(self, exchange: Exchange, *, closed_after_s: float) -> None:
        """Send again what crossed the server's close of a kept connection."""
        if closed_after_s < _LOST_AT_ONCE_S:
            self.reuse_connections = False
        exchange.resent = True
        self._send_anew(exchange)

    def opened(self, connection: _Connection) -> None:
        """Note that a connection is up."""
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        """Note that a connection is gone."""
        self._open.discard(connection)

    async def close(self) -> None:
        """Close every connection; exchanges still in flight are not told."""
        if self._timer is not None:
            self._timer.cancel()
        carriers = list(self._in_flight.values())
        tasks = [carrier for carrier in carriers if isinstance(carrier, asyncio.Task)]
        self._in_flight.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        remaining = list(self._open)
        for connection in remaining:
            connection.give_up()
        await asyncio.gather(*(connection.closed for connection in remaining))

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def _send_anew(self, exchange: Exchange) -> None:
        self._in_flight[exchange] = self._loop.create_task(self._connect_and_send(exchange))

    async def _connect_and_send(self, exchange: Exchange) -> None:
        try:
            connection = await self._connect()
        except TimeoutError:
            message = f"no connection to {self.origin.host} within {self._connect_timeout_s:g} s"
            self.break_off(exchange, Failure("timeout", message), self.now_s())
        except (OSError, UnicodeError) as error:  # UnicodeError: no name that DNS could hold
            failure = Failure("connection_error", f"cannot connect: {error}")
            self.break_off(exchange, failure, self.now_s())
        else:
            self._send_first(exchange, connection)

    def _send_first(self, exchange: Exchange, connection: _Connection) -> None:
        if connection.usable:
            self._in_flight[exchange] = connection
            connection.start(exchange)
        else:
            failure = Failure("connection_error", "the server closed the new connection at once")
            self.break_off(exchange, failure, self.now_s())

    async def _connected(self) -> _Connection | None:
        try:
            return await self._connect()
        except (OSError, UnicodeError):
            return None

    async def _connect(self) -> _Connection:
        """A new connection to the first address that answers; OSError where none does."""
        async with asyncio.timeout(self._connect_timeout_s):
            for address in await self._resolved():
                try:
                    return await self._connect_to(address)
                except OSError:
                    if address == self._addresses[-1]:
                        raise
        raise OSError(f"{self.origin.host} has no address")

    async def _connect_to(self, address: str) -> _Connection:
        _, protocol = await self._loop.create_connection(
            lambda: _Connection(self),
            address,
            self.origin.port,
            ssl=self._tls,
            server_hostname=self.origin.host if self._tls else None,
        )
        self._addresses = [address]  # the one that answers is the one to ask from now on
        return protocol

    async def _resolved(self) -> list[str]:
        """The origin's addresses, looked up once so that no later request waits for it."""
        if not self._addresses:
            found = await self._loop.getaddrinfo(
                self.origin.host, self.origin.port, type=socket.SOCK_STREAM
            )
            self._addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        return self._addresses

    def _watch(self) -> None:
        """Set the one timer to the oldest exchange's deadline: all have the same time-out."""
        self._timer = None
        if self._in_flight:
            oldest = next(iter(self._in_flight))
            delay_s = max(oldest.deadline_s - self.now_s(), 0.001)
            self._timer = self._loop.call_later(delay_s, self._expire)

    def _expire(self) -> None:
        now_s = self.now_s()
        late = [exchange for exchange in self._in_flight if exchange.deadline_s <= now_s]
        for exchange in late:
            self.fail(exchange, "timeout", f"no complete answer within {self._timeout_s:g} s")
        self._watch()


class _Connection(asyncio.Protocol):
    """One connection, carrying one request at a time."""

    def __init__(self, client: Client) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._now_s = client.now_s
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._used = False
        self._connected_at_s = 0.0
        self._free_since_s = 0.0
        self._ended_at_s: float | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # the parser's call-back, without a frame of ours
        self._parser = httptools.HttpResponseParser(self)
        self._stamp_s = 0.0
        self._headers: dict[bytes, bytes] = {}
        self._expect_answer()

    @property
    def usable(self) -> bool:
        """Whether a request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def start(self, exchange: Exchange) -> None:
        """Hand a request to the socket."""
        assert self._transport is not None
        self._exchange = exchange
        exchange.reused = self._used
        exchange.connected_at_s = None if self._used else self._connected_at_s
        self._used = True
        self._expect_answer()
        exchange.sent_at_s = self._now_s()
        self._transport.write(exchange.request)

    def give_up(self) -> None:
        """Close without waiting for anything."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    # --- called by the event loop -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the instant from which requests can be sent."""
        self._connected_at_s = self._now_s()
        self._transport = cast(asyncio.Transport, transport)
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        """Stamp the read, then parse it, then hand on what it held of the body."""
        self._stamp_s = stamp_s = self._now_s()
        exchange = self._exchange
        if exchange is None:
            self.give_up()  # nobody asked: the server is about to close, or breaks the protocol
            return
        problem = self._parse(data)
        if self._pieces:
            self._hand_on(exchange, stamp_s)
        if self._complete:
            self._finish(exchange, stamp_s, clean=problem is None)
        elif problem is not None:
            kind: FailureKind = "stream_error" if self._head_complete else "connection_error"
            self._client.fail(exchange, kind, problem)

    def eof_received(self) -> None:
        """Note the instant at which the server closed."""
        self._ended_at_s = self._now_s()

    def connection_lost(self, error: Exception | None) -> None:
        """Settle what was in flight: whole, to be sent again, or cut."""
        exchange, self._exchange = self._exchange, None
        self._client.lost(self)
        self._transport = None
        del self._parser  # it holds this object's methods
        self.closed.set_result(None)
        if exchange is not None:
            self._settle(exchange, error)

    # --- called by the parser, from within data_received ------------------------------------------

    def on_message_begin(self) -> None:
        """Note the first byte of an answer; a second answer to one request is refused."""
        if self._complete:
            raise httptools.HttpParserError("an answer that nobody asked for")
        self._headers = {}
        assert self._exchange is not None
        self._exchange.first_byte_at_s = self._stamp_s

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Take the status; 100 Continue and its like only announce the answer."""
        assert self._exchange is not None
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim:
            self._exchange.first_byte_at_s = None
            return
        self._head_complete = True
        self._exchange.http_status = status
        self._exchange.headers = self._headers

    def on_message_complete(self) -> None:
        """Note that the answer is whole."""
        self._complete = not self._interim
        self._keep_alive = self._parser.should_keep_alive()  # the parser forgets it at once

    # --- the answer in flight ---------------------------------------------------------------------

    def _expect_answer(self) -> None:
        self._headers = {}
        self._interim = False
        self._head_complete = False
        self._complete = False
        self._keep_alive = False
        self._received = 0

    def _parse(self, data: bytes) -> str | None:
        """Parse one read; what is wrong with it, or None."""
        self._received += len(data)
        if self._received > MAX_RESPONSE_BYTES:
            return f"an answer larger than {MAX_RESPONSE_BYTES // 2**20} MiB"
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            return f"malformed HTTP: {error.__context__ or error}"
        return None

    def _hand_on(self, exchange: Exchange, stamp_s: float) -> None:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        exchange.on_body(stamp_s, body)

    def _finish(self, exchange: Exchange, stamp_s: float, *, clean: bool) -> None:
        """Free the connection, or close it, before the owner hears of the end and sends again."""
        assert self._transport is not None
        self._exchange = None
        self._free_since_s = stamp_s
        if clean and self._keep_alive and self._client.reuse_connections:
            self._client.keep(self)
        else:
            self._transport.close()
        self._client.end(exchange, stamp_s)

    def _settle(self, exchange: Exchange, error: Exception | None) -> None:
        stamp_s = self._now_s() if self._ended_at_s is None else self._ended_at_s
        reason = str(error) if error else "the server closed the connection"
        if self._head_complete and self._ends_with_close() and error is None:
            self._client.end(exchange, stamp_s)
        elif self._head_complete:
            self._client.break_off(exchange, Failure("truncated", reason), stamp_s)
        elif self._crossed_a_close(exchange, stamp_s):
            self._client.resend(exchange, closed_after_s=stamp_s - self._free_since_s)
        else:
            self._client.break_off(exchange, Failure("connection_error", reason), stamp_s)

    def _crossed_a_close(self, exchange: Exchange, stamp_s: float) -> bool:
        """Whether the server may have closed before the request reached it."""
        assert exchange.sent_at_s is not None
        unanswered = exchange.first_byte_at_s is None and exchange.reused and not exchange.resent
        return unanswered and stamp_s - exchange.sent_at_s < _CROSSING_S

    def _ends_with_close(self) -> bool:
        headers = self._headers
        return b"content-length" not in headers and b"transfer-encoding" not in headers


# --- the event loop ------------------------------------------------------------------------------


def run_event_loop(
    coroutine: Coroutine[Any, Any, T],
    *,
    meanwhile: Callable[[], None] | None = None,
    every_s: float = 0.5,
) -> T:
    """Run a coroutine on an event loop of its own, in a thread of its own, and return its result.

    The calling thread only waits, calling `meanwhile` every `every_s` seconds: so it may run a loop
    of its own (a notebook's kernel does), and displays stay off the loop that takes the times.
    KeyboardInterrupt there, and an exception in a callback on the loop, cancel the coroutine, wait
    until it has cleaned up, and are raised.
    """
    loop = _new_event_loop()
    broken: Future[NoReturn] = Future()
    loop.set_exception_handler(lambda _, context: _note_problem(loop, context, broken))
    thread = threading.Thread(target=_serve, args=(loop,), name="fmgauge-load", daemon=True)
    thread.start()
    try:
        answer = asyncio.run_coroutine_threadsafe(coroutine, loop)
        either: tuple[Future[Any], ...] = (answer, broken)
        while not wait(either, every_s, FIRST_COMPLETED).done:
            if meanwhile is not None:
                meanwhile()
        return broken.result() if broken.done() else answer.result()
    finally:
        asyncio.run_coroutine_threadsafe(_end_tasks(loop), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's event loop where it is installed, else asyncio's."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def _note_problem(
    loop: asyncio.AbstractEventLoop, context: dict[str, Any], broken: Future[NoReturn]
) -> None:
    """Let a callback's exception end the run; a socket's own error was told to its connection."""
    error = context.get("exception")
    if error is None:
        loop.default_exception_handler(context)
    elif not isinstance(error, OSError) and not broken.done():
        broken.set_exception(error)

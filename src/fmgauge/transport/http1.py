"""HTTP/1.1, timed at the socket: when bytes were sent, and when each read brought bytes.

Knows connections, HTTP's framing and time-outs. Does not know how a connection is made, what the
bytes mean, which requests there are, or when to send them.

A read is stamped first thing in `data_received`, before anything is decoded; a request is stamped
as it is handed to the socket. No task and no timer exists per request: an answer's end calls back,
and the callback may send the next request at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import sys
import termios
import zlib
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, cast

import httptools

from fmgauge.transport.clock import Clock
from fmgauge.transport.connecting import Connector, RanOut
from fmgauge.transport.origin import Origin
from fmgauge.transport.turns import Turns

MAX_RESPONSE_BYTES = 64 * 2**20
_LOST_AT_ONCE_S = 1.0
_CLOSES_TO_TELL = 3  # one alone may be a request that the server dropped
# How long a request and a close may have been on the wire past each other: a few round trips, of
# which making the connection took one at least, and what a busy client may be late to notice.
_CROSSING_S = 0.01
_CROSSING_ROUND_TRIPS = 3.0
_SHORTEST_WATCH_S = 0.005
_OPENED_AT_ONCE = 64
_CLOSE_WITHIN_S = 5.0
_ANY_DEFLATE = zlib.MAX_WBITS | 32  # gzip or zlib, told apart by their headers
_GZIP = zlib.MAX_WBITS | 16
_GZIP_BEGINS = b"\x1f"

FailureKind = Literal["connection_error", "timeout", "truncated", "stream_error", "cancelled"]


class Failure(NamedTuple):
    """Why an exchange has no complete answer."""

    kind: FailureKind
    message: str


class Timeouts(NamedTuple):
    """How long an exchange may take, in all and in parts; None where a part has no limit."""

    total_s: float = 120.0
    connect_s: float = 10.0
    first_byte_s: float | None = None
    between_bytes_s: float | None = None


NO_HEADERS: dict[bytes, bytes] = {}


class Exchange:
    """One request and what came back. Instants are the clock's; None where it never came so far.

    A subclass overrides `on_body`, which gets the body bytes of one read and the instant of that
    read, and `on_end`, which is called once, after the last of them, whatever the end was.
    """

    __slots__ = (
        "begun_at_s",
        "connected_at_s",
        "failure",
        "finished_at_s",
        "first_byte_at_s",
        "headers",
        "http_status",
        "last_byte_at_s",
        "request",
        "resent",
        "reused",
        "sent_at_s",
    )

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.begun_at_s: float | None = 0.0  # when it was handed to the client
        self.connected_at_s: float | None = None  # None on a connection that carried others before
        self.sent_at_s: float | None = None
        self.first_byte_at_s: float | None = None
        self.last_byte_at_s: float | None = None
        self.finished_at_s = 0.0
        self.http_status: int | None = None
        self.headers: dict[bytes, bytes] = NO_HEADERS  # of the answer, names in lower case
        self.failure: Failure | None = None
        self.reused = False
        self.resent = False

    def on_body(self, stamp_s: float, data: bytes) -> None:
        """Take the body bytes of one read, which came at `stamp_s`."""

    def on_end(self) -> None:
        """Learn that the exchange is over: all its attributes are final."""


def _all_acknowledged(descriptor: int) -> bool:
    """Whether the other host has acknowledged all that was sent; False where nobody can tell."""
    unsent = bytearray(4)
    try:
        fcntl.ioctl(descriptor, termios.TIOCOUTQ, unsent)
    except OSError:
        return False
    return int.from_bytes(unsent, sys.byteorder) == 0


class Client:
    """Sends requests to one origin, each over a connection of its own while it is in flight.

    Connections are kept and reused. One that the server closed between two requests is replaced
    without a word: also where its close crossed a request on the wire, which is then sent again,
    once, on a new connection and with a new `sent_at_s`. An origin that closed several right after
    an answer, and never gave two on one connection, gets a new one for every request from then on,
    one of which is always made ahead. A close that comes later than two messages can cross, or
    after the whole request was acknowledged, is the server's answer to the request: that request
    failed. Only where no connection has brought a second answer yet, and the close comes right
    after the first, does it pass for a crossing: a server may get what it never reads.
    """

    def __init__(
        self,
        origin: Origin,
        clock: Clock,
        timeouts: Timeouts | None = None,
        *,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self.origin = origin
        self.now_s = clock.now_s
        self.reuse_connections = True
        self.has_reused = False  # a kept connection has brought a second answer
        self._closes_at_once = 0  # of kept connections, before any had brought a second answer
        self.max_response_bytes = max_response_bytes
        self._timeouts = timeouts = timeouts or Timeouts()
        self.connector = Connector(origin, connect_timeout_s=timeouts.connect_s)
        self.forwards = self.connector.forwards
        self._loop = asyncio.get_running_loop()
        self.turns = Turns(self._loop, clock.now_s)
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._in_flight: dict[Exchange, _Connection | asyncio.Task[None]] = {}
        self._spare: asyncio.Task[None] | None = None
        self.ran_out_of: set[str] = set()  # what this machine had too few of for a connection
        self._timer: asyncio.Handle | None = None
        parts_s = (timeouts.total_s, timeouts.first_byte_s, timeouts.between_bytes_s)
        self._shortest_s = min(part_s for part_s in parts_s if part_s is not None)

    @property
    def in_flight(self) -> tuple[Exchange, ...]:
        """What was sent, or waits for a connection, and has not ended."""
        return tuple(self._in_flight)

    async def open(self, connections: int) -> None:
        """Open connections ahead of the first request; those that fail show when requests do.

        So many at a time as the shortest queue of a server's socket holds: beyond it a connection
        would be made only after a second.
        """
        for begun in range(0, connections, _OPENED_AT_ONCE):
            batch = min(_OPENED_AT_ONCE, connections - begun)
            opened = await asyncio.gather(*(self._connected() for _ in range(batch)))
            self._idle.extend(connection for connection in opened if connection is not None)
            if None in opened:
                return

    def send(self, exchange: Exchange) -> None:
        """Send a request at once where a connection is free, else as soon as one is made."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                self._in_flight[exchange] = connection
                connection.start(exchange)
                exchange.begun_at_s = exchange.sent_at_s
                break
        else:
            exchange.begun_at_s = self.now_s()
            self._send_anew(exchange)
        if self._timer is None:
            self._timer = self._loop.call_later(self._shortest_s, self._watch)

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
        """Note that an exchange is over and tell it so."""
        del self._in_flight[exchange]
        exchange.finished_at_s = stamp_s
        exchange.on_end()

    def keep(self, connection: _Connection) -> None:
        """Take back a connection whose answer is complete."""
        self._idle.append(connection)

    def resend(self, exchange: Exchange, *, closed_after_s: float) -> None:
        """Send again what crossed the server's close of a kept connection."""
        if closed_after_s < _LOST_AT_ONCE_S and not self.has_reused:
            self._closes_at_once += 1
            self.reuse_connections = self._closes_at_once < _CLOSES_TO_TELL
        exchange.resent = True
        self._send_anew(exchange)

    def opened(self, connection: _Connection) -> None:
        """Note that a connection is up."""
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        """Note that a connection is gone, whoever finds out first."""
        self._open.discard(connection)
        if not connection.closed.done():
            connection.closed.set_result(None)

    def make_spare(self) -> None:
        """Have one connection ready where each carries one request only."""
        if not self._idle and self._spare is None:
            self._spare = self._loop.create_task(self._keep_spare())

    async def close(self) -> None:
        """Close every connection; exchanges still in flight are not told."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [] if self._spare is None else [self._spare]
        for carrier in self._in_flight.values():
            if isinstance(carrier, asyncio.Task):
                tasks.append(carrier)
            else:
                carrier.give_up()  # its answer may come before its end does
        self._in_flight.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        remaining = list(self._open)
        for connection in remaining:
            connection.give_up()
        if remaining:  # a loop that loses one without a word holds up nobody for ever
            ends = [connection.closed for connection in remaining]
            await asyncio.wait(ends, timeout=_CLOSE_WITHIN_S)

    # --- connections ------------------------------------------------------------------------------

    def _send_anew(self, exchange: Exchange) -> None:
        self._in_flight[exchange] = self._loop.create_task(self._connect_and_send(exchange))

    async def _connect_and_send(self, exchange: Exchange) -> None:
        try:
            connection = await self._connect()
        except TimeoutError as error:
            self.break_off(exchange, Failure("timeout", str(error)), self.now_s())
        except OSError as error:
            if isinstance(error, RanOut):
                self.ran_out_of.add(error.what)
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

    async def _connect(self) -> _Connection:
        began_s = self.now_s()
        with ExitStack() as undone:
            connection = await self.connector.connect(lambda: self._new_connection(undone))
            undone.pop_all()
        connection.made_in_s = self.now_s() - began_s
        return connection

    def _new_connection(self, undone: ExitStack) -> _Connection:
        """A connection that is forgotten where its making is cancelled in its very last turn.

        uvloop then closes it without telling it so, and `close` would wait for that for ever.
        """
        connection = _Connection(self)
        undone.callback(self.lost, connection)
        return connection

    async def _connected(self) -> _Connection | None:
        try:
            return await self._connect()
        except OSError:  # a TimeoutError is one
            return None

    async def _keep_spare(self) -> None:
        connection = await self._connected()
        self._spare = None
        if connection is not None:
            self._idle.append(connection)

    # --- time-outs --------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look for what has waited too long; one timer serves all that is in flight.

        What lies in the sockets is no silence of the server: a loop that stood still for a while
        may run its timers before it reads. So it reads first, and what is late then has failed.
        """
        now_s = self.now_s()
        next_s = self._next_deadline_s()
        if next_s <= now_s:
            self._timer = self._loop.call_soon(self._read_first, now_s)
        else:
            self._watch_again(next_s - now_s)

    def _read_first(self, late_at_s: float) -> None:
        """Let a whole turn pass: this one may have come before its reads."""
        self._timer = self._loop.call_soon(self._fail_late, late_at_s)

    def _fail_late(self, late_at_s: float) -> None:
        """Fail what was late at an instant, and is so by what was read since."""
        for exchange in self.in_flight:
            if exchange in self._in_flight:  # the end of one may end others
                deadline_s, message = self._deadline(exchange)
                if deadline_s <= late_at_s:
                    self.fail(exchange, "timeout", message)
        self._watch_again(self._next_deadline_s() - late_at_s)

    def _watch_again(self, delay_s: float) -> None:
        """Look again when the first can be late, at the latest after the shortest limit.

        A request that is sent in the meantime cannot be late before that.
        """
        self._timer = None
        if self._in_flight:
            delay_s = max(min(delay_s, self._shortest_s), _SHORTEST_WATCH_S)
            self._timer = self._loop.call_later(delay_s, self._watch)

    def _next_deadline_s(self) -> float:
        return min((self._deadline(one)[0] for one in self._in_flight), default=math.inf)

    def _deadline(self, exchange: Exchange) -> tuple[float, str]:
        """When an exchange has waited too long, if nothing comes until then, and for what."""
        limits = self._timeouts
        total_s = (exchange.begun_at_s or 0.0) + limits.total_s
        begun, limit_s, what = exchange.last_byte_at_s, limits.between_bytes_s, "further byte"
        if begun is None:
            begun, limit_s, what = exchange.sent_at_s, limits.first_byte_s, "first byte"
        if begun is not None and limit_s is not None and begun + limit_s < total_s:
            return begun + limit_s, f"no {what} within {limit_s:g} s"
        return total_s, f"no complete answer within {limits.total_s:g} s"


class _Connection(asyncio.Protocol):
    """One connection, carrying one request at a time."""

    def __init__(self, client: Client) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.usable = False  # whether a request may be sent on it
        self.made_in_s = 0.0
        self._client = client
        self._now_s = client.now_s
        self._stamps = client.turns.stamps
        self._transport: asyncio.Transport | None = None
        self._socket: int | None = None  # to write to at once; None under TLS
        self._exchange: Exchange | None = None
        self._used = False
        self._connected_at_s = 0.0
        self._free_since_s = 0.0
        self._ended_at_s: float | None = None
        self._was_taken = False  # all of the request was at a socket that the server had not closed
        # The parser's call-backs, two of them without a frame of ours.
        self._inflate: Any = None  # the decompressor of a compressed body
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._headers: dict[bytes, bytes] = {}
        self.on_header = self._headers.__setitem__
        self._plain_headers: tuple[bytes, ...] | None = None  # names of the last plain answer's
        self._interim = self._head_complete = self._complete = self._keep_alive = False
        self._received = 0  # bytes of the answer
        self._length_told = False
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self._expect_answer()

    def start(self, exchange: Exchange) -> None:
        """Hand a request to the socket."""
        self._exchange = exchange
        exchange.reused = self._used  # never left as it was: it may be sent for a second time
        if not self._used:
            exchange.connected_at_s = self._connected_at_s
            self._used = True
        client, request, written = self._client, exchange.request, 0
        if client.forwards:
            request = client.connector.forwarded(request)
        exchange.sent_at_s = self._now_s()
        if self._socket is not None:
            try:  # at once: an event loop's own write may wait for the end of its turn
                written = os.write(self._socket, request)
            except OSError:  # full, or gone: the loop's own write finds out which
                written = 0
        if written < len(request):
            self._socket = None  # what is still buffered must leave before anything else
            cast(asyncio.Transport, self._transport).write(request[written:])
        if not client.reuse_connections:
            client.make_spare()

    def give_up(self) -> None:
        """Close without waiting for anything."""
        self._exchange = None
        self._close_socket()
        if self._transport is not None:
            self._transport.abort()

    def _close_socket(self) -> None:
        """Write to it no more: its number may soon be that of another connection."""
        self.usable = False
        self._socket = None

    # --- called by the event loop -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the instant from which requests can be sent."""
        self._connected_at_s = self._now_s()
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True
        if not self._client.origin.tls:
            self._socket = transport.get_extra_info("socket").fileno()
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        """Stamp the read, then parse it, then hand on what it held of the body."""
        stamp_s = self._now_s()
        exchange = self._exchange
        if exchange is None:
            self.give_up()  # nobody asked: the server is about to close, or breaks the protocol
            return
        if exchange.first_byte_at_s is None:
            exchange.first_byte_at_s = stamp_s
        exchange.last_byte_at_s = stamp_s
        stamps = self._stamps
        if not stamps:
            self._client.turns.begin()
        stamps.append(stamp_s)
        problem = None
        self._received += len(data)
        if self._received > self._client.max_response_bytes:
            problem = self._oversized()
        else:
            try:
                self._feed(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                problem = f"malformed HTTP: {error.__context__ or error}"
        if self._head_complete and exchange.first_byte_at_s is None:  # it came with a 100 Continue
            exchange.first_byte_at_s = exchange.last_byte_at_s = stamp_s
        if pieces := self._pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if self._inflate is None:
                exchange.on_body(stamp_s, body)
            elif unreadable := self._inflated(exchange, stamp_s, body):
                self._client.fail(exchange, "stream_error", unreadable)
                return
        if self._complete:
            self._finish(exchange, stamp_s, clean=problem is None)
        elif problem is not None:
            kind: FailureKind = "stream_error" if self._head_complete else "connection_error"
            self._client.fail(exchange, kind, problem)

    def eof_received(self) -> None:
        """Note the instant at which the server closed."""
        self._ended_at_s = self._now_s()
        if self._transport is not None:
            self._was_taken = _all_acknowledged(self._transport.get_extra_info("socket").fileno())
        self._close_socket()

    def connection_lost(self, error: Exception | None) -> None:
        """Settle what was in flight: whole, to be sent again, or cut."""
        exchange, self._exchange = self._exchange, None
        self._client.lost(self)
        self._close_socket()
        self._transport = None
        del self._parser, self._feed  # they hold this object's methods
        if exchange is not None:
            self._settle(exchange, error)

    # --- called by the parser, from within data_received ------------------------------------------

    def on_headers_complete(self) -> None:
        """Take the status; 100 Continue and its like only announce the answer."""
        if self._complete:
            raise httptools.HttpParserError("an answer that nobody asked for")
        exchange = self._exchange
        assert exchange is not None
        exchange.http_status = status = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            self._headers.clear()
            exchange.http_status = exchange.first_byte_at_s = exchange.last_byte_at_s = None
            return
        self._interim = False
        self._head_complete = True
        if exchange.reused:
            self._client.has_reused = True
        headers = self._headers
        if status != 200 or tuple(headers) != self._plain_headers:
            self._look_at_headers(exchange)

    def _look_at_headers(self, exchange: Exchange) -> None:
        """Note what is not as in the answers before; most servers send equal names every time."""
        names = tuple(self._headers)
        exchange.headers = headers = {name.lower(): v for name, v in self._headers.items()}
        self._length_told = b"content-length" in headers or b"transfer-encoding" in headers
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._inflate = zlib.decompressobj(_ANY_DEFLATE)
        elif b"content-encoding" not in headers:
            self._plain_headers = names

    def on_message_complete(self) -> None:
        """Note that the answer is whole."""
        self._complete = not self._interim
        self._keep_alive = self._parser.should_keep_alive()  # the parser forgets it at once

    # --- the answer in flight ---------------------------------------------------------------------

    def _expect_answer(self) -> None:
        self._interim = False
        self._head_complete = False
        self._complete = False
        self._keep_alive = False
        self._received = 0
        self._headers.clear()
        self._inflate = None

    def _oversized(self) -> str:
        return f"an answer larger than {self._client.max_response_bytes / 2**20:g} MiB"

    def _inflated(self, exchange: Exchange, stamp_s: float, body: bytes) -> str | None:
        """Hand on compressed bytes of a body as plain ones; what was wrong with them, or None."""
        limit, plain, problem = self._client.max_response_bytes, b"", None
        try:
            plain = self._inflate.decompress(body, limit)
            while len(plain) < limit and (rest := self._inflate.unused_data):
                self._begin_next_member(rest)
                plain += self._inflate.decompress(rest, limit - len(plain))
        except zlib.error as error:
            problem = f"malformed compression: {error}"
        exchange.on_body(stamp_s, plain)
        self._received += len(plain)
        return self._oversized() if self._received > limit else problem

    def _begin_next_member(self, rest: bytes) -> None:
        """Decompress anew what follows an end: a gzip body is one member or several, in a row."""
        if not rest.startswith(_GZIP_BEGINS):
            raise zlib.error("something else follows its end")
        self._inflate = zlib.decompressobj(_GZIP)

    def _cut_compression(self) -> Failure | None:
        """Why a body that is whole for HTTP is not, where its compression goes on."""
        if self._inflate is None or self._inflate.eof:
            return None
        return Failure("truncated", "the compressed answer ends early")

    def _finish(self, exchange: Exchange, stamp_s: float, *, clean: bool) -> None:
        """Free the connection, or close it, before the owner hears of the end and sends again."""
        assert self._transport is not None
        self._exchange = None
        self._free_since_s = stamp_s
        keep = clean and self._keep_alive and self._client.reuse_connections
        if self._client.origin.tls:
            self._client.connector.remember(self._transport)
        exchange.failure = self._cut_compression()
        self._expect_answer()
        if keep:
            self._client.keep(self)
        else:
            self._close_socket()
            self._transport.close()
        self._client.end(exchange, stamp_s)

    def _settle(self, exchange: Exchange, error: Exception | None) -> None:
        stamp_s = self._now_s() if self._ended_at_s is None else self._ended_at_s
        reason = str(error) if error else "the server closed the connection"
        if self._head_complete and not self._length_told and error is None:
            exchange.failure = self._cut_compression()
            self._client.end(exchange, stamp_s)
        elif self._head_complete:
            self._client.break_off(exchange, Failure("truncated", reason), stamp_s)
        elif self._crossed_a_close(exchange, stamp_s):
            self._client.resend(exchange, closed_after_s=stamp_s - self._free_since_s)
        else:
            self._client.break_off(exchange, Failure("connection_error", reason), stamp_s)

    def _crossed_a_close(self, exchange: Exchange, stamp_s: float) -> bool:
        """Whether the server may have closed before the request reached it.

        One that was closed after its host had acknowledged the whole request was not: that request
        was read, and failed. Yet a server that closes after every answer may do so while a request
        lies unread at its host; it does so right after the answer, and never gives two.
        """
        assert exchange.sent_at_s is not None
        longest_s = _CROSSING_S + _CROSSING_ROUND_TRIPS * self.made_in_s
        after_answer = stamp_s - self._free_since_s < longest_s
        if self._was_taken and (self._client.has_reused or not after_answer):
            return False
        unanswered = exchange.first_byte_at_s is None and not self._interim
        may_resend = exchange.reused and not exchange.resent
        return unanswered and may_resend and stamp_s - exchange.sent_at_s < longest_s

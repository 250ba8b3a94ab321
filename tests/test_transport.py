"""Requests and answers over real loopback sockets: what is sent, stamped, kept, resent and cut."""

from __future__ import annotations

import asyncio
import gc
import gzip
import socket
import ssl
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import trustme

from fmgauge.transport import (
    Client,
    Exchange,
    Origin,
    RealClock,
    Timeouts,
    origin_of,
    run_event_loop,
)
from scripted_server import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Peer,
    Request,
    ScriptedServer,
    chunk,
    response,
)

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
REQUEST = HEAD + b"{}"
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Body:
    """What `on_body` was given."""

    def __init__(self) -> None:
        self.stamps_s: list[float] = []
        self.pieces: list[bytes] = []

    @property
    def text(self) -> bytes:
        """All bytes."""
        return b"".join(self.pieces)


class Told(Exchange):
    """An exchange that keeps its body and tells of its end."""

    def __init__(self, tell: Callable[[Exchange], object], request: bytes = REQUEST) -> None:
        super().__init__(request)
        self.tell = tell
        self.body = Body()

    def on_body(self, stamp_s: float, data: bytes) -> None:
        """Keep one read's bytes and stamp."""
        self.body.stamps_s.append(stamp_s)
        self.body.pieces.append(data)

    def on_end(self) -> None:
        """Tell of the end."""
        self.tell(self)


async def exchanged(client: Client) -> tuple[Exchange, Body]:
    """Send one request and wait for its end."""
    ended: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
    client.send(Told(ended.set_result))
    exchange = await ended
    return exchange, exchange.body


def with_client(
    url: str,
    use: Callable[[Client], Coroutine[Any, Any, Any]],
    run: Run = run_event_loop,
    **timeouts: float,
) -> Any:
    """Run `use(client)` on an event loop, the client being closed at the end."""

    async def used() -> Any:
        client = Client(origin_of(url), RealClock(), Timeouts(**{"total_s": 20.0, **timeouts}))
        try:
            return await use(client)
        finally:
            await client.close()

    return run(used())


def ask(url: str, **timeouts: float) -> tuple[Exchange, Body]:
    """Send one request to `url`."""
    return with_client(url, exchanged, **timeouts)


def ask_times(url: str, times: int) -> list[Exchange]:
    """Send requests one after the other, each from the end of the one before."""

    async def use(client: Client) -> list[Exchange]:
        ended = asyncio.get_running_loop().create_future()
        exchanges: list[Exchange] = []

        def on_end(exchange: Exchange) -> None:
            exchanges.append(exchange)
            if len(exchanges) == times:
                ended.set_result(exchanges)
            else:
                client.send(Told(on_end))

        client.send(Told(on_end))
        return await ended

    return with_client(url, use)


def script_of(*pieces: bytes, then: str = "") -> Callable[[Request, Peer], Any]:
    """A script that writes `pieces` and then closes, resets, or keeps the connection."""

    async def script(_: Request, peer: Peer) -> None:
        await peer.send(*pieces)
        if then:
            getattr(peer, then)()

    return script


# --- framing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "then"),
    [
        ((STREAM_HEAD, chunk(b"one "), chunk(b"two"), LAST_CHUNK), ""),
        ((response("200 OK", b"one two"),), ""),
        ((b"HTTP/1.1 200 OK\r\n\r\none ", b"two"), "close"),
        ((b"HTTP/1.0 200 OK\r\nconnection: close\r\n\r\none two",), "close"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", response("200 OK", b"one two")), ""),
        ((b"HTTP/1.1 200 OK\r\ncOnTeNt-LeNgTh: 7\r\n\r\n", b"one two"), ""),
        (tuple(bytes([byte]) for byte in response("200 OK", b"one two")), ""),
    ],
    ids=["chunked", "length", "until-close", "http-1.0", "continue", "odd-case", "bytewise"],
)
def test_body_is_whole_however_it_is_framed(pieces: tuple[bytes, ...], then: str) -> None:
    """Chunked, of known length, until close, after 100 Continue: the body is the same."""
    with ScriptedServer(script_of(*pieces, then=then)) as server:
        exchange, body = ask(server.base_url)

    assert (exchange.failure, exchange.http_status, body.text) == (None, 200, b"one two")


def test_header_names_are_given_in_lower_case() -> None:
    """Whatever the case that the server writes, a header is found under its lower-case name."""
    reply = response("429 Too Many Requests", b"", "ReTrY-aFtEr: 7")
    with ScriptedServer(script_of(reply)) as server:
        exchange, _ = ask(server.base_url)

    assert exchange.headers[b"retry-after"] == b"7"


# --- instants ------------------------------------------------------------------------------------


def test_instants_are_in_the_order_of_events() -> None:
    """Connected, sent, first byte, body reads, finished: never in any other order."""
    pieces = (STREAM_HEAD, chunk(b"a"), chunk(b"b"), LAST_CHUNK)
    with ScriptedServer(script_of(*pieces)) as server:
        exchange, body = ask(server.base_url)

    instants = [exchange.connected_at_s, exchange.sent_at_s, exchange.first_byte_at_s]
    instants += [*body.stamps_s, exchange.finished_at_s]
    assert instants == sorted(instants)


def test_body_of_one_read_comes_with_one_stamp() -> None:
    """Chunks that one read brought are handed on together, under that read's stamp."""
    with ScriptedServer(script_of(STREAM_HEAD + chunk(b"a") + chunk(b"b") + LAST_CHUNK)) as server:
        _, body = ask(server.base_url)

    assert body.pieces == [b"ab"]


def test_connect_time_is_not_counted_as_waiting_for_the_answer() -> None:
    """The request is stamped after the connection was made, so its set-up is in no latency."""
    with ScriptedServer(script_of(response("200 OK", b""))) as server:
        exchange, _ = ask(server.base_url)

    assert exchange.connected_at_s is not None
    assert exchange.sent_at_s is not None
    assert exchange.connected_at_s < exchange.sent_at_s


# --- connections ---------------------------------------------------------------------------------


def test_connection_is_reused() -> None:
    """Five requests in a row need one connection, and all but the first say so."""
    with ScriptedServer(script_of(response("200 OK", b"x"))) as server:
        exchanges = ask_times(server.base_url, 5)

    assert [exchange.reused for exchange in exchanges] == [False, True, True, True, True]
    assert server.connections == 1


def test_connections_opened_ahead_are_used() -> None:
    """A connection opened before the first request carries it: it is connected before it is due."""

    async def use(client: Client) -> tuple[float, Exchange]:
        await client.open(1)
        due_at_s = client.now_s()
        exchange, _ = await exchanged(client)
        return due_at_s, exchange

    with ScriptedServer(script_of(response("200 OK", b"x"))) as server:
        due_at_s, exchange = with_client(server.base_url, use)

    assert exchange.connected_at_s < due_at_s < exchange.sent_at_s


def test_server_that_closes_after_each_answer_fails_nothing() -> None:
    """A kept connection that the server closes meanwhile costs no request, not even in the race."""
    with ScriptedServer(script_of(response("200 OK", b"x"), then="close")) as server:
        exchanges = ask_times(server.base_url, 20)

    assert [exchange.failure for exchange in exchanges] == [None] * 20
    assert len(server.requests) == 20


def test_request_that_crossed_a_close_is_stamped_anew() -> None:
    """A resent request counts from its second sending, on the new connection."""

    async def script(request: Request, peer: Peer) -> None:
        if request.connection == 0 and request.number == 1:
            peer.reset()  # the request came, but not a byte of an answer goes
        else:
            await peer.send(response("200 OK", b"x"))

    with ScriptedServer(script) as server:
        _, second = ask_times(server.base_url, 2)

    assert (second.failure, second.resent, second.reused) == (None, True, False)
    assert second.sent_at_s > second.connected_at_s


def test_request_is_resent_only_once() -> None:
    """A second close before any answer is a failure: the server is not merely tidying up."""

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 0:
            await peer.send(response("200 OK", b"x"))
        else:
            peer.close()

    with ScriptedServer(script) as server:
        _, second = ask_times(server.base_url, 2)

    assert second.failure.kind == "connection_error"
    assert len(server.requests) == 3


def test_request_that_the_server_gave_up_on_is_not_resent() -> None:
    """A close without a byte, long after the request came, is a failure of that request."""

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 1:
            await asyncio.sleep(0.4)
            peer.close()
        else:
            await peer.send(response("200 OK", b"x"))

    with ScriptedServer(script) as server:
        _, second = ask_times(server.base_url, 2)

    assert (second.failure.kind, second.resent) == ("connection_error", False)
    assert len(server.requests) == 2


def test_request_that_a_100_continue_acknowledged_is_not_resent() -> None:
    """The server had it: a close after that is its answer, however soon it comes."""

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 1:
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            peer.close()
        else:
            await peer.send(response("200 OK", b"{}"))

    with ScriptedServer(script) as server:
        _, closed_on = ask_times(server.base_url, 2)

    assert closed_on.failure == ("connection_error", "the server closed the connection")
    assert len(server.requests) == 2


def test_request_that_a_keeping_server_read_and_dropped_is_a_failure() -> None:
    """Once connections are known to be kept, a close at once after reading a request fails it."""

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 2:
            peer.close()
        else:
            await peer.send(response("200 OK", b"x"))

    with ScriptedServer(script) as server:
        _, _, third, fourth = ask_times(server.base_url, 4)

    assert (third.failure.kind, third.resent) == ("connection_error", False)
    assert fourth.failure is None
    assert len(server.requests) == 4


def test_one_dropped_request_leaves_connections_kept() -> None:
    """A close before any connection brought two answers is one request's, not the server's way."""

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 1:
            peer.close()
        else:
            await peer.send(response("200 OK", b"x"))

    with ScriptedServer(script) as server:
        exchanges = ask_times(server.base_url, 6)

    assert [exchange.failure for exchange in exchanges] == [None] * 6
    assert [exchange.resent for exchange in exchanges] == [False, True] + [False] * 4
    assert server.connections == 2


def test_server_that_never_answers_twice_gets_new_connections() -> None:
    """After three such closes no request is sent on a connection that has carried another."""

    async def script(request: Request, peer: Peer) -> None:
        connections = [one.connection for one in server.requests]
        if connections.count(request.connection) > 1:
            peer.close()
        else:
            await peer.send(response("200 OK", b"x"))

    with ScriptedServer(script) as server:
        exchanges = ask_times(server.base_url, 10)

    assert [exchange.failure for exchange in exchanges] == [None] * 10
    assert [exchange.resent for exchange in exchanges] == [False, *[True] * 3, *[False] * 6]
    assert len(server.requests) == 13


def test_request_read_and_dropped_long_after_an_answer_is_a_failure() -> None:
    """No crossing explains such a close, though no connection has brought two answers yet."""

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 1:
            peer.close()
        else:
            await peer.send(response("200 OK", b"x"))

    async def use(client: Client) -> Exchange:
        await exchanged(client)
        await asyncio.sleep(0.3)  # a user thinks
        return (await exchanged(client))[0]

    with ScriptedServer(script) as server:
        second = with_client(server.base_url, use)

    assert (second.failure.kind, second.resent, second.reused) == ("connection_error", False, True)
    assert len(server.requests) == 2


def test_connection_header_close_is_obeyed() -> None:
    """After `connection: close` the next request takes a new connection, and none is resent."""
    with ScriptedServer(script_of(response("200 OK", b"x", "Connection: close"))) as server:
        exchanges = ask_times(server.base_url, 3)

    assert [exchange.resent for exchange in exchanges] == [False] * 3
    assert server.connections == 3


def test_answer_that_nobody_asked_for_is_given_to_no_request() -> None:
    """A second response in the same read is not taken for the next request's answer."""
    reply = response("200 OK", b"first") + response("200 OK", b"surplus")
    with ScriptedServer(script_of(reply)) as server:
        exchanges = ask_times(server.base_url, 2)

    assert [exchange.failure for exchange in exchanges] == [None, None]
    assert server.connections == 2


def test_no_connection_is_left_open() -> None:
    """Closing the client closes its connections, idle ones too: the server sees the end of each."""

    async def use(client: Client) -> None:
        await client.open(3)
        await exchanged(client)

    with ScriptedServer(script_of(response("200 OK", b"x"))) as server:
        with_client(server.base_url, use)

        assert server.comes_to(lambda: server.connections == 3 and not server.open_connections)


def test_answer_that_comes_while_the_client_closes_is_nobody_s() -> None:
    """A client that is closed with requests in flight ends in peace, whatever arrives meanwhile."""
    answered = threading.Event()

    async def script(_: Request, peer: Peer) -> None:
        await peer.send(response("200 OK", b"{}"))
        answered.set()

    async def use(client: Client) -> list[Exchange]:
        told: list[Exchange] = []
        await client.open(1)
        client.send(Told(told.append))
        assert answered.wait(10)  # the loop stands still: nothing is read before it closes
        client.send(Told(told.append))  # still connecting
        await client.close()
        return told

    with ScriptedServer(script) as server:
        assert with_client(server.base_url, use) == []


def test_exchange_leaves_nothing_for_the_garbage_collector() -> None:
    """What a request used is freed when it ends, with the collector off, as it is under load."""

    async def use(client: Client) -> weakref.ref[Body]:
        ended = asyncio.Event()
        exchange = Told(lambda _: ended.set())
        client.send(exchange)
        await ended.wait()
        return weakref.ref(exchange.body)

    gc.disable()
    try:
        with ScriptedServer(script_of(response("200 OK", b"x"))) as server:
            assert with_client(server.base_url, use)() is None
    finally:
        gc.enable()


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "then", "kind"),
    [
        ((), "close", "connection_error"),
        ((), "reset", "connection_error"),
        ((b"HTTP/1.1 200 OK\r\ncontent-",), "close", "connection_error"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",), "close", "truncated"),
        ((STREAM_HEAD, chunk(b"abc")), "close", "truncated"),
        ((STREAM_HEAD, chunk(b"abc")), "reset", "truncated"),
        ((STREAM_HEAD, b"5\r\nab"), "close", "truncated"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "", "connection_error"),
        ((STREAM_HEAD, b"zz\r\nabc"), "", "stream_error"),
    ],
)
def test_broken_answer_is_a_failure(pieces: tuple[bytes, ...], then: str, kind: str) -> None:
    """A close before the head, or in the middle, or no HTTP at all: each has its kind."""
    with ScriptedServer(script_of(*pieces, then=then)) as server:
        exchange, _ = ask(server.base_url)

    assert exchange.failure.kind == kind


def test_refused_connection_is_a_failure_that_was_never_sent() -> None:
    """Where nobody listens, the exchange ends with a connection error and no instant of sending."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]

    exchange, _ = ask(f"http://127.0.0.1:{port}")

    assert exchange.failure.kind == "connection_error"
    assert exchange.sent_at_s is None


def test_unknown_host_is_a_failure() -> None:
    """A name that no resolver knows, or could know, ends in a connection error."""
    exchange, _ = ask(f"http://{'x' * 70}.invalid")

    assert exchange.failure.kind == "connection_error"


each_loop = pytest.mark.parametrize("run", [run_event_loop, asyncio.run], ids=["uvloop", "asyncio"])
LIMIT_S = 0.25
LIMITS = [{"total_s": LIMIT_S}, {"first_byte_s": LIMIT_S}, {"between_bytes_s": LIMIT_S}]
each_limit = pytest.mark.parametrize("limits", LIMITS, ids=["total", "first-byte", "between"])


class Stalls(asyncio.Protocol):
    """A connection whose read holds up the loop, as a client does that has too much to do."""

    def __init__(self, until: Callable[[], Any]) -> None:
        self._until = until

    def data_received(self, data: bytes) -> None:
        """Stand still, amid the reads of a turn, for longer than any limit."""
        self._until()
        time.sleep(1.5 * LIMIT_S)


async def stalled(client: Client, until: Callable[[], Any], *, ready: threading.Event) -> Exchange:
    """Send a request, stand still in the midst of it, and wait for its end."""
    loop = asyncio.get_running_loop()
    ours, others = socket.socketpair()
    with others:
        transport, _ = await loop.create_connection(lambda: Stalls(until), sock=ours)
        asked = asyncio.ensure_future(exchanged(client))
        await loop.run_in_executor(None, ready.wait, 10)
        others.send(b"x")
        exchange, _ = await asked
        transport.close()
    return exchange


@each_loop
@each_limit
def test_answer_that_lies_in_the_socket_is_not_late(run: Run, limits: dict[str, float]) -> None:
    """The client stood still beyond a limit, the server did not: the answer was there in time."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    async def script(_: Request, peer: Peer) -> None:
        if "first_byte_s" not in limits:
            await peer.send(STREAM_HEAD, chunk(b"one "))
        begun.set()
        while not may_end.is_set():
            await asyncio.sleep(0.001)
        if "first_byte_s" in limits:
            await peer.send(STREAM_HEAD, chunk(b"one "))
        await peer.send(chunk(b"two"), LAST_CHUNK)
        ended.set()

    def until_answered() -> None:
        may_end.set()
        assert ended.wait(10)

    with ScriptedServer(script) as server:
        exchange = with_client(
            server.base_url,
            lambda client: stalled(client, until_answered, ready=begun),
            run=run,
            **limits,
        )

    assert exchange.failure is None
    assert exchange.finished_at_s - exchange.sent_at_s > LIMIT_S


@each_loop
@each_limit
def test_silence_that_outlasts_a_stall_is_late(run: Run, limits: dict[str, float]) -> None:
    """Nothing came while the client stood still: what it reads then does not save the request."""
    begun = threading.Event()

    async def script(_: Request, peer: Peer) -> None:
        if "between_bytes_s" in limits:
            await peer.send(STREAM_HEAD, chunk(b"one "))
        begun.set()
        await asyncio.sleep(60)  # until the test is over

    with ScriptedServer(script) as server:
        exchange = with_client(
            server.base_url,
            lambda client: stalled(client, lambda: None, ready=begun),
            run=run,
            **limits,
        )

    assert exchange.failure.kind == "timeout"


@each_loop
@pytest.mark.parametrize("turns", range(8))
def test_connection_made_while_the_client_stood_still_is_not_late(run: Run, turns: int) -> None:
    """Whichever turn of a connection's making the loop is held up in, its limit fails nothing."""

    async def use(client: Client) -> Exchange:
        ended: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        client.send(Told(ended.set_result))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.15)
        return await ended

    with ScriptedServer(script_of(response("200 OK", b"x"))) as server:
        assert with_client(server.base_url, use, run=run, connect_s=0.1).failure is None


def test_silent_server_times_out() -> None:
    """An answer that never comes ends at the deadline, not before it."""

    async def script(_: Request, __: Peer) -> None:
        await asyncio.sleep(3600)  # an event that nobody sets would be garbage

    with ScriptedServer(script) as server:
        exchange, _ = ask(server.base_url, total_s=0.2)

    assert exchange.failure.kind == "timeout"
    assert exchange.finished_at_s - exchange.sent_at_s >= 0.19


def test_time_out_of_one_leaves_the_others_alone() -> None:
    """While one request waits for its deadline, requests behind it are answered."""

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 0:
            await asyncio.sleep(3600)  # an event that nobody sets would be garbage
        await peer.send(response("200 OK", b"x"))

    async def use(client: Client) -> list[tuple[Exchange, Body]]:
        await client.open(2)
        first = asyncio.ensure_future(exchanged(client))
        while not server.requests:
            await asyncio.sleep(0.001)
        return [await exchanged(client), await exchanged(client), await first]

    with ScriptedServer(script) as server:
        (one, _), (two, _), (silent, _) = with_client(server.base_url, use, total_s=0.5)

    assert (one.failure, two.failure, silent.failure.kind) == (None, None, "timeout")


def test_unanswered_handshake_times_out_as_connecting() -> None:
    """A server that accepts but never speaks TLS fails the connect time-out, unsent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        exchange, _ = ask(url, connect_s=0.2)

    assert exchange.failure.kind == "timeout"
    assert exchange.sent_at_s is None


def test_answer_that_does_not_begin_times_out() -> None:
    """With a limit on the first byte, silence ends before the whole request's limit."""

    async def script(_: Request, __: Peer) -> None:
        await asyncio.sleep(3600)  # an event that nobody sets would be garbage

    with ScriptedServer(script) as server:
        exchange, _ = ask(server.base_url, first_byte_s=0.1)

    assert exchange.failure == ("timeout", "no first byte within 0.1 s")


def test_answer_that_comes_with_a_100_continue_has_begun() -> None:
    """Its first byte is that of the read which brought both, and waits for no further one."""

    async def script(_: Request, peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" + STREAM_HEAD)
        await asyncio.sleep(0.3)
        await peer.send(chunk(b"data"), LAST_CHUNK)

    with ScriptedServer(script) as server:
        exchange, body = ask(server.base_url, first_byte_s=0.15)

    assert exchange.failure is None
    assert body.text == b"data"
    assert exchange.first_byte_at_s < exchange.last_byte_at_s


def test_silence_within_an_answer_times_out() -> None:
    """A slow-loris body that stops is given up after the limit between bytes; slow ones are not."""

    async def script(_: Request, peer: Peer) -> None:
        await peer.send(STREAM_HEAD)
        for _ in range(5):
            await peer.send(chunk(b"x"))
            await asyncio.sleep(0.05)
        await asyncio.sleep(3600)  # an event that nobody sets would be garbage

    with ScriptedServer(script) as server:
        exchange, body = ask(server.base_url, between_bytes_s=0.3)

    assert exchange.failure == ("timeout", "no further byte within 0.3 s")
    assert body.text == b"xxxxx"


def test_drip_of_single_bytes_ends_at_the_whole_limit() -> None:
    """A body that never ends, a byte at a time, keeps every other limit but not the whole one."""

    async def script(_: Request, peer: Peer) -> None:
        await peer.send(STREAM_HEAD)
        while True:
            await peer.send(chunk(b"x"))
            await asyncio.sleep(0.01)

    with ScriptedServer(script) as server:
        exchange, _ = ask(server.base_url, total_s=0.3, between_bytes_s=0.2)

    assert exchange.failure == ("timeout", "no complete answer within 0.3 s")


def test_oversized_answer_is_cut() -> None:
    """An answer beyond the cap is given up with an error that names the cap."""
    block = chunk(b"x" * 2**18)

    async def script(_: Request, peer: Peer) -> None:
        await peer.send(STREAM_HEAD)
        while True:
            await peer.send(block)

    async def use(client: Client) -> tuple[Exchange, Body]:
        client.max_response_bytes = 2**21
        return await exchanged(client)

    with ScriptedServer(script) as server:
        exchange, body = with_client(server.base_url, use)

    assert exchange.failure == ("stream_error", "an answer larger than 2 MiB")
    assert len(body.text) <= 2**21


# --- compression ---------------------------------------------------------------------------------


def compressed(body: bytes, encoding: str) -> bytes:
    """A whole response whose body is compressed."""
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    return response("200 OK", packed, f"Content-Encoding: {encoding}")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_body_is_handed_on_plain(encoding: str) -> None:
    """A server that compresses though nobody asked is understood, whatever its pieces."""
    reply = compressed(b"one two", encoding)
    with ScriptedServer(script_of(*(bytes([byte]) for byte in reply))) as server:
        exchange, body = ask(server.base_url)

    assert (exchange.failure, body.text) == (None, b"one two")


def test_next_answer_need_not_be_compressed() -> None:
    """What one answer's headers said holds for that answer only."""

    async def script(request: Request, peer: Peer) -> None:
        plain = response("200 OK", b"plain")
        await peer.send(plain if request.number else compressed(b"packed", "gzip"))

    async def use(client: Client) -> list[bytes]:
        return [(await exchanged(client))[1].text for _ in range(2)]

    with ScriptedServer(script) as server:
        assert with_client(server.base_url, use) == [b"packed", b"plain"]
        assert server.connections == 1


def test_broken_compression_is_a_failure() -> None:
    """Bytes that are not what the header says end the request with the reason."""
    reply = response("200 OK", b"not gzip at all", "Content-Encoding: gzip")
    with ScriptedServer(script_of(reply)) as server:
        exchange, _ = ask(server.base_url)

    assert exchange.failure.message.startswith("malformed compression")


def test_compression_that_ends_early_is_a_cut_answer() -> None:
    """A body that is complete for HTTP but not for gzip is no whole answer."""
    packed = gzip.compress(b"one two" * 100)[:-12]
    reply = response("200 OK", packed, "Content-Encoding: gzip")
    with ScriptedServer(script_of(reply)) as server:
        exchange, _ = ask(server.base_url)

    assert exchange.failure.kind == "truncated"


MEMBERS = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")


def answers_packed_as(packed: bytes) -> Iterator[tuple[Exchange, Body]]:
    """What becomes of a gzip body in one piece, in pieces of a byte, and of a length untold."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    whole = response("200 OK", packed, "Content-Encoding: gzip")
    for script in (
        script_of(whole),
        script_of(*(bytes([byte]) for byte in whole)),
        script_of(head, packed, then="close"),
    ):
        with ScriptedServer(script) as server:
            yield ask(server.base_url)


def test_gzip_of_several_members_is_one_body() -> None:
    """RFC 1952 allows members in a row, which is what a server makes that compresses in blocks."""
    for exchange, body in answers_packed_as(MEMBERS):
        assert (exchange.failure, body.text) == (None, b"one two")


@pytest.mark.parametrize("last", [b"\n", b"\0" * 8, b"\x1f\x8b\x07\0", b"<html>"])
def test_bytes_behind_the_last_member_fail_the_answer(last: bytes) -> None:
    """They are no part of what was compressed, so nobody knows what they were to say."""
    for exchange, body in answers_packed_as(MEMBERS + last):
        assert exchange.failure.kind == "stream_error"
        assert exchange.failure.message.startswith("malformed compression: ")
        assert body.text == b"one two"


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_a_last_member_that_ends_early_is_a_cut_answer(kept: int) -> None:
    """Also where HTTP tells no length, and the connection's close looks like an end."""
    for exchange, body in answers_packed_as(MEMBERS + gzip.compress(b"three")[:kept]):
        assert exchange.failure == ("truncated", "the compressed answer ends early")
        assert body.text.startswith(b"one two")


def test_members_that_swell_together_are_cut() -> None:
    """The cap holds for the whole body, not for each of its members."""

    async def use(client: Client) -> tuple[Exchange, Body]:
        client.max_response_bytes = 2**16
        return await exchanged(client)

    packed = gzip.compress(b"x" * 2**14) * 8
    with ScriptedServer(script_of(response("200 OK", packed, "Content-Encoding: gzip"))) as server:
        exchange, body = with_client(server.base_url, use)

    assert exchange.failure.kind == "stream_error"
    assert len(body.text) <= 2**16


def test_compression_bomb_is_cut() -> None:
    """A small body that swells beyond the cap is given up, with no more than the cap handed on."""

    async def use(client: Client) -> tuple[Exchange, Body]:
        client.max_response_bytes = 2**16
        return await exchanged(client)

    with ScriptedServer(script_of(compressed(b"x" * 2**22, "gzip"))) as server:
        exchange, body = with_client(server.base_url, use)

    assert exchange.failure.kind in ("stream_error", "truncated")
    assert len(body.text) <= 2**16


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def authority() -> trustme.CA:
    """A certificate authority that no system knows."""
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate for 127.0.0.1."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_tls_trusts_the_authority_in_ssl_cert_file(
    authority: trustme.CA,
    server_tls: ssl.SSLContext,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A private authority named by SSL_CERT_FILE is enough to talk to its servers."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    with ScriptedServer(script_of(response("200 OK", b"secret")), tls=server_tls) as server:
        exchange, body = ask(server.base_url)

    assert (exchange.failure, body.text) == (None, b"secret")


def test_unverifiable_certificate_is_refused(server_tls: ssl.SSLContext) -> None:
    """A certificate of an unknown authority ends the exchange before anything is sent."""
    with ScriptedServer(script_of(response("200 OK", b"x")), tls=server_tls) as server:
        exchange, _ = ask(server.base_url)

    assert exchange.failure.kind == "connection_error"
    assert "certificate verify failed" in exchange.failure.message
    assert exchange.sent_at_s is None


# --- addresses and the event loop -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://example.org/v1", Origin("example.org", 80, False)),
        ("https://example.org/v1", Origin("example.org", 443, True)),
        ("http://[::1]:8080/v1", Origin("::1", 8080, False)),
    ],
)
def test_origin_of_an_address(url: str, origin: Origin) -> None:
    """Scheme and port follow from the address."""
    assert origin_of(url) == origin


@pytest.mark.parametrize("url", ["example.org/v1", "ftp://example.org", "http://"])
def test_address_without_scheme_or_host_is_refused(url: str) -> None:
    """An address that is no http or https address has no origin."""
    with pytest.raises(ValueError, match="no http or https address"):
        origin_of(url)


def test_event_loop_runs_where_a_loop_runs_already() -> None:
    """Within a running loop, as in a notebook's kernel, a coroutine still gets its own loop."""

    async def inner() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def outer() -> bool:
        return run_event_loop(inner()) is not asyncio.get_running_loop()

    assert asyncio.run(outer())


def test_interrupt_cancels_the_coroutine_and_is_raised() -> None:
    """KeyboardInterrupt in the waiting thread ends the coroutine and its clean-up, then goes on."""
    cleaned_up = []

    async def waits_for_ever() -> None:
        try:
            await asyncio.sleep(3600)  # an event that nobody sets would be garbage
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(True)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_event_loop(waits_for_ever(), meanwhile=interrupt, every_s=0.01)

    assert cleaned_up == [True]


def test_exception_of_the_coroutine_is_raised() -> None:
    """What the coroutine raises reaches the caller."""

    async def raises() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        run_event_loop(raises())


def test_exception_in_a_callback_ends_the_run() -> None:
    """A program's error in `on_body` is raised to the caller instead of hanging the run."""

    class Broken(Exchange):
        def on_body(self, stamp_s: float, data: bytes) -> None:
            raise ZeroDivisionError("a bug")

    async def use(client: Client) -> None:
        client.send(Broken(REQUEST))
        await asyncio.sleep(3600)  # an event that nobody sets would be garbage

    with (
        ScriptedServer(script_of(response("200 OK", DONE))) as server,
        pytest.raises(ZeroDivisionError, match="a bug"),
    ):
        with_client(server.base_url, use)

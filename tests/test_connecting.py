"""Connections over real loopback sockets: addresses, TLS, proxies, and what is said of failures."""

from __future__ import annotations

import asyncio
import base64
import gc
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from fmgauge.errors import EndpointError
from fmgauge.transport.connecting import Connector
from fmgauge.transport.origin import Origin
from fmgauge.transport.proxies import proxy_for
from fmgauge.transport.tls import ResumingContext

NAME = "endpoint.test"  # reached through the tests' proxies only, which know where it is
USER, PASSWORD = "benchmark", "p@ss:w/rd"
IN_URL = "benchmark:p%40ss%3Aw%2Frd@"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode())
Run = Callable[[Coroutine[Any, Any, Any]], Any]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine on a new loop of either kind; what is left open warns, which is an error."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, 20))
    gc.collect()


class Peer(asyncio.Protocol):
    """A connection that notes what the loop told it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.events.append("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep the one read that is expected."""
        self.received.set_result(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Note that it is over."""
        self.events.append("lost")
        self.lost.set_result(None)

    async def ask(self, request: bytes) -> bytes:
        """The first read of the answer; the connection is over then."""
        self.transport.write(request)
        answer = await self.received
        self.transport.abort()
        await self.lost
        return answer


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back one read."""
    writer.write(b"you said " + await reader.read(1000))
    await reader.read()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait for the other side to close."""
    await reader.read()


@asynccontextmanager
async def serving(
    handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """The port of a server that handles every connection so and then closes it."""
    open_writers: set[asyncio.StreamWriter] = set()
    over: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        over.add(task)
        open_writers.add(writer)
        with suppress(OSError):  # the client may be gone
            await handler(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, host, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_writers:
            writer.close()
        await asyncio.wait_for(asyncio.gather(*over), 5)


class TestProxy:
    """A small real proxy: tunnels, and forwards what is asked for in absolute form."""

    __test__ = False

    def __init__(self, *, authorization: bytes = b"") -> None:
        self.heads: list[bytes] = []
        self._authorization = authorization

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self._authorization not in head:
            writer.write(b"HTTP/1.1 407 No, not with " + head.split(b"\r\n")[2] + b"\r\n\r\n")
            return
        target = re.match(rb"(CONNECT |POST http://)[a-z.]+:(\d+)(\S*) ", head)
        assert target is not None
        upward = await asyncio.open_connection("127.0.0.1", int(target[2]))  # wherever NAME is said
        if target[1] == b"CONNECT ":
            writer.write(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n")
        else:
            upward[1].write(b"POST %b HTTP/1.1\r\n\r\n" % target[3])
        await asyncio.gather(passed_on(reader, upward[1]), passed_on(upward[0], writer))


async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy all that comes until it ends."""
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system knows."""
    return trustme.CA()


@pytest.fixture
def environ(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    """An environment that trusts the authority."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return {"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")}


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate for 127.0.0.1 and the name behind the proxies."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", NAME).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def connector(
    port: int,
    *,
    host: str = "127.0.0.1",
    tls: bool = False,
    environ: dict[str, str] | None = None,
    connect_timeout_s: float = 10.0,
) -> Connector:
    """A connector whose environment is `environ` alone."""
    origin = Origin(host, port, tls)
    return Connector(origin, connect_timeout_s=connect_timeout_s, environ=environ or {})


async def failure(subject: Connector) -> OSError:
    """The error that connecting ends in, the protocol having been told nothing."""
    made: list[Peer] = []

    def factory() -> Peer:
        made.append(Peer())
        return made[-1]

    with pytest.raises(OSError) as caught:  # noqa: PT011 - the caller looks at its text
        await subject.connect(factory)
    assert [peer.events for peer in made if peer.events] == []
    return caught.value


def address(port: int, host: str = "127.0.0.1") -> tuple[Any, ...]:
    """An address as getaddrinfo gives it."""
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, and where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that lets new connections wait: the queue before it is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
        for each in waiting:
            each.close()


# --- addresses and TCP ---------------------------------------------------------------------------


def test_connects_over_tcp(run: Run) -> None:
    """A plain connection carries bytes both ways, and small writes are not held back."""

    async def act() -> tuple[bytes, int]:
        async with serving(echo) as port:
            peer = await connector(port).connect(Peer)
            tcp_socket = peer.transport.get_extra_info("socket")
            no_delay = tcp_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            return await peer.ask(b"hello"), no_delay

    answer, no_delay = run(act())

    assert answer == b"you said hello"
    assert no_delay != 0


def test_resolves_ahead_and_once(run: Run) -> None:
    """What was looked up stays, so that no later connection waits for a name."""

    async def act() -> tuple[list[Any], bool]:
        subject = connector(4711)
        await subject.resolve()
        first = subject.addresses
        await subject.resolve()
        return first, subject.addresses is first

    first, same = run(act())

    assert [found[4] for found in first] == [("127.0.0.1", 4711)]
    assert same


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".example", "a..b"])
def test_a_name_without_address_is_said(run: Run, host: str) -> None:
    """A name that no resolver knows, or could know, is named in the error."""
    error = run(failure(connector(80, host=host)))

    assert str(error).startswith(f"{host} does not resolve: ")
    assert len(str(error)) > len(f"{host} does not resolve: ")


def test_a_refused_connection_is_said(run: Run, closed_port: int) -> None:
    """The error names the server and the reason, in the same words on every event loop."""
    error = run(failure(connector(closed_port)))

    assert str(error) == f"127.0.0.1:{closed_port}: Connection refused"


def test_every_address_refusing_is_said_once(run: Run, closed_port: int) -> None:
    """A name whose addresses all refuse fails for one reason."""
    subject = connector(closed_port, host="localhost")
    subject.addresses = [address(closed_port), address(closed_port, "127.0.0.2")]

    error = run(failure(subject))

    assert str(error) == f"localhost:{closed_port}: Connection refused"


def test_a_dead_ipv6_address_gives_way_to_ipv4(run: Run, closed_port: int) -> None:
    """A name whose IPv6 address refuses is reached over IPv4."""

    async def act() -> tuple[bytes, list[Any]]:
        async with serving(echo) as port:
            dead = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", closed_port, 0, 0))
            subject = connector(port, host="localhost")
            subject.addresses = [dead, address(port)]
            peer = await subject.connect(Peer)
            return await peer.ask(b"hello"), [found[0] for found in subject.addresses]

    answer, families = run(act())

    assert answer == b"you said hello"
    assert families == [socket.AF_INET, socket.AF_INET6]


def test_the_address_that_answered_is_first_from_then_on(run: Run, black_hole: int) -> None:
    """An address that does not answer costs the first connection its head start, no later one."""

    async def act() -> tuple[list[bytes], list[int]]:
        async with serving(echo) as port:
            subject = connector(port)
            subject.addresses = [address(black_hole), address(port)]
            peers = [await subject.connect(Peer) for _ in range(2)]
            ports = [found[4][1] - port for found in subject.addresses]
            return [await peer.ask(b"hello") for peer in peers], ports

    answers, ports = run(act())

    assert answers == [b"you said hello"] * 2
    assert ports[0] == 0


def test_an_address_that_never_answers_times_out(run: Run, black_hole: int) -> None:
    """A server whose queue is full costs no more than the limit, which the error names."""
    error = run(failure(connector(black_hole, connect_timeout_s=0.1)))

    assert isinstance(error, TimeoutError)
    assert str(error) == f"no connection to 127.0.0.1:{black_hole} within 0.1 s"


# --- TLS -----------------------------------------------------------------------------------------


def test_tls_asks_for_http_1_1(
    run: Run, server_tls: ssl.SSLContext, environ: dict[str, str]
) -> None:
    """A server that would rather speak HTTP/2 is told which protocol follows."""

    async def act() -> tuple[bytes, str]:
        async with serving(echo, server_tls) as port:
            peer = await connector(port, tls=True, environ=environ).connect(Peer)
            protocol = peer.transport.get_extra_info("ssl_object").selected_alpn_protocol()
            return await peer.ask(b"hello"), protocol

    assert run(act()) == (b"you said hello", "http/1.1")


def test_an_unknown_authority_is_said(run: Run, server_tls: ssl.SSLContext) -> None:
    """A certificate that does not verify is refused, in words."""

    async def act() -> tuple[int, OSError]:
        async with serving(echo, server_tls) as port:
            return port, await failure(connector(port, tls=True))

    port, error = run(act())

    assert str(error) == (
        f"127.0.0.1:{port}: certificate verify failed: unable to get local issuer certificate"
    )


def test_a_certificate_for_another_host_is_said(
    run: Run, authority: trustme.CA, environ: dict[str, str]
) -> None:
    """A trusted certificate that belongs to another host is refused, in words."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("elsewhere.test").configure_cert(context)

    async def act() -> tuple[int, OSError]:
        async with serving(echo, context) as port:
            return port, await failure(connector(port, tls=True, environ=environ))

    port, error = run(act())

    assert str(error) == (
        f"127.0.0.1:{port}: certificate verify failed: IP address mismatch, "
        "certificate is not valid for '127.0.0.1'"
    )


def test_tls_to_a_plain_server_is_said(run: Run) -> None:
    """An https address whose server speaks plain http fails in the handshake."""

    async def answer_plainly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def act() -> tuple[int, OSError]:
        async with serving(answer_plainly) as port:
            return port, await failure(connector(port, tls=True))

    port, error = run(act())

    assert str(error) == f"127.0.0.1:{port}: TLS handshake failed: wrong version number"


def test_a_close_in_the_handshake_is_said(run: Run) -> None:
    """A server that hangs up on TLS is no mystery in the record."""

    async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1000)

    async def act() -> tuple[int, OSError]:
        async with serving(hang_up) as port:
            return port, await failure(connector(port, tls=True))

    port, error = run(act())

    assert str(error) == f"127.0.0.1:{port}: TLS handshake failed: the connection was closed"


def test_a_handshake_that_never_ends_times_out(run: Run) -> None:
    """The limit covers TLS, and the connection that was half made is closed."""

    async def act() -> OSError:
        closed = asyncio.get_running_loop().create_future()

        async def swallow(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                await reader.read()
            closed.set_result(None)

        async with serving(swallow) as port:
            error = await failure(connector(port, tls=True, connect_timeout_s=0.1))
            await closed
            return error

    assert isinstance(run(act()), TimeoutError)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_later_connection_resumes_the_session(
    run: Run, server_tls: ssl.SSLContext, environ: dict[str, str], version: ssl.TLSVersion
) -> None:
    """Every connection after the one remembered resumes, however that one ended."""
    server_tls.maximum_version = version

    async def act() -> list[bool]:
        async with serving(echo, server_tls) as port:
            subject = connector(port, tls=True, environ=environ)
            resumed = []
            for times in range(4):
                peer = await subject.connect(Peer)
                resumed.append(peer.transport.get_extra_info("ssl_object").session_reused)
                await peer.ask(b"hello")
                if times == 1:
                    subject.remember(peer.transport)
            return resumed

    assert run(act()) == [False, False, True, True]


def test_what_tls_needs_is_freed_with_the_connector(
    run: Run, server_tls: ssl.SSLContext, environ: dict[str, str]
) -> None:
    """A remembered connection does not keep a connector's certificates in memory."""

    def contexts() -> int:
        gc.collect()
        return sum(isinstance(each, ResumingContext) for each in gc.get_objects())

    async def act() -> None:
        async with serving(echo, server_tls) as port:
            subject = connector(port, tls=True, environ=environ)
            for _ in range(2):
                peer = await subject.connect(Peer)
                await peer.ask(b"hello")
                subject.remember(peer.transport)

    before = contexts()
    run(act())

    assert contexts() == before


def test_a_plain_connection_has_nothing_to_remember(run: Run) -> None:
    """Remembering is for TLS; a plain connection goes on as before."""

    async def act() -> list[bytes]:
        async with serving(echo) as port:
            subject = connector(port)
            answers = []
            for _ in range(2):
                peer = await subject.connect(Peer)
                answers.append(await peer.ask(b"hello"))
                subject.remember(peer.transport)
            return answers

    assert run(act()) == [b"you said hello"] * 2


@pytest.mark.parametrize(
    "variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"]
)
def test_a_private_authority_is_named_by_the_usual_variables(
    run: Run,
    server_tls: ssl.SSLContext,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    """Each variable that the usual tools read is enough, in the process's own environment."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))

    async def act() -> bytes:
        async with serving(echo, server_tls) as port:
            subject = Connector(Origin("127.0.0.1", port, tls=True), connect_timeout_s=10)
            return await (await subject.connect(Peer)).ask(b"hello")

    assert run(act()) == b"you said hello"


def test_the_systems_own_authorities_are_trusted(
    run: Run,
    server_tls: ssl.SSLContext,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no variable is given to it, the connector trusts what OpenSSL finds by itself."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # stands for the system's file

    async def act() -> bytes:
        async with serving(echo, server_tls) as port:
            peer = await connector(port, tls=True, environ={}).connect(Peer)
            return await peer.ask(b"hello")

    assert run(act()) == b"you said hello"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"])
def test_a_bundle_that_is_missing_is_an_error_at_once(tmp_path: Path, variable: str) -> None:
    """A variable that names no file is found before any request, by its name and the path."""
    with pytest.raises(EndpointError) as caught:
        connector(443, tls=True, environ={variable: str(tmp_path / "gone.pem")})

    assert str(caught.value) == (
        f"{variable} names {tmp_path / 'gone.pem'}, which cannot be read: "
        "No such file or directory."
    )


def test_a_bundle_without_certificates_is_an_error_at_once(tmp_path: Path) -> None:
    """A file that is no bundle is found before any request."""
    (tmp_path / "ca.pem").write_text("not a certificate")

    with pytest.raises(EndpointError, match=r"^REQUESTS_CA_BUNDLE names .*holds no certificates"):
        connector(443, tls=True, environ={"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")})


def test_a_plain_origin_needs_no_bundle(tmp_path: Path) -> None:
    """A bundle that cannot be read does not stand in the way of http."""
    subject = connector(80, environ={"SSL_CERT_FILE": str(tmp_path / "gone.pem")})

    assert not subject.forwards


# --- through a proxy -----------------------------------------------------------------------------


def test_https_goes_through_a_tunnel(
    run: Run, server_tls: ssl.SSLContext, environ: dict[str, str]
) -> None:
    """The proxy is told host, port and credentials; TLS is with the host itself, end to end."""
    proxy = TestProxy(authorization=BASIC)

    async def act() -> tuple[int, bytes, bool]:
        async with serving(echo, server_tls) as port, serving(proxy) as proxy_port:
            through = {**environ, "HTTPS_PROXY": f"http://{IN_URL}127.0.0.1:{proxy_port}"}
            subject = connector(port, host=NAME, tls=True, environ=through)
            peer = await subject.connect(Peer)
            return port, await peer.ask(b"hello"), subject.forwards

    port, answer, forwards = run(act())

    where = f"{NAME}:{port}".encode()
    assert answer == b"you said hello"
    assert not forwards
    assert proxy.heads == [
        b"CONNECT %b HTTP/1.1\r\nhost: %b\r\nproxy-authorization: Basic %b\r\n\r\n"
        % (where, where, BASIC)
    ]


def test_sessions_resume_through_a_tunnel(
    run: Run, server_tls: ssl.SSLContext, environ: dict[str, str]
) -> None:
    """A proxy does not stand in the way of resumption."""

    async def act() -> list[bool]:
        async with serving(echo, server_tls) as port, serving(TestProxy()) as proxy_port:
            through = {**environ, "all_proxy": f"127.0.0.1:{proxy_port}"}
            subject = connector(port, host=NAME, tls=True, environ=through)
            resumed = []
            for _ in range(2):
                peer = await subject.connect(Peer)
                resumed.append(peer.transport.get_extra_info("ssl_object").session_reused)
                await peer.ask(b"hello")
                subject.remember(peer.transport)
            return resumed

    assert run(act()) == [False, True]


def test_an_answer_in_pieces_opens_a_tunnel(
    run: Run, server_tls: ssl.SSLContext, environ: dict[str, str]
) -> None:
    """A proxy's answer may come byte by byte, its end apart from its beginning."""

    async def act() -> bytes:
        async def slow_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            upward = await asyncio.open_connection("127.0.0.1", port)
            for byte in b"HTTP/1.0 200 OK\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0.001)
            await asyncio.gather(passed_on(reader, upward[1]), passed_on(upward[0], writer))

        async with serving(echo, server_tls) as port, serving(slow_proxy) as proxy_port:
            through = {**environ, "HTTPS_PROXY": f"http://127.0.0.1:{proxy_port}"}
            peer = await connector(port, host=NAME, tls=True, environ=through).connect(Peer)
            return await peer.ask(b"hello")

    assert run(act()) == b"you said hello"


def test_http_is_forwarded(run: Run) -> None:
    """A request rewritten for the proxy reaches the server, and its answer comes back."""
    proxy = TestProxy(authorization=BASIC)

    async def act() -> tuple[int, bytes]:
        async with serving(echo) as port, serving(proxy) as proxy_port:
            through = {"http_proxy": f"http://{IN_URL}127.0.0.1:{proxy_port}"}
            subject = connector(port, host=NAME, environ=through)
            peer = await subject.connect(Peer)
            request = b"POST /v1/chat?x=1 HTTP/1.1\r\nhost: endpoint.test\r\n\r\n"
            return port, await peer.ask(subject.forwarded(request))

    port, answer = run(act())

    assert answer == b"you said POST /v1/chat?x=1 HTTP/1.1\r\n\r\n"
    assert proxy.heads == [
        b"POST http://endpoint.test:%d/v1/chat?x=1 HTTP/1.1\r\n"
        b"proxy-authorization: Basic %b\r\nhost: endpoint.test\r\n\r\n" % (port, BASIC)
    ]


def test_a_forwarded_request_keeps_its_body() -> None:
    """Only the request line and the headers change, whatever the body holds."""
    subject = connector(8000, host=NAME, environ={"HTTP_PROXY": "proxy.test:3128"})

    written = subject.forwarded(b"POST / HTTP/1.1\r\na: b\r\n\r\n /x\r\n\r\ny")

    assert subject.extra_headers == b""
    assert subject.request_line_prefix == b"http://endpoint.test:8000"
    assert written == b"POST http://endpoint.test:8000/ HTTP/1.1\r\na: b\r\n\r\n /x\r\n\r\ny"


@pytest.mark.parametrize(
    ("credentials", "advice"),
    [
        ("", "HTTPS_PROXY names no user and password"),
        ("x:secret@", "it does not accept the user and password in HTTPS_PROXY"),
    ],
)
def test_a_proxy_that_wants_other_credentials_is_said(
    run: Run, credentials: str, advice: str
) -> None:
    """The error says what to mend, and repeats nothing that was sent or that the proxy said."""

    async def act() -> tuple[int, OSError]:
        async with serving(TestProxy(authorization=BASIC)) as port:
            through = {"HTTPS_PROXY": f"http://{credentials}127.0.0.1:{port}"}
            return port, await failure(connector(443, host=NAME, tls=True, environ=through))

    port, error = run(act())

    assert str(error) == (
        f"the proxy 127.0.0.1:{port} refused a tunnel to endpoint.test:443: "
        f"407 Proxy Authentication Required ({advice})"
    )


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 502 x\r\n\r\n", "refused a tunnel to endpoint.test:443: 502 Bad Gateway"),
        (b"HTTP/1.1 599 x\r\n\r\n", "refused a tunnel to endpoint.test:443: 599"),
        (b"", "closed the connection when asked for a tunnel"),
        (b"SSH-2.0-server\r\n\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n\r\nhi", "sent data of its own into the tunnel to endpoint.test:443"),
    ],
    ids=["refusal", "unknown", "close", "other", "cut", "endless", "surplus"],
)
def test_a_proxy_that_opens_no_tunnel_is_said(run: Run, answer: bytes, problem: str) -> None:
    """Whatever a proxy answers instead of opening a tunnel ends in an error that names it."""

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async def act() -> tuple[int, OSError]:
        async with serving(answering) as port:
            through = {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}
            return port, await failure(connector(443, host=NAME, tls=True, environ=through))

    port, error = run(act())

    assert str(error) == f"the proxy 127.0.0.1:{port} {problem}"


def test_a_silent_proxy_times_out(run: Run) -> None:
    """The limit covers the proxy, which the error names, and its connection is closed."""

    async def act() -> tuple[int, OSError]:
        async with serving(say_nothing) as port:
            through = {"HTTPS_PROXY": f"http://{IN_URL}127.0.0.1:{port}"}
            subject = connector(443, host=NAME, tls=True, environ=through, connect_timeout_s=0.1)
            return port, await failure(subject)

    port, error = run(act())

    assert isinstance(error, TimeoutError)
    assert str(error) == (
        f"no connection to endpoint.test:443 through the proxy 127.0.0.1:{port} within 0.1 s"
    )


def test_a_proxy_that_refuses_connections_is_said(run: Run, closed_port: int) -> None:
    """The error names the proxy, not the server behind it, and not the credentials."""
    through = {"HTTP_PROXY": f"http://{IN_URL}127.0.0.1:{closed_port}"}

    error = run(failure(connector(80, host=NAME, environ=through)))

    assert str(error) == f"the proxy 127.0.0.1:{closed_port}: Connection refused"


def test_a_proxy_that_does_not_resolve_is_said(run: Run) -> None:
    """It is the proxy's name that is looked up, and named where it has no address."""
    through = {"HTTP_PROXY": f"http://{IN_URL}a..b:3128"}

    error = run(failure(connector(80, host=NAME, environ=through)))

    assert str(error) == "the proxy a..b does not resolve: not a host name"


# --- which proxy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "environ", "expected"),
    [
        (False, {}, None),
        (False, {"HTTP_PROXY": "http://p:1"}, "p:1"),
        (False, {"HTTP_PROXY": "http://p:1", "http_proxy": "http://q:2"}, "q:2"),
        (False, {"HTTP_PROXY": "http://p:1", "http_proxy": ""}, None),
        (False, {"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None),
        (False, {"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, "p:1"),
        (False, {"HTTPS_PROXY": "http://p:1"}, None),
        (True, {"HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://q:2"}, "p:1"),
        (True, {"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://q:2"}, "q:2"),
        (True, {"https_proxy": "p"}, "p:80"),
        (True, {"https_proxy": "http://[2001:db8::1]:3128"}, "[2001:db8::1]:3128"),
    ],
)
def test_which_proxy_stands_before_a_host(
    tls: bool, environ: dict[str, str], expected: str | None
) -> None:
    """The variable of the scheme comes before the one for all, lower case before upper."""
    proxy = proxy_for(Origin("host.example", 443, tls), environ)

    assert (proxy and str(proxy)) == (expected and f"the proxy {expected}")


@pytest.mark.parametrize(
    ("host", "no_proxy", "exempt"),
    [
        ("localhost", "", True),
        ("LOCALHOST.", "", True),
        ("a.localhost", "", True),
        ("127.0.0.9", "", True),
        ("::1", "", True),
        ("10.1.2.3", "", False),
        ("host.example", "*", True),
        ("host.example", "host.example", True),
        ("host.example", "other, .EXAMPLE", True),
        ("host.example", "host.example:443", True),
        ("host.example", "host.example:80", False),
        ("host.example", "st.example", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "192.168.0.0/16,host", False),
        ("2001:db8::5", "2001:db8::5", True),
        ("2001:db8::5", "[2001:db8::5]", True),
        ("2001:db8::5", "2001:db8::/32", True),
        ("2001:db8::5", "10.0.0.0/8", False),
    ],
)
def test_which_hosts_are_reached_directly(host: str, no_proxy: str, exempt: bool) -> None:
    """This machine always is, and so is what NO_PROXY lists: names, domains, ports, networks."""
    environ = {"ALL_PROXY": "http://p:1", "NO_PROXY": no_proxy}

    proxy = proxy_for(Origin(host, 443, tls=True), environ)

    assert (proxy is None) == exempt


@pytest.mark.parametrize(
    "url",
    ["http://", "http://user:secret@", "http://user:secret#x@p:1", "user:secret/x@p:1", "http://["],
)
def test_a_proxy_without_address_is_refused_without_its_text(url: str) -> None:
    """A variable that holds no address is named; its value, which may hold a password, is not."""
    with pytest.raises(EndpointError) as caught:
        proxy_for(Origin("host.example", 80, tls=False), {"HTTP_PROXY": url})

    assert str(caught.value).startswith("HTTP_PROXY holds no proxy's address. Write it as http://")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("scheme", ["https", "socks5", "socks5h"])
def test_a_proxy_of_another_kind_is_refused(scheme: str) -> None:
    """A kind of proxy that is not supported is found before the first request."""
    environ = {"ALL_PROXY": f"{scheme}://user:secret@p:1"}

    with pytest.raises(EndpointError, match=f"^ALL_PROXY names a {scheme}:// proxy") as caught:
        proxy_for(Origin("host.example", 443, tls=True), environ)

    assert "secret" not in str(caught.value)


def test_a_name_that_a_proxy_could_not_be_told_is_refused() -> None:
    """A host that is no name fails before the first request where no resolver would see it."""
    with pytest.raises(EndpointError, match=r"^a\.\.b is not a host name"):
        proxy_for(Origin("a..b", 443, tls=True), {"ALL_PROXY": "http://p:1"})


def test_a_proxy_never_shows_its_credentials() -> None:
    """Neither text of a proxy holds what it authorizes with."""
    proxy = proxy_for(Origin("host.example", 80, tls=False), {"HTTP_PROXY": f"http://{IN_URL}p:1"})

    assert proxy is not None
    assert proxy.authorization == b"proxy-authorization: Basic " + BASIC + b"\r\n"
    shown = f"{proxy} {proxy!r}"
    assert not any(part in shown for part in (USER, PASSWORD, BASIC.decode()))


@pytest.mark.parametrize(
    ("host", "authority"),
    [("::1", "[::1]:8000"), ("a.example", "a.example:8000"), ("ü.example", "xn--tda.example:8000")],
)
def test_an_origin_is_written_as_requests_write_it(host: str, authority: str) -> None:
    """Addresses of IPv6 stand in brackets, and names in the letters of DNS."""
    assert Origin(host, 8000, tls=False).authority == authority

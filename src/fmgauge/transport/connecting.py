"""How a connection comes about: addresses, TCP, a proxy, TLS. Knows no requests and no answers.

Each address that a name has gets a head start of a quarter of a second over the next, the families
taking turns (RFC 8305). One that answered is tried first from then on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

from aiohappyeyeballs import AddrInfoType, start_connection

from fmgauge.transport.limits import ran_out_of
from fmgauge.transport.origin import Origin
from fmgauge.transport.proxies import Proxy, proxy_for
from fmgauge.transport.tls import client_context, handshake_problem

_HEAD_START_S = 0.25  # RFC 8305, section 5
_TURNS_TO_NOTICE = 16  # of the loop, from a socket's being connected to its protocol's being ready
P = TypeVar("P", bound=asyncio.Protocol)


class RanOut(OSError):
    """This machine had no descriptor or no port for another connection: no fault of the server."""

    def __init__(self, what: str) -> None:
        super().__init__(f"this machine ran out of {what}")
        self.what = what


class Connector:
    """Makes connections to one origin, as the environment says: directly, or through a proxy.

    `addresses` are those of the origin or of its proxy, as getaddrinfo gives them, the next to try
    first; empty until they were looked up. `request_line_prefix` stands before the path of a
    request that a proxy forwards, and `extra_headers`, whole lines, among its headers; None and
    nothing where no proxy reads the requests. EndpointError on construction where the environment
    names a proxy or a file of certificates that cannot be used.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        connect_timeout_s: float,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self.addresses: list[AddrInfoType] = []
        self.request_line_prefix: bytes | None = None
        self.extra_headers = b""
        self._origin = origin
        self._connect_timeout_s = connect_timeout_s
        self._proxy = proxy_for(origin, environ)
        self._tls = client_context(environ) if origin.tls else None
        self._answered: ssl.SSLObject | None = None
        self._lookup = asyncio.Lock()
        self._has_connected = False
        if self._proxy is not None and not origin.tls:
            self.request_line_prefix = f"http://{origin.authority}".encode()
            self.extra_headers = self._proxy.authorization

    @property
    def forwards(self) -> bool:
        """Whether requests go to a proxy that reads them, and have to be written for it."""
        return self.request_line_prefix is not None

    def forwarded(self, request: bytes) -> bytes:
        """A request as the proxy that forwards it has to get it."""
        method, _, rest = request.partition(b" ")
        target, _, rest = rest.partition(b"\r\n")
        prefix = self.request_line_prefix or b""
        return b"%b %b%b\r\n%b%b" % (method, prefix, target, self.extra_headers, rest)

    async def resolve(self) -> None:
        """Look up the addresses, once, so that no connection waits for it; OSError if none."""
        async with self._lookup:
            if self.addresses:
                return
            server = self._server
            try:
                found = await asyncio.get_running_loop().getaddrinfo(
                    server.host, server.port, type=socket.SOCK_STREAM
                )
            except (OSError, UnicodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not a host name"
                whose = "the proxy " if self._proxy else ""
                raise OSError(f"{whose}{server.host} does not resolve: {reason}") from error
            self.addresses = [*found]

    async def connect(self, factory: Callable[[], P]) -> P:
        """A protocol whose connection is made, ready for the first byte of a request.

        TimeoutError where that takes longer than the limit in all; OSError, its text fit for a
        record, where it fails.
        """
        try:
            async with _Limit(self._connect_timeout_s):
                return await self._connected(factory)
        except TimeoutError:
            raise TimeoutError(
                f"no connection to {self._where} within {self._connect_timeout_s:g} s"
            ) from None

    def remember(self, transport: asyncio.BaseTransport) -> None:
        """Have later connections resume the TLS session of one that has answered.

        Not before: in TLS 1.3 what can be resumed comes with the server's data. May be called at
        every answer, for the session itself is taken once the next connection is made: that costs
        some 0.2 ms, too much for an event loop that has answers to stamp.
        """
        if self._tls is not None:
            self._answered = transport.get_extra_info("ssl_object")

    @property
    def _server(self) -> Origin:
        """What TCP connects to."""
        return self._proxy.origin if self._proxy is not None else self._origin

    @property
    def _where(self) -> str:
        through = f" through {self._proxy}" if self._proxy is not None else ""
        return f"{self._origin.authority}{through}"

    async def _connected(self, factory: Callable[[], P]) -> P:
        if not self.addresses:
            await self.resolve()
        connected = await self._tcp_socket()
        if self._proxy is not None and self._tls is not None:
            await _tunnelled(connected, self._proxy, self._origin)
        return await self._protocol_over(connected, factory)

    async def _tcp_socket(self) -> socket.socket:
        """A socket connected to the first address that answers."""
        try:
            connected = await start_connection(self.addresses, happy_eyeballs_delay=_HEAD_START_S)
        except (OSError, RuntimeError) as error:  # RuntimeError: uvloop's word for a broken socket
            number = error.errno if isinstance(error, OSError) else None
            if lacking := ran_out_of(number, has_connected=self._has_connected):
                raise RanOut(lacking) from error
            reason = os.strerror(number) if number else str(error)
            raise OSError(f"{self._proxy or self._origin.authority}: {reason}") from error
        self._has_connected = True
        with suppress(OSError):  # reset since: whoever writes to it finds out
            answered = connected.getpeername()
            self.addresses.sort(key=lambda address: address[4] != answered)
        return connected

    async def _protocol_over(self, connected: socket.socket, factory: Callable[[], P]) -> P:
        loop = asyncio.get_running_loop()
        if self._tls is None:
            return (await loop.create_connection(factory, sock=connected))[1]
        if self._answered is not None:
            self._tls.resumed = self._answered.session or self._tls.resumed
            self._answered = None
        try:
            _, protocol = await loop.create_connection(
                factory,
                sock=connected,
                ssl=self._tls,
                server_hostname=self._origin.host.rstrip("."),
                ssl_handshake_timeout=2 * self._connect_timeout_s,  # never before the limit's end
            )
        except OSError as error:
            raise OSError(f"{self._where}: {handshake_problem(error)}") from error
        return protocol


class _Limit:
    """A time-out that does not expire before the loop has looked around once more.

    A loop that stood still may run its timers before it sees that a socket is connected. To be
    given no name where it is entered: an error's traceback would hold it, and it holds the task.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        """Let the time run."""
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        turn, turns = self._turn, _TURNS_TO_NOTICE
        self._waits: asyncio.Handle = self._loop.call_later(self._limit_s, turn, turns)

    async def __aexit__(self, *error: Any) -> None:
        """Let it expire no more; TimeoutError where it has."""
        self._waits.cancel()
        await self._timeout.__aexit__(*error)

    def _turn(self, left: int) -> None:
        if left:
            self._waits = self._loop.call_soon(self._turn, left - 1)
        else:
            self._timeout.reschedule(self._loop.time())


async def _tunnelled(connected: socket.socket, proxy: Proxy, target: Origin) -> None:
    """Open a tunnel through a proxy; the socket is closed where that fails or is cancelled."""
    with ExitStack() as undone:
        undone.callback(connected.close)
        await proxy.open_tunnel(connected, target)
        undone.pop_all()

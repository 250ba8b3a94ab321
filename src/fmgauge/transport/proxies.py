"""Which proxy stands before an origin, and how it opens a tunnel. Knows no TLS and no requests.

The rules are those of the usual tools: `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, in
lower case first, then in upper case. HTTP_PROXY is not read where a CGI server may have set it from
a request's header. The machine itself is never reached through a proxy.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import responses
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from fmgauge.errors import EndpointError
from fmgauge.transport.origin import Origin

_MAX_HEAD_BYTES = 64 * 2**10
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")


@dataclass(frozen=True)
class Proxy:
    """An http proxy and the environment variable that names it. Its text holds no credentials."""

    variable: str
    origin: Origin
    authorization: bytes = field(default=b"", repr=False)  # a whole header line, or nothing

    def __str__(self) -> str:
        return f"the proxy {self.origin.authority}"

    async def open_tunnel(self, connected: socket.socket, target: Origin) -> None:
        """Have the proxy pass on all that a socket connected to it carries; OSError if it won't."""
        authority = target.authority.encode()
        request = b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n"
        try:
            answer = await _answer(connected, request % (authority, authority, self.authorization))
        except OSError as error:
            raise OSError(f"{self}: {error.strerror}") from error
        self._check(answer, target)

    def _check(self, answer: bytes, target: Origin) -> None:
        status = _STATUS.match(answer)
        _, end, surplus = answer.partition(b"\r\n\r\n")
        if not answer:
            raise OSError(f"{self} closed the connection when asked for a tunnel")
        if status is None or not end:
            raise OSError(f"{self} does not speak HTTP/1.1")
        if not status[1].startswith(b"2"):
            # The reason is not the proxy's own text, which may repeat what it was sent.
            reason = f"{status[1].decode()} {responses.get(int(status[1]), '')}".rstrip()
            raise OSError(
                f"{self} refused a tunnel to {target.authority}: {reason}{self._advice(status[1])}"
            )
        if surplus:
            raise OSError(f"{self} sent data of its own into the tunnel to {target.authority}")

    def _advice(self, status: bytes) -> str:
        if status != b"407":
            return ""
        if self.authorization:
            return f" (it does not accept the user and password in {self.variable})"
        return f" ({self.variable} names no user and password)"


async def _answer(connected: socket.socket, request: bytes) -> bytes:
    """What comes back up to the end of a head, or up to the limit, or until the other side closes.

    Read from the socket itself, so that whatever follows is TLS's alone on every event loop.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connected, request)
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _MAX_HEAD_BYTES:
        received = await loop.sock_recv(connected, 4096)
        if not received:
            break
        answer += received
    return answer


def proxy_for(origin: Origin, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment sets before an origin, or None.

    EndpointError where the variable holds no address of an http proxy, or where a proxy could not
    be told the origin's name.
    """
    if _is_this_machine(origin.host) or _is_exempt(origin, environ):
        return None
    for name in ("https_proxy" if origin.tls else "http_proxy", "all_proxy"):
        variable = _variable(name, environ)
        if variable is not None:
            _check_name(origin)
            return _proxy(variable, environ[variable].strip())
    return None


def _variable(name: str, environ: Mapping[str, str]) -> str | None:
    """The variable, in lower or upper case, that counts; an empty one in lower case rules too."""
    in_cgi = "REQUEST_METHOD" in environ
    for variable in (name, name.upper()):
        if variable in environ and not (in_cgi and variable == "HTTP_PROXY"):
            return variable if environ[variable].strip() else None
    return None


def _check_name(origin: Origin) -> None:
    try:
        _ = origin.authority
    except UnicodeError:
        raise EndpointError(f"{origin.host} is not a host name.") from None


def _is_this_machine(host: str) -> bool:
    name = host.lower().rstrip(".")
    address = _address(host)
    local = name == "localhost" or name.endswith(".localhost")
    return local or (address is not None and address.is_loopback)


def _is_exempt(origin: Origin, environ: Mapping[str, str]) -> bool:
    """Whether no_proxy lists the host, a domain above it, host:port, or its address's network."""
    variable = _variable("no_proxy", environ)
    if variable is None:
        return False
    listed = environ[variable]
    if proxy_bypass_environment(f"{origin.host}:{origin.port}", {"no": listed}):
        return True
    address = _address(origin.host)
    return address is not None and any(_holds(entry, address) for entry in listed.split(","))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _holds(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry.strip().strip("[]"), strict=False)
    except ValueError:
        return False


def _proxy(variable: str, url: str) -> Proxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host = None
    if not host:  # said without the value, and without the error's text: both may hold a password
        raise EndpointError(
            f"{variable} holds no proxy's address. Write it as http://host:port, or as "
            "http://user:password@host:port with special characters percent-encoded."
        ) from None
    if parts.scheme != "http":
        raise EndpointError(
            f"{variable} names a {parts.scheme}:// proxy, and only http:// proxies are supported "
            "(https endpoints are reached through those, too). Name one, unset the variable, or "
            "list the endpoint's host in NO_PROXY."
        )
    return Proxy(variable, Origin(host, port, tls=False), _authorization(parts))


def _authorization(parts: SplitResult) -> bytes:
    if parts.username is None and parts.password is None:
        return b""
    credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return b"proxy-authorization: Basic %b\r\n" % base64.b64encode(credentials.encode())

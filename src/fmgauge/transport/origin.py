"""Where connections go: the host, port and scheme in an address. Knows no sockets."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit


class Origin(NamedTuple):
    """Where connections go."""

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """`host:port` in ASCII, an IPv6 address in brackets; UnicodeError where DNS has no such."""
        host = f"[{self.host}]" if ":" in self.host else self.host.encode("idna").decode()
        return f"{host}:{self.port}"


def origin_of(url: str) -> Origin:
    """Host, port and scheme of an http or https address; ValueError where it has none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"no http or https address: {url!r}")
    tls = parts.scheme == "https"
    return Origin(parts.hostname, parts.port or (443 if tls else 80), tls)

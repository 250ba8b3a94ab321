"""Requests as bytes, prepared once per payload. Knows HTTP's head and the salt's place in a body.

What differs between two sendings of a payload is its request id and its salt. All else is put into
bytes beforehand, so that a sending costs one join.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import orjson

from fmgauge.errors import StepError
from fmgauge.records import Endpoint, Payload
from fmgauge.workloads import marked

Body = Callable[[Endpoint, Payload], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """A whole HTTP/1.1 request but for its id and its salt."""

    head: bytes = field(repr=False)  # up to the request id; it may hold a key
    before_salt: bytes
    after_salt: bytes
    salt: str | None  # as prepared; None where nothing is salted

    def filled(self, request_id: str, salt: str | None) -> bytes:
        """The request's bytes, head and body, with `salt` in place of the prepared one.

        None leaves the prepared salt; a payload that is not salted stays as it is. Raises
        ValueError where the lengths differ: neither counted tokens nor content-length would hold.
        """
        own = self.salt
        if own is None:
            return b"".join((self.head, request_id.encode(), self.before_salt))
        if salt is None:
            salt = own
        elif len(salt) != len(own):
            raise ValueError(f"a salt of {len(own)} characters cannot become one of {len(salt)}")
        return b"".join(
            (self.head, request_id.encode(), self.before_salt, salt.encode(), self.after_salt)
        )


def template(
    endpoint: Endpoint, payload: Payload, *, path: str, body: Body, api_key: str | None
) -> RequestTemplate:
    """The template of POSTing a body to a path below the endpoint's base address."""
    assert endpoint.base_url is not None
    before, after = _around_salt(endpoint, payload, body)
    n_bytes = len(before) + len(payload.salt or "") + len(after)
    return RequestTemplate(
        head=_head(endpoint.base_url, path, api_key).encode("latin-1"),
        before_salt=f"\r\ncontent-length: {n_bytes}\r\n\r\n".encode() + before,
        after_salt=after,
        salt=payload.salt,
    )


def _head(base_url: str, path: str, api_key: str | None) -> str:
    """All lines of a request's head up to the value of its id."""
    parts = urlsplit(base_url)
    query = f"?{parts.query}" if parts.query else ""
    authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
    return (
        f"POST {parts.path.rstrip('/')}/{path}{query} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        "user-agent: fmgauge\r\ncontent-type: application/json\r\n"
        "accept: text/event-stream, application/json\r\naccept-encoding: identity\r\n"
        f"{authorization}x-request-id: "
    )


def _around_salt(endpoint: Endpoint, payload: Payload, body: Body) -> tuple[bytes, bytes]:
    """The body before and after the salt; all of it, and nothing, where there is none.

    The salt's own digits may stand anywhere in a body. Its place is found by a mark put in its
    stead that occurs nowhere else in it.
    """
    plain = orjson.dumps(body(endpoint, payload))
    if payload.salt is None:
        return plain, b""
    mark = next(mark for mark in map("salt-{}".format, count()) if mark.encode() not in plain)
    parts = orjson.dumps(body(endpoint, marked(payload, mark))).split(mark.encode())
    if len(parts) != 2:
        raise StepError(
            f"{endpoint.experiment}: payload {payload.payload_id} is salted, but the request would "
            f"hold its salt {len(parts) - 1} times. Take the prompt's field out of extra_body"
        )
    return parts[0], parts[1]

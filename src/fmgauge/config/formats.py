"""What names, addresses and the like may look like, told in plain words. Knows no config keys."""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic_core import PydanticCustomError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_REMEDY = (
    "It becomes a folder's name: begin it with a letter or a digit, and use only letters, digits, "
    "dots, dashes and underscores, 100 characters at most"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ROUTE = re.compile(r"((?:/chat)?/completions)/*$", re.IGNORECASE)
_ADDRESS_REMEDY = "Write it like http://localhost:8000/v1"
_HOST_REMEDY = (
    "Write it as DNS has it, like example.com, or xn--bcher-kva.example for bücher.example"
)


def folder_name(value: str) -> str:
    """`value`, if it can name a folder inside the results folder and nothing outside it."""
    if not _NAME.fullmatch(value):
        raise refused(f"{_quoted(value)} cannot be a name", _NAME_REMEDY)
    return value


def variable_name(value: str) -> str:
    """`value`, if it can name an environment variable; never shown, for it may be the key."""
    if not _VARIABLE.fullmatch(value):
        remedy = "Give the variable's name, such as OPENAI_API_KEY, never the key itself"
        raise refused("is not the name of an environment variable", remedy)
    return value


def server_address(value: str) -> str:
    """`value` in ASCII, if it is an http or https address with neither credentials nor a query."""
    if "@" in value:  # never shown: what stands before it is a secret
        remedy = "Remove them, and name the variable that holds the key in api_key_env"
        raise refused("holds credentials", remedy)
    if "?" in value or "#" in value:  # nor this: queries carry keys
        raise refused("goes on after its path", "Remove everything from the ? or # on")
    if not re.match(r"https?://", value):
        raise refused(f"{_quoted(value)} does not begin with http:// or https://", _ADDRESS_REMEDY)
    if not _has_valid_host(value):
        raise refused(f"{_quoted(value)} is not an address", _ADDRESS_REMEDY)
    route = _ROUTE.search(value)
    if route:
        remedy = f"Cut {route[1]} off: it is added to the address when a request is sent"
        raise refused(f"{_quoted(value)} goes on after the API's base", remedy)
    return _in_ascii(value)


def _has_valid_host(address: str) -> bool:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:  # an unclosed [, or a port that is no number from 0 to 65535
        return False
    return bool(parts.hostname) and port != 0 and not re.search(r"[\s\\]", address)


def _in_ascii(address: str) -> str:
    """`address` as DNS and HTTP take it: its host in IDNA, its path percent-encoded."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    try:
        encoded = host.encode("idna")
    except UnicodeError:
        raise refused(f"{_quoted(host)} is not a host name", _HOST_REMEDY) from None
    if address.isascii():
        return address
    if encoded.decode("idna") != host:  # such as faß.example, which would become fass.example
        raise refused(f"{_quoted(host)} may stand for several host names", _HOST_REMEDY)
    authority = parts.netloc.lower().replace(host, encoded.decode())
    path = re.sub(r"[^\x00-\x7f]+", lambda found: quote(found[0]), parts.path)
    return f"{parts.scheme}://{authority}{path}"


def finite_json(value: Any) -> Any:
    """`value`, if no number in it is infinite or not a number: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        raise refused("must be a finite number", "JSON has no such number: give another")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            finite_json(item)
    return value


def _quoted(value: str) -> str:
    return f'"{value}"' if len(value) <= 60 else f'"{value[:59]}…"'


def refused(problem: str, remedy: str) -> PydanticCustomError:
    """The error by which a validator tells what is wrong, and what to do about it."""
    return PydanticCustomError(
        "refused", "{problem}. {remedy}", {"problem": problem, "remedy": remedy}
    )

"""The nouns' small files: JSON, payloads, endpoints. Each is written whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from fmgauge.records.nouns import Endpoint, Payload


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_atomically(path, orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")


def read_json(path: Path) -> Any:
    """The JSON value in the file at `path`."""
    return orjson.loads(path.read_bytes())


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}-{threading.get_ident()}"  # the lease has several
    partial = path.with_name(f".{path.name}.{writer}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # a full disk leaves no part behind


def write_payloads(path: Path, payloads: Iterable[Payload]) -> None:
    """Write payloads as JSON lines, in the order in which they will be sent."""
    write_atomically(path, b"".join(orjson.dumps(payload) + b"\n" for payload in payloads))


def read_payloads(path: Path) -> list[Payload]:
    """Payloads in sending order."""
    return [Payload(**orjson.loads(line)) for line in path.read_bytes().splitlines()]


def write_endpoints(path: Path, endpoints: Iterable[Endpoint]) -> None:
    """Write endpoints as one JSON object keyed by experiment."""
    write_json(path, {endpoint.experiment: asdict(endpoint) for endpoint in endpoints})


def read_endpoints(path: Path) -> dict[str, Endpoint]:
    """Endpoints by experiment; empty where none were brought up."""
    if not path.exists():
        return {}
    return {name: Endpoint(**value) for name, value in read_json(path).items()}

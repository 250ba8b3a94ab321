"""A loopback HTTP server for tests, whose every answer is a script: what is written, and when.

It parses requests itself and writes exactly the bytes that a script gives it, so that it can break
the protocol at any byte. It counts what it serves: the other side of what the client reports.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request as it arrived."""

    number: int  # from 0, in the order of arrival
    connection: int  # from 0, in the order of accepting
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON body."""
        return json.loads(self.body)

    @property
    def prompt(self) -> str:
        """The text of the first message."""
        return self.fields["messages"][0]["content"]


class Peer:
    """The server's end of one connection."""

    def __init__(self, writer: asyncio.StreamWriter, server: ScriptedServer) -> None:
        self._writer = writer
        self._server = server
        self._serving = False

    def begin(self) -> None:
        """Count one more request in flight."""
        self._serving = True
        self._server.in_flight += 1
        self._server.in_flight_at_arrival.append(self._server.in_flight)

    def served(self) -> None:
        """Count the request as answered: to be called before its last bytes are written."""
        self._server.in_flight -= self._serving
        self._serving = False

    async def send(self, *pieces: bytes) -> None:
        """Write pieces, each in a write of its own."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)

    def close(self) -> None:
        """Close the connection when what was written is out."""
        self._writer.close()

    def reset(self) -> None:
        """Close the connection with a RST."""
        connection = self._writer.get_extra_info("socket")
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()


Script = Callable[[Request, Peer], Awaitable[None]]


@dataclass
class ScriptedServer:
    """Serves on a port of 127.0.0.1 from a thread of its own, within a `with` block."""

    script: Script
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    in_flight_at_arrival: list[int] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0

    port: int = 0

    @property
    def base_url(self) -> str:
        """The address up to and including /v1."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def comes_to(self, condition: Callable[[], bool], within_s: float = 10) -> bool:
        """Wait until `condition` holds; whether it came to that in time."""
        deadline = time.monotonic() + within_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        return condition()

    def __enter__(self) -> ScriptedServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls, backlog=512)
        self._server = self._call(starting)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, self.connections = self.connections, self.connections + 1
        peer = Peer(writer, self)
        self.open_connections += 1
        try:
            while not writer.is_closing():
                await self._answer(await self._read(reader, connection), peer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            self.open_connections -= 1
            writer.transport.abort()

    async def _answer(self, request: Request, peer: Peer) -> None:
        peer.begin()
        try:
            await self.script(request, peer)
        finally:
            peer.served()

    async def _read(self, reader: asyncio.StreamReader, connection: int) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.rstrip("\r\n").split("\r\n")
        headers = dict(part.split(": ", 1) for part in rest)
        body = await reader.readexactly(int(headers["content-length"]))
        request = Request(len(self.requests), connection, line, headers, body)
        self.requests.append(request)
        return request


# --- bytes to answer with ------------------------------------------------------------------------

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    """A JSON value as one server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(finish_reason: str | None = None, **fields: Any) -> bytes:
    """One chat chunk that holds `fields` in its delta."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish_reason}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    """The last chat chunk: no choices, only counts."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return event({"choices": [], "usage": counts})


def chat_events(texts: Iterable[str] = ("Hel", "lo"), prompt_tokens: int = 5) -> list[bytes]:
    """A whole answer as events: the role, each text, the reason of the end, usage, [DONE]."""
    texts = list(texts)
    return [
        delta(role="assistant", content=""),
        *(delta(content=text) for text in texts),
        delta(finish_reason="stop"),
        usage(prompt_tokens, len(texts)),
        DONE,
    ]


async def answer(request: Request, peer: Peer) -> None:
    """Script: a whole answer of two tokens, each event in a write of its own."""
    await peer.send(STREAM_HEAD, *map(chunk, chat_events()))
    peer.served()
    await peer.send(LAST_CHUNK)


def response(status: str, body: bytes, *headers: str) -> bytes:
    """A response of known length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body

"""OpenAI chat completions: builds the request, decodes the answer. Pure: no sockets, no clocks.

A token's instant is the instant of the network read that brought its chunk. A chunk bears tokens
where it holds generated material of any kind: content, reasoning, a tool call's name or arguments,
a refusal; a chunk that only names the role, or is empty, does not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from fmgauge.records import Endpoint, Payload, Status
from fmgauge.wire.sse import SseDecoder, SseEvent

MAX_ERROR_CHARS = 500
_KEPT_OF_BODY = 2000  # bytes, for error messages
_REASONING_NAMES = ("reasoning_content", "reasoning")
_CONTENT_NAMES = ("content", "refusal")
_NOTHING, _REASONING, _CONTENT = 0, 1, 2  # what a chunk bears, the most of it


class Cut(NamedTuple):
    """Why the connection brought no complete answer."""

    status: Status
    message: str


def chat_request(
    endpoint: Endpoint, payload: Payload, *, request_id: str, api_key: str | None = None
) -> bytes:
    """A whole HTTP/1.1 request, head and body, that asks for a streamed answer with usage.

    The endpoint's `extra_body` is merged last, so it wins over every field.
    """
    assert endpoint.base_url is not None
    body = _body(endpoint, payload)
    authorization = f"authorization: Bearer {api_key}\r\n" if api_key else ""
    head = (
        f"{_request_head(endpoint.base_url)}{authorization}"
        f"x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin-1") + body


@lru_cache(maxsize=64)
def _request_head(base_url: str) -> str:
    """The lines that every request to an endpoint begins with."""
    parts = urlsplit(base_url)
    path = f"{parts.path.rstrip('/')}/chat/completions"
    query = f"?{parts.query}" if parts.query else ""
    return (
        f"POST {path}{query} HTTP/1.1\r\nhost: {parts.netloc}\r\nuser-agent: fmgauge\r\n"
        "content-type: application/json\r\naccept: text/event-stream, application/json\r\n"
        "accept-encoding: identity\r\n"
    )


def _body(endpoint: Endpoint, payload: Payload) -> bytes:
    messages = payload.messages or [{"role": "user", "content": payload.prompt}]
    fields = {
        "model": endpoint.model,
        "messages": messages,
        "max_tokens": payload.max_output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return orjson.dumps(fields | endpoint.extra_body)


class ChatDecoder:
    """Decodes one answer as its bytes arrive; what is known so far is in its attributes.

    `token_at_s` stays empty where the answer does not stream: it then has no first token's instant.
    """

    __slots__ = (
        "_done",
        "_generated",
        "_is_json",
        "_keep_text",
        "_last_read_at_s",
        "_pieces",
        "_sse",
        "_texts",
        "cached_tokens",
        "error",
        "finish_reason",
        "first_content_at_s",
        "output_tokens",
        "prompt_tokens",
        "reasoning_tokens",
        "server_latency_s",
        "token_at_s",
    )

    def __init__(self, *, keep_text: bool = False) -> None:
        self.token_at_s: list[float] = []
        self.first_content_at_s: float | None = None
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.reasoning_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.server_latency_s: float | None = None
        self.error: str | None = None
        self._keep_text = keep_text
        self._texts: list[str] = []
        self._generated = False
        self._done = False
        self._is_json = False
        self._sse: SseDecoder | None = None
        self._pieces: list[bytes] = []  # all of a JSON answer; the start of any other
        self._last_read_at_s = 0.0

    @property
    def text(self) -> str | None:
        """All generated material in order, where it was to be kept."""
        return "".join(self._texts) if self._keep_text else None

    def feed(self, stamp_s: float, data: bytes) -> None:
        """Decode the body bytes of one read, which came at `stamp_s`."""
        self._last_read_at_s = stamp_s
        if self._sse is not None:
            for event in self._sse.feed(data):
                self._on_event(stamp_s, event)
        elif self._is_json:
            self._pieces.append(data)
        else:
            self._begin(stamp_s, data)

    def verdict(
        self, http_status: int | None, *, retry_after: bool = False, cut: Cut | None = None
    ) -> tuple[Status, str | None]:
        """How the request ended, and why where it failed; to be asked once, after the last byte.

        An HTTP error wins over all else, then an error that the server sent inside its answer, then
        a connection cut short, unless the stream had already said that it was done.
        """
        if http_status is not None and not 200 <= http_status < 300:
            throttled = http_status == 429 or (http_status == 503 and retry_after)
            return ("throttled" if throttled else "http_error"), self._http_error(http_status)
        self._end(whole=cut is None)
        if self.error is not None:
            return "stream_error", self.error[:MAX_ERROR_CHARS]
        if cut is not None and not (cut.status == "truncated" and self._said_all()):
            return cut.status, cut.message[:MAX_ERROR_CHARS]
        if self.finish_reason is None:
            return "truncated", self._cut_error()
        if not self._generated:
            return "empty", "the answer holds no generated token"
        return "ok", None

    def _said_all(self) -> bool:
        return self._done and self.finish_reason is not None

    def _http_error(self, http_status: int) -> str:
        return f"HTTP {http_status}: {self._start_of_body()}"[:MAX_ERROR_CHARS]

    def _cut_error(self) -> str:
        error = "the answer ended without a finish_reason"
        if self._generated or not self._pieces:
            return error
        return f"{error}; it begins: {self._start_of_body()}"[:MAX_ERROR_CHARS]

    def _start_of_body(self) -> str:
        return b"".join(self._pieces)[:_KEPT_OF_BODY].decode(errors="replace").strip()

    # --- framing ----------------------------------------------------------------------------------

    def _begin(self, stamp_s: float, data: bytes) -> None:
        """Tell JSON from events by the first byte that is not blank: content types lie."""
        self._pieces.append(data)
        so_far = b"".join(self._pieces)
        first = so_far.lstrip()[:1]
        if first in (b"{", b"["):
            self._is_json = True
        elif first:
            self._pieces = [so_far[:_KEPT_OF_BODY]]
            self._sse = SseDecoder()
            self.feed(stamp_s, so_far)

    def _end(self, *, whole: bool) -> None:
        """Decode what only the end completes. Where it was cut short, half a text is no error."""
        if self._is_json:
            self._on_json(b"".join(self._pieces), whole=whole)
        elif self._sse is not None:
            for event in self._sse.end():
                if event.data == b"[DONE]" or _parses(event.data):
                    self._on_event(self._last_read_at_s, event)

    def _on_event(self, stamp_s: float, event: SseEvent) -> None:
        if event.event == b"error":
            self._fail(event.data.decode(errors="replace"))
        elif event.data == b"[DONE]":
            self._done = True
        elif event.data:
            self._on_data(stamp_s, event.data)

    def _on_data(self, stamp_s: float, data: bytes) -> None:
        try:
            bears = self._take(orjson.loads(data), "delta")
        except orjson.JSONDecodeError:
            self._fail(f"malformed JSON in the stream: {_shown(data)}")
        except (AttributeError, TypeError):
            self._fail(f"a chunk of an unknown shape: {_shown(data)}")
        else:
            if bears:
                self.token_at_s.append(stamp_s)
            if bears == _CONTENT and self.first_content_at_s is None:
                self.first_content_at_s = stamp_s

    def _on_json(self, data: bytes, *, whole: bool) -> None:
        try:
            self._take(orjson.loads(data), "message")
        except orjson.JSONDecodeError:
            if whole:
                self._fail(f"malformed JSON: {_shown(data)}")
        except (AttributeError, TypeError):
            self._fail(f"an answer of an unknown shape: {_shown(data)}")

    def _fail(self, error: str) -> None:
        self.error = self.error or error or "an error without a text"

    # --- meaning ----------------------------------------------------------------------------------

    def _take(self, chunk: dict[str, Any], part_name: str) -> int:
        """Take in one chunk, or a whole answer, and tell the most that it bears."""
        if chunk.get("error"):
            self._fail(orjson.dumps(chunk["error"]).decode())
            return _NOTHING
        if chunk.get("usage"):
            self._take_usage(chunk["usage"])
        if chunk.get("timings"):
            self._take_timings(chunk["timings"])
        bears = _NOTHING
        for choice in chunk.get("choices") or ():
            if choice.get("finish_reason"):
                self.finish_reason = str(choice["finish_reason"])
            part = choice.get(part_name)
            if part:
                bears = max(bears, self._take_part(part))
        return bears

    def _take_part(self, part: dict[str, Any]) -> int:
        """Take in a delta or a message. Empty texts are nothing, and so is the role."""
        bears = _NOTHING
        for name in _REASONING_NAMES:
            if part.get(name):
                bears = _REASONING
                self._take_text(part[name])
        for name in _CONTENT_NAMES:
            if part.get(name):
                bears = _CONTENT
                self._take_text(part[name])
        if part.get("tool_calls"):
            bears = max(bears, self._take_calls(part["tool_calls"]))
        return bears

    def _take_calls(self, calls: list[dict[str, Any]]) -> int:
        bears = _NOTHING
        for call in calls:
            function = call.get("function") or {}
            for text in (function.get("name"), function.get("arguments")):
                if text:
                    bears = _CONTENT
                    self._take_text(text)
        return bears

    def _take_text(self, text: Any) -> None:
        self._generated = True
        if self._keep_text:
            self._texts.append(text if isinstance(text, str) else orjson.dumps(text).decode())

    def _take_usage(self, usage: dict[str, Any]) -> None:
        """Reasoning and cached tokens are contained in the output and prompt counts."""
        self.prompt_tokens = _count(usage.get("prompt_tokens"))
        self.output_tokens = _count(usage.get("completion_tokens"))
        of_output = usage.get("completion_tokens_details") or {}
        self.reasoning_tokens = _count(of_output.get("reasoning_tokens"))
        of_prompt = usage.get("prompt_tokens_details") or {}
        self.cached_tokens = _count(of_prompt.get("cached_tokens"))

    def _take_timings(self, timings: dict[str, Any]) -> None:
        """llama.cpp's own times for reading the prompt and for generating, in milliseconds."""
        prompt_ms, predicted_ms = timings.get("prompt_ms"), timings.get("predicted_ms")
        if isinstance(prompt_ms, int | float) and isinstance(predicted_ms, int | float):
            self.server_latency_s = (prompt_ms + predicted_ms) / 1000


def _count(value: Any) -> int | None:
    """A count as the server gave it; None for what can be none."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and value >= 0 else None


def _parses(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _shown(data: bytes) -> str:
    return data[:200].decode(errors="replace")

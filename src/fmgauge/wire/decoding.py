"""What every decoder of an answer does: framing, tokens' instants, the verdict. Knows no format.

A token's instant is the instant of the network read that brought its chunk. A format tells which
chunks bear generated material, and what else they say.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from fmgauge.records import Status
from fmgauge.wire.json_lines import JsonLinesDecoder, is_json
from fmgauge.wire.sse import SseDecoder

MAX_ERROR_CHARS = 500
NOTHING, REASONING, CONTENT = 0, 1, 2  # what a chunk bears, the most of it
_KEPT_OF_BODY = 2000  # bytes, for error messages
_MOST_TOKENS = 2**31 - 1
_DONE = b"data: [DONE]\n\n"
_CUT_OFF = ("truncated", "timeout", "cancelled")  # where the rest of an answer never came
_FAILED = {  # reasons of an end that is no answer's; servers' own words, so all others are ends
    *("abort", "aborted", "cancelled", "canceled", "error", "failed"),
    *("insufficient_system_resource", "internal_error", "internal_server_error", "network_error"),
    *("overloaded", "server_error", "service_unavailable", "timeout"),
}


class Cut(NamedTuple):
    """Why the connection brought no complete answer."""

    status: Status
    message: str


class Decoder(ABC):
    """Decodes one answer as its bytes arrive; to be read once the verdict was asked."""

    # Few answers change most of these, so an instance has its own only once it does.
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    server_latency_s: float | None = None
    error: str | None = None
    _done = False  # the server said so
    _any_event = False
    _start = b""  # of a body that has shown no event yet
    _sse: SseDecoder | None = None
    _json: JsonLinesDecoder | None = None
    _last_read_at_s = 0.0
    _told_tokens: int | None = None  # output tokens so far, where the chunk at hand tells them
    _counted_tokens = 0  # the same up to the last chunk that bore any
    _counts: list[int] | None = None  # of each chunk, as far as they were told

    def __init__(self) -> None:
        self.first_content_at_s: float | None = None
        self._stamps: list[float] = []  # a list takes one in half the time that an array does
        self._texts: list[Any] = []
        self._between_events = True  # nothing is pending: a fast path may read on

    @property
    def token_at_s(self) -> array[float]:
        """The instant of every chunk that bore generated material.

        None at all where the answer does not stream: it then has no first token's instant.
        """
        return array("d", self._stamps)

    @property
    def chunk_tokens(self) -> array[int] | None:
        """The tokens of every such chunk, where the server told all, and they sum to the whole."""
        counts = self._counts
        if counts is None or len(counts) != len(self._stamps) or min(counts) < 0:
            return None
        return array("i", counts) if sum(counts) == self.output_tokens else None

    @property
    def text(self) -> str:
        """All generated material in order, reasoning and tool calls included."""
        return "".join(text if isinstance(text, str) else json_text(text) for text in self._texts)

    @abstractmethod
    def feed(self, stamp_s: float, data: bytes) -> None:
        """Decode the body bytes of one read, which came at `stamp_s`.

        A format reads here, as fast as it can, what servers usually send, and hands everything else
        to `feed_any`. Both come to the same.
        """

    @abstractmethod
    def on_line(self, stamp_s: float, line: bytes) -> None:
        """Take in an event's data: at once where it is as most are, else by `on_odd_line`."""

    @abstractmethod
    def take_chunk(self, chunk: Any) -> int:
        """Take in one streamed value and tell the most that it bears.

        Raises AttributeError or TypeError where it has not the shape of a chunk.
        """

    @abstractmethod
    def take_answer(self, answer: Any) -> int:
        """Take in the only value of a body, as `take_chunk` does; a whole answer bears nothing."""

    def verdict(
        self, http_status: int | None, *, retry_after: bool = False, cut: Cut | None = None
    ) -> tuple[Status, str | None]:
        """How the request ended, and why where it failed; to be asked once, after the last byte.

        An HTTP error wins over all else, then an error that the server sent inside its answer, then
        a connection cut short, unless the stream had already said that it was done: whatever held
        back the end of the body then, no token was missing. An answer without any token's instant
        needs the end of its body, because nothing else says when it had come.
        """
        if self._sse is not None or self._json is not None:
            self._end(whole=cut is None)
        if http_status is not None and not 200 <= http_status < 300:
            throttled = http_status == 429 or (http_status == 503 and retry_after)
            return ("throttled" if throttled else "http_error"), self._http_error(http_status)
        if self.error is not None:
            return "stream_error", self.error[:MAX_ERROR_CHARS]
        if cut is not None and not (cut.status in _CUT_OFF and self._said_all()):
            return cut.status, cut.message[:MAX_ERROR_CHARS]
        if self.finish_reason is None:
            return "truncated", self._cut_error()
        if not self._texts:
            return "empty", "the answer holds no generated token"
        return "ok", None

    def _said_all(self) -> bool:
        return self._done and self.finish_reason is not None and bool(self._stamps)

    def _http_error(self, http_status: int) -> str:
        shown = self._start_of_body() or self.error
        return f"HTTP {http_status}: {shown}"[:MAX_ERROR_CHARS] if shown else f"HTTP {http_status}"

    def _cut_error(self) -> str:
        error = "the answer ended without a finish_reason"
        start = "" if self._texts else self._start_of_body()
        return f"{error}; it begins: {start}"[:MAX_ERROR_CHARS] if start else error

    def _start_of_body(self) -> str:
        return "" if self._any_event else self._start.decode(errors="replace").strip()

    # --- framing ----------------------------------------------------------------------------------

    def feed_any(self, stamp_s: float, data: bytes) -> None:
        """Decode bytes of any framing, cut anywhere."""
        is_plain = self._between_events and data.startswith((b"data: ", b"event: "))
        if is_plain and self._fed_trimmed(stamp_s, data):
            return
        self._last_read_at_s = stamp_s
        if self._sse is None and self._json is None:
            data = self._begun(data)
        elif len(self._start) < _KEPT_OF_BODY:
            self._start = (self._start + data)[:_KEPT_OF_BODY]
        if self._sse is not None:
            for event, event_data in self._sse.feed(data):
                self._on_event(stamp_s, event, event_data)
            self._between_events = self._sse.between_events
        elif self._json is not None:
            for text in self._json.feed(stamp_s, data):
                self.on_line(text.stamp_s, text.data)

    def _fed_trimmed(self, stamp_s: float, data: bytes) -> bool:
        """Feed events that only CRLF, or the mark of the end, kept out of the fast path."""
        if 13 in data:
            data = data.replace(b"\r\n", b"\n")
            if 13 in data:
                return False
            self.feed(stamp_s, data)
            return True
        rest = data.removesuffix(_DONE)
        if len(rest) == len(data) or rest.endswith(_DONE) or (rest and rest[-2:] != b"\n\n"):
            return False
        if rest:
            self.feed(stamp_s, rest)
        self._any_event = self._done = True
        return True

    def _begun(self, data: bytes) -> bytes:
        """Tell JSON from events by the first byte that is not blank: content types lie."""
        data = self._start + data
        self._start = data[:_KEPT_OF_BODY]
        first = data.lstrip()[:1]
        if self._any_event or (first and first not in b"{["):
            self._sse = SseDecoder(at_start=not self._any_event)
        elif first:
            self._json = JsonLinesDecoder()
            self._between_events = False
        else:  # nothing but blanks so far, which may yet be the start of a line
            self._start = data
            self._between_events = not data
        return data

    def _end(self, *, whole: bool) -> None:
        """Decode what only the end completes. Where it was cut short, half a text is no error."""
        if self._json is not None:
            self._end_json(self._json, whole=whole)
        elif self._sse is not None:
            for event, data in self._sse.end():
                if event == b"error" or data == b"[DONE]" or is_json(data):
                    self._on_event(self._last_read_at_s, event, data)

    def _end_json(self, lines: JsonLinesDecoder, *, whole: bool) -> None:
        last = lines.end()
        if last is not None and (whole or is_json(last.data)):
            take = self.take_chunk if lines.has_several else self.take_answer
            self.on_data(last.stamp_s, last.data, take)

    # --- events -----------------------------------------------------------------------------------

    def _on_event(self, stamp_s: float, event: bytes | None, data: bytes) -> None:
        self._any_event = True
        if event == b"error":
            self.fail(data.decode(errors="replace"))
        else:
            self.on_line(stamp_s, data)

    def on_odd_line(self, stamp_s: float, line: bytes, chunk: Any) -> None:
        """Take in an event's data that is not as most are; `chunk` where it was decoded."""
        if chunk is None:
            self.on_data(stamp_s, line, self.take_chunk)
        else:
            self.on_value(stamp_s, chunk, self.take_chunk)

    def on_data(self, stamp_s: float, data: bytes, take: Callable[[Any], int]) -> None:
        """Take in the bytes of one value that came at `stamp_s`."""
        if data == b"[DONE]":
            self._done = True
            return
        if not data:
            return  # a heartbeat
        try:
            value = _loaded(data)
        except (RecursionError, ValueError):
            self.fail(f"malformed JSON: {_shown(data)}")
        else:
            self.on_value(stamp_s, value, take)

    def on_value(self, stamp_s: float, value: Any, take: Callable[[Any], int]) -> None:
        """Take in one decoded value that came at `stamp_s`."""
        self._told_tokens = None
        try:
            bears = take(value)
        except (AttributeError, TypeError):
            self.fail(f"JSON of an unknown shape: {json_text(value)[:200]}")
        else:
            if bears:
                self._on_token(stamp_s, bears)

    def _on_token(self, stamp_s: float, bears: int) -> None:
        self._stamps.append(stamp_s)
        if bears == CONTENT and self.first_content_at_s is None:
            self.first_content_at_s = stamp_s
        told = self._told_tokens
        if told is not None:
            if self._counts is None:
                self._counts = []
            self._counts.append(told - self._counted_tokens)
            self._counted_tokens = told

    # --- for the formats --------------------------------------------------------------------------

    def end_for(self, reason: Any) -> None:
        """Take in why the answer ended; some reasons are failures. TypeError of what is no text."""
        if not isinstance(reason, str):
            raise TypeError("a reason that is no text")
        self.finish_reason = reason
        if reason.lower() in _FAILED:
            self.fail(f'the finish_reason is "{reason}"')

    def take_counts(
        self, prompt_tokens: Any, output_tokens: Any, of_output: Any, total_tokens: Any
    ) -> None:
        """Take in the counts of a usage, each where it was told.

        Reasoning, told in `of_output`, is within the output, but for servers (xAI's) that count it
        beside: there the total is the sum of all three.
        """
        prompt, output = count(prompt_tokens), count(output_tokens)
        if of_output and prompt is not None and output is not None:
            beside = count(of_output.get("reasoning_tokens"))
            if beside and total_tokens == prompt + output + beside:
                output += beside
        if prompt is not None:
            self.prompt_tokens = prompt
        if output is not None:
            self.output_tokens = self._told_tokens = output

    def take_details(self, of_prompt: Any, of_output: Any) -> None:
        """Take in the parts of the counts."""
        cached = count(of_prompt.get("cached_tokens")) if of_prompt else None
        reasoning = count(of_output.get("reasoning_tokens")) if of_output else None
        if cached is not None:
            self.cached_tokens = cached
        if reasoning is not None:
            self.reasoning_tokens = reasoning

    def fail(self, error: str) -> None:
        """Note an error that the answer holds; the first one stays."""
        self.error = self.error or error or "an error without a text"


def count(value: Any) -> int | None:
    """A count as the server gave it; None for what can be none."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _loaded(data: bytes) -> Any:
    """The value of JSON; half of a surrogate pair, which is no Unicode, becomes a `?`.

    Servers that cut a text within a character send such halves. ValueError or RecursionError of
    what is no JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        if b"\\u" not in data:
            raise
    written = json.dumps(json.loads(data.decode()), ensure_ascii=False)
    return orjson.loads(written.encode(errors="replace"))


def is_error(value: Any) -> bool:
    """Whether a field named `error` tells one: also where it is empty, but for `""`."""
    return value is not None and value is not False and value != ""


def json_text(value: Any) -> str:
    """`value` as JSON; nothing where it is nested too deeply to be written."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return ""


def _shown(data: bytes) -> str:
    return data.strip()[:200].decode(errors="replace")

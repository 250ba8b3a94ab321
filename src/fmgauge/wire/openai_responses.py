"""OpenAI's Responses API: the request's body, the answer's meaning. Pure: no sockets, no clocks.

Every event of its stream names its type; those whose type ends in `.delta` bear generated material.
The last one holds the whole answer again, which is read only for what no delta told.
"""

from __future__ import annotations

from typing import Any

from orjson import loads

from fmgauge.records import Endpoint, Payload
from fmgauge.wire.decoding import CONTENT, NOTHING, REASONING, Decoder, is_error, json_text

Json = dict[str, Any]
_OUTCOMES = ("completed", "incomplete", "failed", "cancelled")
_OUTCOME_OF = {f"response.{outcome}": outcome for outcome in _OUTCOMES}
_NAMED = b"event: response."
_BEARS = {
    "response.output_text.delta": CONTENT,
    "response.function_call_arguments.delta": CONTENT,
    "response.reasoning_text.delta": REASONING,
    "response.reasoning_summary_text.delta": REASONING,
}


def body(endpoint: Endpoint, payload: Payload) -> Json:
    """The body of a request for a streamed answer; its usage comes unasked."""
    messages = payload.messages
    fields = {
        "model": endpoint.model,
        "input": [_item(message) for message in messages] if messages else payload.prompt,
        "max_output_tokens": payload.max_output_tokens,
        "stream": True,
    }
    return fields | endpoint.extra_body


def _item(message: Json) -> Json:
    """A chat message as this API wants it: parts of text have other names here."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    text_type = "output_text" if message.get("role") == "assistant" else "input_text"
    renamed = [
        {**part, "type": text_type} if part.get("type") == "text" else part for part in content
    ]
    return {**message, "content": renamed}


class ResponsesDecoder(Decoder):
    """Decodes the answer of the Responses API."""

    def feed(self, stamp_s: float, data: bytes) -> None:
        """Decode the body bytes of one read, which came at `stamp_s`.

        Most reads hold whole events of two lines each, type and data. Those are cut here, as fast
        as `ChoicesDecoder.feed` cuts its own; all else goes the general way.
        """
        if 13 not in data and self._between_events:
            rest = data.removeprefix(_NAMED)
            events = rest.removesuffix(b"\n\n")
            if rest is not data and events is not rest:
                for event in events.split(b"\n\n" + _NAMED):
                    self._on_named(stamp_s, event)
                return
        self.feed_any(stamp_s, data)

    def _on_named(self, stamp_s: float, event: bytes) -> None:
        """Take in one event, given without its first letters and its last two line ends."""
        kind, _, line = event.partition(b"\ndata: ")
        if 10 in kind or 10 in line or not line:
            self.feed_any(stamp_s, b"%b%b\n\n" % (_NAMED, event))
        else:
            self._any_event = True
            self.on_line(stamp_s, line)

    def on_line(self, stamp_s: float, line: bytes) -> None:
        """Take in an event's data: at once where it is a piece of text."""
        chunk = None
        try:
            chunk = loads(line)
            bears = _BEARS[chunk["type"]]
            delta = chunk["delta"]
            if delta and "error" not in chunk:
                self._stamps.append(stamp_s)
                self._texts.append(delta)
                if bears == CONTENT and self.first_content_at_s is None:
                    self.first_content_at_s = stamp_s
                return
        except (KeyError, TypeError, ValueError):
            pass  # not a piece of text: the general way can tell
        self.on_odd_line(stamp_s, line, chunk)

    def take_chunk(self, chunk: Any) -> int:
        """Take in one event of the stream and tell the most that it bears."""
        kind, error = chunk.get("type") or "", chunk.get("error")
        if is_error(error) or kind == "error":
            self.fail(json_text(error or chunk))
        elif kind.endswith(".delta"):
            return self._take_delta(kind, chunk.get("delta"))
        elif kind in _OUTCOME_OF:
            self._done = True
            self._take_outcome(_OUTCOME_OF[kind], chunk.get("response") or {})
        return NOTHING

    def take_answer(self, answer: Any) -> int:
        """Take in the only value of a body: one event, or an answer that did not stream."""
        if answer.get("type"):
            return self.take_chunk(answer)
        self._take_outcome(None, answer)
        return NOTHING

    def _take_delta(self, kind: str, delta: Any) -> int:
        if not delta:
            return NOTHING
        self._texts.append(delta)
        return REASONING if kind.startswith("response.reasoning") else CONTENT

    def _take_outcome(self, outcome: str | None, response: Json) -> None:
        """Take in how a response ended, its usage, and its output where no delta told it.

        Its own status wins over the event's type: some servers call every end completed.
        """
        if response.get("status") in _OUTCOMES:
            outcome = response["status"]
        error = response.get("error")
        if is_error(error):
            self.fail(json_text(error or {"error": error}))
        elif outcome in ("failed", "cancelled"):
            self.fail(f"the response was {outcome}")
        elif outcome == "completed":
            self.finish_reason = "stop"
        elif outcome == "incomplete":
            self.end_for(_reason(response.get("incomplete_details") or {}))
        if response.get("usage"):
            self._take_usage(response["usage"])
        if not self._texts:
            self._take_output(response.get("output") or ())

    def _take_usage(self, usage: Json) -> None:
        of_output = usage.get("output_tokens_details")
        prompt, output = usage.get("input_tokens"), usage.get("output_tokens")
        self.take_counts(prompt, output, of_output, usage.get("total_tokens"))
        self.take_details(usage.get("input_tokens_details"), of_output)

    def _take_output(self, items: Any) -> None:
        for item in items:
            parts = [*(item.get("content") or ()), *(item.get("summary") or ()), item]
            for part in parts:
                for name in ("text", "refusal", "arguments"):
                    if part.get(name):
                        self._texts.append(part[name])


def _reason(details: Json) -> Any:
    """Why a response is incomplete, in the words of the other APIs where they have one."""
    reason = details.get("reason")
    return "length" if reason == "max_output_tokens" else reason or "incomplete"

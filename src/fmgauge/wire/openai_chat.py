"""OpenAI chat completions: the request's body, the answer's meaning. Pure: no sockets, no clocks.

A chunk bears tokens where it holds generated material of any kind: content, reasoning, a tool
call's name or arguments, a refusal; a chunk that only names the role, or is empty, does not.
"""

from __future__ import annotations

from typing import Any

from orjson import loads

from fmgauge.records import Endpoint, Payload
from fmgauge.wire.decoding import CONTENT, NOTHING, REASONING
from fmgauge.wire.openai_choices import ChoicesDecoder, Json, length_fields, stream_fields


def body(endpoint: Endpoint, payload: Payload) -> Json:
    """The body of a request for a streamed answer, with usage where the server tells it."""
    fields = {
        "model": endpoint.model,
        "messages": payload.messages or [{"role": "user", "content": payload.prompt}],
        **length_fields(endpoint, payload.max_output_tokens),
        **stream_fields(endpoint),
    }
    return fields | endpoint.extra_body


class ChatDecoder(ChoicesDecoder):
    """Decodes the answer to a chat completion."""

    def on_line(self, stamp_s: float, line: bytes) -> None:
        """Take in the data of an event of one line: at once where it is nothing but content."""
        chunk = None
        try:
            chunk = loads(line)
            if not chunk.get("usage"):
                (choice,) = chunk["choices"]
                delta = choice["delta"]
                content = delta.get("content")
                if (
                    content
                    and len(delta) == 1
                    and not choice.get("finish_reason")
                    and not choice.get("index")
                    and "error" not in chunk
                ):
                    self._stamps.append(stamp_s)
                    self._texts.append(content)
                    if self.first_content_at_s is None:
                        self.first_content_at_s = stamp_s
                    return
        except (AttributeError, KeyError, TypeError, ValueError):
            pass  # neither a piece of content nor the last chunk: the general way can tell
        self.on_odd_line(stamp_s, line, chunk)

    def on_lines(self, stamp_s: float, lines: list[bytes]) -> None:
        """Take in the data of several events: `on_line` without a call for each, a tenth faster."""
        for line in lines:
            chunk = None
            try:
                chunk = loads(line)
                if not chunk.get("usage"):
                    (choice,) = chunk["choices"]
                    delta = choice["delta"]
                    content = delta.get("content")
                    if (
                        content
                        and len(delta) == 1
                        and not choice.get("finish_reason")
                        and not choice.get("index")
                        and "error" not in chunk
                        and 10 not in line
                    ):
                        self._stamps.append(stamp_s)
                        self._texts.append(content)
                        if self.first_content_at_s is None:
                            self.first_content_at_s = stamp_s
                        continue
            except (AttributeError, KeyError, TypeError, ValueError):
                pass
            if 10 in line:
                self.feed_any(stamp_s, b"data: %b\n\n" % line)
            else:
                self.on_odd_line(stamp_s, line, chunk)

    def take_answer(self, answer: Any) -> int:
        """Take in the only value of a body: one chunk, or an answer that did not stream."""
        bears = self.take_chunk(answer)
        for choice in answer.get("choices") or ():
            if choice.get("message"):
                self._take_part(choice["message"])
        return bears

    def take_choice(self, choice: Json) -> int:
        """Take in what one choice of a chunk adds."""
        delta = choice.get("delta")
        return self._take_part(delta) if delta else NOTHING

    def _take_part(self, part: Json) -> int:
        """Take in a delta or a message. Empty texts are nothing, and so is the role."""
        bears = NOTHING
        reasoning = part.get("reasoning_content") or part.get("reasoning")  # or both, and the same
        if reasoning:
            bears = REASONING
            self._texts.append(reasoning)
        for text in (part.get("content"), part.get("refusal")):
            if text:
                bears = CONTENT
                self._texts.append(text)
        if part.get("tool_calls"):
            bears = max(bears, self._take_calls(part["tool_calls"]))
        return bears

    def _take_calls(self, calls: list[Json]) -> int:
        bears = NOTHING
        for call in calls:
            function = call.get("function") or {}
            for text in (function.get("name"), function.get("arguments")):
                if text:
                    bears = CONTENT
                    self._texts.append(text)
        return bears

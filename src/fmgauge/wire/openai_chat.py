"""OpenAI chat completions: the request's body, the answer's meaning. Pure: no sockets, no clocks.

A chunk bears tokens where it holds generated material of any kind: content, reasoning, a refusal,
sound, the name or the arguments of a call; one that only names the role, or is empty, does not.
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
        is_whole = any(choice.get("message") for choice in answer.get("choices") or ())
        return NOTHING if is_whole else bears

    def take_choice(self, choice: Json) -> int:
        """Take in what one choice of a chunk adds; a whole message only where no delta told it."""
        part = choice.get("delta") or (not self._texts and choice.get("message"))
        return self._take_part(part) if part else NOTHING

    def _take_part(self, part: Json) -> int:
        """Take in a delta or a message. Empty texts are nothing, and so is the role."""
        bears = NOTHING
        reasoning = part.get("reasoning_content") or part.get("reasoning")  # or both, and the same
        if reasoning:
            bears = REASONING
            self._texts.append(reasoning)
        texts = [part.get("content"), part.get("refusal")]
        if part.get("audio"):
            bears = max(bears, self._take_audio(part["audio"]))
        if part.get("function_call"):  # what calls were before there were several, and still legal
            texts += _texts_of_call({"function": part["function_call"]})
        for call in part.get("tool_calls") or ():
            texts += _texts_of_call(call)
        for text in texts:
            if text:
                bears = CONTENT
                self._texts.append(text)
        return bears

    def _take_audio(self, audio: Json) -> int:
        """Take in a piece of sound, its transcript, or both. Sound is a token without a text."""
        if not (audio.get("transcript") or audio.get("data")):
            return NOTHING
        self._texts.append(audio.get("transcript") or "")
        return CONTENT


def _texts_of_call(call: Json) -> list[Any]:
    """What was generated of one call: a function's name and arguments, a custom tool's input."""
    function, custom = call.get("function") or {}, call.get("custom") or {}
    names = (function.get("name"), custom.get("name"))
    return [*names, function.get("arguments"), custom.get("input")]

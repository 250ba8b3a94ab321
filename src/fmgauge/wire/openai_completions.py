"""OpenAI completions, the API for plain prompts: the request's body, the answer's meaning. Pure."""

from __future__ import annotations

from typing import Any

from orjson import loads

from fmgauge.errors import StepError
from fmgauge.records import Endpoint, Payload
from fmgauge.wire.decoding import CONTENT, NOTHING
from fmgauge.wire.openai_choices import ChoicesDecoder, Json, length_fields, stream_fields


def body(endpoint: Endpoint, payload: Payload) -> Json:
    """The body of a request for a streamed answer. StepError without a plain prompt."""
    if payload.prompt is None:
        raise StepError(
            f"{endpoint.experiment}: payload {payload.payload_id} holds messages, and the "
            "completions API takes plain prompts only. Set the endpoint's api to chat or responses"
        )
    fields = {
        "model": endpoint.model,
        "prompt": payload.prompt,
        **length_fields(endpoint, payload.max_output_tokens),
        **stream_fields(endpoint),
    }
    return fields | endpoint.extra_body


class CompletionsDecoder(ChoicesDecoder):
    """Decodes the answer to a completion."""

    def on_line(self, stamp_s: float, line: bytes) -> None:
        """Take in the data of an event of one line: at once where it is nothing but text."""
        chunk = None
        try:
            chunk = loads(line)
            if not chunk.get("usage"):
                (choice,) = chunk["choices"]
                text = choice.get("text")
                if (
                    text
                    and not choice.get("finish_reason")
                    and not choice.get("index")
                    and "error" not in chunk
                ):
                    self._stamps.append(stamp_s)
                    self._texts.append(text)
                    if self.first_content_at_s is None:
                        self.first_content_at_s = stamp_s
                    return
        except (AttributeError, KeyError, TypeError, ValueError):
            pass  # neither a piece of text nor the last chunk: the general way can tell
        self.on_odd_line(stamp_s, line, chunk)

    def take_answer(self, answer: Any) -> int:
        """Take in the only value of a body: an answer that did not stream."""
        self.take_chunk(answer)
        return NOTHING

    def take_choice(self, choice: Json) -> int:
        """Take in what one choice of a chunk adds."""
        text = choice.get("text")
        if not text:
            return NOTHING
        self._texts.append(text)
        return CONTENT

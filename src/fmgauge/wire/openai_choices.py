"""What OpenAI's chat and plain completions share: choices, usage. Knows neither's material."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from fmgauge.records import Endpoint
from fmgauge.wire.decoding import NOTHING, Decoder, count, is_error, json_text

Json = dict[str, Any]


def length_fields(endpoint: Endpoint, max_output_tokens: int) -> Json:
    """The output length to ask for; newer models know it by another name and refuse this one."""
    if "max_completion_tokens" in endpoint.extra_body:
        return {}
    return {"max_tokens": max_output_tokens}


def stream_fields(endpoint: Endpoint) -> Json:
    """Ask for a stream, and for usage at its end where the endpoint's server takes that field."""
    if not endpoint.usage_in_stream:
        return {"stream": True}
    return {"stream": True, "stream_options": {"include_usage": True}}


class ChoicesDecoder(Decoder):
    """Decodes answers that are made of choices."""

    def feed(self, stamp_s: float, data: bytes) -> None:
        """Decode the body bytes of one read, which came at `stamp_s`.

        Most reads hold whole events of one line each and nothing else. Those are cut here and read
        by `on_line` and `on_lines`: these three decide how many tokens a second a client can stamp.
        """
        if 13 not in data and self._between_events:
            # CPython gives back the same object where there is nothing to take off, and these two
            # cost half of startswith, endswith and a slice.
            rest = data.removeprefix(b"data: ")
            line = rest.removesuffix(b"\n\n")
            if rest is not data and line is not rest:
                self._any_event = True
                if 10 in line:
                    self._cut(stamp_s, line)
                elif line == b"[DONE]":  # on its way as JSON it would cost an exception
                    self._done = True
                else:
                    self.on_line(stamp_s, line)
                return
        self.feed_any(stamp_s, data)

    def _cut(self, stamp_s: float, events: bytes) -> None:
        """Take in several events; one that is not of one line still holds a line's end."""
        lines = events.split(b"\n\ndata: ")
        if lines[-1] == b"[DONE]":
            self._done = True
            lines.pop()
        self.on_lines(stamp_s, lines)

    def on_lines(self, stamp_s: float, lines: list[bytes]) -> None:
        """Take in the data of several events, each of one line or with a line's end in it."""
        for line in lines:
            if 10 in line:
                self.feed_any(stamp_s, b"data: %b\n\n" % line)
            else:
                self.on_line(stamp_s, line)

    @abstractmethod
    def take_choice(self, choice: Json) -> int:
        """Take in one choice and tell the most that it bears."""

    def take_chunk(self, chunk: Any) -> int:
        """Take in one chunk, or a whole answer, and tell the most that it bears."""
        choices, error = chunk.get("choices"), chunk.get("error")
        if is_error(error) or (choices is None and chunk.get("object") == "error"):
            self.fail(json_text(error or chunk))
            return NOTHING
        if chunk.get("usage"):
            self._take_usage(chunk["usage"])
        bears, is_last = NOTHING, False
        for place, choice in enumerate(choices or ()):
            if count(choice.get("index")) or place:  # nobody asked: one request is one answer
                self.fail("the answer holds several choices")
            if choice.get("finish_reason"):
                is_last = True
                self.end_for(choice["finish_reason"])
            bears = self.take_choice(choice) or bears
        if (is_last or not bears) and chunk.get("timings"):
            self._take_timings(chunk["timings"])
        return bears

    def _take_usage(self, usage: Json) -> None:
        of_prompt = usage.get("prompt_tokens_details")
        of_output = usage.get("completion_tokens_details")
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        self.take_counts(prompt, output, of_output, usage.get("total_tokens"))
        if of_prompt or of_output:
            self.take_details(of_prompt, of_output)

    def _take_timings(self, timings: Json) -> None:
        """llama.cpp's own times for reading the prompt and for generating, in milliseconds."""
        prompt_ms, predicted_ms = timings.get("prompt_ms"), timings.get("predicted_ms")
        if isinstance(prompt_ms, int | float) and isinstance(predicted_ms, int | float):
            self.server_latency_s = (prompt_ms + predicted_ms) / 1000

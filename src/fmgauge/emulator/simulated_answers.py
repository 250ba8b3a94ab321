"""What a simulated server understands and says, in each of OpenAI's three APIs, as bytes.

Knows requests' fields and answers' chunks; not when a chunk is due. The words mean nothing: their
number and their instants are what counts.

A prompt's tokens are counted as the runs of letters, digits and underscores in its texts, plus all
other characters that are not blank, one by one; at least 1. So `Don't stop, please.` has 7. No
model's tokenizer counts like that, but every run counts the same.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from fmgauge.emulator.http_front import LAST_CHUNK, chunk

DEFAULT_OUTPUT_TOKENS = 16
_PIECE = re.compile(r"\w+|[^\w\s]")
# All of one length, so that every chunk of a stream has the same size.
_WORDS = (b" light", b" stone", b" river", b" cloud", b" grain", b" field", b" sound", b" north")
_PLACE = "\x00"  # where a token's text goes in a rendered chunk
_ESCAPED_PLACE = b"\\u0000"
_DONE = b"data: [DONE]\n\n"


class BadRequest(Exception):
    """A request that no server could answer, with the reason."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks for."""

    model: str
    prompt_tokens: int
    output_tokens: int
    stream: bool
    stream_options: bool  # whether the field is there at all
    include_usage: bool
    fault: str | None  # the body's own `fault`, which a client can set without a header


@dataclass(frozen=True, slots=True)
class Usage:
    """The counts that an answer tells; they need not be true."""

    prompt_tokens: int
    output_tokens: int


class Answer(ABC):
    """One answer's bytes: events as chunks of a stream, or all of it as one JSON."""

    path: ClassVar[str]
    always_tells_usage: ClassVar[bool] = False  # in a stream, though nobody asks for it

    def __init__(self, name: str, model: str, created: int) -> None:
        self.name = name
        self.model = model
        self.created = created
        rendered = self._token_event(_PLACE)
        head, _, tail = rendered.rpartition(_ESCAPED_PLACE)
        size = len(head) + len(_WORDS[0]) + len(tail)
        self._head = b"%x\r\n%b" % (size, head)
        self._tail = tail + b"\r\n"

    @staticmethod
    @abstractmethod
    def texts(body: dict[str, Any]) -> list[str]:
        """The texts that a request's prompt holds."""

    @abstractmethod
    def opening(self) -> bytes:
        """What comes as soon as the request is accepted, before any token."""

    def announcement(self) -> bytes:
        """The part of the opening that only names the role, or stands for it."""
        return self.opening()

    def token(self, number: int) -> bytes:
        """The chunk that bears token `number`, counted from 1."""
        return self._head + _WORDS[number - 1 & 7] + self._tail

    def malformed_token(self, number: int) -> bytes:
        """The same chunk, its JSON cut off within the token's text."""
        event = self._token_event(_word(number))
        return chunk(event[: event.rindex(_word(number).encode()) + 3] + b"\n\n")

    @abstractmethod
    def closing(self, tokens: int, usage: Usage | None) -> bytes:
        """What comes after the last of `tokens` tokens, the end of the stream included."""

    @abstractmethod
    def whole(self, tokens: int, finish_reason: str | None, usage: Usage | None) -> bytes:
        """The answer of a request that does not stream: one JSON."""

    def error(self, message: str) -> bytes:
        """An error inside a stream, and the stream's end."""
        return chunk(_data(error_body(message, "server_error"))) + chunk(_DONE) + LAST_CHUNK

    @abstractmethod
    def _token_event(self, text: str) -> bytes:
        """The event that bears `text`, which stands last among the event's texts."""


class ChatAnswer(Answer):
    """Chat completions."""

    path = "/v1/chat/completions"
    chunk_kind: ClassVar[str] = "chat.completion.chunk"

    @staticmethod
    def texts(body: dict[str, Any]) -> list[str]:
        """The messages' contents."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages must be a list that is not empty")
        return _texts_of_messages(messages)

    def opening(self) -> bytes:
        """The chunk that only names the role."""
        return chunk(self._event({"role": "assistant", "content": ""}))

    def closing(self, tokens: int, usage: Usage | None) -> bytes:
        """The finish reason, the usage where it was asked for, and the end."""
        finish = chunk(self._event({}, "length"))
        return finish + self._usage(usage) + chunk(_DONE) + LAST_CHUNK

    def whole(self, tokens: int, finish_reason: str | None, usage: Usage | None) -> bytes:
        """One `chat.completion`."""
        message = {"role": "assistant", "content": _text(tokens)}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        return orjson.dumps(self._object("chat.completion", [choice]) | _usage_field(usage))

    def _token_event(self, text: str) -> bytes:
        return self._event({"content": text})

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _data(self._object(self.chunk_kind, [choice]))

    def _usage(self, usage: Usage | None) -> bytes:
        if usage is None:
            return b""
        return chunk(_data(self._object(self.chunk_kind, []) | _usage_field(usage)))

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class CompletionsAnswer(ChatAnswer):
    """Completions of plain prompts."""

    path = "/v1/completions"
    chunk_kind = "text_completion"

    @staticmethod
    def texts(body: dict[str, Any]) -> list[str]:
        """The prompt, or the prompts of a list."""
        prompt = body.get("prompt")
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BadRequest("prompt must be a text, or a list of texts")
        return texts

    def opening(self) -> bytes:
        """Nothing: no role is named here."""
        return b""

    def announcement(self) -> bytes:
        """A chunk without text, which bears no token either."""
        return chunk(self._event({"content": ""}))

    def whole(self, tokens: int, finish_reason: str | None, usage: Usage | None) -> bytes:
        """One `text_completion`."""
        choice = {"index": 0, "text": _text(tokens), "finish_reason": finish_reason}
        return orjson.dumps(self._object(self.chunk_kind, [choice]) | _usage_field(usage))

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "finish_reason": finish_reason, "text": delta.get("content", "")}
        return _data(self._object(self.chunk_kind, [choice]))


class ResponsesAnswer(Answer):
    """The Responses API, whose events are named."""

    path = "/v1/responses"
    always_tells_usage = True

    @staticmethod
    def texts(body: dict[str, Any]) -> list[str]:
        """The instructions, and the input as a text or as messages."""
        asked, instructions = body.get("input"), body.get("instructions")
        texts = [instructions] if isinstance(instructions, str) else []
        if isinstance(asked, str):
            return [*texts, asked]
        if not isinstance(asked, list) or not asked:
            raise BadRequest("input must be a text, or a list that is not empty")
        return texts + _texts_of_messages(asked)

    def opening(self) -> bytes:
        """The events that announce the response, its item and its part."""
        item = {"type": "message", "id": self._item, "role": "assistant", "content": []}
        part = {"type": "output_text", "text": ""}
        return (
            self.announcement()
            + chunk(_named("response.output_item.added", output_index=0, item=item))
            + chunk(_named("response.content_part.added", **self._place, part=part))
        )

    def announcement(self) -> bytes:
        """The event that announces the response."""
        return chunk(_named("response.created", response=self._response("in_progress", [], None)))

    def closing(self, tokens: int, usage: Usage | None) -> bytes:
        """The whole text, and the response with its usage."""
        text = _text(tokens)
        response = self._response("incomplete", [self._message(text)], usage)
        return (
            chunk(_named("response.output_text.done", **self._place, text=text))
            + chunk(_named("response.incomplete", response=response))
            + LAST_CHUNK
        )

    def whole(self, tokens: int, finish_reason: str | None, usage: Usage | None) -> bytes:
        """One `response`; without a finish reason, one that says it is still in progress."""
        status = "incomplete" if finish_reason else "in_progress"
        return orjson.dumps(self._response(status, [self._message(_text(tokens))], usage))

    def error(self, message: str) -> bytes:
        """The event `error`, and the stream's end."""
        event = _named("error", code="server_error", message=message, param=None)
        return chunk(event) + LAST_CHUNK

    def _token_event(self, text: str) -> bytes:
        return _named("response.output_text.delta", **self._place, delta=text)

    @property
    def _item(self) -> str:
        return f"msg_{self.name}"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _message(self, text: str) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        return {"type": "message", "id": self._item, "role": "assistant", "content": content}

    def _response(
        self, status: str, output: list[dict[str, Any]], usage: Usage | None
    ) -> dict[str, Any]:
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.name,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "incomplete_details": reason,
            "model": self.model,
            "output": output,
            "usage": usage
            and {
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.output_tokens,
                "total_tokens": usage.prompt_tokens + usage.output_tokens,
            },
        }


ANSWERS: dict[str, type[Answer]] = {
    answer.path: answer for answer in (ChatAnswer, CompletionsAnswer, ResponsesAnswer)
}


# --- requests ------------------------------------------------------------------------------------


def asked_of(content: bytes, answer: type[Answer]) -> Asked:
    """What the body of a request asks of an API; BadRequest where that cannot be answered."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    options = body.get("stream_options")
    return Asked(
        model=str(body.get("model", "")),
        prompt_tokens=prompt_tokens(answer.texts(body)),
        output_tokens=_output_tokens(body),
        stream=bool(body.get("stream")),
        stream_options=options is not None,
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        fault=body.get("fault"),
    )


def prompt_tokens(texts: list[str]) -> int:
    """How many tokens texts have, by this module's own rule."""
    return max(1, sum(len(_PIECE.findall(text)) for text in texts))


def _output_tokens(body: dict[str, Any]) -> int:
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    asked = next((body[name] for name in names if body.get(name) is not None), None)
    if asked is None:
        return DEFAULT_OUTPUT_TOKENS
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise BadRequest("the number of tokens to generate must be a whole number, at least 1")
    return asked


def _texts_of_messages(messages: list[Any]) -> list[str]:
    """The texts of messages, whose content is a text or a list of parts."""
    texts = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if isinstance(part, dict) and part.get("text")]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("the content of a message must be a text, or parts that hold texts")
    return texts


# --- events --------------------------------------------------------------------------------------


def error_body(message: str, kind: str) -> dict[str, Any]:
    """An error as OpenAI's servers tell it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _word(number: int) -> str:
    return _WORDS[number - 1 & 7].decode()


def _text(tokens: int) -> str:
    words = b"".join(_WORDS)
    return (words * (tokens // len(_WORDS) + 1))[: tokens * len(_WORDS[0])].decode()


def _usage_field(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.prompt_tokens + usage.output_tokens,
        }
    }


def _data(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(value)


def _named(event: str, **fields: Any) -> bytes:
    """An event of the Responses API: its name stands outside and inside of its data."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), orjson.dumps({"type": event, **fields}))

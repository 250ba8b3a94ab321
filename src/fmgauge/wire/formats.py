"""Which format an endpoint speaks. Knows the formats by name; not what is in them."""

from __future__ import annotations

from typing import NamedTuple

from fmgauge.records import Endpoint, Payload
from fmgauge.wire import openai_chat, openai_completions, openai_responses
from fmgauge.wire.decoding import Decoder
from fmgauge.wire.requests import Body, RequestTemplate, template


class Format(NamedTuple):
    """Where a format's requests go, what they hold, and what reads the answers."""

    path: str  # below the endpoint's base address
    body: Body
    decoder: type[Decoder]
    length_fields: tuple[str, ...]  # of a body: the most output tokens


_CHOICES_LENGTH = ("max_tokens", "max_completion_tokens")
_FORMATS = {
    "chat": Format("chat/completions", openai_chat.body, openai_chat.ChatDecoder, _CHOICES_LENGTH),
    "completions": Format(
        "completions",
        openai_completions.body,
        openai_completions.CompletionsDecoder,
        _CHOICES_LENGTH,
    ),
    "responses": Format(
        "responses",
        openai_responses.body,
        openai_responses.ResponsesDecoder,
        ("max_output_tokens",),
    ),
}


def format_of(endpoint: Endpoint) -> Format:
    """The format that the endpoint speaks."""
    return _FORMATS[endpoint.api]


def request_template(
    endpoint: Endpoint, payload: Payload, *, api_key: str | None = None
) -> RequestTemplate:
    """Everything of a request for a streamed answer that all sendings of a payload share.

    The endpoint's `extra_body` is merged last, so it wins over every field. Raises StepError for a
    payload that the endpoint's API cannot carry.
    """
    form = format_of(endpoint)
    return template(endpoint, payload, path=form.path, body=form.body, api_key=api_key)


def usage_is_optional(endpoint: Endpoint) -> bool:
    """Whether requests have a field that asks for usage, and could be sent without it.

    Some servers refuse it. Where `extra_body` names the field itself, it is not ours to drop.
    """
    asks = endpoint.usage_in_stream and "stream_options" not in endpoint.extra_body
    return asks and endpoint.api in ("chat", "completions")


def new_decoder(endpoint: Endpoint) -> Decoder:
    """A decoder for one answer of the endpoint."""
    return format_of(endpoint).decoder()

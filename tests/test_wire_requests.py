"""Requests as bytes: the head, the body of each API, and the salt's place in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmgauge.config import load_config
from fmgauge.config.model import OpenaiEndpoint
from fmgauge.errors import ConfigError, StepError
from fmgauge.records import Endpoint, Payload
from fmgauge.wire import RequestTemplate, request_template, usage_is_optional

SALT = "1 2 3 4 5 6 7 8"
OTHER_SALT = "8 7 6 5 4 3 2 1"
PLAIN = Payload("p-1", "Why \u00e4?", None, 3, 16)
SALTED = replace(PLAIN, prompt=f"{SALT}\n\nWhy \u00e4?", salt=SALT)
CONFIG = """\
run: {{name: probe}}
workloads: [{{name: short, source: {{kind: python_docs}}}}]
experiments:
  - name: one
    model: {{name: small}}
    endpoint: {{kind: openai, base_url: "http://h/v1", api: {api}, extra_body: {{{field}: 9}}}}
    workloads: [short]
    load: [{{kind: closed_loop, concurrency: [1]}}]
"""
PATHS = {"chat": "chat/completions", "completions": "completions", "responses": "responses"}


def endpoint(**changes: Any) -> Endpoint:
    """An endpoint that answers at 127.0.0.1."""
    fields: dict[str, Any] = {
        "experiment": "x",
        "kind": "openai",
        "state": "ready",
        "base_url": "http://127.0.0.1:8000/v1",
        "model": "tiny",
        "instance_type": None,
        "instance_count": 1,
        "owned": False,
    }
    return Endpoint(**(fields | changes))


def parsed(request: bytes) -> tuple[str, dict[str, str], Any]:
    """Request line, headers and JSON body of a request whose length is as it says."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = dict(part.split(": ", 1) for part in rest)
    assert int(headers["content-length"]) == len(body)
    return line, headers, json.loads(body)


def body_of(template: RequestTemplate, salt: str | None = None) -> Any:
    """The JSON body of a filled request."""
    return parsed(template.filled("r-1", salt))[2]


# --- bodies --------------------------------------------------------------------------------------


def test_a_chat_request_asks_for_a_stream_with_usage() -> None:
    """The body asks for a stream, for usage at its end, and for the payload's output length."""
    assert body_of(request_template(endpoint(), PLAIN)) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Why \u00e4?"}],
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_completions_request_holds_the_plain_prompt() -> None:
    """The same, with the prompt as a text."""
    assert body_of(request_template(endpoint(api="completions"), PLAIN)) == {
        "model": "tiny",
        "prompt": "Why \u00e4?",
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_responses_request_has_names_of_its_own() -> None:
    """The Responses API takes an input and max_output_tokens, and tells usage unasked."""
    assert body_of(request_template(endpoint(api="responses"), PLAIN)) == {
        "model": "tiny",
        "input": "Why \u00e4?",
        "max_output_tokens": 16,
        "stream": True,
    }


@pytest.mark.parametrize(("api", "prompt"), [("chat", "messages"), ("completions", "prompt")])
def test_a_server_that_refuses_stream_options_is_sent_none(api: str, prompt: str) -> None:
    """The field is left out whole; the answer is still asked for as a stream."""
    body = body_of(request_template(endpoint(api=api, usage_in_stream=False), PLAIN))

    assert body.keys() == {"model", prompt, "max_tokens", "stream"}
    assert body["stream"] is True


@pytest.mark.parametrize(
    ("changes", "optional"),
    [
        ({"api": "chat"}, True),
        ({"api": "completions"}, True),
        ({"api": "responses"}, False),
        ({"usage_in_stream": False}, False),
        ({"extra_body": {"stream_options": {"include_usage": True}}}, False),
    ],
)
def test_only_a_field_of_ours_can_be_left_out(changes: dict[str, Any], optional: bool) -> None:
    """Not where there is none, nor where the config wants it; and leaving it out is no option."""
    asked = endpoint(**changes)
    without = replace(asked, usage_in_stream=False)

    assert usage_is_optional(asked) is optional
    assert (request_template(asked, PLAIN) != request_template(without, PLAIN)) is optional


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image_url"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "So."}]},
]


def test_chat_messages_are_sent_as_they_are() -> None:
    """A payload of messages is sent unchanged."""
    payload = Payload("p", None, MESSAGES, 9, 8)

    assert body_of(request_template(endpoint(), payload))["messages"] == MESSAGES


def test_responses_messages_name_their_parts_as_that_api_does() -> None:
    """Text parts are input_text, or output_text where the assistant said them."""
    payload = Payload("p", None, MESSAGES, 9, 8)

    assert body_of(request_template(endpoint(api="responses"), payload))["input"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Why?"}, {"type": "image_url"}],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
    ]


def test_completions_refuse_messages() -> None:
    """The completions API cannot carry messages, and the error says what can."""
    with pytest.raises(StepError, match="api to chat or responses"):
        request_template(endpoint(api="completions"), Payload("p", None, MESSAGES, 9, 8))


@pytest.mark.parametrize(
    ("api", "name"),
    [("chat", "max_tokens"), ("completions", "max_tokens"), ("responses", "max_output_tokens")],
)
def test_extra_body_wins(api: str, name: str) -> None:
    """The endpoint's own fields are added, and replace what they name."""
    extra = {"ignore_eos": True, name: 4}
    body = body_of(request_template(endpoint(api=api, extra_body=extra), PLAIN))

    assert (body["ignore_eos"], body[name]) == (True, 4)


def test_the_newer_name_of_the_output_length_replaces_the_older() -> None:
    """Models that want max_completion_tokens refuse a request that has max_tokens as well."""
    body = body_of(request_template(endpoint(extra_body={"max_completion_tokens": 4}), PLAIN))

    assert (body["max_completion_tokens"], "max_tokens" in body) == (4, False)


@pytest.mark.parametrize("api", PATHS)
def test_what_a_request_holds_already_cannot_be_set_in_extra_body(api: str, tmp_path: Path) -> None:
    """The config refuses every field of every API's requests, so what is sent is as it says."""
    config = tmp_path / "config.yml"
    for name in body_of(request_template(endpoint(api=api), PLAIN)):
        config.write_text(CONFIG.format(api=api, field=name))

        with pytest.raises(ConfigError, match=rf"^\S+:6: experiments.0.endpoint.extra_body.{name}"):
            load_config(config)


# --- the head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", PATHS)
def test_the_head_names_path_host_and_id(api: str) -> None:
    """The request goes to its API's path below the base address and carries its id."""
    line, headers, _ = parsed(request_template(endpoint(api=api), PLAIN).filled("r-1", None))

    assert line == f"POST /v1/{PATHS[api]} HTTP/1.1"
    del headers["content-length"]
    assert headers == {
        "host": "127.0.0.1:8000",
        "user-agent": "fmgauge",
        "content-type": "application/json",
        "accept": "text/event-stream, application/json",
        "accept-encoding": "identity",
        "x-request-id": "r-1",
    }


@pytest.mark.parametrize(
    ("address", "line", "host"),
    [
        ("http://bücher.example:81/v1", "/v1/chat/completions", "xn--bcher-kva.example:81"),
        ("http://例え.jp/v1", "/v1/chat/completions", "xn--r8jz45g.jp"),
        ("http://h/größe", "/gr%C3%B6%C3%9Fe/chat/completions", "h"),
    ],
)
def test_the_head_of_a_request_to_any_address_of_a_config_is_ascii(
    address: str, line: str, host: str, tmp_path: Path
) -> None:
    """An internationalized host is named in its IDNA form, a path is percent-encoded."""
    config = tmp_path / "config.yml"
    text = CONFIG.format(api="chat", field="top_k").replace("http://h/v1", address)
    config.write_text(text, encoding="utf-8")
    asked = load_config(config).config.experiments[0].endpoint
    assert isinstance(asked, OpenaiEndpoint)

    template = request_template(endpoint(base_url=asked.base_url), PLAIN)

    found, headers, _ = parsed(template.filled("r-1", None))
    assert (found, headers["host"]) == (f"POST {line} HTTP/1.1", host)


def test_the_request_carries_the_key_and_its_template_does_not_show_it() -> None:
    """A key is sent as a bearer token, and is in no text that a template is shown as."""
    template = request_template(endpoint(), PLAIN, api_key="k-123")

    assert parsed(template.filled("r", None))[1]["authorization"] == "Bearer k-123"
    assert "k-123" not in repr(template)


# --- salts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", PATHS)
def test_each_sending_has_its_own_id_and_salt(api: str) -> None:
    """Two sendings of a payload differ in their id and in their salt, and in nothing else."""
    template = request_template(endpoint(api=api), SALTED)

    first, second = template.filled("r-1", SALT), template.filled("r-22", OTHER_SALT)

    assert first.count(SALT.encode()) == second.count(OTHER_SALT.encode()) == 1
    rewritten = first.replace(b"r-1\r", b"r-22\r").replace(SALT.encode(), OTHER_SALT.encode())
    assert rewritten == second


def test_a_request_without_a_salt_of_its_own_keeps_the_prepared_one() -> None:
    """None leaves what the payload was prepared with."""
    content = body_of(request_template(endpoint(), SALTED), None)["messages"][0]["content"]

    assert content == f"{SALT}\n\nWhy \u00e4?"


def test_a_payload_that_is_not_salted_is_sent_as_it_is() -> None:
    """A workload whose subject is prefix caching gets no salt."""
    assert body_of(request_template(endpoint(), PLAIN), SALT)["messages"][0]["content"] == "Why ä?"


def test_a_salt_of_another_length_is_refused() -> None:
    """Neither the counted tokens nor the content-length would hold."""
    with pytest.raises(ValueError, match="15 characters"):
        request_template(endpoint(), SALTED).filled("r", "1 2")


def test_messages_are_salted_in_their_first_text() -> None:
    """Only the first text changes, also where it is one of several parts."""
    parts = [{"type": "image_url"}, {"type": "text", "text": f"{SALT}\n\n{SALT}"}]
    payload = Payload("p", None, [{"role": "user", "content": parts}], 9, 5, salt=SALT)

    body = body_of(request_template(endpoint(), payload), OTHER_SALT)

    assert body["messages"][0]["content"][1]["text"] == f"{OTHER_SALT}\n\n{SALT}"


_TEXTS = st.text() | st.sampled_from([SALT, "salt-0", "salt-1 salt-0", '"salt-0"', "1 2 3", "\x00"])


@given(prompt=_TEXTS, model=_TEXTS, extra=st.dictionaries(_TEXTS, _TEXTS, max_size=3))
@pytest.mark.parametrize("api", PATHS)
def test_no_text_is_mistaken_for_the_salt(
    api: str, prompt: str, model: str, extra: dict[str, str]
) -> None:
    """Whatever prompt, model and further fields hold, the salt alone changes, in its one place."""
    own = {"model", "messages", "prompt", "input", "stream", "stream_options"}
    extra = {name: value for name, value in extra.items() if name not in own}
    payload = replace(PLAIN, prompt=f"{SALT}\n\n{prompt}", salt=SALT)
    expected = replace(PLAIN, prompt=f"{OTHER_SALT}\n\n{prompt}", salt=None)
    asked = endpoint(api=api, model=model, extra_body=extra)

    sent = request_template(asked, payload).filled("r", OTHER_SALT)

    assert sent == request_template(asked, expected).filled("r", None)


def test_a_prompt_that_extra_body_replaces_cannot_be_salted() -> None:
    """A salt that is never sent would let a cache answer, so it is refused."""
    with pytest.raises(StepError, match="extra_body"):
        request_template(endpoint(extra_body={"messages": []}), SALTED)

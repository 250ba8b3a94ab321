"""Server-sent events and OpenAI chat answers, as bytes: what is a token, an error, an end."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmgauge.records import Endpoint, Payload
from fmgauge.wire import ChatDecoder, Cut, SseDecoder, SseEvent, chat_request
from scripted_server import DONE, chat_events, delta, event, usage

# Recorded from a llama.cpp server (b-number and ids shortened), a replacement character included.
LLAMACPP_STREAM = (
    'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}'
    '],"created":1795458133,"id":"chatcmpl-T","object":"chat.completion.chunk"}\n\n'
    'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\ufffd"}}],"id":"c"}\n\n'
    'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" transf\u00f6rm"}}]}\n\n'
    'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"pow"}}]}\n\n'
    'data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}]}\n\n'
    'data: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":5,"total_tokens":8,'
    '"prompt_tokens_details":{"cached_tokens":4}},"timings":{"cache_n":0,"prompt_n":5,'
    '"prompt_ms":6.647,"predicted_n":3,"predicted_ms":1.843}}\n\n'
    "data: [DONE]\n\n"
).encode()

# A stream that uses every freedom that the standard gives.
ODD_STREAM = (
    b"\xef\xbb\xbf: a comment\r\n\r\nevent: error\r\ndata:one\rdata: two\r\n\r\n"
    b"id: 7\nretry: 10\n\n"
    b'data\n\ndata:  spaced\n\nevent: lost\n\n:\ndata: {"a": "\xc3\xa4"}\r\rdata: last\n\n'
)
ODD_EVENTS = [
    SseEvent(b"error", b"one\ntwo"),
    SseEvent(None, b""),
    SseEvent(None, b" spaced"),
    SseEvent(None, b'{"a": "\xc3\xa4"}'),
    SseEvent(None, b"last"),
]


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


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PAYLOAD = Payload("p-1", "Why \u00e4?", None, 3, 16)


def parsed(request: bytes) -> tuple[str, dict[str, str], Any]:
    """Request line, headers and JSON body of a request."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = dict(part.split(": ", 1) for part in rest)
    assert int(headers["content-length"]) == len(body)
    return line, headers, json.loads(body)


def decoded(*reads: bytes, keep_text: bool = True) -> ChatDecoder:
    """A decoder that was fed one read a second, from second 1 on."""
    decoder = ChatDecoder(keep_text=keep_text)
    for second, data in enumerate(reads, start=1):
        decoder.feed(float(second), data)
    return decoder


def cut_at(data: bytes, positions: list[int]) -> list[bytes]:
    """`data` cut at the positions, in order; some pieces may be empty."""
    edges = [0, *sorted(positions), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# --- the request ---------------------------------------------------------------------------------


def test_request_asks_for_a_stream_with_usage() -> None:
    """The body asks for a stream, for usage at its end, and for the payload's output length."""
    _, _, body = parsed(chat_request(endpoint(), PAYLOAD, request_id="r-1"))

    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Why \u00e4?"}],
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_request_head_names_path_host_and_id() -> None:
    """The request goes to chat/completions below the base address and carries its id."""
    line, headers, _ = parsed(chat_request(endpoint(), PAYLOAD, request_id="r-1"))

    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert headers["host"] == "127.0.0.1:8000"
    assert headers["x-request-id"] == "r-1"
    assert "authorization" not in headers


def test_request_carries_the_key() -> None:
    """A key is sent as a bearer token."""
    _, headers, _ = parsed(chat_request(endpoint(), PAYLOAD, request_id="r", api_key="k-123"))

    assert headers["authorization"] == "Bearer k-123"


def test_extra_body_wins() -> None:
    """The endpoint's own fields are added, and replace what they name."""
    extra = {"ignore_eos": True, "max_tokens": 4}
    _, _, body = parsed(chat_request(endpoint(extra_body=extra), PAYLOAD, request_id="r"))

    assert (body["ignore_eos"], body["max_tokens"]) == (True, 4)


def test_messages_are_sent_as_they_are() -> None:
    """A payload of messages is sent unchanged."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    payload = Payload("p", None, messages, 9, 8)

    _, _, body = parsed(chat_request(endpoint(), payload, request_id="r"))

    assert body["messages"] == messages


# --- server-sent events --------------------------------------------------------------------------


def test_every_line_end_and_field_of_the_standard() -> None:
    """LF, CR, CRLF, comments, missing spaces, empty data, unknown fields: as in the standard."""
    assert SseDecoder().feed(ODD_STREAM) == ODD_EVENTS


@unhurried
@given(st.lists(st.integers(0, len(ODD_STREAM)), max_size=30))
def test_any_split_of_a_stream_gives_equal_events(positions: list[int]) -> None:
    """However a stream is cut, inside CRLF, a character or a field's name, its events are equal."""
    decoder = SseDecoder()

    events = [one for piece in cut_at(ODD_STREAM, positions) for one in decoder.feed(piece)]

    assert events == ODD_EVENTS


_LINES = st.sampled_from(
    [b"data: a", b"data:", b"data", b"data:  b", b": c", b"event: e", b"event", b"x: y", b"", b""]
)
_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@unhurried
@given(st.lists(st.tuples(_LINES, _ENDS), max_size=20), st.lists(st.integers(0, 200), max_size=9))
def test_any_split_of_any_lines_gives_equal_events(
    lines: list[tuple[bytes, bytes]], positions: list[int]
) -> None:
    """The events of a stream do not depend on where the network cuts it."""
    stream = b"".join(line + end for line, end in lines)
    whole, in_pieces = SseDecoder(), SseDecoder()

    pieces = cut_at(stream, [min(position, len(stream)) for position in positions])

    assert [one for p in pieces for one in in_pieces.feed(p)] == whole.feed(stream)


def test_event_is_given_at_its_blank_line_not_later() -> None:
    """An event that ends with a lone CR is not held back for an LF that may never come."""
    assert SseDecoder().feed(b"data: now\r\r") == [SseEvent(None, b"now")]


# --- tokens --------------------------------------------------------------------------------------


def test_recorded_stream_is_read_whole() -> None:
    """A recorded answer gives its three tokens, counts, reason, text and the server's own time."""
    decoder = decoded(LLAMACPP_STREAM)

    assert decoder.verdict(200) == ("ok", None)
    assert decoder.token_at_s == [1.0, 1.0, 1.0]
    assert decoder.text == "\ufffd transf\u00f6rmpow"
    assert decoder.finish_reason == "length"
    assert (decoder.prompt_tokens, decoder.output_tokens, decoder.cached_tokens) == (5, 3, 4)
    assert decoder.server_latency_s == pytest.approx(0.00849)


@unhurried
@given(st.lists(st.integers(0, len(LLAMACPP_STREAM)), max_size=20))
def test_any_split_of_an_answer_gives_equal_results(positions: list[int]) -> None:
    """Text, tokens, counts and verdict do not depend on where the network cut the answer."""
    decoder = decoded(*cut_at(LLAMACPP_STREAM, positions))

    assert decoder.verdict(200) == ("ok", None)
    assert decoder.text == "\ufffd transf\u00f6rmpow"
    assert len(decoder.token_at_s) == decoder.output_tokens == 3


def test_token_has_the_instant_of_the_read_that_completed_it() -> None:
    """One event a read: each token's instant is that of its own read."""
    decoder = decoded(*chat_events(["a", "b", "c"]))

    assert decoder.token_at_s == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "assistant"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": None},
        {"content": ""},
        {"reasoning_content": None, "content": None},
        {"tool_calls": []},
        {"tool_calls": [{"index": 0, "function": {"name": "", "arguments": ""}}]},
        {},
    ],
)
def test_chunk_without_material_is_no_token(fields: dict[str, Any]) -> None:
    """A role, or emptiness, is not the first token."""
    assert decoded(delta(**fields)).token_at_s == []


@pytest.mark.parametrize(
    ("fields", "is_content"),
    [
        ({"content": "a"}, True),
        ({"content": " "}, True),
        ({"refusal": "no"}, True),
        ({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, True),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, True),
        ({"reasoning_content": "hm"}, False),
        ({"reasoning": "hm"}, False),
    ],
)
def test_generated_material_of_any_kind_is_a_token(
    fields: dict[str, Any], is_content: bool
) -> None:
    """Content, reasoning, refusals and tool calls are tokens; reasoning is not content."""
    decoder = decoded(delta(**fields))

    assert decoder.token_at_s == [1.0]
    assert decoder.first_content_at_s == (1.0 if is_content else None)


def test_first_content_comes_after_reasoning() -> None:
    """The first token may be reasoning; the first content has an instant of its own."""
    decoder = decoded(delta(reasoning="hm"), delta(content="a"), delta(content="b"))

    assert (decoder.token_at_s[0], decoder.first_content_at_s) == (1.0, 2.0)


def test_heartbeat_without_data_is_nothing() -> None:
    """An event whose data is empty is neither a token nor malformed."""
    decoder = decoded(b"data:\n\n", *chat_events())

    assert decoder.verdict(200) == ("ok", None)
    assert len(decoder.token_at_s) == 2


def test_letters_of_data_are_not_eaten() -> None:
    """Text that begins with the letters of the field's name keeps them."""
    decoder = decoded(*chat_events(["data: at", "a"]))

    assert decoder.text == "data: ata"


def test_reasoning_tokens_are_told_apart_not_added() -> None:
    """Reasoning tokens are within the output count."""
    counts = {
        "prompt_tokens": 5,
        "completion_tokens": 9,
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    decoder = decoded(event({"choices": [], "usage": counts}))

    assert (decoder.output_tokens, decoder.reasoning_tokens) == (9, 4)


@pytest.mark.parametrize(
    "counts", [None, {}, {"completion_tokens": None}, {"completion_tokens": -1}]
)
def test_absent_usage_is_no_count(counts: dict[str, Any] | None) -> None:
    """Chunks are not counted in place of tokens: without usage the count is unknown."""
    chunks = [delta(content="a"), delta(finish_reason="stop"), event({"usage": counts}), DONE]
    decoder = decoded(*chunks)

    assert decoder.verdict(200) == ("ok", None)
    assert decoder.output_tokens is None


def test_text_is_kept_only_where_asked() -> None:
    """Without the wish for it, no text is kept."""
    assert decoded(*chat_events(), keep_text=False).text is None


# --- how it ended --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("http_status", "retry_after", "status"),
    [
        (429, False, "throttled"),
        (503, True, "throttled"),
        (503, False, "http_error"),
        (400, False, "http_error"),
        (500, False, "http_error"),
        (307, False, "http_error"),
    ],
)
def test_http_error_by_its_status(http_status: int, retry_after: bool, status: str) -> None:
    """429, and 503 that says when to return, are throttling; any other error is an error."""
    decoder = decoded(b"upstream says no")

    verdict, error = decoder.verdict(http_status, retry_after=retry_after)

    assert (verdict, error) == (status, f"HTTP {http_status}: upstream says no")


def test_error_text_is_short() -> None:
    """Of a long error page only the start is kept."""
    _, error = decoded(b"<html>" + b"x" * 10_000).verdict(502)

    assert error is not None
    assert len(error) == 500


@pytest.mark.parametrize(
    "error_event",
    [event({"error": {"message": "out of memory"}}), b"event: error\ndata: out of memory\n\n"],
)
def test_error_inside_a_200_is_a_failure(error_event: bytes) -> None:
    """An error sent within a stream fails the request, whatever came before it and after it."""
    decoder = decoded(delta(content="a"), error_event, delta(finish_reason="stop"), DONE)

    status, error = decoder.verdict(200)

    assert status == "stream_error"
    assert "out of memory" in (error or "")


def test_error_inside_a_cut_stream_is_the_error() -> None:
    """A server that says what is wrong and then closes failed for what it said."""
    decoder = decoded(event({"error": "overloaded"}))

    assert decoder.verdict(200, cut=Cut("truncated", "closed")) == ("stream_error", '"overloaded"')


@pytest.mark.parametrize(
    "broken",
    [
        b'data: {"choices":\n\n',
        b"data: 7\n\n",
        b"data: []\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": [7]}\n\n',
        b'data: {"choices": [{"delta": "text"}]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": ["f"]}}]}\n\n',
        b'data: {"usage": 12}\n\n',
        b"data: \xff\xfe\n\n",
    ],
)
def test_malformed_chunk_is_a_stream_error(broken: bytes) -> None:
    """What is no JSON, or no chunk, fails the request and never raises."""
    decoder = decoded(delta(content="a"), broken, delta(finish_reason="stop"), DONE)

    assert decoder.verdict(200)[0] == "stream_error"


@unhurried
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_raise(noise: bytes, as_event: bool) -> None:
    """Whatever a server sends, there is a verdict."""
    decoder = decoded(b"data: " + noise + b"\n\n" if as_event else noise)

    assert decoder.verdict(200)[0] in ("stream_error", "truncated", "empty")


@unhurried
@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda t: (
            st.lists(t)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "content",
                        "tool_calls",
                        "function",
                        "usage",
                        "error",
                        "finish_reason",
                        "timings",
                        "prompt_ms",
                        "predicted_ms",
                    ]
                ),
                t,
            )
        ),
    )
)
def test_no_json_raises(value: Any) -> None:
    """Whatever JSON stands in a chunk or a whole answer, there is a verdict."""
    for body in (event(value), json.dumps(value).encode()):
        assert isinstance(decoded(body).verdict(200)[0], str)


def test_stream_without_finish_reason_is_truncated() -> None:
    """A stream that just ends was cut, even where the transport saw a proper end, or DONE came."""
    assert decoded(delta(content="a")).verdict(200)[0] == "truncated"
    assert decoded(delta(content="a"), DONE).verdict(200)[0] == "truncated"


def test_stream_cut_inside_a_chunk_is_truncated_not_malformed() -> None:
    """Half a chunk at the end of a cut stream is no malformed JSON."""
    decoder = decoded(delta(content="a"), b'data: {"choi')

    assert decoder.verdict(200, cut=Cut("truncated", "closed")) == ("truncated", "closed")


def test_answer_that_said_it_was_done_is_whole() -> None:
    """After DONE a missing HTTP terminator cuts nothing off."""
    decoder = decoded(*chat_events())

    assert decoder.verdict(200, cut=Cut("truncated", "closed")) == ("ok", None)


def test_last_event_needs_no_blank_line() -> None:
    """An end of the stream right after the last line still completes its event."""
    decoder = decoded(delta(content="a"), delta(finish_reason="stop").rstrip())

    assert decoder.verdict(200) == ("ok", None)


def test_answer_without_tokens_is_empty() -> None:
    """A proper end without any generated token is its own failure."""
    decoder = decoded(delta(role="assistant"), delta(finish_reason="stop"), usage(5, 0), DONE)

    assert decoder.verdict(200)[0] == "empty"


def test_body_that_is_neither_events_nor_json_is_no_answer() -> None:
    """A proxy's page under status 200 is not counted as an answer."""
    status, error = decoded(b"<html>Please log in</html>").verdict(200)

    assert status == "truncated"
    assert "Please log in" in (error or "")


# --- answers that do not stream ------------------------------------------------------------------

JSON_ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2},
}


def test_answer_as_one_json_has_counts_but_no_token_instants() -> None:
    """Where nothing streams there is no first token's instant to be had."""
    body = json.dumps(JSON_ANSWER).encode()
    decoder = decoded(body[:20], body[20:])

    assert decoder.verdict(200) == ("ok", None)
    assert (decoder.token_at_s, decoder.output_tokens, decoder.text) == ([], 2, "Hello")


def test_error_as_json_under_status_200_is_a_failure() -> None:
    """An error object is no answer, whatever the status says."""
    assert decoded(b'{"error": {"message": "no"}}').verdict(200)[0] == "stream_error"


def test_half_a_json_answer_is_truncated() -> None:
    """A JSON answer cut by the connection is truncated; one that ends broken is malformed."""
    half = json.dumps(JSON_ANSWER).encode()[:40]

    assert decoded(half).verdict(200, cut=Cut("truncated", "closed"))[0] == "truncated"
    assert decoded(half).verdict(200)[0] == "stream_error"

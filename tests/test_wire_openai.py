"""Answers of OpenAI's APIs, as bytes: what is a token, a count, an error, an end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fmgauge.records import Endpoint, Status
from fmgauge.wire import Cut, Decoder, new_decoder
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


def decoded(*reads: bytes, api: str = "chat") -> Decoder:
    """A decoder that was fed one read a second, from second 1 on."""
    decoder = new_decoder(
        Endpoint("x", "openai", "ready", "http://127.0.0.1/v1", "m", None, 1, False, api=api)
    )
    for second, data in enumerate(reads, start=1):
        decoder.feed(float(second), data)
    return decoder


# --- tokens --------------------------------------------------------------------------------------


def test_recorded_stream_is_read_whole() -> None:
    """A recorded answer gives its three tokens, counts, reason, text and the server's own time."""
    decoder = decoded(LLAMACPP_STREAM)

    assert decoder.verdict(200) == ("ok", None)
    assert [*decoder.token_at_s] == [1.0, 1.0, 1.0]
    assert decoder.text == "\ufffd transf\u00f6rmpow"
    assert decoder.finish_reason == "length"
    assert (decoder.prompt_tokens, decoder.output_tokens, decoder.cached_tokens) == (5, 3, 4)
    assert decoder.server_latency_s == pytest.approx(0.00849)


def test_token_has_the_instant_of_the_read_that_completed_it() -> None:
    """One event a read: each token's instant is that of its own read."""
    decoder = decoded(*chat_events(["a", "b", "c"]))

    assert [*decoder.token_at_s] == [2.0, 3.0, 4.0]


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
        {"tool_calls": [{"index": 0, "type": "custom", "custom": {"name": None, "input": ""}}]},
        {"function_call": {"name": "", "arguments": ""}},
        {"audio": {"id": "a", "transcript": "", "expires_at": 7}},
        {},
    ],
)
def test_chunk_without_material_is_no_token(fields: dict[str, Any]) -> None:
    """A role, or emptiness, is not the first token."""
    assert [*decoded(delta(**fields)).token_at_s] == []


@pytest.mark.parametrize(
    ("fields", "is_content"),
    [
        ({"content": "a"}, True),
        ({"content": " "}, True),
        ({"refusal": "no"}, True),
        ({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, True),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, True),
        ({"tool_calls": [{"index": 0, "custom": {"name": "f", "input": ""}}]}, True),
        ({"tool_calls": [{"index": 0, "custom": {"input": "x"}}]}, True),
        ({"function_call": {"name": "f", "arguments": ""}}, True),
        ({"function_call": {"arguments": "{"}}, True),
        ({"audio": {"id": "a", "transcript": "Hel"}}, True),
        ({"audio": {"data": "AAAA"}}, True),
        ({"reasoning_content": "hm"}, False),
        ({"reasoning": "hm"}, False),
    ],
)
def test_generated_material_of_any_kind_is_a_token(
    fields: dict[str, Any], is_content: bool
) -> None:
    """Content, reasoning, refusals and tool calls are tokens; reasoning is not content."""
    decoder = decoded(delta(**fields))

    assert [*decoder.token_at_s] == [1.0]
    assert decoder.first_content_at_s == (1.0 if is_content else None)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (
            [
                {"tool_calls": [{"index": 0, "custom": {"name": "f", "input": ""}}]},
                {"tool_calls": [{"index": 0, "custom": {"input": "1)"}}]},
            ],
            "f1)",
        ),
        ([{"function_call": {"name": "f"}}, {"function_call": {"arguments": "{}"}}], "f{}"),
        ([{"audio": {"transcript": "Hel"}}, {"audio": {"data": "AAAA"}}], "Hel"),
        ([{"audio": {"data": "AAAA"}}, {"audio": {"data": "BBBB"}}], ""),
    ],
    ids=["custom tool", "function call", "transcript", "sound"],
)
def test_an_answer_of_calls_or_sound_alone_is_an_answer(
    parts: list[dict[str, Any]], text: str
) -> None:
    """It is no empty one; its text is what a tokenizer can count, which sound is not."""
    decoder = decoded(*(delta(**part) for part in parts), delta(finish_reason="stop"), DONE)

    assert decoder.verdict(200) == ("ok", None)
    assert ([*decoder.token_at_s], decoder.text) == ([1.0, 2.0], text)


def test_a_message_in_one_event_is_one_chunk() -> None:
    """A server that streams nothing may send its whole answer as an event, which came then."""
    decoder = decoded(event(JSON_ANSWER), DONE)

    assert decoder.verdict(200) == ("ok", None)
    assert ([*decoder.token_at_s], decoder.text, decoder.output_tokens) == ([1.0], "Hello", 2)


def test_a_message_after_its_deltas_repeats_them() -> None:
    """Some servers end a stream with the whole message: it is no token, nor more text."""
    choice = {"index": 0, "delta": {}, "message": {"content": "ab"}, "finish_reason": "stop"}
    decoder = decoded(delta(content="a"), delta(content="b"), event({"choices": [choice]}), DONE)

    assert decoder.verdict(200) == ("ok", None)
    assert ([*decoder.token_at_s], decoder.text) == ([1.0, 2.0], "ab")


@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
def test_half_of_a_surrogate_pair_is_a_token(api: str) -> None:
    """Legal JSON that is no Unicode: the half becomes a question mark, all else stays."""
    whole = event(TOKEN[api]).replace(b'"a"', b'"\\u00e9\\ud83d\\ude00"')
    half = event(TOKEN[api]).replace(b'"a"', b'"\\\\u\\u00e9\\ud83d"')
    decoder = decoded(whole, half, event(LAST[api]), DONE, api=api)

    assert decoder.verdict(200) == ("ok", None)
    assert [*decoder.token_at_s] == [1.0, 2.0]
    assert decoder.text == "\u00e9\U0001f600\\u\u00e9?"


@pytest.mark.parametrize(
    "data", [b'"\\ud83d', b'{"choices": NaN, "id": "\\u0041"}', b'"\\u0041 \xff"', b"[" * 9999]
)
def test_what_is_no_json_is_malformed_in_spite_of_an_escape(data: bytes) -> None:
    """Only halves of pairs are forgiven."""
    decoder = decoded(delta(content="a"), b"data: " + data + b"\n\n", b'data: "\\u0041"[\n\n')

    assert decoder.verdict(200)[0] == "stream_error"
    assert (decoder.error or "").startswith("malformed JSON: ")


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
    ("completion", "total", "output"),
    [
        (10, 930, 910),  # 20 + 10 + 900: beside
        (910, 930, 910),  # 20 + 910: within
        (10, 30, 10),  # contradictory, and told as it is
        (10, None, 10),
    ],
)
def test_reasoning_that_is_counted_beside_the_output_is_added(
    completion: int, total: int | None, output: int
) -> None:
    """The total tells whether it is: 20 prompt tokens and 900 of reasoning, in either API."""
    details = {"reasoning_tokens": 900}
    chat = {"prompt_tokens": 20, "completion_tokens": completion, "total_tokens": total}
    told = event({"choices": [], "usage": {**chat, "completion_tokens_details": details}})
    counts = {"input_tokens": 20, "output_tokens": completion, "total_tokens": total}
    last = ended("completed", usage={**counts, "output_tokens_details": details})

    for decoder in (decoded(told), decoded(last, api="responses")):
        assert (decoder.output_tokens, decoder.reasoning_tokens) == (output, 900)


@pytest.mark.parametrize(
    "counts", [None, {}, {"completion_tokens": None}, {"completion_tokens": -1}]
)
def test_absent_usage_is_no_count(counts: dict[str, Any] | None) -> None:
    """Chunks are not counted in place of tokens: without usage the count is unknown."""
    chunks = [delta(content="a"), delta(finish_reason="stop"), event({"usage": counts}), DONE]
    decoder = decoded(*chunks)

    assert decoder.verdict(200) == ("ok", None)
    assert decoder.output_tokens is None


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


FAILED_REASONS = (
    *("error", "abort", "insufficient_system_resource", "network_error", "server_error"),
    *("timeout", "TIMEOUT", "internal_server_error", "cancelled"),
)


@pytest.mark.parametrize("reason", FAILED_REASONS)
def test_an_end_for_a_failure_is_a_failure(reason: str) -> None:
    """Servers tell their own failures as the reason of a proper end, with tokens before it."""
    failure = "stream_error", f'the finish_reason is "{reason}"'
    details = {"incomplete_details": {"reason": reason}}
    response = decoded(*TEXT_EVENTS, ended("incomplete", **details), api="responses")

    assert decoded(delta(content="a"), delta(reason), DONE).verdict(200) == failure
    assert decoded(event(piece("a", reason)), DONE, api="completions").verdict(200) == failure
    assert response.verdict(200) == failure


@pytest.mark.parametrize(
    "reason",
    [
        *("stop", "length", "tool_calls", "function_call", "content_filter", "eos", "eos_token"),
        *("end_turn", "max_tokens", "stop_sequence", "sensitive", "never heard of"),
    ],
)
def test_any_other_reason_is_an_end(reason: str) -> None:
    """What is not known to be a failure is none: servers have words of their own for an end."""
    decoder = decoded(delta(content="a"), delta(finish_reason=reason), DONE)

    assert (decoder.verdict(200), decoder.finish_reason) == (("ok", None), reason)


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


def test_stream_without_finish_reason_is_truncated() -> None:
    """A stream that just ends was cut, even where the transport saw a proper end, or DONE came."""
    assert decoded(delta(content="a")).verdict(200)[0] == "truncated"
    assert decoded(delta(content="a"), DONE).verdict(200)[0] == "truncated"


def test_stream_cut_inside_a_chunk_is_truncated_not_malformed() -> None:
    """Half a chunk at the end of a cut stream is no malformed JSON."""
    decoder = decoded(delta(content="a"), b'data: {"choi')

    assert decoder.verdict(200, cut=Cut("truncated", "closed")) == ("truncated", "closed")


@pytest.mark.parametrize("status", ["truncated", "timeout", "cancelled"])
def test_answer_that_said_it_was_done_is_whole(status: Status) -> None:
    """After DONE a missing HTTP terminator cuts nothing off, however the wait for it ended."""
    decoder = decoded(*chat_events())

    assert decoder.verdict(200, cut=Cut(status, "why")) == ("ok", None)


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


# --- an error of any value -----------------------------------------------------------------------

TOKEN = {  # by API, a chunk of one token
    "chat": {"choices": [{"index": 0, "delta": {"content": "a"}}]},
    "completions": {"choices": [{"index": 0, "text": "a"}]},
    "responses": {"type": "response.output_text.delta", "delta": "a"},
}
LAST = {  # by API, a chunk that ends an answer well
    "chat": {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    "completions": {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
    "responses": {"type": "response.completed", "response": {"status": "completed"}},
}
ANSWER = {  # by API, a whole answer that did not stream
    "chat": {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]},
    "completions": {"choices": [{"text": "a", "finish_reason": "stop"}]},
    "responses": {"status": "completed", "output": [{"content": [{"text": "a"}]}]},
}


@pytest.mark.parametrize("api", TOKEN)
@pytest.mark.parametrize("error", [{}, [], 0, True, "overloaded", {"message": "overloaded"}])
def test_an_error_is_one_though_it_says_nothing(api: str, error: Any) -> None:
    """An empty error fails a request as a full one does: alone, with a token, in a whole answer."""
    token, last = event(TOKEN[api]), event(LAST[api])
    for given in ({"error": error}, TOKEN[api] | {"error": error}, LAST[api] | {"error": error}):
        decoder = decoded(token, event(given), last, api=api)
        assert decoder.verdict(200)[0] == "stream_error"
    for body in ({"error": error}, ANSWER[api] | {"error": error}):
        assert decoded(json.dumps(body).encode(), api=api).verdict(200)[0] == "stream_error"


@pytest.mark.parametrize("api", TOKEN)
@pytest.mark.parametrize("error", [None, False, ""])
def test_a_field_for_errors_that_holds_none_is_no_error(api: str, error: Any) -> None:
    """Servers may name the field in every chunk, and say by its value that nothing is wrong."""
    chunks = [event(one[api] | {"error": error}) for one in (TOKEN, TOKEN, LAST)]
    streamed = decoded(*chunks, api=api)
    whole = decoded(json.dumps(ANSWER[api] | {"error": error}).encode(), api=api)

    assert (streamed.verdict(200), streamed.text) == (("ok", None), "aa")
    assert (whole.verdict(200), whole.text) == (("ok", None), "a")


def test_an_error_that_says_nothing_is_shown_with_what_stands_around_it() -> None:
    """There is nothing else to go by."""
    assert decoded(event({"error": {}, "id": 7})).verdict(200)[1] == '{"error":{},"id":7}'


# --- several answers to one request --------------------------------------------------------------

SEVERAL = ("stream_error", "the answer holds several choices")


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize(
    "fields",
    [
        {"delta": {"content": "b"}, "text": "b"},
        {"delta": {"role": "assistant", "content": ""}, "text": ""},
        {"delta": {}, "text": "", "finish_reason": "stop"},
    ],
    ids=["token", "role", "end"],
)
def test_a_second_choice_is_no_part_of_the_answer(api: str, fields: dict[str, Any]) -> None:
    """One request has one answer: a chunk of another one fails it, wherever it stands."""
    other = event({"choices": [{"index": 1, **fields}]})
    token, last = event(TOKEN[api]), event(LAST[api])

    assert decoded(other, token, last, DONE, api=api).verdict(200) == SEVERAL
    assert decoded(token + other + token, last, DONE, api=api).verdict(200) == SEVERAL
    assert decoded(token, last, other, DONE, api=api).verdict(200) == SEVERAL


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("indices", [[{"index": 0}, {"index": 1}], [{}, {}]])
def test_choices_side_by_side_are_several(api: str, indices: list[dict[str, int]]) -> None:
    """In a chunk as in a whole answer, whether or not they are numbered."""
    fields = {"delta": {"content": "a"}, "text": "a", "message": {"content": "a"}}
    both = [{**fields, **index, "finish_reason": "stop"} for index in indices]
    body = json.dumps({"choices": both}).encode()

    assert decoded(event({"choices": both}), DONE, api=api).verdict(200) == SEVERAL
    assert decoded(body, api=api).verdict(200) == SEVERAL


@pytest.mark.parametrize("index", [None, 0, "0", 0.0])
def test_an_index_that_tells_of_no_other_choice_is_nothing(index: Any) -> None:
    """Zero in any form, or none at all."""
    chunk = event({"choices": [{"index": index, "delta": {"content": "a"}}]})
    decoder = decoded(chunk, delta(finish_reason="stop"))

    assert (decoder.verdict(200), decoder.text) == (("ok", None), "a")


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
    assert (len(decoder.token_at_s), decoder.output_tokens, decoder.text) == (0, 2, "Hello")


def test_error_as_json_under_status_200_is_a_failure() -> None:
    """An error object is no answer, whatever the status says."""
    assert decoded(b'{"error": {"message": "no"}}').verdict(200)[0] == "stream_error"


def test_half_a_json_answer_is_truncated() -> None:
    """A JSON answer cut by the connection is truncated; one that ends broken is malformed."""
    half = json.dumps(JSON_ANSWER).encode()[:40]

    assert decoded(half).verdict(200, cut=Cut("truncated", "closed"))[0] == "truncated"
    assert decoded(half).verdict(200)[0] == "stream_error"


# --- counts --------------------------------------------------------------------------------------


def counted(text: str, completion_tokens: int, **fields: Any) -> bytes:
    """A chat chunk that tells how many tokens there are so far, as vLLM does when asked to."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, **fields}
    counts = {"prompt_tokens": 5, "completion_tokens": completion_tokens}
    return event({"choices": [choice], "usage": counts})


def test_each_chunk_has_the_tokens_that_the_server_told_of_it() -> None:
    """Where every chunk tells the count so far, a chunk's tokens are the difference."""
    last = counted("", 6, finish_reason="length")
    decoder = decoded(counted("a", 1), counted("bcd", 4), counted("ef", 6), last, usage(5, 6), DONE)

    assert decoder.verdict(200) == ("ok", None)
    assert [*(decoder.chunk_tokens or ())] == [1, 3, 2]


def test_tokens_of_a_chunk_without_text_count_with_the_next() -> None:
    """Half a character is a token without a text; it shows in the chunk that completes it."""
    decoder = decoded(counted("a", 1), counted("", 2), counted("b", 3))

    assert [*(decoder.chunk_tokens or ())] == [1, 2]


@pytest.mark.parametrize(
    "chunks",
    [
        [delta(content="a"), delta(content="b"), usage(5, 2)],
        [counted("a", 1), delta(content="b"), usage(5, 2)],
        [delta(content="a"), counted("b", 2), usage(5, 2)],
        [counted("a", 1), counted("b", 2), usage(5, 3)],
        [counted("a", 2), counted("b", 1), usage(5, 1)],
        [counted("a", 1), delta(content="b"), counted("c", 3), usage(5, 3)],
    ],
)
def test_incomplete_or_contradictory_counts_of_chunks_are_none(chunks: list[bytes]) -> None:
    """Told of some chunks only, not summing to the whole, or running backwards: not used."""
    assert decoded(*chunks).chunk_tokens is None


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"completion_tokens": 2}, (None, 2)),
        ({"prompt_tokens": 3}, (3, None)),
        ({"prompt_tokens": True, "completion_tokens": 2.0}, (None, None)),
        ({"prompt_tokens": 0, "completion_tokens": 2**31}, (0, None)),
    ],
)
def test_each_count_is_kept_as_it_was_told(
    counts: dict[str, Any], told: tuple[int | None, int | None]
) -> None:
    """A usage may tell one count and not the other, and what is no count is not told."""
    decoder = decoded(event({"choices": [], "usage": counts}))

    assert (decoder.prompt_tokens, decoder.output_tokens) == told


def test_a_later_usage_does_not_unsay_an_earlier_one() -> None:
    """What the last usage leaves out stays as it was told before."""
    decoder = decoded(counted("a", 1), event({"choices": [], "usage": {"completion_tokens": 2}}))

    assert (decoder.prompt_tokens, decoder.output_tokens) == (5, 2)


# --- how servers differ --------------------------------------------------------------------------


def test_last_token_may_come_with_the_finish_reason() -> None:
    """A chunk that holds both a token and the reason of the end is a token."""
    decoder = decoded(delta(content="a"), delta(content="b", finish_reason="length"), DONE)

    assert decoder.verdict(200) == ("ok", None)
    assert ([*decoder.token_at_s], decoder.finish_reason) == ([1.0, 2.0], "length")


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lines_may_end_as_they_like_and_data_needs_no_space(line_end: str) -> None:
    """TGI writes `data:{`; others end lines with CRLF or put comments between events."""
    stream = b": hello\n\n" + b": ping\n".join(chat_events(["data: a", "{"]))
    for given in (stream, stream.replace(b"data: {", b"data:{")):
        decoder = decoded(given.replace(b"\n", line_end.encode()))

        assert decoder.verdict(200) == ("ok", None)
        assert (decoder.text, len(decoder.token_at_s)) == ("data: a{", 2)


def test_data_of_several_lines_is_one_chunk() -> None:
    """A chunk's JSON may stand in several data lines."""
    pretty = b'data: {"choices":\ndata: [{"delta": {"content":\ndata: "a"}}]}\n\n'

    assert decoded(pretty).text == "a"


def test_several_tokens_in_one_read_share_its_instant() -> None:
    """What came in one read came at one instant."""
    assert [*decoded(b"".join(chat_events(["a", "b", "c"]))).token_at_s] == [1.0, 1.0, 1.0]


def test_the_same_reasoning_under_two_names_is_one_text() -> None:
    """Some servers send reasoning under its old and its new name at once."""
    assert decoded(delta(reasoning="hm", reasoning_content="hm")).text == "hm"


def test_missing_done_is_no_failure() -> None:
    """A proper end of the response after a finish_reason is an end."""
    assert decoded(*chat_events()[:-1]).verdict(200) == ("ok", None)


def test_missing_done_in_a_cut_answer_is_a_cut() -> None:
    """A connection that broke before the server said that it was done may have lost chunks."""
    cut = Cut("truncated", "closed")

    assert decoded(*chat_events()[:-1]).verdict(200, cut=cut) == ("truncated", "closed")


@pytest.mark.parametrize(
    "error_event",
    [
        event({"object": "error", "message": "overloaded"}),
        delta(content="a", finish_reason="error"),
        delta(content="a", finish_reason="abort"),
        b"event: error\ndata: late",
        b'data:{"error":"overloaded","error_type":"overloaded"}\r\n\r\n',
        event({"error": "overloaded", "choices": [{"delta": {"content": "a"}}]}),
    ],
)
def test_an_error_of_any_form_is_a_failure(error_event: bytes) -> None:
    """Servers tell errors in many forms; in none is the answer a success."""
    decoder = decoded(*chat_events()[:-1], error_event)

    assert decoder.verdict(200)[0] == "stream_error"


def test_http_error_without_a_body_is_its_status() -> None:
    """Where the server says nothing, nothing is added."""
    assert decoded().verdict(503) == ("http_error", "HTTP 503")


def test_http_error_told_as_an_event_is_shown() -> None:
    """Some servers answer a refused stream with an event; what it says is the error."""
    assert decoded(event({"error": "too long"})).verdict(400) == (
        "http_error",
        'HTTP 400: "too long"',
    )


# --- JSON lines ----------------------------------------------------------------------------------


def lines_of(events: list[bytes]) -> list[bytes]:
    """Events as JSON lines, without DONE, as LMI's containers stream chat."""
    return [one.removeprefix(b"data: ")[:-1] for one in events if one != DONE]


def test_chunks_as_json_lines_are_a_stream() -> None:
    """Without `data:` each line is a chunk; the first one's instant is that of its own read."""
    decoder = decoded(*lines_of(chat_events(["a", "b"])[1:]))

    assert decoder.verdict(200) == ("ok", None)
    assert ([*decoder.token_at_s], decoder.text) == ([1.0, 2.0], "ab")
    assert (decoder.prompt_tokens, decoder.output_tokens) == (5, 2)


def test_one_json_line_may_be_a_whole_stream() -> None:
    """An answer of one token can be one chunk, which came at one instant."""
    decoder = decoded(*lines_of([delta(content="a", finish_reason="length")]))

    assert decoder.verdict(200) == ("ok", None)
    assert [*decoder.token_at_s] == [1.0]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_answer_over_several_lines_is_one_answer(indent: int | None) -> None:
    """Pretty-printed, or with a line's end behind it, an answer is no stream."""
    body = json.dumps(JSON_ANSWER, indent=indent).encode() + b"\n"
    decoder = decoded(body[:40], body[40:])

    assert decoder.verdict(200) == ("ok", None)
    assert (len(decoder.token_at_s), decoder.text) == (0, "Hello")


def test_a_broken_json_line_is_a_stream_error() -> None:
    """A line that is no JSON fails the request, and so does an error among the lines."""
    good = lines_of(chat_events())

    for bad in (b"oops\n", b'{"error": "overloaded"}\n', b'{"choi'):
        assert decoded(*good, bad).verdict(200)[0] == "stream_error"


# --- completions ---------------------------------------------------------------------------------


def piece(text: str, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """One chunk of a completion."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    return {"object": "text_completion", "choices": [choice], **fields}


def test_completions_bear_their_tokens_in_the_text() -> None:
    """An empty text is no token; counts and the server's own time are read as for chat."""
    timings = {"prompt_ms": 2.0, "predicted_ms": 3.0}
    last = piece("", "length", timings=timings)
    chunks = [event(piece("")), event(piece(" a")), event(piece("b")), event(last), usage(5, 2)]
    decoder = decoded(*chunks, DONE, api="completions")

    assert decoder.verdict(200) == ("ok", None)
    assert ([*decoder.token_at_s], decoder.first_content_at_s, decoder.text) == ([2, 3], 2, " ab")
    assert (decoder.finish_reason, decoder.output_tokens) == ("length", 2)
    assert decoder.server_latency_s == pytest.approx(0.005)


def test_a_completion_that_does_not_stream_has_no_token_instants() -> None:
    """Its one JSON has a chunk's form, but its text came all at once."""
    counts = {"prompt_tokens": 5, "completion_tokens": 2}
    body = json.dumps(piece("Hello", "stop", usage=counts, timings={})).encode()
    decoder = decoded(body, b"\n", api="completions")

    assert decoder.verdict(200) == ("ok", None)
    assert (len(decoder.token_at_s), decoder.text, decoder.output_tokens) == (0, "Hello", 2)


# --- the Responses API ---------------------------------------------------------------------------


def named(kind: str, **fields: Any) -> bytes:
    """One event of the Responses API."""
    value = {"type": kind, "sequence_number": 3, **fields}
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode()


def ended(status: str, *, kind: str | None = None, **fields: Any) -> bytes:
    """The last event of the Responses API."""
    details = {"cached_tokens": 4}, {"reasoning_tokens": 1}
    counts = {
        "input_tokens": 5,
        "input_tokens_details": details[0],
        "output_tokens": 3,
        "output_tokens_details": details[1],
    }
    parts = [{"type": "output_text", "text": "ab"}]
    output = [{"type": "message", "content": parts}]
    response = {"status": status, "error": None, "usage": counts, "output": output, **fields}
    return named(kind or f"response.{status}", response=response)


TEXT_EVENTS = [
    named("response.created", response={"status": "in_progress", "error": None, "usage": None}),
    named("response.output_item.added", item={"type": "reasoning"}),
    named("response.reasoning_summary_text.delta", delta="hm"),
    named("response.output_text.delta", delta=""),
    named("response.output_text.delta", delta="a"),
    named("response.output_text.delta", delta="b"),
    named("response.output_text.done", text="ab"),
]


def test_responses_bear_their_tokens_in_deltas() -> None:
    """Deltas are tokens, reasoning is not content, and the last event repeats no text."""
    decoder = decoded(*TEXT_EVENTS, ended("completed"), api="responses")

    assert decoder.verdict(200) == ("ok", None)
    assert ([*decoder.token_at_s], decoder.first_content_at_s) == ([3.0, 5.0, 6.0], 5.0)
    assert (decoder.text, decoder.finish_reason) == ("hmab", "stop")
    assert (decoder.prompt_tokens, decoder.cached_tokens) == (5, 4)
    assert (decoder.output_tokens, decoder.reasoning_tokens) == (3, 1)


@pytest.mark.parametrize(
    ("kind", "is_content"),
    [
        ("response.output_text.delta", True),
        ("response.refusal.delta", True),
        ("response.function_call_arguments.delta", True),
        ("response.reasoning_text.delta", False),
        ("response.reasoning_summary_text.delta", False),
        ("response.reasoning.delta", False),
    ],
)
def test_a_delta_of_any_kind_is_a_token(kind: str, is_content: bool) -> None:
    """Text, refusals and arguments are content; reasoning is a token, too."""
    decoder = decoded(named(kind, delta="x"), api="responses")

    assert [*decoder.token_at_s] == [1.0]
    assert decoder.first_content_at_s == (1.0 if is_content else None)


@pytest.mark.parametrize("kind", ["response.incomplete", "response.completed"])
def test_an_answer_as_long_as_it_may_be_ends_for_its_length(kind: str) -> None:
    """The reason is the one of the other APIs; a server may call even this end completed."""
    details = {"reason": "max_output_tokens"}
    last = ended("incomplete", kind=kind, incomplete_details=details)
    decoder = decoded(*TEXT_EVENTS, last, api="responses")

    assert decoder.verdict(200) == ("ok", None)
    assert decoder.finish_reason == "length"


def test_the_last_event_says_that_it_was_all() -> None:
    """There is no DONE; after the last event a missing HTTP terminator cuts nothing off."""
    decoder = decoded(*TEXT_EVENTS, ended("completed"), api="responses")

    assert decoder.verdict(200, cut=Cut("truncated", "closed")) == ("ok", None)


def test_an_answer_that_nothing_dates_needs_the_end_of_its_body() -> None:
    """Where no token has an instant, a time-out's would be the answer's: it has failed instead."""
    decoder = decoded(ended("completed"), api="responses")

    assert (len(decoder.token_at_s), decoder.text) == (0, "ab")
    assert decoder.verdict(200, cut=Cut("timeout", "why")) == ("timeout", "why")


def test_a_response_without_its_last_event_is_truncated() -> None:
    """Text alone is no whole answer."""
    assert decoded(*TEXT_EVENTS, api="responses").verdict(200)[0] == "truncated"


@pytest.mark.parametrize(
    "error_event",
    [
        ended("failed", error={"code": "server_error", "message": "overloaded"}),
        ended("cancelled"),
        named("error", code="server_error", message="overloaded"),
        named("response.output_text.delta", delta="a", error="overloaded"),
        named("response.output_text.delta", delta="a", error={}),
        ended("completed", error={}),
        event({"error": "overloaded"}),
    ],
)
def test_an_error_among_the_events_of_a_response_is_a_failure(error_event: bytes) -> None:
    """An error fails the request, also where an end that looks good follows."""
    events = [*TEXT_EVENTS, error_event, ended("completed")]

    assert decoded(*events, api="responses").verdict(200)[0] == "stream_error"


def test_a_response_that_does_not_stream_has_no_token_instants() -> None:
    """Reasoning, text and arguments of a whole response are its text."""
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "ab"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
    ]
    counts = {"input_tokens": 5, "output_tokens": 3}
    answer = {"object": "response", "status": "completed", "output": output, "usage": counts}
    decoder = decoded(json.dumps(answer, indent=1).encode(), api="responses")

    assert decoder.verdict(200) == ("ok", None)
    assert (len(decoder.token_at_s), decoder.text, decoder.output_tokens) == (0, "hmab{}", 3)


def test_a_whole_response_that_failed_is_a_failure() -> None:
    """Its status counts, whatever HTTP's says."""
    body = json.dumps({"object": "response", "status": "failed", "error": {"code": "x"}}).encode()

    assert decoded(body, api="responses").verdict(200) == ("stream_error", '{"code":"x"}')


def test_a_response_of_an_empty_error_says_so() -> None:
    """It is not told as a response that was completed."""
    decoder = decoded(*TEXT_EVENTS, ended("completed", error={}), api="responses")

    assert decoder.verdict(200) == ("stream_error", '{"error":{}}')

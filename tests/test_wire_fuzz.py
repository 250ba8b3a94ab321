"""Whatever bytes come, cut wherever: equal results, a verdict, and no failure taken for success."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmgauge.records import Endpoint
from fmgauge.wire import Cut, Decoder, new_decoder
from scripted_server import chat_events, delta, event, usage

APIS = ("chat", "completions", "responses")
each_api = pytest.mark.parametrize("api", APIS)
unhurried = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def decoder_of(api: str) -> Decoder:
    """A decoder for an endpoint that speaks `api`."""
    return new_decoder(
        Endpoint("x", "openai", "ready", "http://127.0.0.1/v1", "m", None, 1, False, api=api)
    )


def cut_at(data: bytes, positions: list[int]) -> list[bytes]:
    """`data` cut at the positions, in order; some pieces may be empty."""
    edges = [0, *sorted(min(position, len(data)) for position in positions), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def results(api: str, reads: list[bytes], cut: Cut | None = None) -> dict[str, Any]:
    """All that a decoder tells of an answer that came in `reads`, but for the instants."""
    decoder = decoder_of(api)
    for data in reads:
        decoder.feed(1.0, data)
    status, error = decoder.verdict(200, cut=cut)
    names = ["finish_reason", "first_content_at_s", "server_latency_s", "text"]
    names += [f"{kind}_tokens" for kind in ("prompt", "output", "reasoning", "cached", "chunk")]
    told = {name: getattr(decoder, name) for name in names}
    shown = error and error.replace("\r", "")  # the start of a page may keep its line ends
    return {"status": status, "error": shown, "n": len(decoder.token_at_s), **told}


# --- what streams are made of --------------------------------------------------------------------

TEXTS = ["a", "data: ", "\u00e4\u2028\n", '"}\n\n', "[DONE]", "\\", ""]
COUNTS = {"prompt_tokens": 5, "completion_tokens": 2, "input_tokens": 5, "output_tokens": 2}


def text_events(api: str, text: str) -> list[bytes]:
    """The ways in which an API's servers send a piece of text."""
    if api == "responses":
        value = {"type": "response.output_text.delta", "delta": text}
        reasoning = {"type": "response.reasoning.delta", "delta": text}
        return [_named(value), _named(reasoning), event(value)]
    if api == "completions":
        choice = {"index": 0, "text": text}
        chunk = {"choices": [choice | {"finish_reason": None}]}
        return [event(chunk), event({"choices": [choice], "usage": COUNTS})]
    forms = [{"content": text}, {"role": "assistant", "content": text}, {"reasoning": text}]
    calls = [{"index": 0, "function": {"arguments": text}}]
    counted = {"choices": [{"delta": {"content": text}}], "usage": COUNTS}
    return [*(delta(**form) for form in forms), delta(tool_calls=calls), event(counted)]


def last_events(api: str) -> list[bytes]:
    """The events that end an answer well."""
    if api == "responses":
        response = {"status": "completed", "usage": COUNTS, "output": []}
        return [_named({"type": "response.completed", "response": response})]
    if api == "completions":
        return [event({"choices": [{"text": "", "finish_reason": "stop"}]}), usage(5, 2)]
    return [delta(finish_reason="stop"), usage(5, 2)]


def _named(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\n".encode() + event(value)


ODDITIES = [
    b"data: [DONE]\n\n",
    b"data: \n\n",
    b"data:\n\n",
    b": ping\n\n",
    b"\n",
    b"event: response.x\n\n",
    b"event: response.x\ndata\ndata: {}\n\n",
    b"data: {}\n\n",
    b"data: null\n\n",
    b'data: {"choices": [{}, {}]}\n\n',
    b'data: {"choices":\ndata: []}\n\n',
    b'data: {"choices":\n []}\n\n',
    b'data: {"choices": [],\r "x": 1}\n\n',
    b'data: {"usage": null, "choices": []}\n\n',
    b"id: 1\n",
]
ERRORS = [
    event({"error": {"message": "overloaded"}}),
    event({"error": "overloaded", "choices": [{"delta": {"content": "a"}, "text": "a"}]}),
    _named({"type": "error", "error": "overloaded"}),
    b"event: error\ndata: overloaded\n\n",
    event({"error": {}, "choices": [{"delta": {"content": "a"}, "text": "a"}]}),
    b"data: oops\n\n",
    b'data: {"choices": [7], "type": 7}\n\n',
]
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
CUTS = st.lists(st.integers(0, 2500), max_size=25)


def events_of(api: str) -> st.SearchStrategy[list[bytes]]:
    """Texts and oddities of an API in any order."""
    texts = [one for text in TEXTS for one in text_events(api, text)]
    return st.lists(st.sampled_from([*texts, *texts, *ODDITIES]), max_size=12)


# --- any split -----------------------------------------------------------------------------------


@each_api
@unhurried
@given(data=st.data(), positions=CUTS, line_end=LINE_ENDS)
def test_any_split_of_any_stream_gives_equal_results(
    api: str, data: st.DataObject, positions: list[int], line_end: bytes
) -> None:
    """Whole, an event a read, a byte a read, or cut anywhere: the fast paths tell the same."""
    events = data.draw(events_of(api))
    events += data.draw(st.sampled_from([[], last_events(api), ERRORS[:1]]))
    events = [one.replace(b"\n", line_end) for one in events]
    stream = b"".join(events)

    byte_by_byte = results(api, [bytes([byte]) for byte in stream])

    assert results(api, [stream]) == byte_by_byte
    assert results(api, events) == byte_by_byte
    assert results(api, cut_at(stream, positions)) == byte_by_byte


@each_api
@unhurried
@given(data=st.data(), positions=CUTS, cut=st.none() | st.just(Cut("truncated", "closed")))
def test_any_split_of_a_mutated_stream_gives_equal_results(
    api: str, data: st.DataObject, positions: list[int], cut: Cut | None
) -> None:
    """Also where bytes of it were lost, changed or added, and where it was cut short."""
    stream = bytearray(b"".join([*data.draw(events_of(api)), *last_events(api)]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(stream)))
        n_lost = data.draw(st.sampled_from([0, 1, 7]))
        new = data.draw(st.sampled_from([b"", b"\n", b"\r", b" ", b"\n\n", b'"', b"}", b"\xff"]))
        stream[place : place + n_lost] = new
    whole = bytes(stream)

    byte_by_byte = results(api, [bytes([byte]) for byte in whole], cut)

    assert results(api, [whole], cut) == byte_by_byte
    assert results(api, cut_at(whole, positions), cut) == byte_by_byte


@each_api
@unhurried
@given(data=st.data(), positions=CUTS, indent=st.none() | st.just(1))
def test_any_split_of_json_gives_equal_results(
    api: str, data: st.DataObject, positions: list[int], indent: int | None
) -> None:
    """JSON lines, one JSON, JSON with garbage behind it: equal results wherever they are cut."""
    events = [*data.draw(events_of(api)), *last_events(api)]
    bodies = [one.rpartition(b"data: ")[2].strip() for one in events]
    values = [json.dumps(json.loads(one), indent=indent) for one in bodies if one[:1] == b"{"]
    stream = "\n".join(values).encode()

    byte_by_byte = results(api, [bytes([byte]) for byte in stream])

    assert results(api, [stream]) == byte_by_byte
    assert results(api, cut_at(stream, positions)) == byte_by_byte


# --- at once, or the general way -----------------------------------------------------------------

VALUES = (None, False, 0, 1, "", "a", {}, [], {"message": "a"}, COUNTS)
FIELDS = {  # where in a chunk, and which fields may stand there
    "chunk": ("error", "usage", "type", "delta", "object", "timings"),
    "choice": ("index", "delta", "text", "finish_reason"),
    "delta": ("content", "reasoning", "refusal", "role", "tool_calls"),
}
CHANGES = [(at, name, value) for at in FIELDS for name in FIELDS[at] for value in VALUES]


def chunk_with(changes: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """A chunk of one token to any API, with fields added or changed."""
    parts: dict[str, dict[str, Any]] = {"chunk": {}, "choice": {}, "delta": {}}
    for at, name, value in changes:
        parts[at][name] = value
    choice = {"text": "a", "delta": {"content": "a"} | parts["delta"]} | parts["choice"]
    token = {"type": "response.output_text.delta", "delta": "a", "choices": [choice]}
    return token | parts["chunk"]


def told(decoder: Decoder) -> tuple[Any, ...]:
    """What one chunk told a decoder."""
    counts = decoder.prompt_tokens, decoder.output_tokens, decoder.chunk_tokens
    tokens = decoder.text, decoder.token_at_s, decoder.first_content_at_s
    return (decoder.error, decoder.finish_reason, *counts, *tokens)


@each_api
def test_what_is_read_at_once_is_what_the_general_way_reads(api: str) -> None:
    """The fast paths take no chunk otherwise, whatever one field or any two of it hold."""
    for changes in ((), *combinations(CHANGES, 1), *combinations(CHANGES, 2)):
        line = json.dumps(chunk_with(changes)).encode()
        general, single, double = (decoder_of(api) for _ in range(3))
        general.on_odd_line(1.0, line, None)
        single.feed(1.0, b"data: %b\n\n" % line)
        double.feed(1.0, b"data: %b\n\ndata: [DONE]\n\n" % line)

        assert told(single) == told(general), changes
        assert told(double) == told(general), changes


# --- anything at all -----------------------------------------------------------------------------


@each_api
@unhurried
@given(noise=st.binary(max_size=300), prefix=st.sampled_from([b"", b"data: ", b"{", b"event: "]))
def test_no_bytes_raise_or_succeed(api: str, noise: bytes, prefix: bytes) -> None:
    """Whatever a server sends, there is a verdict, and noise is no answer."""
    for reads in ([prefix + noise + b"\n\n"], [prefix, noise], [noise, prefix + noise]):
        assert results(api, reads)["status"] in ("stream_error", "truncated", "empty")


KEYS = (
    *("choices", "delta", "content", "text", "tool_calls", "function", "arguments", "message"),
    *("usage", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "finish_reason"),
    *("error", "object", "timings", "prompt_ms", "predicted_ms"),
    *("type", "response", "status", "output", "incomplete_details", "reason"),
)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text()
WORDS = st.sampled_from(["response.completed", "response.output_text.delta", "stop", "completed"])
JSON = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
)


@each_api
@unhurried
@given(value=JSON)
def test_no_json_raises_whichever_way_it_comes(api: str, value: Any) -> None:
    """Any JSON gives a verdict; as one line or as two of one event, it is the same one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    lines = b"data: %b\ndata:\n\n" % text  # a second line keeps it out of every fast path

    assert isinstance(results(api, [text])["status"], str)
    assert _shapes(results(api, [b"data: %b\n\n" % text])) == _shapes(results(api, [lines]))


def _shapes(result: dict[str, Any]) -> dict[str, Any]:
    """A result without its error's wording, which shows the bytes as they came."""
    return result | {"error": result["error"] is None}


@each_api
@pytest.mark.parametrize("depth", [200, 900, 1100, 100_000])
def test_deeply_nested_json_gives_a_verdict(api: str, depth: int) -> None:
    """Nesting exhausts neither the stack of the decoder nor that of what writes its errors."""
    nested = b"[" * depth + b"]" * depth
    for name in (b"error", b"usage", b"finish_reason", b"content", b"choices", b"response"):
        chunk = b'{"choices":[{"delta":{"content":%b},"finish_reason":%b}],"%b":%b}' % (
            (nested, nested, name, nested)
        )
        result = results(api, [b"data: %b\n\n" % chunk])
        assert result["status"] in ("stream_error", "truncated")


# --- no failure is a success ---------------------------------------------------------------------


@each_api
@unhurried
@given(data=st.data(), error=st.sampled_from(ERRORS), positions=CUTS)
def test_no_stream_with_an_error_is_a_success(
    api: str, data: st.DataObject, error: bytes, positions: list[int]
) -> None:
    """An error anywhere in an answer fails it, however good its end looks."""
    events = [*data.draw(events_of(api)), *last_events(api)]
    place = data.draw(st.integers(0, len(events)))
    stream = b"".join([*events[:place], error, *events[place:]])

    assert results(api, cut_at(stream, positions))["status"] == "stream_error"


@each_api
@unhurried
@given(data=st.data(), positions=CUTS)
def test_no_stream_without_a_finish_reason_is_a_success(
    api: str, data: st.DataObject, positions: list[int]
) -> None:
    """However much text came: where nobody said why it ended, it was cut, or it failed."""
    stream = b"".join(data.draw(events_of(api)))

    assert results(api, cut_at(stream, positions))["status"] in ("truncated", "stream_error")


def test_every_prefix_of_an_answer_is_truncated_until_its_finish_reason_came() -> None:
    """Cut at any byte, an answer is a success only where all that it was to say had come."""
    events = chat_events()
    stream = b"".join(events)
    cut = Cut("truncated", "closed")

    statuses = [results("chat", [stream[:n]], cut)["status"] for n in range(len(stream) + 1)]

    done = len(stream) - len(b"\n\n")  # the line is whole: its end completes it
    assert statuses == ["truncated"] * done + ["ok"] * (len(stream) + 1 - done)

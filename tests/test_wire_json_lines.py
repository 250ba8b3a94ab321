"""JSON lines and one JSON text over several lines: which is which, wherever they are cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmgauge.wire import JsonLinesDecoder, JsonText

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(*reads: bytes) -> tuple[list[JsonText], JsonText | None, bool]:
    """What a decoder gives for one read a second: while they come, at the end, and how many."""
    decoder = JsonLinesDecoder()
    given = [text for second, data in enumerate(reads, 1) for text in decoder.feed(second, data)]
    return given, decoder.end(), decoder.has_several


def test_each_line_has_the_instant_of_the_read_that_ended_it() -> None:
    """Also the first, which is given out only when the second begins."""
    texts, last, has_several = read(b'{"a"', b":1}\n", b"\r\n", b"{", b"}\n[2]\n", b"3")

    assert texts == [(2, b'{"a":1}'), (5, b"{}"), (5, b"[2]")]
    assert (last, has_several) == ((6, b"3"), True)


@pytest.mark.parametrize("indent", [None, 1])
def test_one_text_is_one_however_many_lines_it_has(indent: int | None) -> None:
    """Pretty-printed or not, with a line's end behind it or not, an answer is one text."""
    value = {"choices": [{"message": {"content": "a\nb"}}], "usage": {"total_tokens": 3}}
    data = json.dumps(value, indent=indent).encode()

    for body in (data, data + b"\n", data + b"\r\n\r\n", b"\n " + data):
        texts, last, has_several = read(body[:9], body[9:])
        assert (texts, has_several) == ([], False)
        assert json.loads(last.data) == value


def test_a_body_of_blanks_holds_no_text() -> None:
    """Nothing but blanks is no text, not an empty one."""
    assert read(b" \n", b"\r\n\t") == ([], None, False)


_VALUES = st.sampled_from([b"{}", b'{"a":"\xc3\xa4"}', b"[1, 2]", b'"\\n"', b"", b"  ", b"{", b"7"])
_ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n"])


@unhurried
@given(
    st.lists(st.tuples(_VALUES, _ENDS), max_size=8),
    st.booleans(),
    st.lists(st.integers(0, 60), max_size=9),
)
def test_any_split_gives_equal_texts(
    lines: list[tuple[bytes, bytes]], ended: bool, positions: list[int]
) -> None:
    """Neither the texts nor what the body is taken for depend on where the network cuts it."""
    stream = b"".join(value + end for value, end in lines)
    stream = stream if ended else stream.rstrip()
    edges = [0, *sorted(min(position, len(stream)) for position in positions), len(stream)]

    texts, last, has_several = read(*(stream[start:end] for start, end in pairwise(edges)))
    whole_texts, whole_last, whole_has_several = read(stream)

    assert [text.data for text in texts] == [text.data for text in whole_texts]
    assert (last and last.data) == (whole_last and whole_last.data)
    assert has_several == whole_has_several

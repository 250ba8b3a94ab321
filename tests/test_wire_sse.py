"""Server-sent events, as bytes: lines, fields and events, wherever the network cuts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmgauge.wire import SseDecoder

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# A stream that uses every freedom that the standard gives.
ODD_STREAM = (
    b"\xef\xbb\xbf: a comment\r\n\r\nevent: error\r\ndata:one\rdata: two\r\n\r\n"
    b"id: 7\nretry: 10\n\n"
    b'data\n\ndata:  spaced\n\nevent: lost\n\n:\ndata: {"a": "\xc3\xa4"}\r\rdata: last\n\n'
)
ODD_EVENTS = [
    (b"error", b"one\ntwo"),
    (None, b""),
    (None, b" spaced"),
    (None, b'{"a": "\xc3\xa4"}'),
    (None, b"last"),
]


def cut_at(data: bytes, positions: list[int]) -> list[bytes]:
    """`data` cut at the positions, in order; some pieces may be empty."""
    edges = [0, *sorted(min(position, len(data)) for position in positions), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


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

    pieces = cut_at(stream, positions)

    assert [one for p in pieces for one in in_pieces.feed(p)] == whole.feed(stream)


def test_event_is_given_at_its_blank_line_not_later() -> None:
    """An event that ends with a lone CR is not held back for an LF that may never come."""
    assert SseDecoder().feed(b"data: now\r\r") == [(None, b"now")]


@pytest.mark.parametrize(
    ("text", "between"),
    [
        (b"", True),
        (b"data: a\n\n", True),
        (b"data: a\r\n\r\n", True),
        (b"event: a\n\n", True),
        (b": comment\n", True),
        (b"d", False),
        (b"data: a\n", False),
        (b"event: a\n", False),
        (b"data: a\n\nd", False),
    ],
)
def test_it_knows_whether_a_part_of_an_event_is_pending(text: bytes, between: bool) -> None:
    """Between two events nothing is pending; a part of a line or of an event is."""
    decoder = SseDecoder()
    decoder.feed(text)

    assert decoder.between_events is between


def test_the_end_completes_an_event_without_its_blank_line() -> None:
    """A stream that ends right after a line has ended its event, too."""
    decoder = SseDecoder()

    assert decoder.feed(b"event: error\ndata: late") == []
    assert decoder.end() == [(b"error", b"late")]


def test_a_byte_order_mark_is_one_only_at_the_start() -> None:
    """Further on it is part of a field's name, and so is the first of a stream joined later."""
    assert SseDecoder().feed(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n") == [(None, b"a")]
    assert SseDecoder(at_start=False).feed(b"\xef\xbb\xbfdata: a\n\n") == []

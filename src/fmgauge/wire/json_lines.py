"""JSON lines, told from one JSON text over several lines. Knows lines; not what a value means.

Whether a body is one JSON text or a line for each of many can be told only when something follows
its first line. So a first line that is a whole JSON text is held back until then, with its instant.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson


class JsonText(NamedTuple):
    """The bytes of one JSON text and the instant of the read that completed them."""

    stamp_s: float
    data: bytes


class JsonLinesDecoder:
    """Cuts a body into JSON texts as its bytes arrive; they may be cut anywhere."""

    __slots__ = ("_first", "_is_one_text", "_last_read_at_s", "_pieces", "has_several")

    def __init__(self) -> None:
        self.has_several = False  # whether there is known to be more than one text
        self._is_one_text = False
        self._first: JsonText | None = None  # a first line, until it is known whether more follows
        self._pieces: list[bytes] = []  # what has come since the last line's end
        self._last_read_at_s = 0.0

    def feed(self, stamp_s: float, data: bytes) -> list[JsonText]:
        """The lines that these bytes complete, in order, where there are several."""
        self._last_read_at_s = stamp_s
        self._pieces.append(data)
        if self._is_one_text or 10 not in data:
            return self._several([])
        body = b"".join(self._pieces)
        *ended, rest = body.split(b"\n")
        lines = [JsonText(stamp_s, line) for line in ended if line.strip()]
        if lines and self._first is None and not self.has_several:
            if not is_json(lines[0].data):
                self._is_one_text, self._pieces = True, [body.lstrip()]
                return []
            self._first = lines.pop(0)
        self._pieces = [rest]
        return self._several(lines)

    def end(self) -> JsonText | None:
        """The only text, or what stands behind the last line's end; None where that is nothing."""
        last = JsonText(self._last_read_at_s, b"".join(self._pieces))
        self._pieces = []
        return self._first or (last if last.data.strip() else None)

    def _several(self, lines: list[JsonText]) -> list[JsonText]:
        """`lines`, and before them a first line that was held back until something follows it."""
        first = self._first
        if first is None:
            return lines
        if not lines and not b"".join(self._pieces).strip():
            return []
        self.has_several, self._first = True, None
        return [first, *lines]


def is_json(data: bytes) -> bool:
    """Whether `data` is one whole JSON text."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True

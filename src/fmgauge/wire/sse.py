"""Server-sent events: bytes in, events out. Knows lines and fields; not what an event's data means.

The format is the HTML standard's section 9.2.6. Bytes may be cut anywhere, inside a character too.
"""

from __future__ import annotations

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# One event: its type (None where the stream names none) and its data, lines joined by LF.
SseEvent = tuple[bytes | None, bytes]


class SseDecoder:
    """Decodes a stream of server-sent events as its bytes arrive."""

    __slots__ = ("_at_start", "_data", "_event", "_pieces", "_skip_line_feed")

    def __init__(self, *, at_start: bool = True) -> None:
        self._pieces: list[bytes] = []  # of the line that has not ended yet; none of them empty
        self._data: list[bytes] = []  # of the event that has not ended yet
        self._event: bytes | None = None
        self._skip_line_feed = False
        self._at_start = at_start

    @property
    def between_events(self) -> bool:
        """Whether nothing has come of the next event yet."""
        return not self._pieces and not self._data and self._event is None

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that these bytes complete, in order."""
        if self._skip_line_feed or 13 in data:
            data = self._with_line_feeds(data)
        if 10 not in data:
            if data:
                self._pieces.append(data)
            return []
        lines = data.split(b"\n")
        if self._pieces:
            lines[0] = b"".join((*self._pieces, lines[0]))
        rest = lines.pop()
        self._pieces = [rest] if rest else []
        return self._events(lines)

    def end(self) -> list[SseEvent]:
        """The event that the stream's end completes: one whose blank line never came."""
        last_line = b"".join(self._pieces)
        self._pieces = []
        return self._events([last_line, b""])

    def _with_line_feeds(self, data: bytes) -> bytes:
        """CR and CRLF as LF; of a CRLF that is cut in two, the LF is dropped when it comes."""
        if not data:
            return data
        if self._skip_line_feed and data.startswith(b"\n"):
            data = data[1:]
        self._skip_line_feed = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _events(self, lines: list[bytes]) -> list[SseEvent]:
        events: list[SseEvent] = []
        if self._at_start:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
            self._at_start = False
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                data = self._data
                events.append((self._event, data[0] if len(data) == 1 else b"\n".join(data)))
                self._data, self._event = [], None
            else:
                self._event = None  # an event without data is none
        return events

    def _field(self, line: bytes) -> None:
        """Take in a line that is not empty: a comment has an empty name and falls through."""
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._event = value.removeprefix(b" ")

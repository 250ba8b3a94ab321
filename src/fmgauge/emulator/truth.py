"""What a simulated server itself knows of every request. Knows instants; not who asks for them.

Instants are readings of the machine's monotonic clock, the one that `transport.RealClock` reads:
on one machine they can be compared with a client's own.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import orjson

from fmgauge.emulator.faults import Fault

KEPT = 200_000  # requests; of the oldest beyond that only the number is kept

Outcome = Literal["answered", "broken_off", "client_left"]


@dataclass(slots=True)
class RequestTruth:
    """One request as the server saw it; None where something has not happened so far."""

    request_id: str
    connection: int  # from 0, in the order of accepting
    arrived_at_s: float  # the request was there to its last byte
    in_flight_at_arrival: int  # itself included
    fault: Fault | None
    prompt_tokens: int
    output_tokens: int  # asked for
    http_status: int | None = None
    token_at_s: array[float] = field(default_factory=lambda: array("d"))  # handed to the socket
    finished_at_s: float | None = None
    outcome: Outcome | None = None

    def line(self) -> bytes:
        """Itself as one line of JSON, with the first and last of its tokens named."""
        token_at_s = list(self.token_at_s)
        values = {name: getattr(self, name) for name in self.__slots__} | {
            "token_at_s": token_at_s,
            "first_token_at_s": token_at_s[0] if token_at_s else None,
            "last_token_at_s": token_at_s[-1] if token_at_s else None,
        }
        return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)


class GroundTruth:
    """Every request since the last clearing, in the order of arrival."""

    def __init__(self, kept: int = KEPT) -> None:
        self.forgotten = 0
        self._requests: deque[RequestTruth] = deque(maxlen=kept)

    def add(self, request: RequestTruth) -> None:
        """Keep `request`, and forget the oldest where there are too many."""
        self.forgotten += len(self._requests) == self._requests.maxlen
        self._requests.append(request)

    def clear(self) -> None:
        """Forget all of them."""
        self.forgotten = 0
        self._requests.clear()

    def lines(self) -> Iterator[bytes]:
        """One line of JSON for each request."""
        return (request.line() for request in self._requests)

"""The measuring clock, which nothing outside this package reads. Knows no sockets."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What every instant is read from."""

    def now_s(self) -> float:
        """Seconds since an instant of the clock's own."""


class RealClock:
    """The machine's monotonic clock, of the highest resolution there is.

    All processes of a machine read the same one, so instants of several can be compared.
    """

    now_s = staticmethod(time.perf_counter)

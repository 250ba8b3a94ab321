"""Which request a simulated server treats badly, and how. Knows shares and a seed; no bytes."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import Final, Literal, get_args

from fmgauge.config.simulated import Faults

Fault = Literal[
    "http_error",
    "throttle",
    "error_in_stream",
    "latency_spike",
    "stall",
    "truncate",
    "close_before_headers",
    "close_after_headers",
    "close_mid_chunk",
    "reset",
    "wrong_content_type",
    "malformed_json",
    "usage_missing",
    "usage_wrong",
    "duplicate_role",
]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)


class FaultDraw:
    """Draws at most one fault for each request, in the order of the asking."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._limits = list(accumulate(getattr(faults, name) for name in FAULTS))
        self._random = random.Random(f"faults/{seed}")

    def next(self) -> Fault | None:
        """The next request's fault, or none."""
        if not self._limits[-1]:
            return None
        drawn = self._random.random()
        return next(
            (fault for fault, limit in zip(FAULTS, self._limits, strict=True) if drawn < limit),
            None,
        )

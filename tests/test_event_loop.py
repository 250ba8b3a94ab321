"""The client's measure of itself, by a clock that tells what it is told to tell."""

from __future__ import annotations

import asyncio

import pytest

from fmgauge.records import ClientUse
from fmgauge.transport import LoopMonitor, run_event_loop


class SetClock:
    """A clock that stands where it was put."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        """The instant that was set."""
        return self.at_s


async def stood_still(*, of_s: float, for_s: float) -> ClientUse:
    """What is measured of a loop whose last `for_s` of `of_s` seconds were one standstill."""
    clock = SetClock()
    monitor = LoopMonitor(clock)
    while clock.at_s < 100.0 + of_s - for_s:
        clock.at_s += 0.02
        monitor._tick()
    clock.at_s = 100.0 + of_s
    return monitor.stop()


@pytest.mark.parametrize(("for_s", "p99_s"), [(2.0, 1.92), (0.2, 0.12)])
def test_lag_of_a_standstill_counts_for_as_long_as_it_lasted(for_s: float, p99_s: float) -> None:
    """The p99 is of the time: of 8 s the worst 0.08 s are left out, however few timers ran."""

    async def measured() -> ClientUse:
        await asyncio.sleep(0)
        return await stood_still(of_s=8.0, for_s=for_s)

    assert run_event_loop(measured()).loop_lag_p99_s == pytest.approx(p99_s, abs=0.05)

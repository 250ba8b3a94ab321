"""The client's measure of itself, by a clock that tells what it is told to tell."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable

import pytest

from fmgauge.records import ClientUse
from fmgauge.transport import LoopMonitor, RealClock, Turns, run_event_loop
from fmgauge.transport.alarm import Alarm, KernelAlarm, LoopAlarm


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
    monitor = LoopMonitor(clock, Turns(asyncio.get_running_loop(), clock.now_s))
    while clock.at_s < 100.0 + of_s - for_s:
        clock.at_s += 0.001
        monitor._ring()
    clock.at_s = 100.0 + of_s
    monitor.close()
    return monitor.stop()


@pytest.mark.parametrize(("for_s", "p99_s"), [(2.0, 1.92), (0.2, 0.12)])
def test_lag_of_a_standstill_counts_for_as_long_as_it_lasted(for_s: float, p99_s: float) -> None:
    """The p99 is of the time: of 8 s the worst 0.08 s are left out, however few timers ran."""

    async def measured() -> ClientUse:
        await asyncio.sleep(0)
        return await stood_still(of_s=8.0, for_s=for_s)

    assert run_event_loop(measured()).loop_lag_p99_s == pytest.approx(p99_s, abs=0.05)


async def read_beside(clusters: int, of: int, each_s: float) -> tuple[list[float], ClientUse]:
    """How late bytes are read that come in clusters, and what the monitor says of the loop."""
    loop, clock, late_s = asyncio.get_running_loop(), RealClock(), list[float]()
    monitor = LoopMonitor(clock, Turns(loop, clock.now_s))
    pairs = [socket.socketpair() for _ in range(of)]

    def read(end: socket.socket, sent_at: list[float]) -> None:
        late_s.append(time.perf_counter() - sent_at[0])
        end.recv(1)
        time.sleep(each_s)  # what a client's work on each would take

    sent_at = [0.0]
    for ours, _ in pairs:
        loop.add_reader(ours, read, ours, sent_at)
    for _ in range(clusters):
        sent_at[0] = time.perf_counter()
        for _, theirs in pairs:
            theirs.send(b"x")
        await asyncio.sleep(2 * of * each_s)
    use = monitor.stop()
    monitor.close()
    for ours, theirs in pairs:
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
    return late_s, use


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no alarm to read")
def test_lag_is_that_of_stamps_also_where_no_single_callback_takes_long() -> None:
    """Fifty answers at once, 2 ms each, keep the last one waiting for 98 ms: so the lag says."""
    late_s, use = run_event_loop(read_beside(clusters=5, of=50, each_s=0.002))

    assert max(late_s) >= 0.098
    assert use.loop_lag_max_s >= 0.05


async def burst_within(of_s: float, stamps_s: list[float]) -> ClientUse:
    """What is measured of a loop that stood by for so long, but for one turn with those stamps."""
    clock = SetClock()
    turns = Turns(asyncio.get_running_loop(), clock.now_s)
    monitor = LoopMonitor(clock, turns)
    while clock.at_s < 100.0 + of_s:
        clock.at_s += 0.001
        monitor._ring()
    began_s = clock.at_s
    turns.begin()
    turns.stamps.extend(began_s + stamp_s for stamp_s in stamps_s)
    clock.at_s = began_s + stamps_s[-1]
    await asyncio.sleep(0)
    monitor.close()
    return monitor.stop()


def test_lag_of_a_short_burst_in_which_all_answers_come_is_that_of_its_stamps() -> None:
    """The burst takes 0.03 s of 8 s, yet every stamp is of it: the latest came 0.03 s late."""
    stamps_s = [0.0003 * n for n in range(101)]

    use = run_event_loop(burst_within(8.0, stamps_s))

    assert use.loop_lag_p99_s == pytest.approx(0.03, abs=0.003)
    assert use.loop_lag_max_s == pytest.approx(0.03, abs=0.003)


# --- alarms -------------------------------------------------------------------------------------

KINDS = [LoopAlarm] + ([KernelAlarm] if sys.platform == "linux" else [])


def rung(
    kind: type[KernelAlarm | LoopAlarm], act: Callable[[Alarm], None], *, within_s: float
) -> list[float]:
    """After how many seconds an alarm rang."""

    async def waited() -> list[float]:
        began_s, rings_s = time.perf_counter(), list[float]()
        loop = asyncio.get_running_loop()
        alarm = kind(loop, lambda: rings_s.append(time.perf_counter() - began_s))
        act(alarm)
        await asyncio.sleep(within_s)
        alarm.close()
        return rings_s

    return run_event_loop(waited())


@pytest.mark.parametrize("kind", KINDS)
def test_an_alarm_rings_once_and_not_before_it_is_due(kind: type[KernelAlarm | LoopAlarm]) -> None:
    """A timer of the loop may be early by its tick, the kernel's never."""
    (after_s,) = rung(kind, lambda alarm: alarm.set(0.05), within_s=0.5)

    assert after_s >= (0.05 if kind is KernelAlarm else 0.048)


@pytest.mark.parametrize("kind", KINDS)
def test_an_alarm_that_is_set_anew_forgets_what_was_set(
    kind: type[KernelAlarm | LoopAlarm],
) -> None:
    """One ring, at the later instant."""

    def set_twice(alarm: Alarm) -> None:
        alarm.set(0.01)
        alarm.set(0.2)

    (after_s,) = rung(kind, set_twice, within_s=0.6)

    assert after_s >= 0.19


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_alarm_never_rings(kind: type[KernelAlarm | LoopAlarm]) -> None:
    """Closing it twice is fine."""

    def set_and_close(alarm: Alarm) -> None:
        alarm.set(0.01)
        alarm.close()

    assert rung(kind, set_and_close, within_s=0.1) == []

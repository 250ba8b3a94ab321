"""Alarms that an event loop finds as it finds an answer: by asking what there is to read.

A loop's own timers come first in each of its turns, before anything is read; they show less than
half of what an arriving answer waits. Knows timers of the kernel and of the loop; not what for.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Protocol

_NANOSECONDS = 10**9
_SHORTEST_S = 1e-9  # zero would disarm
_MONOTONIC = 1  # CLOCK_MONOTONIC, which time.perf_counter reads
_TimeSpecs = ctypes.c_long * 4  # struct itimerspec where a long has 64 bits


class Alarm(Protocol):
    """Calls back once for each time that it is set; setting it anew forgets what was set."""

    def set(self, delay_s: float) -> None:
        """Ring after so many seconds."""

    def close(self) -> None:
        """Ring no more."""


def new_alarm(loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> Alarm:
    """The kernel's alarm, read like a socket, where there is one; else a timer of the loop."""
    if sys.platform == "linux" and ctypes.sizeof(ctypes.c_long) == 8:
        return KernelAlarm(loop, ring)
    return LoopAlarm(loop, ring)


class KernelAlarm:
    """A timerfd, which becomes readable when it is due. Python has it from 3.13 on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._number = self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self._checked(self._number)
        loop.add_reader(self._number, self._on_readable)

    def set(self, delay_s: float) -> None:
        """Ring after so many seconds."""
        due_ns = int(max(delay_s, _SHORTEST_S) * _NANOSECONDS)
        once = _TimeSpecs(0, 0, *divmod(due_ns, _NANOSECONDS))
        self._checked(self._libc.timerfd_settime(self._number, 0, ctypes.byref(once), None))

    def close(self) -> None:
        """Ring no more."""
        if self._number >= 0:
            self._loop.remove_reader(self._number)
            os.close(self._number)
            self._number = -1

    def _on_readable(self) -> None:
        try:
            os.read(self._number, 8)
        except BlockingIOError:  # set anew since the loop saw it
            return
        self._ring()

    @staticmethod
    def _checked(result: int) -> None:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


class LoopAlarm:
    """A timer of the loop: shows how late its turns are, not how long a turn's reading takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._timer: asyncio.TimerHandle | None = None

    def set(self, delay_s: float) -> None:
        """Ring after so many seconds."""
        self.close()
        self._timer = self._loop.call_later(delay_s, self._ring)

    def close(self) -> None:
        """Ring no more."""
        if self._timer is not None:
            self._timer.cancel()

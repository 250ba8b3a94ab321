"""Where the load runs: an event loop of its own, and how well that loop kept up.

Knows threads, timers and processor time; not sockets or requests.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, NoReturn, TypeVar

from fmgauge.records import ClientUse
from fmgauge.transport.alarm import new_alarm
from fmgauge.transport.clock import Clock
from fmgauge.transport.turns import Turns

_ALARM_EVERY_S = 0.01  # on average
_SEED = 1  # of the alarms' instants
T = TypeVar("T")


def run_event_loop(
    coroutine: Coroutine[Any, Any, T],
    *,
    meanwhile: Callable[[], None] | None = None,
    every_s: float = 0.5,
) -> T:
    """Run a coroutine on an event loop of its own, in a thread of its own, and return its result.

    The calling thread only waits, calling `meanwhile` every `every_s` seconds: so it may run a loop
    of its own (a notebook's kernel does). KeyboardInterrupt there, and an exception in a callback
    on the loop, cancel the coroutine, wait until it has cleaned up, and are raised.
    """
    loop = new_event_loop()
    broken: Future[NoReturn] = Future()
    loop.set_exception_handler(lambda _, context: _note_problem(loop, context, broken))
    thread = threading.Thread(target=_serve, args=(loop,), name="fmgauge-load", daemon=True)
    thread.start()
    try:
        answer = asyncio.run_coroutine_threadsafe(coroutine, loop)
        either: tuple[Future[Any], ...] = (answer, broken)
        while not wait(either, every_s, FIRST_COMPLETED).done:
            if meanwhile is not None:
                meanwhile()
        return broken.result() if broken.done() else answer.result()
    finally:
        asyncio.run_coroutine_threadsafe(_end_tasks(loop), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's event loop where it is installed, else asyncio's."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


class LoopMonitor:
    """Measures the client itself: how late its event loop reads, how busy its process is.

    To be made and used on the loop's own thread. Measures from `restart` to `stop`, in two ways, of
    which the worse one counts. Alarms at random instants wait to be read beside the answers; each
    is late by what an answer's stamp would have been at that instant. They are due whether the loop
    gets to them or not, so their percentile is one of the time, and a loop that stands still counts
    for as long as it does. At regular instants they would keep missing, or meeting, the bursts of a
    server that sends at regular instants. Answers that all come at once take little of the time:
    they show in the `turns` of the loop, whose percentile is one of the stamps.
    """

    def __init__(self, clock: Clock, turns: Turns) -> None:
        self._now_s = clock.now_s
        self._turns = turns
        self._random = random.Random(_SEED)
        self._alarm = new_alarm(asyncio.get_running_loop(), self._ring)
        self._lags_s: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Forget what was measured, and begin anew."""
        self._lags_s.clear()
        self._turns.restart()
        self._began_s, self._cpu_began_s = self._now_s(), time.process_time()
        self._due_s = self._began_s + self._random.expovariate(1 / _ALARM_EVERY_S)
        self._alarm.set(self._due_s - self._began_s)

    def stop(self) -> ClientUse:
        """End measuring: the processor's share, and the lags' 99th percentile and maximum."""
        now_s = self._now_s()
        self._note(now_s)  # a loop that is late now shows, too
        elapsed_s = max(now_s - self._began_s, 1e-9)
        lags_s, of_stamps = sorted(self._lags_s) or [0.0], self._turns.lag()
        return ClientUse(
            cpu_share=(time.process_time() - self._cpu_began_s) / elapsed_s,
            loop_lag_p99_s=max(lags_s[-(-99 * len(lags_s) // 100) - 1], of_stamps.p99_s),
            loop_lag_max_s=max(lags_s[-1], of_stamps.max_s),
        )

    def close(self) -> None:
        """Set no more alarms."""
        self._alarm.close()

    def _ring(self) -> None:
        now_s = self._now_s()
        self._note(now_s)
        self._alarm.set(self._due_s - now_s)

    def _note(self, now_s: float) -> None:
        """Take in every alarm that is due, and when the next one is."""
        while self._due_s <= now_s:
            self._lags_s.append(now_s - self._due_s)
            self._due_s += self._random.expovariate(1 / _ALARM_EVERY_S)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def _note_problem(
    loop: asyncio.AbstractEventLoop, context: dict[str, Any], broken: Future[NoReturn]
) -> None:
    """Let a callback's exception end the run; a socket's own error was told to its connection."""
    error = context.get("exception")
    if error is None:
        loop.default_exception_handler(context)
    elif not isinstance(error, OSError) and not broken.done():
        broken.set_exception(error)

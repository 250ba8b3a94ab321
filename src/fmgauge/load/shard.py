"""One worker's part of a stage: what every kind of load has in common.

A worker is a function of (stage, shard, seed) that gives away rows through a link; it knows
nothing of how it was started. Knows phases, prompts and when a stage is over; not what is sent
when, which is the kind of load's own.
"""

from __future__ import annotations

import asyncio
import gc
import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from fmgauge.errors import StepError
from fmgauge.load.link import Link, Shard, StageTask, Status, Summary
from fmgauge.load.sending import Sending, Target, api_key_of, timeouts_of
from fmgauge.records import Payload, Phase, Row, StageKey
from fmgauge.transport import Client, Clock, Failure, LoopMonitor
from fmgauge.wire import RequestTemplate, request_template
from fmgauge.workloads import salts_after

_STATUS_EVERY_S = 0.25
_STATUS_IN_WARMUP_EVERY_S = 0.1  # the window is to begin as soon as the load is steady


class StageShard(ABC):
    """One worker's part of one stage, from opening its connections to its last row.

    A request's phase goes by the instant at which it was due, its `intended_at_s`. Until the link
    says that the load is steady in all shards, prompts kept for that are sent ("warmup"). What is
    due in the window that follows, until the link or a count ends it, is "measured", whatever
    becomes of it. Then the load goes on with kept prompts ("drain"), so that measured requests end
    under full load, until all of warm-up and window have ended in every shard, or `drain_s` has
    passed; what is in flight then is cancelled.
    """

    def __init__(self, task: StageTask, shard: Shard, link: Link, clock: Clock) -> None:
        self.in_flight = 0
        self.held_back = 0
        self.n_unsent = 0
        self._load_settings = task.asked.load
        self._shard = shard
        self._link = link
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._target = Target(
            task.endpoint, api_key_of(task.endpoint.api_key_env), keep_text=task.keep_text
        )
        self._prompts = Prompts(task.payloads, task.key, self._target)
        self._client: Client = self._target.client(clock, timeouts_of(task.asked.load))
        self._id_prefix = uuid.uuid4().hex[:16]
        self._salt = salts_after(self._id_prefix)
        self._n_sent = 0
        self._rows: list[Row] = []
        self._counted_in_flight = 0  # of warm-up and window
        self._counted_over = asyncio.Event()
        self._stopping = False
        self._origin_s = 0.0  # instants of the clock
        self._warmup_end_s = self._window_end_s = math.inf

    # --- what a kind of load decides --------------------------------------------------------------

    @property
    @abstractmethod
    def _connections(self) -> int:
        """How many connections to open ahead."""

    @abstractmethod
    def _start(self) -> None:
        """Send what is due at once, and arrange for the rest."""

    @abstractmethod
    def _place_free(self, sending: Sending) -> None:
        """A request has ended and the stage goes on."""

    @abstractmethod
    def _begin_window(self) -> None:
        """It is known now from when on to measure: `_warmup_end_s`, which is near."""

    @abstractmethod
    def _complete_window(self) -> None:
        """The window is over: send what was due in it and waits for its timer."""

    @abstractmethod
    def _status(self) -> Status:
        """What this part is doing."""

    def _unsent(self) -> Iterator[Sending]:
        """What was due before the window's end and could never be sent, at the stage's end."""
        return iter(())

    # --- the stage's life -------------------------------------------------------------------------

    async def run(self) -> Summary:
        """Run this part of the stage; every request that was sent becomes a row."""
        monitor = LoopMonitor(self._clock, self._client.turns)
        try:
            with _no_garbage_collection():
                await self._client.open(self._connections)
                self._origin_s = await self._link.ready()
                self._tell_status()
                self._start()
                self._warmup_end_s = self._origin_s + await self._link.window_begins()
                self._at(self._warmup_end_s, monitor.restart)
                self._begin_window()
                await self._window_over()
                await self._counted_ended()
                use = monitor.stop()  # until then answers of the window were stamped
                await self._link.counted_ended()
                finished_at_s = self._clock.now_s()
                self._stopping = True
                self._cancel(lambda _: True, "the stage was over")
                self._note_unsent(finished_at_s)
        finally:
            self._stopping = True
            monitor.close()
            await self._client.close()
            self._flush()
        return Summary(
            window_end_s=self._window_end_s - self._origin_s,
            finished_at_s=finished_at_s - self._origin_s,
            client=replace(use, ran_out_of=" and ".join(sorted(self._client.ran_out_of))),
            held_back=self.held_back,
            n_unsent=self.n_unsent,
        )

    async def _window_over(self) -> None:
        """Wait for the window's end by the measuring clock: a timer may fire early."""
        while (left_s := self._end_of_window() - self._clock.now_s()) > 0:
            await asyncio.sleep(min(left_s, 0.05))  # a count or the link may end it any time
        self._complete_window()

    def _end_of_window(self) -> float:
        """The window's end as far as it is known by now; inf until then."""
        told_s = self._origin_s + self._link.window_ends_s
        self._window_end_s = min(self._window_end_s, told_s)
        return self._window_end_s

    async def _counted_ended(self) -> None:
        """Wait until nothing of warm-up and window is in flight, at most `drain_s`."""
        if not self._counted_in_flight:
            return
        limit_s = self._load_settings.drain_s
        try:
            async with asyncio.timeout(limit_s):
                await self._counted_over.wait()
        except TimeoutError:
            message = f"not ended within {limit_s:g} s after the window"
            self._cancel(lambda sending: sending.phase != "drain", message)

    def _phase_at(self, due_s: float) -> Phase:
        """The phase of a request that is due at an instant of the clock."""
        if due_s < self._warmup_end_s:
            return "warmup"
        return "measured" if due_s < self._window_end_s else "drain"

    # --- one request ------------------------------------------------------------------------------

    def _send(
        self, phase: Phase, number: int, due_s: float, held_back_at_s: float | None = None
    ) -> Sending:
        """Send a phase's prompt of that number now; it was due at `due_s`."""
        sending = self._made(phase, number, due_s, held_back_at_s)
        self.in_flight += 1
        if phase != "drain":
            self._counted_in_flight += 1
        self._client.send(sending)
        return sending

    def _made(
        self, phase: Phase, number: int, due_s: float, held_back_at_s: float | None
    ) -> Sending:
        self._n_sent += 1
        request_id = f"{self._id_prefix}-{self._n_sent}"
        payload, template = self._prompts.of(phase, number)
        salt = None if payload.salt is None else self._salt(self._n_sent)  # salt_from(request_id)
        return Sending(
            self,
            self._target,
            payload,
            template.filled(request_id, salt),
            request_id=request_id,
            phase=phase,
            intended_at_s=due_s,
            held_back_at_s=held_back_at_s,
        )

    def _note_unsent(self, now_s: float) -> None:
        """Write down as cancelled what waited for a free place until the end."""
        for sending in self._unsent():
            sending.failure = Failure("cancelled", "no place in flight became free in time")
            sending.finished_at_s = now_s
            self._rows.append(sending.row())

    def ended(self, sending: Sending) -> None:
        """Let the free place be filled first, then write down what happened."""
        self.in_flight -= 1
        if sending.phase != "drain":
            self._counted_in_flight -= 1
        if not self._counted_in_flight and self._counted_done(sending.finished_at_s):
            self._counted_over.set()
            if self._shard.count == 1:  # else the others' requests are to end under full load
                self._stopping = True
        if not self._stopping:
            self._place_free(sending)
        if not self._rows:
            self._loop.call_soon(self._flush)  # with all else that ends in this turn of the loop
        self._rows.append(sending.row())

    def _counted_done(self, at_s: float) -> bool:
        """Whether, with the last of warm-up and window ended at `at_s`, none is to come either."""
        return at_s >= self._window_end_s

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._link.emit(rows)

    def _cancel(self, chosen: Callable[[Sending], bool], message: str) -> None:
        for exchange in self._client.in_flight:
            if isinstance(exchange, Sending) and chosen(exchange):
                self._client.fail(exchange, "cancelled", message)

    # --- time -------------------------------------------------------------------------------------

    def _at(self, due_s: float, act: Callable[[], object]) -> None:
        """Call `act` at an instant of the clock, never before: a loop's timers may fire early."""
        left_s = due_s - self._clock.now_s()
        if left_s <= 0:
            self._loop.call_soon(act)  # answers that have arrived are read in between
        else:
            self._loop.call_later(left_s, self._at, due_s, act)

    def _tell_status(self) -> None:
        if not self._stopping:
            self._link.status(self._status())
            is_warm = self._warmup_end_s < math.inf
            every_s = _STATUS_EVERY_S if is_warm else _STATUS_IN_WARMUP_EVERY_S
            self._loop.call_later(every_s, self._tell_status)


class Prompts:
    """What each phase sends: measured prompts in their order, over and over; reserved ones else.

    A sending's number within its phase fixes the prompt, so that every experiment is sent the same
    measured prompts in the same order, however many warm-up requests it answered. Its salt is its
    own: two experiments may ask the same server, and so may the next run.
    """

    def __init__(self, payloads: Sequence[Payload], key: StageKey, target: Target) -> None:
        reserved = [payload for payload in payloads if payload.reserved]
        measured = [payload for payload in payloads if not payload.reserved]
        if not reserved or not measured:
            missing = "to measure" if reserved else "kept for warm-up"
            raise StepError(f"workload {key.workload} has no prompts {missing}: prepare it anew")
        self._decks = {
            "warmup": (kept := _with_templates(reserved, target)),
            "measured": _with_templates(measured, target),
            "drain": kept,
        }

    def of(self, phase: Phase, number: int) -> tuple[Payload, RequestTemplate]:
        """A phase's payload of that number, beside its request."""
        deck = self._decks[phase]
        return deck[number % len(deck)]


def _with_templates(
    payloads: Sequence[Payload], target: Target
) -> list[tuple[Payload, RequestTemplate]]:
    """Payloads beside their requests, which are prepared here so that sending costs little."""
    endpoint, api_key = target.endpoint, target.api_key
    return [(payload, request_template(endpoint, payload, api_key=api_key)) for payload in payloads]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Put off garbage collection, which stops the loop for milliseconds once records are many.

    What a request leaves behind needs none: it holds no ring of references.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

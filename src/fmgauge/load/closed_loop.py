"""Closed loop: exactly `concurrency` requests in flight, each end sending the next one at once.

Knows when a request is sent, on which prompt, and which phase it belongs to; not what an answer
looks like, nor what its latency is.
"""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fmgauge.config import PlannedStage
from fmgauge.errors import StepError
from fmgauge.load.sending import Sending, Target
from fmgauge.records import Payload, Phase, RequestRecord, StageInfo, StageKey
from fmgauge.runs import now_utc
from fmgauge.transport import Client, Clock
from fmgauge.workloads import salt_from, salted

PAUSE_AFTER_REFUSAL_S = 0.1


class ClosedLoopStage:
    """One stage under constant concurrency, from opening its connections to its last record.

    A request's phase goes by the instant at which it was due, its `intended_at_s`: when its place
    became free. Until `warmup_s` prompts kept for that are sent ("warmup"). What is due in the
    window that follows is "measured", whatever becomes of it. Then the loop goes on sending kept
    prompts ("drain"), so that measured requests end under full load. The stage ends once all that
    was due before the window's end has ended; what is in flight then is cancelled.

    There are no waves: the end of any request sends the next, within the same turn of the loop. A
    request that could not be sent at all (nobody listens) frees its place only after a pause of
    `PAUSE_AFTER_REFUSAL_S`, so that a dead endpoint is not asked thousands of times a second.
    """

    def __init__(
        self,
        planned: PlannedStage,
        target: Target,
        payloads: Sequence[Payload],
        *,
        seed: int,
        clock: Clock,
    ) -> None:
        self.requests_done = 0
        self.failed = 0
        self._planned = planned
        self._target = target
        self._prompts = _Prompts(payloads, planned.key)
        self._seed = seed
        self._clock = clock
        self._origin_s: float | None = None
        self._records: list[RequestRecord] = []
        self._in_flight: set[Sending] = set()
        self._counted_in_flight = 0  # of warm-up and window
        self._stopping = False
        self._id_prefix = uuid.uuid4().hex[:16]
        self._n_sent = 0

    @property
    def in_flight(self) -> int:
        """Requests sent, or waiting for a connection, that have not ended."""
        return len(self._in_flight)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began; 0 before."""
        return 0.0 if self._origin_s is None else self._clock.now_s() - self._origin_s

    @property
    def phase(self) -> Phase:
        """The phase of a request that would be due now."""
        return self._phase_at(self.elapsed_s)

    async def run(self) -> tuple[StageInfo, list[RequestRecord]]:
        """Run the stage; its facts, and one record for every request that was sent."""
        client = self._target.client(self._clock, timeout_s=self._planned.load.timeout_s)
        try:
            with _no_garbage_collection():
                return await self._run(client)
        finally:
            self._stopping = True
            await client.close()

    async def _run(self, client: Client) -> tuple[StageInfo, list[RequestRecord]]:
        self._client = client
        self._last_counted_ended = asyncio.Event()
        await client.open(self._planned.concurrency)
        started_at = now_utc().isoformat()
        self._origin_s = origin_s = self._clock.now_s()
        for _ in range(self._planned.concurrency):
            self._send_next(free_at_s=origin_s)
        await self._window_over()
        if self._counted_in_flight:
            await self._last_counted_ended.wait()
        finished_at_s = self.elapsed_s
        self._cancel_fillers()
        return self._info(started_at, finished_at_s), self._records

    async def _window_over(self) -> None:
        """Wait for the window's end by the measuring clock: a timer may fire early."""
        while (left_s := self._planned.planned_s - self.elapsed_s) > 0:
            await asyncio.sleep(left_s)

    def _phase_at(self, due_s: float) -> Phase:
        """The phase of a request that is due `due_s` after the stage began."""
        if due_s < self._planned.load.warmup_s:
            return "warmup"
        return "measured" if due_s < self._planned.planned_s else "drain"

    def _send_next(self, free_at_s: float) -> None:
        assert self._origin_s is not None
        phase = self._phase_at(free_at_s - self._origin_s)
        self._n_sent += 1
        request_id = f"{self._id_prefix}-{self._n_sent}"
        sending = Sending(
            self._target,
            self._prompts.next(phase, request_id),
            request_id=request_id,
            phase=phase,
            intended_at_s=free_at_s,
            on_end=self._on_end,
        )
        self._in_flight.add(sending)
        self._counted_in_flight += phase != "drain"
        self._client.send(sending.exchange)

    def _on_end(self, sending: Sending) -> None:
        """Fill the free place first, then write down what happened."""
        self._in_flight.remove(sending)
        self._counted_in_flight -= sending.phase != "drain"
        if not self._stopping:
            self._fill_place(sending)
        self._note(sending)

    def _fill_place(self, sending: Sending) -> None:
        if not self._counted_in_flight and self.phase == "drain":
            self._stopping = True
            self._last_counted_ended.set()
        elif sending.exchange.sent_at_s is None:
            loop = asyncio.get_running_loop()
            loop.call_later(PAUSE_AFTER_REFUSAL_S, self._send_after_pause)
        else:
            self._send_next(sending.exchange.finished_at_s)

    def _send_after_pause(self) -> None:
        if not self._stopping:
            self._send_next(self._clock.now_s())

    def _note(self, sending: Sending) -> None:
        assert self._origin_s is not None
        record = sending.record(self._origin_s)
        self._records.append(record)
        if record.status != "cancelled":
            self.requests_done += 1
            self.failed += record.status != "ok"

    def _cancel_fillers(self) -> None:
        self._stopping = True
        for sending in list(self._in_flight):
            self._client.fail(sending.exchange, "cancelled", "the stage was over")

    def _info(self, started_at: str, finished_at_s: float) -> StageInfo:
        key, load = self._planned.key, self._planned.load
        return StageInfo(
            experiment=key.experiment,
            workload=key.workload,
            stage=key.stage,
            kind=load.kind,
            concurrency=self._planned.concurrency,
            started_at=started_at,
            window_start_s=load.warmup_s,
            window_end_s=self._planned.planned_s,
            finished_at_s=finished_at_s,
            replication=self._target.replication,
            seed=self._seed,
        )


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


class _Prompts:
    """What each phase sends: measured prompts in their order, over and over; reserved ones else.

    A sending's number within its phase fixes the prompt, so that every experiment is sent the same
    measured prompts in the same order, however many warm-up requests it answered. Its salt is its
    own: two experiments may ask the same server, and so may the next run.
    """

    def __init__(self, payloads: Sequence[Payload], key: StageKey) -> None:
        reserved = [payload for payload in payloads if payload.reserved]
        measured = [payload for payload in payloads if not payload.reserved]
        if not reserved or not measured:
            missing = "to measure" if reserved else "kept for warm-up"
            raise StepError(f"workload {key.workload} has no prompts {missing}: prepare it anew")
        self._decks = {"warmup": reserved, "measured": measured, "drain": reserved}
        self._numbers = {"warmup": 0, "measured": 0, "drain": 0}

    def next(self, phase: Phase, request_id: str) -> Payload:
        """The next payload of a phase, salted as no other sending is."""
        number = self._numbers[phase]
        self._numbers[phase] = number + 1
        deck = self._decks[phase]
        payload = deck[number % len(deck)]
        if payload.salt is None:
            return payload
        return salted(payload, salt_from(request_id))

"""Stages run in this process, without workers: what tests of the load have in common."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fmgauge.config import PlannedStage
from fmgauge.load.link import Shard, StageTask, Status, Summary
from fmgauge.load.worker import run_shard
from fmgauge.records import Endpoint, Payload, RequestRecord, Row, record_of
from fmgauge.transport import Clock, RealClock, run_event_loop
from fmgauge.workloads import salt_from

SALT = salt_from("as prepared")


def payloads(measured: int = 4, reserved: int = 2) -> list[Payload]:
    """Salted prompts, of which some are kept for warm-up."""
    names = [f"measured-{n}" for n in range(measured)] + [f"reserved-{n}" for n in range(reserved)]
    return [
        Payload(name, f"{SALT} {name}", None, 7, 16, salt=SALT, reserved=name.startswith("r"))
        for name in names
    ]


def endpoint(experiment: str, base_url: str, **changes: Any) -> Endpoint:
    """A ready endpoint."""
    return Endpoint(experiment, "openai", "ready", base_url, "tiny", None, 1, False, **changes)


class ClockOfLateTimers:
    """Runs twice as fast as the loop's timers: each is late by as long as it waits."""

    def now_s(self) -> float:
        """Half-seconds of the machine's clock."""
        return 2 * time.perf_counter()


@dataclass
class LocalLink:
    """The link of parts of a stage that all run on one loop of this process."""

    planned: PlannedStage
    n_parts: int = 1
    clock: Clock = field(default_factory=RealClock)
    rows: list[Row] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    origin_s: float = 0.0
    n_ready: int = 0
    n_ended: int = 0

    def __post_init__(self) -> None:
        load = self.planned.load
        self.window_ends_s = load.warmup_s + (load.duration_s or math.inf)
        self.all_ready, self.all_ended = asyncio.Event(), asyncio.Event()

    async def ready(self) -> float:
        """Wait for the others; the start is when the last of them is ready."""
        self.n_ready += 1
        if self.n_ready == self.n_parts:
            self.origin_s = self.clock.now_s()
            self.all_ready.set()
        await self.all_ready.wait()
        return self.origin_s

    async def window_begins(self) -> float:
        """Measure just as asked for, steady or not."""
        return self.planned.load.warmup_s

    def emit(self, rows: list[Row]) -> None:
        """Keep rows."""
        self.rows += rows

    def status(self, status: Status) -> None:
        """Keep what was told."""
        self.statuses.append(status)

    async def counted_ended(self) -> None:
        """Wait for the others."""
        self.n_ended += 1
        if self.n_ended == self.n_parts:
            self.all_ended.set()
        await self.all_ended.wait()


@dataclass(frozen=True)
class Outcome:
    """What a stage left: each part's summary, and all records in the order of their ends."""

    planned: PlannedStage
    parts: tuple[Summary, ...]
    records: list[RequestRecord]
    origin_s: float  # the stage's start on the measuring clock

    @property
    def measured(self) -> list[RequestRecord]:
        """The records of the window."""
        return [record for record in self.records if record.phase == "measured"]

    @property
    def window_s(self) -> tuple[float, float]:
        """Where the window began and ended."""
        return self.planned.load.warmup_s, max(part.window_end_s for part in self.parts)

    @property
    def finished_at_s(self) -> float:
        """When the last part was over."""
        return max(part.finished_at_s for part in self.parts)


def run_stage(
    planned: PlannedStage,
    at: Endpoint,
    *,
    prompts: Sequence[Payload] | None = None,
    parts: int = 1,
    seed: int = 7,
    clock: Clock | None = None,
) -> Outcome:
    """Run a stage in `parts` parts side by side, by `clock` or the real one."""
    task = StageTask.of(planned, at, payloads() if prompts is None else prompts, seed)
    return run_event_loop(_run(planned, task, parts, clock or RealClock()))


async def _run(planned: PlannedStage, task: StageTask, parts: int, clock: Clock) -> Outcome:
    link = LocalLink(planned, parts, clock)
    shards = [run_shard(task, Shard(n, parts), link, clock) for n in range(parts)]
    summaries = await asyncio.gather(*shards)
    records = [record_of(row, key=task.key, origin_s=link.origin_s) for row in link.rows]
    return Outcome(planned, tuple(summaries), records, link.origin_s)

"""Worker processes: an exact split, one common start, and what is left when one dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest

from fmgauge.config import PlannedStage
from fmgauge.config.model import (
    ClosedLoop,
    Experiment,
    Model,
    OpenaiEndpoint,
    OpenLoop,
    PythonDocsSource,
)
from fmgauge.config.model import Workload as WorkloadConfig
from fmgauge.load.link import Shard, StageTask, Summary, rows_of
from fmgauge.load.workers import WorkerDied, Workers, shards_of
from fmgauge.records import ROW_FIELDS, Row
from fmgauge.transport import RealClock
from scripted_server import Peer, Request, ScriptedServer, answer
from stage_runs import endpoint, payloads

ID, PHASE, INTENDED, STATUS = map(
    ROW_FIELDS.index, ("request_id", "phase", "intended_at_s", "status")
)


def planned(base_url: str, concurrency: int = 4, **load: Any) -> PlannedStage:
    """A closed-loop stage."""
    settings = {"warmup_s": 0.1, "duration_s": 0.5, "ramp_up_s": 0.0} | load
    loop = ClosedLoop(kind="closed_loop", concurrency=(concurrency,), **settings)
    experiment = Experiment(
        name="one",
        model=Model(name="tiny"),
        endpoint=OpenaiEndpoint(kind="openai", base_url=base_url),
        workloads=("short",),
        load=(loop,),
    )
    workload = WorkloadConfig(name="short", source=PythonDocsSource(kind="python_docs"))
    return PlannedStage(loop, concurrency, experiment, workload)


def task(base_url: str, **load: Any) -> StageTask:
    """A closed-loop stage as workers are told of it."""
    return StageTask.of(planned(base_url, **load), endpoint("one", base_url), payloads(), 7)


class Kept:
    """What the workers of a stage gave, by worker."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.workers: list[int] = []
        self.origins: set[float] = set()

    def take(self, frames: Sequence[bytes], *, worker: int, origin_s: float) -> None:
        """Keep rows."""
        rows = [row for frame in frames for row in rows_of(frame)]
        self.rows += rows
        self.workers += [worker] * len(rows)
        self.origins.add(origin_s)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Workers]:
    """Two workers that run the stages of this module one after the other."""
    with Workers(2, RealClock()) as workers:
        yield workers


def test_shares_add_up_to_the_whole() -> None:
    """However it is split, the parts' places are exactly the stage's."""
    splits = [[Shard(n, count).share(10) for n in range(count)] for count in range(1, 8)]

    assert [sum(split) for split in splits] == [10] * 7
    assert all(max(split) - min(split) <= 1 for split in splits)


@pytest.mark.whole
def test_concurrency_is_exact_over_two_workers(two_workers: Workers) -> None:
    """Under heavy-tailed service times the server counts the asked concurrency, never more."""
    rng = random.Random(7)

    async def script(request: Request, peer: Peer) -> None:
        await asyncio.sleep(min(rng.lognormvariate(-6.0, 1.5), 0.2))
        await answer(request, peer)

    kept = Kept()
    with ScriptedServer(script) as server:
        two_workers.run(task(server.base_url, concurrency=5), 2, kept.take)

    assert max(server.in_flight_at_arrival) == 5
    assert set(kept.workers) == {0, 1}


def test_every_request_becomes_one_row(two_workers: Workers) -> None:
    """The ids in the rows are the ids that the server saw, each once."""
    kept = Kept()
    with ScriptedServer(answer) as server:
        two_workers.run(task(server.base_url), 2, kept.take)

    seen = Counter(request.headers["x-request-id"] for request in server.requests)
    assert Counter(row[ID] for row in kept.rows) == seen
    assert set(seen.values()) == {1}


def test_workers_begin_at_one_instant(two_workers: Workers) -> None:
    """Without a ramp-up every place of every worker is due at the same instant: the start."""
    kept = Kept()
    with ScriptedServer(answer) as server:
        two_workers.run(task(server.base_url), 2, kept.take)

    (origin_s,) = kept.origins
    first = sorted(row[INTENDED] for row in kept.rows)[:4]
    assert first == [origin_s] * 4


def test_count_is_shared_exactly(two_workers: Workers) -> None:
    """A stage that ends by count measures exactly so many requests, over all workers."""
    kept = Kept()
    with ScriptedServer(answer) as server:
        stage = task(server.base_url, duration_s=None, requests=25)
        summaries = two_workers.run(stage, 2, kept.take)

    assert sum(row[PHASE] == "measured" for row in kept.rows) == 25
    assert all(isinstance(part, Summary) for part in summaries)


def test_workers_report_what_they_cost(two_workers: Workers) -> None:
    """Each part tells its processor share and its loop's lag, so that a slow client shows."""
    with ScriptedServer(answer) as server:
        summaries = two_workers.run(task(server.base_url), 2, Kept().take)

    for part in summaries:
        assert 0 < part.client.cpu_share <= 1.5
        assert 0 <= part.client.loop_lag_p99_s <= part.client.loop_lag_max_s


def test_killed_worker_fails_the_stage_and_loses_no_finished_record() -> None:
    """The reason names the signal; what the server had answered long before is in the rows."""
    answered: list[str] = []
    kept = Kept()

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 300:
            os.kill(workers.pids[1], signal.SIGKILL)
        await answer(request, peer)
        answered.append(request.headers["x-request-id"])

    with ScriptedServer(script) as server, Workers(2, RealClock()) as workers:
        stage = task(server.base_url, duration_s=60.0)
        with pytest.raises(WorkerDied, match=r"worker 2 of 2 was killed by SIGKILL"):
            workers.run(stage, 2, kept.take)

    rows = {row[ID] for row in kept.rows}
    assert set(answered[:280]) <= rows  # of the last few the answer may still have been on its way


# Workers speak every second; a laden machine may hold one up for as long, yet not for three.
SILENT_S = 3.0


@pytest.mark.whole  # four seconds of waiting
def test_worker_that_stops_for_ever_fails_the_stage_and_loses_no_finished_record() -> None:
    """One that is alive and says nothing is as good as dead; it is ended like the others."""
    answered: list[str] = []
    kept = Kept()

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 300:
            os.kill(workers.pids[1], signal.SIGSTOP)
        await answer(request, peer)
        answered.append(request.headers["x-request-id"])

    crew = Workers(2, RealClock(), most_silent_s=SILENT_S)
    with ScriptedServer(script) as server, crew as workers:
        stage = task(server.base_url, duration_s=60.0)
        with pytest.raises(WorkerDied, match="worker 2 of 2 has said nothing for 3 s"):
            workers.run(stage, 2, kept.take)

    rows = {row[ID] for row in kept.rows}
    assert set(answered[:280]) <= rows
    assert [psutil.pid_exists(pid) for pid in workers.pids] == [False, False]


def test_worker_that_stopped_before_the_stage_is_noticed() -> None:
    """Also one that does not take what it is told, which is more than a socket holds."""
    many = [replace(one, prompt="word " * 1000) for one in payloads(measured=2000)]
    with Workers(1, RealClock(), most_preparing_s=1.0) as workers:
        os.kill(workers.pids[0], signal.SIGSTOP)
        stage = replace(task("http://127.0.0.1:1/v1"), payloads=many)

        with pytest.raises(WorkerDied, match="worker 1 of 1 has said nothing for 1 s"):
            workers.run(stage, 1, Kept().take)


@contextmanager
def full_queue() -> Iterator[str]:
    """The base URL of a server that accepts nobody, its queue of new connections full."""
    with ExitStack() as held:
        listening = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listening.getsockname()[1]
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield f"http://127.0.0.1:{port}/v1"


@pytest.mark.whole  # five seconds of waiting
def test_no_worker_is_taken_for_dead_where_connections_take_long() -> None:
    """Opening them takes longer than a worker may be silent: it is the server that is slow."""
    kept = Kept()
    with full_queue() as base_url, Workers(1, RealClock(), most_silent_s=SILENT_S) as workers:
        slow = {"connect_timeout_s": SILENT_S + 1.5, "warmup_s": 0.0, "drain_s": 0.1}
        workers.run(task(base_url, concurrency=1, duration_s=0.1, **slow), 1, kept.take)

    assert [row[STATUS] for row in kept.rows] == ["cancelled"]


class ClockThatJumps(RealClock):
    """A clock that is ahead by a minute from each time that it is told to."""

    ahead_s = 0.0

    def now_s(self) -> float:
        """The machine's clock, and all jumps."""
        return RealClock.now_s() + self.ahead_s

    def jump(self, elapsed_s: float | None) -> None:
        """Go on by a minute at once, if the window has begun and its end is known."""
        self.ahead_s += 60.0 * (elapsed_s is not None and elapsed_s > 0.7)


def test_no_worker_is_taken_for_dead_where_the_machine_slept() -> None:
    """A minute in which nobody looked is no silence: all may have been stopped together."""
    clock = ClockThatJumps()
    with ScriptedServer(answer) as server, Workers(1, clock, most_silent_s=30.0) as workers:
        (summary,) = workers.run(
            task(server.base_url, duration_s=1.0), 1, Kept().take, meanwhile=clock.jump, every_s=0.1
        )

    assert clock.ahead_s >= 120.0
    assert summary.finished_at_s < 60.0


def test_worker_that_fails_tells_why() -> None:
    """An error in a worker's program ends the stage with that error's own words."""
    with Workers(1, RealClock()) as workers:
        stage = StageTask.of(
            planned("http://127.0.0.1:1/v1"), endpoint("one", "http://127.0.0.1:1/v1"), [], 7
        )
        with pytest.raises(WorkerDied, match="has no prompts kept for warm-up"):
            workers.run(stage, 1, Kept().take)


def test_closed_workers_are_gone() -> None:
    """Leaving the block ends the processes, whatever they were doing."""
    with Workers(2, RealClock()) as workers:
        pids = workers.pids

    assert [psutil.pid_exists(pid) for pid in pids] == [False, False]


@pytest.mark.parametrize(
    ("concurrency", "workers", "shards"), [(1, 4, 1), (3, 4, 3), (64, 4, 4), (64, 1, 1)]
)
def test_stage_is_split_over_no_more_workers_than_places(
    concurrency: int, workers: int, shards: int
) -> None:
    """A worker without a place would be idle."""
    assert shards_of(planned("http://127.0.0.1:1/v1", concurrency), workers) == shards


def test_stage_with_a_limit_in_flight_has_one_worker() -> None:
    """The limit is one queue: two would each wait while the other has places free."""
    closed = planned("http://127.0.0.1:1/v1")
    load = OpenLoop(kind="open_loop", request_rate=(5000.0,), max_in_flight=64)
    capped = replace(closed, load=load, level=5000.0)

    assert (shards_of(capped, 4), shards_of(capped, None)) == (1, 1)

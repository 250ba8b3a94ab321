"""Worker processes of this machine: started once, given one stage after the other, watched.

Knows how workers are started, begin together and may die; not what they do in a stage.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from fmgauge.config import PlannedStage
from fmgauge.errors import StepError
from fmgauge.load.link import (
    Alive,
    Begin,
    CountedEnded,
    FrameReader,
    Ready,
    Run,
    Shard,
    StageTask,
    Status,
    Stop,
    Summary,
    message_frame,
)
from fmgauge.load.steering import Steering
from fmgauge.transport import Clock

BEGIN_AFTER_S = 0.02  # from the last worker's word that it is ready to the common start
MOST_SILENT_S = 30.0  # its loop speaks every second, and no load holds one up for half a minute
MOST_PREPARING_S = 120.0  # before the first word of a stage: imports, and every request made ready
_MOST_COUNTED_S = 1.0  # of the gap between two looks: a longer one is this process's own silence
_BREATH_S = 0.005  # frames are left to gather for so long: each look costs processor time
_END_WITHIN_S = 5.0
_SOCKET_BYTES = 4 * 2**20
_REASON_LINES = 6
# What one worker does easily, by docs/performance.md.
_PLACES_PER_WORKER = 256
_RATE_PER_WORKER = 500


class WorkerDied(StepError):
    """A worker ended, or fell silent, before its part of a stage was done."""


class EndpointEnded(StepError):
    """The endpoint that a stage loads has ended, so that there is nothing left to measure."""


@dataclass
class Worker:
    """One worker process, its socket, and where it is in the stage."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    reader: FrameReader
    said: IO[bytes]  # what it wrote to standard error
    index: int = 0
    state: type = Run
    status: Status = field(default_factory=lambda: Status("warmup", 0))
    summary: Summary | None = None
    silent_s: float = 0.0  # for how long nothing has come of it
    most_silent_s: float = MOST_PREPARING_S

    @classmethod
    def start(cls) -> Worker:
        """A new process, listening."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_MOST_COUNTED_S)
        said = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fmgauge.load.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=said,
            )
        return cls(process, ours, FrameReader(ours), said)

    def tell(self, message: Any) -> None:
        """Send a message; one that is gone, or takes nothing, shows when it is listened to."""
        left = memoryview(message_frame(message))
        while left and not self.is_silent and not self.reader.ended:
            try:
                left = left[self.connection.send(left) :]
            except TimeoutError:
                self.silent_s += _MOST_COUNTED_S
            except ConnectionError:
                self.reader.ended = True

    @property
    def is_silent(self) -> bool:
        """Whether it has said nothing for too long. With its part summed up, it has nothing to."""
        return self.summary is None and self.silent_s >= self.most_silent_s

    def has_word(self) -> bool:
        """Whether there is something to read, or the end, within a few seconds."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            return bool(selector.select(_END_WITHIN_S))

    def close(self) -> None:
        """End the process if it has not ended."""
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # it ends when its system call does
            self.process.wait(_END_WITHIN_S)
        self.said.close()

    def how_it_ended(self) -> str:
        """How the process ended, in words."""
        try:
            code = self.process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            return "closed its connection and did not end"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def last_words(self) -> str:
        """The last lines that it wrote to standard error."""
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-_REASON_LINES:])


class OnRows(Protocol):
    """Who takes the rows of a stage."""

    def __call__(self, frames: Sequence[bytes], *, worker: int, origin_s: float) -> object:
        """Take frames for `rows_of` of one worker; their instants count from `origin_s`."""


class Workers:
    """The workers of a run: as many processes as the largest of its stages can use.

    A worker of which nothing came for `most_silent_s`, or before its first word of a stage for
    `most_preparing_s`, has stopped for ever, and is as good as dead. How slow a server is has no
    part in that. Only time in which this process was looking counts.
    """

    def __init__(
        self,
        count: int,
        clock: Clock,
        *,
        most_silent_s: float = MOST_SILENT_S,
        most_preparing_s: float = MOST_PREPARING_S,
    ) -> None:
        self._clock = clock
        self._most_silent_s, self._most_preparing_s = most_silent_s, most_preparing_s
        self._workers = [Worker.start() for _ in range(count)]
        self._active: list[Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    @property
    def statuses(self) -> tuple[Status, ...]:
        """What the workers of the running stage last said that they do."""
        return tuple(worker.status for worker in self._active)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' ids."""
        return tuple(worker.process.pid for worker in self._workers)

    def run(
        self,
        task: StageTask,
        shards: int,
        on_rows: OnRows,
        *,
        steering: Steering | None = None,
        meanwhile: Callable[[float | None], None] = lambda _: None,
        ended: Callable[[], str | None] = lambda: None,
        every_s: float = 0.5,
    ) -> tuple[Summary, ...]:
        """Run a stage split over the first `shards` workers; the summary of each.

        `on_rows` gets the rows as they come. `steering` decides when to measure; without one, as
        the load asks once it is steady.
        `meanwhile(elapsed_s)` is called now and then, with None before the start. Raises WorkerDied
        as soon as a worker is gone or has been silent for too long, and EndpointEnded once `ended`,
        which is asked as often, gives a reason; after the last rows of all were given on. Workers
        that were ended are replaced.
        """
        self._replace_ended()
        self._active = self._workers[:shards]
        self._on_rows, self._origin_s = on_rows, 0.0
        self._steering = steering or Steering(task.asked, needed=0)
        self._ended_s, self._reports = bytearray(), set[int]()
        self._has_news, self._is_steered = False, True
        self._meanwhile, self._endpoint_ended, self._every_s = meanwhile, ended, every_s
        self._shown_s = self._looked_s = self._clock.now_s()
        for index, worker in enumerate(self._active):
            worker.index, worker.state, worker.summary = index, Run, None
            worker.status = Status("warmup", 0)
            worker.silent_s, worker.most_silent_s = 0.0, self._most_preparing_s
            worker.tell(Run(task, Shard(index, shards)))
        self._until(Ready)
        self._origin_s = self._clock.now_s() + BEGIN_AFTER_S
        self._tell(Begin(self._origin_s))
        self._until(CountedEnded)
        self._is_steered = False
        self._tell(Stop())
        self._until(Summary)
        return tuple(worker.summary for worker in self._active if worker.summary is not None)

    def _replace_ended(self) -> None:
        """Start a worker for each that an earlier stage's end took with it."""
        for index, worker in enumerate(self._workers):
            if worker.reader.ended:
                worker.close()
                self._workers[index] = Worker.start()

    def _tell(self, message: Any) -> None:
        for worker in self._active:
            worker.tell(message)

    def _until(self, state: type) -> None:
        """Take what comes until every worker of the stage has said so much."""
        with selectors.DefaultSelector() as selector:
            for worker in self._active:
                selector.register(worker.connection, selectors.EVENT_READ, worker)
            while any(worker.state is not state for worker in self._active):
                ready = selector.select(self._every_s)
                self._count_silence()
                for key, _ in ready:
                    self._listen(key.data)
                self._refuse_silence()
                self._steer()
                self._show()
                time.sleep(_BREATH_S)

    def _count_silence(self) -> None:
        """Add the time since the last look to every worker's silence, before it is broken.

        No more than a second: where this process was stopped or the machine slept, the workers may
        have been, too, and need a moment to speak again.
        """
        now_s = self._clock.now_s()
        gap_s, self._looked_s = min(now_s - self._looked_s, _MOST_COUNTED_S), now_s
        for worker in self._active:
            worker.silent_s += gap_s

    def _refuse_silence(self) -> None:
        for worker in self._active:
            if worker.is_silent:
                silence = f"has said nothing for {worker.most_silent_s:g} s"
                raise WorkerDied(self._obituary(worker, silence))

    def _listen(self, worker: Worker) -> None:
        self._take_all(worker)
        if worker.reader.ended:
            raise WorkerDied(self._obituary(worker))

    def _take_all(self, worker: Worker) -> None:
        """Take what is there of a worker; its rows together, since handing on has its price."""
        messages = worker.reader.read()
        worker.silent_s, worker.most_silent_s = 0.0, self._most_silent_s
        frames = [message for message in messages if isinstance(message, bytes)]
        if frames:
            self._on_rows(frames, worker=worker.index, origin_s=self._origin_s)
        for message in messages:
            if not isinstance(message, bytes):
                self._take(worker, message)

    def _take(self, worker: Worker, message: Any) -> None:
        if isinstance(message, Status):
            worker.status, self._has_news = message, True
            self._reports.add(worker.index)
            self._ended_s += message.ended_s
        elif not isinstance(message, Alive):
            worker.state = type(message)
            worker.summary = message if isinstance(message, Summary) else None

    def _steer(self) -> None:
        """Decide by what was reported since the last look, and tell all workers at once."""
        if not (self._is_steered and self._has_news) or len(self._reports) < len(self._active):
            return
        elapsed_s = self._clock.now_s() - self._origin_s
        decided = self._steering.look(elapsed_s, self.statuses, bytes(self._ended_s))
        self._has_news = False
        self._ended_s.clear()
        if decided is not None:
            self._tell(decided)

    def _show(self) -> None:
        now_s = self._clock.now_s()
        if now_s - self._shown_s >= self._every_s:
            self._shown_s = now_s
            self._meanwhile(now_s - self._origin_s if self._origin_s else None)
            if reason := self._endpoint_ended():
                self._end_active(self._active)
                raise EndpointEnded(reason)

    def _obituary(self, dead: Worker, silence: str = "") -> str:
        """Why a worker is gone; all are ended, and the rows that they had finished taken first."""
        self._end_active([one for one in self._active if one is not dead or silence])
        how = silence or dead.how_it_ended()
        told = dead.last_words()
        return f"worker {dead.index + 1} of {len(self._active)} {how}{told and f': {told}'}"

    def _end_active(self, running: Sequence[Worker]) -> None:
        """End what runs of the stage's workers, and take the rows that all of them had finished."""
        for worker in running:
            worker.process.kill()
        for worker in self._active:
            while not worker.reader.ended and worker.has_word():
                self._take_all(worker)


def shards_of(planned: PlannedStage, workers: int | None) -> int:
    """Over how many workers a stage is split: `workers`, but never more than have a request each.

    Where the config names no number: one for each core but one, and no more than the load needs,
    for the rest would only disturb a server on the same machine.
    """
    if getattr(planned.load, "max_in_flight", None) is not None:
        return 1  # a queue for each part would wait while another part has places free
    places = planned.concurrency or math.inf
    if workers is not None:
        return int(min(workers, places))
    per_worker = _RATE_PER_WORKER if planned.concurrency is None else _PLACES_PER_WORKER
    return int(min(spare_cores(), places, math.ceil(planned.level / per_worker)))


def spare_cores() -> int:
    """The cores that this process may use, but one; at least 1."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return max(cores - 1, 1)

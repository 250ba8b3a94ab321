"""The timing model in virtual time: whole stages computed in this process, without waiting.

Knows when jobs arrive, from given instants or because others ended, and feeds them to the same
object that the simulated server drives in real time. Knows no clock, no bytes and no metrics.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import islice
from math import inf
from typing import NamedTuple

from fmgauge.config.simulated import BatchingProfile
from fmgauge.emulator.batching import Batching, Job, Step


class Outcome(NamedTuple):
    """What became of one job; instants in seconds of virtual time."""

    job: Job
    arrived_s: float
    started_s: float | None  # when its prompt began to be computed; None where it was refused
    token_at_s: array[float]  # one instant per output token; empty where it was refused

    @property
    def refused(self) -> bool:
        """Whether the queue was full when it arrived."""
        return self.started_s is None

    @property
    def first_token_s(self) -> float | None:
        """When its first token was there."""
        return self.token_at_s[0] if self.token_at_s else None

    @property
    def finished_s(self) -> float | None:
        """When its last token was there."""
        return self.token_at_s[-1] if self.token_at_s else None


def open_loop(
    profile: BatchingProfile, arrivals: Iterable[tuple[float, Job]], *, seed: int
) -> list[Outcome]:
    """Serve jobs that arrive at given instants, whatever became of those before them.

    `arrivals` are (instant in seconds, job), in order of time: ValueError where they are not.
    The outcomes are in the same order, all of them finished or refused.
    """
    served = _Served(profile, seed)
    for at_s, job in arrivals:
        served.run_to(at_s)
        served.submit(job, at_s)
    served.run_to(inf)
    return served.outcomes


def closed_loop(
    profile: BatchingProfile,
    jobs: Iterable[Job],
    *,
    concurrency: int,
    seed: int,
    until_s: float = inf,
) -> list[Outcome]:
    """Serve jobs of users who ask again at the instant of their answer's last token.

    `concurrency` users begin at 0; none asks at `until_s` or later, and `jobs` may be endless
    where that is given. A user who was refused asks again when the step in progress has ended.
    The outcomes are in the order of asking, all of them finished or refused.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is at least 1: {concurrency}")
    served, unasked, now_s = _Served(profile, seed), iter(jobs), 0.0
    while True:
        if now_s < until_s and (idle := concurrency - served.in_flight):
            for job in islice(unasked, idle):
                served.submit(job, now_s)
        if served.batching.next_step_ends_s is None:
            return served.outcomes
        now_s = served.end_step().ended_s


class _Served:
    """Batching, and what it did to each job."""

    def __init__(self, profile: BatchingProfile, seed: int) -> None:
        self.batching = Batching(profile, seed=seed)
        self.outcomes: list[Outcome] = []
        self._places: dict[str, int] = {}  # where an unfinished job stands among the outcomes
        self._step_ends_s = array("d")  # step n ended at [n - 1]

    @property
    def in_flight(self) -> int:
        return len(self._places)

    def submit(self, job: Job, at_s: float) -> None:
        if self.batching.submit(job, at_s):
            self._places[job.name] = len(self.outcomes)
        self.outcomes.append(Outcome(job, at_s, None, array("d")))

    def run_to(self, at_s: float) -> None:
        while (ends_s := self.batching.next_step_ends_s) is not None and ends_s <= at_s:
            self.end_step()

    def end_step(self) -> Step:
        step = self.batching.end_step()
        self._step_ends_s.append(step.ended_s)
        for sequence in step.finished:
            place = self._places.pop(sequence.job.name)
            # A sequence gets a token at the end of every step from its first to its last.
            token_at_s = self._step_ends_s[sequence.first_step - 1 : sequence.last_step]
            arrived_s = self.outcomes[place].arrived_s
            outcome = Outcome(sequence.job, arrived_s, sequence.started_s, token_at_s)
            self.outcomes[place] = outcome
        return step

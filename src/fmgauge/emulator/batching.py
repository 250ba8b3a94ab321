"""Continuous batching as a timing model: when each token of each request would be there.

Knows a profile's arithmetic, the queue, the slots, the KV cache and its own seeded noise. Knows no
clock, no sockets and no event loop: instants are handed in and computed from, so that a live
server and a simulation in virtual time drive the same object and get the same answers.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from random import Random
from typing import NamedTuple

from fmgauge.config.simulated import BatchingProfile


class Job(NamedTuple):
    """One request: how much is read, and how much is written unless it is cancelled."""

    name: str
    prompt_tokens: int
    output_tokens: int


class Token(NamedTuple):
    """One output token: when it was there, whose it is, and which one, counted from 1."""

    at_s: float
    name: str
    number: int
    last: bool


class Sequence:
    """A job that holds a slot. Steps are counted from 1; its tokens come one a step, no gap."""

    __slots__ = ("first_step", "job", "last_step", "started_s", "unread")

    def __init__(self, job: Job, started_s: float) -> None:
        self.job = job
        self.started_s = started_s  # when the first step began that holds some of its prompt
        self.unread = job.prompt_tokens  # prompt tokens in no step yet
        self.first_step = 0  # the step whose end brings token 1; 0 until that step has ended
        self.last_step = 0  # the step whose end brings the last token


class Step(NamedTuple):
    """A step that has ended: who got a token at its end, and for whom it was the last one."""

    number: int
    began_s: float
    ended_s: float
    sequences: list[Sequence]
    finished: list[Sequence]

    def tokens(self) -> list[Token]:
        """What its end brought, in the order in which the jobs were admitted."""
        number, at_s = self.number, self.ended_s
        return [
            Token(at_s, s.job.name, number - s.first_step + 1, number == s.last_step)
            for s in self.sequences
        ]


class Batching:
    """A server with continuous batching, as a pure function of what it is asked, and of a seed.

    Steps follow one another while there is work; one that finds none begins with the next job.
    What a step holds is settled as it begins: a token of every decoding sequence, then prompts in
    the order of arrival, in chunks where the token budget cuts them. A job that arrives during a
    step, or at the very instant at which it begins, waits for the next. At a step's end every
    decoding sequence gets a token, and so does one whose prompt is complete: its first.

    A job leaves the queue, first in, first out, when a slot is free, the budget has a token left,
    and the KV cache has room for its prompt and all of its output. The room is reserved until it
    ends, so nothing is ever preempted. A job that is at the head and does not fit holds up the
    others.

    Instants are sums of the durations of steps from the arrival that began them; the instants at
    which `advance` is called leave no trace. They must not go back: ValueError.
    """

    def __init__(self, profile: BatchingProfile, *, seed: int) -> None:
        self.profile = profile
        self.steps = 0  # steps that have ended
        self.tokens = 0  # tokens that they brought
        self.kv_reserved = 0  # tokens for which the KV cache keeps room
        self.kv_held = 0  # tokens in the KV cache at the end of the step in progress
        self._noise = Random(seed)
        self._waiting: OrderedDict[str, Job] = OrderedDict()
        self._prefilling: dict[str, Sequence] = {}  # at most one of them beyond this step
        self._decoding: dict[str, Sequence] = {}
        self._ending: defaultdict[int, list[Sequence]] = defaultdict(list)  # by their last step
        self._began_s = self._ends_s = 0.0
        self._busy = False  # a step is in progress
        self._untold: deque[Step] = deque()  # ended, and not yet returned to anybody
        self._now_s = float("-inf")

    @property
    def running(self) -> int:
        """Jobs that hold a slot."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Jobs in the queue, those that the next step will admit included."""
        return len(self._waiting)

    @property
    def next_step_ends_s(self) -> float | None:
        """End of the earliest step that nobody has been told of; None while idle.

        It lies in the past where `submit` or `cancel` went by a step's end: `advance` is due.
        """
        if self._untold:
            return self._untold[0].ended_s
        return self._ends_s if self._busy else None

    def fits(self, job: Job) -> bool:
        """Whether the KV cache, empty, has room for the job's prompt and output."""
        return job.prompt_tokens + job.output_tokens <= self.profile.kv_tokens

    def submit(self, job: Job, at_s: float) -> bool:
        """Take in a job that arrives at `at_s`; False where the queue is full.

        ValueError where its name is already waiting or running, where it has no prompt or asks
        for no output, and where it does not fit: such a job would wait for ever.
        """
        self._run_to(at_s)
        self._check(job)
        if self._is_full():
            return False
        self._waiting[job.name] = job
        if not self._busy:
            self._begin_step(at_s)
        return True

    def cancel(self, name: str, at_s: float) -> None:
        """Forget the job: its client has gone away. Nothing happens where it has ended already.

        Its slot and its room in the KV cache are free from the next step on; the step in progress
        takes as long as it would have.
        """
        self._run_to(at_s)
        if self._waiting.pop(name, None) is not None:
            return
        sequence = self._prefilling.pop(name, None)
        if sequence is not None:
            self._release(sequence, sequence.job.prompt_tokens - sequence.unread)
            return
        sequence = self._decoding.pop(name, None)
        if sequence is not None:
            decoded = self.steps + 1 - sequence.first_step  # the step in progress included
            self._release(sequence, sequence.job.prompt_tokens + decoded)

    def advance(self, now_s: float) -> list[Token]:
        """The tokens of all steps that have ended by `now_s` and were not told of, in order."""
        self._run_to(now_s)
        tokens: list[Token] = []
        while self._untold:
            tokens += self._untold.popleft().tokens()
        return tokens

    def end_step(self) -> Step:
        """Go to the end of the earliest step that nobody was told of; ValueError while idle."""
        if self._untold:
            return self._untold.popleft()
        if not self._busy:
            raise ValueError("there is no step in progress")
        self._now_s = self._ends_s
        return self._end_step()

    def _run_to(self, now_s: float) -> None:
        if not now_s >= self._now_s:
            raise ValueError(f"time goes back from {self._now_s} to {now_s}")
        self._now_s = now_s
        while self._busy and self._ends_s <= now_s:
            self._untold.append(self._end_step())

    def _check(self, job: Job) -> None:
        name = job.name
        if name in self._waiting or name in self._prefilling or name in self._decoding:
            raise ValueError(f"there is a job {name!r} already")
        if job.prompt_tokens < 1 or job.output_tokens < 1:
            raise ValueError(f"a job reads and writes at least one token: {job}")
        if not self.fits(job):
            raise ValueError(f"the KV cache holds {self.profile.kv_tokens} tokens: {job}")

    def _is_full(self) -> bool:
        """Whether the slots are spoken for and `queue` jobs are there beside."""
        queue = self.profile.queue
        return queue is not None and self.running + self.waiting >= self.profile.slots + queue

    # --- one step ---------------------------------------------------------------------------------

    def _begin_step(self, at_s: float) -> None:
        decoding = len(self._decoding)
        prompt_tokens = 0
        if self._prefilling or self._waiting:
            prompt_tokens = self._fill(self.profile.token_budget - decoding, at_s)
        self._busy = decoding + prompt_tokens > 0
        if self._busy:
            self.kv_held += decoding + prompt_tokens
            self._began_s = at_s
            self._ends_s = at_s + self._duration_s(prompt_tokens, decoding)

    def _fill(self, budget: int, at_s: float) -> int:
        """Put prompts into a step that begins at `at_s`; how many tokens of them it holds."""
        left = budget
        for sequence in self._prefilling.values():
            left -= self._take(sequence, left)
        while left and self._waiting:
            job = next(iter(self._waiting.values()))
            if not self._has_room(job):
                break
            del self._waiting[job.name]
            left -= self._take(self._admit(job, at_s), left)
        return budget - left

    def _take(self, sequence: Sequence, most: int) -> int:
        taken = min(sequence.unread, most)
        sequence.unread -= taken
        return taken

    def _has_room(self, job: Job) -> bool:
        reserved = self.kv_reserved + job.prompt_tokens + job.output_tokens
        return reserved <= self.profile.kv_tokens and self.running < self.profile.slots

    def _admit(self, job: Job, at_s: float) -> Sequence:
        sequence = self._prefilling[job.name] = Sequence(job, at_s)
        self.kv_reserved += job.prompt_tokens + job.output_tokens
        return sequence

    def _duration_s(self, prompt_tokens: int, decoding: int) -> float:
        profile = self.profile
        duration_s = (
            profile.step_s
            + profile.prefill_token_s * prompt_tokens
            + profile.decode_sequence_s * decoding
            + profile.kv_token_s * self.kv_held
        )
        if not profile.jitter:
            return duration_s
        # exp(N(-sigma^2 / 2, sigma)) has mean 1: noise makes a server less even, not slower.
        return duration_s * self._noise.lognormvariate(-(profile.jitter**2) / 2, profile.jitter)

    def _end_step(self) -> Step:
        """End the step in progress, and begin the next where there is work."""
        self.steps += 1
        if self._prefilling:
            self._end_prompts()
        sequences = list(self._decoding.values())
        self.tokens += len(sequences)
        finished = self._ending.pop(self.steps, None)
        step = Step(self.steps, self._began_s, self._ends_s, sequences, self._retire(finished))
        self._begin_step(self._ends_s)
        return step

    def _end_prompts(self) -> None:
        """Whoever's prompt is complete decodes from now on, beginning with its first token."""
        complete = [s for s in self._prefilling.values() if not s.unread]
        for sequence in complete:
            del self._prefilling[sequence.job.name]
            self._decoding[sequence.job.name] = sequence
            sequence.first_step = self.steps
            sequence.last_step = self.steps + sequence.job.output_tokens - 1
            self._ending[sequence.last_step].append(sequence)

    def _retire(self, ending: list[Sequence] | None) -> list[Sequence]:
        """Free what those hold whose last token came; the cancelled ones among them are gone."""
        if not ending:
            return []
        finished = [s for s in ending if self._decoding.get(s.job.name) is s]
        for sequence in finished:
            del self._decoding[sequence.job.name]
            self._release(sequence, sequence.job.prompt_tokens + sequence.job.output_tokens - 1)
        return finished

    def _release(self, sequence: Sequence, held: int) -> None:
        self.kv_held -= held  # the last token is never read again, so it is never held
        self.kv_reserved -= sequence.job.prompt_tokens + sequence.job.output_tokens

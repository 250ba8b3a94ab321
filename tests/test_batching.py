"""The timing model against formulas, a naive simulation of the same rules, and its own limits."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmgauge.config.simulated import BatchingProfile
from fmgauge.emulator.batching import Batching, Job, Token

# Binary fractions, so that sums of durations are exact and instants compare with ==.
STEP, PREFILL, DECODE, KV = 2.0**-6, 2.0**-12, 2.0**-10, 2.0**-20


def profile(**changes) -> BatchingProfile:
    """A profile whose durations are binary fractions, with changes."""
    figures = {"step_s": STEP, "prefill_token_s": PREFILL, "decode_sequence_s": DECODE}
    return BatchingProfile(**{**figures, **changes})


def batching(**changes) -> Batching:
    """The model with the profile above, with changes."""
    return Batching(profile(**changes), seed=7)


def run_out(model: Batching) -> list[Token]:
    """Everything that is still to come."""
    tokens = []
    while model.next_step_ends_s is not None:
        tokens += model.advance(model.next_step_ends_s)
    return tokens


def instants(tokens: list[Token], name: str) -> list[float]:
    """When the tokens of one job came."""
    return [token.at_s for token in tokens if token.name == name]


# --- one job --------------------------------------------------------------------------------------


def test_a_lone_job_reads_its_prompt_in_one_step():
    """TTFT is a step, its prompt, and the prompt's place in the KV cache."""
    model = batching(kv_token_s=KV)
    model.submit(Job("a", 100, 5), 1.0)

    tokens = run_out(model)

    assert instants(tokens, "a")[0] == 1.0 + STEP + 100 * PREFILL + 100 * KV


def test_a_lone_job_gets_a_token_a_step():
    """Each gap is a step, one decoding sequence, and the KV cache as long as it has become."""
    model = batching(kv_token_s=KV)
    model.submit(Job("a", 100, 5), 1.0)

    at_s = instants(run_out(model), "a")

    gaps = [after - before for before, after in pairwise(at_s)]
    assert gaps == [STEP + DECODE + (100 + n) * KV for n in (1, 2, 3, 4)]


def test_tokens_are_counted_and_the_last_is_marked():
    """Numbers run from 1 to what was asked, and only the last says so."""
    model = batching()
    model.submit(Job("a", 1, 3), 0.0)

    assert [token[1:] for token in run_out(model)] == [
        ("a", 1, False),
        ("a", 2, False),
        ("a", 3, True),
    ]


def test_a_long_prompt_is_read_in_chunks():
    """A prompt of two budgets and a half takes three steps."""
    model = batching(token_budget=40)
    model.submit(Job("a", 100, 1), 0.0)

    assert instants(run_out(model), "a") == [3 * STEP + 100 * PREFILL]


def test_an_idle_model_has_no_next_step():
    """Before the first job and after the last there is nothing to wait for."""
    model = batching()
    before = model.next_step_ends_s
    model.submit(Job("a", 1, 1), 0.0)

    run_out(model)

    assert (before, model.next_step_ends_s) == (None, None)


# --- several jobs ---------------------------------------------------------------------------------


def test_a_job_that_arrives_during_a_step_joins_the_next():
    """Its prompt is read in the step that begins when the one in progress has ended."""
    model = batching()
    model.submit(Job("a", 8, 3), 0.0)
    first_ends_s = STEP + 8 * PREFILL
    model.submit(Job("b", 16, 1), first_ends_s / 2)

    tokens = run_out(model)

    assert instants(tokens, "b") == [first_ends_s + STEP + 16 * PREFILL + DECODE]


def test_a_job_that_arrives_as_a_step_begins_waits_for_the_next():
    """What a step holds is settled as it begins, by those who were there before."""
    model = batching()
    model.submit(Job("a", 8, 3), 0.0)
    second_begins_s = STEP + 8 * PREFILL
    model.submit(Job("b", 16, 1), second_begins_s)

    tokens = run_out(model)

    third_begins_s = second_begins_s + STEP + DECODE
    assert instants(tokens, "b") == [third_begins_s + STEP + 16 * PREFILL + DECODE]


def test_decoding_sequences_come_before_prompts_in_the_budget():
    """Two of three budgeted tokens go on decoding, so a prompt of 4 needs four steps."""
    model = batching(token_budget=3)
    for name in ("a", "b"):
        model.submit(Job(name, 1, 50), 0.0)
    model.advance(2 * (STEP + PREFILL) + DECODE)
    began_s = model.next_step_ends_s
    model.submit(Job("c", 4, 1), began_s - STEP / 2)

    tokens = run_out(model)

    assert instants(tokens, "c") == [began_s + 4 * (STEP + PREFILL + 2 * DECODE)]


def test_no_more_jobs_run_than_there_are_slots():
    """The third of three jobs starts when one of two slots is free."""
    model = batching(slots=2, token_budget=64)
    for name, length in (("a", 4), ("b", 9), ("c", 1)):
        model.submit(Job(name, 1, length), 0.0)

    tokens = run_out(model)

    a_ends_s = instants(tokens, "a")[-1]
    assert instants(tokens, "c") == [a_ends_s + STEP + PREFILL + DECODE]


def test_a_job_waits_for_room_in_the_kv_cache():
    """Prompt and output have room reserved: 60 + 41 tokens do not fit 100, 60 + 40 do."""
    model = batching(kv_tokens=100)
    model.submit(Job("a", 50, 10), 0.0)
    model.submit(Job("b", 30, 11), 0.0)
    other = batching(kv_tokens=100)
    other.submit(Job("a", 50, 10), 0.0)
    other.submit(Job("b", 30, 10), 0.0)

    waited, joined = run_out(model), run_out(other)

    assert instants(waited, "b")[0] > instants(waited, "a")[-1]
    assert instants(joined, "b")[0] == instants(joined, "a")[1]


def test_a_job_that_does_not_fit_holds_up_those_behind_it():
    """The queue is first in, first out, also where a later job would have fitted."""
    model = batching(kv_tokens=100)
    for job in (Job("a", 50, 10), Job("large", 80, 10), Job("small", 1, 1)):
        model.submit(job, 0.0)

    tokens = run_out(model)

    assert instants(tokens, "small")[0] >= instants(tokens, "large")[0]


def test_a_full_queue_refuses():
    """Beside the jobs for two slots, one may wait; the fourth is refused."""
    model = batching(slots=2, queue=1)

    answers = [model.submit(Job(name, 1, 5), 0.0) for name in "abcd"]

    assert answers == [True, True, True, False]
    assert {token.name for token in run_out(model)} == {"a", "b", "c"}


# --- cancelling -----------------------------------------------------------------------------------


def running_pair() -> tuple[Batching, float]:
    """Two jobs that decode, and an instant within a step of theirs."""
    model = batching(kv_tokens=200, kv_token_s=KV)
    model.submit(Job("a", 40, 50), 0.0)
    model.submit(Job("b", 30, 50), 0.0)
    for _ in range(4):
        model.end_step()
    return model, model.next_step_ends_s - STEP / 2


def test_cancelling_frees_the_kv_cache_and_the_slot():
    """What remains is what the other one holds."""
    model, at_s = running_pair()

    model.cancel("a", at_s)

    # Step 5 is in progress: b's prompt was read in step 2, and 3 of its tokens are read again.
    assert (model.running, model.kv_reserved, model.kv_held) == (1, 80, 33)


def test_a_cancelled_job_gets_no_more_tokens():
    """The others go on."""
    model, at_s = running_pair()

    model.cancel("a", at_s)

    assert {token.name for token in run_out(model)} == {"b"}


def test_cancelling_does_not_shorten_the_step_in_progress():
    """What was begun is computed to the end, even for nobody."""
    model, at_s = running_pair()
    ends_s = model.next_step_ends_s

    model.cancel("a", at_s)
    model.cancel("b", at_s)

    assert model.next_step_ends_s == ends_s
    assert model.advance(ends_s) == []
    assert (model.next_step_ends_s, model.kv_held, model.kv_reserved) == (None, 0, 0)


def test_a_waiting_job_can_be_cancelled():
    """It leaves the queue, and nothing was reserved for it."""
    model = batching(slots=1)
    model.submit(Job("a", 1, 2), 0.0)
    model.submit(Job("b", 1, 2), 0.0)

    model.cancel("b", 0.0)

    assert model.waiting == 0
    assert {token.name for token in run_out(model)} == {"a"}


def test_a_job_can_be_cancelled_while_its_prompt_is_read():
    """All of its chunks leave the KV cache."""
    model = batching(token_budget=10, kv_token_s=KV)
    model.submit(Job("a", 100, 5), 0.0)
    model.end_step()

    model.cancel("a", model.next_step_ends_s - STEP / 2)

    assert (model.running, model.kv_held, model.kv_reserved) == (0, 0, 0)
    assert run_out(model) == []


def test_cancelling_what_has_ended_changes_nothing():
    """A client may go away as the last token is on its way."""
    model = batching()
    model.submit(Job("a", 1, 1), 0.0)
    run_out(model)

    model.cancel("a", 1.0)

    assert (model.running, model.waiting, model.tokens) == (0, 0, 1)


def test_a_name_is_free_again_after_cancelling():
    """The second bearer of a name gets all of its own tokens, and they end when its own end."""
    model, at_s = running_pair()
    model.cancel("a", at_s)
    model.submit(Job("a", 1, 60), at_s)

    tokens = [token for token in run_out(model) if token.name == "a"]

    assert [token.number for token in tokens] == list(range(1, 61))
    assert [token.number for token in tokens if token.last] == [60]


# --- time and noise -------------------------------------------------------------------------------


def test_going_by_a_step_s_end_loses_no_token():
    """A job submitted late finds the step ended; its tokens wait for advance, which is due."""
    model = batching()
    model.submit(Job("a", 8, 2), 0.0)
    model.submit(Job("b", 8, 1), 10.0)

    due_s, tokens = model.next_step_ends_s, model.advance(10.0)

    assert due_s == STEP + 8 * PREFILL
    assert instants(tokens, "a") == [due_s, due_s + STEP + DECODE]


def test_time_does_not_go_back():
    """An instant before the last one is refused, and so is none at all."""
    model = batching()
    model.advance(2.0)

    with pytest.raises(ValueError, match="time goes back"):
        model.submit(Job("a", 1, 1), 1.0)
    with pytest.raises(ValueError, match="time goes back"):
        model.advance(math.nan)


def noisy_durations(seed: int, steps: int = 4000) -> list[float]:
    """Durations of equal steps under noise, in units of what they are without."""
    noisy = BatchingProfile(
        step_s=1.0, prefill_token_s=0.0, decode_sequence_s=0.0, jitter=0.5, kv_tokens=10_000
    )
    model = Batching(noisy, seed=seed)
    model.submit(Job("a", 1, steps), 0.0)
    ended = [model.end_step() for _ in range(steps)]
    return [step.ended_s - step.began_s for step in ended]


def test_noise_is_lognormal_of_mean_one():
    """Mean 1, and logarithms with the sigma asked for, within four standard errors."""
    durations = noisy_durations(seed=1)

    n, deviation = len(durations), math.sqrt(math.exp(0.25) - 1)
    assert abs(statistics.mean(durations) - 1) < 4 * deviation / math.sqrt(n)
    logarithms = [math.log(duration) for duration in durations]
    assert abs(statistics.stdev(logarithms) - 0.5) < 4 * 0.5 / math.sqrt(2 * n)


def test_noise_is_settled_by_its_seed():
    """The same seed gives the same steps, another seed others."""
    assert noisy_durations(3, 50) == noisy_durations(3, 50)
    assert noisy_durations(3, 50) != noisy_durations(4, 50)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "why"),
    [
        (Job("a", 1, 1), "already"),
        (Job("b", 0, 1), "at least one"),
        (Job("b", 1, 0), "at least one"),
        (Job("b", 90, 11), "holds 100"),
    ],
)
def test_a_job_that_cannot_be_served_is_refused(job, why):
    """A name in use, nothing to read or write, and more than the KV cache ever holds."""
    model = batching(kv_tokens=100)
    model.submit(Job("a", 1, 9), 0.0)

    with pytest.raises(ValueError, match=why):
        model.submit(job, 0.0)


def test_what_fits_is_told_beforehand():
    """Prompt and output together, against an empty cache."""
    model = batching(kv_tokens=100)

    assert model.fits(Job("a", 90, 10))
    assert not model.fits(Job("a", 90, 11))


def test_there_is_no_step_to_end_while_idle():
    """Ending a step that was never begun is a mistake of the caller."""
    with pytest.raises(ValueError, match="no step"):
        batching().end_step()


# --- properties -----------------------------------------------------------------------------------

KV_TOKENS = 60
profiles = st.builds(
    BatchingProfile,
    step_s=st.floats(1e-3, 1.0),
    prefill_token_s=st.floats(0, 0.1),
    decode_sequence_s=st.floats(0, 0.1),
    kv_token_s=st.floats(0, 0.01),
    token_budget=st.integers(1, 40),
    slots=st.integers(1, 6),
    kv_tokens=st.integers(KV_TOKENS, 4 * KV_TOKENS),
    queue=st.none() | st.integers(1, 4),
)
gaps_and_lengths = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.001, 0.3, 5.0, 100.0]), st.integers(1, 30), st.integers(1, 30)
    ),
    max_size=25,
)


def arrivals_of(drawn: list[tuple[float, int, int]]) -> list[tuple[float, Job]]:
    """Jobs with instants of arrival that do not go back."""
    at_s, arrivals = 0.0, []
    for index, (gap_s, prompt_tokens, output_tokens) in enumerate(drawn):
        at_s += gap_s
        arrivals.append((at_s, Job(f"j{index}", prompt_tokens, output_tokens)))
    return arrivals


class NaiveServer:
    """The same rules with everything recounted at every step from plain lists."""

    def __init__(self, figures: BatchingProfile) -> None:
        self.figures, self.queue, self.running, self.tokens = figures, [], [], []

    def serve(self, arrivals: list[tuple[float, Job]]) -> list[Token]:
        """All tokens of all jobs."""
        coming, now_s = list(arrivals), 0.0
        while coming or self.queue or self.running:
            if not self.queue and not self.running:
                now_s, job = coming.pop(0)
                self.queue.append(job)
            ends_s = now_s + self.step()
            while coming and coming[0][0] < ends_s:
                self.arrive(coming.pop(0)[1])
            self.end(ends_s)
            now_s = ends_s
        return self.tokens

    def arrive(self, job: Job) -> None:
        """Queue a job, unless as many are there as may be."""
        limit = self.figures.queue
        present = len(self.queue) + len(self.running)
        if limit is None or present < self.figures.slots + limit:
            self.queue.append(job)

    def step(self) -> float:
        """Fill a step and tell its duration."""
        figures = self.figures
        decoding = [s for s in self.running if s["read"] == s["job"].prompt_tokens]
        left = figures.token_budget - len(decoding)
        prompts = 0
        for sequence in self.running + self.admissible(left):
            chunk = min(left - prompts, sequence["job"].prompt_tokens - sequence["read"])
            if sequence not in self.running and chunk:
                self.running.append(sequence)
                self.queue.remove(sequence["job"])
            sequence["read"] += chunk
            prompts += chunk
        held = sum(s["read"] + s["written"] for s in self.running)
        return (
            figures.step_s
            + figures.prefill_token_s * prompts
            + figures.decode_sequence_s * len(decoding)
            + figures.kv_token_s * held
        )

    def admissible(self, left: int) -> list[dict]:
        """The head of the queue, as far as slots and KV cache reach."""
        if left <= 0:
            return []
        found = []
        for job in self.queue:
            there = [s["job"] for s in self.running + found] + [job]
            room = sum(j.prompt_tokens + j.output_tokens for j in there)
            if len(there) > self.figures.slots or room > self.figures.kv_tokens:
                break
            found.append({"job": job, "read": 0, "written": 0})
        return found

    def end(self, at_s: float) -> None:
        """Give a token to everybody whose prompt is read."""
        for sequence in list(self.running):
            job = sequence["job"]
            if sequence["read"] == job.prompt_tokens:
                sequence["written"] += 1
                last = sequence["written"] == job.output_tokens
                self.tokens.append(Token(at_s, job.name, sequence["written"], last))
                if last:
                    self.running.remove(sequence)


def served(figures: BatchingProfile, arrivals: list[tuple[float, Job]]) -> list[Token]:
    """All tokens, asked for at every arrival and every step's end."""
    model, tokens = Batching(figures, seed=1), []
    for at_s, job in arrivals:
        tokens += model.advance(at_s)
        model.submit(job, at_s)
    return tokens + run_out(model)


@given(profiles, gaps_and_lengths)
def test_the_model_agrees_with_a_naive_one(figures, drawn):
    """Every token comes at the same instant, in the same order, as by recounting everything."""
    arrivals = arrivals_of(drawn)

    assert served(figures, arrivals) == NaiveServer(figures).serve(arrivals)


@given(profiles, gaps_and_lengths, st.lists(st.floats(0, 500), max_size=20), st.floats(0, 1))
def test_when_it_is_asked_leaves_no_trace(figures, drawn, polls, jitter):
    """However often and late advance is called, the tokens and their instants are the same."""
    noisy = figures.model_copy(update={"jitter": jitter})
    arrivals = arrivals_of(drawn)
    moments = sorted([*arrivals, *((at_s, None) for at_s in polls)], key=lambda moment: moment[0])

    model, tokens = Batching(noisy, seed=1), []
    for at_s, job in moments:
        if job is None:
            tokens += model.advance(at_s)
        else:
            model.submit(job, at_s)
    tokens += model.advance(math.inf)

    assert tokens == served(noisy, arrivals)


actions = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "cancel", "end_step"]),
        st.integers(1, 30),
        st.integers(1, 30),
        st.integers(0, 20),
    ),
    max_size=60,
)


@given(profiles, actions)
def test_limits_hold_and_nothing_is_lost_whatever_is_cancelled(figures, drawn):
    """Slots, KV cache and queue keep their limits; who stays gets each of his tokens once."""
    model, tokens, accepted, at_s = Batching(figures, seed=1), [], {}, 0.0
    for index, (action, prompt_tokens, output_tokens, target) in enumerate(drawn):
        if action == "submit":
            job = Job(f"j{index}", prompt_tokens, output_tokens)
            if model.submit(job, at_s):
                accepted[job.name] = job
        elif action == "cancel":
            model.cancel(f"j{target}", at_s)
            accepted.pop(f"j{target}", None)
        elif model.next_step_ends_s is not None:
            at_s = model.next_step_ends_s
            tokens += model.advance(at_s)
        assert model.running <= figures.slots
        assert 0 <= model.kv_held <= model.kv_reserved <= figures.kv_tokens
        assert figures.queue is None or model.running + model.waiting <= figures.slots + (
            figures.queue
        )
    tokens += run_out(model)

    assert (model.running, model.waiting, model.kv_held, model.kv_reserved) == (0, 0, 0, 0)
    assert model.tokens == len(tokens)
    numbers = {name: [t.number for t in tokens if t.name == name] for name in accepted}
    assert numbers == {name: [*range(1, job.output_tokens + 1)] for name, job in accepted.items()}


@given(profiles, gaps_and_lengths)
def test_no_step_holds_more_than_its_budget(figures, drawn):
    """Steps without noise that cost only tokens are never longer than the budget allows."""
    costs = {"step_s": 1.0, "prefill_token_s": 1.0, "decode_sequence_s": 1.0, "kv_token_s": 0.0}
    model = Batching(figures.model_copy(update=costs), seed=1)
    for at_s, job in arrivals_of(drawn):
        model.submit(job, at_s)
    held = []
    while model.next_step_ends_s is not None:
        step = model.end_step()
        held.append(round(step.ended_s - step.began_s) - 1)

    assert all(1 <= tokens <= figures.token_budget for tokens in held)

"""Whole stages in virtual time against queueing theory, and against the model driven by hand."""

from __future__ import annotations

import statistics
from itertools import count, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmgauge.config.simulated import BatchingProfile
from fmgauge.emulator.batching import Batching, Job
from fmgauge.emulator.in_virtual_time import Outcome, closed_loop, open_loop

PROFILE = BatchingProfile(
    step_s=0.01,
    prefill_token_s=0.0001,
    decode_sequence_s=0.0005,
    kv_token_s=1e-7,
    token_budget=512,
    slots=8,
    kv_tokens=4000,
    jitter=0.1,
)


def jobs(n: int, prompt_tokens: int = 100, output_tokens: int = 20) -> list[Job]:
    """Equal jobs with names of their own."""
    return [Job(f"j{index}", prompt_tokens, output_tokens) for index in range(n)]


def poisson(n: int, rate: float, made: list[Job]) -> list[tuple[float, Job]]:
    """Jobs with exponential gaps of a fixed seed."""
    random, at_s, arrivals = Random(5), 0.0, []
    for job in made[:n]:
        at_s += random.expovariate(rate)
        arrivals.append((at_s, job))
    return arrivals


def in_flight(outcomes: list[Outcome], at_s: float) -> int:
    """How many had arrived and not finished."""
    return sum(o.arrived_s <= at_s < o.finished_s for o in outcomes if not o.refused)


lengths = st.lists(st.tuples(st.integers(1, 600), st.integers(1, 60)), max_size=40)


@given(lengths, st.floats(0.1, 100), st.integers(0, 2**32 - 1))
def test_an_open_loop_is_the_model_fed_by_hand(drawn, rate, seed):
    """Arrivals and tokens are those of the live interface, instant by instant."""
    made = [Job(f"j{index}", *lengths) for index, lengths in enumerate(drawn)]
    arrivals = poisson(len(made), rate, made)
    model = Batching(PROFILE, seed=seed)
    for at_s, job in arrivals:
        model.submit(job, at_s)
    tokens = model.advance(1e9)

    outcomes = open_loop(PROFILE, arrivals, seed=seed)

    assert [(o.arrived_s, o.job) for o in outcomes] == arrivals
    for outcome in outcomes:
        by_hand = [token.at_s for token in tokens if token.name == outcome.job.name]
        assert list(outcome.token_at_s) == by_hand


@given(lengths, st.integers(1, 20))
def test_a_closed_loop_loses_and_repeats_nothing(drawn, concurrency):
    """Every job is asked once, in order, and gets as many tokens as it asked for."""
    made = [Job(f"j{index}", *lengths) for index, lengths in enumerate(drawn)]

    outcomes = closed_loop(PROFILE, made, concurrency=concurrency, seed=1)

    assert [(o.job, len(o.token_at_s)) for o in outcomes] == [(j, j.output_tokens) for j in made]


def test_instants_of_a_job_are_in_order():
    """Arrival, start, first token, every token, end."""
    for outcome in closed_loop(PROFILE, jobs(50), concurrency=12, seed=1):
        assert outcome.arrived_s <= outcome.started_s < outcome.first_token_s
        assert all(before < after for before, after in pairwise(outcome.token_at_s))
        assert outcome.finished_s == outcome.token_at_s[-1]


def test_a_job_starts_with_the_step_that_reads_some_of_its_prompt():
    """While another prompt takes the whole budget it has not started, though a slot is free."""
    narrow = PROFILE.model_copy(update={"token_budget": 100, "jitter": 0.0, "kv_token_s": 0.0})
    arrivals = [(0.0, Job("long", 250, 1)), (0.001, Job("short", 50, 1))]

    outcomes = open_loop(narrow, arrivals, seed=1)

    assert outcomes[1].started_s == pytest.approx(2 * (0.01 + 100 * 0.0001))


def test_a_closed_loop_holds_its_concurrency():
    """Whoever asks next is there at the instant of an end, so the number in flight never dips."""
    outcomes = closed_loop(PROFILE, jobs(200), concurrency=12, seed=1)

    asked_all_s = outcomes[-1].arrived_s
    moments = [o.finished_s for o in outcomes if o.finished_s < asked_all_s]
    assert len(moments) > 100
    assert {in_flight(outcomes, at_s) for at_s in moments} == {12}


def test_a_saturated_server_reaches_the_rate_of_its_slots():
    """Each slot serves a job of n tokens in n steps, and never stands empty while others wait."""
    n, prompt_tokens, slots = 16, 50, 8
    even = PROFILE.model_copy(update={"jitter": 0.0, "kv_token_s": 0.0})
    outcomes = closed_loop(even, jobs(800, prompt_tokens, n), concurrency=3 * slots, seed=1)
    finished_s = sorted(outcome.finished_s for outcome in outcomes)

    rate = 40 * slots / (finished_s[100 + 40 * slots] - finished_s[100])

    # In n steps: n times the step itself, all prompts once, and n - 1 tokens decoded in each slot.
    cycle_s = n * 0.01 + slots * prompt_tokens * 0.0001 + slots * (n - 1) * 0.0005
    assert rate == pytest.approx(slots / cycle_s, rel=1e-9)


def one_at_a_time(load: float, n: int) -> tuple[list[Outcome], float]:
    """A server with one slot and equal jobs of 1 token, offered `load` of what it can do."""
    single = PROFILE.model_copy(update={"jitter": 0.0, "kv_token_s": 0.0, "slots": 1})
    service_s = 0.01 + 100 * 0.0001
    made = jobs(n, 100, 1)
    return open_loop(single, poisson(n, load / service_s, made), seed=1), service_s


def test_one_slot_and_equal_jobs_follow_lindley():
    """A job starts as it arrives, or as the one before it ends, and never otherwise."""
    outcomes, service_s = one_at_a_time(0.8, 2000)

    free_s = 0.0
    for outcome in outcomes:
        assert outcome.started_s == max(outcome.arrived_s, free_s)
        free_s = outcome.finished_s
        assert free_s == pytest.approx(outcome.started_s + service_s)


def test_one_slot_and_equal_jobs_wait_as_an_m_d_1_queue():
    """The mean wait is that of Pollaczek and Khinchine: rho s / (2 (1 - rho))."""
    outcomes, service_s = one_at_a_time(0.7, 40_000)

    mean_wait_s = statistics.mean(o.started_s - o.arrived_s for o in outcomes)

    assert mean_wait_s == pytest.approx(0.7 * service_s / (2 * 0.3), rel=0.05)


def test_a_seed_settles_everything():
    """The same seed gives the same outcomes, another seed others."""
    first, again, other = (
        closed_loop(PROFILE, jobs(40), concurrency=6, seed=seed) for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other


def test_a_full_queue_refuses_in_an_open_loop():
    """Ten at once, into two slots and three places: five are refused, and have no instants."""
    small = PROFILE.model_copy(update={"slots": 2, "queue": 3})

    outcomes = open_loop(small, [(1.0, job) for job in jobs(10)], seed=1)

    assert [outcome.refused for outcome in outcomes] == [False] * 5 + [True] * 5
    assert [(o.first_token_s, o.finished_s) for o in outcomes[5:]] == [(None, None)] * 5


def test_a_refused_user_asks_again_at_the_next_step():
    """Six users for five places: one is refused, and tries as often as there are steps."""
    small = PROFILE.model_copy(update={"slots": 2, "queue": 3})

    outcomes = closed_loop(small, jobs(60), concurrency=6, seed=1)

    refused_at_s = [outcome.arrived_s for outcome in outcomes if outcome.refused]
    assert len(refused_at_s) > 1
    assert all(before < after for before, after in pairwise(refused_at_s))


def test_endless_jobs_end_with_the_time():
    """Nobody asks at until_s or later, and who asked before is served to the end."""
    endless = (Job(f"j{index}", 100, 20) for index in count())

    outcomes = closed_loop(PROFILE, endless, concurrency=4, seed=1, until_s=5.0)

    assert 4.5 < outcomes[-1].arrived_s < 5.0
    assert all(len(outcome.token_at_s) == 20 for outcome in outcomes)


def test_nobody_asking_is_no_load():
    """A closed loop has at least one user."""
    with pytest.raises(ValueError, match="at least 1"):
        closed_loop(PROFILE, jobs(1), concurrency=0, seed=1)


def test_arrivals_are_in_order_of_time():
    """Time does not go back, in an open loop either."""
    first, second = jobs(2)

    with pytest.raises(ValueError, match="time goes back"):
        open_loop(PROFILE, [(2.0, first), (1.0, second)], seed=1)

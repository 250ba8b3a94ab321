"""The open loop against a scripted server: when requests are sent, and what keeps them waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmgauge.config import PlannedStage
from fmgauge.config.model import Experiment, Model, OpenaiEndpoint, OpenLoop, PythonDocsSource
from fmgauge.config.model import Workload as WorkloadConfig
from fmgauge.load.arrivals import stage_seed, warmup_arrivals, window_arrivals
from scripted_server import Peer, Request, ScriptedServer, answer
from simulated_runs import profile, simulated
from stage_runs import ClockOfLateTimers, Outcome, endpoint, run_stage


def planned(request_rate: float, base_url: str, **load: Any) -> PlannedStage:
    """An open-loop stage at `request_rate`."""
    settings = {"warmup_s": 0.1, "timeout_s": 10.0} | load
    if "requests" not in settings:
        settings.setdefault("duration_s", 0.4)
    workload = WorkloadConfig(name="short", source=PythonDocsSource(kind="python_docs"))
    loop = OpenLoop(kind="open_loop", request_rate=(request_rate,), **settings)
    experiment = Experiment(
        name="one",
        model=Model(name="tiny"),
        endpoint=OpenaiEndpoint(kind="openai", base_url=base_url),
        workloads=("short",),
        load=(loop,),
    )
    return PlannedStage(loop, request_rate, experiment, workload)


@pytest.fixture
def run_loop() -> Callable[..., Outcome]:
    """Runs one open-loop stage at a server; what it left."""

    def run(server: ScriptedServer, request_rate: float, parts: int = 1, **load: Any) -> Outcome:
        stage = planned(request_rate, server.base_url, **load)
        return run_stage(stage, endpoint("one", server.base_url), parts=parts)

    return run


def schedule_of(stage: PlannedStage) -> list[float]:
    """The stage's arrivals up to the window's end, as the schedules alone give them."""
    load = stage.load
    assert isinstance(load, OpenLoop)
    assert stage.request_rate is not None
    assert load.duration_s is not None
    seed = stage_seed(7, stage.key)
    warmup = next(warmup_arrivals(load, stage.request_rate, seed=seed))
    window = next(window_arrivals(load, stage.request_rate, seed=seed))
    return [*warmup[warmup < load.warmup_s], *(window[window < load.duration_s] + load.warmup_s)]


def intended(outcome: Outcome) -> list[float]:
    """When the requests of warm-up and window were due, in order."""
    return sorted(r.intended_at_s for r in outcome.records if r.phase != "drain")


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_every_arrival_of_the_schedule_is_sent(
    run_loop: Callable[..., Outcome], arrivals: str, parts: int
) -> None:
    """All parts together send exactly the schedule, each arrival once, none before its instant."""
    with ScriptedServer(answer) as server:
        outcome = run_loop(server, 150.0, parts=parts, arrivals=arrivals)

    assert intended(outcome) == pytest.approx(schedule_of(outcome.planned), abs=1e-6)
    assert all(record.sent_at_s >= record.intended_at_s for record in outcome.records)


def test_slow_answers_delay_no_later_send(run_loop: Callable[..., Outcome]) -> None:
    """While every answer of the window waits, all of its requests still arrive at the server."""
    waiting = 0
    all_here = asyncio.Event()
    expected = len(schedule_of(planned(100.0, "http://127.0.0.1:1/v1")))

    async def script(request: Request, peer: Peer) -> None:
        nonlocal waiting
        waiting += 1
        if waiting >= expected:
            all_here.set()
        await all_here.wait()
        await answer(request, peer)

    with ScriptedServer(script) as server:
        outcome = run_loop(server, 100.0)

    assert all_here.is_set()
    assert {record.status for record in outcome.measured} == {"ok"}
    assert max(server.in_flight_at_arrival) >= expected


def test_cap_holds_back_and_says_so(run_loop: Callable[..., Outcome]) -> None:
    """At the cap what is due waits: never more in flight, sent late in turn, counted."""

    async def script(request: Request, peer: Peer) -> None:
        await asyncio.sleep(0.05)
        await answer(request, peer)

    with ScriptedServer(script) as server:
        outcome = run_loop(server, 100.0, max_in_flight=2)

    late = [one for one in outcome.measured if one.sent_at_s - one.intended_at_s > 0.01]
    in_turn = sorted(outcome.measured, key=lambda record: record.intended_at_s)
    assert max(server.in_flight_at_arrival) == 2
    held = [one for one in outcome.measured if one.held_back_at_s is not None]
    assert outcome.parts[0].held_back == len(held) >= len(late) > 10
    assert all(one.intended_at_s <= one.held_back_at_s <= one.sent_at_s for one in held)
    assert [r.sent_at_s for r in in_turn] == sorted(r.sent_at_s for r in in_turn)
    assert intended(outcome) == pytest.approx(schedule_of(outcome.planned), abs=1e-6)


def test_what_the_cap_held_back_in_the_warm_up_is_not_counted(
    run_loop: Callable[..., Outcome],
) -> None:
    """It is no reason why measured requests were late, and must excuse none."""

    async def script(request: Request, peer: Peer) -> None:
        if request.number == 0:
            await asyncio.sleep(0.3)  # 14 others come due; they are gone when the window begins
        await answer(request, peer)

    with ScriptedServer(script) as server:
        outcome = run_loop(server, 50.0, max_in_flight=1, arrivals="constant", warmup_s=0.8)

    delays_s = [r.sent_at_s - r.intended_at_s for r in outcome.records if r.phase == "warmup"]
    assert max(delays_s) > 0.2
    assert outcome.parts[0].held_back <= 2  # an answer may take longer than a gap here and there


def test_what_waits_at_the_end_is_recorded_as_cancelled(run_loop: Callable[..., Outcome]) -> None:
    """With a deadline on the drain, requests that never found a place are failures, not lost."""

    async def script(_: Request, __: Peer) -> None:
        await asyncio.sleep(3600)

    with ScriptedServer(script) as server:
        outcome = run_loop(server, 50.0, max_in_flight=1, drain_s=0.1)

    assert intended(outcome) == pytest.approx(schedule_of(outcome.planned), abs=1e-6)
    assert {record.status for record in outcome.measured} == {"cancelled"}
    assert sum(record.sent_at_s is None for record in outcome.measured) >= 1


def test_arrival_due_just_before_the_window_s_end_is_not_cut_off() -> None:
    """Its timer is late, and all that was sent before it has ended by then: it is still awaited."""

    async def script(request: Request, peer: Peer) -> None:
        await asyncio.sleep(0.012)  # ends after the window and before the second arrival's timer
        await answer(request, peer)

    with ScriptedServer(script) as server:
        stage = planned(30, server.base_url, arrivals="constant", warmup_s=0.0, duration_s=0.0502)
        at = endpoint("one", server.base_url)
        outcomes = [run_stage(stage, at, clock=ClockOfLateTimers()) for _ in range(10)]

    ended = [[record.status for record in outcome.measured] for outcome in outcomes]
    assert ended == [["ok", "ok"]] * 10


@pytest.mark.parametrize("parts", [1, 2])
def test_count_ends_the_window(run_loop: Callable[..., Outcome], parts: int) -> None:
    """With a number of requests exactly so many are measured, and the window ends with the last."""
    with ScriptedServer(answer) as server:
        outcome = run_loop(server, 200.0, parts=parts, requests=21)

    assert len(outcome.measured) == 21
    last_s = max(record.intended_at_s for record in outcome.measured)
    assert outcome.window_s[1] == pytest.approx(last_s, abs=1e-6)


def test_load_goes_on_until_the_last_measured_request_has_ended(
    run_loop: Callable[..., Outcome],
) -> None:
    """After the window fillers arrive on kept prompts, until the measured requests have ended."""
    fillers = 0
    enough = asyncio.Event()

    async def script(request: Request, peer: Peer) -> None:
        nonlocal fillers
        if "measured" in request.prompt:
            await enough.wait()
        elif server.requests and any("measured" in one.prompt for one in server.requests):
            fillers += 1
            if fillers == 5:
                enough.set()
        await answer(request, peer)

    with ScriptedServer(script) as server:
        outcome = run_loop(server, 100.0)

    assert {record.status for record in outcome.measured} == {"ok"}
    drained = [record for record in outcome.records if record.phase == "drain"]
    assert len(drained) >= 5
    assert all(record.payload_id.startswith("reserved") for record in drained)


def test_prompts_go_by_the_arrivals_number(run_loop: Callable[..., Outcome]) -> None:
    """The n-th measured arrival carries the n-th prompt, over however many parts."""
    with ScriptedServer(answer) as server:
        outcome = run_loop(server, 150.0, parts=2)

    in_order = sorted(outcome.measured, key=lambda record: record.intended_at_s)
    expected = [f"measured-{n % 4}" for n in range(len(in_order))]
    assert [record.payload_id for record in in_order] == expected


def test_two_stages_of_one_name_get_equal_arrivals() -> None:
    """Candidates are compared on the same arrivals: the experiment does not enter the seed."""
    one, other = planned(50.0, "http://a/v1"), planned(50.0, "http://b/v1")

    assert schedule_of(one) == schedule_of(other)


@pytest.mark.whole
def test_rate_beyond_the_client_ends_in_time_and_counts_what_was_not_sent(tmp_path: Path) -> None:
    """At 60,000 requests/s the window ends when it should; each arrival was sent, or is counted."""
    with simulated(tmp_path, profile=profile()) as server:
        stage = planned(60_000.0, server.base_url, arrivals="constant", duration_s=0.3, drain_s=1.0)
        outcome = run_stage(stage, endpoint("one", server.base_url))

    (part,) = outcome.parts
    assert part.window_end_s == pytest.approx(0.4)
    assert part.n_unsent > 1000
    assert len(outcome.measured) + part.n_unsent == 18_000
    assert all(record.intended_at_s < 0.4 for record in outcome.measured)

"""Traps that load generators have been caught in, one short end-to-end test each.

Two of the list are left out here, for no part of the load could commit them: trap 5 (a trace's
milliseconds read as seconds) and trap 20 (a price that is documented and not charged).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from fmgauge.config.model import Budgets
from fmgauge.emulator.truth import RequestTruth
from fmgauge.load import ask_once
from fmgauge.load.link import Shard, StageTask, rows_of
from fmgauge.load.worker import run_shard
from fmgauge.load.workers import WorkerDied, Workers
from fmgauge.metrics import stage_summary
from fmgauge.records import (
    RequestRecord,
    Row,
    StageWriter,
    open_stage,
    record_of,
)
from fmgauge.transport import RealClock, run_event_loop
from scripted_server import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Peer,
    Request,
    ScriptedServer,
    answer,
    chat_events,
    chunk,
    delta,
    response,
    usage,
)
from simulated_runs import (
    FREE,
    Simulated,
    closed_loop,
    info_of,
    last_truths,
    metrics_of,
    open_loop,
    profile,
    prompts_for,
    simulated,
    ttft_s,
)
from stage_runs import LocalLink, Outcome, endpoint, payloads, run_stage


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    """A simulated server that most of these stages share."""
    folder = tmp_path_factory.mktemp("traps")
    with simulated(folder, profile=profile(), faults={"latency_spike_s": 0.1}) as server:
        yield server


def stage_at(server: Simulated, lengths: Sequence[int] = (8,), **load: Any) -> Outcome:
    """A closed loop of four at a server that has forgotten all that was before."""
    server.forget()
    prompts = prompts_for(lengths)
    return run_stage(closed_loop(4, **load), endpoint("one", server.base_url), prompts=prompts)


def scripted_stage(server: ScriptedServer, concurrency: int = 2, **load: Any) -> Outcome:
    """A closed loop at a scripted server."""
    settings = {"warmup_s": 0.05, "requests": 12} | load
    return run_stage(closed_loop(concurrency, **settings), endpoint("one", server.base_url))


def test_trap_01_absolute_clock_reading_as_latency(server: Simulated) -> None:
    """A monotonic clock's reading, which counts from the machine's start, is no latency."""
    outcome = stage_at(server, requests=40)

    found = metrics_of(outcome)
    longest_s = outcome.finished_at_s
    assert RealClock.now_s() > 2 * longest_s  # so that the two cannot be taken for each other
    for name in ("ttft_s_mean", "e2e_latency_s_mean", "itl_s_mean", "send_delay_s_mean"):
        assert 0 <= found[name] < longest_s


def test_trap_02_prefix_stripped_as_a_set_of_letters() -> None:
    """Taking `data:` off a line takes off that prefix, not every letter d, a and t in front."""
    texts = ["data", "at a date", "tada: data: ", "adapt"]

    async def script(_: Request, peer: Peer) -> None:
        without_blank = [one.replace(b"data: ", b"data:", 1) for one in chat_events(texts)]
        await peer.send(STREAM_HEAD, *map(chunk, without_blank), LAST_CHUNK)

    with ScriptedServer(script) as server:
        record = ask_once(endpoint("one", server.base_url))

    assert (record.status, record.response_text) == ("ok", "".join(texts))


def test_trap_03_first_token_at_the_role_chunk() -> None:
    """A chunk that only names the role, or is empty, is not the first token."""
    held_s: dict[str, float] = {}

    async def script(request: Request, peer: Peer) -> None:
        arrived_at_s = time.perf_counter()
        await peer.send(STREAM_HEAD, chunk(delta(role="assistant", content="")))
        await peer.send(chunk(delta(content="")), chunk(b": ping\n\n"))
        await asyncio.sleep(0.03)
        held_s[request.headers["x-request-id"]] = time.perf_counter() - arrived_at_s
        await peer.send(*map(chunk, chat_events()[1:]), LAST_CHUNK)

    with ScriptedServer(script) as server:
        outcome = scripted_stage(server)

    for record in outcome.measured:
        assert len(record.token_at_s) == 2
        assert ttft_s(record) >= held_s[record.request_id]
    assert metrics_of(outcome)["ttft_s_mean"] >= min(held_s.values())


def test_trap_04_trimmed_requests_over_the_untrimmed_time(server: Simulated) -> None:
    """A rate counts the window's requests over the window's length, and warm-up in neither."""
    outcome = stage_at(server, warmup_s=0.6, duration_s=0.6)

    begin_s, end_s = (outcome.origin_s + at_s for at_s in outcome.window_s)
    ended = [one.finished_at_s for one in server.truth() if one.outcome == "answered"]
    in_window = sum(begin_s <= at_s < end_s for at_s in ended if at_s is not None)
    found = metrics_of(outcome)
    assert found["duration_s"] == pytest.approx(0.6)
    # Either end of the window cuts through as many requests as are in flight.
    assert found["request_rate"] * 0.6 == pytest.approx(in_window, abs=4)
    assert in_window > 20


def several_tokens(counts: list[bytes]) -> Any:
    """A script: three chunks of several words, and the server's own counts."""
    texts = [delta(content="two words"), delta(content=" one"), delta(content=" half-a-word")]

    async def script(_: Request, peer: Peer) -> None:
        events = [*texts[1:], delta(finish_reason="stop"), *counts, DONE]
        await peer.send(STREAM_HEAD, chunk(texts[0]))
        await asyncio.sleep(0.01)
        await peer.send(*map(chunk, events), LAST_CHUNK)

    return script


def test_trap_06_words_or_chunks_counted_as_tokens() -> None:
    """Tokens are what the server counted, not the words or the chunks in which they came."""
    with ScriptedServer(several_tokens([usage(5, 11)])) as server:
        outcome = scripted_stage(server)

    found = metrics_of(outcome)
    record = next(one for one in outcome.measured if one.token_at_s[0] < one.token_at_s[-1])
    e2e_s = record.token_at_s[-1] - record.sent_at_s
    assert {one.output_tokens for one in outcome.measured} == {11}
    assert (found["completion_token_count_mean"], found["prompt_token_count_mean"]) == (11, 5)
    assert found["token_source"] == "server"
    alone = metrics_of(Outcome(outcome.planned, outcome.parts, [record], outcome.origin_s))
    assert alone["tpot_s_mean"] == pytest.approx((e2e_s - ttft_s(record)) / 10)


def test_trap_07_own_count_in_place_of_the_server_s_in_silence(tmp_path: Path) -> None:
    """A count of our own is used only where the server told none, and the table says so."""
    told, untold = several_tokens([usage(5, 11)]), several_tokens([])

    async def script(request: Request, peer: Peer) -> None:
        await (told if request.number % 2 else untold)(request, peer)

    planned = closed_loop(2, warmup_s=0.05, requests=12)
    link = LocalLink(planned)
    with ScriptedServer(script) as server:
        task = StageTask.of(planned, endpoint("one", server.base_url), payloads(), 7)
        summary = run_event_loop(run_shard_over(task, link))
    outcome = Outcome(planned, (summary,), [], link.origin_s)
    with StageWriter(tmp_path / "stage", planned.key) as writer:
        writer.write(link.rows, worker=0, origin_s=link.origin_s)
        writer.finish(info_of(outcome), count_tokens=lambda text: len(text.split()))

    info, batches = open_stage(tmp_path / "stage")
    found = stage_summary(info, batches, FREE, Budgets())
    assert found["token_source"] == "server+tokenizer"
    columns = ["output_tokens", "token_source"]
    counted = {
        (row[columns[0]], row[columns[1]]) for b in batches(columns) for row in b.to_pylist()
    }
    assert counted == {(11, "server"), (4, "tokenizer")}


async def run_shard_over(task: StageTask, link: LocalLink) -> Any:
    """The only part of a stage."""
    return await run_shard(task, Shard(0, 1), link, RealClock())


def test_trap_08_waves_instead_of_steady_concurrency(server: Simulated) -> None:
    """A place is filled when its own request ends, not when the slowest of a wave does."""
    stage_at(server, [100, *[2] * 15], requests=48)

    truths = server.truth()
    long = next(one for one in truths if one.output_tokens == 100)
    assert long.finished_at_s is not None
    meanwhile = [one for one in truths if long.arrived_at_s < one.arrived_at_s < long.finished_at_s]
    assert len(meanwhile) > 3 * 3  # beside it there were three of its wave
    assert max(one.in_flight_at_arrival for one in truths) == 4


def test_trap_09_pool_smaller_than_the_concurrency_and_silent_retries() -> None:
    """Every request in flight has a connection, however many, and a failed one is not repeated."""
    all_here = asyncio.Event()

    async def script(request: Request, peer: Peer) -> None:
        if server.in_flight == 40:
            all_here.set()
        await all_here.wait()
        if request.prompt.endswith("measured-1"):
            await peer.send(response("500 Error", b"oops"))
        else:
            await answer(request, peer)

    with ScriptedServer(script) as server:
        outcome = scripted_stage(server, concurrency=40, warmup_s=0.0, requests=80)

    ids = [request.headers["x-request-id"] for request in server.requests]
    failed = [record for record in outcome.measured if record.payload_id == "measured-1"]
    assert max(server.in_flight_at_arrival) == server.connections == 40
    assert len(ids) == len(set(ids)) == len(outcome.records)
    assert {record.status for record in failed} == {"http_error"}
    assert metrics_of(outcome)["n_http_error"] == len(failed) == 20


def test_trap_10_connection_set_up_within_the_first_token(tmp_path: Path) -> None:
    """Connections are reused, and where one has to be made, that is no part of TTFT."""

    async def close(request: Request, peer: Peer) -> None:
        await answer(request, peer)
        peer.close()

    with ScriptedServer(answer) as server:
        scripted_stage(server, concurrency=3)
        kept = server.connections
    with ScriptedServer(close) as server:
        outcome = scripted_stage(server, concurrency=3)

    anew = [record for record in outcome.measured if not record.connection_reused]
    assert kept == 3
    assert len(anew) > 3
    assert {record.status for record in outcome.measured} == {"ok"}
    assert all(record.connected_at_s <= record.sent_at_s for record in anew)
    assert metrics_of(outcome)["ttft_s_mean"] == pytest.approx(
        np.mean([ttft_s(record) for record in outcome.measured])
    )


async def beside_a_blocker(task: StageTask, link: LocalLink) -> Any:
    """Run a stage on a loop that something else holds up for 60 ms, over and over."""

    async def block() -> None:
        while True:
            time.sleep(0.06)
            await asyncio.sleep(0.005)

    blocker = asyncio.ensure_future(block())
    try:
        return await run_shard(task, Shard(0, 1), link, RealClock())
    finally:
        blocker.cancel()


def test_trap_11_lag_of_the_client_s_own_loop_taken_for_the_server_s(server: Simulated) -> None:
    """A client too busy to read in time says so, and the stage is marked."""
    planned = closed_loop(4, duration_s=0.5)
    link = LocalLink(planned)
    task = StageTask.of(planned, endpoint("one", server.base_url), prompts_for([8]), 7)
    summary = run_event_loop(beside_a_blocker(task, link))

    records = [record_of(row, key=planned.key, origin_s=link.origin_s) for row in link.rows]
    found = metrics_of(Outcome(planned, (summary,), records, link.origin_s))
    assert found["loop_lag_s_max"] >= 0.03
    assert "the client's event loop was late by" in found["client_limited"]


def test_trap_12_one_prompt_over_and_over() -> None:
    """No prompt is sent twice, in the warm-up neither, so that no prefix cache answers."""
    with ScriptedServer(answer) as server:
        outcome = scripted_stage(server, requests=40)

    prompts = [request.prompt for request in server.requests]
    warm = {record.payload_id for record in outcome.records if record.phase == "warmup"}
    assert len(set(prompts)) == len(prompts) > 40
    assert len({prompt[:8] for prompt in prompts}) > 30  # they differ from the start on
    assert warm.isdisjoint(record.payload_id for record in outcome.measured)


def test_trap_13_percentiles_of_two_requests_a_place(server: Simulated) -> None:
    """From twice as many requests as places no tail is told, however the window was cut."""
    found = metrics_of(stage_at(server, requests=8))

    assert found["n_requests"] == 8
    assert found["latency_mean"] > 0
    for name in ("latency_p90", "latency_p95", "latency_p99", "ttft_s_p99", "latency_p99_ci_high"):
        assert np.isnan(found[name])


def test_trap_14_latency_below_zero_from_two_clocks(server: Simulated) -> None:
    """Over two processes all instants are of one clock: none is before what caused it."""
    server.forget()
    rows: list[tuple[Row, float]] = []

    def take(frames: Sequence[bytes], *, worker: int, origin_s: float) -> None:
        rows.extend((row, origin_s) for frame in frames for row in rows_of(frame))

    planned = closed_loop(4, requests=100)
    task = StageTask.of(planned, endpoint("one", server.base_url), prompts_for([4]), 7)
    with Workers(2, RealClock()) as workers:
        workers.run(task, 2, take)

    truths = last_truths(server.truth())
    records = [record_of(row, key=planned.key, origin_s=0.0) for row, _ in rows]
    measured = [record for record in records if record.phase == "measured"]
    assert len(measured) == 100
    assert all(in_order(record, truths[record.request_id]) for record in measured)


def in_order(record: RequestRecord, truth: RequestTruth) -> bool:
    """Whether a request's instants on either side, of one clock, follow from one another."""
    instants = [record.intended_at_s, record.sent_at_s, truth.arrived_at_s, truth.token_at_s[0]]
    return [*instants, record.token_at_s[0]] == sorted([*instants, record.token_at_s[0]])


def test_trap_15_time_per_output_token_of_one_token(server: Simulated) -> None:
    """An answer of one token has no time per further token: it is unknown, neither 0 nor ∞."""
    found = metrics_of(stage_at(server, [1], requests=100))

    assert (found["n_ok"], found["completion_token_count_mean"]) == (100, 1)
    assert found["ttft_s_p50"] > 0
    for name in ("tpot_s_mean", "tpot_s_p50", "tpot_s_p99", "itl_s_mean", "itl_s_p50"):
        assert np.isnan(found[name])


def test_trap_16_error_inside_a_200_taken_for_success(server: Simulated) -> None:
    """A stream that began with status 200 and then tells an error has failed."""
    at = endpoint("one", server.base_url, extra_body={"fault": "error_in_stream"})
    outcome = run_stage(closed_loop(4, requests=20), at, prompts=prompts_for([8]))

    found = metrics_of(outcome)
    assert {record.http_status for record in outcome.measured} == {200}
    assert (found["n_stream_error"], found["n_ok"], found["error_rate"]) == (20, 0, 1.0)


def nobody(_: Sequence[bytes], *, worker: int, origin_s: float) -> None:
    """Take rows."""


def run_workers(task: StageTask, deaths: list[str], *, killed: bool) -> None:
    """Run a stage that cannot begin over two workers, and note why it ended."""
    with Workers(2, RealClock()) as workers:
        if killed:
            for pid in workers.pids:
                os.kill(pid, signal.SIGKILL)
        try:
            workers.run(task, 2, nobody)
        except WorkerDied as death:
            deaths.append(str(death))


@pytest.mark.parametrize(
    ("reserved", "killed", "reason"),
    [(0, False, "has no prompts kept for warm-up"), (2, True, "was killed by SIGKILL")],
)
def test_trap_17_hanging_where_every_worker_fails_at_start(
    reserved: int, killed: bool, reason: str
) -> None:
    """Where no worker comes to the start, the stage ends with the reason; it waits for nobody."""
    at = endpoint("one", "http://127.0.0.1:1/v1")
    task = StageTask.of(closed_loop(4, duration_s=60.0), at, payloads(reserved=reserved), 7)

    deaths: list[str] = []
    thread = Thread(target=run_workers, args=(task, deaths), kwargs={"killed": killed}, daemon=True)
    thread.start()
    thread.join(30)

    assert not thread.is_alive()
    assert len(deaths) == 1
    assert reason in deaths[0]


def test_trap_18_failures_left_out_so_that_overload_looks_fast(tmp_path: Path) -> None:
    """A failure counts as infinitely slow: an overloaded server never looks fast for refusing."""
    with simulated(tmp_path, profile=profile(), faults={"http_error": 0.3}) as server:
        outcome = stage_at(server, requests=200)
        truths = last_truths(server.truth())

    struck = [truths[record.request_id].fault for record in outcome.measured].count("http_error")
    found = metrics_of(outcome)
    assert (found["n_requests"], found["n_http_error"]) == (200, struck)
    assert found["error_rate"] == struck / 200 > 0.1
    assert np.isfinite(found["ttft_s_p50"])
    assert found["ttft_s_p95"] == found["latency_p95"] == np.inf


def test_trap_19_constant_arrivals_that_are_random(server: Simulated) -> None:
    """Arrivals called constant are evenly spaced, to the last of them, and all are sent."""
    planned = open_loop(100.0, arrivals="constant", duration_s=0.5, warmup_s=0.1)
    outcome = run_stage(planned, endpoint("one", server.base_url), prompts=prompts_for([2]))

    due = sorted(record.intended_at_s for record in outcome.records if record.phase != "drain")
    gaps_s = [later - earlier for earlier, later in pairwise(due)]
    assert len(due) == 60
    assert gaps_s == pytest.approx([0.01] * 59, abs=1e-6)
    assert all(record.sent_at_s >= record.intended_at_s for record in outcome.measured)
    assert metrics_of(outcome)["achieved_rate_ratio"] == pytest.approx(1.0)


def test_every_trap_of_the_load_has_its_test() -> None:
    """The traps 1 to 19 are here, but for the one that waits for traces."""
    numbers = {int(name.split("_")[2]) for name in globals() if name.startswith("test_trap_")}

    assert numbers == set(range(1, 20)) - {5}

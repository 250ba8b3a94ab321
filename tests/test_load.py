"""The closed loop against a scripted server: what is in flight, on which prompts, and records."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmgauge.config import planned_stages
from fmgauge.config.loading import load_config
from fmgauge.errors import ConfigError, StepError
from fmgauge.load import Progress, ask_once, read_progress, run_stages
from fmgauge.records import (
    Endpoint,
    StageKey,
    held,
    read_endpoints,
    read_stage,
    write_endpoints,
    write_payloads,
)
from fmgauge.runs import Run, open_run
from scripted_server import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Peer,
    Request,
    Script,
    ScriptedServer,
    answer,
    chat_events,
    chunk,
    delta,
    event,
    response,
    usage,
)
from simulated_runs import closed_loop, metrics_of
from stage_runs import ClockOfLateTimers, Outcome, endpoint, payloads, run_stage

CONFIG = """
run: {{name: test, seed: 7}}
workloads:
  - {{name: short, source: {{kind: jsonl, paths: [none.jsonl]}}}}
experiments:
  - name: one
    model: {{name: tiny, tokenizer: tokenizer.json}}
    endpoint: {{kind: openai, base_url: "{base_url}", api_key_env: TEST_LOAD_KEY}}
    workloads: [short]
    load: &load
      - {{kind: closed_loop, concurrency: {concurrency}, warmup_s: {warmup_s},
         duration_s: {duration_s}, timeout_s: {timeout_s}}}
  - name: two
    model: {{name: tiny}}
    endpoint: {{kind: openai, base_url: "{base_url}"}}
    workloads: [short]
    load: *load
"""
LENGTH_FIELDS = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
PHASES = ("warmup", "measured", "drain")


def name_of(request: Request) -> str:
    """Which payload a request carries."""
    return request.prompt.split()[-1]


def phase_of(request: Request, seen: Counter[str]) -> str:
    """The phase of a request by its prompt and what came before, as the server can tell it."""
    if name_of(request).startswith("measured"):
        return "measured"
    return "drain" if seen["measured"] > 2 else "warmup"  # 2: both places have left the warm-up


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key that experiment one's endpoint asks for."""
    monkeypatch.setenv("TEST_LOAD_KEY", "key-12345")
    return "key-12345"


@pytest.fixture
def config_path(tmp_path: Path) -> Callable[..., Path]:
    """Writes a config whose endpoints answer at `base_url`."""

    def write(base_url: str, **changes: Any) -> Path:
        load = {"concurrency": [2], "warmup_s": 0.05, "duration_s": 0.2, "timeout_s": 10} | changes
        path = tmp_path / "config.yml"
        path.write_text(CONFIG.format(base_url=base_url, **load))
        return path

    return write


@pytest.fixture
def run_loop(config_path: Callable[..., Path]) -> Callable[..., Outcome]:
    """Runs one closed-loop stage of experiment two at `base_url`; what it left."""

    def run(base_url: str, parts: int = 1, **changes: Any) -> Outcome:
        planned = planned_stages(load_config(config_path(base_url, **changes)).config)[-1]
        return run_stage(planned, endpoint("two", base_url), parts=parts)

    return run


# --- concurrency ---------------------------------------------------------------------------------


def test_never_more_in_flight_than_asked(run_loop: Callable[..., Outcome]) -> None:
    """Under heavy-tailed service times the server counts the asked concurrency, and never more."""
    rng = random.Random(7)

    async def script(request: Request, peer: Peer) -> None:
        await asyncio.sleep(min(rng.lognormvariate(-6.0, 1.5), 0.2))
        await answer(request, peer)

    with ScriptedServer(script) as server:
        run_loop(server.base_url, concurrency=[5])

    assert max(server.in_flight_at_arrival) == 5


def test_there_are_no_waves(run_loop: Callable[..., Outcome]) -> None:
    """While one request waits, the other places go on: it is answered after thirty later ones."""
    answered = 0
    enough = asyncio.Event()

    async def script(request: Request, peer: Peer) -> None:
        nonlocal answered
        if request.number == 0:
            await enough.wait()
        await answer(request, peer)
        answered += 1
        if answered == 30:
            enough.set()

    with ScriptedServer(script) as server:
        outcome = run_loop(server.base_url, concurrency=[3], duration_s=1.0)

    assert {record.status for record in outcome.records} <= {"ok", "cancelled"}
    assert enough.is_set()


def test_connections_are_opened_before_the_clock_starts(run_loop: Callable[..., Outcome]) -> None:
    """The first request of each place finds its connection made: it was connected before 0 s."""
    with ScriptedServer(answer) as server:
        outcome = run_loop(server.base_url, concurrency=[3])

    firsts = [record for record in outcome.records if not record.connection_reused]
    assert len(firsts) == 3
    assert all(record.connected_at_s < 0 for record in firsts)


def test_server_that_drops_connections_fails_nothing(run_loop: Callable[..., Outcome]) -> None:
    """A server that closes after each answer costs no request and no place."""

    async def script(request: Request, peer: Peer) -> None:
        await answer(request, peer)
        peer.close()

    with ScriptedServer(script) as server:
        outcome = run_loop(server.base_url)

    assert Counter(record.status for record in outcome.measured).keys() == {"ok"}


def test_garbage_is_collected_again_after_a_stage(run_loop: Callable[..., Outcome]) -> None:
    """The collector is off while a stage takes times, and on again after it."""
    while_running: list[bool] = []

    async def script(request: Request, peer: Peer) -> None:
        while_running.append(gc.isenabled())
        await answer(request, peer)

    with ScriptedServer(script) as server:
        run_loop(server.base_url)

    assert (while_running[0], gc.isenabled()) == (False, True)


# --- phases and prompts --------------------------------------------------------------------------


def test_measured_prompts_are_sent_only_in_the_window(run_loop: Callable[..., Outcome]) -> None:
    """Warm-up and drain send kept prompts; measured requests send the others, in their order."""
    with ScriptedServer(answer) as server:
        outcome = run_loop(server.base_url)

    measured = [record.payload_id for record in outcome.measured]
    others = {record.payload_id for record in outcome.records if record.phase != "measured"}
    in_order = sorted(outcome.measured, key=lambda record: number_of(record.request_id))
    expected = [f"measured-{n % 4}" for n in range(len(measured))]
    assert [record.payload_id for record in in_order] == expected
    assert others == {"reserved-0", "reserved-1"}
    assert outcome.window_s == (0.05, 0.25)


def number_of(request_id: str) -> int:
    """The number of the sending, which ends its id."""
    return int(request_id.rpartition("-")[2])


def test_requests_of_the_window_are_those_due_in_it(run_loop: Callable[..., Outcome]) -> None:
    """No request of another phase was due in the window, and none of the window outside it."""
    with ScriptedServer(answer) as server:
        outcome = run_loop(server.base_url)

    window = outcome.window_s
    due = {
        phase: [r.intended_at_s for r in outcome.records if r.phase == phase] for phase in PHASES
    }
    assert window == (0.05, 0.25)
    assert max(due["warmup"]) < window[0] <= min(due["measured"])
    assert max(due["measured"]) < window[1]
    assert min(due["drain"], default=window[1]) >= window[1]
    assert outcome.finished_at_s >= 0.25


@pytest.mark.parametrize("parts", [1, 2])
def test_question_due_in_the_window_is_asked_where_its_timer_is_late(parts: int) -> None:
    """A user who thought until just before the window's end is measured, and none is forgotten."""
    stage = closed_loop(2, warmup_s=0.0, duration_s=0.145, think_time_s=0.1)
    with ScriptedServer(answer) as server:
        at = endpoint("one", server.base_url)
        outcome = run_stage(stage, at, parts=parts, clock=ClockOfLateTimers())

    due = [record.finished_at_s + 0.1 for record in outcome.measured]
    in_window = sorted([0.0, 0.0, *(instant for instant in due if instant < 0.145)])
    asked = sorted(record.intended_at_s for record in outcome.measured)
    assert asked == pytest.approx(in_window, abs=1e-6)
    assert len(asked) > 2
    assert {record.status for record in outcome.measured} == {"ok"}


def test_load_goes_on_until_the_last_measured_request_has_ended(
    run_loop: Callable[..., Outcome],
) -> None:
    """A measured request that outlasts the window ends under load, and is still recorded."""
    seen: Counter[str] = Counter()
    three_later = asyncio.Event()

    async def script(request: Request, peer: Peer) -> None:
        seen[phase := phase_of(request, seen)] += 1
        if phase == "measured" and seen["measured"] == 1:
            await three_later.wait()
        if seen["drain"] == 3:
            three_later.set()
        await answer(request, peer)

    with ScriptedServer(script) as server:
        outcome = run_loop(server.base_url)

    slow = max(outcome.measured, key=lambda record: record.finished_at_s)
    assert (slow.payload_id, slow.status) == ("measured-0", "ok")
    assert slow.finished_at_s > outcome.window_s[1]
    assert sum(record.phase == "drain" for record in outcome.records) >= 3


def test_fillers_in_flight_at_the_end_are_cancelled(run_loop: Callable[..., Outcome]) -> None:
    """What is in flight when the last measured request ends is recorded as cancelled, in drain."""
    seen: Counter[str] = Counter()
    filler_came = asyncio.Event()

    async def script(request: Request, peer: Peer) -> None:
        seen[phase := phase_of(request, seen)] += 1
        if phase == "measured" and seen["measured"] == 1:
            await filler_came.wait()
        if phase == "drain":
            filler_came.set()
            await asyncio.sleep(3600)  # an event that nobody sets would be garbage
        await answer(request, peer)

    with ScriptedServer(script) as server:
        outcome = run_loop(server.base_url)

    cancelled = [record for record in outcome.records if record.status == "cancelled"]
    assert [record.phase for record in cancelled] == ["drain"]


def test_no_two_sendings_share_a_prompt(run_loop: Callable[..., Outcome]) -> None:
    """Every sending is salted anew, whatever its phase, so that no cache can have seen it."""
    with ScriptedServer(answer) as server:
        run_loop(server.base_url)

    prompts = [request.prompt for request in server.requests]
    assert len(set(prompts)) == len(prompts) > 10


def test_experiments_are_sent_the_same_measured_prompts(
    config_path: Callable[..., Path],
) -> None:
    """Two experiments get equal measured prompts, each sending with a salt of its own."""
    seen = []
    for planned in planned_stages(load_config(config_path("http://127.0.0.1:1/v1")).config):
        with ScriptedServer(answer) as server:
            run_stage(planned, endpoint(planned.experiment.name, server.base_url))
        seen.append([request.prompt for request in server.requests if "measured" in request.prompt])

    names = [[prompt.split()[-1] for prompt in prompts] for prompts in seen]
    shortest = min(map(len, names))
    assert sorted(names[0][:shortest]) == sorted(names[1][:shortest])
    assert set(seen[0]).isdisjoint(seen[1])


def test_stage_without_kept_prompts_is_refused(config_path: Callable[..., Path]) -> None:
    """Without prompts kept for warm-up nothing is sent: measured prompts would be warm."""
    planned = planned_stages(load_config(config_path("http://127.0.0.1:1/v1")).config)[0]

    with pytest.raises(StepError, match="kept for warm-up"):
        run_stage(planned, endpoint("one", "http://127.0.0.1:1/v1"), prompts=payloads(reserved=0))


# --- records -------------------------------------------------------------------------------------


def test_record_ids_are_the_ids_that_the_server_saw(run_loop: Callable[..., Outcome]) -> None:
    """Each request has an id of its own, sent as x-request-id: records can be joined on it."""
    with ScriptedServer(answer) as server:
        outcome = run_loop(server.base_url)

    seen = [request.headers["x-request-id"] for request in server.requests]
    assert len(set(seen)) == len(seen)
    assert set(seen) == {record.request_id for record in outcome.records}


def test_ttft_contains_the_servers_own(run_loop: Callable[..., Outcome]) -> None:
    """TTFT is never below the time the server took to its first token, the role chunk aside."""
    took_s: dict[str, float] = {}

    async def script(request: Request, peer: Peer) -> None:
        arrived_at_s = time.perf_counter()
        role, *rest = map(chunk, chat_events())
        await peer.send(STREAM_HEAD, role)
        await asyncio.sleep(0.03)
        took_s[request.headers["x-request-id"]] = time.perf_counter() - arrived_at_s
        await peer.send(*rest)
        peer.served()
        await peer.send(LAST_CHUNK)

    with ScriptedServer(script) as server:
        outcome = run_loop(server.base_url)

    for record in outcome.measured:
        assert record.token_at_s[0] - record.sent_at_s >= took_s[record.request_id]


def test_instants_of_a_record_are_in_order(run_loop: Callable[..., Outcome]) -> None:
    """Intended, sent, first byte, tokens, finished: in this order, in every record."""
    with ScriptedServer(answer) as server:
        outcome = run_loop(server.base_url)

    for record in outcome.measured:
        instants = [record.intended_at_s, record.sent_at_s, record.first_byte_at_s]
        instants += [*record.token_at_s, record.finished_at_s]
        assert instants == sorted(instants)
        assert (len(record.token_at_s), record.output_tokens, record.prompt_tokens) == (2, 2, 5)


async def _nothing(_: Request, __: Peer) -> None:
    await asyncio.sleep(3600)  # an event that nobody sets would be garbage, its waiter with it


def _stream_of(*events: bytes, then: str = "") -> Script:
    async def script(_: Request, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, *map(chunk, events), *(() if then else (LAST_CHUNK,)))
        if then:
            getattr(peer, then)()

    return script


def _reply_of(reply: bytes) -> Script:
    async def script(_: Request, peer: Peer) -> None:
        await peer.send(reply)

    return script


async def _close(_: Request, peer: Peer) -> None:
    peer.close()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (_reply_of(response("429 Too Many Requests", b"slow down")), "throttled"),
        (_reply_of(response("503 Busy", b"later", "Retry-After: 1")), "throttled"),
        (_reply_of(response("500 Error", b"oops")), "http_error"),
        (_stream_of(delta(content="a"), event({"error": "oops"}), DONE), "stream_error"),
        (_stream_of(delta(content="a"), b"data: {oops\n\n"), "stream_error"),
        (_stream_of(delta(content="a"), then="close"), "truncated"),
        (_stream_of(delta(content="a"), then="reset"), "truncated"),
        (_stream_of(delta(content="a")), "truncated"),
        (_stream_of(delta(role="assistant"), delta(finish_reason="stop"), DONE), "empty"),
        (_close, "connection_error"),
        (_nothing, "timeout"),
    ],
)
def test_failure_is_a_record_and_the_loop_goes_on(
    run_loop: Callable[..., Outcome], fault: Script, status: str
) -> None:
    """Every kind of failure is recorded under its name, and requests around it are answered."""
    struck: list[str] = []

    async def script(request: Request, peer: Peer) -> None:
        first = "measured-1" in request.prompt and not struck
        if first or request.headers["x-request-id"] in struck:
            struck.append(request.headers["x-request-id"])  # a resent request fails again
            await fault(request, peer)
        else:
            await answer(request, peer)

    with ScriptedServer(script) as server:
        outcome = run_loop(server.base_url, timeout_s=1.5)

    failed = [record for record in outcome.measured if record.status != "ok"]
    assert [(record.request_id, record.status) for record in failed] == [(struck[0], status)]
    assert failed[0].error
    assert len(outcome.measured) > 3


def test_request_that_was_sent_twice_says_so() -> None:
    """Of a server that drops each connection's second request, what came twice is marked resent."""
    carried: set[int] = set()
    comings: Counter[str] = Counter()

    async def script(request: Request, peer: Peer) -> None:
        comings[request.headers["x-request-id"]] += 1
        if request.connection in carried:
            peer.reset()
        else:
            carried.add(request.connection)
            await answer(request, peer)

    with ScriptedServer(script) as server:
        planned = closed_loop(2, warmup_s=0.0, requests=30)
        outcome = run_stage(planned, endpoint("one", server.base_url))

    twice = {name for name, n in comings.items() if n == 2}
    assert twice
    assert {record.request_id for record in outcome.records if record.resent} == twice
    measured = {record.request_id for record in outcome.measured}
    assert metrics_of(outcome)["n_resent"] == len(twice & measured)


@pytest.mark.parametrize(
    ("api", "extra_body", "asked"),
    [
        ("chat", {}, 16),
        ("chat", {"temperature": 0, "max_output_tokens": 3}, 16),  # no field of this API
        ("chat", {"max_tokens": 5}, 5),
        ("chat", {"max_completion_tokens": 300}, 300),
        ("chat", {"max_tokens": None}, None),
        ("completions", {"max_tokens": 5}, 5),
        ("responses", {"max_output_tokens": 5}, 5),
        ("responses", {"max_tokens": 5}, 16),
    ],
)
def test_record_says_how_many_tokens_were_asked_for(
    api: Any, extra_body: dict[str, Any], asked: int | None
) -> None:
    """The payload's length, unless the endpoint's own body sets another or none."""
    with ScriptedServer(answer) as server:
        at = endpoint("one", server.base_url, api=api, extra_body=extra_body)
        record = ask_once(at, max_output_tokens=16)

    (request,) = server.requests
    sent = [request.fields.get(name) for name in LENGTH_FIELDS[api] if name in request.fields]
    assert record.max_output_tokens == asked
    assert sent == [asked]


def test_dead_endpoint_is_not_hammered(run_loop: Callable[..., Outcome]) -> None:
    """Where nobody listens every attempt is a record, and each place pauses before the next."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]

    outcome = run_loop(f"http://127.0.0.1:{port}/v1")

    assert {record.status for record in outcome.records} == {"connection_error"}
    assert outcome.measured
    assert len(outcome.records) <= 2 * (outcome.finished_at_s / 0.1 + 1)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "500 Error", "502 Bad Gateway"])
def test_server_that_refuses_at_once_is_not_hammered(
    run_loop: Callable[..., Outcome], status: str
) -> None:
    """An answer that costs the server nothing frees its place only after a pause."""
    with ScriptedServer(_reply_of(response(status, b"no"))) as server:
        outcome = run_loop(server.base_url)

    assert {record.http_status for record in outcome.records} == {int(status[:3])}
    assert outcome.measured
    assert len(outcome.records) <= 2 * (outcome.finished_at_s / 0.1 + 1)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that answers everything with two tokens."""
    with ScriptedServer(answer) as server:
        yield server


@pytest.fixture
def new_run(config_path: Callable[..., Path], tmp_path: Path) -> Callable[..., Run]:
    """Opens a run, with payloads prepared, whose endpoints answer at `base_url`.

    Its tokenizer counts words; what is cut off within an answer at a stage's end needs it, too.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "well": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))

    def open_(base_url: str, **changes: Any) -> Run:
        run = open_run(config_path(base_url, **changes), "test-run")
        write_payloads(run.payloads_path("short"), payloads())
        return run

    return open_


def both(base_url: str, **of_one: Any) -> dict[str, Endpoint]:
    """Ready endpoints of both experiments."""
    return {"one": endpoint("one", base_url, **of_one), "two": endpoint("two", base_url)}


def test_every_stage_is_written(new_run: Callable[..., Run], server: ScriptedServer) -> None:
    """Each planned stage leaves its records and facts, and is announced in one line."""
    run = new_run(server.base_url, concurrency=[1, 2])
    lines: list[str] = []

    done = run_stages(run, both(server.base_url), announce=lines.append)

    assert done == [planned.key for planned in planned_stages(run.config)]
    info, table = read_stage(run.stage_folder(done[1]))
    assert (info.concurrency, info.kind, info.seed) == (2, "closed_loop", 7)
    assert set(table["experiment"].to_pylist()) == {"one"}
    assert len(lines) == 4
    assert lines[1].startswith("one/short/concurrency-2: ")


def test_a_stage_stops_where_its_endpoint_has_ended(
    new_run: Callable[..., Run], server: ScriptedServer
) -> None:
    """Its records are kept aside, endpoints.json has the reason, and the next experiment runs."""
    run = new_run(server.base_url, duration_s=60.0)
    write_endpoints(run.endpoints_path, list(both(server.base_url).values()))
    lines: list[str] = []

    def ended(experiment: str) -> str | None:
        return f"its server ended ({experiment})" if server.requests else None

    done = run_stages(run, both(server.base_url), announce=lines.append, ended=ended)

    assert done == []
    assert [line.split(". ")[0] for line in lines] == [
        f"{name}/short/concurrency-2 failed: its server ended ({name})" for name in ("one", "two")
    ]
    kept = run.requests_folder / "one" / "short" / "concurrency-2.failed"
    assert json.loads((kept / "failure.json").read_text())["n_records"] > 0
    after = read_endpoints(run.endpoints_path)
    assert [(e.state, e.error) for e in after.values()] == [
        ("failed", f"its server ended ({name})") for name in ("one", "two")
    ]


def test_a_run_is_loaded_by_one_process_at_a_time(
    new_run: Callable[..., Run], server: ScriptedServer
) -> None:
    """A second one would double the load, and each would remove what the other writes."""
    run = new_run(server.base_url)
    with (
        held(run.folder / ".load.lock", "loads"),
        pytest.raises(StepError, match=f"process {os.getpid()} brings up or loads the endpoints"),
    ):
        run_stages(run, both(server.base_url), announce=lambda _: None, patience_s=0.2)

    assert not run.stage_folder(planned_stages(run.config)[0].key).exists()


def test_stage_that_is_done_is_not_run_again(
    new_run: Callable[..., Run], server: ScriptedServer
) -> None:
    """A run that goes on runs the missing stages only."""
    run = new_run(server.base_url)
    run_stages(run, {"one": endpoint("one", server.base_url)}, announce=lambda _: None)

    done = run_stages(run, both(server.base_url), announce=lambda _: None)

    assert done == [StageKey("two", "short", "concurrency-2")]


def test_experiment_is_done_after_its_last_missing_stage(
    new_run: Callable[..., Run], server: ScriptedServer
) -> None:
    """Each experiment is reported done once, at once when nothing of it is left."""
    run = new_run(server.base_url)
    order: list[str] = []

    for _ in range(2):
        run_stages(run, both(server.base_url), order.append, lambda line: order.append(line[:4]))

    assert order == ["one/", "one", "two/", "two", "one", "two"]


def test_endpoint_that_is_not_ready_is_skipped_aloud(
    new_run: Callable[..., Run], server: ScriptedServer
) -> None:
    """An endpoint that did not come up costs its own stages only, and its reason is told."""
    run = new_run(server.base_url)
    failed = Endpoint("one", "openai", "failed", None, "tiny", None, 1, False, error="no memory")
    lines: list[str] = []

    done = run_stages(run, both(server.base_url) | {"one": failed}, announce=lines.append)

    assert [key.experiment for key in done] == ["two"]
    assert "no memory" in lines[0]


def test_interrupted_stage_is_not_written(new_run: Callable[..., Run]) -> None:
    """Ctrl-C ends the load at once and leaves no trace of the stage in flight."""
    struck = []

    async def script(request: Request, peer: Peer) -> None:
        if "measured" in request.prompt and not struck:
            struck.append(request.number)
            os.kill(os.getpid(), signal.SIGINT)
        await answer(request, peer)

    with ScriptedServer(script) as server:
        run = new_run(server.base_url)
        with pytest.raises(KeyboardInterrupt):
            run_stages(run, both(server.base_url), announce=lambda _: None)

        assert server.comes_to(lambda: not server.open_connections)
    assert not [path for path in run.requests_folder.rglob("*") if path.is_file()]


def test_key_is_sent_but_never_recorded(new_run: Callable[..., Run], key: str) -> None:
    """The key goes into the header, and not into a record even where the server repeats it."""

    async def script(request: Request, peer: Peer) -> None:
        await peer.send(response("401 No", request.headers["authorization"].encode()))

    with ScriptedServer(script) as server:
        run = new_run(server.base_url)
        endpoints = {"one": endpoint("one", server.base_url, api_key_env="TEST_LOAD_KEY")}
        done = run_stages(run, endpoints, announce=lambda _: None)

    errors = set(read_stage(run.stage_folder(done[0]))[1]["error"].to_pylist())
    assert server.requests[0].headers["authorization"] == f"Bearer {key}"
    assert "HTTP 401: Bearer ***" in errors
    assert not any(error and key in error for error in errors)


def test_key_cut_short_by_the_longest_error_is_in_no_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where an error text ends within the key, its first characters are not left standing."""
    key = "sk-test-0123456789abcdef"
    monkeypatch.setenv("TEST_LOAD_KEY", key)
    page = b"x" * 480 + key.encode()

    with ScriptedServer(_reply_of(response("401 Unauthorized", page))) as server:
        remote = endpoint("x", server.base_url, api_key_env="TEST_LOAD_KEY")
        error = ask_once(remote).error or ""

    assert "HTTP 401: xxx" in error
    assert key[:4] not in error


@pytest.mark.parametrize("value", ["", "two words", "caf\u00e9"])
def test_key_that_is_not_set_is_refused_before_the_first_request(
    new_run: Callable[..., Run],
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
) -> None:
    """A missing or impossible key is an error that names the config's line; nothing is sent."""
    monkeypatch.setenv("TEST_LOAD_KEY", value)
    run = new_run(server.base_url)
    endpoints = both(server.base_url, api_key_env="TEST_LOAD_KEY")

    with pytest.raises(ConfigError, match=r"config.yml:8: .*api_key_env.*TEST_LOAD_KEY"):
        run_stages(run, endpoints, announce=lambda _: None)

    assert server.requests == []


@pytest.mark.parametrize("counts", [[], [usage(0, 0)]])
def test_tokens_are_counted_where_the_server_counts_none(
    new_run: Callable[..., Run], counts: list[bytes]
) -> None:
    """Without usage, or with zeros in it, the workload's tokenizer counts, and the record says."""
    texts = delta(content="well well we"), delta(content="ll"), delta(finish_reason="stop")

    with ScriptedServer(_stream_of(*texts, *counts, DONE)) as server:
        run = new_run(server.base_url)
        endpoints = {"one": endpoint("one", server.base_url)}
        done = run_stages(run, endpoints, announce=lambda _: None)

    rows = read_stage(run.stage_folder(done[0]))[1].to_pylist()
    row = next(row for row in rows if row["status"] == "ok")
    assert (row["output_tokens"], row["prompt_tokens"], row["token_source"]) == (3, 7, "tokenizer")
    assert row["response_text"] is None


def test_a_prompt_that_the_server_says_has_no_tokens_keeps_its_count(
    new_run: Callable[..., Run],
) -> None:
    """A 0 beside a counted output is what the server told, not a count that is missing."""
    texts = delta(content="well"), delta(finish_reason="stop")

    with ScriptedServer(_stream_of(*texts, usage(0, 1), DONE)) as server:
        run = new_run(server.base_url)
        endpoints = {"one": endpoint("one", server.base_url)}
        done = run_stages(run, endpoints, announce=lambda _: None)

    rows = read_stage(run.stage_folder(done[0]))[1].to_pylist()
    row = next(row for row in rows if row["status"] == "ok")
    assert (row["output_tokens"], row["prompt_tokens"], row["token_source"]) == (1, 0, "server")


# --- a full disk ---------------------------------------------------------------------------------

LIMITED = """
import resource, sys
import psutil
from fmgauge.errors import StepError
from fmgauge.load import run_stages
from fmgauge.records import read_endpoints
from fmgauge.runs import find_run

run, most_bytes = find_run(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
try:
    run_stages(run, read_endpoints(run.endpoints_path), announce=lambda _: None)
except StepError as error:
    print(error)
print(psutil.Process().children())
"""


async def _bulky(_: Request, peer: Peer) -> None:
    """Script: 10 KB of text that cannot be compressed by more than half, its tokens not told."""
    text = delta(content=os.urandom(5_000).hex())
    await peer.send(STREAM_HEAD, *map(chunk, (text, delta(finish_reason="stop"), DONE)), LAST_CHUNK)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("script", "duration_s", "most_bytes"),
    [
        pytest.param(_bulky, "null, requests: 1500", 1_000_000, id="in the middle"),
        pytest.param(answer, 0.2, 2_000, id="in the last records"),
        pytest.param(answer, 0.2, 20, id="at once"),
    ],
)
def test_full_disk_fails_the_stage_and_it_is_run_again(
    new_run: Callable[..., Run], script: Script, duration_s: Any, most_bytes: int
) -> None:
    """Where a file can grow no further the stage ends with the disk's reason and leaves nothing.

    The system's limit on a file's size stands for the disk: writing fails in just the same way.
    """
    with ScriptedServer(script) as server:
        run = new_run(server.base_url, duration_s=duration_s)
        write_endpoints(run.endpoints_path, [endpoint("two", server.base_url)])
        command = [sys.executable, "-c", LIMITED, str(run.folder), str(most_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)

    said, workers = done.stdout.splitlines()
    assert said.startswith("two/short/concurrency-2 failed: [Errno 27] ")
    assert "File too large" in said
    assert said.endswith("could not be kept. Run again with --resume.")
    assert (workers, done.stderr) == ("[]", "")
    assert not [path for path in run.requests_folder.rglob("*") if path.is_file()]

    with ScriptedServer(answer) as server:
        again = run_stages(run, {"two": endpoint("two", server.base_url)}, announce=lambda _: None)

    assert [read_stage(run.stage_folder(key))[0].stage for key in again] == ["concurrency-2"]


def is_worker(process: psutil.Process) -> bool:
    """Whether a child of this process sends requests; servers of other tests are children, too."""
    return "fmgauge.load.worker" in " ".join(process.cmdline())


def test_stage_that_is_whole_after_all_replaces_what_was_kept_of_its_failure(
    new_run: Callable[..., Run],
) -> None:
    """A worker that died left its records beside the stage's place; the next try removes them.

    It is killed while it waits for an answer, so the stage cannot be over before.
    """

    async def killing(request: Request, peer: Peer) -> None:
        if request.number == 20:
            (worker,) = [one for one in psutil.Process().children() if is_worker(one)]
            worker.kill()
        await answer(request, peer)

    with ScriptedServer(killing) as server:
        run = new_run(server.base_url, duration_s="null, requests: 40")
        at = {"two": endpoint("two", server.base_url)}
        with pytest.raises(StepError, match=r"SIGKILL.* are kept in concurrency-2\.failed\. Run"):
            run_stages(run, at, announce=lambda _: None)
        left = [path.name for path in run.requests_folder.glob("two/short/*")]
        run_stages(run, at, announce=lambda _: None)

    assert left == ["concurrency-2.failed"]
    assert [path.name for path in run.requests_folder.glob("two/short/*")] == ["concurrency-2"]


# --- progress ------------------------------------------------------------------------------------


def test_progress_is_written_while_a_stage_runs(new_run: Callable[..., Run]) -> None:
    """While requests are sent the file tells the stage, what is in flight and what is left."""
    seen: list[Progress] = []

    async def script(request: Request, peer: Peer) -> None:
        progress = read_progress(run.progress_path)
        if progress is not None and progress.in_flight:
            seen.append(progress)
        await asyncio.sleep(0.005)
        await answer(request, peer)

    with ScriptedServer(script) as server:
        run = new_run(server.base_url, duration_s=1.2)
        run_stages(run, {"two": endpoint("two", server.base_url)}, announce=lambda _: None)

    during = seen[0]
    assert (during.stage, during.stage_number, during.n_stages) == ("two/short/concurrency-2", 2, 2)
    assert 1 <= during.in_flight <= 2
    assert 1.25 - during.elapsed_s <= during.stage_remaining_s <= during.stage_remaining_most_s
    assert during.run_remaining_s == during.stage_remaining_s
    assert read_progress(run.progress_path).stage_remaining_s == 0


def test_progress_counts_the_stages_to_come(
    new_run: Callable[..., Run], server: ScriptedServer
) -> None:
    """After a stage the time left in the run is the planned time of those still missing."""
    run = new_run(server.base_url)
    left: list[float] = []

    def note(_: str) -> None:
        left.append(read_progress(run.progress_path).run_remaining_s)

    run_stages(run, both(server.base_url), announce=note)

    assert left == [0.25, 0.0]


@pytest.mark.whole
def test_progress_of_a_count_is_estimated_by_the_rate_so_far(
    new_run: Callable[..., Run], server: ScriptedServer
) -> None:
    """While a stage goes on that 200 requests end: what is missing of them, at the rate so far."""
    seen: list[Progress] = []

    async def script(request: Request, peer: Peer) -> None:
        progress = read_progress(run.progress_path)
        if progress is not None and progress.measured_done:
            seen.append(progress)
        await asyncio.sleep(0.005)
        await answer(request, peer)

    with ScriptedServer(script) as server:
        run = new_run(server.base_url, duration_s="null, requests: 200", warmup_s=0)
        run_stages(run, both(server.base_url), announce=lambda _: None)

    during = seen[0]
    missing = 200 - during.measured_done
    assert (during.measured_planned, during.later_requests) == (200, 200)
    assert 0 < missing < 200
    assert during.stage_remaining_s == pytest.approx(missing / during.request_rate)
    assert during.run_remaining_s == during.stage_remaining_s
    last = read_progress(run.progress_path)
    assert (last.measured_done, last.stage_remaining_s, last.later_requests) == (200, 0, 0)


@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b"[1]", b'{"stage": 1, "other": 2}'])
def test_progress_that_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    """No file, half a file or another file is no progress, and no error."""
    path = tmp_path / "progress.json"
    if content is not None:
        path.write_bytes(content)

    assert read_progress(path) is None


# --- one request ---------------------------------------------------------------------------------


def test_ask_once_returns_the_record(server: ScriptedServer) -> None:
    """One question, one record with the answer's text."""
    record = ask_once(endpoint("x", server.base_url), prompt="Hi", max_output_tokens=3)

    assert (record.status, record.response_text, record.output_tokens) == ("ok", "Hello", 2)
    assert server.requests[0].prompt == "Hi"
    assert server.requests[0].fields["max_tokens"] == 3


def test_ask_once_where_nobody_listens_is_a_record() -> None:
    """A refused connection is what a probe is for: a record, not an exception."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]

    assert ask_once(endpoint("x", f"http://127.0.0.1:{port}/v1")).status == "connection_error"


def test_ask_once_without_its_key_is_refused(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key variable that is not set is the user's to mend, before anything is sent."""
    monkeypatch.delenv("TEST_LOAD_KEY")

    with pytest.raises(ConfigError, match="TEST_LOAD_KEY"):
        ask_once(endpoint("x", server.base_url, api_key_env="TEST_LOAD_KEY"))

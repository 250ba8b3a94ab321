"""Every fault that a server can commit, through the real loop: its record, its count, the others.

The simulated server runs as a process of its own and draws who is struck. What it knows of every
request, its ground truth, is what the records are judged by, joined on the request's id.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from fmgauge.emulator.faults import FAULTS
from fmgauge.emulator.truth import RequestTruth
from fmgauge.records import RequestRecord
from scripted_server import (
    DONE,
    STREAM_HEAD,
    Peer,
    Request,
    Script,
    ScriptedServer,
    answer,
    chat_events,
    chunk,
    delta,
    response,
    usage,
)
from simulated_runs import (
    Simulated,
    closed_loop,
    last_truths,
    metrics_of,
    profile,
    prompts_for,
    simulated,
    ttft_errors_s,
    ttft_s,
)
from stage_runs import Outcome, endpoint, run_stage

CONCURRENCY, REQUESTS, OUTPUT_TOKENS = 16, 800, 8
SPIKE_S, SILENCE_S = 0.4, 0.3

# Status and error of a request that each fault struck; a fault without an error fails nobody.
STRUCK: dict[str, tuple[str, str | None]] = {
    "http_error": ("http_error", r"HTTP 500: .*a simulated failure"),
    "throttle": ("throttled", r"HTTP 429: .*a simulated rate limit"),
    "error_in_stream": ("stream_error", r"a simulated failure within the answer"),
    "latency_spike": ("ok", None),
    "stall": ("timeout", r"no further byte within 0\.3 s"),
    "truncate": ("truncated", r"the answer ended without a finish_reason"),
    "close_before_headers": ("connection_error", r"the server closed the connection"),
    "close_after_headers": ("truncated", r"the server closed the connection"),
    "close_mid_chunk": ("truncated", r"the server closed the connection"),
    "reset": ("truncated", r"reset by peer"),
    "wrong_content_type": ("truncated", r"it begins: <!doctype html>"),
    "malformed_json": ("stream_error", r"malformed JSON: \{"),
    "usage_missing": ("ok", None),
    "usage_wrong": ("ok", None),
    "duplicate_role": ("ok", None),
}
each_fault = pytest.mark.parametrize("fault", STRUCK)


@dataclass(frozen=True)
class Faulty:
    """A stage in which nearly a third of the requests were struck, and one where none was."""

    outcome: Outcome
    truths: list[RequestTruth]
    clean: Outcome
    clean_truths: list[RequestTruth]
    metrics: dict[str, Any]
    last: dict[str, RequestTruth] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "last", last_truths(self.truths))

    @property
    def ended(self) -> list[RequestRecord]:
        """Records of requests that were not cancelled when the stage was over."""
        return [record for record in self.outcome.records if record.status != "cancelled"]

    def struck_by(self, fault: str | None) -> list[RequestRecord]:
        """Records of the requests that the server says it treated so."""
        return [one for one in self.ended if self.last[one.request_id].fault == fault]


def run_faulty(server: Simulated) -> Faulty:
    """The same load twice at one server: with the faults that it draws, and without any."""
    planned = closed_loop(CONCURRENCY, requests=REQUESTS, between_bytes_timeout_s=SILENCE_S)
    prompts = prompts_for([OUTPUT_TOKENS] * 8)
    outcome = run_stage(planned, endpoint("one", server.base_url), prompts=prompts)
    truths = server.truth()
    server.forget()
    healthy = endpoint("one", server.base_url, extra_body={"fault": "none"})
    clean = run_stage(planned, healthy, prompts=prompts)
    return Faulty(outcome, truths, clean, server.truth(), metrics_of(outcome))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """One stage at a server that commits every fault in 2 % of the requests each."""
    folder = tmp_path_factory.mktemp("faulty")
    faults = dict.fromkeys(FAULTS, 0.02) | {"latency_spike_s": SPIKE_S}
    with simulated(folder, profile=profile(), faults=faults) as server:
        yield run_faulty(server)


def test_every_fault_of_the_server_is_tried() -> None:
    """What this module expects is told of exactly the faults that the server can commit."""
    assert set(STRUCK) == set(FAULTS)


# --- what is struck ------------------------------------------------------------------------------


@each_fault
def test_struck_request_is_recorded_for_what_it_met(faulty: Faulty, fault: str) -> None:
    """Each request that the server struck has the fault's status and error text, in any phase."""
    status, error = STRUCK[fault]
    records = faulty.struck_by(fault)

    assert len(records) >= 5
    assert {record.status for record in records} == {status}
    if error is None:
        assert {record.error for record in records} == {None}
    else:
        assert all(re.search(error, record.error or "") for record in records)


def test_failures_are_as_many_as_the_server_committed(faulty: Faulty) -> None:
    """By status, records are exactly as many as the server's own count of the faults behind it."""
    ids = {record.request_id for record in faulty.ended}
    committed = Counter(
        STRUCK[truth.fault][0] if truth.fault else "ok"
        for name, truth in faulty.last.items()
        if name in ids
    )

    assert Counter(record.status for record in faulty.ended) == committed


def test_every_request_that_arrived_has_one_record(faulty: Faulty) -> None:
    """The server's ids and the records' are the same, each of them in one record."""
    ids = [record.request_id for record in faulty.outcome.records]

    assert len(set(ids)) == len(ids)
    assert {record.request_id for record in faulty.ended} <= set(faulty.last) <= set(ids)


def test_no_failure_is_retried(faulty: Faulty) -> None:
    """What came twice had met a close on a kept connection, which may have crossed the request."""
    comings: dict[str, list[RequestTruth]] = {}
    carried: set[int] = set()
    on_kept: set[str] = set()
    for truth in faulty.truths:
        comings.setdefault(truth.request_id, []).append(truth)
        if truth.connection in carried:
            on_kept.add(truth.request_id)
        carried.add(truth.connection)

    twice = {name: of_one for name, of_one in comings.items() if len(of_one) > 1}
    assert {of_one[0].fault for of_one in twice.values()} <= {"close_before_headers"}
    assert {len(of_one) for of_one in twice.values()} <= {2}
    assert set(twice) <= on_kept


def test_failures_are_in_the_metrics(faulty: Faulty) -> None:
    """The error rate and every n_<status> are the server's counts of the measured requests."""
    measured = [faulty.last[record.request_id] for record in faulty.outcome.measured]
    expected = Counter(STRUCK[truth.fault][0] if truth.fault else "ok" for truth in measured)
    n_failed = REQUESTS - expected["ok"]
    found = {name: faulty.metrics[f"n_{name}"] for name in expected}

    assert found == expected
    assert faulty.metrics["n_requests"] == REQUESTS
    assert faulty.metrics["error_rate"] == n_failed / REQUESTS


def test_latency_spike_is_in_the_time_to_first_token(faulty: Faulty) -> None:
    """A token that the server held back is late in the record, too."""
    assert min(ttft_s(record) for record in faulty.struck_by("latency_spike")) >= SPIKE_S


def test_stalled_request_keeps_the_tokens_that_came(faulty: Faulty) -> None:
    """Half of the tokens have their instants; the record ends no earlier than the silence may."""
    for record in faulty.struck_by("stall"):
        assert len(record.token_at_s) == OUTPUT_TOKENS // 2
        assert record.finished_at_s - record.token_at_s[-1] >= 0.99 * SILENCE_S


def test_usage_that_is_missing_leaves_the_count_to_the_tokenizer(faulty: Faulty) -> None:
    """No count is invented: the record says whose it will be, and keeps the text for it."""
    for record in faulty.struck_by("usage_missing"):
        assert (record.output_tokens, record.token_source) == (None, "tokenizer")
        assert len((record.response_text or "").split()) == OUTPUT_TOKENS


def test_usage_that_is_wrong_is_the_server_s_word(faulty: Faulty) -> None:
    """The server's count stands as it told it; the tokens' instants show that there were more."""
    for record in faulty.struck_by("usage_wrong"):
        assert (record.output_tokens, record.token_source) == (OUTPUT_TOKENS // 2, "server")
        assert len(record.token_at_s) == OUTPUT_TOKENS


def test_usage_that_is_wrong_is_counted_as_doubtful(faulty: Faulty) -> None:
    """Exactly the measured answers whose usage the server falsified, and no other of its faults."""
    struck = [record for record in faulty.struck_by("usage_wrong") if record.phase == "measured"]

    assert len(struck) > 0
    assert faulty.metrics["n_doubtful_counts"] == len(struck)
    assert metrics_of(faulty.clean)["n_doubtful_counts"] == 0


def test_role_chunks_that_come_thrice_are_no_tokens(faulty: Faulty) -> None:
    """A first token is never earlier than the server's, however many chunks came before it."""
    records = faulty.struck_by("duplicate_role")

    assert {len(record.token_at_s) for record in records} == {OUTPUT_TOKENS}
    assert ttft_errors_s(records, faulty.last)[0] > 0


# --- the others ----------------------------------------------------------------------------------


def quantile(ordered: list[float], share: float) -> float:
    """The value below which that share of an ascending list lies."""
    return ordered[int(share * (len(ordered) - 1))]


def test_faults_leave_the_others_first_tokens_alone(faulty: Faulty) -> None:
    """Beside faults that last 0.3 s and more, healthy requests are timed as without any fault.

    Client and server read one clock: what is told of a first token can only be late, and is as
    late as in the stage without faults, up to what a busy machine does to either.
    """
    others = ttft_errors_s(faulty.struck_by(None), faulty.last)
    clean = ttft_errors_s(faulty.clean.measured, last_truths(faulty.clean_truths))

    assert len(others) > REQUESTS / 2
    assert others[0] > 0
    assert quantile(others, 0.5) - quantile(clean, 0.5) < 0.03
    assert quantile(others, 0.95) < max(quantile(clean, 0.95) + 0.05, 0.1)


def test_faults_leave_the_others_answers_whole(faulty: Faulty) -> None:
    """Every healthy request has all of its tokens, in order, and the server's count of them."""
    for record in faulty.struck_by(None):
        assert record.output_tokens == len(record.token_at_s) == OUTPUT_TOKENS
        assert list(record.token_at_s) == sorted(record.token_at_s)


def test_faults_never_add_to_the_concurrency(faulty: Faulty) -> None:
    """However requests end, the server never gets one more than asked for while others go on.

    One that the client has left is over for it, though the server may hear of that later.
    """
    left_at_s = {
        record.request_id: faulty.outcome.origin_s + record.finished_at_s
        for record in faulty.outcome.records
    }
    steps = []
    for truth in faulty.truths:
        ended_at_s = truth.finished_at_s
        if truth.outcome in ("client_left", None):
            ended_at_s = left_at_s[truth.request_id]
        steps += [(truth.arrived_at_s, 1), (ended_at_s, -1)]
    in_flight = list(accumulate(step for _, step in sorted(steps)))

    assert max(in_flight) == CONCURRENCY


# --- faults of connections and of bytes ----------------------------------------------------------


def test_slow_accept_is_waited_for_once_a_connection(tmp_path: Path) -> None:
    """A server slow to accept fails nobody; what comes later on a connection does not wait."""
    with simulated(tmp_path, profile=profile(), faults={"slow_accept_s": SPIKE_S}) as server:
        planned = closed_loop(4, warmup_s=1.0, requests=200)
        outcome = run_stage(planned, endpoint("one", server.base_url), prompts=prompts_for([2]))
        truths = last_truths(server.truth())

    firsts = [record for record in outcome.records if not record.connection_reused]
    later = [record for record in outcome.records if record.connection_reused]
    assert {record.status for record in outcome.measured} == {"ok"}
    assert len(firsts) == 4
    assert all(one.token_at_s[0] - (one.connected_at_s or 0.0) >= SPIKE_S for one in firsts)
    assert quantile(ttft_errors_s(later, truths), 0.9) < SPIKE_S / 2


async def _slow_loris(_: Request, peer: Peer) -> None:
    """A body that never ends, byte by byte."""
    await peer.send(STREAM_HEAD, chunk(delta(content="a")))
    while True:
        await peer.send(chunk(b":"))
        await asyncio.sleep(0.02)


async def _endless(_: Request, peer: Peer) -> None:
    """A body that never ends, as fast as it goes."""
    block = chunk(b":" + b" " * 2**20 + b"\n")
    await peer.send(STREAM_HEAD, chunk(delta(content="a")))
    while True:
        await peer.send(block)


async def _reset_at_once(_: Request, peer: Peer) -> None:
    peer.reset()


async def _error_then_done(_: Request, peer: Peer) -> None:
    """An error event that a proxy puts into a stream as it breaks off."""
    await peer.send(STREAM_HEAD, chunk(delta(content="a")))
    await peer.send(chunk(b"event: error\ndata: upstream went away\n\n"), chunk(DONE))
    peer.close()


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        (_slow_loris, "timeout", "no complete answer within 0.6 s"),
        (_endless, "stream_error", "an answer larger than 64 MiB"),
        (_reset_at_once, "connection_error", "reset by peer"),
        (_error_then_done, "stream_error", "upstream went away"),
    ],
)
def test_fault_of_bytes_strikes_its_own_request_only(
    fault: Script, status: str, error: str
) -> None:
    """One prompt's answers break, as a server can break any: its requests fail, no other does."""

    async def script(request: Request, peer: Peer) -> None:
        strikes = request.prompt.endswith("measured-5")
        await (fault if strikes else answer)(request, peer)

    planned = closed_loop(2, warmup_s=0.05, requests=16, timeout_s=0.6 if "0.6" in error else 20.0)
    with ScriptedServer(script) as server:
        prompts = prompts_for([2] * 16)
        outcome = run_stage(planned, endpoint("one", server.base_url), prompts=prompts)

    by_payload = {record.payload_id: record for record in outcome.measured}
    struck = by_payload.pop("measured-5")
    assert (struck.status, error in (struck.error or "")) == (status, True)
    assert {record.status for record in by_payload.values()} == {"ok"}
    assert len(by_payload) == 15


@pytest.mark.parametrize(
    ("last", "status"), [(DONE, "ok"), (usage(5, 2), "timeout")], ids=["done", "usage"]
)
def test_whole_answer_needs_no_end_of_its_body(last: bytes, status: str) -> None:
    """What ended with [DONE] was whole, whatever holds the body open; nothing less tells that."""

    async def script(_: Request, peer: Peer) -> None:
        told = chat_events()[:-1]
        await peer.send(STREAM_HEAD, *map(chunk, [*told, last]))
        await asyncio.sleep(60)  # until the test is over

    planned = closed_loop(2, warmup_s=0.0, requests=4, timeout_s=0.4)
    with ScriptedServer(script) as server:
        prompts = prompts_for([2] * 4)
        outcome = run_stage(planned, endpoint("one", server.base_url), prompts=prompts)

    assert [record.status for record in outcome.measured] == [status] * 4
    for record in outcome.measured:
        assert (record.finish_reason, record.output_tokens, len(record.token_at_s)) == (
            "stop",
            2,
            2,
        )
        assert record.finished_at_s - record.token_at_s[-1] > 0.1


def test_count_is_exact_though_places_pause() -> None:
    """Whatever order the places' pauses end in, exactly as many are measured as were asked for."""

    async def refuse_some(request: Request, peer: Peer) -> None:
        if request.number % 3:
            await peer.send(response("429 Too Many Requests", b"later"))
        else:
            await answer(request, peer)

    with ScriptedServer(refuse_some) as server:
        measured = [
            len(run_stage(planned, endpoint("one", server.base_url)).measured)
            for planned in [closed_loop(24, warmup_s=0.0, requests=n) for n in range(60, 68)]
        ]

    assert measured == list(range(60, 68))

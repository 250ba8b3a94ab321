"""The benchmarks' reference server: it builds, answers as OpenAI does, and keeps the truth."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TTFT_S, ITL_S, TOKENS = 0.05, 0.01, 4

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server needs epoll")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The benchmarks' module that builds and runs the server."""
    spec = importlib.util.spec_from_file_location("reference", BENCHMARKS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.compiler() is None:
        pytest.skip("NO C COMPILER: the benchmarks' reference server was not built, nor tested")
    return module


@pytest.fixture
def server(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[object]:
    """A running reference server, with every token's time kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {"ttft-ms": TTFT_S * 1e3, "itl-ms": ITL_S * 1e3, "tokens": TOKENS}
    with reference.ReferenceServer(tmp_path, {**options, "token-times": True}) as running:
        yield running


def asked(port: int, request_id: str, body: dict[str, object]) -> tuple[float, bytes, float]:
    """When the request was sent, the body of the answer, and when it was complete."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        sent_s = time.monotonic()
        headers = {"x-request-id": request_id}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse().read()
        return sent_s, answer, time.monotonic()
    finally:
        connection.close()


def test_streams_openai_chunks_with_usage_last(server) -> None:
    """Tokens, then a finish_reason, then a usage chunk without choices, then [DONE]."""
    _, answer, _ = asked(server.port, "a", {"stream": True})

    *events, done = re.findall(rb"data: (.*)\n\n", answer)
    chunks = [json.loads(event) for event in events]
    assert done == b"[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert [bool(delta.get("content")) for delta in deltas] == [True] * TOKENS + [False]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == TOKENS


def test_truth_is_on_the_clients_clock_and_names_its_request(server) -> None:
    """What the server noted lies between the client's sending and its last byte, by request id."""
    sent_s, _, ended_s = asked(server.port, "mine-1", {"stream": True})

    truth = server.truth()
    (row,) = truth.rows.itertuples()
    assert row.request_id == "mine-1"
    assert row.tokens == TOKENS
    assert row.in_flight == 1
    assert sent_s < row.received_s < row.first_s < row.last_s < ended_s
    assert row.first_s - row.received_s >= TTFT_S
    assert len(truth.itl_s(0)) == TOKENS - 1
    assert row.last_s - row.first_s == pytest.approx(truth.itl_s(0).sum())


def test_answers_whole_where_streaming_is_not_asked_for(server) -> None:
    """Without "stream" the answer is one JSON object, not before its last token is due."""
    sent_s, answer, ended_s = asked(server.port, "whole", {"max_tokens": 4})

    assert json.loads(answer)["usage"]["completion_tokens"] == TOKENS
    assert ended_s - sent_s >= TTFT_S + ITL_S * (TOKENS - 1)


def test_client_in_c_and_server_agree_on_what_was_sent(
    reference: ModuleType, tmp_path: Path
) -> None:
    """Every request and token that the client in C counts is in the server's truth."""
    import subprocess

    client = reference.build("reference_client", tmp_path)
    with reference.ReferenceServer(tmp_path, {"tokens": TOKENS}) as server:
        command = [client, "--port", str(server.port), "--in-flight", "8", "--seconds", "0.2"]
        done = subprocess.run(command, check=True, capture_output=True, timeout=30)
        stats, truth = server.stats(), server.truth()

    counted = json.loads(done.stdout)
    assert counted["requests"] == len(truth.rows) == stats["served"] > 0
    assert counted["tokens"] == truth.rows["tokens"].sum() == TOKENS * counted["requests"]
    assert stats["max_in_flight"] <= 8


def test_mean_in_flight_is_the_time_average_of_overlaps(reference: ModuleType) -> None:
    """Two requests of 1 s in a window of 4 s, and one cut off for its last second: 0.75."""
    import numpy as np
    import pandas as pd

    rows = pd.DataFrame({"received_s": [0.0, 0.5, 3.0], "last_s": [1.0, 1.5, 0.0]})
    truth = reference.Truth(rows, np.empty(0))

    assert truth.mean_in_flight((0.0, 4.0)) == pytest.approx(0.75)

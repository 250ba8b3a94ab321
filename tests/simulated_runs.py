"""Stages against a simulated server's own process, and what both sides say of each request."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from conftest import until
from fmgauge.config import PlannedStage
from fmgauge.config.model import (
    Budgets,
    ClosedLoop,
    Experiment,
    Model,
    OpenaiEndpoint,
    OpenLoop,
    PythonDocsSource,
)
from fmgauge.config.model import Workload as WorkloadConfig
from fmgauge.config.simulated import SimulatedEndpoint
from fmgauge.emulator import lease, simulated_server
from fmgauge.emulator.truth import RequestTruth
from fmgauge.endpoints import processes
from fmgauge.metrics import stage_summary
from fmgauge.pricing import Price
from fmgauge.records import ClientUse, Payload, RequestRecord, StageInfo, records_table
from stage_runs import Outcome, payloads

FREE = Price("hourly", 1.0, None, None, "test", None, None)


def probe(
    folder: Path,
    *,
    concurrency: Sequence[int] = (1, 2),
    duration_s: float = 0.4,
    endpoint: dict[str, Any] | None = None,
) -> Path:
    """A config and its rows, written to `folder`: two quick simulated candidates, one workload.

    It is the project's root, so results go there, too. `endpoint` takes both candidates' place.
    """
    (folder / "pyproject.toml").touch()
    rows = [json.dumps({"word": f"word{number}"}) for number in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    load = {"kind": "closed_loop", "concurrency": [*concurrency], "duration_s": duration_s}
    simulated = {"kind": "simulated", "profile": profile()}
    experiment = {
        "model": {"name": "simulated"},
        "endpoint": endpoint or simulated,
        "instance_type": "local-cpu",
        "workloads": ["plain"],
        "load": [load | {"warmup_s": 0.2}],
    }
    workload = {
        "name": "plain",
        "source": {"kind": "jsonl", "paths": ["rows.jsonl"]},
        "template": "Say {{ word }}.",
        "max_output_tokens": 8,
    }
    config = {
        "run": {"name": "probe"},
        "workloads": [workload],
        "experiments": [{"name": name} | experiment for name in ("one", "two")],
        "prices": {"hourly_usd": {"local-cpu": 0.1}},
    }
    path = folder / "probe.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass(frozen=True)
class Simulated:
    """A simulated server that runs as a process of its own."""

    pid: int
    base_url: str

    def truth(self) -> list[RequestTruth]:
        """What it knows of every request, in the order of arrival."""
        rows = [json.loads(line) for line in self._asked("GET").splitlines()]
        names = RequestTruth.__slots__
        return [RequestTruth(**{name: row[name] for name in names}) for row in rows]

    def forget(self) -> None:
        """Have it forget what it knows."""
        self._asked("DELETE")

    def open_connections(self) -> int:
        """How many connections it holds, of whatever state but listening."""
        sockets = psutil.Process(self.pid).net_connections("tcp")
        return sum(one.status != psutil.CONN_LISTEN for one in sockets)

    def _asked(self, method: str) -> bytes:
        host = self.base_url.removeprefix("http://").removesuffix("/v1")
        connection = http.client.HTTPConnection(host, timeout=30)
        try:
            connection.request(method, "/truth", headers={"connection": "close"})
            return connection.getresponse().read()
        finally:
            connection.close()


@contextmanager
def simulated(folder: Path, **endpoint: Any) -> Iterator[Simulated]:
    """A simulated server for as long as the block lasts; `endpoint` as a config has it."""
    ready = folder / "ready.json"
    lease.renew(folder / "lease.json", "by hand", 600)
    command = simulated_server.command(
        endpoint=SimulatedEndpoint.model_validate({"kind": "simulated", **endpoint}),
        lease=folder / "lease.json",
        ready=ready,
    )
    process = processes.start_detached(command, folder / "server.log", os.environ)
    try:
        until(ready.exists)
        yield Simulated(process.pid, json.loads(ready.read_text())["base_url"])
    finally:
        processes.end(process)


def profile(step_s: float = 0.002, **changes: Any) -> dict[str, Any]:
    """A timing model of equal steps, whatever is in them."""
    return {"step_s": step_s, "prefill_token_s": 0.0, "decode_sequence_s": 0.0, **changes}


def closed_loop(concurrency: int, **load: Any) -> PlannedStage:
    """A closed-loop stage that begins with all of its places."""
    settings = {"warmup_s": 0.1, "ramp_up_s": 0.0, "timeout_s": 20.0} | load
    loop = ClosedLoop(kind="closed_loop", concurrency=(concurrency,), **settings)
    return _planned(loop, concurrency)


def open_loop(request_rate: float, **load: Any) -> PlannedStage:
    """An open-loop stage."""
    settings = {"warmup_s": 0.1, "timeout_s": 20.0} | load
    loop = OpenLoop(kind="open_loop", request_rate=(request_rate,), **settings)
    return _planned(loop, request_rate)


def _planned(load: ClosedLoop | OpenLoop, level: float) -> PlannedStage:
    experiment = Experiment(
        name="one",
        model=Model(name="tiny"),
        endpoint=OpenaiEndpoint(kind="openai", base_url="http://127.0.0.1/v1"),
        workloads=("short",),
        load=(load,),
    )
    workload = WorkloadConfig(name="short", source=PythonDocsSource(kind="python_docs"))
    return PlannedStage(load, level, experiment, workload)


def prompts_for(output_tokens: Sequence[int]) -> list[Payload]:
    """A measured and a kept prompt for each length of an answer."""
    n = len(output_tokens)
    deck = payloads(measured=n, reserved=n)
    return [
        Payload(one.payload_id, one.prompt, None, 7, length, salt=one.salt, reserved=one.reserved)
        for one, length in zip(deck, [*output_tokens, *output_tokens], strict=True)
    ]


def info_of(outcome: Outcome) -> StageInfo:
    """The facts of a stage as they are written beside its records."""
    planned, parts = outcome.planned, outcome.parts
    window_s = outcome.window_s
    return StageInfo(
        experiment=planned.key.experiment,
        workload=planned.key.workload,
        stage=planned.key.stage,
        kind=planned.load.kind,
        concurrency=planned.concurrency,
        started_at="2026-01-01T00:00:00+00:00",
        window_start_s=window_s[0],
        window_end_s=window_s[1],
        finished_at_s=outcome.finished_at_s,
        replication=0,
        seed=7,
        request_rate=planned.mean_request_rate,
        arrivals=planned.load.arrivals if isinstance(planned.load, OpenLoop) else None,
        workers=len(parts),
        client=ClientUse(
            cpu_share=max(part.client.cpu_share for part in parts),
            loop_lag_p99_s=max(part.client.loop_lag_p99_s for part in parts),
            loop_lag_max_s=max(part.client.loop_lag_max_s for part in parts),
        ),
        held_back=sum(part.held_back for part in parts),
    )


def metrics_of(outcome: Outcome) -> dict[str, Any]:
    """The stage's row of metrics, from its records alone."""
    table = records_table(outcome.records)
    info = info_of(outcome)
    return stage_summary(
        info, lambda names: iter(table.select(names).to_batches()), FREE, Budgets()
    )


def last_truths(truths: Sequence[RequestTruth]) -> dict[str, RequestTruth]:
    """What the server knows of each request id: of one that came twice, the second coming."""
    return {truth.request_id: truth for truth in truths}


def ttft_s(record: RequestRecord) -> float:
    """A record's time to first token."""
    assert record.sent_at_s is not None
    return record.token_at_s[0] - record.sent_at_s


def ttft_errors_s(records: Sequence[RequestRecord], truths: dict[str, RequestTruth]) -> list[float]:
    """By how much the client's TTFT is above the server's own, request by request, ascending."""
    pairs = [(record, truths[record.request_id]) for record in records if record.token_at_s]
    return sorted(
        ttft_s(record) - (truth.token_at_s[0] - truth.arrived_at_s) for record, truth in pairs
    )

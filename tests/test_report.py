"""The report: its sections, sentences and tables against the frames; hostile text; pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmgauge.config import planned_stages
from fmgauge.decision import decide, write_decision
from fmgauge.metrics import compute_metrics, write_metrics
from fmgauge.records import (
    Endpoint,
    Payload,
    RequestRecord,
    StageInfo,
    write_endpoints,
    write_json,
    write_stage,
)
from fmgauge.runs import Run, open_run
from fmgauge.workloads import PreparedWorkload

WINDOW_S = (1.5, 11.5)


def config_of(**changes: Any) -> dict[str, Any]:
    """A config of two experiments on one machine and two workloads, with `changes` at its top."""
    load = [{"kind": "closed_loop", "concurrency": [1, 2, 4], "duration_s": 10, "warmup_s": 1.5}]
    workloads = [
        {"name": name, "source": {"kind": "python_docs"}, "max_output_tokens": 32}
        for name in ("en_1-500", "en_500-1000")
    ]
    names = [workload["name"] for workload in workloads]
    experiments = [
        {
            "name": f"llamacpp-{parallel}-slots",
            "model": {"name": "docs-llama"},
            "endpoint": {"kind": "llamacpp", "parallel": parallel},
            "instance_type": "local-cpu",
            "workloads": names,
            "load": load,
        }
        for parallel in (1, 4)
    ]
    budgets = {"latency_s": {"mean": 1.0}, "usd_per_10k_txn": 0.5, "error_rate": 0}
    return {
        "run": {"name": "synthetic", "results_dir": "results"},
        "workloads": workloads,
        "experiments": experiments,
        "budgets": budgets,
        "prices": {"hourly_usd": {"local-cpu": 0.10}},
        "report": {"workload_of_interest": "en_500-1000"},
        **changes,
    }


def record_of(
    info: StageInfo, number: int, begin_s: float, end_s: float, status: str
) -> RequestRecord:
    """One request of 32 tokens: the first after a fifth of its time, the others evenly spread."""
    ok = status == "ok"
    step_s = (end_s - begin_s) * 0.8 / 31
    first_s = begin_s + (end_s - begin_s) * 0.2
    phase = "measured" if info.window_start_s <= begin_s < info.window_end_s else "warmup"
    return RequestRecord(
        request_id=f"{info.key}-{number}",
        experiment=info.experiment,
        workload=info.workload,
        stage=info.stage,
        replication=0,
        phase="drain" if begin_s >= info.window_end_s else phase,
        payload_id=f"{info.workload}-{number:04d}",
        session_id=None,
        worker=0,
        intended_at_s=begin_s,
        connected_at_s=begin_s,
        sent_at_s=begin_s,
        first_byte_at_s=first_s if ok else None,
        token_at_s=[first_s + step_s * k for k in range(32)] if ok else [],
        chunk_tokens=[1] * 32 if ok else None,
        first_content_at_s=first_s if ok else None,
        finished_at_s=end_s,
        prompt_tokens=300 + 17 * (number % 13) if ok else None,
        output_tokens=32 if ok else None,
        reasoning_tokens=None,
        cached_tokens=None,
        token_source="server",
        status=status,  # type: ignore[arg-type]
        http_status=200 if ok else 500,
        error=None if ok else "the server said | `no` <script>alert(1)</script>",
        finish_reason="length" if ok else None,
        server_latency_s=None,
        connection_reused=False,
    )


def stage_records(
    info: StageInfo, latency_s: float, status: Callable[[int], str]
) -> list[RequestRecord]:
    """A closed loop whose every slot answers in about `latency_s`, until the window is over."""
    records = []
    for slot in range(info.concurrency):
        begin_s, number = 0.01 * slot, slot
        while begin_s < info.window_end_s + 0.5:
            end_s = begin_s + latency_s * (1 + 0.1 * ((number * 7) % 5 - 2) / 2)
            records.append(record_of(info, number, begin_s, end_s, status(number)))
            begin_s, number = end_s, number + info.concurrency
    return records


def always_ok(number: int) -> str:
    """Every request succeeds."""
    return "ok"


def latency_of(experiment: int, workload: int, concurrency: int) -> float:
    """Seconds an answer takes: the second experiment shares better, longer prompts take longer."""
    return 0.15 * (1 + workload) * concurrency ** (0.9 - 0.4 * (experiment % 7))


def build_run(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    latency: Callable[[int, int, int], float | None] = latency_of,
    status: Callable[[str, int, int], str] = lambda experiment, concurrency, number: "ok",
    failed_endpoints: Sequence[str] = (),
) -> Run:
    """A run's folder as notebooks 1 to 4 leave it; a stage whose latency is None was not run."""
    path = folder / "synthetic.yml"
    path.write_text(json.dumps(config or config_of()))
    run = open_run(path, "synthetic-20261123T120000Z")
    names = [experiment.name for experiment in run.config.experiments]
    workloads = [workload.name for workload in run.config.workloads]
    for planned in planned_stages(run.config):
        key, level = planned.key, planned.concurrency
        latency_s = latency(names.index(key.experiment), workloads.index(key.workload), level)
        if latency_s is None or key.experiment in failed_endpoints:
            continue
        info = StageInfo(
            *(key.experiment, key.workload, key.stage, "closed_loop", level),
            *("2026-11-23T12:00:00+00:00", *WINDOW_S, WINDOW_S[1] + 1, 0, 7),
        )
        records = stage_records(
            info, latency_s, lambda n, e=key.experiment, c=level: status(e, c, n)
        )
        write_stage(run.stage_folder(key), info, records)
    write_files(run, failed_endpoints)
    return run


def write_files(run: Run, failed_endpoints: Sequence[str]) -> None:
    """Endpoints, the choice of payloads, metrics and decision, by the project's own writers."""
    write_endpoints(
        run.endpoints_path,
        (
            Endpoint(
                *(e.name, e.endpoint.kind, "failed" if e.name in failed_endpoints else "ready"),
                *(None, e.model.name, e.instance_type, e.instance_count, True),
                error="it did | not `start`" if e.name in failed_endpoints else None,
                first_answer_s=None if e.name in failed_endpoints else 0.42,
            )
            for e in run.config.experiments
        ),
    )
    payloads = tuple(
        Payload(f"p{n}", "text", None, 100 + n, 32, reserved=n > 54) for n in range(60)
    )
    prepared = [
        PreparedWorkload(
            w.name, payloads, "the project's own", True, ("python_docs",), 700, {"max_tokens": 640}
        )
        for w in run.config.workloads
    ]
    write_json(run.workloads_path, {one.name: one.summary() for one in prepared})
    metrics = compute_metrics(run)
    write_metrics(run, metrics)
    write_decision(run.decision_path, decide(metrics, run.config))

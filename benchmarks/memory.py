"""The memory that a million requests of 128 tokens need, through records and metrics.

    .venv/bin/python benchmarks/memory.py [REQUESTS]

Two processes, since the load and notebook 4 are two: one takes rows as the workers send them and
writes their Parquet, the other computes the metrics. Each tells its peak resident memory. Prints
one Markdown table; exit code 1 where a limit is not kept.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path

import numpy as np

LIMIT_MB = 800
TOKENS = 128
ROWS_A_FRAME = 64
ITL_S = 0.02
CONFIG = """
run: {name: memory}
workloads:
  - {name: w, source: {kind: python_docs}}
experiments:
  - name: one
    model: {name: m}
    endpoint: {kind: openai, base_url: "http://127.0.0.1:1/v1"}
    instance_type: here
    workloads: [w]
    load: [{kind: closed_loop, concurrency: [1024], duration_s: %d}]
prices: {hourly_usd: {here: 1.0}}
"""


def frames(requests: int) -> Iterator[bytes]:
    """What workers would send of so many streamed answers, 1,024 in flight."""
    from fmgauge.load.link import rows_frame
    from fmgauge.records import ROW_FIELDS

    told = dict.fromkeys(ROW_FIELDS)
    told |= {"phase": "measured", "payload_id": "p", "status": "ok", "finish_reason": "length"}
    told |= {"token_source": "server", "http_status": 200, "connection_reused": True}
    told |= {"prompt_tokens": 200, "max_output_tokens": TOKENS, "output_tokens": TOKENS}
    told |= {"resent": False}
    random = np.random.default_rng(7)
    for first in range(0, requests, ROWS_A_FRAME):
        gaps = random.gamma(20.0, ITL_S / 20.0, (ROWS_A_FRAME, TOKENS))
        rows = [
            tuple(_answered(told, first + n, gaps[n]).values())
            for n in range(min(ROWS_A_FRAME, requests - first))
        ]
        yield rows_frame(rows)[5:]


def _answered(told: dict, number: int, gaps: np.ndarray) -> dict:
    sent_s = 5.0 + number * ITL_S * TOKENS / 1024
    tokens = array("d", accumulate(gaps.tolist(), initial=sent_s + 0.2))
    tokens = tokens[:TOKENS]
    return told | {
        "request_id": f"0123456789abcdef-{number}",
        "intended_at_s": sent_s,
        "sent_at_s": sent_s,
        "first_byte_at_s": tokens[0],
        "token_at_s": tokens.tobytes(),
        "first_content_at_s": tokens[0],
        "finished_at_s": tokens[-1],
    }


def load(folder: Path, requests: int) -> None:
    """Write the stage as a run would."""
    from fmgauge.config import planned_stages
    from fmgauge.load.recorder import Recorder
    from fmgauge.records import StageInfo, StageWriter
    from fmgauge.runs import open_run

    run = _run(open_run, folder, requests)
    (planned,) = planned_stages(run.config)
    with StageWriter(run.stage_folder(planned.key), planned.key) as writer:
        with Recorder(writer) as recorder:
            endless = frames(requests)
            while batch := list(islice(endless, 16)):
                recorder.take(batch, worker=0, origin_s=0.0)
        duration_s = planned.load.duration_s or 0.0
        info = StageInfo(
            experiment=planned.key.experiment,
            workload=planned.key.workload,
            stage=planned.key.stage,
            kind="closed_loop",
            concurrency=1024,
            started_at="2026-01-01T00:00:00+00:00",
            window_start_s=5.0,
            window_end_s=5.0 + duration_s,
            finished_at_s=10.0 + duration_s,
            replication=0,
            seed=7,
        )
        writer.finish(info, count_tokens=None)


def metrics(folder: Path, requests: int) -> None:
    """Compute the metrics as notebook 4 does."""
    from fmgauge.metrics import compute_metrics, experiment_costs, write_metrics
    from fmgauge.runs import open_run

    run = _run(open_run, folder, requests)
    frame = compute_metrics(run)
    write_metrics(run, frame)
    experiment_costs(run)
    assert int(frame["n_ok"].iloc[0]) == requests


def _run(open_run, folder: Path, requests: int):
    config = folder / "config.yml"
    config.write_text(CONFIG % (requests * ITL_S * TOKENS / 1024 + 1))
    return open_run(config, "memory")


def measured(step: str, folder: Path, requests: int) -> dict:
    """Run one step in a process of its own: peak_mb and seconds."""
    command = [sys.executable, __file__, str(requests), step, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Measure both steps, or be one of them."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) > 3:
        began_s = time.perf_counter()
        {"load": load, "metrics": metrics}[sys.argv[2]](Path(sys.argv[3]), requests)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"peak_mb": peak_mb, "seconds": time.perf_counter() - began_s}))
        return 0
    with tempfile.TemporaryDirectory(prefix="fmgauge-memory-") as folder:
        found = {step: measured(step, Path(folder), requests) for step in ("load", "metrics")}
    print(
        f"| {requests:,} requests of {TOKENS} tokens | limit | peak | seconds |\n|---|---|---|---|"
    )
    for step, one in found.items():
        print(f"| {step} | {LIMIT_MB} MB | {one['peak_mb']:.0f} MB | {one['seconds']:.0f} |")
    return int(any(one["peak_mb"] >= LIMIT_MB for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())

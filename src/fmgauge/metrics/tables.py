"""A run's tables: metrics, one row a stage, and costs, one row an experiment. Knows its files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from fmgauge.config import PlannedStage, planned_stages
from fmgauge.config.model import ClosedLoop, OpenLoop
from fmgauge.metrics.columns import COUNTS, NO_RECORDS, PER_TOKEN, Value, metrics_frame
from fmgauge.metrics.requests import Floats
from fmgauge.metrics.stages import stage_summary
from fmgauge.pricing import experiment_price
from fmgauge.records import open_stage, read_endpoints, stage_folders, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from fmgauge.runs import Run

UNSERVED = ("throttled", "http_error", "connection_error")  # these used no token


def compute_metrics(run: Run) -> pd.DataFrame:
    """One row per planned stage of `run`, in the config's order, whether it was run or not.

    Memory does not grow with the tokens of a stage, and with each request by some 400 bytes.
    """
    rows = [_planned_row(run, planned) for planned in planned_stages(run.config)]
    return metrics_frame(rows)


def write_metrics(run: Run, frame: pd.DataFrame) -> None:
    """Write metrics.parquet and metrics.csv, each whole or not at all."""
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    write_atomically(run.metrics_path, parquet.getvalue())
    csv = frame.to_csv(index=False)
    write_atomically(run.metrics_path.with_suffix(".csv"), csv.encode())


def read_metrics(run: Run) -> pd.DataFrame:
    """The metrics table that `write_metrics` wrote."""
    import pandas as pd

    return pd.read_parquet(run.metrics_path)


def experiment_costs(run: Run) -> pd.DataFrame:
    """What each experiment's stages cost, one row per experiment in the config's order.

    Columns: experiment_name, instance_type, duration_in_seconds, cost (USD).
    Time is time under load: warm-up, window and drain. Hourly instances cost that time; tokens
    cost what every request of every phase used, failed ones too as far as they were counted, but
    not those that the server refused or that never reached it.
    """
    import pandas as pd

    stages = [_stage_use(folder) for folder in stage_folders(run.requests_folder)]
    rows = []
    for experiment in run.config.experiments:
        own = [use for name, use in stages if name == experiment.name]
        duration_s, prompt, output = (float(total) for total in np.sum([np.zeros(3), *own], axis=0))
        price = experiment_price(run.loaded, experiment)
        rows.append(
            {
                "experiment_name": experiment.name,
                "instance_type": experiment.instance_type or PER_TOKEN,
                "duration_in_seconds": duration_s,
                "cost": price.tokens_usd(prompt, output)
                if price.usd_per_hour is None
                else price.usd_per_hour * duration_s / 3600,
            }
        )
    return pd.DataFrame(rows)


def _stage_use(folder: Path) -> tuple[str, Floats]:
    """A stage's experiment; its seconds under load, its counted prompt and output tokens."""
    import pyarrow as pa
    import pyarrow.compute as pc

    info, batches = open_stage(folder)
    used = np.array([info.finished_at_s, 0.0, 0.0])
    for records in batches(["status", "prompt_tokens", "output_tokens"]):
        served = pc.invert(pc.is_in(records.column("status"), value_set=pa.array(UNSERVED)))
        for place, name in ((1, "prompt_tokens"), (2, "output_tokens")):
            used[place] += pc.sum(pc.filter(records.column(name), served)).as_py() or 0
    return info.experiment, used


def _planned_row(run: Run, planned: PlannedStage) -> dict[str, Value]:
    folder = run.stage_folder(planned.key)
    if not (folder / "stage.json").exists():
        return {**_identity(planned), **_not_run(run, planned)}
    info, batches = open_stage(folder)
    price = experiment_price(run.loaded, planned.experiment)
    summary = stage_summary(
        info, batches, price, run.config.budgets, holds_level=_holds_level(planned)
    )
    return {**_identity(planned), **summary}


def _identity(planned: PlannedStage) -> dict[str, Value]:
    experiment, load = planned.experiment, planned.load
    return {
        "experiment_name": experiment.name,
        "payload_file": f"payload_{planned.workload.name}.jsonl",
        "instance_type": experiment.instance_type or PER_TOKEN,
        "instance_count": experiment.instance_count,
        "concurrency": planned.concurrency,
        "workload": planned.workload.name,
        "stage": planned.name,
        "model": experiment.model.name,
        "endpoint_kind": experiment.endpoint.kind,
        "kind": load.kind,
        "arrivals": load.arrivals if isinstance(load, OpenLoop) else "",
        "request_rate_asked": planned.mean_request_rate,
    }


def _holds_level(planned: PlannedStage) -> bool:
    """Whether the load keeps its concurrency in flight for all of the window."""
    load = planned.load
    if not isinstance(load, ClosedLoop) or load.think_time_s:
        return False
    return load.ramp_up_s is None or load.ramp_up_s <= load.warmup_s


def _not_run(run: Run, planned: PlannedStage) -> dict[str, Value]:
    endpoint = read_endpoints(run.endpoints_path).get(planned.experiment.name)
    status = f"not run: {endpoint.error}" if endpoint and endpoint.error else NO_RECORDS
    counts = dict.fromkeys(COUNTS, 0)
    return {"status": status, "token_source": "none", "client_limited": "", **counts}

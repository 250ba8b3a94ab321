"""Everything that a report is made from, read from a run's files into plain frames and nouns.

Knows which files hold what; computes nothing and words nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fmgauge.config import Config
from fmgauge.config.model import Experiment
from fmgauge.config.stages import think_times
from fmgauge.decision import Decision, Recommendation, StageVerdict, read_decision
from fmgauge.metrics import PER_TOKEN, experiment_costs, read_metrics, request_table
from fmgauge.pricing import Price, experiment_price
from fmgauge.records import (
    Batches,
    Endpoint,
    StageInfo,
    StageKey,
    open_stage,
    read_endpoints,
    read_json,
    stage_folders,
)
from fmgauge.runs import Run, now_utc, read_manifest

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]  # one stage's metrics, by column

NOT_RUN = "not run"


@dataclass(frozen=True)
class Material:
    """One run as a report needs it: the frames of its files, and the nouns behind them.

    `metrics` has one row a planned stage, its users' `think_time_s` beside what is in the file,
    `costs` one an experiment, `requests` one a request: experiment, workload, stage, kind,
    concurrency (<NA> in open loop), phase, status, http_status, error, prompt_tokens,
    cached_tokens (NaN where the server told none), e2e_latency_s and latency_s (NaN where the
    request failed). The latter is what tables headline: in open loop it counts from the instant at
    which the schedule wanted to send, else it is the former.
    """

    run_id: str
    config: Config
    made_at: datetime
    metrics: pd.DataFrame
    costs: pd.DataFrame
    requests: pd.DataFrame
    decision: Decision
    prices: Mapping[str, Price]
    endpoints: Mapping[str, Endpoint]
    stages: Sequence[StageInfo]
    workloads: Mapping[str, Mapping[str, Any]]
    manifest: Mapping[str, Any]

    @property
    def workload(self) -> str:
        """The workload that the summary is about."""
        return self.decision.workload_of_interest

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The candidates, in the config's order."""
        return self.config.experiments

    @property
    def recommendation(self) -> Recommendation:
        """The answer for the workload of interest."""
        return next(r for r in self.decision.recommendations if r.workload == self.workload)

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str], Row]:
        rows = rows_of(self.metrics)
        return {(r["experiment_name"], r["workload"], r["stage"]): r for r in rows}

    def row(self, stage: StageVerdict) -> Row:
        """The metrics of one stage, by column."""
        return self._rows[stage.experiment, stage.workload, stage.stage]

    def rows(self, stages: Iterable[StageVerdict]) -> pd.DataFrame:
        """The metrics of several stages, in the order of the metrics table."""
        wanted = {(stage.experiment, stage.workload, stage.stage) for stage in stages}
        return self.metrics[[key in wanted for key in self._rows]]

    def stage_verdicts(self, workload: str, experiment: str | None = None) -> list[StageVerdict]:
        """Verdicts on the stages of one workload, and of one experiment where it is named."""
        return [
            stage
            for stage in self.decision.stages
            if stage.workload == workload and experiment in (None, stage.experiment)
        ]

    def shares_instance(self, instance_type: str) -> bool:
        """Whether several experiments ran on `instance_type`, so that it names no single one."""
        return sum(instance_of(e) == instance_type for e in self.experiments) > 1


def instance_of(experiment: Experiment) -> str:
    """What the metrics call the thing that an experiment ran on."""
    return experiment.instance_type or PER_TOKEN


def cut_off(requests: pd.DataFrame) -> pd.Series[bool]:
    """Which requests were still open when their stage ended, after the window: not failures."""
    return (requests["phase"] == "drain") & (requests["status"] == "cancelled")


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """A frame's rows in order, each as a mapping from column to value."""
    rows: list[Any] = frame.to_dict("records")
    return rows


def read_material(run: Run) -> Material:
    """Read everything that the report of `run` needs; notebooks 1 to 4 must be done."""
    stages, requests = _read_requests(run)
    return Material(
        run_id=run.run_id,
        config=run.config,
        made_at=now_utc(),
        metrics=_with_think_times(read_metrics(run), run.config),
        costs=experiment_costs(run),
        requests=requests,
        decision=read_decision(run.decision_path),
        prices={e.name: experiment_price(run.loaded, e) for e in run.config.experiments},
        endpoints=read_endpoints(run.endpoints_path),
        stages=stages,
        workloads=read_json(run.workloads_path),
        manifest=read_manifest(run),
    )


def _with_think_times(metrics: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The metrics table, beside each stage how long its users pause by the config."""
    pauses = think_times(config)
    names = zip(metrics["experiment_name"], metrics["workload"], metrics["stage"], strict=True)
    return metrics.assign(think_time_s=[pauses.get(StageKey(*name), 0.0) for name in names])


_KEPT = ("phase", "status", "http_status", "error", "prompt_tokens", "cached_tokens")
_REQUEST_COLUMNS = (
    *("experiment", "workload", "stage", "kind", "concurrency"),
    *(*_KEPT, "e2e_latency_s", "latency_s"),
)


def _read_requests(run: Run) -> tuple[list[StageInfo], pd.DataFrame]:
    import pandas as pd

    infos, frames = [], [pd.DataFrame(columns=list(_REQUEST_COLUMNS))]
    for folder in stage_folders(run.requests_folder):
        info, batches = open_stage(folder)
        infos.append(info)
        frame = _request_frame(info, batches)
        if len(frame):
            frames.append(frame)
    return infos, pd.concat(frames[1:] or frames, ignore_index=True)


def _request_frame(info: StageInfo, batches: Batches) -> pd.DataFrame:
    import pandas as pd

    table = request_table(batches, keep=_KEPT)
    is_open, is_ok = info.kind == "open_loop", table["status"] == "ok"
    headline = "e2e_latency_s_from_intended" if is_open else "e2e_latency_s"
    frame = table.assign(
        experiment=info.experiment,
        workload=info.workload,
        stage=info.stage,
        kind=info.kind,
        concurrency=pd.array([info.concurrency] * len(table), dtype="Int64"),
        http_status=table["http_status"].astype("float64"),
        cached_tokens=table["cached_tokens"].astype("float64"),
        error=table["error"].astype("object"),
        latency_s=table[headline].where(is_ok),
        e2e_latency_s=table["e2e_latency_s"].where(is_ok),
    )
    return frame[list(_REQUEST_COLUMNS)]

"""Which stages a config asks for, in order. Knows load levels; not how a stage is run."""

from __future__ import annotations

from dataclasses import dataclass

from fmgauge.config.model import ClosedLoop, Config, Experiment, Workload
from fmgauge.records import StageKey


@dataclass(frozen=True)
class PlannedStage:
    """One load level of one workload against one experiment, before it is run."""

    experiment: Experiment
    workload: Workload
    load: ClosedLoop
    concurrency: int

    @property
    def name(self) -> str:
        """The stage's folder and its name in every table."""
        return f"concurrency-{self.concurrency}"

    @property
    def key(self) -> StageKey:
        """The stage's experiment, workload and name."""
        return StageKey(self.experiment.name, self.workload.name, self.name)

    @property
    def planned_s(self) -> float:
        """Warm-up and measured window together."""
        return self.load.warmup_s + self.load.duration_s


def planned_stages(config: Config) -> tuple[PlannedStage, ...]:
    """Every stage that `config` asks for, experiment by experiment, in the order of running."""
    return tuple(
        PlannedStage(experiment, config.workload(name), load, concurrency)
        for experiment in config.experiments
        for name in experiment.workloads
        for load in experiment.load
        for concurrency in load.concurrency
    )

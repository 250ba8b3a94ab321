"""Which stages a config asks for, in order. Knows load levels; not how a stage is run."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal

from fmgauge.config.model import (
    DEFAULT_DURATION_S,
    ClosedLoop,
    Config,
    Experiment,
    Load,
    OpenLoop,
    Workload,
)
from fmgauge.records import StageKey

MOST_TIMES_ASKED = 4.0  # by which warm-up and window together may exceed what was asked for


@dataclass(frozen=True)
class LoadLevel:
    """One level of one load: all that is to be known of a stage to send its requests."""

    load: ClosedLoop | OpenLoop
    level: float  # requests in flight, or requests per second

    @property
    def concurrency(self) -> int | None:
        """Requests to keep in flight; None in open loop, where nobody keeps them."""
        return int(self.level) if isinstance(self.load, ClosedLoop) else None

    @property
    def request_rate(self) -> float | None:
        """Mean arrivals per second that are asked for; None in closed loop."""
        return self.level if isinstance(self.load, OpenLoop) else None

    @property
    def mean_request_rate(self) -> float | None:
        """Mean arrivals per second over the window: of a ramp, the mean of its two ends."""
        if not isinstance(self.load, OpenLoop):
            return None
        return (self.level + (self.load.ramp_to_rate or self.level)) / 2

    @property
    def label(self) -> str:
        """The load level in words."""
        arrivals = self.load.arrivals if isinstance(self.load, OpenLoop) else None
        return load_label(self.concurrency, self.mean_request_rate, arrivals, self.think_time_s)

    @property
    def think_time_s(self) -> float:
        """How long a user of a closed loop pauses between an answer and the next question."""
        return self.load.think_time_s if isinstance(self.load, ClosedLoop) else 0.0

    @property
    def planned_s(self) -> float | None:
        """Warm-up and measured window together, as asked for: the least that they take.

        Where only a count ends the window, an open loop's rate tells how long it takes, on average;
        a closed loop's answers are not known beforehand, and it is None.
        """
        load = self.load
        if load.duration_s is not None:
            return load.warmup_s + load.duration_s
        if isinstance(load, ClosedLoop) or load.requests is None:
            return None
        return load.warmup_s + load.requests / self.level

    @property
    def most_warmup_s(self) -> float:
        """Longest that the load may take to become steady."""
        load = self.load
        if load.warmup_max_s is not None:
            return load.warmup_max_s
        window_s = DEFAULT_DURATION_S if self.planned_s is None else self.planned_s - load.warmup_s
        return MOST_TIMES_ASKED * (load.warmup_s + window_s) - window_s

    def most_window_s(self, warmup_s: float) -> float:
        """Longest that the window may take after a warm-up of that length; inf with no limit."""
        load = self.load
        if self.is_ramp and load.duration_s is not None:
            return load.duration_s
        if load.duration_max_s is not None:
            return load.duration_max_s
        if load.duration_s is None:
            return math.inf
        left_s = MOST_TIMES_ASKED * (load.warmup_s + load.duration_s) - warmup_s
        return max(load.duration_s, left_s)

    @property
    def is_ramp(self) -> bool:
        """Whether its rate rises or falls all along; such a window has the length asked for."""
        return isinstance(self.load, OpenLoop) and self.load.arrivals == "ramp"

    @property
    def most_planned_s(self) -> float | None:
        """The most that `planned_s` can become; None where only a count ends the window."""
        load, most_warmup_s = self.load, self.most_warmup_s
        longest = (
            warmup_s + self.most_window_s(warmup_s) for warmup_s in (load.warmup_s, most_warmup_s)
        )
        most_s = max(longest)
        if math.isfinite(most_s):
            return most_s
        if isinstance(load, ClosedLoop) or load.requests is None:
            return None
        return most_warmup_s + load.requests / self.level

    @property
    def least_planned_s(self) -> float:
        """What is known of `planned_s`: the warm-up alone where the window's length is not."""
        return self.load.warmup_s if self.planned_s is None else self.planned_s

    @property
    def unplanned_requests(self) -> int:
        """How many requests end the window where nobody knows when; 0 where `planned_s` says it."""
        return 0 if self.planned_s is not None else self.load.requests or 0


@dataclass(frozen=True)
class PlannedStage(LoadLevel):
    """One load level of one workload against one experiment, before it is run."""

    experiment: Experiment
    workload: Workload

    @property
    def name(self) -> str:
        """The stage's folder and its name in every table."""
        return stage_names(self.experiment)[self.load, self.level]

    @property
    def key(self) -> StageKey:
        """The stage's experiment, workload and name."""
        return StageKey(self.experiment.name, self.workload.name, self.name)


def load_levels(load: Load) -> tuple[float, ...]:
    """The levels of one load, one stage each."""
    return load.concurrency if isinstance(load, ClosedLoop) else load.request_rate


def stage_names(experiment: Experiment) -> dict[tuple[Load, float], str]:
    """What the stages of an experiment are called, by load and level.

    A name holds the level and the kind of arrivals. Where several loads would have the same one, it
    also holds what else tells them apart.
    """
    levels = [(load, level) for load in experiment.load for level in load_levels(load)]
    short = Counter(_stage_name(load, level) for load, level in set(levels))
    names = {one: _stage_name(*one) for one in levels}
    return {
        (load, level): name if short[name] == 1 else f"{name}{_details(load)}"
        for (load, level), name in names.items()
    }


def _stage_name(load: Load, level: float) -> str:
    if isinstance(load, ClosedLoop):
        return f"concurrency-{level:.0f}"
    arrivals = "" if load.arrivals == "poisson" else f"-{load.arrivals}"
    return f"rate-{_written(level)}{arrivals}"


def _details(load: Load) -> str:
    """What two loads of one level and kind of arrivals can differ in, as the end of a name."""
    if isinstance(load, ClosedLoop):
        parts = {"think": load.think_time_s or None}
    else:
        parts = {
            "burstiness": load.burstiness,
            "to": load.ramp_to_rate,
            "at-most": load.max_in_flight,
        }
    return "".join(f"-{key}-{_written(value)}" for key, value in parts.items() if value is not None)


def load_label(
    concurrency: int | None,
    request_rate: float | None,
    arrivals: str | None,
    think_time_s: float = 0.0,
) -> str:
    """A load level in words: 4 in flight, 2 requests/s, 2 requests/s (constant).

    `request_rate` is the mean over the window. Poisson arrivals, the rule, are not named. Of users
    who pause, fewer are in flight than there are: 6 users, 0.5 s think time.
    """
    if request_rate is None and think_time_s:
        users = f"{concurrency} user{'' if concurrency == 1 else 's'}"
        return f"{users}, {_written(think_time_s)} s think time"
    if request_rate is None:
        return f"{concurrency} in flight"
    notes = {"ramp": " (mean of a ramp)", "poisson": "", None: "", "": ""}
    note = notes.get(arrivals, f" ({arrivals})")
    return f"{_written(request_rate)} request{'' if request_rate == 1 else 's'}/s{note}"


def _written(rate: float) -> str:
    """A rate as one writes it, never in powers of ten: 0.5, 2, 2000000."""
    return f"{Decimal(str(rate)).normalize():f}"


def think_times(config: Config) -> dict[StageKey, float]:
    """How long users pause, by stage; only of the stages where they do."""
    return {
        planned.key: planned.think_time_s
        for planned in planned_stages(config)
        if planned.think_time_s
    }


def planned_stages(config: Config) -> tuple[PlannedStage, ...]:
    """Every stage that `config` asks for, experiment by experiment, in the order of running."""
    return tuple(
        PlannedStage(load, level, experiment, config.workload(name))
        for experiment in config.experiments
        for name in experiment.workloads
        for load in experiment.load
        for level in load_levels(load)
    )

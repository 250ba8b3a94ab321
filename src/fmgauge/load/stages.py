"""Every stage of a run in order: which are missing, which can run, what is written when one ends.

Knows the run's folder and its plan; not when a single request is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from fmgauge.config import PlannedStage, planned_stages
from fmgauge.errors import ConfigError
from fmgauge.load.closed_loop import ClosedLoopStage
from fmgauge.load.progress import Progress, ProgressReporter
from fmgauge.load.sending import CountTokens, Target, api_key_of, counted
from fmgauge.records import (
    Endpoint,
    RequestRecord,
    StageInfo,
    StageKey,
    read_payloads,
    write_stage,
)
from fmgauge.runs import Run
from fmgauge.transport import RealClock, run_event_loop
from fmgauge.workloads import PromptTokenizer, tokenizer_for

Announce = Callable[[str], object]


def run_stages(
    run: Run,
    endpoints: Mapping[str, Endpoint],
    on_experiment_done: Callable[[str], object] | None = None,
    announce: Announce = print,
) -> list[StageKey]:
    """Run every planned stage whose records the run lacks, in order; the stages that were run.

    A stage is written when it has ended, whole or not at all. `on_experiment_done(experiment)` is
    called when nothing is left to run on an experiment's endpoint. Stages of an endpoint that is
    not ready are skipped. Raises ConfigError, before the first request, where a key is not set.
    """
    plan = _Plan.of(run, endpoints)
    reporter = ProgressReporter(run.progress_path)
    done: list[StageKey] = []
    try:
        for experiment in run.config.experiments:
            plan.announce_skipped(experiment.name, announce)
            for planned in plan.missing_of(experiment.name):
                announce(_run_and_write(plan, planned, reporter))
                done.append(planned.key)
            if on_experiment_done is not None:
                on_experiment_done(experiment.name)
    finally:
        reporter.close()
    return done


@dataclass(frozen=True)
class _Plan:
    """What is left to run, on what, with which keys."""

    run: Run
    endpoints: Mapping[str, Endpoint]
    stages: tuple[PlannedStage, ...]
    missing: tuple[PlannedStage, ...]  # of endpoints that are ready
    api_keys: Mapping[str, str | None]

    @classmethod
    def of(cls, run: Run, endpoints: Mapping[str, Endpoint]) -> _Plan:
        stages = planned_stages(run.config)
        missing = tuple(
            planned
            for planned in stages
            if not run.stage_folder(planned.key).exists()
            and _is_ready(endpoints, planned.experiment.name)
        )
        used = {planned.experiment.name for planned in missing}
        keys = {name: _api_key(run, name, endpoints[name]) for name in sorted(used)}
        return cls(run, endpoints, stages, missing, keys)

    def missing_of(self, experiment: str) -> list[PlannedStage]:
        """The experiment's stages that are to be run now."""
        return [planned for planned in self.missing if planned.experiment.name == experiment]

    def announce_skipped(self, experiment: str, announce: Announce) -> None:
        """Say why an experiment's missing stages are not run, where they are not."""
        if _is_ready(self.endpoints, experiment):
            return
        endpoint = self.endpoints.get(experiment)
        reason = (endpoint.error if endpoint else None) or "it was not brought up"
        announce(f"{experiment}: skipped, its endpoint is not ready: {reason}")

    def remaining_after_s(self, planned: PlannedStage) -> float:
        """Planned seconds of the stages that come after `planned`."""
        position = self.missing.index(planned)
        return sum(later.planned_s for later in self.missing[position + 1 :])


def _is_ready(endpoints: Mapping[str, Endpoint], experiment: str) -> bool:
    return experiment in endpoints and endpoints[experiment].state == "ready"


def _api_key(run: Run, experiment: str, endpoint: Endpoint) -> str | None:
    try:
        return api_key_of(endpoint.api_key_env)
    except ConfigError as error:
        names = [one.name for one in run.config.experiments]
        location = ("experiments", names.index(experiment), "endpoint", "api_key_env")
        problem = error.problems[0]
        raise run.loaded.error(location, problem.problem, problem.remedy) from error


def _run_and_write(plan: _Plan, planned: PlannedStage, reporter: ProgressReporter) -> str:
    """Run one stage, write its records, and tell in one line what came of it."""
    name = planned.experiment.name
    target = Target(plan.endpoints[name], planned.key, api_key=plan.api_keys[name])
    payloads = read_payloads(plan.run.payloads_path(planned.workload.name))
    seed = plan.run.config.run.seed
    stage = ClosedLoopStage(planned, target, payloads, seed=seed, clock=RealClock())
    info, records = run_event_loop(
        stage.run(), meanwhile=lambda: reporter.report(_progress(plan, planned, stage))
    )
    count_tokens = _token_counter(plan.run, planned)
    records = [counted(record, count_tokens) for record in records]
    write_stage(plan.run.stage_folder(planned.key), info, records)
    reporter.report(_progress(plan, planned, stage))
    return _summary(info, records)


def _token_counter(run: Run, planned: PlannedStage) -> CountTokens:
    """Counts by the tokenizer that counted the workload's prompts, read only where it is needed."""

    @cache
    def tokenizer() -> PromptTokenizer:
        return tokenizer_for(run.loaded, planned.workload)

    return lambda text: tokenizer().count([text])[0]


def _progress(plan: _Plan, planned: PlannedStage, stage: ClosedLoopStage) -> Progress:
    elapsed_s = stage.elapsed_s
    stage_remaining_s = max(planned.planned_s - elapsed_s, 0.0)
    return Progress(
        stage=str(planned.key),
        stage_number=plan.stages.index(planned) + 1,
        n_stages=len(plan.stages),
        phase=stage.phase,
        in_flight=stage.in_flight,
        requests_done=stage.requests_done,
        failed=stage.failed,
        request_rate=stage.requests_done / elapsed_s if elapsed_s else 0.0,
        elapsed_s=elapsed_s,
        stage_remaining_s=stage_remaining_s,
        run_remaining_s=stage_remaining_s + plan.remaining_after_s(planned),
    )


def _summary(info: StageInfo, records: Sequence[RequestRecord]) -> str:
    measured = [record for record in records if record.phase == "measured"]
    answered = [record for record in measured if record.status == "ok"]
    line = f"{info.key}: {len(measured)} requests, {len(measured) - len(answered)} failed"
    if not answered:
        return f"{line}, none answered"
    mean_s = sum(map(_latency_s, answered)) / len(answered)
    return f"{line}, mean latency {mean_s:.3g} s"


def _latency_s(record: RequestRecord) -> float:
    """Last token of two chunks or more, else the whole answer, minus sent."""
    assert record.sent_at_s is not None
    streamed = len(record.token_at_s) >= 2
    return (record.token_at_s[-1] if streamed else record.finished_at_s) - record.sent_at_s

"""Every stage of a run in order: which are missing, which can run, what is written when one ends.

Knows the run's folder and its plan; not when a single request is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from fmgauge.config import PlannedStage, planned_stages
from fmgauge.config.model import OpenLoop
from fmgauge.errors import ConfigError, FmgaugeError, StepError
from fmgauge.load.link import StageTask, Summary
from fmgauge.load.progress import Progress, ProgressReporter
from fmgauge.load.recorder import Recorder
from fmgauge.load.sending import api_key_of
from fmgauge.load.steering import Steering, requests_needed
from fmgauge.load.workers import EndpointEnded, Workers, shards_of
from fmgauge.records import (
    ClientUse,
    Endpoint,
    StageInfo,
    StageKey,
    StageWriter,
    held,
    read_endpoints,
    read_payloads,
    write_endpoints,
)
from fmgauge.runs import Run, now_utc
from fmgauge.transport import RealClock
from fmgauge.workloads import PromptTokenizer, tokenizer_for

Announce = Callable[[str], object]
Ended = Callable[[str], str | None]
_KILLED_ENDS_WITHIN_S = 30.0  # a notebook whose pipeline was killed goes on for some seconds


def run_stages(
    run: Run,
    endpoints: Mapping[str, Endpoint],
    on_experiment_done: Callable[[str], object] | None = None,
    announce: Announce = print,
    *,
    ended: Ended = lambda _: None,
    patience_s: float = _KILLED_ENDS_WITHIN_S,
) -> list[StageKey]:
    """Run every planned stage whose records the run lacks, in order; the stages that were run.

    A stage is written when it has ended, whole or not at all. `on_experiment_done(experiment)` is
    called when nothing is left to run on an experiment's endpoint. Stages of an endpoint that is
    not ready are skipped. `ended(experiment)` is asked about twice a second why its endpoint has
    ended, if it has: then the stage stops, its records are kept aside, endpoints.json gives the
    reason, and the next experiment follows.

    Raises ConfigError, before the first request, where a key is not set, and StepError where
    another process goes on loading this run's endpoints for longer than `patience_s`.
    """
    loads = f"brings up or loads the endpoints of {run.run_id}"
    with held(run.load_lock_path, loads, patience_s=patience_s):
        return _run_missing(_Plan.of(run, endpoints), on_experiment_done, announce, ended)


def _run_missing(
    plan: _Plan,
    on_experiment_done: Callable[[str], object] | None,
    announce: Announce,
    ended: Ended,
) -> list[StageKey]:
    run, done = plan.run, list[StageKey]()
    reporter = ProgressReporter(run.progress_path)
    try:
        with Workers(plan.most_workers, RealClock()) as workers:
            for experiment in run.config.experiments:
                plan.announce_skipped(experiment.name, announce)
                for planned in plan.missing_of(experiment.name):
                    try:
                        announce(_run_and_write(plan, planned, workers, reporter, ended))
                    except EndpointEnded as error:
                        announce(str(error))
                        break
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

    def after(self, planned: PlannedStage) -> tuple[PlannedStage, ...]:
        """The stages that come after `planned`."""
        return self.missing[self.missing.index(planned) + 1 :]

    @property
    def most_workers(self) -> int:
        """As many workers as the largest of the missing stages is split over."""
        wanted = self.run.config.run.workers
        return max((shards_of(planned, wanted) for planned in self.missing), default=0)


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


def _run_and_write(
    plan: _Plan,
    planned: PlannedStage,
    workers: Workers,
    reporter: ProgressReporter,
    ended: Ended,
) -> str:
    """Run one stage, writing its records as they come, and tell in one line what came of it."""
    run, shards = plan.run, shards_of(planned, plan.run.config.run.workers)
    task = StageTask.of(
        planned,
        plan.endpoints[planned.experiment.name],
        read_payloads(run.payloads_path(planned.workload.name)),
        run.config.run.seed,
    )
    steering = Steering(planned, requests_needed(run.config.budgets))
    display = _Display(plan, planned, workers, reporter, steering)
    started_at = now_utc()
    with _writer(run, planned.key) as writer:
        display.writer = writer
        try:
            with Recorder(writer) as recorder:
                summaries = workers.run(
                    task,
                    shards,
                    recorder.take,
                    steering=steering,
                    meanwhile=display.show,
                    ended=lambda: ended(planned.experiment.name),
                )
            if (reason := ended(planned.experiment.name)) is not None:
                raise EndpointEnded(reason)
            info = _info(task, summaries, steering, started_at.isoformat())
            writer.finish(info, count_tokens=_token_counter(run, planned))
        except EndpointEnded as error:
            _note_end(run, planned.experiment.name, str(error))
            raise EndpointEnded(_failed(planned.key, error, writer)) from error
        except (FmgaugeError, OSError) as error:  # what was measured until then has been paid for
            raise StepError(_failed(planned.key, error, writer)) from error
    display.show(info.finished_at_s)
    return _summary(info, writer)


def _writer(run: Run, key: StageKey) -> StageWriter:
    try:
        return StageWriter(run.stage_folder(key), key)
    except OSError as error:
        raise StepError(f"{key} failed: {error}. Run again with --resume.") from error


def _note_end(run: Run, experiment: str, reason: str) -> None:
    """Have endpoints.json say that an experiment's endpoint has ended, and why."""
    endpoints = read_endpoints(run.endpoints_path)
    endpoints[experiment] = replace(endpoints[experiment], state="failed", error=reason)
    write_endpoints(run.endpoints_path, list(endpoints.values()))


def _failed(key: StageKey, error: Exception, writer: StageWriter) -> str:
    """What to tell of a stage that was not completed; the records that it had are kept."""
    return f"{key} failed: {error}.{_kept(writer, error)} Run again with --resume."


def _kept(writer: StageWriter, reason: Exception) -> str:
    try:
        folder = writer.fail(str(reason))
    except OSError as full:  # a disk, most likely, and the reason itself
        why = "" if full is reason else f": {full}"
        return f" The {writer.n_rows} records that it had could not be kept{why}."
    return f" The {writer.n_rows} records that it had are kept in {folder.name}." if folder else ""


def _info(
    task: StageTask, summaries: Sequence[Summary], steering: Steering, started_at: str
) -> StageInfo:
    """The facts of a whole stage from those of its parts."""
    assert steering.window_start_s is not None  # no part ends before it
    key, load = task.key, task.asked.load
    return StageInfo(
        experiment=key.experiment,
        workload=key.workload,
        stage=key.stage,
        kind=load.kind,
        concurrency=task.asked.concurrency,
        started_at=started_at,
        window_start_s=steering.window_start_s,
        window_end_s=max(part.window_end_s for part in summaries),
        finished_at_s=max(part.finished_at_s for part in summaries),
        replication=task.replication,
        seed=task.seed,
        request_rate=task.asked.mean_request_rate,
        arrivals=load.arrivals if isinstance(load, OpenLoop) else None,
        workers=len(summaries),
        client=ClientUse(
            cpu_share=max(part.client.cpu_share for part in summaries),
            loop_lag_p99_s=max(part.client.loop_lag_p99_s for part in summaries),
            loop_lag_max_s=max(part.client.loop_lag_max_s for part in summaries),
            ran_out_of=max(part.client.ran_out_of for part in summaries),
        ),
        held_back=sum(part.held_back for part in summaries),
        n_unsent=sum(part.n_unsent for part in summaries),
        warmup_end=steering.warmup_end,
        window_end=steering.window_end,
    )


def _token_counter(run: Run, planned: PlannedStage) -> Callable[[str], int]:
    """Counts by the tokenizer that counted the workload's prompts, read only where it is needed."""

    @cache
    def tokenizer() -> PromptTokenizer:
        return tokenizer_for(run.loaded, planned.workload)

    return lambda text: tokenizer().count([text])[0]


class _Display:
    """What the run's reporter is shown while a stage goes on."""

    writer: StageWriter

    def __init__(
        self,
        plan: _Plan,
        planned: PlannedStage,
        workers: Workers,
        reporter: ProgressReporter,
        steering: Steering,
    ) -> None:
        self._steering = steering
        self._plan = plan
        self._planned = planned
        self._workers = workers
        self._reporter = reporter

    def show(self, elapsed_s: float | None) -> None:
        """Show the stage as it is `elapsed_s` after its start; None before it."""
        self._reporter.report(self._progress(max(elapsed_s or 0.0, 0.0)))

    def _progress(self, elapsed_s: float) -> Progress:
        plan, planned, writer = self._plan, self._planned, self.writer
        statuses, later = self._workers.statuses, plan.after(planned)
        left_s = _remaining_s(self._steering, writer, elapsed_s)
        least_s, most_s = left_s or (0.0, 0.0)
        return Progress(
            stage=str(planned.key),
            stage_number=plan.stages.index(planned) + 1,
            n_stages=len(plan.stages),
            phase=statuses[0].phase if statuses else "warmup",
            in_flight=sum(status.in_flight for status in statuses),
            requests_done=writer.n_rows,
            measured_done=writer.n_measured,
            measured_planned=planned.load.requests,
            failed=writer.n_failed,
            request_rate=writer.n_rows / elapsed_s if elapsed_s else 0.0,
            elapsed_s=elapsed_s,
            stage_remaining_s=left_s and least_s,
            run_remaining_s=least_s + sum(stage.least_planned_s for stage in later),
            stage_remaining_most_s=left_s and most_s,
            run_remaining_most_s=most_s
            + sum(stage.most_planned_s or stage.most_warmup_s for stage in later),
            later_requests=sum(stage.unplanned_requests for stage in later),
        )


def _remaining_s(
    steering: Steering, writer: StageWriter, elapsed_s: float
) -> tuple[float, float] | None:
    """The least and the most time that a stage goes on, by what is decided so far.

    Until its count is full at the rate so far, where that comes first; None where nothing is known.
    """
    planned, start_s = steering.asked, steering.window_start_s
    load, ends_s = planned.load, (planned.planned_s, planned.most_planned_s)
    if steering.window_end_s is not None:
        ends_s = (steering.window_end_s, steering.window_end_s)
    elif start_s is not None and load.duration_s is not None:
        ends_s = (start_s + load.duration_s, start_s + planned.most_window_s(start_s))
    known_s = [
        (end_s - elapsed_s, most_s - elapsed_s) for end_s, most_s in [ends_s] if end_s and most_s
    ]
    if planned.concurrency and load.requests and writer.n_rows and elapsed_s > 0:
        missing = load.requests - writer.n_measured
        warmup_s = max(load.warmup_s - elapsed_s, 0.0) if start_s is None else 0.0
        counted_s = warmup_s + missing * elapsed_s / writer.n_rows
        known_s.append((counted_s, counted_s))
    if not known_s:
        return None
    least_s, most_s = (max(min(ends), 0.0) for ends in zip(*known_s, strict=True))
    return least_s, most_s


def _summary(info: StageInfo, writer: StageWriter) -> str:
    """One line on a stage that was run; what its latencies were is for the metrics to say."""
    measured_s = info.window_end_s - info.window_start_s
    return (
        f"{info.key}: {writer.n_measured} requests measured in {measured_s:.3g} s, "
        f"{writer.n_failed} failed"
    )

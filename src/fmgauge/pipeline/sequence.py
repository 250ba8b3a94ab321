"""The notebooks in their order: what a run still lacks, and clean-up whatever happens.

Knows which files each step leaves behind; not what is in them, the decision's verdict aside.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fmgauge.config import load_config, planned_stages
from fmgauge.decision import read_decision
from fmgauge.endpoints import RunInUse, announcements, clean_up, hold_lease
from fmgauge.errors import ConfigError, FmgaugeError, StepError
from fmgauge.pipeline import exit_codes
from fmgauge.pipeline.display import Display, display_for
from fmgauge.pipeline.notebooks import (
    NOTEBOOKS,
    Interrupted,
    NotebookError,
    PapermillRunner,
    Runner,
    StopSignal,
    execute_notebook,
)
from fmgauge.pipeline.preflight import check_loaded
from fmgauge.records import held, read_endpoints
from fmgauge.report import simulated_sentence
from fmgauge.runs import Run, mark_step, new_run_id, now_utc, open_run

_, DEPLOY, INFER, METRICS, REPORT, CLEAN_UP = NOTEBOOKS
_log = logging.getLogger("fmgauge.pipeline")


def run_pipeline(
    config_path: Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | None,
    called: str = "fmgauge",
    runner: Runner | None = None,
) -> int:
    """Run every notebook of a config in order, or with `resume` those that the run still lacks.

    `called` is what the user types for this program, for what is to be typed next. `runner`
    executes the notebooks' cells: papermill does where none is given.

    The exit code: 0, or 3 where no candidate met the budgets, 1 where a step failed, 2 where the
    data turned out unusable, 128 + n after signal n. Raises ConfigError before anything starts, and
    StepError where everything was done and reported, but not one stage could be measured.
    """
    loaded = load_config(config_path, overrides)
    run_id = _named_run(resume) if resume else ""
    plan = check_loaded(loaded)
    run = _resumed(config_path, overrides, run_id) if resume else _begun(config_path, overrides)
    again = f"{called} run {_as_typed(config_path, overrides)} --resume {run.run_id}"
    with held(run.pipeline_lock_path, f"works on {run.run_id}"):
        pipeline = _Pipeline(run, display_for(run), runner or PapermillRunner(), called)
        return pipeline.run_to_end(plan, again)


def rebuild_report(run: Run, *, called: str = "fmgauge", runner: Runner | None = None) -> int:
    """Compute a run's metrics and report anew from its records; the exit code as for a run.

    Raises StepError where a pipeline works on the run.
    """
    with held(run.pipeline_lock_path, f"works on {run.run_id}"):
        pipeline = _Pipeline(run, display_for(run), runner or PapermillRunner(), called)
        return pipeline.rebuild_report()


def missing_steps(run: Run) -> tuple[str, ...]:
    """The notebooks that `run` still lacks, in order; clean-up is not among them.

    A step is needed where its last file is missing or older than what it is made from, as for
    `make`, and so is every step after a needed one: also where a step was run by hand in between.
    """
    payloads = [run.payloads_path(workload.name) for workload in run.config.workloads]
    if not all(path.exists() for path in payloads):
        return NOTEBOOKS[:-1]
    stages = [run.stage_folder(stage.key) / "stage.json" for stage in planned_stages(run.config)]
    if not all(path.exists() for path in stages):
        return (DEPLOY, INFER, METRICS, REPORT)
    if not _is_current(run.decision_path, stages):
        return (METRICS, REPORT)
    return () if _is_current(run.folder / "report.html", [run.decision_path]) else (REPORT,)


def _is_current(made: Path, sources: Sequence[Path]) -> bool:
    newest = max(source.stat().st_mtime_ns for source in sources)
    return made.exists() and made.stat().st_mtime_ns >= newest


def _as_typed(config_path: Path, overrides: Sequence[str]) -> str:
    """The config and its overrides as they would be typed again."""
    parts = [str(config_path), *(part for item in overrides for part in ("--set", item))]
    return shlex.join(parts)


def _named_run(run_id_or_folder: str) -> str:
    return Path(run_id_or_folder).resolve().name


def _resumed(config_path: Path, overrides: Sequence[str], run_id: str) -> Run:
    return open_run(config_path, run_id, overrides, must_exist=True)


def _begun(config_path: Path, overrides: Sequence[str]) -> Run:
    """A new run; where one of this name began in this very second, one second later's name."""
    loaded = load_config(config_path, overrides)
    results, at = loaded.resolve(loaded.config.run.results_dir), now_utc()
    while (results / new_run_id(loaded.config.run.name, at)).exists():
        at += timedelta(seconds=1)
    return open_run(config_path, new_run_id(loaded.config.run.name, at), overrides)


class _logged:
    """Writes the run's log to its folder while it is open."""

    def __init__(self, run: Run) -> None:
        self._handler = logging.FileHandler(run.folder / "run.log", delay=True)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def __enter__(self) -> None:
        _log.setLevel(logging.INFO)
        _log.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        _log.removeHandler(self._handler)
        self._handler.close()


@dataclass(frozen=True)
class _Pipeline:
    """The notebooks of one run, what executes them, and what a person sees of it."""

    run: Run
    display: Display
    runner: Runner
    called: str

    def run_to_end(self, plan: Sequence[str], again: str) -> int:
        """Every missing notebook, and clean-up; `again` is what to type to go on."""
        try:
            with _logged(self.run):
                for line in [*plan, f"run {self.run.run_id}, results in {self.run.folder}"]:
                    self.display.say(line)
                code = self._run_notebooks()
        finally:
            self.display.close()
        if code not in (0, exit_codes.NO_CANDIDATE):
            self.display.say(f"To go on: {again}")  # last, below what clean-up had to say
        _refuse_unmeasured(self.run, code, again)
        return code

    def rebuild_report(self) -> int:
        """The two notebooks that need no endpoint, once more."""
        try:
            with _logged(self.run), StopSignal() as stop:
                for name in (METRICS, REPORT):
                    self._run_notebook(name, stop)
                code = self._verdict()
        except FmgaugeError as error:
            return self._told(error)
        finally:
            self.display.close()
        again = f"{self.called} run CONFIG --resume {self.run.run_id}"
        _refuse_unmeasured(self.run, code, again)
        return code

    def _run_notebooks(self) -> int:
        """Every missing notebook, then clean-up whatever happened; the exit code."""
        with StopSignal() as stop, hold_lease(self.run):
            try:
                needed = missing_steps(self.run)
                for name in NOTEBOOKS[:-1]:
                    if name in needed:
                        self._run_step(name, stop)
                    else:
                        self.display.notebook(name, "skipped")
                code = self._verdict()
            except (FmgaugeError, OSError) as error:  # an OSError of a full disk: notes are taken
                code = self._told(error)
            finally:
                left = self._clean_up()
        return code if not left else exit_codes.STEP_FAILED

    def _run_step(self, name: str, stop: StopSignal) -> None:
        """One notebook, and what there is to say of the endpoints after it."""
        ready = _ready(self.run)
        self._run_notebook(name, stop)
        if name == DEPLOY:
            self._announce_endpoints()
        for ended in ready - _ready(self.run) if name == INFER else ():
            error = read_endpoints(self.run.endpoints_path)[ended].error
            self.display.say(f"{ended}: {error}.")
            self.display.say(f"{ended}: --resume brings it up and measures what is missing.")

    def _announce_endpoints(self) -> None:
        endpoints = read_endpoints(self.run.endpoints_path).values()
        for line in announcements(endpoints):
            self.display.say(line)
        if all(endpoint.state == "failed" for endpoint in endpoints):
            nothing = "No endpoint answers, so nothing will be sent; the report gives the reasons."
            self.display.say(nothing)

    def _run_notebook(self, name: str, stop: StopSignal | None) -> None:
        executed = self.run.notebooks_folder / f"{name}.ipynb"
        parameters = {"config_path": str(self.run.config_path), "run_id": self.run.run_id}
        ending = f"ending {name}, then cleaning up"
        self._changed(name, "running")
        try:
            execute_notebook(
                name,
                executed,
                parameters,
                runner=self.runner,
                stop=stop,
                tick=self.display.tick,
                stopping=lambda signal: self.display.say(f"{signal}: {ending}"),
            )
        except Interrupted:
            self._changed(name, "interrupted")
            raise
        except NotebookError as error:
            self._changed(name, "failed")
            if error.error_name == ConfigError.__name__:
                raise _Unusable(error.error_text) from error
            raise
        self._changed(name, "done")

    def _changed(self, name: str, state: str) -> None:
        _log.info("%s %s", name, state)
        mark_step(self.run, name, state)
        self.display.notebook(name, state)

    def _clean_up(self) -> tuple[str, ...]:
        """Notebook 6, and should it fail, its one call from here; what is left running.

        Where somebody loads the run's endpoints by hand, that is the reason why they are left.
        """
        try:
            self._run_notebook(CLEAN_UP, stop=None)
        except (StepError, OSError) as error:
            self.display.say(str(error))
        finally:
            try:
                left = clean_up(self.run).left
            except RunInUse:  # notebook 6 said which process that is
                left = ("what another process uses",)
            again = f"Run `{self.called} clean-up {self.run.run_id}` again."
            for name in left:
                self.display.say(f"STILL RUNNING: {name}. {again}")
        return left

    def _told(self, error: FmgaugeError | OSError) -> int:
        _log.error("%s", error)
        if isinstance(error, Interrupted):  # which was told when the signal came
            return exit_codes.SIGNAL + error.signum
        self.display.say(str(error))
        unusable = isinstance(error, (ConfigError, _Unusable))
        return exit_codes.BAD_INPUT if unusable else exit_codes.STEP_FAILED

    def _verdict(self) -> int:
        decision = read_decision(self.run.decision_path)
        for recommendation in decision.recommendations:
            self.display.say(f"{recommendation.workload}: {recommendation.reason}")
        self.display.say(f"report: {self.run.folder / 'report.html'}")
        if simulated := simulated_sentence(self.run):
            self.display.say(simulated)
        chosen = {answer.workload: answer.chosen for answer in decision.recommendations}
        return 0 if chosen[decision.workload_of_interest] else exit_codes.NO_CANDIDATE


class _Unusable(StepError):
    """A notebook found the config or its data unusable."""


def _ready(run: Run) -> set[str]:
    """The experiments whose endpoint is ready, by endpoints.json."""
    endpoints = read_endpoints(run.endpoints_path).values()
    return {endpoint.experiment for endpoint in endpoints if endpoint.state == "ready"}


def _refuse_unmeasured(run: Run, code: int, again: str) -> None:
    """StepError, with every reason, where a run came to its end and not one stage was measured."""
    if code != exit_codes.NO_CANDIDATE:
        return
    answers = read_decision(run.decision_path).recommendations
    if any(answer.chosen or answer.closest for answer in answers):
        return
    endpoints = read_endpoints(run.endpoints_path).values()
    failed = announcements(endpoint for endpoint in endpoints if endpoint.state == "failed")
    reasons = list(failed) or [answer.reason for answer in answers]
    told = [
        "not one stage could be measured.",
        *reasons,
        "Where the config or a --set is wrong: mend it and begin a new run, for a run keeps both.",
        f"Where the fault lies elsewhere (a server down, a key), once it is mended: {again}",
    ]
    raise StepError("\n".join(told))

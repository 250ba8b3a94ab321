"""The notebooks in their order: what a run still lacks, and clean-up whatever happens.

Knows which files each step leaves behind; not what is in them, the decision's verdict aside.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from fmgauge.config import load_config, planned_stages
from fmgauge.decision import read_decision
from fmgauge.deploy import RunInUse, announcements, clean_up, hold_lease
from fmgauge.errors import ConfigError, FmgaugeError, StepError
from fmgauge.pipeline.display import Display, display_for
from fmgauge.pipeline.notebooks import (
    NOTEBOOKS,
    Interrupted,
    NotebookError,
    StopSignal,
    execute_notebook,
)
from fmgauge.pipeline.preflight import check_loaded
from fmgauge.records import held, read_endpoints
from fmgauge.report import simulated_sentence
from fmgauge.runs import Run, mark_step, new_run_id, now_utc, open_run

EXIT_STEP_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NO_CANDIDATE = 3
EXIT_SIGNAL = 128  # plus the signal's number, as shells have it
_, DEPLOY, INFER, METRICS, REPORT, CLEAN_UP = NOTEBOOKS
_log = logging.getLogger("fmgauge.pipeline")


def run_pipeline(
    config_path: Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | None,
    called: str = "fmgauge",
) -> int:
    """Run every notebook of a config in order, or with `resume` those that the run still lacks.

    `called` is what the user types for this program, for what is to be typed next.

    The exit code: 0, or 3 where no candidate met the budgets, 1 where a step failed, 2 where the
    data turned out unusable, 128 + n after signal n. Raises ConfigError before anything starts, and
    StepError where everything was done and reported, but not one stage could be measured.
    """
    loaded = load_config(config_path, overrides)
    run_id = _named_run(resume) if resume else ""
    plan = check_loaded(loaded)
    run = _resumed(config_path, overrides, run_id) if resume else _begun(config_path, overrides)
    with held(run.pipeline_lock_path, f"works on {run.run_id}"):
        return _run_to_end(run, plan, called, f"{called} run {_as_typed(config_path, overrides)}")


def _run_to_end(run: Run, plan: Sequence[str], called: str, command: str) -> int:
    display = display_for(run)
    try:
        with _logged(run):
            for line in [*plan, f"run {run.run_id}, results in {run.folder}"]:
                display.say(line)
            code = _run_notebooks(run, display, called)
    finally:
        display.close()
    again = f"{command} --resume {run.run_id}"
    if code not in (0, EXIT_NO_CANDIDATE):
        display.say(f"To go on: {again}")  # last, below what clean-up had to say
    _refuse_unmeasured(run, code, again)
    return code


def rebuild_report(run: Run, *, called: str = "fmgauge") -> int:
    """Compute a run's metrics and report anew from its records; the exit code as for a run.

    Raises StepError where a pipeline works on the run.
    """
    with held(run.pipeline_lock_path, f"works on {run.run_id}"):
        return _rebuild_report(run, called)


def _rebuild_report(run: Run, called: str) -> int:
    display = display_for(run)
    try:
        with _logged(run), StopSignal() as stop:
            for name in (METRICS, REPORT):
                _run_notebook(run, name, display, stop)
            code = _verdict(run, display)
    except FmgaugeError as error:
        return _told(error, display)
    finally:
        display.close()
    _refuse_unmeasured(run, code, f"{called} run CONFIG --resume {run.run_id}")
    return code


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


def _run_notebooks(run: Run, display: Display, called: str) -> int:
    """Every missing notebook, then clean-up whatever happened; the exit code."""
    with StopSignal() as stop, hold_lease(run):
        try:
            needed = missing_steps(run)
            for name in NOTEBOOKS[:-1]:
                if name in needed:
                    ready = _ready(run)
                    _run_notebook(run, name, display, stop)
                    if name == DEPLOY:
                        _announce_endpoints(run, display)
                    for ended in ready - _ready(run) if name == INFER else ():
                        display.say(f"{ended}: {read_endpoints(run.endpoints_path)[ended].error}.")
                        display.say(f"{ended}: --resume brings it up and measures what is missing.")
                else:
                    display.notebook(name, "skipped")
            code = _verdict(run, display)
        except (FmgaugeError, OSError) as error:  # an OSError of a full disk: notes are taken, too
            code = _told(error, display)
        finally:
            left = _clean_up(run, display, called)
    return code if not left else EXIT_STEP_FAILED


def _ready(run: Run) -> set[str]:
    """The experiments whose endpoint is ready, by endpoints.json."""
    endpoints = read_endpoints(run.endpoints_path).values()
    return {endpoint.experiment for endpoint in endpoints if endpoint.state == "ready"}


def _announce_endpoints(run: Run, display: Display) -> None:
    endpoints = read_endpoints(run.endpoints_path).values()
    for line in announcements(endpoints):
        display.say(line)
    if all(endpoint.state == "failed" for endpoint in endpoints):
        display.say("No endpoint answers, so nothing will be sent; the report gives the reasons.")


def _run_notebook(run: Run, name: str, display: Display, stop: StopSignal | None) -> None:
    executed = run.notebooks_folder / f"{name}.ipynb"
    parameters = {"config_path": str(run.config_path), "run_id": run.run_id}
    _changed(run, name, "running", display)
    try:
        execute_notebook(
            name,
            executed,
            parameters,
            stop=stop,
            tick=display.tick,
            stopping=lambda signal: display.say(f"{signal}: ending {name}, then cleaning up"),
        )
    except Interrupted:
        _changed(run, name, "interrupted", display)
        raise
    except NotebookError as error:
        _changed(run, name, "failed", display)
        if error.error_name == ConfigError.__name__:
            raise _Unusable(error.error_text) from error
        raise
    _changed(run, name, "done", display)


class _Unusable(StepError):
    """A notebook found the config or its data unusable."""


def _changed(run: Run, name: str, state: str, display: Display) -> None:
    _log.info("%s %s", name, state)
    mark_step(run, name, state)
    display.notebook(name, state)


def _clean_up(run: Run, display: Display, called: str) -> tuple[str, ...]:
    """Notebook 6, and should it fail, its one call from here; what is left running.

    Where somebody loads the run's endpoints by hand, that is the reason why they are left.
    """
    try:
        _run_notebook(run, CLEAN_UP, display, stop=None)
    except (StepError, OSError) as error:
        display.say(str(error))
    finally:
        try:
            left = clean_up(run).left
        except RunInUse:  # notebook 6 said which process that is
            left = ("what another process uses",)
        for name in left:
            display.say(f"STILL RUNNING: {name}. Run `{called} clean-up {run.run_id}` again.")
    return left


def _told(error: FmgaugeError | OSError, display: Display) -> int:
    _log.error("%s", error)
    if isinstance(error, Interrupted):  # which was told when the signal came
        return EXIT_SIGNAL + error.signum
    display.say(str(error))
    return EXIT_BAD_INPUT if isinstance(error, (ConfigError, _Unusable)) else EXIT_STEP_FAILED


def _verdict(run: Run, display: Display) -> int:
    decision = read_decision(run.decision_path)
    for recommendation in decision.recommendations:
        display.say(f"{recommendation.workload}: {recommendation.reason}")
    display.say(f"report: {run.folder / 'report.html'}")
    if simulated := simulated_sentence(run):
        display.say(simulated)
    chosen = {answer.workload: answer.chosen for answer in decision.recommendations}
    return 0 if chosen[decision.workload_of_interest] else EXIT_NO_CANDIDATE


def _refuse_unmeasured(run: Run, code: int, again: str) -> None:
    """StepError, with every reason, where a run came to its end and not one stage was measured."""
    if code != EXIT_NO_CANDIDATE:
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

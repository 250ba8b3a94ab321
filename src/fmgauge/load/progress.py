"""What the load is doing right now, for people who wait. Knows files and displays, no clocks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from fmgauge.records import read_json, write_json


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a run's load at one instant."""

    stage: str  # experiment/workload/stage
    stage_number: int  # from 1, of all that the config plans
    n_stages: int
    phase: str
    in_flight: int
    requests_done: int
    measured_done: int  # of them
    measured_planned: int | None  # so many end the stage; None where only time does
    failed: int
    request_rate: float  # requests that ended, per second since the stage began
    elapsed_s: float
    stage_remaining_s: float | None  # by the rate so far where a count ends it; None before that
    run_remaining_s: float  # as far as it is known
    stage_remaining_most_s: float | None  # the load may take longer to become steady, or to measure
    run_remaining_most_s: float
    later_requests: int  # of stages to come whose length nobody knows: the count that ends them

    @property
    def done(self) -> str:
        """How far the requests are: of all where a count ends the stage, it counts measured ones.

        Such as `37/100 done`, or `72 done` where only time ends the stage.
        """
        if self.measured_planned is None:
            return f"{self.requests_done} done"
        return f"{self.measured_done}/{self.measured_planned} done"

    def left(self, duration_text: Callable[[float], str]) -> tuple[str, str]:
        """What is left of the stage, and of the whole run, in words; `duration_text` says times."""
        here_s, about = self.stage_remaining_s, "about " if self.measured_planned else ""
        here, least = "unknown", "at least "
        if here_s is not None:
            here = f"{about}{_span(here_s, self.stage_remaining_most_s, duration_text)}"
            least = ""
        later = f" + {self.later_requests} requests" if self.later_requests else ""
        in_all = _span(self.run_remaining_s, self.run_remaining_most_s, duration_text)
        return here, f"{least}{in_all}{later}"

    def __str__(self) -> str:
        here, in_all = self.left("{:.0f} s".format)
        return (
            f"stage {self.stage_number} of {self.n_stages}: {self.stage} ({self.phase}), "
            f"{self.in_flight} in flight, {self.done}, {self.failed} failed, "
            f"{self.request_rate:.1f}/s, left: {here} in the stage, {in_all} in all"
        )


def _span(least_s: float, most_s: float | None, duration_text: Callable[[float], str]) -> str:
    least = duration_text(least_s)
    most = least if most_s is None else duration_text(most_s)
    return least if least == most else f"{least} to {most}"


def read_progress(path: Path) -> Progress | None:
    """The progress that a run last wrote; None where it has written none."""
    try:
        return Progress(**read_json(path))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return None


class ProgressReporter:
    """Writes progress to a run's file and, in a notebook, to one line that is drawn over.

    It is called by the thread that waits for the load, never by the one that takes the times.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line: Any = None

    def report(self, progress: Progress) -> None:
        """Show `progress`; where the file cannot be written it is old, which fails no stage."""
        with suppress(OSError):
            write_json(self._path, asdict(progress))
        if in_notebook():
            self._draw(str(progress))

    def close(self) -> None:
        """Empty the notebook's line: what stays is what was announced."""
        if self._line is not None:
            self._draw("")

    def _draw(self, text: str) -> None:
        from IPython import display as ipython

        show: Any = ipython.display
        shown = {"text/plain": text}
        if self._line is None:
            self._line = show(shown, raw=True, display_id=True)
        else:
            self._line.update(shown, raw=True)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")

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
        here = "unknown" if here_s is None else f"{about}{duration_text(here_s)}"
        least = "at least " if here_s is None else ""
        later = f" + {self.later_requests} requests" if self.later_requests else ""
        return here, f"{least}{duration_text(self.run_remaining_s)}{later}"

    def __str__(self) -> str:
        here, in_all = self.left("{:.0f} s".format)
        return (
            f"stage {self.stage_number} of {self.n_stages}: {self.stage} ({self.phase}), "
            f"{self.in_flight} in flight, {self.done}, {self.failed} failed, "
            f"{self.request_rate:.1f}/s, left: {here} in the stage, {in_all} in all"
        )


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

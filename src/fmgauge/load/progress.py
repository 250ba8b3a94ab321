"""What the load is doing right now, for people who wait. Knows files and displays, no clocks."""

from __future__ import annotations

import sys
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
    failed: int
    request_rate: float  # requests that ended, per second since the stage began
    elapsed_s: float
    stage_remaining_s: float | None  # None where only a count ends the stage
    run_remaining_s: float  # at least

    def __str__(self) -> str:
        left_s = self.stage_remaining_s
        left = "unknown time" if left_s is None else f"{left_s:.0f} s"
        return (
            f"stage {self.stage_number} of {self.n_stages}: {self.stage} ({self.phase}), "
            f"{self.in_flight} in flight, {self.requests_done} done, {self.failed} failed, "
            f"{self.request_rate:.1f}/s, {left} left in the stage, "
            f"{self.run_remaining_s:.0f} s in all"
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
        """Show `progress`."""
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

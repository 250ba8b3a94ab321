"""What a person sees while a run goes on. Knows the terminal; not how any step does its work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fmgauge.load import Progress, read_progress
from fmgauge.pipeline.notebooks import NOTEBOOKS
from fmgauge.pipeline.preflight import duration_text
from fmgauge.runs import Run
from fmgauge.transport import Clock, RealClock

_PLAIN_EVERY_S = 10.0
_MARKS = {"waiting": "·", "running": "▶", "done": "✓", "skipped": "-"}
_MARKS |= {"failed": "✗", "interrupted": "✗"}


class Display(Protocol):
    """Shows which notebook runs and how far the load is."""

    def notebook(self, name: str, state: str) -> None:
        """Notebook `name` is now running, done, skipped, failed or interrupted."""

    def tick(self) -> None:
        """Look again; called a few times a second while a notebook runs."""

    def say(self, line: str) -> None:
        """Show one line that stays; after `close`, below all else."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


def display_for(run: Run) -> Display:
    """A live display on a terminal, plain lines elsewhere."""
    return LiveDisplay(run) if sys.stdout.isatty() else PlainDisplay(run)


def progress_lines(progress: Progress) -> tuple[str, str]:
    """The load's state: which stage, and how far it is. Each line fits 80 columns as a rule."""
    here, in_all = progress.left(duration_text)
    return (
        f"stage {progress.stage_number} of {progress.n_stages}: {progress.stage}",
        f"{progress.phase}, {progress.done}, {progress.failed} failed, "
        f"{progress.request_rate:.1f}/s, left: {here} here, {in_all} in all",
    )


@dataclass
class PlainDisplay:
    """Plain lines for a log: each notebook's start and end, and the load every ten seconds."""

    run: Run
    write: Callable[[str], None] = lambda line: print(line, flush=True)
    clock: Clock = field(default_factory=RealClock)
    _started_at_s: float = 0.0
    _shown_at_s: float = 0.0
    _running: str = ""

    def notebook(self, name: str, state: str) -> None:
        """Write a line for a notebook's new state."""
        now_s = self.clock.now_s()
        took = f" after {now_s - self._started_at_s:.1f} s" if self._running == name else ""
        self.write(f"{name}: {state}{took}")
        self._running = name if state == "running" else ""
        self._started_at_s = self._shown_at_s = now_s

    def tick(self) -> None:
        """Write the load's state when ten seconds have passed since the last line."""
        now_s = self.clock.now_s()
        if self._running != "3_run_inference" or now_s - self._shown_at_s < _PLAIN_EVERY_S:
            return
        self._shown_at_s = now_s
        progress = read_progress(self.run.progress_path)
        if progress:
            self.write(f"  {' · '.join(progress_lines(progress))}")

    def say(self, line: str) -> None:
        """Write one line."""
        self.write(line)

    def close(self) -> None:
        """Nothing to restore."""


class LiveDisplay:
    """A few lines of the terminal that are drawn anew: the notebooks, and the load below."""

    def __init__(self, run: Run) -> None:
        from rich.console import Console
        from rich.live import Live

        self._run = run
        self._clock = RealClock()
        self._states = dict.fromkeys(NOTEBOOKS, "waiting")
        self._started_at_s: dict[str, float] = {}
        self._took_s: dict[str, float] = {}
        self._live = Live(console=Console(highlight=False), auto_refresh=False, transient=False)
        self._live.start()

    def notebook(self, name: str, state: str) -> None:
        """Note a notebook's new state and draw."""
        now_s = self._clock.now_s()
        if state == "running":
            self._started_at_s[name] = now_s
        elif name in self._started_at_s:
            self._took_s[name] = now_s - self._started_at_s[name]
        self._states[name] = state
        self.tick()

    def tick(self) -> None:
        """Draw the notebooks' states and the load's."""
        from rich.text import Text

        shown = Text("\n".join(self._lines()), no_wrap=True, overflow="ellipsis")
        self._live.update(shown, refresh=True)

    def say(self, line: str) -> None:
        """Print one line above the display, or below it once that is closed."""
        self._live.console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stop drawing and keep the last picture."""
        self._live.stop()

    def _lines(self) -> list[str]:
        lines = [self._line(name, state) for name, state in self._states.items()]
        progress = read_progress(self._run.progress_path)
        if progress and self._states["3_run_inference"] == "running":
            lines.extend(f"  {line}" for line in progress_lines(progress))
        return lines

    def _line(self, name: str, state: str) -> str:
        took_s = self._took_s.get(name)
        if state == "running":
            took_s = self._clock.now_s() - self._started_at_s[name]
        return f"{_MARKS[state]} {name:<20} {'' if took_s is None else f'{took_s:6.1f} s'}"

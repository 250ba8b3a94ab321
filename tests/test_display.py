"""What a person sees while a run goes on, on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import QUICKSTART
from fmgauge.load import Progress
from fmgauge.pipeline.display import PlainDisplay, progress_lines
from fmgauge.records import write_json
from fmgauge.runs import Run, open_run

PROGRESS = Progress(
    stage="one/short/concurrency-4",
    stage_number=2,
    n_stages=12,
    phase="measured",
    in_flight=4,
    requests_done=72,
    measured_done=37,
    measured_planned=None,
    failed=3,
    request_rate=28.66,
    elapsed_s=2.5,
    stage_remaining_s=61.0,
    run_remaining_s=4000.0,
    stage_remaining_most_s=61.0,
    run_remaining_most_s=4000.0,
    later_requests=0,
)


class HandClock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        """The time that it was set to."""
        return self.at_s


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the quickstart in which nothing has happened."""
    return open_run(QUICKSTART, "shown", [f"run.results_dir={tmp_path}"])


def test_the_load_is_told_in_two_lines():
    """Stage, phase, requests, rate and time left, in words."""
    assert progress_lines(PROGRESS) == (
        "stage 2 of 12: one/short/concurrency-4",
        "measured, 72 done, 3 failed, 28.7/s, left: 1 min 1 s here, 1 h 6 min 40 s in all",
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"measured_planned": 100},
            "37/100 done, 3 failed, 28.7/s, left: about 1 min 1 s here, 1 h 6 min 40 s in all",
        ),
        (
            {"measured_planned": 100, "stage_remaining_s": None},
            "37/100 done, 3 failed, 28.7/s, left: unknown here, at least 1 h 6 min 40 s in all",
        ),
        (
            {"stage_remaining_most_s": 200.0, "run_remaining_most_s": 7200.0},
            "72 done, 3 failed, 28.7/s, left: 1 min 1 s to 3 min 20 s here, "
            "1 h 6 min 40 s to 2 h in all",
        ),
        (
            {"later_requests": 200},
            "72 done, 3 failed, 28.7/s, left: 1 min 1 s here, 1 h 6 min 40 s + 200 requests in all",
        ),
    ],
)
def test_what_a_count_ends_is_told_as_far_as_it_is_known(changes, told):
    """How many of the count are done, a guess of the time left, and counts of stages to come."""
    assert progress_lines(replace(PROGRESS, **changes))[1] == f"measured, {told}"


def test_a_notebook_s_line_tells_the_same_in_one():
    """Stage, requests and what is left, in seconds."""
    counted = replace(PROGRESS, measured_planned=100, later_requests=200)

    assert str(counted) == (
        "stage 2 of 12: one/short/concurrency-4 (measured), 4 in flight, 37/100 done, 3 failed, "
        "28.7/s, left: about 61 s in the stage, 4000 s + 200 requests in all"
    )


def test_a_log_gets_a_line_for_each_change(run):
    """A notebook's start, and its end with the time it took; no control characters."""
    clock, lines = HandClock(), []
    display = PlainDisplay(run, write=lines.append, clock=clock)

    display.notebook("1_prepare_data", "running")
    clock.at_s += 2.5
    display.notebook("1_prepare_data", "done")
    display.notebook("2_deploy_endpoints", "skipped")

    assert lines == [
        "1_prepare_data: running",
        "1_prepare_data: done after 2.5 s",
        "2_deploy_endpoints: skipped",
    ]


def test_a_log_gets_the_load_every_ten_seconds(run):
    """Looking often writes seldom."""
    clock, lines = HandClock(), []
    display = PlainDisplay(run, write=lines.append, clock=clock)
    write_json(run.progress_path, PROGRESS)
    display.notebook("3_run_inference", "running")

    for _ in range(50):
        clock.at_s += 0.5
        display.tick()

    assert lines[1:] == [f"  {' · '.join(progress_lines(PROGRESS))}"] * 2


LIVE = """
import sys
from fmgauge.pipeline.display import display_for
from fmgauge.runs import find_run

display = display_for(find_run(sys.argv[1]))
display.notebook("1_prepare_data", "running")
display.notebook("1_prepare_data", "done")
display.notebook("3_run_inference", "running")
display.notebook("3_run_inference", "interrupted")
display.say("one line that stays")
display.close()
display.say("the last word")
"""


def test_a_terminal_gets_a_live_picture(run):
    """On a pseudo-terminal: every notebook with its mark, the load, lines that stay, the end."""
    write_json(run.progress_path, PROGRESS)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", LIVE, str(run.folder)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = read_all(ours)
    os.close(ours)

    assert process.returncode == 0, shown
    for expected in ("✓ 1_prepare_data", "▶ 3_run_inference", "· 6_clean_up", "72 done, 3 failed"):
        assert expected in shown
    assert "one line that stays" in shown
    below = shown.rpartition("6_clean_up")[2]
    assert "✗ 3_run_inference" in shown
    assert ("the last word" in below, "one line" in below) == (True, False)


def read_all(terminal: int) -> str:
    """Everything written to a pseudo-terminal until its other end is closed."""
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how Linux tells that nobody holds the other end
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces).decode()

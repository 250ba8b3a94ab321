"""Whole runs of the quickstart through papermill: killed and resumed, and notebook by notebook."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import QUICKSTART, outstanding, processes_of, small_overrides, until
from fmgauge.config import planned_stages
from fmgauge.pipeline.notebooks import NOTEBOOKS, notebooks_folder
from fmgauge.runs import find_run

pytestmark = pytest.mark.whole
ENDED_WITHIN_S = 30.0


def run_folder(results: Path) -> Path:
    """The only run's folder, once it is there."""
    until(lambda: list(results.glob("quickstart-*/manifest.json")))
    return next(results.glob("quickstart-*"))


def stages_done(folder: Path) -> list[Path]:
    """The stages whose records are complete."""
    return sorted(folder.glob("requests/*/*/concurrency-*/stage.json"))


def test_a_killed_run_ends_its_servers_and_resumes(started, fmgauge, tmp_path):
    """After kill -9 the servers end by their lease; --resume keeps every finished stage."""
    process = started("run", QUICKSTART, *small_overrides(tmp_path))
    folder = run_folder(tmp_path)
    until(lambda: len(stages_done(folder)) >= 2)
    process.kill()
    process.wait()
    until(lambda: processes_of(folder) == [], ENDED_WITHIN_S)
    before = {path: path.stat().st_mtime_ns for path in stages_done(folder)}
    options = small_overrides(tmp_path)

    done = fmgauge("run", QUICKSTART, *options, "--resume", folder.name)

    assert done.returncode in (0, 3), done.stdout + done.stderr
    after = {path: path.stat().st_mtime_ns for path in stages_done(folder)}
    assert len(after) == 8
    assert before.items() <= after.items()
    assert "1_prepare_data: skipped" in done.stdout
    assert outstanding(folder) == set()


def test_notebooks_run_one_by_one_with_papermill(tmp_path):
    """Plain papermill, one notebook after another, with a server that died in the pause."""
    prices = Path("data", "prices", "local.yaml")
    (tmp_path / prices).parent.mkdir(parents=True)
    shutil.copy(QUICKSTART.parents[1] / prices, tmp_path / prices)
    text = QUICKSTART.read_text().replace("[1, 2, 4], duration_s: 9.5", "[1], duration_s: 0.5")
    config = tmp_path / "config.yml"
    config.write_text(text)
    folder = tmp_path / "results" / "by-hand"

    for name in NOTEBOOKS:
        papermill_one(name, config, tmp_path)
        if name == "2_deploy_endpoints":
            processes_of(folder)[0].kill()
            until(lambda: len(processes_of(folder)) == 1)

    run = find_run(str(folder))
    assert all(run.stage_folder(stage.key).exists() for stage in planned_stages(run.config))
    assert (folder / "report.html").exists()
    assert outstanding(folder) == set()
    assert processes_of(folder) == []


def papermill_one(name: str, config: Path, cwd: Path) -> None:
    """Execute one notebook with papermill's own command."""
    subprocess.run(
        [
            *(sys.executable, "-m", "papermill", "--no-progress-bar"),
            *(str(notebooks_folder() / f"{name}.ipynb"), str(cwd / f"{name}.out.ipynb")),
            *("-p", "config_path", str(config), "-p", "run_id", "by-hand"),
        ],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        timeout=120,
        check=True,
    )

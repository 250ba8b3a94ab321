"""What is kept in git names no machine: no path of somebody's home or working folder."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("work", "root", "home", "Users")
SAID_FOLDER = re.compile(rf"(?<![\w.~:}}/-])/(?:{'|'.join(FOLDERS)})/\w")


def tracked_files() -> list[Path]:
    """The files that git tracks and that are there."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def lines_with_machine_paths(text: str) -> list[str]:
    """The lines of `text` that name a file below a home or a working folder."""
    return [line for line in text.splitlines() if SAID_FOLDER.search(line)]


def test_the_check_below_tells_machine_paths_from_others():
    """It can fail: a path below each folder is found wherever it stands; addresses are let pass."""
    begun = ("", "see ", '"', "(", "=", "['")
    named = [f"{before}/{folder}/me/file.py" for folder in FOLDERS for before in begun]
    others = [
        "https://host/home/x",
        "src/home/x",
        "~/home/x",
        "s3://bucket/Users/x",
        "/workload/x",
    ]

    assert lines_with_machine_paths("\n".join([*others, *named, *others])) == named


def test_no_tracked_file_names_a_folder_of_somebodys_machine():
    """Nobody's home or working folder stands in a file that others get."""
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {line}" for line in lines_with_machine_paths(text)]

    assert found == []


def test_the_project_is_tracked():
    """The check above looks at something: git lists the source and this file's folder."""
    tracked = {str(path.relative_to(ROOT)) for path in tracked_files()}

    assert {"pyproject.toml", "src/fmgauge/__init__.py"} <= tracked

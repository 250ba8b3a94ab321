"""The reference server as a context: builds it, pins it to a core, reads the truth it kept.

Knows the C programs of this folder and their files; not the clients that are measured with them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd

FOLDER = Path(__file__).parent
SERVER_CORE, CLIENT_CORE = 0, 1


def cache_folder() -> Path:
    """Where what the benchmarks build is kept between runs, outside the tree."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fmgauge-bench"


def compiler() -> str | None:
    """The C compiler of this machine; None where there is none."""
    return (
        os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    )


def build(name: str, folder: Path) -> Path:
    """Compile one of this folder's C programs, where its source is newer; the program's path."""
    source, program = FOLDER / f"{name}.c", folder / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
        cc = compiler()
        if cc is None:
            raise SystemExit("No C compiler: install gcc or clang, or name one in CC.")
        subprocess.run([cc, *flags, "-o", str(program), str(source)], check=True)
    return program


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command, bound to one core where the machine has that many and `taskset`."""
    if shutil.which("taskset") is None or core >= (os.cpu_count() or 1):
        return list(command)
    return ["taskset", "-c", str(core), *command]


class ReferenceServer:
    """A running reference server; leaving the context ends it.

    `options` are its command line's, without the dashes: {"ttft-ms": 200, "together": True}.
    """

    def __init__(self, folder: Path, options: Mapping[str, float | bool]) -> None:
        self._truth_path = folder / "truth.csv"
        program = build("reference_server", cache_folder())
        command = [str(program), "--never-sleep", "--truth", str(self._truth_path)]
        for name, value in options.items():
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        self._command = pinned(SERVER_CORE, command)
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise SystemExit(f"The reference server ended with {self._process.wait()}.")
        self.port = int(said.rsplit(":", 1)[1])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.communicate(timeout=60)

    @property
    def base_url(self) -> str:
        """The address that an OpenAI client is given."""
        return f"http://127.0.0.1:{self.port}/v1"

    def get(self, path: str) -> dict[str, Any]:
        """The JSON that the server answers at `path`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def stats(self, *, reset: bool = False) -> dict[str, Any]:
        """The server's own counts since it began, or since the last reset."""
        return self.get("/stats?reset" if reset else "/stats")

    def truth(self) -> Truth:
        """What the server noted of every request so far."""
        self.get("/truth")
        return Truth.read(self._truth_path)


class Truth:
    """One row a request, in order of arrival; times in seconds of the machine's monotonic clock."""

    def __init__(self, rows: pd.DataFrame, token_s: np.ndarray) -> None:
        self.rows = rows
        self._token_s = token_s

    @classmethod
    def read(cls, path: Path) -> Truth:
        """Read what the server wrote at `path`."""
        rows = pd.read_csv(path, dtype={"request_id": str}, keep_default_na=False)
        for name in ("received", "first", "last"):
            rows[f"{name}_s"] = rows.pop(f"{name}_ns") / 1e9
        tokens = path.with_name(f"{path.name}.tokens")
        token_s = np.fromfile(tokens, dtype=np.int64) / 1e9 if tokens.exists() else np.empty(0)
        return cls(rows, token_s)

    def itl_s(self, serial: int) -> np.ndarray:
        """The gaps between one request's tokens; empty where token times were not kept."""
        start = int(self.rows["tokens_at"].iat[serial])
        return np.diff(self._token_s[start : start + int(self.rows["tokens"].iat[serial])])

    def window(self, warmup_s: float, seconds: float) -> tuple[float, float]:
        """From `warmup_s` after the load began, for `seconds` or until the last request came.

        The load begins when two requests are in flight: tools that try the server first do so with
        one.
        """
        received = self.rows["received_s"]
        began = self.rows["in_flight"].ge(2)
        start_s = float(received[began.idxmax() if began.any() else 0]) + warmup_s
        return start_s, min(start_s + seconds, float(received.iloc[-1]))

    def received_in(self, window: tuple[float, float]) -> pd.DataFrame:
        """The requests that came within the window."""
        return self.rows[self.rows["received_s"].between(*window, inclusive="left")]

    def mean_in_flight(self, window: tuple[float, float]) -> float:
        """Time average of the requests being answered; those cut off count to the window's end."""
        start_s, end_s = window
        ended = self.rows["last_s"].where(self.rows["last_s"] > 0, end_s)
        overlap = np.minimum(ended, end_s) - np.maximum(self.rows["received_s"], start_s)
        return float(np.maximum(overlap, 0.0).sum() / (end_s - start_s))

    def ended_in(self, window: tuple[float, float]) -> pd.DataFrame:
        """The requests whose last token was written within the window."""
        return self.rows[self.rows["last_s"].between(*window, inclusive="left")]

"""The folder of one run, results/<run_id>/: its files' names, its manifest, whose config it is.

Knows where every step's output lies; not what is in it or how it was made.
"""

from __future__ import annotations

import difflib
import errno
import os
import platform
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from fmgauge.config import Config, LoadedConfig, differing_keys, key_parts, load_config
from fmgauge.config.yaml_text import to_yaml
from fmgauge.errors import ConfigError, Problem
from fmgauge.records import StageKey, read_json, write_atomically, write_json

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OTHER_CONFIG_RESUMED = (
    "Leave out --resume to begin a new run, or give the config (and every --set) that this one "
    "began with"
)
_OTHER_CONFIG_BY_HAND = "Use a new run_id, or the config that the run began with"
_KEYS_TOLD = 5
_RUNS_TOLD = 5
_NEAREST_TOLD = 3
_REPORTED_VERSIONS = ("fmgauge", "xllamacpp", "papermill", "pandas", "pyarrow", "tokenizers")


@dataclass(frozen=True)
class RunFolder:
    """Where one run's files lie; all that clean-up needs, whatever became of the config."""

    run_id: str
    folder: Path

    @property
    def config_path(self) -> Path:
        """The resolved config, as this run uses it."""
        return self.folder / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        """Versions, commit, machine, seeds, state of each step."""
        return self.folder / "manifest.json"

    @property
    def ledger_path(self) -> Path:
        """What this run created, one event a line."""
        return self.folder / "ledger.jsonl"

    @property
    def endpoints_path(self) -> Path:
        """Where each experiment's endpoint answers."""
        return self.folder / "endpoints.json"

    @property
    def workloads_path(self) -> Path:
        """How each workload's payloads were chosen: counts by reason, tokenizer, data set names."""
        return self.folder / "payloads" / "workloads.json"

    @property
    def requests_folder(self) -> Path:
        """Request records, one folder a stage."""
        return self.folder / "requests"

    @property
    def metrics_path(self) -> Path:
        """One row per experiment, workload and stage; metrics.csv lies beside it."""
        return self.folder / "metrics.parquet"

    @property
    def decision_path(self) -> Path:
        """Verdicts and the recommendation."""
        return self.folder / "decision.json"

    @property
    def progress_path(self) -> Path:
        """What the load is doing right now; for displays only."""
        return self.folder / "progress.json"

    @property
    def lease_path(self) -> Path:
        """Until when the run's own servers may live."""
        return self.folder / "lease.json"

    @property
    def load_lock_path(self) -> Path:
        """Held by whoever brings up or loads the run's endpoints."""
        return self.folder / ".load.lock"

    @property
    def use_lock_path(self) -> Path:
        """Held by whoever needs the run's endpoints, from bringing them up to the last stage."""
        return self.folder / ".use.lock"

    @property
    def pipeline_lock_path(self) -> Path:
        """Held by the pipeline that works on the run."""
        return self.folder / ".pipeline.lock"

    @property
    def logs_folder(self) -> Path:
        """What the run's own servers printed."""
        return self.folder / "logs"

    @property
    def notebooks_folder(self) -> Path:
        """The executed notebooks."""
        return self.folder / "notebooks"

    def payloads_path(self, workload: str) -> Path:
        """What will be sent for `workload`, in order."""
        return self.folder / "payloads" / f"payload_{workload}.jsonl"

    def stage_folder(self, key: StageKey) -> Path:
        """The records of one stage; present means done."""
        return self.requests_folder / key.experiment / key.workload / key.stage


@dataclass(frozen=True)
class Run(RunFolder):
    """One execution of a config: its id, the folder that holds its files, and its config."""

    loaded: LoadedConfig

    @property
    def config(self) -> Config:
        """The resolved config."""
        return self.loaded.config


def now_utc() -> datetime:
    """The wall clock; for names, ledgers and leases, never for latencies."""
    return datetime.now(UTC)


def new_run_id(name: str, at: datetime | None = None) -> str:
    """A run's id: its name and the time in UTC to the second."""
    return f"{name}-{(at or now_utc()):%Y%m%dT%H%M%SZ}"


def open_run(
    config_path: str | Path, run_id: str, overrides: Sequence[str] = (), *, must_exist: bool = False
) -> Run:
    """The run `run_id` of the config at `config_path`, its folder created where it is missing.

    Of a config that the run itself stored, it is the folder of that, wherever it was moved.
    A relative `config_path` is looked for in the working folder and in those above it, since
    notebooks run in their own. Raises ConfigError where the folder belongs to another config or to
    something else, where it cannot be made, where `run_id` is no name for a folder, and with
    `must_exist` where there is no such run.
    """
    path = _looked_for_upwards(Path(config_path))
    loaded = load_config(path, overrides)
    stored = _folder_that_stored(path, run_id)
    is_run = stored is not None and os.path.isfile(stored / "manifest.json")
    run = Run(run_id, stored if stored and is_run else _run_folder(loaded, run_id), loaded)
    if os.path.isfile(run.config_path):
        read_manifest(run)
        _refuse_other_config(run, resumed=must_exist)
    elif must_exist:
        raise _unknown_run(run_id, run.folder.parent)
    else:
        _create(run)
    return run


def check_results_dir(loaded: LoadedConfig) -> None:
    """Raise the ConfigError that `open_run` would for `run.results_dir`; nothing is made."""
    folder = _results_folder(loaded)
    try:
        _refuse_unwritable(folder)
    except OSError as error:
        raise _cannot_be_made(loaded, folder, error) from error


def find_run(run_id_or_folder: str, results_dir: Path = Path("results")) -> Run:
    """The run with this id below `results_dir`, or in this folder, with the config stored there.

    Raises ConfigError where there is none, or where its manifest is missing or torn.
    """
    found = find_run_folder(run_id_or_folder, results_dir)
    manifest = _manifest_at(found.manifest_path)
    return Run(manifest["run_id"], found.folder, load_config(found.config_path))


def find_run_folder(run_id_or_folder: str, results_dir: Path = Path("results")) -> RunFolder:
    """The folder of the run with this id below `results_dir`, or this folder; its config unread.

    Raises ConfigError where there is none.
    """
    candidates = [Path(run_id_or_folder), results_dir / run_id_or_folder]
    folders = [folder for folder in candidates if _is_run(folder)]
    if not run_id_or_folder or not folders:
        raise _unknown_run(run_id_or_folder, results_dir)
    whole = [folder for folder in folders if os.path.isfile(folder / "manifest.json")]
    folder = (whole or folders)[0].resolve()
    return RunFolder(folder.name, folder)


def find_run_folder_by_config(config_path: str | Path, run_id: str) -> RunFolder:
    """The folder of the run `run_id`, for whoever has a config that may have changed since.

    It is the folder of `config_path` where that is the config that the run stored; else it is
    looked for in the results folder of the config, if that can be read, and in `results`, in the
    working folder or above it. Nothing is made. Raises ConfigError where there is no such run.
    """
    path = _looked_for_upwards(Path(config_path)).resolve()
    if folder := _folder_that_stored(path, run_id):
        return RunFolder(run_id, folder)
    places = [*_results_folder_told(path), _upwards(Path("results"), os.path.isdir).resolve()]
    for place in places:
        if _is_run(place / run_id):
            return find_run_folder(str(place / run_id))
    return find_run_folder(run_id, places[0])


def _folder_that_stored(config_path: Path, run_id: str) -> Path | None:
    """The folder of the run `run_id` that stored the config at `config_path`; None of another."""
    folder = config_path.resolve().parent
    is_stored = config_path.name == "config.yaml" and folder.name == run_id and _is_run(folder)
    return folder if is_stored else None


def _results_folder_told(config_path: Path) -> list[Path]:
    try:
        return [_results_folder(load_config(config_path))]
    except ConfigError:
        return []


def find_run_folders(results_dir: Path = Path("results")) -> list[RunFolder]:
    """The folder of every run below `results_dir`, by name; none of their configs is read."""
    return [find_run_folder(str(results_dir / name)) for name in _known_runs(results_dir)]


def read_manifest(run: Run) -> dict[str, Any]:
    """The run's manifest. ConfigError where it is missing or torn."""
    return _manifest_at(run.manifest_path)


def mark_step(run: Run, step: str, state: str) -> None:
    """Note in the manifest that `step` is now `state`: running, done, failed or interrupted."""
    manifest = read_manifest(run)
    steps = {**manifest["steps"], step: {"state": state, "at": now_utc().isoformat()}}
    write_json(run.manifest_path, {**manifest, "steps": steps})


# --- whose folder it is --------------------------------------------------------------------------


def _looked_for_upwards(path: Path) -> Path:
    """`path` in the nearest folder, at or above the working one, that holds it; else as it is."""
    return _upwards(path, os.path.isfile)


def _upwards(path: Path, is_wanted: Callable[[Path], bool]) -> Path:
    for folder in (Path.cwd(), *Path.cwd().parents):
        if is_wanted(folder / path):
            return path if folder == Path.cwd() else folder / path
    return path


def _run_folder(loaded: LoadedConfig, run_id: str) -> Path:
    if not _RUN_ID.fullmatch(run_id):
        problem = f"{run_id!r} is no run id"
        remedy = "Use letters, digits, dots, dashes and underscores, a letter or digit first"
        raise ConfigError(Problem("run_id", None, "", problem, remedy))
    return _results_folder(loaded) / run_id


def _results_folder(loaded: LoadedConfig) -> Path:
    if "://" in loaded.config.run.results_dir:
        problem, remedy = "only a local folder can hold results", "Give a folder"
        raise loaded.error(("run", "results_dir"), problem, remedy)
    return loaded.resolve(loaded.config.run.results_dir)


def _refuse_other_config(run: Run, *, resumed: bool) -> None:
    stored = load_config(run.config_path).config.canonical()
    keys = list(differing_keys(stored, run.config.canonical()))
    if not keys:
        return
    more = f" and {len(keys) - _KEYS_TOLD} more" if len(keys) > _KEYS_TOLD else ""
    named = ", ".join(keys[:_KEYS_TOLD]) + more
    problem = f"{run.folder} belongs to another config, which differs in {named}"
    remedy = _OTHER_CONFIG_RESUMED if resumed else _OTHER_CONFIG_BY_HAND
    raise run.loaded.error(key_parts(keys[0]), problem, remedy)


def _unknown_run(run_id: str, results_dir: Path) -> ConfigError:
    known = _known_runs(results_dir)
    remedy = f"Runs there: {', '.join(known[-_RUNS_TOLD:])}" if known else "No run is there yet"
    if close := difflib.get_close_matches(Path(run_id).name, known, n=_NEAREST_TOLD):
        remedy = f"Did you mean {' or '.join(close)}?"
    return ConfigError(Problem(str(results_dir), None, "", f"there is no run {run_id!r}", remedy))


def _known_runs(results_dir: Path) -> list[str]:
    if not os.path.isdir(results_dir):
        return []
    names = [path.name for path in results_dir.iterdir() if _is_run(path)]
    return sorted(name for name in names if not name.startswith("."))


def _is_run(folder: Path) -> bool:
    """Whether a run's files lie there; where the config is lost, what it created is still told."""
    return any(os.path.isfile(folder / name) for name in ("config.yaml", "ledger.jsonl"))


def _manifest_at(path: Path) -> dict[str, Any]:
    remedy = "Restore it, or begin a new run"
    try:
        manifest = read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(Problem(str(path), None, "", "is missing", remedy)) from error
    except orjson.JSONDecodeError as error:
        raise ConfigError(Problem(str(path), None, "", "is torn", remedy)) from error
    if not isinstance(manifest, dict) or not manifest.keys() >= {"run_id", "base_dir", "steps"}:
        raise ConfigError(Problem(str(path), None, "", "is no manifest of a run", remedy))
    return manifest


# --- a new run -----------------------------------------------------------------------------------


def _create(run: Run) -> None:
    """Make the run's folder, with its config and manifest in it from the first moment."""
    try:
        _refuse_used_folder(run)
        partial = run.folder.with_name(f".{run.folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # a killed run's leftovers
        partial.mkdir(parents=True)
        write_json(partial / run.manifest_path.name, _manifest(run))
        write_atomically(partial / run.config_path.name, to_yaml(run.config.canonical()).encode())
        partial.replace(run.folder)
    except OSError as error:
        raise _cannot_be_made(run.loaded, run.folder, error) from error


def _cannot_be_made(loaded: LoadedConfig, folder: Path, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file stands in its place"
    problem = f"{folder} cannot be made: {reason}"
    return loaded.error(("run", "results_dir"), problem, "Name another folder")


def _refuse_unwritable(folder: Path) -> None:
    """Raise the OSError that making a folder in `folder`, or on the way to it, would raise."""
    for there in (folder, *folder.parents):
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(there.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return


def _refuse_used_folder(run: Run) -> None:
    held = sorted(path.name for path in run.folder.iterdir()) if run.folder.exists() else []
    if held:
        problem = f"{run.folder} is no run's folder, yet it holds {', '.join(held[:3])}"
        remedy = "Use another run id, or move that folder away"
        raise run.loaded.error(("run", "results_dir"), problem, remedy)


def _manifest(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "created_at": now_utc().isoformat(),
        "config_path": os.path.relpath(run.loaded.path.resolve(), run.loaded.base_dir),
        "base_dir": str(run.loaded.base_dir),
        "seed": run.config.run.seed,
        "commit": _commit(),
        "machine": _machine(),
        "versions": _versions(),
        "steps": {},
    }


def _machine() -> dict[str, Any]:
    import psutil

    return {
        "system": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
    }


def _processor_name() -> str:
    """The processor's model as Linux tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    """Installed versions of what shapes the results; a package that is not there is left out."""
    versions = {}
    for name in _REPORTED_VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _commit() -> str | None:
    """The source's git commit where it is run from its own checkout, else None.

    Installed below some other checkout, that one's commit would say nothing of this program.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

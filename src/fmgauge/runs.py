"""The folder of one run, results/<run_id>/: its files' names, its manifest, whose config it is.

Knows where every step's output lies; not what is in it or how it was made.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fmgauge.config import Config, LoadedConfig, differing_keys, load_config
from fmgauge.errors import ConfigError, Problem
from fmgauge.records import StageKey, read_json, write_atomically, write_json

_RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_REPORTED_VERSIONS = ("fmgauge", "xllamacpp", "papermill", "pandas", "pyarrow", "tokenizers")


@dataclass(frozen=True)
class Run:
    """One execution of a config: its id, its config, and the folder that holds its files."""

    run_id: str
    loaded: LoadedConfig
    folder: Path

    @property
    def config(self) -> Config:
        """The resolved config."""
        return self.loaded.config

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

    Raises ConfigError where the folder belongs to another config, where `run_id` is no name for a
    folder, and with `must_exist` where there is no such run.
    """
    loaded = load_config(config_path, overrides, _base_dir_beside(Path(config_path)))
    run = Run(run_id, loaded, _run_folder(loaded, run_id))
    if run.config_path.exists():
        _refuse_other_config(run)
    elif must_exist:
        raise _unknown_run(run_id, run.folder.parent)
    else:
        _create(run)
    return run


def find_run(run_id_or_folder: str, results_dir: Path = Path("results")) -> Run:
    """The run with this id below `results_dir`, or in this folder, with the config stored there.

    Raises ConfigError where there is none.
    """
    named = Path(run_id_or_folder)
    for folder in (named, results_dir / run_id_or_folder):
        if (folder / "config.yaml").exists():
            loaded = load_config(folder / "config.yaml", (), _base_dir_beside(folder / "config.yaml"))
            return Run(folder.resolve().name, loaded, folder.resolve())
    raise _unknown_run(run_id_or_folder, results_dir)


def read_manifest(run: Run) -> dict[str, Any]:
    """The run's manifest."""
    manifest: dict[str, Any] = read_json(run.manifest_path)
    return manifest


def mark_step(run: Run, step: str, state: str) -> None:
    """Note in the manifest that `step` is now `state`: running, done, failed or interrupted."""
    manifest = read_manifest(run)
    steps = {**manifest["steps"], step: {"state": state, "at": now_utc().isoformat()}}
    write_json(run.manifest_path, {**manifest, "steps": steps})


def _base_dir_beside(config_path: Path) -> Path | None:
    """Where relative paths start for a config that a run stored, from the manifest beside it."""
    manifest_path = config_path.parent / "manifest.json"
    if config_path.name != "config.yaml" or not manifest_path.exists():
        return None
    return Path(read_json(manifest_path)["base_dir"])


def _run_folder(loaded: LoadedConfig, run_id: str) -> Path:
    if not _RUN_ID.match(run_id):
        problem = f"{run_id!r} is no run id"
        remedy = "Use letters, digits, dots, dashes and underscores"
        raise ConfigError(Problem("run_id", None, "", problem, remedy))
    if "://" in loaded.config.run.results_dir:
        problem, remedy = "only a local folder can hold results", "Give a folder"
        raise loaded.error(("run", "results_dir"), problem, remedy)
    return loaded.resolve(loaded.config.run.results_dir) / run_id


def _refuse_other_config(run: Run) -> None:
    stored = load_config(run.config_path, (), run.loaded.base_dir).config.canonical()
    keys = list(differing_keys(stored, run.config.canonical()))
    if keys:
        problem = f"{run.folder} belongs to another config; it differs at {', '.join(keys[:5])}"
        remedy = "Use a new run id, or the config (and --set) that the run began with"
        raise run.loaded.error((keys[0].split(".")), problem, remedy)


def _unknown_run(run_id: str, results_dir: Path) -> ConfigError:
    known = sorted(path.parent.name for path in results_dir.glob("*/config.yaml"))
    remedy = f"Runs there: {', '.join(known[-5:])}" if known else "There are no runs there yet"
    return ConfigError(Problem(str(results_dir), None, "", f"there is no run {run_id!r}", remedy))


def _create(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.manifest_path, _manifest(run))
    text = yaml.safe_dump(run.config.canonical(), sort_keys=False, allow_unicode=True)
    write_atomically(run.config_path, text.encode())


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
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in _REPORTED_VERSIONS if name in installed}


def _commit() -> str | None:
    """The source's git commit where it is run from a checkout, else None."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except OSError:
        return None
    return done.stdout.strip() or None

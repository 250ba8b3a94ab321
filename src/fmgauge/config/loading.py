"""From a YAML file to a checked Config. Knows what makes a config whole; not what runs it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from fmgauge.config.checks import cross_checked
from fmgauge.config.keys import dotted_key
from fmgauge.config.model import Config
from fmgauge.config.overrides import override_text
from fmgauge.config.refusals import explained
from fmgauge.config.yaml_text import Location, YamlText, read_yaml
from fmgauge.errors import ConfigError, Problem
from fmgauge.records import read_json


@dataclass(frozen=True)
class LoadedConfig:
    """A checked config, the file it came from, and the folder its relative paths start at."""

    config: Config
    text: YamlText
    base_dir: Path

    @property
    def path(self) -> Path:
        """The file that the config was read from."""
        return self.text.path

    def resolve(self, relative: str | Path) -> Path:
        """`relative` as an absolute path, from the project's root; absolute paths stay."""
        return (self.base_dir / os.path.expanduser(relative)).resolve()

    def problem(self, location: Location, problem: str, remedy: str) -> Problem:
        """A Problem that points at the line of `location`, or at --set where it came from there."""
        return self.text.problem(location, problem, remedy)

    def error(self, location: Location, problem: str, remedy: str) -> ConfigError:
        """A ConfigError of one such Problem."""
        return ConfigError(self.problem(location, problem, remedy))


def load_config(
    path: str | Path, overrides: Sequence[str] = (), base_dir: Path | None = None
) -> LoadedConfig:
    """Read and check the config at `path`, with `--set` overrides applied.

    Relative paths in it start at `base_dir`: by default, for a config that a run stored, where
    they started in that run; else at the nearest folder, at or above the config's, that holds a
    `pyproject.toml` or `.git`; else at the config's own folder.
    Raises ConfigError with every problem found: file, line, key and remedy.
    """
    text = read_yaml(Path(path))
    _refuse_other_than_mapping(text)
    for override in overrides:
        text = override_text(text, override)
    config = _validated(text)
    problems = list(cross_checked(config, text))
    if problems:
        raise ConfigError(*problems)
    start = base_dir or _base_dir_beside(text.path) or _project_root(text.path)
    return LoadedConfig(config, text, start.resolve())


def _refuse_other_than_mapping(text: YamlText) -> None:
    if isinstance(text.data, dict):
        return
    problem = "is empty" if text.data is None else "must be a mapping of keys"
    remedy = "Begin it with run:, workloads: and experiments:"
    raise ConfigError(Problem(str(text.path), 1, "", problem, remedy))


def _validated(text: YamlText) -> Config:
    try:
        return Config.model_validate_json(json.dumps(text.data))
    except ValidationError as error:
        raise ConfigError(*explained(error, Config, text)) from error


def _base_dir_beside(path: Path) -> Path | None:
    """Where relative paths start for a config that a run stored, from the manifest beside it."""
    manifest_path = path.parent / "manifest.json"
    if path.name != "config.yaml" or not manifest_path.exists():
        return None
    try:
        return Path(read_json(manifest_path)["base_dir"])
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        problem = "is no manifest of a run: base_dir cannot be read from it"
        remedy = "Restore it, or begin a new run"
        raise ConfigError(Problem(str(manifest_path), None, "", problem, remedy)) from error


def _project_root(path: Path) -> Path:
    folder = path.resolve().parent
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").exists() or (candidate / ".git").exists():
            return candidate
    return folder


def differing_keys(one: Any, other: Any, prefix: str = "") -> Iterable[str]:
    """Dotted keys at which two configs' plain data differ, spelt as --set takes them."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differing_keys(one.get(key), other.get(key), f"{prefix}{dotted_key([key])}.")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differing_keys(left, right, f"{prefix}{index}.")
    elif one != other:
        yield prefix.rstrip(".")

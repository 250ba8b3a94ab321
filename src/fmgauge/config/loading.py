"""From a YAML file to a checked Config. Knows what makes a config whole; not what runs it."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fmgauge.config.model import Config
from fmgauge.config.overrides import apply_override
from fmgauge.config.yaml_text import Location, YamlText, read_yaml
from fmgauge.errors import ConfigError, Problem


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
        return (self.base_dir / Path(relative).expanduser()).resolve()

    def problem(self, location: Location, problem: str, remedy: str) -> Problem:
        """A Problem that points at the line of `location` in the config's file."""
        key = self.text.key(location)
        return Problem(str(self.path), self.text.line(location), key, problem, remedy)

    def error(self, location: Location, problem: str, remedy: str) -> ConfigError:
        """A ConfigError that points at the line of `location` in the config's file."""
        return ConfigError(self.problem(location, problem, remedy))


def load_config(
    path: str | Path, overrides: Sequence[str] = (), base_dir: Path | None = None
) -> LoadedConfig:
    """Read and check the config at `path`, with `--set` overrides applied.

    Relative paths in it start at `base_dir`: by default the nearest folder, at or above the
    config's, that holds a `pyproject.toml` or `.git`, else the config's own folder.
    Raises ConfigError with every problem found: file, line, key and remedy.
    """
    text = read_yaml(Path(path))
    data = text.data
    for override in overrides:
        data = apply_override(data, override)
    config = _validated(data, text)
    loaded = LoadedConfig(config, text, base_dir or _project_root(text.path))
    problems = list(_cross_checks(loaded))
    if problems:
        raise ConfigError(*problems)
    return loaded


def _project_root(path: Path) -> Path:
    folder = path.resolve().parent
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").exists() or (candidate / ".git").exists():
            return candidate
    return folder


def _validated(data: Any, text: YamlText) -> Config:
    if not isinstance(data, dict):
        problem, remedy = "holds no mapping", "Begin it with run:, workloads: and experiments:"
        raise ConfigError(Problem(str(text.path), 1, "", problem, remedy))
    try:
        return Config.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise ConfigError(*(_explained(detail, text) for detail in error.errors())) from error
    except (TypeError, ValueError) as error:
        problem = Problem(str(text.path), None, "", f"cannot be read: {error}", "Use plain keys")
        raise ConfigError(problem) from error


def _explained(detail: ErrorDetails, text: YamlText) -> Problem:
    """One pydantic error as file, line, key, problem and remedy."""
    location = detail["loc"]
    problem, remedy = _words(detail)
    return Problem(str(text.path), text.line(location), text.key(location), problem, remedy)


def _words(detail: ErrorDetails) -> tuple[str, str]:
    location, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    shown = json.dumps(detail["input"], default=str)[:60]
    if kind == "extra_forbidden":
        return _unknown_key(location)
    if kind == "missing":
        return "this key is missing", f"Add it: {_description(location)}"
    if kind == "union_tag_invalid":
        known = context.get("expected_tags", "")
        return f"unknown kind {context.get('tag')!r}", f"Use one of {known}"
    if kind == "union_tag_not_found":
        return "has no kind", "Add kind: and one of its values"
    if kind == "string_pattern_mismatch":
        return f"{shown} is not allowed here", f"Give it as: {_description(location)}"
    return f"{detail['msg'].lower()}, not {shown}", f"Give it as: {_description(location)}"


def _unknown_key(location: Location) -> tuple[str, str]:
    known = _known_keys(location[:-1])
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if nearest:
        return "unknown key", f"Did you mean {nearest[0]!r}?"
    return "unknown key", f"Known keys here: {', '.join(known)}"


def _known_keys(location: Location) -> list[str]:
    model = _type_at(location)
    return sorted(model.model_fields) if _is_model(model) else []


def _description(location: Location) -> str:
    """The description of the field at `location`, or of the list that holds it."""
    for end in range(len(location), 0, -1):
        parent = _type_at(location[: end - 1])
        if _is_model(parent) and location[end - 1] in parent.model_fields:
            return parent.model_fields[location[end - 1]].description or "a value"
    return "a value of the right type"


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _type_at(location: Location) -> Any:
    """The config type at a pydantic error's location, whose parts also name union members."""
    current: Any = Config
    for part in location:
        current = next(_below(current, part), None)
    return current


def _below(current: Any, part: str | int) -> Iterator[Any]:
    for member in _members(current):
        if _is_model(member) and part in member.model_fields:
            yield member.model_fields[part].annotation
        elif _is_model(member) and _kind_of(member) == part:
            yield member
        elif typing.get_origin(member) is tuple and isinstance(part, int):
            yield typing.get_args(member)[0]
        elif typing.get_origin(member) is dict:
            yield typing.get_args(member)[1]


def _members(annotation: Any) -> Iterator[Any]:
    """The types behind Annotated and unions."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _members(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation)[0] if field else None


# --- what one field cannot know ------------------------------------------------------------------


def _cross_checks(loaded: LoadedConfig) -> Iterator[Problem]:
    yield from _repeated_names(loaded)
    yield from _unmatched_workloads(loaded)
    yield from _repeated_stages(loaded)
    yield from _empty_ranges(loaded)


def _repeated_names(loaded: LoadedConfig) -> Iterator[Problem]:
    for family in ("workloads", "experiments"):
        names = [item.name for item in getattr(loaded.config, family)]
        for index in _repeats(names):
            problem = f"the name {names[index]!r} stands twice"
            yield loaded.problem((family, index, "name"), problem, "Give each its own name")


def _repeats(values: Sequence[Any]) -> Iterator[int]:
    """Indices of values that stood before, letter case aside (it does not tell folders apart)."""
    seen = set()
    for index, value in enumerate(values):
        folded = value.casefold() if isinstance(value, str) else value
        if folded in seen:
            yield index
        seen.add(folded)


def _unmatched_workloads(loaded: LoadedConfig) -> Iterator[Problem]:
    config = loaded.config
    known = [workload.name for workload in config.workloads]
    used = set()
    for index, experiment in enumerate(config.experiments):
        used.update(experiment.workloads)
        for position, name in enumerate(experiment.workloads):
            if name not in known:
                yield _no_such_workload(loaded, ("experiments", index, "workloads", position), name)
        for position in _repeats(experiment.workloads):
            location = ("experiments", index, "workloads", position)
            yield loaded.problem(location, "this workload stands twice", "Keep one")
    for index, name in enumerate(known):
        if name not in used:
            remedy = "List it under an experiment's workloads, or remove it"
            yield loaded.problem(("workloads", index), f"no experiment uses {name!r}", remedy)
    if config.workload_of_interest not in known:
        location = ("report", "workload_of_interest")
        yield _no_such_workload(loaded, location, config.workload_of_interest)


def _no_such_workload(loaded: LoadedConfig, location: Location, name: str) -> Problem:
    known = [workload.name for workload in loaded.config.workloads]
    remedy = f"Use one of {', '.join(known)}"
    return loaded.problem(location, f"there is no workload {name!r}", remedy)


def _repeated_stages(loaded: LoadedConfig) -> Iterator[Problem]:
    for index, experiment in enumerate(loaded.config.experiments):
        levels = [
            (level, ("experiments", index, "load", position, "concurrency", number))
            for position, load in enumerate(experiment.load)
            for number, level in enumerate(load.concurrency)
        ]
        for repeat in _repeats([level for level, _ in levels]):
            level, location = levels[repeat]
            yield loaded.problem(location, f"concurrency {level} stands twice", "Keep one of them")


def _empty_ranges(loaded: LoadedConfig) -> Iterator[Problem]:
    for index, workload in enumerate(loaded.config.workloads):
        kept = workload.filter
        if kept.max_tokens is not None and kept.max_tokens < kept.min_tokens:
            location = ("workloads", index, "filter", "max_tokens")
            problem = f"{kept.max_tokens} is below min_tokens, {kept.min_tokens}"
            yield loaded.problem(location, problem, "Raise it, or lower min_tokens")
        yield from _empty_lengths(loaded, index)


def _empty_lengths(loaded: LoadedConfig, index: int) -> Iterator[Problem]:
    source = loaded.config.workloads[index].source
    if source.kind != "synthetic":
        return
    for name in ("prompt_tokens", "output_tokens"):
        lengths = getattr(source, name)
        if lengths is not None and lengths.kind == "uniform" and lengths.max < lengths.min:
            location = ("workloads", index, "source", name, "max")
            problem = f"{lengths.max} is below min, {lengths.min}"
            yield loaded.problem(location, problem, "Raise it, or lower min")


def differing_keys(one: Any, other: Any, prefix: str = "") -> Iterable[str]:
    """Dotted keys at which two configs' plain data differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differing_keys(one.get(key), other.get(key), f"{prefix}{key}.")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differing_keys(left, right, f"{prefix}{index}.")
    elif one != other:
        yield prefix.rstrip(".")

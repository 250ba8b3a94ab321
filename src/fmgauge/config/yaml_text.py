"""YAML text as plain data plus the line of every key. Knows YAML; not what the keys mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fmgauge.errors import ConfigError, Problem

Location = Sequence[str | int]


@dataclass(frozen=True)
class YamlText:
    """A parsed YAML file: its data, and where each part of the data stands."""

    path: Path
    data: Any
    root: yaml.Node | None

    def line(self, location: Location) -> int | None:
        """The 1-based line of the deepest part of `location` that the file holds."""
        node, line = self.root, None
        for part in location:
            child = _child(node, part)
            if child is not None:
                node, line = child
        return line

    def key(self, location: Location) -> str:
        """The parts of `location` that the file holds, and its last part, as one dotted key."""
        node, parts = self.root, []
        for part in location:
            child = _child(node, part)
            if child is not None:
                node = child[0]
                parts.append(str(part))
        if location and (not parts or parts[-1] != str(location[-1])):
            parts.append(str(location[-1]))
        return ".".join(parts)


def read_yaml(path: Path) -> YamlText:
    """The YAML file at `path`. ConfigError where it is missing, malformed or builds objects."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(_unreadable(path, error)) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(path, root)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_malformed(path, error)) from error
    except (yaml.YAMLError, ValueError) as error:
        problem = f"is not YAML: {error}"
        raise ConfigError(Problem(str(path), None, "", problem, "Mend its syntax")) from error
    return YamlText(path, data, root)


def _unreadable(path: Path, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(str(path), None, "", "there is no such file", "Give the path of a YAML file")
    reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
    return Problem(str(path), None, "", f"cannot be read: {reason}", "Give a readable YAML file")


def _malformed(path: Path, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    if isinstance(error, yaml.constructor.ConstructorError):
        remedy = "Remove the tag: only plain YAML values are read"
        return Problem(str(path), line, "", f"a tag is refused: {error.problem}", remedy)
    return Problem(str(path), line, "", f"is not YAML: {error.problem}", "Mend its syntax")


def _refuse_repeated_keys(path: Path, node: yaml.Node | None) -> None:
    """YAML keeps the last of two equal keys in silence; here it is an error."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                problem = "this key stands twice"
                raise ConfigError(Problem(str(path), line, str(key.value), problem, "Keep one"))
            if isinstance(key.value, str) and key.value != "<<":
                seen.add(key.value)
            _refuse_repeated_keys(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(path, item)


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item, item.start_mark.line + 1
    return None

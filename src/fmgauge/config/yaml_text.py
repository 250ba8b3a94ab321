"""YAML text as plain data plus the line of every key. Knows YAML; not what the keys mean.

Values are text, numbers, true and false, null, lists and mappings; keys are text as written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fmgauge.config.keys import dotted_key
from fmgauge.errors import ConfigError, Problem

Location = Sequence[str | int]

_DEEPEST = 50  # levels; a config needs fewer than ten
_LARGEST = 200_000  # values once every alias is followed: aliases of aliases multiply
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_SCALAR_TAGS = {_TAG + name for name in ("bool", "int", "float", "null")}
_PLAIN_TAGS = _SCALAR_TAGS | {_MERGE} | {_TAG + name for name in ("str", "seq", "map")}


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that reads a date as text, and a lone = too."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _PlainDumper(yaml.SafeDumper):
    """SafeDumper whose text reads back as itself."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text in double quotes where it holds one of Unicode's own line breaks.

        In other styles a reader folds them into spaces, as it does ends of lines.
        """
        unicode_breaks = any(character in data for character in "\x85\u2028\u2029")
        return self.represent_scalar(f"{_TAG}str", data, '"' if unicode_breaks else None)


_PlainDumper.add_representer(str, _PlainDumper.represent_str)


@dataclass(frozen=True)
class YamlText:
    """A parsed YAML file: its data, and where each part of the data stands.

    `overridden` are the locations that were set on the command line, in order.
    """

    path: Path
    data: Any
    root: yaml.Node | None
    overridden: tuple[tuple[str | int, ...], ...] = ()

    def line(self, location: Location) -> int | None:
        """The 1-based line of the deepest part of `location` that the file holds."""
        position = self.position(location)
        return position[0] if position else None

    def position(self, location: Location) -> tuple[int, int] | None:
        """1-based line and column of the deepest part of `location` that the file holds.

        None where it was set on the command line. An alias stands where its anchor does.
        """
        if self._set_on_command_line(location):
            return None
        node, position = self.root, None
        for part in location:
            child = _child(node, part)
            if child is None:
                break
            node, mark = child
            position = (mark.line + 1, mark.column + 1)
        return position

    def key(self, location: Location) -> str:
        """`location` as one dotted key, as --set takes it."""
        return dotted_key(location)

    def problem(self, location: Location, problem: str, remedy: str) -> Problem:
        """A Problem that points at the line of `location`, or at --set where it came from there."""
        file = "--set" if self._set_on_command_line(location) else str(self.path)
        return Problem(file, self.line(location), self.key(location), problem, remedy)

    def _set_on_command_line(self, location: Location) -> bool:
        named = [str(part) for part in location]
        starts = ([str(part) for part in start] for start in self.overridden)
        return any(named[: len(start)] == start for start in starts)


def read_yaml(path: Path) -> YamlText:
    """The YAML file at `path`. ConfigError where it is missing, malformed or builds objects."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(_unreadable(path, error)) from error
    data, root = parse_yaml(text, str(path))
    return YamlText(path, data, root)


def parse_yaml(text: str, file: str) -> tuple[Any, yaml.Node | None]:
    """`text` as data and as nodes with lines; ConfigError, naming `file`, if it fails."""
    try:
        loader = _PlainLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, None
        _refuse_what_is_not_plain(file, root)
        return loader.construct_document(root), root
    except yaml.reader.ReaderError as error:
        raise ConfigError(_unprintable(file, text, error)) from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_malformed(file, error)) from error
    except RecursionError as error:
        raise ConfigError(_too_deep(file, None)) from error
    except (yaml.YAMLError, ValueError, LookupError, OverflowError) as error:
        problem = f"holds a value that cannot be read: {error}"
        raise ConfigError(Problem(file, None, "", problem, "Mend or quote it")) from error


def to_yaml(data: Any) -> str:
    """Plain data as YAML text that `parse_yaml` reads back as equal data."""
    text: str = yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    return text


# --- what is refused ------------------------------------------------------------------------------


def _unreadable(path: Path, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(str(path), None, "", "there is no such file", "Give the path of a YAML file")
    reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
    return Problem(str(path), None, "", f"cannot be read: {reason}", "Give a readable YAML file")


def _unprintable(file: str, text: str, error: yaml.reader.ReaderError) -> Problem:
    line = text.count("\n", 0, error.position) + 1
    problem = f"holds the character U+{error.character:04X}, which YAML does not allow"
    return Problem(file, line, "", problem, "Remove it")


def _malformed(file: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    if error.problem and "'\\t'" in error.problem:
        return Problem(file, line, "", "a tab stands where YAML wants spaces", "Indent with spaces")
    problem = error.problem or "its syntax is wrong"
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    return Problem(file, line, "", f"is not YAML: {problem}", "Mend its syntax")


def _too_deep(file: str, line: int | None) -> Problem:
    problem = f"is nested more than {_DEEPEST} levels deep, or holds itself"
    return Problem(file, line, "", problem, "Flatten it")


def _refuse_what_is_not_plain(file: str, root: yaml.Node) -> None:
    """Refuse tags, repeated keys and monsters before anything is built from the nodes.

    Walks without recursion, so that no depth of nesting can hurt; a node that holds itself is
    merely too deep.
    """
    waiting, seen = [(root, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST:
            raise ConfigError(_too_deep(file, node.start_mark.line + 1))
        if seen > _LARGEST:
            problem = f"holds more than {_LARGEST} values once its aliases are followed"
            raise ConfigError(Problem(file, None, "", problem, "Use fewer aliases"))
        _refuse_tag(file, node)
        if isinstance(node, yaml.MappingNode):
            _settle_keys(file, node)
        waiting.extend((child, depth + 1) for child in _children(node))


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (value for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _refuse_tag(file: str, node: yaml.Node) -> None:
    if node.tag not in _PLAIN_TAGS:
        shown = node.tag.replace(_TAG, "!!")
        remedy = "Remove the tag: only plain YAML values are read"
        problem = f"the tag {shown} is refused"
        raise ConfigError(Problem(file, node.start_mark.line + 1, "", problem, remedy))
    if isinstance(node, yaml.ScalarNode) and not _is_text(node.value):
        problem = "holds an escape that stands for no character of a text"
        raise ConfigError(Problem(file, node.start_mark.line + 1, "", problem, "Remove it"))


def _is_text(value: str) -> bool:
    """Whether files and terminals can hold `value`: no NUL, no half of a surrogate pair."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _settle_keys(file: str, node: yaml.MappingNode) -> None:
    """Make every key the text it was written as; YAML's last-one-wins is an error here."""
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            problem, remedy = "a list or a mapping stands as a key", "Use text as the key"
            raise ConfigError(Problem(file, line, "", problem, remedy))
        _refuse_tag(file, key)
        if key.tag == _MERGE:
            continue
        key.tag = f"{_TAG}str"
        if key.value in seen:
            raise ConfigError(Problem(file, line, key.value, "this key stands twice", "Keep one"))
        seen.add(key.value)


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, yaml.Mark] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # merged keys stand first, and lose
            if key.value == str(part):
                return value, key.start_mark
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            if str(index) == str(part):
                return item, item.start_mark
    return None

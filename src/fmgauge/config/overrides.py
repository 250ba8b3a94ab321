"""`--set a.b.c=value` on a config's plain data. Knows dotted keys; not which keys a config has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fmgauge.config.keys import dotted_key, key_parts, split_assignment
from fmgauge.config.yaml_text import Location, YamlText, parse_yaml
from fmgauge.errors import ConfigError, Problem

_MOST_PARTS = 20


def apply_override(data: Any, override: str) -> Any:
    """A copy of `data` with one `key=value` applied; the value is read as YAML.

    A list's item is named by its number from 0; a key that holds dots stands in double quotes;
    mappings that are missing on the way are made.
    """
    location, value = _located(data, override)
    return _with(data, location, value)


def override_text(text: YamlText, override: str) -> YamlText:
    """`text` with one `key=value` applied to its data, and that location marked as set there."""
    location, value = _located(text.data, override)
    data = _with(text.data, location, value)
    return replace(text, data=data, overridden=(*text.overridden, location))


def _located(data: Any, override: str) -> tuple[tuple[str | int, ...], Any]:
    """Where in `data` the override points, and the value that it puts there."""
    assignment = split_assignment(override)
    if assignment is None:
        key = override.split("=")[0]  # the value may be a secret
        remedy = "Write it as --set a.b.c=value; a part that holds dots stands in double quotes"
        raise _refused(key, "this is not key=value", remedy)
    key, value = assignment
    return _location(data, key), _value(key, value)


def _value(key: str, text: str) -> Any:
    try:
        return parse_yaml(text, "--set")[0]
    except ConfigError as error:
        told = error.problems[0]
        raise _refused(key, told.problem, f"{told.remedy}, or put the value in quotes") from error


def _location(data: Any, key: str) -> tuple[str | int, ...]:
    """The parts of `key`, those that name a list's item as numbers."""
    parts = key_parts(key)
    if len(parts) > _MOST_PARTS:
        raise _refused(key, f"this key has more than {_MOST_PARTS} parts", "Shorten it")
    location: list[str | int] = []
    for part in parts:
        if isinstance(data, list):
            location.append(_index(data, part, key))
            data = data[int(part)]
        elif data is None or isinstance(data, dict):
            location.append(part)
            data = (data or {}).get(part)
        else:
            above = dotted_key(location)
            raise _refused(key, f"{above} is a plain value, nothing lies below it", f"Set {above}")
    return tuple(location)


def _index(items: Sequence[Any], part: str, key: str) -> int:
    if part.isascii() and part.isdigit() and len(part) < 9 and int(part) < len(items):
        return int(part)
    numbers = f"by its number, 0 to {len(items) - 1}" if items else "only once the list holds one"
    raise _refused(key, f"there is no item {part} in that list", f"Name an item {numbers}")


def _with(data: Any, location: Location, value: Any) -> Any:
    if not location:
        return value
    head, rest = location[0], location[1:]
    if isinstance(data, list):
        index = int(head)
        return [*data[:index], _with(data[index], rest, value), *data[index + 1 :]]
    data = data or {}
    return {**data, head: _with(data.get(head), rest, value)}


def _refused(key: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(Problem("--set", None, key, problem, remedy))

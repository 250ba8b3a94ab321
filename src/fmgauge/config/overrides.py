"""`--set a.b.c=value` on a config's plain data. Knows dotted keys; not which keys a config has."""

from __future__ import annotations

import re
from typing import Any

import yaml

from fmgauge.errors import ConfigError, Problem

_PART = re.compile(r'"([^"]+)"|([^."\s=]+)')
_KEY = re.compile(r'^((?:"[^"]+"|[^."\s=]+)(?:\.(?:"[^"]+"|[^."\s=]+))*)=(.*)$', re.DOTALL)


def apply_override(data: Any, override: str) -> Any:
    """A copy of `data` with one `key=value` applied; the value is read as YAML.

    A list's item is named by its number from 0; a key that holds dots stands in double quotes.
    """
    parts, value = _parse(override)
    return _with(data, parts, value, override)


def _parse(override: str) -> tuple[list[str], Any]:
    match = _KEY.match(override)
    if match is None:
        raise _refused(override, "is not key=value", "Write it as --set a.b.c=value")
    try:
        value = yaml.safe_load(match[2])
    except yaml.YAMLError as error:
        raise _refused(override, "its value is not YAML", "Quote the value") from error
    return [quoted or plain for quoted, plain in _PART.findall(match[1])], value


def _with(data: Any, parts: list[str], value: Any, override: str) -> Any:
    if not parts:
        return value
    head, rest = parts[0], parts[1:]
    if isinstance(data, list):
        if not head.isdigit() or int(head) >= len(data):
            remedy = f"Name an item by its number, 0 to {len(data) - 1}"
            raise _refused(override, f"there is no item {head!r} in that list", remedy)
        index = int(head)
        return [*data[:index], _with(data[index], rest, value, override), *data[index + 1 :]]
    if data is not None and not isinstance(data, dict):
        raise _refused(override, f"{head!r} lies below a plain value", "Shorten the key")
    data = data or {}
    return {**data, head: _with(data.get(head), rest, value, override)}


def _refused(override: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(Problem("--set", None, override, problem, remedy))

"""Dotted keys: `prices.hourly_usd."ml.g5.xlarge"`. Knows their spelling; not their meaning."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PART = r'"[^"]+"|[^."\s=]+'
_DOTTED = rf"(?:{_PART})(?:\.(?:{_PART}))*"
_ASSIGNMENT = re.compile(rf"({_DOTTED})=(.*)", re.DOTALL)


def dotted_key(parts: Sequence[str | int]) -> str:
    """`parts` as one key; a part that holds a dot, a space or an equals sign stands in quotes."""
    return ".".join(_quoted(str(part)) for part in parts)


def key_parts(key: str) -> list[str]:
    """The parts of a dotted key, without their quotes."""
    return [part.strip('"') for part in re.findall(_PART, key)]


def split_assignment(text: str) -> tuple[str, str] | None:
    """The key and the value of `key=value`; None where `text` is nothing of the kind."""
    match = _ASSIGNMENT.fullmatch(text)
    return (match[1], match[2]) if match else None


def _quoted(part: str) -> str:
    return part if re.fullmatch(r'[^."\s=]+', part) else f'"{part}"'

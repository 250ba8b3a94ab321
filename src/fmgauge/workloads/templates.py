"""Fills a prompt template's places with a row's columns. Knows `{{ column }}`; evaluates nothing.

Data and templates come from strangers, so a place is only ever replaced by a column's value: no
filters, no expressions, and what looks like a place inside a value stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PLACE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_DOUBLED = re.compile(r"\{\{|\}\}")


def template_columns(template: str) -> list[str]:
    """The columns that `template` names, each once, in their order."""
    return list(dict.fromkeys(_PLACE.findall(template)))


def stray_braces(template: str) -> str | None:
    """The first `{{` or `}}` that belongs to no place; None where all do."""
    between = _PLACE.split(template)[::2]  # each place's column stands between two of them
    return next((found[0] for text in between if (found := _DOUBLED.search(text))), None)


def render(template: str, row: Mapping[str, Any]) -> str:
    """`template` with each place filled from `row`; KeyError where the row lacks a column."""
    return _PLACE.sub(lambda place: as_text(row[place[1]]), template)


def as_text(value: Any) -> str:
    """A column's value in a prompt: a list's items on lines of their own, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "\n".join(as_text(item) for item in value)
    return str(value)

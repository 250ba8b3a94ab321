"""Pydantic's errors in plain words: file, line, key, problem, remedy.

Knows which words each kind of error deserves; not what a config is for.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fmgauge.config.keys import dotted_key
from fmgauge.config.yaml_text import Location, YamlText
from fmgauge.errors import Problem

_WANTED = {  # pydantic's error type: what the value must be
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "date_type": "a date such as 2026-11-23",
    "date_from_datetime_parsing": "a date such as 2026-11-23",
    "date_from_datetime_inexact": "a date such as 2026-11-23",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:.12g}",
    "multiple_of": "a multiple of {multiple_of:g}",
}
_ECHO_OF_A_DEFAULT = "default_factory_not_called"


@dataclass(frozen=True)
class _Place:
    """Where an error is: its path in the file, the types there and above, and what it means."""

    path: tuple[str | int, ...]
    parent: Any
    kinds: tuple[type[BaseModel], ...]  # what else the parent could have been, by its kind
    type: Any
    meaning: str


def explained(error: ValidationError, model: type[BaseModel], text: YamlText) -> list[Problem]:
    """Every error that validating `text` as `model` found, each told once.

    An error that lies around another is only its echo: pydantic also finds the list around a bad
    item to be too short, and a default that depends on a bad value to be missing. An anchor's
    fault is told where the anchor stands, not at every alias.
    """
    details = [d for d in error.errors(include_url=False) if d["type"] != _ECHO_OF_A_DEFAULT]
    told: dict[Any, Problem] = {}
    for detail in details:
        if any(_lies_within(other["loc"], detail["loc"]) for other in details):
            continue
        place = _place(detail["loc"], model)
        path = (*place.path, "kind") if detail["type"].startswith("union_tag_") else place.path
        problem = text.problem(path, *_words(detail, place, text))
        position = text.position(path) or problem.key
        told.setdefault((position, path[-1:], problem.problem), problem)
    return list(told.values())


def nearest(word: str, known: Iterable[str]) -> str:
    """A remedy: the known word that is nearest to `word`, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Use one of {', '.join(known)}"


def _lies_within(inner: Location, outer: Location) -> bool:
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)


# --- words ---------------------------------------------------------------------------------------


def _words(detail: ErrorDetails, place: _Place, text: YamlText) -> tuple[str, str]:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "refused":
        return context["problem"], context["remedy"]
    if kind == "extra_forbidden":
        return _words_of_unknown(str(place.path[-1]), place)
    if kind == "missing":
        return "this key is missing", f"Add it ({place.meaning})"
    if kind.startswith("union_tag_"):
        return _words_of_kind(detail, place)
    if kind in ("too_short", "string_too_short"):
        return "must not be empty", f"Fill it ({place.meaning})"
    if kind not in _WANTED:
        return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}", f"Change it ({place.meaning})"
    wanted, value = _WANTED[kind].format(**context), detail["input"]
    return f"must be {wanted}, not {_shown(value)}", _remedy(wanted, value, place, text)


def _words_of_unknown(key: str, place: _Place) -> tuple[str, str]:
    """A key of another kind is told as such: the nearest of this kind means another thing."""
    for other in place.kinds:
        if key in other.model_fields:
            kinds = f"belongs to kind: {_kind_of(other)}, not to kind: {_kind_of(place.parent)}"
            return kinds, "Remove it, or change the kind"
    return "unknown key", nearest(key, _known_keys(place.parent))


def _words_of_kind(detail: ErrorDetails, place: _Place) -> tuple[str, str]:
    kinds = [_kind_of(member) or "" for member in _members(place.type) if _is_model(member)]
    if "tag" not in detail.get("ctx", {}):
        return "this key is missing", f"Add it: one of {', '.join(kinds)}"
    tag = detail["ctx"]["tag"]
    return f"there is no kind {tag!r}", nearest(tag, kinds)


def _remedy(wanted: str, value: Any, place: _Place, text: YamlText) -> str:
    if wanted == "text" and isinstance(value, bool | int | float):
        if text.position(place.path) is None:
            return f"""Put it in quotes: --set '{dotted_key(place.path)}="{_shown(value)}"'"""
        return "Put it in quotes"
    if wanted in ("a number", "a whole number") and isinstance(value, str) and _is_finite(value):
        return f"Write it as {float(value):.12g}, without quotes"
    if wanted == "a list" and isinstance(value, str | bool | int | float):
        return f"Write it as [{_shown(value)}]"
    return f"Change it ({place.meaning})"


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _shown(value: Any) -> str:
    """A value as one writes it in YAML, shortened; of a list or a mapping only its kind."""
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 60 else f"{written[:59]}…"


def _known_keys(model: Any) -> list[str]:
    return sorted(model.model_fields) if _is_model(model) else []


# --- places --------------------------------------------------------------------------------------


def _place(location: Location, model: type[BaseModel]) -> _Place:
    """The place of a pydantic error, whose location also names members of unions by their kind."""
    path: list[str | int] = []
    parent: Any = None
    current: Any = model
    kinds: tuple[type[BaseModel], ...] = ()
    meaning = "a value"
    for part in location:
        member = _member_of_kind(current, part)
        if member is not None:
            kinds = tuple(one for one in _members(current) if _is_model(one))
            current = member
            continue
        path.append(part)
        kinds = kinds if current in kinds else ()
        parent, current = current, next(_below(current, part), None)
        meaning = _description(parent, part) or meaning
    return _Place(tuple(path), _model_in(parent), kinds, current, meaning.rstrip("."))


def _member_of_kind(annotation: Any, part: str | int) -> type[BaseModel] | None:
    """The union's member that pydantic names with `part`, where `annotation` is such a union."""
    models = [member for member in _members(annotation) if _is_model(member)]
    if len(models) < 2:
        return None
    return next((member for member in models if _kind_of(member) == part), None)


def _below(current: Any, part: str | int) -> Iterator[Any]:
    """The type of the value at key or number `part` of a value of type `current`."""
    for member in _members(current):
        if _is_model(member) and part in member.model_fields:
            yield member.model_fields[part].annotation
        elif typing.get_origin(member) is tuple:
            yield typing.get_args(member)[0]
        elif typing.get_origin(member) is dict:
            yield typing.get_args(member)[1]


def _description(parent: Any, part: str | int) -> str | None:
    model = _model_in(parent)
    field = model.model_fields.get(str(part)) if model else None
    return field.description if field else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    return next((member for member in _members(annotation) if _is_model(member)), None)


def _is_model(candidate: Any) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


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

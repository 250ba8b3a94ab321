"""A decision as a file. Knows JSON; no budgets."""

from __future__ import annotations

from pathlib import Path

import orjson
from pydantic import TypeAdapter

from fmgauge.decision.answers import Decision
from fmgauge.records import write_atomically


def decision_json(decision: Decision) -> bytes:
    """`decision` as indented JSON; `read_decision` gives it back exactly."""
    return orjson.dumps(decision, option=orjson.OPT_INDENT_2) + b"\n"


def write_decision(path: Path, decision: Decision) -> None:
    """Write `decision` as JSON, whole or not at all."""
    write_atomically(path, decision_json(decision))


def read_decision(path: Path) -> Decision:
    """The decision in the file at `path`. pydantic.ValidationError where it holds another thing.

    A file from before stages had caveats is read as one without any.
    """
    return TypeAdapter(Decision).validate_json(path.read_bytes())

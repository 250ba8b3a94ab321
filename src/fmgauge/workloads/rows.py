"""The rows that a source gives, and where each stands. Knows nothing of prompts or tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fmgauge.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its columns, and for a row of a data file the file and its 1-based line."""

    values: dict[str, Any]
    file: str | None = None
    line: int | None = None

    def error(self, key: str, problem: str, remedy: str) -> ConfigError:
        """A ConfigError that points at this row."""
        return ConfigError(Problem(self.file or "data", self.line, key, problem, remedy))


@dataclass(frozen=True)
class SourceRows:
    """All rows of a source, the names of its data sets, and what a reader should know of them."""

    rows: list[Row]
    datasets: tuple[str, ...]
    notes: tuple[str, ...] = ()

"""What can go wrong with a program, as exceptions. Not failed requests: those are data.

FmgaugeError
├── ConfigError       the user's config, data or command cannot be used; nothing was started
├── EndpointError     an endpoint did not come up or did not go down
└── StepError         a step of the run could not do its work
"""

from __future__ import annotations

from dataclasses import dataclass


class FmgaugeError(Exception):
    """Base of every error that fmgauge raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it stands, and what to do about it."""

    file: str
    line: int | None
    key: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        return f"{place}:{key} {self.problem}. {self.remedy}"


class ConfigError(FmgaugeError):
    """The config, the data it names, or the command cannot be used; the exit code is 2."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class EndpointError(FmgaugeError):
    """An endpoint did not come up, or did not go down."""


class StepError(FmgaugeError):
    """A step of the run could not do its work; the exit code is 1."""

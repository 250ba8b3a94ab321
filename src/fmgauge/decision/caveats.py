"""What must be said with a stage's figures: when, in which words, and whether they are valid.

Knows the metrics of one stage; knows no budgets and no other stage. Every text about a caveat, in
tables, sentences and reasons, is made from the one table below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Literal, get_args

from fmgauge.decision.amounts import plain_number
from fmgauge.statistics import Growth

CaveatCode = Literal[
    "fell_behind",
    "client_limited",
    "not_steady",
    "nothing_measured",
    "too_few_requests",
    "short_window",
]
CAVEAT_CODES: tuple[CaveatCode, ...] = get_args(CaveatCode)

_LEAST_LATENCIES = 10  # mean latencies that a window should hold


@dataclass(frozen=True)
class _Words:
    """What is said of a caveat: a clause, its figures, and what a reader is to make of it."""

    name: str
    figures: tuple[str, ...]  # the first whose numbers the caveat has is used
    meaning: str
    is_invalid: bool


_WORDS: Mapping[CaveatCode, _Words] = {
    "fell_behind": _Words(
        "the stage fell behind",
        (
            "unanswered requests grew by {growth} in {duration_s} s, with {mean} on average",
            "a backlog grew, so the window was ended after {duration_s} s",
            "a backlog grew in the warm-up of {warmup_s} s",
        ),
        "The longer such a load lasts, the longer answers take.",
        is_invalid=True,
    ),
    "client_limited": _Words(
        "the client was the bottleneck",
        ("{reasons}",),
        "The figures are partly those of the machine that sent the load.",
        is_invalid=True,
    ),
    "not_steady": _Words(
        "the load was not steady",
        (
            "the warm-up reached its longest, {warmup_s} s, before the load was steady",
            "unanswered requests fell by {fall} in {duration_s} s, with {mean} on average",
        ),
        "Set a higher warmup_max_s or warmup_s.",
        is_invalid=True,
    ),
    "nothing_measured": _Words(
        "no request was measured",
        ("none began in the window of {duration_s} s",),
        "Set a higher duration_s.",
        is_invalid=True,
    ),
    "too_few_requests": _Words(
        "too few requests were measured",
        ("{n_requests} in {duration_s} s, the longest window, are fewer than the budgets need",),
        "Set a higher duration_max_s.",
        is_invalid=False,
    ),
    "short_window": _Words(
        "the window was short",
        ("{duration_s} s is less than ten mean latencies of {latency_s} s",),
        "Set a higher duration_s where small differences matter.",
        is_invalid=False,
    ),
}


@dataclass(frozen=True)
class Caveat:
    """What must be said with one stage's figures. Equal where code and numbers are."""

    code: CaveatCode
    numbers: Mapping[str, float | str] = field(default_factory=dict, hash=False)

    @property
    def is_invalid(self) -> bool:
        """Whether the stage's figures are no basis for a choice."""
        return _WORDS[self.code].is_invalid

    @property
    def name(self) -> str:
        """The caveat as a clause without figures."""
        return _WORDS[self.code].name

    @property
    def meaning(self) -> str:
        """What follows from it, or what to do about it, as a sentence."""
        return _WORDS[self.code].meaning

    @property
    def short(self) -> str:
        """The caveat with its figures, as a table has it."""
        shown = {
            name: value if isinstance(value, str) else plain_number(value)
            for name, value in self.numbers.items()
        }
        texts = _WORDS[self.code].figures
        figures = next(text for text in texts if numbers_in(text) <= shown.keys())
        return f"{self.name}: {figures.format_map(shown)}"

    @property
    def long(self) -> str:
        """The caveat as a sentence with its figures, and what follows from it."""
        return f"{self.short[0].upper()}{self.short[1:]}. {self.meaning}"


def numbers_in(text: str) -> set[str]:
    """The numbers that a wording has a place for."""
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def caveats_of(row: Mapping[str, Any]) -> tuple[Caveat, ...]:
    """Every caveat of a stage, by its metrics; of one that was not run there are none."""
    return tuple(_found(row)) if row["status"] == "ok" else ()


def _found(row: Mapping[str, Any]) -> Iterator[Caveat]:
    duration_s, latency_s = float(row["duration_s"]), float(row["latency_mean"])
    n_requests = int(row["n_requests"])
    if _growth(row).is_backlog(n_requests + int(row["n_unsent"])):
        growth, mean = float(row["outstanding_growth"]), float(row["outstanding_mean"])
        numbers = {"growth": growth, "mean": mean, "duration_s": duration_s}
        yield Caveat("fell_behind", numbers)
    elif row["window_end"] == "overloaded":
        yield Caveat("fell_behind", {"duration_s": duration_s})
    elif row["warmup_end"] == "overloaded":
        yield Caveat("fell_behind", {"warmup_s": float(row["warmup_s"])})
    if row["client_limited"]:
        yield Caveat("client_limited", {"reasons": row["client_limited"]})
    if row["warmup_end"] == "capped":
        yield Caveat("not_steady", {"warmup_s": float(row["warmup_s"])})
    elif _growth(row).is_draining(n_requests + int(row["n_unsent"])):
        fall, mean = -float(row["outstanding_growth"]), float(row["outstanding_mean"])
        yield Caveat("not_steady", {"fall": fall, "mean": mean, "duration_s": duration_s})
    if not n_requests:
        yield Caveat("nothing_measured", {"duration_s": duration_s})
    elif row["window_end"] == "capped":
        numbers = {"n_requests": n_requests, "duration_s": duration_s}
        yield Caveat("too_few_requests", numbers)
    if math.isfinite(latency_s) and duration_s < _LEAST_LATENCIES * latency_s:
        yield Caveat("short_window", {"duration_s": duration_s, "latency_s": latency_s})


def _growth(row: Mapping[str, Any]) -> Growth:
    """How unanswered requests grew over the window; NaN, which is above no limit, of most loads."""
    names = ("outstanding_growth", "outstanding_growth_ci_low", "outstanding_mean")
    return Growth(*(float(row[name]) for name in names))

"""What one field alone cannot know: names that repeat, names of nothing, empty ranges.

Knows a Config whose every field is right by itself; not files or data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fmgauge.config.model import Config
from fmgauge.config.refusals import nearest
from fmgauge.config.yaml_text import Location, YamlText
from fmgauge.errors import Problem


def cross_checked(config: Config, text: YamlText) -> Iterator[Problem]:
    """Every fault that lies between fields of `config`."""
    yield from _repeated_names(config, text)
    yield from _unmatched_workloads(config, text)
    yield from _repeated_stages(config, text)
    yield from _empty_ranges(config, text)


def _repeated_names(config: Config, text: YamlText) -> Iterator[Problem]:
    for family in ("workloads", "experiments"):
        names = [item.name for item in getattr(config, family)]
        for index, first in _repeats([name.casefold() for name in names]):
            location = (family, index, "name")
            yield text.problem(location, *_same_name(names[index], names[first]))


def _same_name(name: str, other: str) -> tuple[str, str]:
    remedy = "Give each its own name"
    if name == other:
        return f"the name {name!r} stands twice", remedy
    problem = f"{name!r} and {other!r} differ only in case: some systems make one folder of both"
    return problem, remedy


def _repeats(values: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """The index of every value that stood before, and the index where it stood first."""
    first: dict[Any, int] = {}
    for index, value in enumerate(values):
        if value in first:
            yield index, first[value]
        first.setdefault(value, index)


def _unmatched_workloads(config: Config, text: YamlText) -> Iterator[Problem]:
    known = [workload.name for workload in config.workloads]
    for index, experiment in enumerate(config.experiments):
        location = ("experiments", index, "workloads")
        for position, name in enumerate(experiment.workloads):
            if name not in known:
                yield _no_such_workload(text, (*location, position), name, known)
        for position, _ in _repeats(experiment.workloads):
            problem = f"the workload {experiment.workloads[position]!r} stands twice"
            yield text.problem((*location, position), problem, "Keep one")
    yield from _unused_workloads(config, text)
    if config.workload_of_interest not in known:
        of_interest = ("report", "workload_of_interest")
        yield _no_such_workload(text, of_interest, config.workload_of_interest, known)


def _no_such_workload(
    text: YamlText, location: Location, name: str, known: Sequence[str]
) -> Problem:
    return text.problem(location, f"there is no workload {name!r}", nearest(name, known))


def _unused_workloads(config: Config, text: YamlText) -> Iterator[Problem]:
    used = {name for experiment in config.experiments for name in experiment.workloads}
    for index, workload in enumerate(config.workloads):
        if workload.name not in used:
            remedy = "List it under an experiment's workloads, or remove it"
            problem = f"no experiment uses {workload.name!r}"
            yield text.problem(("workloads", index, "name"), problem, remedy)


def _repeated_stages(config: Config, text: YamlText) -> Iterator[Problem]:
    for index, experiment in enumerate(config.experiments):
        levels = [
            (level, ("experiments", index, "load", position, "concurrency", number))
            for position, load in enumerate(experiment.load)
            for number, level in enumerate(load.concurrency)
        ]
        for repeat, _ in _repeats([level for level, _ in levels]):
            level, location = levels[repeat]
            yield text.problem(location, f"concurrency {level} stands twice", "Keep one of them")


def _empty_ranges(config: Config, text: YamlText) -> Iterator[Problem]:
    for index, workload in enumerate(config.workloads):
        kept = workload.filter
        if kept.max_tokens is not None and kept.max_tokens < kept.min_tokens:
            location = ("workloads", index, "filter", "max_tokens")
            problem = f"{kept.max_tokens} is below min_tokens, which is {kept.min_tokens}"
            yield text.problem(location, problem, "Raise it, or lower min_tokens")
        yield from _empty_lengths(config, text, index)


def _empty_lengths(config: Config, text: YamlText, index: int) -> Iterator[Problem]:
    source = config.workloads[index].source
    if source.kind != "synthetic":
        return
    for name in ("prompt_tokens", "output_tokens"):
        lengths = getattr(source, name)
        if lengths is not None and lengths.kind == "uniform" and lengths.max < lengths.min:
            location = ("workloads", index, "source", name, "max")
            problem = f"{lengths.max} is below min, which is {lengths.min}"
            yield text.problem(location, problem, "Raise it, or lower min")

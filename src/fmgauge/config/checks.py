"""What one field alone cannot know: names that repeat, names of nothing, empty ranges.

Knows a Config whose every field is right by itself; not files or data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fmgauge.config.model import ClosedLoop, Config, OpenLoop
from fmgauge.config.refusals import nearest
from fmgauge.config.request_fields import unfit_request_fields
from fmgauge.config.stages import load_levels, stage_names
from fmgauge.config.yaml_text import Location, YamlText
from fmgauge.errors import Problem

_LEVELS = {"closed_loop": "concurrency", "open_loop": "request_rate"}  # a load's list of levels
_MOST_ARRIVALS = 20e6  # in one stage: 160 MB of instants


def cross_checked(config: Config, text: YamlText) -> Iterator[Problem]:
    """Every fault that lies between fields of `config`."""
    yield from _repeated_names(config, text)
    yield from _unmatched_workloads(config, text)
    yield from _repeated_stages(config, text)
    yield from _unfit_loads(config, text)
    yield from _unfit_simulations(config, text)
    yield from unfit_request_fields(config, text)
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
            (load, level, ("experiments", index, "load", position, _LEVELS[load.kind], number))
            for position, load in enumerate(experiment.load)
            for number, level in enumerate(load_levels(load))
        ]
        names = stage_names(experiment)
        for repeat, _ in _repeats([names[load, level] for load, level, _ in levels]):
            load, level, location = levels[repeat]
            words = _LEVELS[load.kind].replace("_", " ")
            yield text.problem(location, f"{words} {level:g} stands twice", "Keep one of them")


def _unfit_loads(config: Config, text: YamlText) -> Iterator[Problem]:
    """Keys of a load that do not go with another."""
    for index, experiment in enumerate(config.experiments):
        for position, load in enumerate(experiment.load):
            own = _unfit_users(load) if isinstance(load, ClosedLoop) else _unfit_arrivals(load)
            for key, problem, remedy in (*_unfit_stops(load), *own):
                location = ("experiments", index, "load", position, *key)
                yield text.problem(location, problem, remedy)


_Unfit = Iterator[tuple[tuple[str | int, ...], str, str]]  # key within the load, problem, remedy


def _unfit_stops(load: ClosedLoop | OpenLoop) -> _Unfit:
    if load.duration_s is None and load.requests is None:
        yield ("duration_s",), "nothing ends the window", "Give duration_s, requests, or both"
    for key, most_s, least_s in (
        ("warmup", load.warmup_max_s, load.warmup_s),
        ("duration", load.duration_max_s, load.duration_s or 0.0),
    ):
        if most_s is not None and most_s < least_s:
            problem = f"{most_s:g} is below {key}_s, which is {least_s:g}"
            yield (f"{key}_max_s",), problem, f"Raise it, or lower {key}_s"


def _unfit_users(load: ClosedLoop) -> _Unfit:
    if load.ramp_up_s is not None and load.ramp_up_s > load.warmup_s:
        warmup = f"warmup_s, which is {load.warmup_s:g}"
        problem = f"{load.ramp_up_s:g} would reach into the window: it is above {warmup}"
        yield ("ramp_up_s",), problem, "Lower it, or raise warmup_s"
    if load.duration_s is not None and load.think_time_s >= load.duration_s:
        window = f"duration_s, which is {load.duration_s:g}"
        problem = f"{load.think_time_s:g} leaves users no second question: it is not below {window}"
        yield ("think_time_s",), problem, "Lower it, or raise duration_s"


def _unfit_arrivals(load: OpenLoop) -> _Unfit:
    for key, arrivals in (("burstiness", "gamma"), ("ramp_to_rate", "ramp")):
        given, wanted = getattr(load, key) is not None, load.arrivals == arrivals
        if given and not wanted:
            problem = f"has no meaning with arrivals: {load.arrivals}"
            yield (key,), problem, f"Write arrivals: {arrivals}"
        elif wanted and not given:
            yield ("arrivals",), f"{arrivals} needs {key}", f"Give {key} beside it"
    if load.arrivals == "ramp" and load.duration_s is None:
        yield ("arrivals",), "a ramp needs a window of known length", "Give duration_s"
    elif load.arrivals == "ramp" and load.requests is not None:
        yield ("requests",), "a count could end the window before the ramp", "Remove it"
    yield from _too_many_arrivals(load)


def _too_many_arrivals(load: OpenLoop) -> _Unfit:
    """Rates whose schedule would not fit in memory."""
    if load.duration_s is None and load.requests is None:
        return  # which is told as such
    window_s = math.inf if load.duration_s is None else load.duration_s
    for place, rate in enumerate(load.request_rate):
        highest = max(rate, load.ramp_to_rate or rate)
        measured = min(highest * window_s, load.requests or math.inf)
        n = rate * load.warmup_s + measured
        if n > _MOST_ARRIVALS:
            problem = f"{rate:g} would be {n:.3g} requests in one stage, more than "
            problem += f"{_MOST_ARRIVALS:.3g}"
            yield ("request_rate", place), problem, "Lower it, or shorten the stage"


def _unfit_simulations(config: Config, text: YamlText) -> Iterator[Problem]:
    for index, experiment in enumerate(config.experiments):
        endpoint = experiment.endpoint
        if endpoint.kind == "simulated" and (endpoint.preset is None) == (endpoint.profile is None):
            problem = "a simulated endpoint has either a preset or a profile"
            location = ("experiments", index, "endpoint")
            yield text.problem(location, problem, "Give one of the two")


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

"""Everything that can be found wrong before anything is started. Knows what to ask, not of whom."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmgauge.config import LoadedConfig, load_config, planned_stages
from fmgauge.config.model import OpenLoop
from fmgauge.config.yaml_text import Location
from fmgauge.endpoints import kind_of
from fmgauge.errors import ConfigError, Problem
from fmgauge.load import api_key_of
from fmgauge.load.workers import shards_of
from fmgauge.pricing import price_problems, projected_spend_usd
from fmgauge.runs import check_results_dir
from fmgauge.transport.limits import most_descriptors, most_ports
from fmgauge.workloads import PreparedWorkload, check_workloads

_OWN_DESCRIPTORS = 64  # of a worker, beside those of its connections


def preflight(
    config_path: Path, overrides: Sequence[str] = (), *, offline: bool = False
) -> list[str]:
    """Check config, prices and data; lines that say what the run would do.

    Raises ConfigError with every problem found. Nothing is started and nothing is written.
    """
    return check_loaded(load_config(config_path, overrides), offline=offline)


def check_loaded(loaded: LoadedConfig, *, offline: bool = False) -> list[str]:
    """Check the prices and data of a config that is already read; lines as `preflight` gives."""
    problems = [
        *price_problems(loaded),
        *_endpoint_problems(loaded),
        *_client_problems(loaded),
    ]
    if problems:
        raise ConfigError(*problems)
    check_results_dir(loaded)
    workloads = check_workloads(loaded, offline=offline)
    return [_plan_line(loaded), *_simulated_line(loaded), *map(_workload_line, workloads)]


def _endpoint_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """What keeps endpoints from coming up, and keys that their variables do not hold."""
    for index, experiment in enumerate(loaded.config.experiments):
        kind = kind_of(experiment.endpoint)
        try:
            api_key_of(kind.endpoint(experiment, experiment.endpoint).api_key_env)
        except ConfigError as error:
            location = ("experiments", index, "endpoint", "api_key_env")
            found = error.problems[0]
            yield loaded.problem(location, found.problem, found.remedy)
        yield from kind.problems(loaded, experiment)


def _client_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """Loads of more connections than this machine gives a client."""
    experiments = loaded.config.experiments
    for planned in planned_stages(loaded.config):
        load, index = planned.load, experiments.index(planned.experiment)
        location: Location = ("experiments", index, "load", planned.experiment.load.index(load))
        if isinstance(load, OpenLoop):
            places, location = load.max_in_flight or 0, (*location, "max_in_flight")
        else:
            places = planned.concurrency or 0
            location = (*location, "concurrency", load.concurrency.index(places))
        workers = shards_of(planned, loaded.config.run.workers)
        sockets, files = math.ceil(places / workers), most_descriptors() - _OWN_DESCRIPTORS
        if places > most_ports():
            problem = f"{places} requests in flight need as many local ports: {most_ports()} exist"
            yield loaded.problem(location, problem, "Lower it")
        elif sockets > files:
            problem = f"{sockets} connections of one worker need as many open files: {files} may be"
            remedy = "Lower it, raise the hard limit (ulimit -Hn), or give run.workers"
            yield loaded.problem(location, problem, remedy)


def _plan_line(loaded: LoadedConfig) -> str:
    stages = planned_stages(loaded.config)
    least_s = sum(stage.least_planned_s for stage in stages)
    most_s = sum(stage.most_planned_s or stage.most_warmup_s for stage in stages)
    requests = sum(stage.unplanned_requests for stage in stages)
    until = f" and as long as {requests} requests take" if requests else ""
    return (
        f"{loaded.path}: {len(loaded.config.experiments)} experiment(s), {len(stages)} stages, "
        f"{span_text(least_s, most_s)} under load{until}, then each stage's drain; "
        f"{_cost_text(loaded)}"
    )


def _simulated_line(loaded: LoadedConfig) -> Iterator[str]:
    names = [e.name for e in loaded.config.experiments if kind_of(e.endpoint).is_simulated]
    if names:
        yield f"SIMULATED, no latency is real and nothing is billed: {', '.join(names)}"


def _cost_text(loaded: LoadedConfig) -> str:
    """What hourly prices will cost, least and most; drains and tokens are not known beforehand."""
    per_token = [e.name for e in loaded.config.experiments if e.instance_type is None]
    least_usd, most_usd = projected_spend_usd(loaded)
    hourly = f"projected cost ${least_usd:.4f} to ${most_usd:.4f}, drains on top"
    if not per_token:
        return hourly
    tokens = f"the tokens of {', '.join(per_token)}, which nobody knows beforehand"
    if len(per_token) == len(loaded.config.experiments):
        return f"its cost is that of {tokens}"
    return f"{hourly} and {tokens}"


def _workload_line(prepared: PreparedWorkload) -> str:
    approximate = ", approximate" if prepared.approximate else ""
    return (
        f"{prepared.name}: {prepared.kept} prompts of {prepared.min_prompt_tokens} to "
        f"{prepared.max_prompt_tokens} tokens ({prepared.tokenizer}{approximate})"
    )


def span_text(least_s: float, most_s: float) -> str:
    """The least and the most that something takes, such as `20 s to 1 min 20 s`."""
    least, most = duration_text(least_s), duration_text(most_s)
    return least if least == most else f"{least} to {most}"


def duration_text(seconds: float) -> str:
    """A duration as a person says it, such as `2 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"

"""When open-loop requests are to be sent: instants that are all made before the clock starts.

A stage has one endless schedule: a seeded process with a mean gap of 1, stretched by the request
rate. `arrivals_s` is its part up to the window's end, `later_arrivals_s` the rest. Pure: knows
arrival processes; not clocks, payloads or connections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from fmgauge.config.model import OpenLoop
from fmgauge.records import StageKey

Instants = NDArray[np.float64]

_CHUNK = 4096  # arrivals drawn at a time; a schedule depends on it, so it is no setting


def stage_seed(seed: int, key: StageKey, replication: int = 0) -> int:
    """The seed of one stage's arrivals, from 0 to 2**63 - 1, the same on every machine.

    It hangs on the run's seed, the workload, the stage's name and the replication, not on the
    experiment: every candidate gets the same arrivals.
    """
    named = "\n".join((str(seed), key.workload, key.stage, str(replication)))
    return int.from_bytes(hashlib.blake2b(named.encode(), digest_size=8).digest(), "big") >> 1


def arrivals_s(load: OpenLoop, request_rate: float, *, seed: int) -> Instants:
    """Every intended send of warm-up and window, in seconds since the stage's start, ascending.

    The window is [warmup_s, warmup_s + duration_s), or ends with the last of `requests` arrivals
    in it, whichever comes first. Constant arrivals are evenly spaced, the first after half a gap;
    Poisson and gamma arrivals have gaps of mean 1 / request_rate; a ramp is a Poisson process that
    keeps request_rate through the warm-up and goes in a straight line to ramp_to_rate over the
    window. ValueError where nothing ends the window, or a ramp lacks its end.
    """
    if load.duration_s is None and load.requests is None:
        raise ValueError("nothing ends the window")
    parts: list[Instants] = []
    n_measured = 0
    for chunk in _endless(load, request_rate, seed):
        part = chunk[: _n_before_end(load, chunk, n_measured)]
        parts.append(part)
        if part.size < chunk.size:
            break
        n_measured += int(np.count_nonzero(part >= load.warmup_s))
    return np.concatenate(parts)


def later_arrivals_s(
    load: OpenLoop, request_rate: float, *, seed: int, after_s: float
) -> Iterator[Instants]:
    """What follows `arrivals_s` in the same schedule, without end, in ascending chunks.

    A ramp goes on at ramp_to_rate. Arrivals before `after_s` are left out; nothing that
    `arrivals_s` gave comes again. The call itself goes through the schedule once more, so it
    belongs before the stage's start; each chunk then takes a fraction of a millisecond.
    """
    n_before = arrivals_s(load, request_rate, seed=seed).size
    chunks = _endless(load, request_rate, seed)
    for _ in range(n_before // _CHUNK):
        next(chunks)
    first = next(chunks)[n_before % _CHUNK :]
    later = (chunk[np.searchsorted(chunk, after_s) :] for chunk in chain([first], chunks))
    return (chunk for chunk in later if chunk.size)


def shard(schedule: Instants, index: int, count: int) -> Instants:
    """The part of `schedule` that worker `index` of `count` sends: every count-th arrival."""
    return schedule[index::count]


def _n_before_end(load: OpenLoop, chunk: Instants, n_measured: int) -> int:
    """How many of `chunk` come before the window's end, after `n_measured` within it."""
    n = chunk.size
    if load.duration_s is not None:
        n = int(np.searchsorted(chunk, load.warmup_s + load.duration_s))
    if load.requests is not None:
        n_warmup = int(np.searchsorted(chunk, load.warmup_s))
        n = min(n, n_warmup + load.requests - n_measured)
    return n


def _endless(load: OpenLoop, request_rate: float, seed: int) -> Iterator[Instants]:
    """The whole schedule in chunks."""
    for units in _unit_rate(load, np.random.default_rng(seed)):
        is_ramp = load.arrivals == "ramp"
        yield _ramped(units, load, request_rate) if is_ramp else units / request_rate


def _unit_rate(load: OpenLoop, random: np.random.Generator) -> Iterator[Instants]:
    """Instants of a process with the load's kind of gaps and a mean gap of 1, in chunks."""
    last, n = 0.0, 0
    while True:
        is_constant = load.arrivals == "constant"
        places = np.arange(n, n + _CHUNK, dtype=np.float64) + 0.5
        units: Instants = places if is_constant else last + np.cumsum(_gaps(load, random))
        yield units
        last, n = float(units[-1]), n + _CHUNK


def _gaps(load: OpenLoop, random: np.random.Generator) -> Instants:
    """A chunk of random gaps of mean 1."""
    if load.arrivals == "gamma":
        shape = 1.0 if load.burstiness is None else load.burstiness
        return random.standard_gamma(shape, _CHUNK) / shape
    return random.standard_exponential(_CHUNK)


def _ramped(units: Instants, load: OpenLoop, request_rate: float) -> Instants:
    """When a rate that goes in a straight line over the window has added up to each of `units`.

    Up to warmup_s it is the begin rate a, after the window the end rate b. s seconds into the
    window of length d it has added up to a s + (b - a) s² / (2 d) more than in the warm-up: solved
    for s in the form that loses no digits where a and b are alike.
    """
    if load.duration_s is None or load.ramp_to_rate is None:
        raise ValueError("a ramp needs duration_s and ramp_to_rate")
    a, b, d = request_rate, load.ramp_to_rate, load.duration_s
    within = units - a * load.warmup_s
    in_window = d * (a + b) / 2
    y = np.clip(within, 0.0, in_window)
    s = 2 * y / (a + np.sqrt(np.maximum(a * a + 2 * (b - a) / d * y, 0.0)))
    return load.warmup_s + np.minimum(within / a, 0.0) + s + np.maximum(within - in_window, 0.0) / b

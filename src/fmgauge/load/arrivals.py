"""When open-loop requests are to be sent: instants that no answer has a part in.

A stage has two endless schedules: that of the warm-up, and that of the window and what follows it,
which begins anew with the window. Each is a seeded process with a mean gap of 1, stretched by the
request rate. Pure: knows arrival processes; not clocks, payloads or connections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fmgauge.config.model import OpenLoop
from fmgauge.records import StageKey

Instants = NDArray[np.float64]

_CHUNK = 4096  # arrivals drawn at a time; a schedule depends on it, so it is no setting
_BEGUN_BEFORE = 1024.0  # mean gaps
_WARMUP = 1  # beside a stage's seed, that of its warm-up


def stage_seed(seed: int, key: StageKey, replication: int = 0) -> int:
    """The seed of one stage's arrivals, from 0 to 2**63 - 1, the same on every machine.

    It hangs on the run's seed, the workload, the stage's name and the replication, not on the
    experiment: every candidate gets the same arrivals.
    """
    named = "\n".join((str(seed), key.workload, key.stage, str(replication)))
    return int.from_bytes(hashlib.blake2b(named.encode(), digest_size=8).digest(), "big") >> 1


def warmup_arrivals(load: OpenLoop, request_rate: float, *, seed: int) -> Iterator[Instants]:
    """Intended sends before the window, in seconds since the stage's start, without end.

    In ascending chunks, at `request_rate` all along. Constant arrivals are evenly spaced, the first
    after half a gap; Poisson and gamma arrivals have gaps of mean 1 / request_rate, and a ramp's
    warm-up is Poisson.
    """
    for units in _unit_rate(load, np.random.default_rng((seed, _WARMUP))):
        yield units / request_rate


def window_arrivals(load: OpenLoop, request_rate: float, *, seed: int) -> Iterator[Instants]:
    """Intended sends from the window's start on, in seconds since then, without end.

    In ascending chunks, each drawn in a fraction of a millisecond. How long the warm-up took has no
    part in them. As in the warm-up, except that a ramp is a Poisson process whose rate goes in a
    straight line to ramp_to_rate over duration_s and stays there. ValueError where it lacks one.
    """
    for units in _unit_rate(load, np.random.default_rng(seed)):
        is_ramp = load.arrivals == "ramp"
        yield _ramped(units, load, request_rate) if is_ramp else units / request_rate


def _unit_rate(load: OpenLoop, random: np.random.Generator) -> Iterator[Instants]:
    """Instants of a process with the load's kind of gaps and a mean gap of 1, in chunks.

    Gamma gaps have been going on for a while when it begins: it does not begin with an arrival, of
    which bursty ones would soon bring several more.
    """
    last, n = -_BEGUN_BEFORE if load.arrivals == "gamma" else 0.0, 0
    while True:
        is_constant = load.arrivals == "constant"
        places = np.arange(n, n + _CHUNK, dtype=np.float64) + 0.5
        units: Instants = places if is_constant else last + np.cumsum(_gaps(load, random))
        last, n = float(units[-1]), n + _CHUNK
        if (seen := units[units >= 0.0]).size:
            yield seen


def _gaps(load: OpenLoop, random: np.random.Generator) -> Instants:
    """A chunk of random gaps of mean 1."""
    if load.arrivals == "gamma":
        shape = 1.0 if load.burstiness is None else load.burstiness
        return random.standard_gamma(shape, _CHUNK) / shape
    return random.standard_exponential(_CHUNK)


def _ramped(units: Instants, load: OpenLoop, request_rate: float) -> Instants:
    """When a rate that goes in a straight line over the window has added up to each of `units`.

    After the window it is the end rate b. s seconds into the window of length d, from the begin
    rate a, it has added up to a s + (b - a) s² / (2 d): solved for s in the form that loses no
    digits where a and b are alike.
    """
    if load.duration_s is None or load.ramp_to_rate is None:
        raise ValueError("a ramp needs duration_s and ramp_to_rate")
    a, b, d = request_rate, load.ramp_to_rate, load.duration_s
    in_window = d * (a + b) / 2
    y = np.clip(units, 0.0, in_window)
    s = 2 * y / (a + np.sqrt(np.maximum(a * a + 2 * (b - a) / d * y, 0.0)))
    return s + np.maximum(units - in_window, 0.0) / b

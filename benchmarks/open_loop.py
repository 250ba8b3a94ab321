"""Whether an open loop was what was asked for: its schedule, and the sends against it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fmgauge.config.model import OpenLoop
from fmgauge.load.arrivals import window_arrivals


@dataclass(frozen=True)
class Schedule:
    """An open-loop stage held against the distribution that was asked for."""

    n_intended: int
    n_sent: int
    n_early: int  # sent before they were due
    rate: float  # intended sends per second over the window
    ks_p_intended: float  # that gaps at least as far from exponential come by chance
    ks_p_server: float  # the same of the instants that the server saw, against uniform ones
    delay_p50_s: float
    delay_p99_s: float
    delay_max_s: float


def schedule_of(
    load: OpenLoop,
    request_rate: float,
    seed: int,
    measured: pd.DataFrame,
    window_s: tuple[float, float],
    received_s: np.ndarray,
) -> Schedule:
    """Compare the window's schedule, the sends of its records, and their arrivals at the server.

    `received_s` are the server's instants of the same requests, ascending. Poisson arrivals have
    exponential gaps, so what was intended is tested (Kolmogorov-Smirnov) against that distribution
    with the rate asked for, none of its parameters fitted. The gaps at the server hold the delays
    of both sides, which are of the size of a gap at high rates; so there it is the instants that
    are tested, which are uniform over the time between the first and the last.
    """
    from scipy import stats

    intended = _scheduled(load, request_rate, seed, window_s)
    due = np.sort(measured["intended_at_s"].to_numpy())
    delay = (measured["sent_at_s"] - measured["intended_at_s"]).to_numpy()
    exponential = stats.expon(scale=1 / request_rate)
    uniform = stats.uniform(received_s[0], received_s[-1] - received_s[0])
    sent = np.sort(measured.loc[measured["sent_at_s"].notna(), "intended_at_s"].to_numpy())
    return Schedule(
        n_intended=intended.size,
        n_sent=_n_found(intended, sent),
        n_early=int((delay < 0).sum()),
        rate=intended.size / (window_s[1] - window_s[0]),
        ks_p_intended=float(stats.kstest(np.diff(due), exponential.cdf).pvalue),
        ks_p_server=float(stats.kstest(received_s[1:-1], uniform.cdf).pvalue),
        delay_p50_s=float(np.nanquantile(delay, 0.5)),
        delay_p99_s=float(np.nanquantile(delay, 0.99)),
        delay_max_s=float(np.nanmax(delay)),
    )


def _scheduled(
    load: OpenLoop, request_rate: float, seed: int, window_s: tuple[float, float]
) -> np.ndarray:
    """The schedule's instants within the window, in seconds since the stage's start."""
    chunks = window_arrivals(load, request_rate, seed=seed)
    taken = [window_s[0] + next(chunks)]
    while taken[-1][-1] < window_s[1]:
        taken.append(window_s[0] + next(chunks))
    intended = np.concatenate(taken)
    return intended[intended < window_s[1]]


def _n_found(intended: np.ndarray, sent: np.ndarray) -> int:
    """How many intended instants were sent, each sending counted once; equal to a microsecond."""
    n, at = 0, 0
    for due_s in intended:
        while at < sent.size and sent[at] < due_s - 1e-6:
            at += 1
        if at < sent.size and sent[at] <= due_s + 1e-6:
            n, at = n + 1, at + 1
    return n

"""How far what a client reported is from what the server did, request by request. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from clients import Client
from trial import Trial


@dataclass(frozen=True)
class Errors:
    """Absolute differences of client and server over a window's requests, in seconds."""

    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float | None  # None where the client exports no gaps
    itl_p99_s: float | None
    n_requests: int  # that the server answered in full, of those that came in the window
    n_matched: int  # of these, that the client reported
    n_other_length: int  # matched, but with another number of gaps than the server made
    mean_in_flight: float
    failed: int


def errors_of(client: Client, trial: Trial) -> Errors:
    """Join the client's rows and the server's on their id, and compare."""
    assert trial.truth is not None
    assert trial.reported is not None
    came = trial.truth.received_in(trial.window)
    answered = came[came["last_s"] > 0]
    joined = answered.merge(trial.reported.rows, left_on=client.keyed_by, right_on="key")
    ttft_s = (joined["ttft_s"] - (joined["first_s"] - joined["received_s"])).abs()
    gaps, other = _gap_errors(trial, joined)
    return Errors(
        ttft_p50_s=_quantile(ttft_s, 0.5),
        ttft_p99_s=_quantile(ttft_s, 0.99),
        itl_p50_s=_quantile(gaps, 0.5) if gaps.size else None,
        itl_p99_s=_quantile(gaps, 0.99) if gaps.size else None,
        n_requests=len(answered),
        n_matched=len(joined),
        n_other_length=other,
        mean_in_flight=trial.truth.mean_in_flight(trial.window),
        failed=trial.reported.failed,
    )


def _quantile(values: pd.Series | np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else float("nan")


def _gap_errors(trial: Trial, joined: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Every gap's absolute error, and how many requests had another number of gaps."""
    assert trial.truth is not None
    errors, other = [], 0
    for serial, itl_s in zip(joined["serial"], joined["itl_s"], strict=True):
        if itl_s is None:
            continue
        true_s = trial.truth.itl_s(serial)
        if len(true_s) == len(itl_s):
            errors.append(np.abs(np.asarray(itl_s) - true_s))
        else:
            other += 1
    return (np.concatenate(errors) if errors else np.empty(0)), other

"""Request records to a request table to one row per stage. Pure functions of records.

Knows what every column of metrics.csv means (docs/metrics.md says it in words); knows no clocks,
endpoints or budgets' verdicts. A latency runs from the instant a request was sent.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from fmgauge.config import PlannedStage, planned_stages
from fmgauge.config.model import Budgets
from fmgauge.pricing import Price, experiment_price
from fmgauge.records import (
    StageInfo,
    Status,
    read_endpoints,
    read_stage,
    stage_folders,
    write_atomically,
)
from fmgauge.runs import Run
from fmgauge.statistics import mean_interval, percentile, percentile_interval

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Floats = NDArray[np.float64]
Value = str | int | float

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", *PERCENTILES)
LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_latency_s")
FAILURES = tuple(status for status in get_args(Status) if status != "ok")
UNSERVED = ("throttled", "http_error", "connection_error")  # these used no token
NO_RECORDS = "not run: no records"  # of a stage that nothing kept from being run: its turn to come
PER_TOKEN = "per-token"  # stands for the instance type where tokens are priced

SEED_COLUMNS = (
    "experiment_name",
    "payload_file",
    "instance_type",
    "instance_count",
    "concurrency",
    "error_rate",
    "prompt_token_count_mean",
    "prompt_token_throughput",
    "completion_token_count_mean",
    "completion_token_throughput",
    "latency_mean",
    "latency_p50",
    "latency_p95",
    "latency_p99",
    "transactions_per_minute",
    "price_per_txn",
)
_TEXT_COLUMNS = {
    *("experiment_name", "payload_file", "instance_type", "workload", "stage"),
    *("model", "status", "token_source"),
}
_COUNT_COLUMNS = {
    *("instance_count", "concurrency", "n_requests", "n_ok", "n_failed"),
    *(f"n_{status}" for status in FAILURES),
}


def _with_interval(name: str) -> tuple[str, str, str]:
    return name, f"{name}_ci_low", f"{name}_ci_high"


_PRICE_COLUMNS = (
    *_with_interval("price_per_txn"),
    *_with_interval("usd_per_10k_txn"),
    *("usd_per_1m_output_tokens", "usd_per_1m_total_tokens"),
)


def _columns() -> tuple[str, ...]:
    """Every column of metrics.csv in order, the seed's first."""
    latency_bounds = [column for s in STATISTICS for column in _with_interval(f"latency_{s}")]
    families = [c for f in LATENCIES for s in STATISTICS for c in _with_interval(f"{f}_{s}")]
    return (
        *SEED_COLUMNS,
        *("workload", "stage", "model", "status", "duration_s"),
        *("request_rate", "goodput_per_min", "mean_in_flight"),
        *("n_requests", "n_ok", "n_failed", *(f"n_{status}" for status in FAILURES)),
        *(column for column in _PRICE_COLUMNS if column not in SEED_COLUMNS),
        *(column for column in latency_bounds if column not in SEED_COLUMNS),
        *families,
        *(f"send_delay_s_{statistic}" for statistic in STATISTICS),
        *("output_limit_share", "token_source"),
    )


METRIC_COLUMNS = _columns()


# --- a run's tables ------------------------------------------------------------------------------


def compute_metrics(run: Run) -> pd.DataFrame:
    """One row per planned stage of `run`, in the config's order, whether it was run or not."""
    rows = [_planned_row(run, planned) for planned in planned_stages(run.config)]
    return metrics_frame(rows)


def metrics_frame(rows: list[dict[str, Value]]) -> pd.DataFrame:
    """Rows as the metrics table: every column, in order, in its type; NaN where a row has none."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(METRIC_COLUMNS))
    whole = {name: "int64" for name in METRIC_COLUMNS if name in _COUNT_COLUMNS}
    real = {n: "float64" for n in METRIC_COLUMNS if n not in _COUNT_COLUMNS | _TEXT_COLUMNS}
    return frame.astype({**whole, **real})


def write_metrics(run: Run, frame: pd.DataFrame) -> None:
    """Write metrics.parquet and metrics.csv, each whole or not at all."""
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    write_atomically(run.metrics_path, parquet.getvalue())
    csv = frame.to_csv(index=False)
    write_atomically(run.metrics_path.with_suffix(".csv"), csv.encode())


def read_metrics(run: Run) -> pd.DataFrame:
    """The metrics table that `write_metrics` wrote."""
    import pandas as pd

    return pd.read_parquet(run.metrics_path)


def experiment_costs(run: Run) -> pd.DataFrame:
    """What each experiment's stages cost, one row per experiment in the config's order.

    Columns: experiment_name, instance_type, duration_in_seconds, cost (USD).
    Time is time under load: warm-up, window and drain. Hourly instances cost that time; tokens
    cost what every request of every phase used, failed ones too as far as they were counted, but
    not those that the server refused or that never reached it.
    """
    import pandas as pd

    stages = [_stage_use(folder) for folder in stage_folders(run.requests_folder)]
    rows = []
    for experiment in run.config.experiments:
        own = [use for name, use in stages if name == experiment.name]
        duration_s, prompt, output = (float(total) for total in np.sum([np.zeros(3), *own], axis=0))
        price = experiment_price(run.loaded, experiment)
        rows.append(
            {
                "experiment_name": experiment.name,
                "instance_type": experiment.instance_type or PER_TOKEN,
                "duration_in_seconds": duration_s,
                "cost": price.tokens_usd(prompt, output)
                if price.usd_per_hour is None
                else price.usd_per_hour * duration_s / 3600,
            }
        )
    return pd.DataFrame(rows)


def _stage_use(folder: Path) -> tuple[str, Floats]:
    """A stage's experiment; its seconds under load, its counted prompt and output tokens."""
    info, records = read_stage(folder)
    requests = records.select(["status", "prompt_tokens", "output_tokens"]).to_pandas()
    tokens = requests[~requests["status"].isin(UNSERVED)].sum(numeric_only=True)
    used = np.array([info.finished_at_s, tokens["prompt_tokens"], tokens["output_tokens"]])
    return info.experiment, used


def _planned_row(run: Run, planned: PlannedStage) -> dict[str, Value]:
    folder = run.stage_folder(planned.key)
    if not (folder / "stage.json").exists():
        return {**_identity(planned), **_not_run(run, planned)}
    info, records = read_stage(folder)
    price = experiment_price(run.loaded, planned.experiment)
    return {**_identity(planned), **stage_summary(info, records, price, run.config.budgets)}


def _identity(planned: PlannedStage) -> dict[str, Value]:
    experiment = planned.experiment
    return {
        "experiment_name": experiment.name,
        "payload_file": f"payload_{planned.workload.name}.jsonl",
        "instance_type": experiment.instance_type or PER_TOKEN,
        "instance_count": experiment.instance_count,
        "concurrency": planned.concurrency,
        "workload": planned.workload.name,
        "stage": planned.name,
        "model": experiment.model.name,
    }


def _not_run(run: Run, planned: PlannedStage) -> dict[str, Value]:
    endpoint = read_endpoints(run.endpoints_path).get(planned.experiment.name)
    status = f"not run: {endpoint.error}" if endpoint and endpoint.error else NO_RECORDS
    counts = dict.fromkeys(("n_requests", "n_ok", "n_failed", *(f"n_{s}" for s in FAILURES)), 0)
    return {"status": status, "token_source": "none", **counts}


# --- one request ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenChunks:
    """All token-bearing chunks of a stage, flat, in each request's order of arrival."""

    row: NDArray[np.int64]  # which request, by its row in the table
    at_s: Floats
    tokens: Floats  # NaN where the chunk's own tokens were not counted


def token_chunks(records: pa.Table) -> TokenChunks:
    """The chunks of request records; a request's chunk counts are used only where all are there."""
    import pyarrow.compute as pc

    instants = records["token_at_s"].combine_chunks()
    counted = records["chunk_tokens"].combine_chunks()
    lengths = [
        pc.fill_null(pc.list_value_length(column), -1).to_numpy() for column in (instants, counted)
    ]
    complete = lengths[0] == lengths[1]
    row = pc.list_parent_indices(instants).to_numpy().astype(np.int64)
    tokens = np.full(row.size, math.nan)
    counts = pc.list_flatten(counted).to_numpy().astype(np.float64)
    tokens[complete[row]] = counts[complete[pc.list_parent_indices(counted).to_numpy()]]
    at_s = pc.list_flatten(instants).to_numpy().astype(np.float64)
    return TokenChunks(row, at_s, tokens)


def request_table(records: pa.Table) -> pd.DataFrame:
    """One row per request: its life from `start_s` to `end_s`, its outcome, its own latencies.

    Seconds. A request that streamed, with two token instants or more, ends with its last token;
    any other when it was finished. NaN where a latency is undefined: TTFT without
    a token, TPOT of one token or without streaming.
    """
    kept = ["request_id", "phase", "status", "finish_reason", "token_source", "sent_at_s"]
    kept += ["intended_at_s", "finished_at_s", "prompt_tokens", "output_tokens"]
    frame = records.select(kept).to_pandas()
    first_s, last_s, n_chunks = _first_and_last(token_chunks(records), len(frame))
    sent_s, finished_s, n = (
        frame[name].to_numpy(dtype=np.float64)
        for name in ("sent_at_s", "finished_at_s", "output_tokens")
    )
    streamed = n_chunks >= 2
    end_s = np.where(streamed, last_s, finished_s)
    ttft_s, e2e_s = first_s - sent_s, end_s - sent_s
    steps = np.where(streamed & (n > 1), n - 1, math.nan)
    table: pd.DataFrame = frame.assign(
        ok=frame["status"] == "ok",
        start_s=frame["sent_at_s"].fillna(frame["intended_at_s"]),
        end_s=end_s,
        streamed=streamed,
        ttft_s=ttft_s,
        e2e_latency_s=e2e_s,
        tpot_s=(e2e_s - ttft_s) / steps,
        send_delay_s=frame["sent_at_s"] - frame["intended_at_s"],
    )
    return table


def _first_and_last(chunks: TokenChunks, n: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Each request's first and last token instant, NaN without any, and its number of chunks."""
    counts = np.bincount(chunks.row, minlength=n).astype(np.int64)
    ends, some = np.cumsum(counts), counts > 0
    first, last = np.full(n, math.nan), np.full(n, math.nan)
    first[some] = chunks.at_s[(ends - counts)[some]]
    last[some] = chunks.at_s[ends[some] - 1]
    return first, last, counts


# --- one stage -----------------------------------------------------------------------------------


def stage_summary(
    info: StageInfo, records: pa.Table, price: Price, budgets: Budgets
) -> dict[str, Value]:
    """Every measured column of one stage that was run, from its records of all phases."""
    requests, chunks = request_table(records), token_chunks(records)
    in_window = requests["phase"] == "measured"
    measured = requests[in_window]
    rates = window_rates(requests, chunks, (info.window_start_s, info.window_end_s), budgets)
    latencies = _latencies(measured, _gaps(chunks, (in_window & requests["ok"]).to_numpy()))
    return {
        "status": "ok",
        "duration_s": info.window_end_s - info.window_start_s,
        **rates,
        **_outcomes(measured),
        **_token_counts(measured),
        **latencies,
        **_prices(price, rates, measured, latencies),
    }


def _outcomes(measured: pd.DataFrame) -> dict[str, Value]:
    n, n_ok = len(measured), int(measured["ok"].sum())
    by_status = measured["status"].value_counts()
    return {
        "n_requests": n,
        "n_ok": n_ok,
        "n_failed": n - n_ok,
        "error_rate": _ratio(n - n_ok, n),
        **{f"n_{status}": int(by_status.get(status, 0)) for status in FAILURES},
    }


def _token_counts(measured: pd.DataFrame) -> dict[str, Value]:
    ok = measured[measured["ok"]]
    sources = sorted(set(ok["token_source"]))
    return {
        "prompt_token_count_mean": float(ok["prompt_tokens"].mean()),
        "completion_token_count_mean": float(ok["output_tokens"].mean()),
        "output_limit_share": float((ok["finish_reason"] == "length").mean()),
        "token_source": "+".join(sources) or "none",
    }


# --- rates in the window -------------------------------------------------------------------------


def window_share(start_s: Floats, end_s: Floats, window_s: tuple[float, float]) -> Floats:
    """The share of each [start, end] that lies in the window; an instant lies in it or not."""
    w0, w1 = window_s
    overlap_s = np.clip(np.minimum(end_s, w1) - np.maximum(start_s, w0), 0.0, None)
    length_s = end_s - start_s
    instant = (start_s >= w0) & (start_s < w1)
    return np.where(length_s > 0, overlap_s / np.where(length_s > 0, length_s, 1.0), instant)


def window_rates(
    requests: pd.DataFrame, chunks: TokenChunks, window_s: tuple[float, float], budgets: Budgets
) -> dict[str, Value]:
    """What the window held, per second, from every request that overlaps it, of any phase.

    A request counts by the share of its life that lies in the window, so neither end of the
    window favours short requests or long ones. Only ok requests carry throughput.
    """
    ok, length_s = requests["ok"].to_numpy(dtype=bool), window_s[1] - window_s[0]
    share = _shares(requests, "end_s", window_s)
    prompt = requests["prompt_tokens"].to_numpy(dtype=np.float64)
    good = ok & _within_limits(requests, budgets)
    return {
        "request_rate": float(share[ok].sum() / length_s),
        "transactions_per_minute": float(60 * share[ok].sum() / length_s),
        "goodput_per_min": float(60 * share[good].sum() / length_s),
        "prompt_token_throughput": _weighted_sum(prompt, share, ok) / length_s,
        "completion_token_throughput": _output_tokens(requests, chunks, window_s) / length_s,
        "mean_in_flight": _in_flight_s(requests, window_s) / length_s,
    }


def _shares(requests: pd.DataFrame, end: str, window_s: tuple[float, float]) -> Floats:
    """The share of each request's time, from its start to the instant in column `end`."""
    instants = requests[["start_s", end]].to_numpy(dtype=np.float64)
    return window_share(instants[:, 0], instants[:, 1], window_s)


def _in_flight_s(requests: pd.DataFrame, window_s: tuple[float, float]) -> float:
    """Seconds of the window that requests of every status were under way, added up."""
    life_s = (requests["finished_at_s"] - requests["start_s"]).to_numpy(dtype=np.float64)
    return float((_shares(requests, "finished_at_s", window_s) * life_s).sum())


def _output_tokens(
    requests: pd.DataFrame, chunks: TokenChunks, window_s: tuple[float, float]
) -> float:
    """Output tokens of ok requests in the window: at their chunks' instants where they streamed."""
    ok, streamed = (requests[name].to_numpy(dtype=bool) for name in ("ok", "streamed"))
    output = requests["output_tokens"].to_numpy(dtype=np.float64)
    per_chunk = output / np.maximum(np.bincount(chunks.row, minlength=len(requests)), 1)
    tokens = np.where(np.isnan(chunks.tokens), per_chunk[chunks.row], chunks.tokens)
    inside = (chunks.at_s >= window_s[0]) & (chunks.at_s < window_s[1])
    at_instants = float(tokens[inside & (ok & streamed)[chunks.row]].sum())
    share = _shares(requests, "end_s", window_s)
    return at_instants + _weighted_sum(output, share, ok & ~streamed)


def _weighted_sum(values: Floats, share: Floats, chosen: NDArray[np.bool_]) -> float:
    """Sum over the chosen requests that overlap the window; NaN where one was never counted."""
    overlapping = chosen & (share > 0)
    return float((values * share)[overlapping].sum())


def _within_limits(requests: pd.DataFrame, budgets: Budgets) -> NDArray[np.bool_]:
    """Which requests are themselves within every latency limit, whatever statistic it binds.

    A TPOT that is undefined breaks no limit; a TTFT that is undefined cannot be shown to keep one.
    """
    within = np.ones(len(requests), dtype=bool)
    families = (budgets.latency_s, budgets.ttft_s, budgets.tpot_s)
    for limits, name in zip(families, ("e2e_latency_s", "ttft_s", "tpot_s"), strict=True):
        given = [limit for limit in limits.model_dump().values() if limit] if limits else []
        if given:
            own = requests[name].to_numpy(dtype=np.float64)
            within &= (own <= min(given)) | ((name == "tpot_s") & np.isnan(own))
    return within


# --- latencies -----------------------------------------------------------------------------------


def _gaps(chunks: TokenChunks, chosen: NDArray[np.bool_]) -> Floats:
    """ITL samples of the chosen requests, pooled: one per token after a request's first chunk.

    A chunk of k counted tokens gives k samples of its gap / k; an uncounted one its whole gap once.
    """
    later = np.flatnonzero((chunks.row[1:] == chunks.row[:-1]) & chosen[chunks.row[1:]]) + 1
    gap_s = chunks.at_s[later] - chunks.at_s[later - 1]
    tokens = np.nan_to_num(np.maximum(chunks.tokens[later], 1.0), nan=1.0).astype(np.int64)
    return np.repeat(gap_s / tokens, tokens)


def _latencies(measured: pd.DataFrame, gaps_s: Floats) -> dict[str, Value]:
    ok = measured[measured["ok"]]
    n_failed = len(measured) - len(ok)
    e2e = _statistics("e2e_latency_s", _defined(ok, "e2e_latency_s"), n_failed)
    send_delay = _statistics("send_delay_s", _defined(measured, "send_delay_s"), 0)
    failed_gaps = math.ceil(n_failed * max(gaps_s.size / len(ok), 1.0)) if len(ok) else n_failed
    return {
        **{f"latency{name.removeprefix('e2e_latency_s')}": value for name, value in e2e.items()},
        **_statistics("ttft_s", _defined(ok, "ttft_s"), n_failed),
        **_statistics("tpot_s", _defined(ok, "tpot_s"), n_failed),
        **_statistics("itl_s", gaps_s, failed_gaps),
        **e2e,
        **{name: value for name, value in send_delay.items() if name in METRIC_COLUMNS},
    }


def _statistics(name: str, values: Floats, n_failed: int) -> dict[str, Value]:
    """Mean of `values`, and percentiles in which every failure ranks as +inf, with intervals.

    No duration is below 0, so neither is an interval's lower end.
    """
    ranked = np.concatenate([values, np.full(n_failed, math.inf)])
    low, high = mean_interval(values)
    mean = float(values.mean()) if values.size else math.nan
    found = {"mean": (mean, np.maximum(low, 0.0), high)}
    for label, p in PERCENTILES.items():
        found[label] = (percentile(ranked, p), *percentile_interval(ranked, p))
    return {
        column: value
        for label, triple in found.items()
        for column, value in zip(_with_interval(f"{name}_{label}"), triple, strict=True)
    }


def _defined(requests: pd.DataFrame, name: str) -> Floats:
    values: Floats = requests[name].dropna().to_numpy(dtype=np.float64)
    return values


# --- prices --------------------------------------------------------------------------------------


def _prices(
    price: Price, rates: dict[str, Value], measured: pd.DataFrame, latencies: dict[str, Value]
) -> dict[str, Value]:
    """What a stage's transactions cost; no price where none that was measured succeeded."""
    ok = measured[measured["ok"]]
    if ok.empty:
        return dict.fromkeys(_PRICE_COLUMNS, math.nan)
    per_txn, per_output, per_total = (
        _token_prices(price, ok)
        if price.usd_per_hour is None
        else _hourly_prices(price.usd_per_hour, rates)
    )
    if price.usd_per_hour is None:
        low, high = mean_interval(_request_prices(price, ok))
    elif len(ok) == len(measured):
        low, high = _hourly_interval(per_txn, latencies)
    else:  # then the rate goes with the time that failures took, too
        low, high = math.nan, math.nan
    return {
        "price_per_txn": per_txn,
        "price_per_txn_ci_low": low,
        "price_per_txn_ci_high": high,
        "usd_per_10k_txn": per_txn * 1e4,
        "usd_per_10k_txn_ci_low": low * 1e4,
        "usd_per_10k_txn_ci_high": high * 1e4,
        "usd_per_1m_output_tokens": per_output * 1e6,
        "usd_per_1m_total_tokens": per_total * 1e6,
    }


def _hourly_prices(usd_per_hour: float, rates: dict[str, Value]) -> tuple[float, float, float]:
    """USD per transaction, per output token and per token, while the window's load lasts."""
    usd_per_s = usd_per_hour / 3600
    output = float(rates["completion_token_throughput"])
    total = output + float(rates["prompt_token_throughput"])
    per_txn = _ratio(usd_per_s, float(rates["request_rate"]))
    return per_txn, _ratio(usd_per_s, output), _ratio(usd_per_s, total)


def _hourly_interval(per_txn: float, latencies: dict[str, Value]) -> tuple[float, float]:
    """The price's interval in a closed loop, where by Little's law it goes with the mean latency.

    The rate is the constant number in flight divided by the mean latency, so a mean that is known
    to within 5 % makes a price that is known to within 5 %.
    """
    mean, *bounds = (float(latencies[name]) for name in _with_interval("latency_mean"))
    low, high = (per_txn * _ratio(bound, mean) for bound in bounds)
    return low, high


def _request_prices(price: Price, ok: pd.DataFrame) -> Floats:
    """What each successful request cost by its tokens."""
    tokens = ok[["prompt_tokens", "output_tokens"]].to_numpy(dtype=np.float64)
    return np.array([price.tokens_usd(prompt, output) for prompt, output in tokens])


def _token_prices(price: Price, ok: pd.DataFrame) -> tuple[float, float, float]:
    """USD per transaction, per output token and per token, over the ok measured requests."""
    prompt, output = (float(ok[c].sum(skipna=False)) for c in ("prompt_tokens", "output_tokens"))
    spent = price.tokens_usd(prompt, output)
    return _ratio(spent, len(ok)), _ratio(spent, output), _ratio(spent, prompt + output)


def _ratio(part: float, whole: float) -> float:
    """`part` / `whole`; NaN where `whole` is 0, for then there is nothing to divide among."""
    return part / whole if whole != 0 else math.nan

"""From request records to metrics.csv: definitions, windows, failures, prices, what is missing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from fmgauge.config.model import Budgets, Limits
from fmgauge.metrics import (
    FAILURES,
    METRIC_COLUMNS,
    SEED_COLUMNS,
    compute_metrics,
    experiment_costs,
    metrics_frame,
    read_metrics,
    request_table,
    stage_summary,
    write_metrics,
)
from fmgauge.pricing import Price
from fmgauge.records import (
    Endpoint,
    RequestRecord,
    StageInfo,
    records_table,
    write_endpoints,
    write_stage,
)
from fmgauge.runs import Run, open_run
from fmgauge.statistics import mean_interval, quantile

HOURLY = Price("hourly", 36.0, None, None, "test", None, None)  # $0.01 a second
METERED = Price("per_token", None, 2.0, 10.0, "test", None, None)


def record(**changes: Any) -> RequestRecord:
    """A request sent at 1 s, streamed at 1.5, 1.7 and 2.1 s, finished at 2.2 s, with changes."""
    values: dict[str, Any] = {
        "request_id": "r",
        "experiment": "e",
        "workload": "w",
        "stage": "concurrency-1",
        "replication": 0,
        "phase": "measured",
        "payload_id": "p",
        "session_id": None,
        "worker": 0,
        "intended_at_s": 0.998,
        "connected_at_s": 0.5,
        "sent_at_s": 1.0,
        "first_byte_at_s": 1.4,
        "token_at_s": [1.5, 1.7, 2.1],
        "chunk_tokens": [1, 1, 2],
        "first_content_at_s": 1.5,
        "finished_at_s": 2.2,
        "prompt_tokens": 100,
        "output_tokens": 4,
        "reasoning_tokens": None,
        "cached_tokens": None,
        "token_source": "server",
        "status": "ok",
        "http_status": 200,
        "error": None,
        "finish_reason": "stop",
        "server_latency_s": None,
        "connection_reused": True,
    }
    return RequestRecord(**{**values, **changes})


def whole(start_s: float, end_s: float, **changes: Any) -> RequestRecord:
    """A request whose response came in one piece, with changes."""
    plain = {"token_at_s": [end_s], "chunk_tokens": None, "first_content_at_s": end_s}
    times = {"intended_at_s": start_s, "sent_at_s": start_s, "finished_at_s": end_s}
    return record(**{**plain, **times, **changes})


def failed(status: str = "timeout", **changes: Any) -> RequestRecord:
    """A request that was sent at 1 s and failed at 2 s, without a token."""
    nothing = {"first_content_at_s": None, "prompt_tokens": None, "output_tokens": None}
    return whole(1.0, 2.0, **{**nothing, "token_at_s": [], "status": status, **changes})


def info(w0: float = 1.0, w1: float = 3.0, **changes: Any) -> StageInfo:
    """A stage whose window is [w0, w1], with changes."""
    values: dict[str, Any] = {
        "experiment": "e",
        "workload": "w",
        "stage": "concurrency-1",
        "kind": "closed_loop",
        "concurrency": 1,
        "started_at": "2026-01-01T00:00:00+00:00",
        "window_start_s": w0,
        "window_end_s": w1,
        "finished_at_s": w1 + 1,
        "replication": 0,
        "seed": 7,
    }
    return StageInfo(**{**values, **changes})


def summary(
    *records: RequestRecord,
    window: tuple[float, float] = (1.0, 3.0),
    price: Price = HOURLY,
    budgets: Budgets | None = None,
) -> dict[str, Any]:
    """The metrics of one stage with these records."""
    return stage_summary(info(*window), records_table(records), price, budgets or Budgets())


def close(value: float) -> Any:
    """Equal but for rounding; NaN equals NaN."""
    return pytest.approx(value, rel=1e-9, nan_ok=True)


# --- one request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("ttft_s", 0.5),
        ("e2e_latency_s", 1.1),
        ("tpot_s", 0.6 / 3),
        ("send_delay_s", 0.002),
    ],
)
def test_latencies_of_a_streamed_request(column, expected):
    """First token, last token, time per token after the first, and lateness, from the instants."""
    assert request_table(records_table([record()]))[column].tolist() == [close(expected)]


@pytest.mark.parametrize("token_at_s", [[2.0], []])
def test_latency_without_streaming_ends_with_the_response(token_at_s):
    """Where nothing streamed, end-to-end latency is finished minus sent, and there is no TPOT."""
    row = request_table(records_table([record(token_at_s=token_at_s, chunk_tokens=None)])).iloc[0]

    assert row["e2e_latency_s"] == close(1.2)
    assert math.isnan(row["tpot_s"])


@pytest.mark.parametrize("output_tokens", [0, 1, None])
def test_tpot_is_undefined_below_two_tokens(output_tokens):
    """One token has no time per token after the first: neither 0 nor infinite."""
    table = request_table(records_table([record(output_tokens=output_tokens)]))

    assert math.isnan(table["tpot_s"].iloc[0])


def test_itl_is_per_token_of_the_later_chunk():
    """Gaps 0.2 s for one token and 0.4 s for two are three samples of 0.2 s."""
    assert summary(record())["itl_s_mean"] == close(0.2)


def test_itl_of_uncounted_chunks_is_the_gap():
    """Without counts per chunk, gaps of 0.2 and 0.4 s are two samples."""
    assert summary(record(chunk_tokens=None))["itl_s_mean"] == close(0.3)


def test_itl_does_not_span_requests():
    """The time between one request's last token and the next one's first is no gap."""
    later = record(sent_at_s=9.0, token_at_s=[9.5, 9.6], chunk_tokens=[1, 1], output_tokens=2)

    assert summary(record(), later)["itl_s_mean"] == close((3 * 0.2 + 0.1) / 4)


@settings(deadline=None)
@given(st.floats(0, 1e5), st.lists(st.floats(0.01, 2), min_size=2, max_size=8))
def test_latencies_do_not_depend_on_the_clock_s_zero(shift, gaps):
    """No absolute reading of a clock reaches a latency."""
    instants = np.cumsum(gaps)
    tables = [
        request_table(
            records_table(
                [record(sent_at_s=at, token_at_s=list(at + instants), finished_at_s=at + 99)]
            )
        )
        for at in (0.0, shift)
    ]

    for column in ("ttft_s", "e2e_latency_s"):
        assert tables[1][column].iloc[0] == pytest.approx(tables[0][column].iloc[0], abs=1e-9)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", FAILURES)
def test_every_failure_is_counted_by_its_kind(status):
    """A failed request stays in n_requests, in its own count and in the error rate."""
    found = summary(record(), record(), record(), failed(status))

    assert (found["n_requests"], found["n_ok"], found["n_failed"]) == (4, 3, 1)
    assert [found[f"n_{kind}"] for kind in FAILURES] == [int(kind == status) for kind in FAILURES]
    assert found["error_rate"] == 0.25


def test_means_are_over_successes():
    """A failure at once does not make the mean latency look good."""
    quick = failed("http_error", finished_at_s=1.001)

    assert summary(record(), quick)["latency_mean"] == close(1.1)


def test_failures_rank_as_infinitely_slow():
    """With 5 of 72 failed the p95 lies on a failure; the median does not move below the rest."""
    found = summary(*[record()] * 67, *[failed("throttled", finished_at_s=1.01)] * 5)

    assert found["latency_p95"] == math.inf
    assert found["ttft_s_p95"] == math.inf
    assert found["tpot_s_p95"] == math.inf
    assert found["itl_s_p95"] == math.inf
    assert found["latency_p50"] == close(1.1)


def test_a_stage_that_failed_everything_stays_with_what_is_known():
    """No rate, no latency, no price; all counts, and an error rate of 1."""
    found = summary(*[failed("connection_error", sent_at_s=None)] * 8)

    assert (found["n_requests"], found["n_connection_error"], found["error_rate"]) == (8, 8, 1.0)
    assert (found["request_rate"], found["completion_token_throughput"]) == (0.0, 0.0)
    assert all(math.isnan(found[c]) for c in ("latency_mean", "price_per_txn", "usd_per_10k_txn"))
    assert found["latency_p50"] == math.inf


def test_a_stage_without_measured_requests_has_no_error_rate():
    """Nothing was tried, so nothing is known about failures."""
    found = summary(record(phase="warmup"))

    assert found["n_requests"] == 0
    assert math.isnan(found["error_rate"])


def test_a_stage_without_records_is_all_unknown():
    """No record at all is a row of counts of 0 and unknown figures."""
    found = summary()

    assert (found["n_requests"], found["request_rate"], found["token_source"]) == (0, 0.0, "none")
    assert math.isnan(found["latency_mean"])


def test_only_measured_requests_enter_latencies():
    """Warm-up and drain are not in means, percentiles or counts."""
    slow = {"token_at_s": [50.0, 60.0], "chunk_tokens": [1, 1], "finished_at_s": 60.0}

    found = summary(record(), record(phase="warmup", **slow), record(phase="drain", **slow))

    assert (found["n_requests"], found["latency_mean"]) == (1, close(1.1))
    assert found["itl_s_mean"] == close(0.2)


@pytest.mark.parametrize(("n", "known"), [(71, False), (72, True)])
def test_a_percentile_needs_its_samples(n, known):
    """71 requests carry no p95 and no interval for it; 72 carry both."""
    found = summary(*[record()] * n)

    for column in ("latency_p95", "latency_p95_ci_low", "ttft_s_p95_ci_high"):
        assert math.isfinite(found[column]) == known


def test_percentiles_are_of_pooled_requests():
    """The p90 of 40 requests is the quantile of the 40, in whatever order they came."""
    ends = [1.0 + 0.01 * (i * 17 % 40) for i in range(40)]

    found = summary(*[whole(0.0, end) for end in ends])

    assert found["latency_p90"] == close(1.0 + 0.01 * 0.9 * 39)


# --- the window ----------------------------------------------------------------------------------


def test_a_request_counts_by_its_share_of_the_window():
    """Half of a warm-up request, one whole, a quarter of one that outlives it: 1.75 in 2 s."""
    found = summary(
        whole(0.5, 1.5, phase="warmup"), whole(1.5, 2.5), whole(2.9, 3.3), window=(1.0, 3.0)
    )

    assert found["request_rate"] == close(1.75 / 2)
    assert found["transactions_per_minute"] == close(60 * 1.75 / 2)
    assert found["prompt_token_throughput"] == close(175 / 2)
    assert found["duration_s"] == 2.0


def test_output_tokens_count_at_their_chunks_instants():
    """Of 1, 1 and 2 tokens at 1.5, 1.7 and 2.1 s, a window from 1.6 to 2.6 s holds three."""
    assert summary(record(), window=(1.6, 2.6))["completion_token_throughput"] == close(3.0)


def test_output_tokens_of_uncounted_chunks_are_spread_evenly():
    """Four tokens over three chunks, two of which lie in the window."""
    found = summary(record(chunk_tokens=None), window=(1.6, 2.6))

    assert found["completion_token_throughput"] == close(2 * 4 / 3)


def test_output_tokens_that_did_not_stream_count_by_the_request_s_share():
    """Half the request's time lies in the window, so half its four tokens do."""
    found = summary(whole(0.0, 2.0), window=(1.0, 2.0))

    assert found["completion_token_throughput"] == close(2.0)


def test_throughput_of_uncounted_tokens_is_unknown():
    """A response whose tokens nobody counted is not taken for an empty one."""
    found = summary(record(), record(output_tokens=None, chunk_tokens=None))

    assert math.isnan(found["completion_token_throughput"])
    assert math.isnan(found["usd_per_1m_output_tokens"])
    assert found["request_rate"] == close(1.0)


def test_uncounted_tokens_outside_the_window_do_not_matter():
    """A warm-up request that ended before the window has no part in it."""
    uncounted = whole(0.0, 0.5, phase="warmup", prompt_tokens=None, output_tokens=None)

    found = summary(record(), uncounted)

    assert (found["prompt_token_throughput"], found["completion_token_throughput"]) == (50.0, 2.0)


def test_failures_carry_no_throughput_but_are_in_flight():
    """They occupy the endpoint; they complete nothing, also where they streamed some tokens."""
    broken = record(status="stream_error", finished_at_s=2.0)

    found = summary(whole(1.0, 2.0), broken, window=(1.0, 3.0))

    assert found["request_rate"] == close(0.5)
    assert found["completion_token_throughput"] == close(4 / 2)
    assert found["mean_in_flight"] == close(1.0)


def test_a_request_that_could_not_be_sent_is_in_flight_from_when_it_was_meant_to_be():
    """Waiting 1 s for a connection occupies a place of the load."""
    refused = failed("connection_error", sent_at_s=None, intended_at_s=1.0)

    assert summary(refused, window=(1.0, 3.0))["mean_in_flight"] == close(0.5)


@pytest.mark.parametrize(("window", "held"), [((1.0, 2.0), 0), ((2.0, 3.0), 1)])
def test_an_instant_at_the_edge_belongs_to_the_later_window(window, held):
    """A window holds its first instant and not its last, for tokens and requests of no length."""
    token = record(token_at_s=[2.0, 9.0], chunk_tokens=[1, 1], finished_at_s=9.0, sent_at_s=2.0)

    assert summary(token, window=window)["completion_token_throughput"] == close(held)
    assert summary(whole(2.0, 2.0), window=window)["request_rate"] == close(held)


def test_send_delay_is_of_every_request_that_was_sent():
    """A failure's lateness is the client's too; what was never sent has none."""
    late = failed(intended_at_s=0.99)
    never = failed("connection_error", sent_at_s=None)

    assert summary(record(), late, never)["send_delay_s_mean"] == close((0.002 + 0.01) / 2)


def test_goodput_counts_requests_within_every_limit():
    """Of latencies 0.5, 0.9 and 1.5 s, two are within the limit of 1 s, which is the tightest."""
    records = [whole(1.0, end) for end in (1.5, 1.9, 2.5)]
    budgets = Budgets(latency_s=Limits(mean=1.0, p95=2.0))

    assert summary(*records, budgets=budgets)["goodput_per_min"] == close(60 * 2 / 2)


def test_goodput_needs_a_first_token_but_no_second():
    """Under limits on TTFT and TPOT, a one-token answer can be good, one without a token cannot."""
    budgets = Budgets(ttft_s=Limits(mean=2.0), tpot_s=Limits(mean=0.1))
    one, none = whole(1.0, 2.0, output_tokens=1), whole(1.0, 2.0, token_at_s=[])

    assert summary(one, none, budgets=budgets)["goodput_per_min"] == close(60 / 2)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5)), min_size=1, max_size=20),
    st.floats(0.5, 9.5),
)
def test_two_windows_hold_what_their_union_holds(spans, cut):
    """Nothing is counted twice or lost at a window's edge."""
    records = [whole(start, start + length) for start, length in spans]
    parts = [summary(*records, window=w) for w in ((0.0, cut), (cut, 10.0))]
    union = summary(*records, window=(0.0, 10.0))

    for column in ("request_rate", "completion_token_throughput", "mean_in_flight"):
        added = parts[0][column] * cut + parts[1][column] * (10.0 - cut)
        assert added == pytest.approx(union[column] * 10.0, abs=1e-9)


def closed_loop(rng: np.random.Generator, slots: int, stop_s: float) -> list[tuple[float, float]]:
    """Spans of requests that `slots` users send back to back until `stop_s`; mean length 1 s."""
    spans = []
    for _ in range(slots):
        now = 0.0
        while now < stop_s:
            length = rng.lognormal(-(0.5**2) / 2, 0.5)
            spans.append((now, now + length))
            now += length
    return spans


def test_throughput_in_the_window_is_unbiased():
    """64 users, lognormal service (sigma 0.5, mean 1 s): the truth is 64 requests a second.

    The window's rate is within 1.5 % of it, averaged over 10 seeds; requests over the time from
    first start to last end are more than 4 % low.
    """
    window_rates, naive_rates = [], []
    for seed in range(10):
        spans = closed_loop(np.random.default_rng(seed), slots=64, stop_s=20.0)
        streamed = [
            record(
                sent_at_s=start,
                token_at_s=list(np.linspace(start, end, 5)[1:]),
                chunk_tokens=None,
                finished_at_s=end,
            )
            for start, end in spans
        ]
        found = summary(*streamed, window=(5.0, 20.0))
        window_rates.append((found["request_rate"], found["completion_token_throughput"] / 4))
        naive_rates.append(len(spans) / max(end for _, end in spans))
        assert found["mean_in_flight"] == close(64.0)

    assert np.mean(window_rates, axis=0) == pytest.approx([64.0, 64.0], rel=0.015)
    assert np.mean(naive_rates) < 0.96 * 64


# --- prices --------------------------------------------------------------------------------------


def test_hourly_prices_divide_the_window_s_price_by_what_it_held():
    """$0.01 a second, half a request, 50 prompt and 2 output tokens a second."""
    found = summary(record(), price=HOURLY, window=(1.0, 3.0))

    assert found["price_per_txn"] == close(0.02)
    assert found["usd_per_10k_txn"] == close(200.0)
    assert found["usd_per_1m_output_tokens"] == close(0.01 / 2 * 1e6)
    assert found["usd_per_1m_total_tokens"] == close(0.01 / 52 * 1e6)


def test_token_prices_are_the_mean_over_successes():
    """(200 in at $2 and 12 out at $10 per million) for two requests."""
    found = summary(record(), record(output_tokens=8), failed(), price=METERED)
    spent = (200 * 2 + 12 * 10) / 1e6

    assert found["price_per_txn"] == close(spent / 2)
    assert found["usd_per_1m_output_tokens"] == close(spent / 12 * 1e6)
    assert found["usd_per_1m_total_tokens"] == close(spent / 212 * 1e6)


def test_warm_up_alone_has_no_price():
    """Warm-up answers that reach into the window do not price a stage that served nothing."""
    found = summary(record(phase="warmup"), failed())

    assert found["request_rate"] > 0
    assert math.isnan(found["price_per_txn"])
    assert math.isnan(found["usd_per_1m_total_tokens"])


def test_an_hourly_price_is_as_uncertain_as_the_mean_latency():
    """In a closed loop the rate is the number in flight over the mean latency."""
    found = summary(*(whole(1.0, 1.2 + 0.01 * (n * 7 % 11)) for n in range(40)))
    relative = {
        end: found[f"latency_mean_ci_{end}"] / found["latency_mean"] for end in ("low", "high")
    }

    assert 0.8 < relative["low"] < 1 < relative["high"] < 1.2
    for end, factor in relative.items():
        assert found[f"price_per_txn_ci_{end}"] == close(found["price_per_txn"] * factor)
        assert found[f"usd_per_10k_txn_ci_{end}"] == close(found["usd_per_10k_txn"] * factor)


def test_an_hourly_price_beside_failures_has_no_interval():
    """The rate hangs on how long failures held their places, which no mean of successes tells."""
    found = summary(failed(), *(whole(1.0, 1.2 + 0.01 * (n * 7 % 11)) for n in range(40)))

    assert found["price_per_txn"] > 0
    assert math.isnan(found["price_per_txn_ci_low"])
    assert math.isnan(found["price_per_txn_ci_high"])


def test_a_token_price_s_interval_is_that_of_the_requests_prices():
    """The mean of 40 requests' prices, of which each is 100 in at $2 and n out at $10 a million."""
    counts = [4 + n * 7 % 11 for n in range(40)]
    found = summary(*(record(output_tokens=n) for n in counts), price=METERED)

    low, high = mean_interval(np.array([(100 * 2 + n * 10) / 1e6 for n in counts]))
    assert low < found["price_per_txn"] < high
    assert found["price_per_txn_ci_low"] == close(low)
    assert found["price_per_txn_ci_high"] == close(high)


def test_no_interval_of_a_latency_reaches_below_zero():
    """Three latencies far apart: the lower end is 0 where Student's would be negative."""
    found = summary(whole(1.0, 1.1), whole(1.0, 2.9), whole(1.0, 1.2))

    assert found["latency_mean_ci_low"] == 0.0
    assert found["latency_mean_ci_high"] > found["latency_mean"]


def test_token_prices_of_uncounted_tokens_are_unknown():
    """An answer whose tokens nobody counted is not free."""
    assert math.isnan(summary(record(), record(prompt_tokens=None), price=METERED)["price_per_txn"])


# --- the seed's seven requests -------------------------------------------------------------------

SEED_LATENCIES_S = {1: [2.02], 2: [2.8, 2.8], 4: [2.84, 2.846, 2.854, 2.905]}
SEED_OUTPUT_TOKENS = {1: [329], 2: [329, 329], 4: [329, 329, 330, 331]}
SEED_WALL_S = {1: 304 / 150.2, 2: 608 / 216.37, 4: 1216 / 418.16}  # its tokens over its rates


def seed_stage(concurrency: int) -> dict[str, Any]:
    """The seed's requests at one concurrency, all sent at 0, in the window that it divided by."""
    pairs = zip(SEED_LATENCIES_S[concurrency], SEED_OUTPUT_TOKENS[concurrency], strict=True)
    records = [whole(0.0, s, prompt_tokens=304, output_tokens=n) for s, n in pairs]
    price = Price("hourly", 15.58, None, None, "the seed", None, None)
    return summary(*records, window=(0.0, SEED_WALL_S[concurrency]), price=price)


@pytest.mark.parametrize(
    ("concurrency", "latency", "completion", "throughput", "per_minute"),
    [
        (1, 2.02, 329.0, 162.55, 29),
        (2, 2.8, 329.0, 234.16, 42),
        (4, 2.8612499999999996, 329.75, 453.58, 82),
    ],
)
def test_the_seed_s_means_and_rates(concurrency, latency, completion, throughput, per_minute):
    """The seed's table comes out of its seven requests; it cuts transactions to whole ones."""
    found = seed_stage(concurrency)

    assert found["latency_mean"] == close(latency)
    assert found["prompt_token_count_mean"] == 304.0
    assert found["completion_token_count_mean"] == close(completion)
    assert found["completion_token_throughput"] == pytest.approx(throughput, abs=0.01)
    assert math.floor(found["transactions_per_minute"]) == per_minute
    assert found["error_rate"] == 0.0


@pytest.mark.parametrize(("concurrency", "usd"), [(1, 89.54), (2, 61.83), (4, 31.67)])
def test_the_seed_s_prices(concurrency, usd):
    """Its prices per 10,000 are those of whole transactions a minute; ours differ by that cut."""
    found = seed_stage(concurrency)
    cut = math.floor(found["transactions_per_minute"]) / found["transactions_per_minute"]

    assert found["usd_per_10k_txn"] / cut == pytest.approx(usd, abs=0.005)


@pytest.mark.parametrize(("p", "seconds"), [(0.5, 2.85), (0.95, 2.89735), (0.99, 2.90347)])
def test_the_seed_s_percentiles_by_arithmetic_alone(p, seconds):
    """The linear quantile of its four requests is what the seed printed."""
    assert quantile(SEED_LATENCIES_S[4], p) == close(seconds)


@pytest.mark.parametrize("column", ["latency_p50", "latency_p95", "latency_p99"])
def test_four_requests_carry_no_percentile(column):
    """The seed's percentiles are not printed here: a median needs 6, a p95 72, a p99 368."""
    assert math.isnan(seed_stage(4)[column])


# --- a whole run ---------------------------------------------------------------------------------

CONFIG = """\
run: {name: t}
workloads:
  - {name: w, source: {kind: python_docs}, template: "{{ context }}"}
experiments:
  - name: rented
    model: {name: talker}
    endpoint: {kind: openai, base_url: "http://127.0.0.1:1/v1"}
    instance_type: box
    instance_count: 2
    workloads: [w]
    load: [{kind: closed_loop, concurrency: [4, 1]}]
  - name: metered
    model: {name: talker}
    endpoint: {kind: openai, base_url: "http://127.0.0.1:1/v1"}
    workloads: [w]
    load: [{kind: closed_loop, concurrency: [1]}]
prices: {hourly_usd: {box: 18}, usd_per_1m_tokens: {talker: {input: 2, output: 10}}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in which `rented` did concurrency 4, and `metered` did its only stage."""
    (tmp_path / "config.yml").write_text(CONFIG)
    opened = open_run(tmp_path / "config.yml", "t-1")
    add_stage(opened, "rented", 4, [record(phase="warmup"), record()])
    add_stage(opened, "metered", 1, [record(phase="warmup"), record(), failed()])
    return opened


def add_stage(run: Run, experiment: str, concurrency: int, records: list[RequestRecord]) -> None:
    """Write one stage's records as notebook 3 does."""
    stage = info(experiment=experiment, stage=f"concurrency-{concurrency}")
    write_stage(run.stage_folder(stage.key), stage, records)


def test_every_planned_stage_has_a_row_in_the_config_s_order(run):
    """Also the one that was not run."""
    frame = compute_metrics(run)

    assert list(zip(frame["experiment_name"], frame["concurrency"], strict=True)) == [
        ("rented", 4),
        ("rented", 1),
        ("metered", 1),
    ]
    assert frame["status"].tolist() == ["ok", "not run: no records", "ok"]


def test_rows_say_what_was_measured(run):
    """The seed's names carry workload, instance type and count."""
    rows = compute_metrics(run).to_dict("records")

    assert [row["instance_type"] for row in rows] == ["box", "box", "per-token"]
    assert [row["instance_count"] for row in rows] == [2, 2, 1]
    assert {(r["payload_file"], r["workload"], r["model"]) for r in rows} == {
        ("payload_w.jsonl", "w", "talker")
    }


def test_hourly_price_is_for_all_instances(run):
    """Two boxes at $18 an hour, half a request a second and one warm-up overlapping likewise."""
    row = compute_metrics(run).iloc[0]

    assert row["price_per_txn"] == close(2 * 18 / 3600 / row["request_rate"])


def test_a_stage_that_was_not_run_says_why(run):
    """The endpoint's error stands in the status; counts are 0 and figures are unknown."""
    endpoint = Endpoint(
        experiment="rented",
        kind="openai",
        state="failed",
        base_url=None,
        model="talker",
        instance_type="box",
        instance_count=2,
        owned=False,
        error="nobody answered",
    )
    write_endpoints(run.endpoints_path, [endpoint])

    row = compute_metrics(run).iloc[1]

    assert row["status"] == "not run: nobody answered"
    assert (row["n_requests"], row["n_timeout"], row["token_source"]) == (0, 0, "none")
    assert row[["request_rate", "error_rate", "latency_mean", "price_per_txn"]].isna().all()


def test_metrics_are_read_back_as_they_were_written(run):
    """metrics.parquet holds the table exactly, with infinite percentiles."""
    frame = metrics_frame(compute_metrics(run).assign(latency_p50=math.inf).to_dict("records"))

    write_metrics(run, frame)

    pd.testing.assert_frame_equal(read_metrics(run), frame)


def test_metrics_csv_holds_the_same_rows(run):
    """The seed's columns stand first, and unknown figures are empty."""
    frame = compute_metrics(run)
    write_metrics(run, frame)

    lines = (run.folder / "metrics.csv").read_text().splitlines()

    assert lines[0].split(",") == list(METRIC_COLUMNS)
    assert lines[0].startswith(",".join(SEED_COLUMNS))
    assert len(lines) == 1 + len(frame)
    assert lines[2].startswith("rented,payload_w.jsonl,box,2,1,,")


def test_a_table_of_stages_that_were_not_run_can_be_written(tmp_path):
    """Where no endpoint came up, metrics are a table all the same."""
    (tmp_path / "config.yml").write_text(CONFIG)
    empty = open_run(tmp_path / "config.yml", "t-2")

    write_metrics(empty, compute_metrics(empty))

    assert read_metrics(empty)["n_requests"].tolist() == [0, 0, 0]


def test_experiments_cost_their_time_under_load_or_their_tokens(run):
    """4 s of two boxes at $18 an hour; 200 prompt and 8 output tokens at $2 and $10 a million."""
    costs = experiment_costs(run)

    assert costs.to_dict("records") == [
        {
            "experiment_name": "rented",
            "instance_type": "box",
            "duration_in_seconds": 4.0,
            "cost": close(4 * 36 / 3600),
        },
        {
            "experiment_name": "metered",
            "instance_type": "per-token",
            "duration_in_seconds": 4.0,
            "cost": close((200 * 2 + 8 * 10) / 1e6),
        },
    ]


def test_a_refused_request_cost_no_tokens(run):
    """A thousand requests that were throttled, failed at once or never arrived are not billed."""
    refused = [
        failed(status, prompt_tokens=1000, token_source="tokenizer")
        for status in ("throttled", "http_error", "connection_error")
    ]
    records = [record(), failed("stream_error", prompt_tokens=100), *refused]
    add_stage(run, "metered", 1, records)

    cost = experiment_costs(run)["cost"].iloc[1]

    assert cost == close((200 * 2 + 4 * 10) / 1e6)


def test_every_column_is_documented():
    """docs/metrics.md names each column; intervals it explains once for all."""
    named = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "metrics.md").read_text()))

    columns = {name for name in METRIC_COLUMNS if not name.endswith(("_ci_low", "_ci_high"))}

    assert columns - named == set()
    assert {"_ci_low", "_ci_high"} <= named


def test_a_summary_fills_only_known_columns():
    """Every figure has its place in the table, and no figure is left without one."""
    identity = {"experiment_name", "payload_file", "instance_type", "instance_count"}
    identity |= {"concurrency", "workload", "stage", "model"}

    assert set(summary(record())) == set(METRIC_COLUMNS) - identity

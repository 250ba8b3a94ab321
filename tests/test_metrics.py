"""From request records to metrics.csv: definitions, windows, failures, prices, what is missing."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from fmgauge.config.model import Budgets, Limits
from fmgauge.metrics import (
    FAILURES,
    METRIC_COLUMNS,
    PERCENTILES,
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
    Batches,
    ClientUse,
    Endpoint,
    RequestRecord,
    StageInfo,
    records_table,
    write_endpoints,
    write_stage,
)
from fmgauge.runs import Run, open_run
from fmgauge.statistics import mean_interval, percentile, percentile_interval, quantile

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
        "max_output_tokens": 4,
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
        "resent": False,
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
    holds_level: bool = True,
    **facts: Any,
) -> dict[str, Any]:
    """The metrics of one stage with these records, about which these facts are known."""
    return stage_summary(
        info(*window, **facts),
        batches_of(*records),
        price,
        budgets or Budgets(),
        holds_level=holds_level,
    )


def open_summary(*records: RequestRecord, **changes: Any) -> dict[str, Any]:
    """The metrics of one stage in open loop, of 2 requests a second, with these records."""
    facts = {"kind": "open_loop", "concurrency": None, "request_rate": 2.0, "arrivals": "poisson"}
    return summary(*records, **(facts | changes))


def batches_of(*records: RequestRecord, at_once: int = 3) -> Batches:
    """The records as a stage's file gives them, a few at a time."""
    table = records_table(records)
    return lambda columns: iter(table.select(columns).to_batches(max_chunksize=at_once))


def requests_of(*records: RequestRecord) -> pd.DataFrame:
    """The request table of these records."""
    return request_table(batches_of(*records))


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
    assert requests_of(record())[column].tolist() == [close(expected)]


@pytest.mark.parametrize(
    ("token_at_s", "finished_at_s", "latency_s"),
    [
        ([2.0], 2.2, 1.0),
        ([2.0, 2.0], 2.2, 1.0),
        ([2.0, 2.0], 121.0, 1.0),  # a body that was held open until a time-out ended it
        ([], 2.2, 1.2),
    ],
)
def test_latency_without_streaming_ends_with_what_carried_the_answer(
    token_at_s, finished_at_s, latency_s
):
    """With the tokens that came at one instant, or else the response; there is no TPOT."""
    instants = {"token_at_s": token_at_s, "finished_at_s": finished_at_s}
    row = requests_of(record(**instants, chunk_tokens=None)).iloc[0]

    assert row["e2e_latency_s"] == close(latency_s)
    assert math.isnan(row["tpot_s"])


@pytest.mark.parametrize("output_tokens", [0, 1, None])
def test_tpot_is_undefined_below_two_tokens(output_tokens):
    """One token has no time per token after the first: neither 0 nor infinite."""
    table = requests_of(record(output_tokens=output_tokens))

    assert math.isnan(table["tpot_s"].iloc[0])


def test_itl_is_per_token_of_the_later_chunk():
    """Gaps 0.2 s for one token and 0.4 s for two are three samples of 0.2 s."""
    assert summary(record())["itl_s_mean"] == close(0.2)


def test_itl_of_uncounted_chunks_is_the_gap():
    """Without counts per chunk, gaps of 0.2 and 0.4 s are two samples."""
    assert summary(record(chunk_tokens=None))["itl_s_mean"] == close(0.3)


def hidden(**changes: Any) -> RequestRecord:
    """Ten chunks 50 ms apart after 900 tokens of reasoning that were counted, not streamed."""
    at_s = [2.0 + 0.05 * n for n in range(10)]
    told = {"output_tokens": 910, "reasoning_tokens": 900, "max_output_tokens": 2000}
    times = {"token_at_s": at_s, "first_content_at_s": 2.0, "finished_at_s": 2.5}
    return record(**{**told, **times, "chunk_tokens": None, **changes})


@pytest.mark.parametrize(
    ("changes", "tpot_s"),
    [
        ({}, 0.45 / 9),  # 910 - 900 tokens
        ({"output_tokens": 919}, 0.45 / 18),  # 19 tokens in the 10 chunks
        ({"output_tokens": 905}, 0.45 / 9),  # no chunk holds less than a token
        ({"output_tokens": 10}, 0.45 / 9),  # reasoning beside the output, contradictory
        ({"reasoning_tokens": 0}, 0.45 / 909),
        ({"reasoning_tokens": None}, 0.45 / 909),
        ({"first_content_at_s": 2.1}, 0.45 / 909),  # the first chunks were reasoning
        ({"first_content_at_s": None}, 0.45 / 909),  # all of them were
        ({"output_tokens": 10, "reasoning_tokens": 4}, 0.45 / 9),  # streamed behind the content
    ],
)
def test_tpot_leaves_out_reasoning_that_was_made_before_the_first_chunk(changes, tpot_s):
    """None of the 0.45 s after the first chunk went into it; it stays in counts and prices."""
    one = hidden(**changes)

    assert requests_of(one)["tpot_s"].tolist() == [close(tpot_s)]
    assert summary(one)["completion_token_count_mean"] == one.output_tokens
    assert summary(one, price=METERED)["price_per_txn"] == close(
        (100 * 2 + one.output_tokens * 10) / 1e6
    )


def at_once(**changes: Any) -> RequestRecord:
    """Four tokens in three chunks that came in one piece at 1.8 s, with changes."""
    return record(**{"token_at_s": [1.8, 1.8, 1.8], "first_content_at_s": 1.8, **changes})


def test_an_answer_in_one_piece_has_no_time_between_its_tokens():
    """Neither TPOT nor ITL is 0: only what streamed is in them. TTFT is of both."""
    found = summary(record(), at_once(), record(phase="warmup"))

    assert found["n_unstreamed"] == 1
    assert (found["tpot_s_mean"], found["itl_s_mean"]) == (close(0.2), close(0.2))
    assert found["ttft_s_mean"] == close((0.5 + 0.8) / 2)
    assert found["e2e_latency_s_mean"] == close((1.1 + 0.8) / 2)


def test_a_stage_of_answers_in_one_piece_has_no_tpot_and_no_itl():
    """They would be 0 s, within every budget; their tokens count by the requests' shares."""
    budgets = Budgets(tpot_s=Limits(mean=0.05))

    found = summary(*[at_once()] * 6, window=(1.0, 2.2), budgets=budgets)

    assert found["n_unstreamed"] == 6
    for name in ("tpot_s_mean", "tpot_s_p50", "itl_s_mean", "itl_s_p50"):
        assert math.isnan(found[name])
    assert found["completion_token_throughput"] == close(6 * 4 / 1.2)
    assert found["goodput_per_min"] == 0


@pytest.mark.parametrize(
    ("changes", "n_unstreamed"),
    [
        ({"token_at_s": [1.8], "chunk_tokens": [4]}, 1),
        ({"token_at_s": [], "chunk_tokens": None, "first_content_at_s": None}, 1),
        ({"token_at_s": [1.8], "chunk_tokens": [1], "output_tokens": 1}, 0),
        ({"token_at_s": [1.8, 1.8, 1.9]}, 0),
        ({"output_tokens": None}, 0),  # how many there were, nobody knows
        (
            {
                "token_at_s": [1.8],
                "chunk_tokens": None,
                "output_tokens": 901,
                "reasoning_tokens": 900,
            },
            0,
        ),
        ({"status": "truncated"}, 0),
        ({"phase": "drain"}, 0),
    ],
)
def test_only_answers_of_several_tokens_could_have_streamed(changes, n_unstreamed):
    """Of measured successes those of two tokens or more, without any that stayed hidden."""
    assert summary(record(), at_once(**changes))["n_unstreamed"] == n_unstreamed


def test_itl_does_not_span_requests():
    """The time between one request's last token and the next one's first is no gap."""
    later = record(sent_at_s=9.0, token_at_s=[9.5, 9.6], chunk_tokens=[1, 1], output_tokens=2)

    assert summary(record(), later)["itl_s_mean"] == close((3 * 0.2 + 0.1) / 4)


@given(st.floats(0, 1e5), st.lists(st.floats(0.01, 2), min_size=2, max_size=8))
def test_latencies_do_not_depend_on_the_clock_s_zero(shift, gaps):
    """No absolute reading of a clock reaches a latency."""
    instants = np.cumsum(gaps)
    tables = [
        requests_of(record(sent_at_s=at, token_at_s=list(at + instants), finished_at_s=at + 99))
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
        batches = batches_of(*streamed, at_once=1000)
        found = stage_summary(info(5.0, 20.0), batches, HOURLY, Budgets())
        window_rates.append((found["request_rate"], found["completion_token_throughput"] / 4))
        naive_rates.append(len(spans) / max(end for _, end in spans))
        assert found["mean_in_flight"] == close(64.0)

    assert np.mean(window_rates, axis=0) == pytest.approx([64.0, 64.0], rel=0.015)
    assert np.mean(naive_rates) < 0.96 * 64


def test_a_window_of_no_length_has_no_rate():
    """The first request of a stage that measures one, and no warm-up, is due at its end."""
    found = summary(record(), window=(1.0, 1.0))

    assert found["n_requests"] == 1
    assert all(math.isnan(found[c]) for c in ("request_rate", "mean_in_flight", "price_per_txn"))


def test_the_most_in_flight_is_counted_within_the_window():
    """Three overlap before it, two at once in it: of ends and starts at one instant, ends count."""
    spans = [(0.0, 0.9), (0.1, 0.9), (0.2, 1.5), (1.5, 2.5), (2.0, 9.0), (2.5, 2.6), (4.0, 9.0)]

    found = summary(*[whole(*span) for span in spans], window=(1.0, 3.0))

    assert found["in_flight_max"] == 2.0


# --- in pieces, and from the intended instant ----------------------------------------------------


def random_stage(seed: int, n: int) -> list[RequestRecord]:
    """Requests of all phases and outcomes in the order of their ends, chunk counts told or not."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(n):
        due_s, n_chunks = float(rng.uniform(0, 30)), int(rng.integers(0, 7))
        sent_s = due_s + float(rng.choice([0.0, 0.001, 0.3]))
        at_s = (sent_s + np.cumsum(rng.gamma(2, 0.05, n_chunks))).tolist()
        counts = rng.integers(1, 4, n_chunks).tolist()
        told = {
            "request_id": f"r{number}",
            "phase": str(rng.choice(["warmup", "measured", "drain"], p=[0.1, 0.8, 0.1])),
            "intended_at_s": due_s,
            "sent_at_s": sent_s,
            "token_at_s": at_s,
            "chunk_tokens": [None, counts, counts[:1]][int(rng.integers(0, 3))],
            "finished_at_s": (at_s or [sent_s + 0.3])[-1] + 0.01,
            "status": str(rng.choice(["ok", "timeout"], p=[0.99, 0.01])),
            "output_tokens": int(rng.integers(1, 9)),
        }
        records.append(record(**told))
    return sorted(records, key=lambda one: one.finished_at_s)


def itl_samples(records: list[RequestRecord]) -> np.ndarray:
    """Every ITL sample in sending order, request by request and token by token."""
    samples = []
    for one in sorted(records, key=lambda one: one.intended_at_s):
        if (one.phase, one.status) == ("measured", "ok"):
            n = len(one.token_at_s)
            assert len({*one.token_at_s}) == n
            told = one.chunk_tokens if len(one.chunk_tokens or []) == n else None
            for k in range(1, n):
                tokens = told[k] if told else 1
                gap_s = one.token_at_s[k] - one.token_at_s[k - 1]
                samples += [gap_s / tokens] * tokens
    return np.array(samples)


@given(st.integers(0, 2**32), st.integers(0, 300), st.integers(1, 50))
def test_itl_in_pieces_is_that_of_all_samples_at_once(seed, n, at_once):
    """Percentiles to the last bit, means and their intervals but for rounding."""
    records = random_stage(seed, n)
    measured = [one for one in records if one.phase == "measured"]
    n_ok = sum(one.status == "ok" for one in measured)
    samples = itl_samples(records)
    n_failed = len(measured) - n_ok
    n_lost = math.ceil(n_failed * max(len(samples) / n_ok, 1.0)) if n_ok else n_failed
    ranked = np.concatenate([samples, np.full(n_lost, math.inf)])

    found = stage_summary(info(3.0, 25.0), batches_of(*records, at_once=at_once), HOURLY, Budgets())

    for label, p in PERCENTILES.items():
        expected = (percentile(ranked, p), *percentile_interval(ranked, p))
        names = (f"itl_s_{label}{end}" for end in ("", "_ci_low", "_ci_high"))
        assert [found[name] for name in names] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    low, high = mean_interval(samples)
    expected_mean = samples.mean() if samples.size else math.nan
    assert found["itl_s_mean"] == pytest.approx(expected_mean, rel=1e-12, nan_ok=True)
    assert found["itl_s_mean_ci_low"] == pytest.approx(max(low, 0), rel=1e-12, nan_ok=True)
    assert found["itl_s_mean_ci_high"] == pytest.approx(high, rel=1e-12, nan_ok=True)


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 50))
def test_a_stage_in_pieces_is_the_stage_at_once(seed, n, at_once):
    """No figure hangs on how many records are read at a time."""
    records = random_stage(seed, n)

    whole_stage, pieces = (
        stage_summary(info(3.0, 25.0), batches_of(*records, at_once=size), METERED, Budgets())
        for size in (n, at_once)
    )

    for column, value in whole_stage.items():
        expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-12, nan_ok=True)
        assert pieces[column] == expected


def test_intervals_go_by_sending_order_whatever_was_written_first():
    """Workers write requests as they end; lag-1 correlation is that of requests as they came."""
    rng = np.random.default_rng(3)
    spans = [(float(n), float(n) + s) for n, s in enumerate(rng.gamma(4.0, 0.1, 50))]
    records = [whole(*span) for span in spans]

    found = summary(*rng.permutation(np.array(records, dtype=object)), window=(0.0, 50.0))

    expected = mean_interval([end - start for start, end in spans])
    assert (found["latency_mean_ci_low"], found["latency_mean_ci_high"]) == close(expected)


def test_in_open_loop_latency_counts_from_the_intended_instant():
    """Sent 0.5 s late: the first token came 1 s after it was due, the last 1.6 s after."""
    found = open_summary(record(intended_at_s=0.5))

    assert found["ttft_s_from_intended_mean"] == close(1.0)
    assert found["e2e_latency_s_from_intended_mean"] == close(1.6)
    assert found["latency_mean"] == close(1.6)
    assert (found["ttft_s_mean"], found["e2e_latency_s_mean"]) == (close(0.5), close(1.1))


def test_in_open_loop_every_headline_is_from_the_intended_instant():
    """Percentiles and intervals as well; a failure is infinitely slow in these, too."""
    late = [whole(1.0, 1.1 + 0.01 * n, intended_at_s=0.0) for n in range(400)]
    found = open_summary(*late, *[failed()] * 60)

    for column in METRIC_COLUMNS:
        if column.startswith("latency_"):
            same = f"e2e_latency_s_from_intended{column.removeprefix('latency')}"
            assert found[column] == pytest.approx(found[same], nan_ok=True)
    assert found["latency_p50"] > 1.1 + 0.01 * 200
    assert found["latency_p99"] == math.inf
    assert found["ttft_s_from_intended_p90"] == math.inf


def test_in_closed_loop_there_is_no_intended_instant_to_count_from():
    """A place is free when its last answer came: those columns are empty."""
    found = summary(*[record()] * 400)
    empty = [column for column in METRIC_COLUMNS if "_from_intended" in column]

    assert len(empty) == 30
    assert all(math.isnan(found[column]) for column in empty)
    assert found["latency_p99"] == found["e2e_latency_s_p99"] == close(1.1)


@pytest.mark.parametrize(
    "budgets", [Budgets(latency_s=Limits(p95=1.3)), Budgets(ttft_s=Limits(mean=0.7))]
)
def test_in_open_loop_goodput_counts_from_the_intended_instant(budgets):
    """An answer within the limits of its sending is late where its sending was."""
    records = [record(), record(intended_at_s=0.5)]

    closed, opened = (f(*records, budgets=budgets) for f in (summary, open_summary))

    assert closed["goodput_per_min"] == close(60.0)
    assert opened["goodput_per_min"] == close(30.0)


def test_in_open_loop_an_hourly_price_has_no_interval():
    """The rate is what was asked for; no mean latency tells how certain it is."""
    found = open_summary(*(whole(1.0, 1.2 + 0.01 * (n * 7 % 11)) for n in range(40)))

    assert found["price_per_txn"] > 0
    assert math.isnan(found["price_per_txn_ci_low"])


def test_the_achieved_rate_is_that_of_requests_that_were_due():
    """Three requests were due in 2 s at 2 a second, one failed, one in warm-up: 3 of 4."""
    records = [record(), record(), failed(), record(phase="warmup")]

    assert open_summary(*records)["achieved_rate_ratio"] == close(0.75)
    assert math.isnan(summary(*records)["achieved_rate_ratio"])


# --- what was due and had not ended, and how warm-up and window ended -----------------------------


def due(intended_s: float, end_s: float, **changes: Any) -> RequestRecord:
    """A request that was due at one instant and ended at another, with changes."""
    return whole(intended_s, end_s, **changes)


def growing(n_late: int) -> list[RequestRecord]:
    """One request throughout [0, 10], and so many more from 5 s on."""
    return [due(0.0, 10.0), *[due(5.0, 10.0)] * n_late]


@pytest.mark.parametrize(
    ("records", "mean", "growth", "low"),
    [
        ([due(-3.0, 14.0)] * 3, 3.0, 0.0, 0.0),
        # 1, 2, ... 10 in the ten seconds: a line from 0.5 to 10.5
        ([due(float(second), 10.0) for second in range(10)], 5.5, 10.0, 10.0),
        # five times 1, then five times 2: 1.25 / 0.825, and Student's 2.896459 at 8 degrees
        (growing(1), 1.5, 50 / 33, (50 - 2.896459 * 10) / 33),
        (growing(3), 2.5, 50 / 11, (50 - 2.896459 * 10) / 11),
    ],
)
def test_what_was_outstanding_and_its_growth(records, mean, growth, low):
    """Worked by hand from the means of the window's ten parts, a line through them and its bound.

    The line's places are -0.45, -0.35 ... 0.45 of the window, their squares' sum is 0.825. Of
    five means of 1 and five of 2 the residuals' squares sum to 0.60606, so the slope's standard
    error is 10 / 33.
    """
    found = open_summary(*records, window=(0.0, 10.0))

    assert found["outstanding_mean"] == close(mean)
    assert found["outstanding_growth"] == pytest.approx(growth, abs=1e-9)
    assert found["outstanding_growth_ci_low"] == pytest.approx(low, abs=1e-6)


def test_a_request_that_waits_for_a_place_is_outstanding_from_its_intended_instant():
    """Due at 0 s, sent at 5 s, ended at 10 s: outstanding throughout, in flight for half."""
    waited = due(0.0, 10.0, sent_at_s=5.0, held_back_at_s=0.0)

    found = open_summary(waited, window=(0.0, 10.0))

    assert (found["outstanding_mean"], found["mean_in_flight"]) == (close(1.0), close(0.5))


@pytest.mark.parametrize("phase", ["warmup", "drain"])
def test_requests_of_every_phase_and_outcome_are_outstanding(phase):
    """What was due before the window and failed in its middle is in half of it."""
    found = open_summary(due(-1.0, 5.0, phase=phase, status="timeout"), window=(0.0, 10.0))

    assert found["outstanding_mean"] == close(0.5)


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "closed_loop", "concurrency": 2, "request_rate": None, "arrivals": None},
        {"arrivals": "ramp"},
    ],
)
def test_where_the_load_is_no_constant_rate_no_growth_is_a_backlog(facts):
    """Closed loops and ramps have a mean of what was outstanding, and no growth of it."""
    found = open_summary(*growing(1), window=(0.0, 10.0), **facts)

    assert found["outstanding_mean"] == close(1.5)
    assert math.isnan(found["outstanding_growth"])
    assert math.isnan(found["outstanding_growth_ci_low"])


HOW_IT_ENDED = ["warmup_s", "warmup_end", "window_end", "n_unsent"]


def test_a_row_says_how_warm_up_and_window_ended():
    """It repeats the stage's facts; the warm-up lasted until the window began."""
    facts = {"warmup_end": "capped", "window_end": "overloaded", "n_unsent": 7}

    found = open_summary(record(), window=(1.25, 3.0), **facts)

    assert [found[column] for column in HOW_IT_ENDED] == [1.25, "capped", "overloaded", 7]


# --- the client ----------------------------------------------------------------------------------


def sent_late(n_late: int, by_s: float, **changes: Any) -> list[RequestRecord]:
    """A hundred requests of which so many were sent so late; they keep one in flight."""
    delays = [by_s] * n_late + [0.0] * (100 - n_late)
    return [whole(1.0, 3.0, intended_at_s=1.0 - delay_s, **changes) for delay_s in delays]


def test_a_client_that_kept_up_limits_nothing():
    """One late request in a hundred, a loop and a core at their limits: no word."""
    use = ClientUse(cpu_share=0.9, loop_lag_p99_s=0.005, loop_lag_max_s=5.0)

    found = summary(*sent_late(1, 9.0), client=use, concurrency=100, held_back=7)

    assert found["client_limited"] == ""
    assert (found["client_cpu_share"], found["held_back"]) == (0.9, 7)
    assert (found["loop_lag_s_p99"], found["loop_lag_s_max"]) == (0.005, 5.0)


def held_back(n: int, came_to_after_s: float) -> list[RequestRecord]:
    """So many requests, due at 0.5 s and sent at 1 s, that found max_in_flight reached so late."""
    late = {"intended_at_s": 0.5, "held_back_at_s": 0.5 + came_to_after_s}
    return [whole(1.0, 3.0, **late) for _ in range(n)]


def test_what_a_limit_in_flight_held_back_limits_nothing():
    """Such requests are late because that was asked for; how many they are has its own column."""
    records = sent_late(0, 0.0)[:96] + held_back(4, came_to_after_s=0.009)

    found = summary(*records, concurrency=100, held_back=4)

    assert (found["client_limited"], found["held_back"]) == ("", 4)


def test_what_was_held_back_excuses_no_other_request_nor_its_own_delay_before():
    """Of 30 that were held back 10 were come to late, 2 others were late by themselves: 12."""
    on_time, come_to_late = held_back(20, 0.001), held_back(10, 0.05)
    records = sent_late(2, 0.5)[:70] + on_time + come_to_late

    found = summary(*records, concurrency=100, held_back=30)

    assert found["client_limited"] == "12 of 100 requests were sent more than 10 ms late"


def test_a_client_that_nobody_watched_is_unknown():
    """Records without the client's use have empty columns, and no reason from them."""
    found = summary(whole(1.0, 3.0))

    assert math.isnan(found["client_cpu_share"])
    assert found["client_limited"] == ""


LIMITED = {
    "late": (
        (sent_late(2, 0.011), {}),
        "2 of 100 requests were sent more than 10 ms late",
    ),
    "late for a connection": (
        (sent_late(2, 0.011, connected_at_s=0.995), {}),
        "2 of 100 requests were sent more than 10 ms late (2 of them waited for a connection)",
    ),
    "late beyond a tenth of the limit on TTFT": (
        (sent_late(3, 0.06), {"budgets": Budgets(ttft_s=Limits(mean=9.0, p95=0.5))}),
        "3 of 100 requests were sent more than 50 ms late",
    ),
    "late and held back": (
        (sent_late(2, 0.5)[:96] + held_back(4, 0.0), {"held_back": 4}),
        "2 of 100 requests were sent more than 10 ms late",
    ),
    "loop": (
        (sent_late(0, 0.0), {"client": ClientUse(0.5, 0.0123, 0.1)}),
        "the client's event loop was late by 12.3 ms at the 99th percentile",
    ),
    "core": (
        (sent_late(0, 0.0), {"client": ClientUse(0.96, 0.001, 0.1)}),
        "the client used 96 % of a core",
    ),
    "ran out": (
        (sent_late(0, 0.0), {"client": ClientUse(0.5, 0.001, 0.1, "file descriptors")}),
        "the client ran out of file descriptors",
    ),
    "slack": (
        (sent_late(0, 0.0), {"concurrency": 102}),
        "100 requests were in flight on average instead of 102",
    ),
}


@pytest.mark.parametrize(("stage", "reason"), LIMITED.values(), ids=LIMITED)
def test_a_client_that_was_the_bottleneck_says_why(stage, reason):
    """Each reason in plain words, with what was asked and what was found."""
    records, facts = stage

    assert summary(*records, **({"concurrency": 100} | facts))["client_limited"] == reason


NEVER_SENT = "requests were never sent, because the client was too slow: it achieved"


@pytest.mark.parametrize(
    ("n_late", "n_unsent", "rate", "reasons"),
    [
        (0, 1, 50.5, []),
        (0, 2, 51.0, [f"2 of 102 {NEVER_SENT} 50 of 51 requests/s"]),
        (0, 29_900, 15_000.0, [f"29,900 of 30,000 {NEVER_SENT} 50 of 15,000 requests/s"]),
        (
            1,
            1,
            50.5,
            [
                "1 of 101 requests were sent more than 10 ms late",
                f"1 of 101 {NEVER_SENT} 50 of 50.5 requests/s",
            ],
        ),
    ],
)
def test_requests_that_were_never_sent_count_as_late(n_late, n_unsent, rate, reasons):
    """Beyond one in a hundred late or unsent the client was the bottleneck: 100 sent in 2 s."""
    facts = {"n_unsent": n_unsent, "request_rate": rate}

    found = open_summary(*sent_late(n_late, 0.5), **facts)

    assert found["client_limited"] == "; ".join(reasons)
    assert found["achieved_rate_ratio"] == close(100 / (2 * rate))


def test_every_reason_why_the_client_was_the_bottleneck_is_told():
    """They stand beside one another."""
    use = ClientUse(cpu_share=1.0, loop_lag_p99_s=0.02, loop_lag_max_s=0.1)

    found = summary(*sent_late(50, 0.02), client=use, concurrency=200)

    assert [reason.split()[0] for reason in found["client_limited"].split("; ")] == [
        *("50", "the", "the", "100"),
    ]


def test_lateness_within_a_tenth_of_the_limit_on_ttft_is_allowed():
    """Where a first token may take 0.5 s, 20 ms decide nothing."""
    budgets = Budgets(ttft_s=Limits(p95=0.5))

    found = summary(*sent_late(100, 0.02), concurrency=100, budgets=budgets)

    assert found["client_limited"] == ""


def test_an_hourly_price_under_think_time_has_no_interval():
    """The rate hangs on pauses that are in no latency."""
    spans = [whole(1.0, 1.2 + 0.01 * (n * 7 % 11)) for n in range(40)]

    found = summary(*spans, holds_level=False)

    assert found["price_per_txn"] > 0
    assert math.isnan(found["price_per_txn_ci_low"])


def test_places_that_nobody_could_hold_are_not_the_client_s():
    """Think time, and the pause after a refusal, empty places on purpose."""
    kept = sent_late(0, 0.0)  # 100 in flight
    thinking = summary(*kept, concurrency=200, holds_level=False)
    unreachable = [failed("connection_error", sent_at_s=None, http_status=None)] * 40
    refused = [failed("throttled", http_status=429)] * 40  # 20 in flight, 2 places that pause
    broken = [failed("http_error", http_status=502)] * 40
    opened = open_summary(*kept)

    found = [summary(*kept, *some, concurrency=123) for some in (unreachable, refused, broken)]

    assert [one["client_limited"] for one in (thinking, *found, opened)] == [""] * 5


def test_a_refusal_excuses_no_place_but_its_own():
    """One request without a connection does not hide that half of the places stood empty."""
    unreachable = failed("connection_error", sent_at_s=None, http_status=None)

    found = summary(*sent_late(0, 0.0), unreachable, concurrency=200)

    assert found["client_limited"] == "100.5 requests were in flight on average instead of 200"


# --- what servers tell of tokens, and what was sent again -----------------------------------------


@pytest.mark.parametrize(
    ("changes", "n_doubtful"),
    [
        ({}, 0),  # 4 tokens in 3 chunks, 4 asked for
        ({"output_tokens": 3}, 0),
        ({"output_tokens": 2}, 1),
        ({"output_tokens": 5}, 1),
        ({"output_tokens": 5, "max_output_tokens": 5}, 0),
        ({"output_tokens": 5, "max_output_tokens": None}, 0),
        ({"output_tokens": 2, "max_output_tokens": None}, 1),
        ({"token_at_s": [1.5], "chunk_tokens": None, "output_tokens": 1}, 0),
        ({"token_at_s": [], "chunk_tokens": None, "output_tokens": 5}, 1),
        ({"reasoning_tokens": 4}, 0),
        ({"reasoning_tokens": 5}, 1),
        ({"prompt_tokens": 0}, 1),
        ({"prompt_tokens": None}, 0),
        ({"output_tokens": 2, "token_source": "tokenizer"}, 0),
        ({"output_tokens": None}, 0),
        ({"output_tokens": 2, "status": "truncated"}, 0),
        ({"output_tokens": 2, "phase": "drain"}, 0),
    ],
)
def test_a_count_that_cannot_be_right_is_counted(changes, n_doubtful):
    """Fewer than chunks or reasoning, more than was asked, no prompt; of measured successes."""
    assert summary(record(), record(**changes))["n_doubtful_counts"] == n_doubtful


def test_a_count_that_cannot_be_right_is_priced_as_told():
    """Half of the tokens that came, at $2 and $10 a million: that is what is billed."""
    found = summary(record(output_tokens=2, chunk_tokens=None), price=METERED)

    assert found["n_doubtful_counts"] == 1
    assert found["price_per_txn"] == close((100 * 2 + 2 * 10) / 1e6)
    assert found["completion_token_count_mean"] == 2


def test_a_prompt_of_no_tokens_is_priced_as_told():
    """It costs nothing, and the rest is not without a price: (100 in, 8 out) for two requests."""
    found = summary(record(), record(prompt_tokens=0), price=METERED)

    assert found["price_per_txn"] == close((100 * 2 + 8 * 10) / 2 / 1e6)


TOLD = st.tuples(
    st.integers(0, 6),  # chunks
    st.none() | st.integers(0, 8),  # output tokens
    st.none() | st.integers(1, 8),  # asked for
    st.sampled_from(["server", "tokenizer"]),
    st.booleans(),  # sent again
)


@given(st.lists(TOLD, max_size=8))
def test_doubts_and_resendings_are_counted_over_all_pieces(told):
    """However records are read, the counts are those of a loop over the requests."""
    records = [
        record(
            token_at_s=[1.5 + 0.1 * n for n in range(chunks)],
            chunk_tokens=None,
            output_tokens=output,
            max_output_tokens=most,
            token_source=source,
            resent=resent,
        )
        for chunks, output, most, source, resent in told
    ]
    doubtful = [
        source == "server" and output is not None and (output < chunks or output > (most or 99))
        for chunks, output, most, source, _ in told
    ]

    found = summary(*records)

    assert found["n_doubtful_counts"] == sum(doubtful)
    assert found["n_resent"] == sum(resent for *_, resent in told)


def test_resent_requests_are_those_of_the_window_whatever_became_of_them():
    """A failure that was sent twice counts, a warm-up request does not."""
    again = {"resent": True}

    found = summary(record(**again), failed(**again), record(phase="warmup", **again), record())

    assert (found["n_resent"], found["n_requests"]) == (2, 3)


def test_records_that_do_not_say_what_was_asked_raise_no_doubt():
    """Records of before these columns hold nothing in them."""
    old = record(output_tokens=5, max_output_tokens=None, resent=None)

    found = summary(old)

    assert (found["n_doubtful_counts"], found["n_resent"]) == (0, 0)


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


def test_a_stage_of_an_older_version_has_no_reasons_for_its_ends(run):
    """Its stage.json lacks these facts: the reasons are "", and no request counts as unsent."""
    path = next(run.requests_folder.glob("rented/**/stage.json"))
    facts = json.loads(path.read_text())
    for name in ("n_unsent", "warmup_end", "window_end"):
        del facts[name]
    path.write_text(json.dumps(facts))

    rows = compute_metrics(run)[HOW_IT_ENDED].to_numpy().tolist()

    assert rows[0] == [1.0, "", "", 0]


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


OPEN_CONFIG = CONFIG.replace(
    "load: [{kind: closed_loop, concurrency: [4, 1]}]",
    """load:
      - {kind: closed_loop, concurrency: [4], think_time_s: 1}
      - {kind: open_loop, request_rate: [3]}
      - {kind: open_loop, request_rate: [1], arrivals: ramp, ramp_to_rate: 4, duration_s: 2}""",
)


@pytest.fixture
def open_run_of_all(tmp_path: Path) -> Run:
    """A run in which `rented` did a closed loop with think time, a rate of 3, and a ramp."""
    (tmp_path / "config.yml").write_text(OPEN_CONFIG)
    opened = open_run(tmp_path / "config.yml", "t-3")
    add_stage(opened, "rented", 4, [record()])
    for stage, rate in (("rate-3", 3.0), ("rate-1-ramp", 2.5)):
        facts = {"kind": "open_loop", "concurrency": None, "request_rate": rate}
        facts |= {"arrivals": "poisson", "experiment": "rented", "stage": stage}
        told = info(**facts)
        write_stage(opened.stage_folder(told.key), told, [record(intended_at_s=0.5)])
    return opened


def test_stages_of_every_kind_say_what_was_asked(open_run_of_all):
    """A concurrency, or a rate with its arrivals: of a ramp the mean over the window."""
    frame = compute_metrics(open_run_of_all)

    asked = frame[["stage", "kind", "arrivals"]].to_numpy().tolist()
    assert asked[:3] == [
        ["concurrency-4", "closed_loop", ""],
        ["rate-3", "open_loop", "poisson"],
        ["rate-1-ramp", "open_loop", "ramp"],
    ]
    assert frame["concurrency"].to_list() == [4, pd.NA, pd.NA, 1]
    assert frame["request_rate_asked"].to_list() == close([math.nan, 3.0, 2.5, math.nan])
    assert frame["achieved_rate_ratio"].to_list()[1:3] == close([1 / 6, 1 / 5])
    assert frame["latency_mean"].to_list()[:3] == close([1.1, 1.6, 1.6])


def test_a_load_with_think_time_need_not_keep_its_places_full(open_run_of_all):
    """Of four users who pause, fewer than four are in flight, and the client is not to blame."""
    frame = compute_metrics(open_run_of_all)

    assert frame["mean_in_flight"].iloc[0] < 1
    assert frame["client_limited"].iloc[0] == ""
    assert frame["client_limited"].iloc[1].startswith("1 of 1 requests")


def test_metrics_of_every_kind_are_read_back_as_they_were_written(open_run_of_all):
    """A missing concurrency stays missing, and others stay whole numbers."""
    frame = compute_metrics(open_run_of_all)

    write_metrics(open_run_of_all, frame)

    assert str(frame["concurrency"].dtype) == "Int64"
    pd.testing.assert_frame_equal(read_metrics(open_run_of_all), frame)


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
    identity |= {"concurrency", "workload", "stage", "model", "kind", "arrivals"}
    identity |= {"request_rate_asked", "endpoint_kind"}

    assert set(summary(record())) == set(METRIC_COLUMNS) - identity

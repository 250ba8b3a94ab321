"""Budgets against metrics: verdicts, the cheapest stage that meets them all, and the reasons."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from conftest import QUICKSTART
from fmgauge.config import Config, load_config
from fmgauge.decision import (
    Budget,
    Decision,
    Recommendation,
    StageVerdict,
    budgets_of,
    decide,
    decision_json,
    read_decision,
    standing,
    write_decision,
)
from fmgauge.metrics import METRIC_COLUMNS, metrics_frame

DATA: dict[str, Any] = {
    "run": {"name": "t"},
    "workloads": [{"name": "w", "source": {"kind": "python_docs"}}],
    "experiments": [
        {
            "name": "e",
            "model": {"name": "m"},
            "endpoint": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"},
            "instance_type": "box",
            "workloads": ["w"],
            "load": [{"kind": "closed_loop", "concurrency": [1, 2, 4]}],
        }
    ],
}


def config(budgets: dict[str, Any], **changes: Any) -> Config:
    """A config with these budgets, and with changes at its top."""
    return Config.model_validate_json(json.dumps({**DATA, "budgets": budgets, **changes}))


def stage(concurrency: int = 1, usd: float = 0.01, **changes: Any) -> dict[str, Any]:
    """A stage of 40 requests that all succeeded in 0.5 s, at `usd` a transaction, with changes."""
    counts = {name: 0 for name in METRIC_COLUMNS if name.startswith("n_")}
    known = {
        "experiment_name": "e",
        "instance_type": "box",
        "instance_count": 1,
        "concurrency": concurrency,
        "workload": "w",
        "stage": f"concurrency-{concurrency}",
        "kind": "closed_loop",
        "arrivals": "",
        "client_limited": "",
        "held_back": 0,
        "status": "ok",
        "duration_s": 120.0,
        "warmup_s": 5.0,
        "warmup_end": "steady",
        "window_end": "asked",
        "n_requests": 40,
        "n_ok": 40,
        "error_rate": 0.0,
        "latency_mean": 0.5,
        "ttft_s_mean": 0.1,
        "price_per_txn": usd,
        "usd_per_10k_txn": usd * 1e4,
    }
    return {**counts, **known, **changes}


def rate(request_rate: float = 2.0, **changes: Any) -> dict[str, Any]:
    """The same stage in open loop, its TTFT of 0.3 s counted from the intended instants."""
    asked = {
        "kind": "open_loop",
        "arrivals": "poisson",
        "concurrency": None,
        "request_rate_asked": request_rate,
        "stage": f"rate-{request_rate:g}",
        "ttft_s_from_intended_mean": 0.3,
        "outstanding_mean": 1.0,
        "outstanding_growth": 0.0,
        "outstanding_growth_ci_low": -0.5,
    }
    return stage(**{**asked, **changes})


def nothing_ok(**changes: Any) -> dict[str, Any]:
    """A stage whose 40 requests all failed, as metrics tell it."""
    unknown = dict.fromkeys(("latency_mean", "ttft_s_mean"), math.nan)
    outcome = {"n_ok": 0, "n_failed": 40, "n_timeout": 40, "error_rate": 1.0}
    return stage(usd=math.nan, **{**unknown, **outcome, "latency_p50": math.inf, **changes})


def not_run(why: str = "nobody answered", **changes: Any) -> dict[str, Any]:
    """A stage that was never run, as metrics tell it."""
    unknown = {"n_requests": 0, "n_failed": 0, "n_timeout": 0, "error_rate": math.nan}
    return nothing_ok(status=f"not run: {why}", **{**unknown, **changes})


def decided(budgets: dict[str, Any], *stages: dict[str, Any], **changes: Any) -> Decision:
    """The decision on these stages under these budgets."""
    return decide(metrics_frame(list(stages)), config(budgets, **changes))


def answer(budgets: dict[str, Any], *stages: dict[str, Any]) -> Recommendation:
    """The recommendation for the only workload."""
    return decided(budgets, *stages).recommendations[0]


def verdicts(budgets: dict[str, Any], one: dict[str, Any]) -> list[tuple[str, str]]:
    """Metric and verdict of every check of one stage."""
    return [(check.metric, check.verdict) for check in decided(budgets, one).stages[0].checks]


def test_budgets_have_a_column_a_label_and_a_unit():
    """In the order of the report: latencies, cost, error rate; means without a suffix."""
    asked = {
        "latency_s": {"mean": 5, "p95": 6},
        "ttft_s": {"mean": 1},
        "tpot_s": {"p99": 0.1},
        "usd_per_10k_txn": 50,
        "error_rate": 0.01,
    }

    assert budgets_of(config(asked)) == (
        Budget("latency_mean", "Latency", 5.0, "s"),
        Budget("latency_p95", "Latency p95", 6.0, "s"),
        Budget("ttft_s_mean", "TTFT", 1.0, "s"),
        Budget("tpot_s_p99", "TPOT p99", 0.1, "s"),
        Budget("usd_per_10k_txn", "cost per 10k transactions", 50.0, "usd"),
        Budget("error_rate", "error rate", 0.01, ""),
    )


def test_every_possible_budget_binds_a_column():
    """Each limit that a config can ask for exists in the metrics table."""
    limits = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), 1)
    asked = {"latency_s": limits, "ttft_s": limits, "tpot_s": limits, "usd_per_10k_txn": 1}

    budgets = budgets_of(config(asked))

    assert len(budgets) == 17
    assert {budget.metric for budget in budgets} <= set(METRIC_COLUMNS)


def test_an_error_rate_is_always_asked_for():
    """Without budgets, no request may fail."""
    assert budgets_of(config({})) == (Budget("error_rate", "error rate", 0.0, ""),)


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency", "verdict", "reason"),
    [
        (0.9996, "PASS", "Latency 0.9996 s is within 1 s"),
        (1.0, "PASS", "Latency 1 s is within 1 s"),
        (1.0004, "FAIL", "Latency 1.0004 s is above 1 s by 0.04 %"),
        (2.345, "FAIL", "Latency 2.35 s is above 1 s by 130 %"),
    ],
)
def test_a_limit_is_the_most_that_is_allowed(latency, verdict, reason):
    """At the limit passes, a hair above fails; the figures in the reason tell them apart."""
    check = decided({"latency_s": {"mean": 1}}, stage(latency_mean=latency)).stages[0].checks[0]

    assert (check.value, check.verdict, check.reason) == (latency, verdict, reason)


def test_a_cost_above_its_budget_is_told_in_dollars():
    """$61.83 against $50 is 24 % above."""
    checks = decided({"usd_per_10k_txn": 50}, stage(usd=0.006183)).stages[0].checks

    assert checks[0].reason == "cost per 10k transactions $61.83 is above $50 by 24 %"


def test_any_failure_is_above_an_error_rate_of_zero():
    """One of 40 failed: no ratio to 0 is printed."""
    check = decided({}, stage(n_ok=39, n_failed=1, error_rate=0.025)).stages[0].checks[0]

    assert (check.verdict, check.reason) == ("FAIL", "error rate 0.025 is above 0")


def test_a_percentile_that_the_sample_cannot_carry_is_undecided():
    """40 requests carry no p95; the stage does not meet the budgets, and says what is missing."""
    verdict = decided({"latency_s": {"p95": 5}}, stage(latency_p95=math.nan)).stages[0]

    assert verdict.checks[0].verdict == "UNDECIDED"
    assert verdict.checks[0].value is None
    assert verdict.checks[0].reason == "Latency p95 needs ≥ 72 requests, has 40"
    assert not verdict.meets_budgets


def test_a_figure_that_no_budget_binds_fails_nothing():
    """A p99 that is not available does not matter to a budget on the mean."""
    one = stage(latency_p95=math.nan, latency_p99=math.nan, ttft_s_mean=math.nan)

    assert decided({"latency_s": {"mean": 1}}, one).stages[0].meets_budgets


def test_an_undefined_latency_is_undecided():
    """Answers of one token have no TPOT, however many there are."""
    check = decided({"tpot_s": {"mean": 1}}, stage(tpot_s_mean=math.nan)).stages[0].checks[0]

    assert check.verdict == "UNDECIDED"
    assert check.reason == "TPOT is not defined for enough of the 40 requests"


def test_a_percentile_of_an_undefined_latency_does_not_ask_for_more_requests():
    """Where nothing streams there is no TTFT, and 72 requests would have none either."""
    one = stage(ttft_s_mean=math.nan, ttft_s_p95=math.nan)

    check = decided({"ttft_s": {"p95": 1}}, one).stages[0].checks[0]

    assert check.reason == "TTFT p95 is not defined for enough of the 40 requests"


def test_a_window_in_which_no_request_was_sent_decides_nothing():
    """Where one request outlasts the window, no budget was shown to be missed."""
    asked = {"latency_s": {"mean": 9}, "error_rate": 1}
    one = {**not_run(), "status": "ok"}

    assert {verdict for _, verdict in verdicts(asked, one)} == {"UNDECIDED"}
    assert decided(asked, one).stages[0].checks[0].reason == "no request was measured"


def test_a_stage_whose_turn_has_not_come_failed_nothing():
    """An interrupted run says that it is not finished, and what it lacks is undecided."""
    found = decided({"latency_s": {"mean": 9}}, stage(1), not_run("no records", concurrency=2))

    assert {check.verdict for check in found.stages[1].checks} == {"UNDECIDED"}
    assert found.recommendations[0].reason.endswith(
        "The run is not finished: 1 of 2 stages have no records."
    )


def test_a_percentile_on_a_failed_request_fails():
    """It is infinite in the metrics and has no value in the decision."""
    one = stage(latency_p95=math.inf, n_requests=80, n_ok=75, n_failed=5, error_rate=0.0625)

    check = decided({"latency_s": {"p95": 5}, "error_rate": 0.5}, one).stages[0].checks[0]

    assert (check.value, check.verdict) == (None, "FAIL")
    assert check.reason == "Latency p95 falls on a failed request: 5 of 80 requests failed"


@pytest.mark.parametrize("one", [nothing_ok(), not_run()])
def test_a_stage_without_a_success_fails_every_budget(one):
    """Latency, price and even an error rate that allows everything."""
    asked = {"latency_s": {"mean": 9, "p50": 9}, "usd_per_10k_txn": 9e9, "error_rate": 1}

    assert {verdict for _, verdict in verdicts(asked, one)} == {"FAIL"}


def test_a_stage_that_was_not_run_says_so_in_its_checks():
    """The endpoint's own error is the reason."""
    check = decided({"latency_s": {"mean": 9}}, not_run("no such port")).stages[0].checks[0]

    assert check.reason == "not run: no such port"


# --- open loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "level", "label"),
    [
        (stage(4), (4, None, None), "4 in flight"),
        (rate(2.5), (None, 2.5, "poisson"), "2.5 requests/s"),
        (rate(1.0, arrivals="constant"), (None, 1.0, "constant"), "1 request/s (constant)"),
    ],
)
def test_a_verdict_names_its_load_level(one, level, label):
    """Requests in flight in closed loop, requests a second in open loop."""
    verdict = decided({}, one).stages[0]

    assert (verdict.concurrency, verdict.request_rate, verdict.arrivals) == level
    assert verdict.label == label


def test_a_ttft_budget_binds_what_counts_in_each_kind_of_loop():
    """0.1 s from sending in closed loop; 0.3 s from the intended instant in open loop."""
    checks = [
        one.checks[0] for one in decided({"ttft_s": {"mean": 0.2}}, stage(1), rate(2.0)).stages
    ]

    assert [(c.metric, c.column, c.value, c.verdict) for c in checks] == [
        ("ttft_s_mean", "ttft_s_mean", 0.1, "PASS"),
        ("ttft_s_mean", "ttft_s_from_intended_mean", 0.3, "FAIL"),
    ]


def test_too_few_requests_are_told_of_an_open_loop_too():
    """The percentile that is missing is the one from the intended instants."""
    check = decided({"ttft_s": {"p95": 1}}, rate()).stages[0].checks[0]

    assert check.reason == "TTFT p95 needs ≥ 72 requests, has 40"


def test_both_kinds_of_load_compete_for_one_recommendation():
    """The cheaper open-loop stage wins, and is named by its rate."""
    found = answer({"latency_s": {"mean": 1}}, stage(4, usd=0.02), rate(2.0, usd=0.01))

    assert found.reason == (
        "e on box at 2 requests/s costs $100 per 10k transactions at a mean latency of 0.5 s; "
        "it is the cheapest of the 2 of 2 stages that meet every budget. e was tried with no more "
        "than 2 requests/s, which keeps every budget: a higher load may be cheaper still."
    )


# --- the recommendation --------------------------------------------------------------------------


def test_the_cheapest_stage_within_budget_is_chosen():
    """Not the highest concurrency, and not a cheaper one that breaks the latency budget."""
    found = answer(
        {"latency_s": {"mean": 1}},
        stage(1, usd=0.03),
        stage(2, usd=0.01),
        stage(4, usd=0.02),
        stage(8, usd=0.001, latency_mean=1.5),
    )

    assert found.chosen is not None
    assert (found.chosen.concurrency, found.closest) == (2, None)
    assert found.reason == (
        "e on box at 2 in flight costs $100 per 10k transactions at a mean latency of 0.5 s; "
        "it is the cheapest of the 3 of 4 stages that meet every budget."
    )


def test_a_tie_in_price_goes_to_the_lower_latency():
    """Equal prices, 0.5 s against 0.4 s."""
    found = answer({}, stage(1), stage(2, latency_mean=0.4))

    assert found.chosen is not None
    assert found.chosen.concurrency == 2
    assert "the lowest latency at that price" in found.reason


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], "it meets every budget and is the only stage."),
        ([nothing_ok()], "it is the only one of 2 stages that meets every budget."),
    ],
)
def test_a_single_winner_is_called_that(others, words):
    """Nothing is called the cheapest of one."""
    assert words in answer({}, stage(1), *others).reason


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.1, 2)), min_size=1, max_size=8))
def test_no_stage_within_budget_is_cheaper_than_the_chosen_one(pairs):
    """Whatever the prices and latencies, by exhaustive comparison."""
    stages = [stage(i + 1, usd=u, latency_mean=s) for i, (u, s) in enumerate(pairs)]
    within = [usd for usd, latency in pairs if latency <= 1]

    found = answer({"latency_s": {"mean": 1}}, *stages)

    chosen = found.chosen.price_per_txn if found.chosen else None
    assert chosen == (min(within) if within else None)
    assert (found.closest is None) == bool(within)


def test_without_a_winner_the_fewest_failed_budgets_come_closest():
    """One budget far missed is closer than two barely missed."""
    found = answer(
        {"latency_s": {"mean": 1}, "ttft_s": {"mean": 1}},
        stage(1, latency_mean=1.01, ttft_s_mean=1.01),
        stage(2, latency_mean=9.0),
    )

    assert found.chosen is None
    assert found.closest is not None
    assert found.closest.concurrency == 2
    assert found.reason == (
        "None of 2 stages meets every budget. Closest is e on box at 2 in flight: "
        "Latency 9 s is above 1 s by 800 %."
    )


def test_among_equally_many_failures_the_smallest_overshoot_comes_closest():
    """1.2 times a latency limit is closer than 1.5 times a cost limit."""
    found = answer(
        {"latency_s": {"mean": 1}, "usd_per_10k_txn": 100},
        stage(1, usd=0.015),
        stage(2, usd=0.009, latency_mean=1.2),
    )

    assert found.closest is not None
    assert found.closest.concurrency == 2


def test_fewer_errors_come_closer_under_an_error_rate_of_zero():
    """No ratio to 0 exists, yet 1 failure in 40 is closer than 20."""
    many = stage(1, n_ok=20, n_failed=20, error_rate=0.5)
    few = stage(2, usd=0.02, n_ok=39, n_failed=1, error_rate=0.025)

    found = answer({}, many, few)

    assert found.closest is not None
    assert found.closest.concurrency == 2


def test_an_undecided_stage_is_never_chosen_but_comes_closest():
    """Too few samples for the p95 is not a pass, and less far than a failure."""
    found = answer(
        {"latency_s": {"p95": 1}},
        stage(1, latency_p95=1.01, n_requests=100, n_ok=100),
        stage(2, latency_p95=math.nan),
    )

    assert found.chosen is None
    assert found.closest is not None
    assert found.closest.concurrency == 2
    assert "needs ≥ 72 requests, has 40" in found.reason


def test_a_stage_that_was_not_run_never_comes_closest():
    """What was measured and failed is closer than what was not measured."""
    found = answer({"latency_s": {"mean": 1}}, not_run(), nothing_ok(concurrency=2))

    assert found.closest is not None
    assert found.closest.concurrency == 2
    assert found.reason.endswith(
        "no request succeeded: 40 of 40 failed. 1 of 2 stages was not run."
    )


def test_nothing_measured_is_said_plainly():
    """No stage comes closest where none was run; each cause is told once."""
    found = answer({}, not_run(), not_run(concurrency=2))

    assert (found.chosen, found.closest) == (None, None)
    assert found.reason == (
        "No stage can be recommended: nothing was measured (not run: nobody answered)."
    )


def test_a_stage_of_unknown_price_is_not_recommended():
    """Tokens that nobody counted have no price, so there is no cheapest."""
    found = answer({}, stage(usd=math.nan))

    assert found.chosen is None
    assert "the price is unknown" in found.reason


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"instance_type": "per-token", "duration_s": 0.0}, "tokens were not counted"),
        ({"duration_s": 0.0}, "the window has no length, as where it held a single request"),
        ({"duration_s": 9.0}, "no successful request was under way in the window"),
    ],
)
def test_a_price_is_unknown_for_the_reason_that_is_given(changes, why):
    """An hourly price needs a window and a rate in it; only a price per token needs tokens."""
    one = stage(usd=math.nan, **changes)

    assert f"the price is unknown: {why}." in answer({}, one).reason
    found = decided({"usd_per_10k_txn": 1.0}, one).stages[0].checks[0]
    assert found.reason == f"cost per 10k transactions is unknown: {why}"


def test_answers_that_came_all_at_once_are_why_there_is_no_tpot():
    """39 of the 40: the one that is left is not enough."""
    one = stage(tpot_s_mean=math.nan, n_unstreamed=39)

    check = decided({"tpot_s": {"mean": 1}}, one).stages[0].checks[0]

    assert check.reason == (
        "TPOT is not defined for enough of the 40 requests: of 40 answers 39 came all at once"
    )


def test_a_stage_of_unknown_price_is_not_said_to_miss_a_budget():
    """It meets them all: it is neither beaten by a cheaper one nor among those that missed."""
    budgets, unpriced = {"latency_s": {"mean": 1}}, stage(1, usd=math.nan)

    without = answer(budgets, unpriced, stage(2, latency_mean=2.0, usd=math.nan))
    beside = answer(budgets, unpriced, stage(2))

    assert without.reason.startswith("None of 2 stages can be recommended. Closest is e on box")
    assert "the only one of 2 stages that meets every budget at a known price." in beside.reason


def test_each_instance_type_has_its_own_answer():
    """In the config's order, beside the answer over all of them."""
    found = decided(
        {"latency_s": {"mean": 1}},
        stage(1, usd=0.02, instance_type="large"),
        stage(1, usd=0.01, instance_type="small"),
        stage(1, usd=0.03, instance_type="slow", latency_mean=2.0),
    )

    answers = [(r.instance_type, r.chosen and r.chosen.price_per_txn) for r in found.per_instance]

    assert found.recommendations[0].chosen == found.stages[1]
    assert answers == [("large", 0.02), ("small", 0.01), ("slow", None)]


def test_each_workload_has_its_own_answer():
    """A stage of one workload never answers for another."""
    workloads = [{"name": n, "source": {"kind": "python_docs"}} for n in ("short", "long")]
    found = decided(
        {},
        stage(workload="short", usd=0.02),
        stage(workload="long", usd=0.01),
        workloads=workloads,
        experiments=[{**DATA["experiments"][0], "workloads": ["short", "long"]}],
        report={"workload_of_interest": "long"},
    )

    answers = [(r.workload, r.chosen and r.chosen.price_per_txn) for r in found.recommendations]

    assert answers == [("short", 0.02), ("long", 0.01)]
    assert found.workload_of_interest == "long"


# --- the file ------------------------------------------------------------------------------------

DECISIONS = {
    "a winner": ({"latency_s": {"mean": 1}}, [stage(1), stage(2, usd=1 / 3)]),
    "no winner": ({"latency_s": {"mean": 0.1, "p95": 1}}, [stage(1), nothing_ok()]),
    "nothing run": ({"usd_per_10k_txn": 3}, [not_run()]),
    "caveats": ({}, [stage(1, client_limited="it was late"), stage(2, warmup_end="capped")]),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_is_read_back_exactly(name, tmp_path: Path):
    """Equal in every figure, None where there was none, and tuples again."""
    budgets, stages = DECISIONS[name]
    decision = decided(budgets, *stages)

    write_decision(tmp_path / "decision.json", decision)

    assert read_decision(tmp_path / "decision.json") == decision


@pytest.mark.parametrize("name", DECISIONS)
def test_decision_json_is_standard_json(name):
    """No NaN and no infinity, which JSON does not know."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    budgets, stages = DECISIONS[name]

    assert json.loads(decision_json(decided(budgets, *stages)), parse_constant=refuse)


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=30))
def test_any_figure_and_any_words_survive_the_file(tmp_path_factory, value, words):
    """Floats to the last bit and every character."""
    verdict = StageVerdict("e", "w", "s", None, value, words, words, value, True, ())
    decision = Decision("w", (), (verdict,), (Recommendation("w", None, verdict, None, words),), ())
    path = tmp_path_factory.mktemp("decision") / "decision.json"

    write_decision(path, decision)

    assert read_decision(path) == decision


def test_a_file_that_holds_no_decision_is_refused(tmp_path: Path):
    """Not read as an empty decision."""
    (tmp_path / "decision.json").write_text("{}")

    with pytest.raises(ValidationError):
        read_decision(tmp_path / "decision.json")


def test_the_quickstart_s_budgets_bind_means():
    """Its short stages carry what its budgets ask."""
    metrics = [budget.metric for budget in budgets_of(load_config(QUICKSTART).config)]

    assert metrics == ["latency_mean", "ttft_s_mean", "usd_per_10k_txn", "error_rate"]


# --- levels, edges, ramps ------------------------------------------------------------------------


def test_a_ramp_is_never_recommended():
    """However cheap, its load was not one level; that it was left out is said."""
    found = answer({}, rate(6.5, arrivals="ramp", stage="rate-6.5-ramp", usd=0.001), rate(2.0))

    assert found.chosen is not None
    assert found.chosen.request_rate == 2.0
    assert "1 ramp is left out, for the load of a ramp is not one level." in found.reason


def test_ramps_alone_give_no_recommendation():
    """What came closest is told all the same."""
    found = answer({}, rate(6.5, arrivals="ramp"))

    assert found.chosen is None
    assert found.closest is not None
    assert found.reason.startswith("No stage can be recommended: only ramps were measured")


def test_the_edge_of_what_was_tried_is_told():
    """Four in flight kept every budget, and nobody tried more."""
    found = answer({"latency_s": {"mean": 1}}, stage(1, usd=0.02), stage(4, usd=0.01))

    assert "e was tried with no more than 4 in flight, which keeps every budget" in found.reason


def test_a_level_above_the_chosen_one_that_fails_leaves_no_edge():
    """Eight in flight were tried, and were too slow."""
    too_slow = stage(8, usd=0.005, latency_mean=2.0)

    found = answer({"latency_s": {"mean": 1}}, stage(4, usd=0.01), too_slow)

    assert found.chosen is not None
    assert found.chosen.concurrency == 4
    assert "was tried with no more than" not in found.reason


# --- stages that are not valid -------------------------------------------------------------------

BUSY = {"client_limited": "one core was 97 % busy"}
BUSY_WORDS = "the client was the bottleneck: one core was 97 % busy"
BEHIND = {
    "outstanding_growth": 38.0,
    "outstanding_growth_ci_low": 12.0,
    "outstanding_mean": 52.0,
}


@pytest.mark.parametrize(
    "cause",
    [
        BUSY,
        BEHIND,
        {"warmup_end": "capped"},
        {"warmup_end": "overloaded"},
        {"window_end": "overloaded"},
    ],
)
def test_a_stage_that_is_not_valid_is_never_recommended(cause):
    """However cheap it is; neither over all nor on its instance type."""
    found = decided({}, rate(2.0, usd=0.02), rate(4.0, usd=0.01, **cause))

    for one in (*found.recommendations, *found.per_instance):
        assert one.chosen == found.stages[0]


def test_a_cheaper_stage_that_is_not_valid_is_named_as_left_out():
    """In one sentence with its caveat; a dearer one does not matter."""
    found = answer({}, stage(1, usd=0.02), stage(4, usd=0.01, **BUSY), stage(8, usd=0.03, **BUSY))

    assert found.reason == (
        "e on box at 1 in flight costs $200 per 10k transactions at a mean latency of 0.5 s; it "
        "is the only one of 3 stages that meets every budget and is valid. Left out: 1 cheaper "
        f"stage that is not valid: e on box at 4 in flight ({BUSY_WORDS})."
    )


def test_the_winner_is_the_cheapest_of_the_valid_stages():
    """What else meets every budget is not counted among those that it beat."""
    found = answer({}, stage(1, usd=0.02), stage(2, usd=0.03), stage(4, usd=0.01, **BUSY))

    words = "the cheapest of the 2 of 3 stages that meet every budget and are valid."
    assert words in found.reason


def test_without_a_valid_stage_within_budget_nothing_is_chosen_and_the_reason_says_why():
    """So that the run ends with exit code 3; what came closest is the only stage."""
    found = answer({}, stage(4, **BUSY))

    assert (found.chosen, found.closest and found.closest.concurrency) == (None, 4)
    assert found.reason == (
        "1 stage that meets every budget is not valid: e on box at 4 in flight "
        f"({BUSY_WORDS}). The figures are partly those of the machine that sent the load."
    )


def test_a_valid_stage_that_missed_comes_closer_than_one_that_is_not_valid():
    """The reason names those that would have met the budgets first, three of them at most."""
    invalid = [stage(2**n, usd=0.01 * n, **BUSY) for n in range(1, 6)]

    found = answer({"latency_s": {"mean": 1}}, *invalid, stage(64, latency_mean=1.5))

    assert found.chosen is None
    assert found.closest is not None
    assert found.closest.concurrency == 64
    assert found.reason == (
        "5 stages that meet every budget are not valid: "
        + "".join(f"e on box at {level} in flight ({BUSY_WORDS}); " for level in (2, 4, 8))
        + "and 2 more. Closest is e on box at 64 in flight: Latency 1.5 s is above 1 s by 50 %."
    )


def test_a_closest_stage_that_is_not_valid_says_so():
    """It misses a budget, and its figures are partly the client's."""
    found = answer({"latency_s": {"mean": 0.1}}, stage(4, **BUSY))

    assert found.reason == (
        "The only stage, e on box at 4 in flight, does not qualify: Latency 0.5 s is above 0.1 s "
        "by 400 %. The client was the bottleneck: one core was 97 % busy. The figures are partly "
        "those of the machine that sent the load."
    )


def test_a_stage_that_was_measured_comes_closer_than_one_without_a_request():
    """It missed a budget; the other has a price alone, from answers to its warm-up."""
    nothing = {**not_run(), "status": "ok", "price_per_txn": 0.001, "usd_per_10k_txn": 10.0}
    budgets = {"latency_s": {"mean": 1}, "usd_per_10k_txn": 500}

    found = answer(budgets, nothing, stage(2, latency_mean=9.0, **BUSY))

    assert found.closest is not None
    assert found.closest.concurrency == 2


def test_a_stage_that_is_not_valid_is_no_edge_to_go_beyond():
    """Where the client was the bottleneck at four in flight, more load proves nothing."""
    found = decided({}, stage(1, usd=0.02), stage(4, usd=0.01, **BUSY))

    assert not found.stages[1].could_be_cheaper(found.stages)
    assert "may be cheaper still" not in found.recommendations[0].reason


def test_stages_stand_in_one_order():
    """Figures first, then levels, then what is valid, then the budgets, price and latency."""
    budgets = {"latency_s": {"mean": 1, "p95": 5}}
    quick = {"latency_p95": 1.0}
    ordered = [
        stage(1, usd=0.01, latency_mean=0.4, **quick),
        stage(2, usd=0.01, **quick),
        stage(3, usd=0.02, **quick),
        stage(4),  # no p95: undecided
        stage(5, usd=0.001, latency_mean=1.2, **quick),
        stage(6, usd=0.001, latency_mean=1.5, **quick),
        stage(7, usd=0.001, **quick, **BUSY),
        rate(8.0, usd=0.001, latency_p95=1.0, arrivals="ramp"),
        {**not_run(concurrency=9), "status": "ok"},
        not_run(concurrency=10),
    ]
    expected = decided(budgets, *ordered).stages

    found = sorted(decided(budgets, *reversed(ordered)).stages, key=standing)

    assert [one.label for one in found[:-2]] == [one.label for one in expected[:-2]]
    assert {one.label for one in found[-2:]} == {one.label for one in expected[-2:]}


def test_what_does_not_make_a_stage_invalid_is_said_with_the_answer():
    """It is chosen all the same."""
    found = answer({}, stage(1, window_end="capped", latency_mean=15.0))

    assert found.chosen is not None
    assert found.reason.endswith(
        "Too few requests were measured: 40 in 120 s, the longest window, are fewer than the "
        "budgets need. Set a higher duration_max_s. The window was short: 120 s is less than ten "
        "mean latencies of 15 s. Set a higher duration_s where small differences matter."
    )


def test_a_decision_from_before_caveats_is_read(tmp_path: Path):
    """Its stages have none, and all else is as it was."""
    decision = decided({}, stage(1), stage(4, **BUSY))
    kept = json.loads(decision_json(decision))
    for one in (*kept["stages"], kept["recommendations"][0]["chosen"]):
        del one["caveats"], one["latency_mean_s"]
    (tmp_path / "decision.json").write_text(json.dumps(kept))

    found = read_decision(tmp_path / "decision.json")

    assert [one.caveats for one in found.stages] == [(), ()]
    assert [one.checks for one in found.stages] == [one.checks for one in decision.stages]

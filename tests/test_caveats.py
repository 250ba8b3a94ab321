"""What must be said with a stage's figures: when, in which words, and what is not valid."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmgauge.decision import (
    CAVEAT_CODES,
    Caveat,
    Decision,
    StageVerdict,
    caveats_of,
    decision_json,
    read_decision,
)

INVALID = {"fell_behind", "client_limited", "not_steady", "nothing_measured"}
GROWN = {"outstanding_growth": 38.0, "outstanding_growth_ci_low": 12.0, "outstanding_mean": 52.0}


def row(**changes: Any) -> dict[str, Any]:
    """An open-loop stage with nothing to be said: 120 requests of 0.5 s in 30 s, with changes."""
    quiet = {
        "status": "ok",
        "n_requests": 120,
        "n_unsent": 0,
        "duration_s": 30.0,
        "latency_mean": 0.5,
        "client_limited": "",
        "warmup_s": 5.0,
        "warmup_end": "steady",
        "window_end": "asked",
        "outstanding_mean": 2.0,
        "outstanding_growth": 0.1,
        "outstanding_growth_ci_low": -0.3,
    }
    return {**quiet, **changes}


CASES = {  # one stage a wording: its code, what its metrics have, and the caveat in a table
    "grown": (
        "fell_behind",
        GROWN,
        "the stage fell behind: unanswered requests grew by 38 in 30 s, with 52 on average",
    ),
    "ended in its warm-up": (
        "fell_behind",
        {"warmup_end": "overloaded"},
        "the stage fell behind: a backlog grew in the warm-up of 5 s",
    ),
    "drained": (
        "not_steady",
        {
            "outstanding_growth": -38.0,
            "outstanding_growth_ci_low": -45.0,
            "outstanding_mean": 52.0,
        },
        "the load was not steady: unanswered requests fell by 38 in 30 s, with 52 on average",
    ),
    "ended in its window": (
        "fell_behind",
        {"window_end": "overloaded", "duration_s": 7.25},
        "the stage fell behind: a backlog grew, so the window was ended after 7.25 s",
    ),
    "client": (
        "client_limited",
        {"client_limited": "the client used 97 % of a core"},
        "the client was the bottleneck: the client used 97 % of a core",
    ),
    "not steady": (
        "not_steady",
        {"warmup_end": "capped", "warmup_s": 120.0},
        "the load was not steady: the warm-up reached its longest, 120 s, before the load was "
        "steady",
    ),
    "nothing": (
        "nothing_measured",
        {"n_requests": 0, "latency_mean": math.nan},
        "no request was measured: none began in the window of 30 s",
    ),
    "too few": (
        "too_few_requests",
        {"window_end": "capped"},
        "too few requests were measured: 120 in 30 s, the longest window, are fewer than the "
        "budgets need",
    ),
    "short": (
        "short_window",
        {"latency_mean": 3.256},
        "the window was short: 30 s is less than ten mean latencies of 3.26 s",
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_a_stage_has_the_caveat_that_its_metrics_show(name: str) -> None:
    """That one, and no other."""
    code, changes, _ = CASES[name]

    assert [caveat.code for caveat in caveats_of(row(**changes))] == [code]


@each_case
def test_a_caveat_is_worded_with_its_own_numbers(name: str) -> None:
    """Short for tables; long as that sentence with what follows from it, no place left empty."""
    _, changes, short = CASES[name]

    (caveat,) = caveats_of(row(**changes))

    assert caveat.short == short
    assert caveat.long == f"{short[0].upper()}{short[1:]}. {caveat.meaning}"
    assert caveat.meaning.endswith(".")


def test_every_code_is_among_the_cases() -> None:
    """A new code needs a case here, and hence both wordings."""
    assert {code for code, *_ in CASES.values()} == {*CAVEAT_CODES}


@each_case
def test_some_caveats_make_a_stage_invalid(name: str) -> None:
    """Few requests and a short window do not."""
    code, changes, _ = CASES[name]

    (caveat,) = caveats_of(row(**changes))

    assert caveat.is_invalid is (code in INVALID)


def test_a_stage_in_order_has_no_caveat() -> None:
    """Nor has one of a run from before steady state was looked at."""
    older = dict.fromkeys(("warmup_end", "window_end"), "")
    unknown = dict.fromkeys(("outstanding_growth", "outstanding_growth_ci_low"), math.nan)

    assert caveats_of(row()) == ()
    assert caveats_of(row(**older, **unknown, outstanding_mean=math.nan)) == ()


def test_a_stage_that_was_not_run_has_no_caveat() -> None:
    """Its status says all there is to say."""
    assert caveats_of(row(status="not run: no such port", n_requests=0)) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"outstanding_growth_ci_low": 0.0},  # it may be chance
        {"outstanding_mean": 380.0},  # 10 % of what was unanswered all along
        {"n_requests": 361},  # 2 · √361 = 38: Poisson arrivals do that by themselves
        {"n_requests": 120, "n_unsent": 241},  # what was due and never sent counts among them
    ],
)
def test_a_backlog_that_may_be_none_is_no_caveat(changes: dict[str, Any]) -> None:
    """Each of the three limits must be passed, not reached."""
    assert caveats_of(row(**{**GROWN, **changes})) == ()


def test_answers_longer_than_the_window_are_no_backlog() -> None:
    """4 requests/s of 15 s each in 30 s: 60 unanswered at any time, though fewer were served."""
    steady = row(latency_mean=15.0, outstanding_mean=60.0, outstanding_growth=1.0)

    assert [caveat.code for caveat in caveats_of(steady)] == ["short_window"]


def test_several_caveats_stand_together() -> None:
    """The invalidating ones first."""
    one = row(**GROWN, client_limited="it was late", latency_mean=9.0)

    found = [caveat.code for caveat in caveats_of(one)]

    assert found == ["fell_behind", "client_limited", "short_window"]


@given(
    st.dictionaries(
        st.text(max_size=9), st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30)
    )
)
def test_any_number_of_a_caveat_survives_the_file(tmp_path_factory, numbers):
    """Text stays text even where it looks like a number, and floats keep their last bit."""
    caveats = (Caveat("client_limited", numbers), Caveat("short_window", {"text": "12"}))
    stage = StageVerdict("e", "w", "s", 1, None, None, "box", 0.1, True, (), caveats=caveats)
    path = tmp_path_factory.mktemp("decision") / "decision.json"

    path.write_bytes(decision_json(Decision("w", (), (stage,), (), ())))

    assert read_decision(path).stages[0].caveats == caveats

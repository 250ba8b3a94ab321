"""Which stage to buy: budgets against metrics, and the cheapest valid stage that meets them all.

Knows budgets, prices per transaction and what makes a stage invalid; knows no plots, clocks or
endpoints. A Decision holds no NaN and no infinity: what could not be measured is None, with the
reason in words.
"""

from fmgauge.decision.answers import (
    Decision,
    Recommendation,
    decide,
    edge_caveat,
    left_out_sentence,
    next_edge_caveat,
)
from fmgauge.decision.budgets import Budget, budgets_of, column_of
from fmgauge.decision.caveats import CAVEAT_CODES, Caveat, CaveatCode, caveats_of
from fmgauge.decision.files import decision_json, read_decision, write_decision
from fmgauge.decision.verdicts import BudgetCheck, StageVerdict, standing

__all__ = [
    "CAVEAT_CODES",
    "Budget",
    "BudgetCheck",
    "Caveat",
    "CaveatCode",
    "Decision",
    "Recommendation",
    "StageVerdict",
    "budgets_of",
    "caveats_of",
    "column_of",
    "decide",
    "decision_json",
    "edge_caveat",
    "left_out_sentence",
    "next_edge_caveat",
    "read_decision",
    "standing",
    "write_decision",
]

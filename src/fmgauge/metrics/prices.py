"""What a stage's transactions and tokens cost. Knows rates and token counts; no budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fmgauge.metrics.columns import PRICE_COLUMNS, Value, ratio, with_interval
from fmgauge.metrics.requests import Floats, Requests
from fmgauge.pricing import Price
from fmgauge.statistics import mean_interval

Figures = Mapping[str, Value]


def prices(
    price: Price, rates: Figures, measured: Requests, latency: Figures, *, holds_level: bool
) -> dict[str, Value]:
    """What a stage's transactions cost; no price where none that was measured succeeded.

    `measured` are in sending order. `latency` holds the mean latency and its interval, which tell
    how certain an hourly price is where the load holds a constant number in flight.
    """
    ok = measured[measured.ok]
    if not len(ok):
        return dict.fromkeys(PRICE_COLUMNS, math.nan)
    low, high = math.nan, math.nan
    if price.usd_per_hour is None:
        per_txn, per_output, per_total = _token_prices(price, ok)
        low, high = mean_interval(_request_prices(price, ok))
    else:
        per_txn, per_output, per_total = _hourly_prices(price.usd_per_hour, rates)
        if len(ok) == len(measured) and holds_level:
            low, high = _hourly_interval(per_txn, latency)
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


def _hourly_prices(usd_per_hour: float, rates: Figures) -> tuple[float, float, float]:
    """USD per transaction, per output token and per token, while the window's load lasts."""
    usd_per_s = usd_per_hour / 3600
    output = _number(rates, "completion_token_throughput")
    total = output + _number(rates, "prompt_token_throughput")
    per_txn = ratio(usd_per_s, _number(rates, "request_rate"))
    return per_txn, ratio(usd_per_s, output), ratio(usd_per_s, total)


def _hourly_interval(per_txn: float, latency: Figures) -> tuple[float, float]:
    """The price's interval in a closed loop, where by Little's law it goes with the mean latency.

    The rate is the constant number in flight divided by the mean latency, so a mean that is known
    to within 5 % makes a price that is known to within 5 %. Not so where requests failed, for then
    the rate goes with the time that failures took, too; nor in open loop, where the rate is asked,
    nor with think time.
    """
    mean, *bounds = (_number(latency, name) for name in with_interval("latency_mean"))
    low, high = (per_txn * ratio(bound, mean) for bound in bounds)
    return low, high


def _request_prices(price: Price, ok: Requests) -> Floats:
    """What each successful request cost by its tokens."""
    per_prompt_token, per_output_token = price.tokens_usd(1, 0), price.tokens_usd(0, 1)
    return ok.prompt_tokens * per_prompt_token + ok.output_tokens * per_output_token


def _token_prices(price: Price, ok: Requests) -> tuple[float, float, float]:
    """USD per transaction, per output token and per token, over the ok measured requests."""
    prompt, output = float(ok.prompt_tokens.sum()), float(ok.output_tokens.sum())
    spent = price.tokens_usd(prompt, output)
    return ratio(spent, len(ok)), ratio(spent, output), ratio(spent, prompt + output)


def _number(figures: Figures, name: str) -> float:
    return float(figures[name] or 0.0)

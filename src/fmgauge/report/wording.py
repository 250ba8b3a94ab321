"""Numbers as a reader meets them: rounding, units, and what stands where a number is missing.

Knows how many digits tell something; not where a number comes from.
"""

from __future__ import annotations

import math
from decimal import Decimal


def decimals(value: float) -> int:
    """Digits after the point that keep three significant ones, and two at least."""
    if value == 0 or not math.isfinite(value):
        return 2
    return min(10, max(2, 2 - math.floor(math.log10(abs(value)))))


def fixed(value: float) -> str:
    """A number with two decimals, or more where it is small: 89.54, 2.80, 0.0465."""
    return f"{value:.{decimals(value)}f}"


def short(value: float) -> str:
    """A number as `fixed` rounds it, without trailing zeros: 2.86, 2.9, 0.0."""
    if value != 0 and abs(value) < 0.001:
        return fixed(value).rstrip("0")
    return str(round(float(value), decimals(value)))


def whole(value: float) -> str:
    """A count or a rate without decimals; three significant digits below 10."""
    return f"{value:.0f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def limit(value: float) -> str:
    """A limit as the user wrote it: 5, 0.8, 50."""
    return f"{value:.12g}"


def seconds(value: float) -> str:
    """A limit in words: 5 seconds, 1 second, 0.8 seconds."""
    return f"{limit(value)} second" + ("" if value == 1 else "s")


def milliseconds(value_s: float) -> str:
    """Seconds as milliseconds, without the unit."""
    milli = value_s * 1000
    return f"{milli:.0f}" if milli >= 100 or milli == 0 else f"{milli:.{decimals(milli / 10) - 1}f}"


def like(shown: str, value: float) -> str:
    """`value` with as many decimals as the number that `shown` is."""
    return f"{value:.{len(shown.partition('.')[2])}f}"


def price(value: float) -> str:
    """An amount in USD to the millionth, or to three significant digits below: 0.003167."""
    return f"{value:.{max(6, decimals(value))}f}"


def usd(value: float) -> str:
    """A price to compare with others: $89.54, $0.0465."""
    return f"${fixed(value)}"


def usd_listed(value: float) -> str:
    """A price as a list gives it: $0.10, $15.58, $0.0034."""
    cents = f"{value:,.2f}"
    return f"${cents}" if float(cents.replace(",", "")) == value else f"${value:.12g}"


def usd_total(value: float) -> str:
    """An amount to pay: to the cent, or to two significant digits below a cent."""
    if value == 0 or abs(value) >= 0.005:
        return f"${value:,.2f}"
    return f"${value:.{1 - math.floor(math.log10(abs(value)))}f}"


def span(low: float, high: float) -> str:
    """Two numbers of three significant digits as a span: 1 to 13.1, or 3 where they are alike."""
    least, most = (f"{Decimal(f'{value:.3g}'):f}" for value in (low, high))
    return least if least == most else f"{least} to {most}"


def percent(share: float) -> str:
    """A share as a percentage: 0 %, 3.1 %, 1230 %; 100 % only where nothing lacks."""
    number = f"{share * 100:.3g}"
    if number == "100" and share < 1 and not math.isclose(share, 1):
        number = f"{math.floor(share * 1e4) / 100:.2f}"
    return f"{Decimal(number):f} %"


def percent_span(low: float, high: float) -> str:
    """Two shares as a span of percentages, alike in decimals: 99.90 % to 99.98 %, 5 % to 12 %."""
    texts = [percent(low), percent(high)]
    if texts[0] == texts[1]:
        return texts[0]
    places = max(len(text.removesuffix(" %").partition(".")[2]) for text in texts)
    return " to ".join(
        text if text == "100 %" else f"{_below_all(share, places):.{places}f} %"
        for share, text in zip((low, high), texts, strict=True)
    )


def _below_all(share: float, places: int) -> float:
    """`share` in percent, not rounded up to all of it."""
    return min(share * 100, 100 - 10.0**-places) if share < 1 else share * 100


def plural(count: int, noun: str) -> str:
    """`count` and its noun: 1 stage, 12 stages, 1,234 requests."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")

"""Figures in words, for reasons and caveats. Knows digits and units; judges nothing."""

from __future__ import annotations

from decimal import Decimal


def amount(value: float, unit: str, digits: int) -> str:
    """A number with its unit, rounded to so many significant digits, never in powers of ten."""
    number = format(Decimal(f"{value:.{digits}g}"), "f")
    return {"s": f"{number} s", "usd": f"${number}"}.get(unit, number)


def plain_number(value: float) -> str:
    """A count in full, any other number to three significant digits: 1,240, 3.26."""
    return f"{value:,.0f}" if value == int(value) else amount(value, "", 3)


def amounts_apart(value: float, limit: float, unit: str) -> tuple[str, str]:
    """A value and its limit in words, with as many digits as show that they differ."""
    limit_words = amount(limit, unit, 12)
    digits = 4 if unit == "usd" else 3
    while amount(value, unit, digits) == limit_words and value != limit and digits < 17:
        digits += 1
    return amount(value, unit, digits), limit_words


def excess(value: float, limit: float) -> str:
    """By how many per cent a value is above its limit; "" of a limit of 0, which has no ratio."""
    return f" by {amount((value / limit - 1) * 100, '', 2)} %" if limit else ""

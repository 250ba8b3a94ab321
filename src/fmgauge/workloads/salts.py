"""Digits at a prompt's start, so that no prefix cache answers. Knows prompts; not when one is sent.

A salt is eight decimal digits with spaces between, then an empty line: always as many tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

from fmgauge.records import Payload

_SALTS = 10**8  # as many as eight digits can tell apart
_END = "\n\n"

Message = dict[str, Any]


def salt_from(name: str) -> str:
    """The salt that belongs to `name`: a prompt's number before sending, a request's id then.

    Where a name is a prefix, a hyphen and a running number, as request ids are, no two of the first
    10**8 numbers share a salt; any other two names share one with a chance of one in 10**8. Request
    ids are never used twice, so no later sending, stage, experiment or run repeats what a server's
    cache may hold; the id stands in the record, so what was sent can be made out again.
    """
    prefix, _, number = name.rpartition("-")
    if prefix and number.isdecimal() and _is_plain(number):
        return salts_after(prefix)(int(number))
    return _spaced(_digest(name) % _SALTS)


@lru_cache(maxsize=256)
def salts_after(prefix: str) -> Callable[[int], str]:
    """The salts of all names that are `prefix`, a hyphen and a number, by the number."""
    offset, step = _sequence(prefix)
    return lambda number: _spaced((offset + step * number) % _SALTS)


def _spaced(value: int) -> str:
    high, low = divmod(value, 10_000)
    spaced = _spaced_quadruples()
    return f"{spaced[high]} {spaced[low]}"


def _is_plain(number: str) -> bool:
    """Whether no other digits say the same number, and it is one that somebody may count up to."""
    return number.isascii() and len(number) < 20 and (number[0] != "0" or number == "0")


def _sequence(prefix: str) -> tuple[int, int]:
    """Where a prefix's salts begin, and the step from each to the next, round and round.

    The step ends in 1, 3, 7 or 9, so it shares no factor with the number of salts and meets them
    all; and it is so far from 0 and from a whole round that neighbours differ in their first digit,
    for a cache may keep the part that two prompts share.
    """
    digest, offset = divmod(_digest(prefix, b"sequence"), _SALTS)
    tens, end = divmod(digest, 4)
    return offset, 10_000_000 + 10 * (tens % 7_999_999) + (1, 3, 7, 9)[end]


@cache
def _spaced_quadruples() -> list[str]:
    """Every number of four digits with spaces between: two of them are a salt."""
    return [" ".join(f"{number:04d}") for number in range(10_000)]


def _digest(text: str, purpose: bytes = b"") -> int:
    return int.from_bytes(hashlib.blake2s(text.encode(), person=purpose).digest(), "little")


def marked(payload: Payload, mark: str) -> Payload:
    """`payload` with `mark`, whatever its length, where its salt stands."""
    n_chars = len(payload.salt or "")
    if payload.prompt is not None:
        return replace(payload, prompt=mark + payload.prompt[n_chars:], salt=mark)
    messages = _with_first_text(payload.messages or [], lambda text: mark + text[n_chars:])
    return replace(payload, messages=messages, salt=mark)


def salt_prompt(prompt: str, salt: str) -> str:
    """`prompt` with `salt` and an empty line before it."""
    return salt + _END + prompt


def salt_messages(messages: list[Message], salt: str) -> list[Message]:
    """`messages` with `salt` before the text of the first one."""
    return _with_first_text(messages, lambda text: salt_prompt(text, salt))


def first_text(messages: list[Message]) -> str | None:
    """The first message's text, or its first text part; None where it has neither."""
    content = messages[0].get("content")
    if isinstance(content, str):
        return content
    return next((part["text"] for part in content or [] if part.get("type") == "text"), None)


def _with_first_text(messages: list[Message], change: Callable[[str], str]) -> list[Message]:
    first, *others = messages
    content = first["content"]
    if isinstance(content, str):
        return [{**first, "content": change(content)}, *others]
    parts = list(content)
    place = next(index for index, part in enumerate(parts) if part.get("type") == "text")
    parts[place] = {**parts[place], "text": change(parts[place]["text"])}
    return [{**first, "content": parts}, *others]

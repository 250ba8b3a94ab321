"""Digits at a prompt's start, so that no prefix cache answers. Knows prompts; not when one is sent.

A salt is eight decimal digits with spaces between, then an empty line: always as many tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fmgauge.records import Payload

SALT_DIGITS = 8
_END = "\n\n"

Message = dict[str, Any]


def salt_from(name: str) -> str:
    """The salt that belongs to `name`: a prompt's number before sending, a request's id then.

    Request ids are never used twice, so no later sending, stage, experiment or run repeats what a
    server's cache may hold; the id stands in the record, so what was sent can be made out again.
    """
    digest = hashlib.blake2s(name.encode()).digest()
    digits = int.from_bytes(digest, "little") % 10**SALT_DIGITS
    return " ".join(f"{digits:0{SALT_DIGITS}d}")


def salted(payload: Payload, salt: str) -> Payload:
    """`payload` with `salt` in place of its own; unchanged where its workload is not salted.

    Raises ValueError where the lengths differ, for then the counted tokens would not hold.
    """
    old = payload.salt
    if old is None:
        return payload
    if len(salt) != len(old):
        raise ValueError(f"a salt of {len(old)} characters cannot become one of {len(salt)}")
    if payload.prompt is not None:
        return replace(payload, prompt=salt + payload.prompt[len(old) :], salt=salt)
    messages = _with_first_text(payload.messages or [], lambda text: salt + text[len(old) :])
    return replace(payload, messages=messages, salt=salt)


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

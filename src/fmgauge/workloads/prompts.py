"""From a row to what is asked: a prompt or messages. Knows columns and templates; not tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from fmgauge.config import LoadedConfig
from fmgauge.errors import ConfigError, Problem
from fmgauge.workloads.rows import Row
from fmgauge.workloads.salts import Message, first_text, salt_messages, salt_prompt
from fmgauge.workloads.templates import render, stray_braces, template_columns

_NEEDS = "Give prompt (text) or messages (a list), or give the workload a template"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one row asks: a prompt or messages, and what the row says of how to ask it."""

    prompt: str | None
    messages: list[Message] | None
    salt: str | None = None  # stands at the start once it is given
    max_tokens: int | None = None
    session_id: str | None = None

    @property
    def text(self) -> str:
        """All of its text: the prompt, or the messages' contents one after the other."""
        if self.prompt is not None:
            return self.prompt
        return "".join(part for message in self.messages or [] for part in _texts(message))

    @property
    def key(self) -> bytes:
        """Equal for equal prompts."""
        return orjson.dumps([self.prompt, self.messages])

    def with_salt(self, salt: str) -> Prompt:
        """This prompt with `salt` at its start."""
        if self.prompt is not None:
            return replace(self, prompt=salt_prompt(self.prompt, salt), salt=salt)
        return replace(self, messages=salt_messages(self.messages or [], salt), salt=salt)


def prompt_of(loaded: LoadedConfig, index: int, row: Row) -> Prompt:
    """What `row` asks in workload number `index`; ConfigError where that cannot be told."""
    template = loaded.config.workloads[index].template
    if template is None:
        asked = _plain(loaded, index, row)
    else:
        asked = Prompt(_rendered(loaded, index, template, row), None)
        if not asked.prompt:
            remedy = "Fill the columns that the template names, or remove the row"
            raise row.error("", "with the template, this row's prompt is empty", remedy)
    session = row.values.get("session_id")
    session_id = None if session is None else str(session)
    return replace(asked, max_tokens=_max_tokens(row), session_id=session_id)


def template_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """Every template with a place that is not closed, or not opened: it would be sent as it is."""
    remedy = "Write {{ column }}; where braces are meant to be sent, put a space between the two"
    for index, workload in enumerate(loaded.config.workloads):
        stray = stray_braces(workload.template or "")
        if stray is not None:
            problem = f"{stray} stands outside of any place"
            yield loaded.problem(("workloads", index, "template"), problem, remedy)


def _rendered(loaded: LoadedConfig, index: int, template: str, row: Row) -> str:
    for column in template_columns(template):
        if column not in row.values:
            data = f"{row.file}:{row.line}" if row.file else "the source"
            problem = f"it names the column {column!r}, which {data} lacks"
            remedy = f"Columns there: {', '.join(row.values)}"
            raise loaded.error(("workloads", index, "template"), problem, remedy)
    return render(template, row.values)


def _plain(loaded: LoadedConfig, index: int, row: Row) -> Prompt:
    """The row's own prompt, else its messages."""
    prompt, messages = row.values.get("prompt"), row.values.get("messages")
    if prompt is None and messages is None:
        raise _nothing_to_ask(loaded, index, row)
    if prompt is not None and messages is not None:
        raise row.error("prompt", "this row holds both prompt and messages", "Keep one")
    if messages is not None:
        problem = next(_wrong_in_messages(messages), None)
        if problem is not None:
            raise row.error("messages", problem, "Write them as the chat API takes them")
        return Prompt(None, messages)
    if not isinstance(prompt, str):
        raise row.error("prompt", "this row's prompt is no text", _NEEDS)
    if not prompt:
        raise row.error("prompt", "this row's prompt is empty", "Fill it in, or remove the row")
    return Prompt(prompt, None)


def _nothing_to_ask(loaded: LoadedConfig, index: int, row: Row) -> ConfigError:
    there = f"Columns there: {', '.join(row.values)}"
    if row.file is not None:
        return row.error("", "this row holds neither prompt nor messages", f"{_NEEDS}. {there}")
    problem = "there is no template, and the source's rows hold neither prompt nor messages"
    remedy = f"Add template: with {{{{ column }}}} places. {there}"
    return loaded.error(("workloads", index, "template"), problem, remedy)


def _wrong_in_messages(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield "messages are no list of messages"
        return
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            yield f"message {number} is no object"
        elif not isinstance(message.get("role"), str):
            yield f"message {number} has no role"
        elif not _has_content(message):
            yield f"message {number} has no content: text, or a list of parts"
    if first_text(messages) is None:
        yield "the first message holds no text"
    elif all(message.get("content") == "" for message in messages):
        yield "all messages are empty"


def _has_content(message: Message) -> bool:
    """Whether the content is text or parts (whose text parts hold text); tool calls need none."""
    content = message.get("content")
    if content is None:
        return bool(message.get("tool_calls"))
    if isinstance(content, list):
        return all(isinstance(part, dict) and _is_part(part) for part in content)
    return isinstance(content, str)


def _is_part(part: dict[str, Any]) -> bool:
    return part.get("type") != "text" or isinstance(part.get("text"), str)


def _texts(message: Message) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or [] if part.get("type") == "text"]


def _max_tokens(row: Row) -> int | None:
    value = row.values.get("max_tokens")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        problem = f"{value!r} is no number of tokens"
        raise row.error("max_tokens", problem, "Give a whole number above 0, or leave it out")
    return value

"""Text as Markdown that stays text. Knows Markdown's syntax; not what a report says.

Two kinds of string meet in a report: Markdown that this package wrote, and text from configs,
endpoints and errors. The first is a `Markdown`; every other string is escaped where the two are
put together, so that forgetting to escape is not possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_ACTIVE = re.compile(r"[\\`*\[\]~$]")  # `$` too: GitHub sets $...$ as mathematics
_EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # within a word it is only a letter
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_BACKTICKS = re.compile("`+")
_BARE_LINK = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)  # what GitHub links by itself


class Markdown(str):
    """Markdown written by this package; `fill` puts escaped text into its places."""

    __slots__ = ()

    def fill(self, *values: object, **named: object) -> Markdown:
        """This text with `{}` and `{name}` filled in; what is not Markdown is escaped."""
        texts = {name: escaped(value) for name, value in named.items()}
        return Markdown(self.format(*map(escaped, values), **texts))


def escaped(value: object) -> Markdown:
    """`value` as one line of Markdown that shows exactly its text; Markdown stays as it is."""
    if isinstance(value, Markdown):
        return value
    text = _ACTIVE.sub(r"\\\g<0>", one_line(str(value)))
    text = _EDGE_UNDERSCORE.sub(r"\\_", text).translate(_ENTITIES)
    return Markdown(_BARE_LINK.sub(r"\\\g<0>", text))


def code(value: object) -> Markdown:
    """`value` as a code span, fenced by more backticks than it holds."""
    text = one_line(str(value)) or "(empty)"
    fence = "`" * (1 + max((len(run) for run in _BACKTICKS.findall(text)), default=0))
    pad = " " if text[0] == "`" or text[-1] == "`" else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def one_line(text: str) -> str:
    """`text` without line breaks, control characters and marks that reverse reading order."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shortened(text: str, most: int) -> str:
    """`text` on one line, its middle left out where it is longer than `most` characters."""
    line = one_line(text)
    if len(line) <= most:
        return line
    head = (most - 1) * 2 // 3
    return f"{line[:head]}…{line[len(line) - (most - 1 - head) :]}"


def cell(value: object) -> Markdown:
    """`value` as the content of one table cell: a pipe, also in a code span, does not end it."""
    return Markdown(escaped(value).replace("|", r"\|"))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    """A Markdown table; every cell that is not Markdown is escaped."""
    lines = [_row(columns), "|" + "-----|" * len(columns), *map(_row, rows)]
    return Markdown("\n".join(lines))


def joined(parts: Iterable[object], last: str = " and ") -> Markdown:
    """`parts` as a list in words: a, b and c."""
    texts = [escaped(part) for part in parts]
    if len(texts) < 2:
        return Markdown("".join(texts))
    return Markdown(", ".join(texts[:-1]) + last + texts[-1])


def sentences(*parts: object) -> Markdown:
    """`parts` one after the other, each that is not Markdown escaped; what is empty is left out."""
    return Markdown(" ".join(text for text in map(escaped, parts) if text))


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(cell, cells)) + " |"

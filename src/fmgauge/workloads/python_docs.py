"""English passages from the language reference that comes with Python. Knows its text; no tokens.

The reference is cut into runs of whole paragraphs in the shape of LongBench's rows. No paragraph
stands in two passages, though the reference itself repeats whole chapters.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fmgauge.workloads.rows import Row, SourceRows
from fmgauge.workloads.tokenizer import docs_text

# Characters at which a passage ends, in turn. About four characters make a token: half the passages
# have some 100 tokens, so that generating weighs as much as reading, and half 500 to 1000.
_PASSAGE_SIZES = (250, 2100, 400, 2600, 2300, 500, 2100, 2400)
_SMALLEST_PASSAGE = 200
_LARGEST_PARAGRAPH = 1200  # a longer block is a long listing: it would overfill a passage
_LINE_WIDTH = 70  # the reference is wrapped at this column
_UNDERLINE = re.compile(r"^([*=\-~^\"'.+#])\1+$")
_RULE = re.compile(r"^\s*[+|][-=+ ]*[-=]{3}", re.MULTILINE)  # a table's rule
_CUT_WORD = re.compile(r"(?<=\w-)\n\s*(?=\w)")  # a line's end within a compound word
_FIRST_PIECE = re.compile(r"[^\s-]*-?")  # what would have had to fit on the line before


@dataclass(frozen=True)
class _Block:
    """A heading, or a paragraph, list item or example."""

    text: str
    heading: bool


def python_docs_rows() -> SourceRows:
    """LongBench-shaped rows, about 180, each a passage and the question what its section says."""
    rows = [Row(_longbench_row(title, context)) for title, context in _passages()]
    major, minor, _ = platform.python_version_tuple()
    return SourceRows(rows, (f"pydoc_data.topics (Python {major}.{minor})",))


def _longbench_row(title: str, context: str) -> dict[str, Any]:
    """One row with LongBench's columns; nobody wrote answers, so there are none."""
    plain_title = title.replace('"', "")
    return {
        "input": f'What does the section "{plain_title}" say?',
        "context": context,
        "answers": [],
        "length": len(context.split()),
        "dataset": "python_docs",
        "language": "en",
        "all_classes": None,
        "_id": hashlib.blake2s(context.encode(), digest_size=12).hexdigest(),
    }


def _passages() -> Iterator[tuple[str, str]]:
    """Pairs of a section's title and a passage that begins in it."""
    sizes = itertools.cycle(_PASSAGE_SIZES)
    seen: set[str] = set()
    for topic in sorted(docs_text(), key=lambda text: (-len(text), text)):  # whole chapters first
        yield from _cut(_new_blocks(topic, seen), sizes)


def _new_blocks(topic: str, seen: set[str]) -> Iterator[_Block]:
    """The topic's blocks, without tables, grammar, and paragraphs that stood in another topic."""
    for raw in re.split(r"\n\s*\n", topic.strip("\n")):
        heading = _heading(raw)
        if heading is not None:
            yield _Block(heading, heading=True)
            continue
        text = _clean(raw)
        if text not in seen and _readable(text):
            seen.add(text)
            yield _Block(text, heading=False)


def _heading(raw: str) -> str | None:
    lines = raw.strip().split("\n")
    underlined = len(lines) == 2 and _UNDERLINE.match(lines[1].strip())
    return lines[0].strip() if underlined else None


def _readable(text: str) -> bool:
    is_mark = text.startswith("-[") or _UNDERLINE.match(text) is not None
    is_table = _RULE.search(text) is not None
    return not (is_mark or is_table or "::=" in text or len(text) > _LARGEST_PARAGRAPH)


def _clean(raw: str) -> str:
    """A paragraph on one line; an example or a list of terms with its lines, dedented."""
    lines = [line.rstrip() for line in raw.strip("\n").split("\n")]
    text = textwrap.dedent("\n".join(lines)).strip()
    if all(_wrapped(line, after) for line, after in itertools.pairwise(lines)):
        return " ".join(_CUT_WORD.sub("", text).split())
    return text


def _wrapped(line: str, after: str) -> bool:
    """Whether `line` ended only because the beginning of the line `after` it did not fit."""
    piece = _FIRST_PIECE.match(after.strip())
    return len(line) + 1 + len(piece[0] if piece else "") > _LINE_WIDTH


def _cut(blocks: Iterable[_Block], sizes: Iterator[int]) -> Iterator[tuple[str, str]]:
    """Runs of whole blocks, each as long as the next of `sizes` asks; too short a rest is left.

    A passage's title is the section that it begins in; later headings stand in its text.
    """
    section, title, held, size = "", "", list[_Block](), next(sizes)
    for block in blocks:
        if _length(held) >= size:
            yield title, _joined(held)
            title, held, size = section, [], next(sizes)
        section = block.text if block.heading else section
        if block.heading and not held:
            title = section
        else:
            held.append(block)
    if _length(held) >= _SMALLEST_PASSAGE:
        yield title, _joined(held)


def _length(held: Iterable[_Block]) -> int:
    return sum(len(block.text) for block in held)


def _joined(held: list[_Block]) -> str:
    """The blocks' text, without headings that nothing follows."""
    last = max(index for index, block in enumerate(held) if not block.heading)
    return "\n\n".join(block.text for block in held[: last + 1])

"""report.md as one HTML page that needs nothing beside it. Knows Markdown and HTML; no figures.

The Markdown is read with HTML off, so what looks like a tag is shown as text. Two things are let
through: the span that colours a verdict, written exactly as the tables write it, and links and
pictures that the caller names.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_VERDICT = re.compile(r"<span style='color:(green|red)'>|</span>")
_CLASSES = {"green": "met", "red": "missed", None: ""}
_NUMBER = re.compile(r"[\d.]+( %)?( \([\d.]+ to [\d.]+\))?$|∞|n/a|not run$|none$")
_SHORT = 40  # characters that a cell never breaks


def report_html(
    markdown: str, pictures: Mapping[str, bytes], files: Mapping[str, str], title: str
) -> str:
    """`markdown` as a whole page with `pictures` (PNG by name) and `files` (text) within it.

    A link leads only to one of `files`, whose text stands at the page's end, and a picture is
    only one of `pictures`: anything else of that shape stays text.
    """
    from markupsafe import Markup

    parser = _parser({*files, *pictures})
    tokens = parser.parse(markdown)
    contents = list(_with_anchors(tokens))
    for token in _inline(tokens):
        _embed(token, pictures)
        _lead_to_text(token, files)
    _frame_pictures(tokens)
    _dress_tables(tokens)
    body = Markup(parser.renderer.render(tokens, parser.options, {}))
    template = _environment().get_template("report.html.j2")
    return template.render(title=title, body=body, contents=contents, files=_anchored(files))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("fmgauge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _parser(allowed: set[str]) -> MarkdownIt:
    from markdown_it import MarkdownIt

    class NamedLinksOnly(MarkdownIt):
        """Markdown in which nothing but `allowed` can be linked to or shown."""

        def validateLink(self, url: str) -> bool:
            return url in allowed

    parser = NamedLinksOnly("commonmark", {"html": False}).enable("table").disable("autolink")
    parser.inline.ruler.before("html_inline", "verdict", _verdict_span)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


def _verdict_span(state: StateInline, silent: bool) -> bool:
    """A verdict's span at this place in the text, and nothing else that looks like a tag."""
    match = _VERDICT.match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        color = match[1]
        tag = f'<span class="{_CLASSES[color]}">' if color else "</span>"
        state.push("html_inline", "", 0).content = tag
    state.pos = match.end()
    return True


def _table_open(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """A table scrolls within its own frame, so that the page never does sideways."""
    return '<div class="table" role="region" tabindex="0" aria-label="Table"><table>\n'


def _table_close(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


def _with_anchors(tokens: Sequence[Token]) -> list[tuple[str, str]]:
    """Give every section an anchor; the anchors and the sections' names."""
    contents = []
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            anchor = _anchor(inline.content)
            token.attrSet("id", anchor)
            contents.append((anchor, inline.content))
    return contents


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _inline(tokens: Sequence[Token]) -> list[Token]:
    return [child for token in tokens for child in token.children or []]


def _embed(token: Token, pictures: Mapping[str, bytes]) -> None:
    """Put a picture's bytes where its name stood."""
    if token.type == "image":
        encoded = base64.b64encode(pictures[str(token.attrs["src"])]).decode("ascii")
        token.attrSet("src", f"data:image/png;base64,{encoded}")


def _anchored(files: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The anchor, name and text of every file that the page holds."""
    return [(_anchor(name), name, text) for name, text in files.items()]


def _lead_to_text(token: Token, files: Mapping[str, str]) -> None:
    """Let a link to a file lead to its text in the page, which may travel alone."""
    if token.type == "link_open" and token.attrs["href"] in files:
        token.attrSet("href", f"#{_anchor(str(token.attrs['href']))}")


def _frame_pictures(tokens: Sequence[Token]) -> None:
    """Mark the paragraphs that hold a picture, which may be as wide as the page."""
    for token, inline in pairwise(tokens):
        if token.type == "paragraph_open" and any(c.type == "image" for c in inline.children or []):
            token.attrSet("class", "picture")


def _dress_tables(tokens: Sequence[Token]) -> None:
    """Right-align columns of figures; keep short texts on one line and give long ones room."""
    for columns in _tables(tokens):
        for cells in columns:
            is_number = all(_NUMBER.match(text) for _, text in cells[1:])
            for cell, text in cells:
                if is_number:
                    cell.attrJoin("class", "number")
                else:
                    cell.attrJoin("class", "short" if len(text) <= _SHORT else "long")


def _tables(tokens: Sequence[Token]) -> Iterator[list[list[tuple[Token, str]]]]:
    """Each table's columns, as pairs of a cell and its text, the header first."""
    rows: list[list[tuple[Token, str]]] = []
    for token, inline in pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append((token, _text(inline)))
        elif token.type == "table_close":
            yield [list(column) for column in zip(*rows, strict=True)]
            rows = []


def _text(inline: Token) -> str:
    shown = ("text", "code_inline")
    return "".join(child.content for child in inline.children or [] if child.type in shown)

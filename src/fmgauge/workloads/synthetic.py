"""Prompts of drawn lengths from the words of the Python language reference.

Knows length distributions and how to fill a prompt to a length; not templates or payloads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmgauge.config import LoadedConfig
from fmgauge.config.model import (
    FixedTokens,
    LognormalTokens,
    NormalTokens,
    SyntheticSource,
    Tokens,
    UniformTokens,
)
from fmgauge.config.yaml_text import Location
from fmgauge.errors import ConfigError
from fmgauge.workloads.rows import Row, SourceRows
from fmgauge.workloads.tokenizer import docs_text

if TYPE_CHECKING:
    import numpy as np

_WORD = re.compile(r"(?<!\S)[A-Za-z][a-z\u2019]*(?:-[a-z]+)*[,.;]?(?!\S)")
_MOST_ROUNDS = 12

Count = Callable[[Sequence[str]], list[int]]
WholePrompt = Callable[[int, str], str]  # a row's number and its text: the prompt as it is sent


def synthetic_rows(
    loaded: LoadedConfig,
    location: Location,
    source: SyntheticSource,
    whole_prompt: WholePrompt,
    count: Count,
) -> SourceRows:
    """Rows of one `prompt` (and `max_tokens`), whose whole prompts have lengths as drawn.

    A drawn length that the salt, the template and one word already exceed is raised to theirs.
    Raises ConfigError where most drawn lengths are that short.
    """
    lengths = draw_lengths(source.prompt_tokens, source.n_prompts, loaded.config.run.seed, "prompt")
    filler = _Filler.from_docs(count)
    starts = _starts(len(filler.words), source.n_prompts, loaded.config.run.seed)
    shortest = count([whole_prompt(0, filler.text(starts[0], 1))])[0]
    raised = sum(length < shortest for length in lengths)
    if raised > len(lengths) / 2:
        raise _too_short(loaded, location, shortest)
    targets = [max(length, shortest) for length in lengths]
    texts = _fitted(filler, starts, targets, whole_prompt, count)
    notes = (f"{raised} of {len(lengths)} drawn lengths were raised to {shortest} tokens",)
    rows = [Row(values) for values in _with_output_lengths(loaded, source, texts)]
    return SourceRows(rows, ("synthetic",), notes if raised else ())


def draw_lengths(tokens: Tokens, number: int, seed: int, purpose: str) -> list[int]:
    """`number` lengths in tokens, each at least 1, drawn as `tokens` asks."""
    rng = _generator(seed, purpose)
    match tokens:
        case FixedTokens():
            return [tokens.value] * number
        case UniformTokens():
            return [int(n) for n in rng.integers(tokens.min, tokens.max, number, endpoint=True)]
        case NormalTokens():
            drawn = rng.normal(tokens.mean, tokens.stddev, number)
        case LognormalTokens():
            drawn = rng.lognormal(math.log(tokens.median), tokens.sigma, number)
    return [max(1, round(length)) for length in drawn.tolist()]


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that one more draw here moves none there."""
    import numpy as np

    return np.random.default_rng([seed, *purpose.encode()])


def _starts(words: int, number: int, seed: int) -> list[int]:
    """Where each text begins among the words: all different while there are words enough."""
    rng = _generator(seed, "start")
    return [int(start) for start in rng.choice(words, number, replace=number > words)]


def _too_short(loaded: LoadedConfig, location: Location, shortest: int) -> ConfigError:
    problem = f"most prompts would be shorter than salt, template and one word: {shortest} tokens"
    return loaded.error((*location, "prompt_tokens"), problem, "Ask for longer prompts")


def _with_output_lengths(
    loaded: LoadedConfig, source: SyntheticSource, texts: Sequence[str]
) -> list[dict[str, Any]]:
    if source.output_tokens is None:
        return [{"prompt": text} for text in texts]
    lengths = draw_lengths(source.output_tokens, len(texts), loaded.config.run.seed, "output")
    return [
        {"prompt": text, "max_tokens": length} for text, length in zip(texts, lengths, strict=True)
    ]


# --- filling a prompt to a length ----------------------------------------------------------------


@dataclass(frozen=True)
class _Filler:
    """The reference's words, in order and around again, with about how many tokens each is."""

    words: list[str]
    ends: np.ndarray[Any, np.dtype[np.int64]]  # tokens of the words up to and with each
    single: list[str]  # words of one token

    @classmethod
    def from_docs(cls, count: Count) -> _Filler:
        """A filler from the reference that comes with this Python."""
        import numpy as np

        words = [word for text in docs_text() for word in _WORD.findall(text)]
        distinct = list(dict.fromkeys(words))
        counts = count([f" {word}" for word in distinct])
        spare = min(counts) - 1  # some tokenizers add a token to every text
        tokens = dict(zip(distinct, [counted - spare for counted in counts], strict=True))
        single = [word for word in distinct if tokens[word] == 1]
        return cls(words, np.cumsum([tokens[word] for word in words]), single)

    def text(self, start: int, tokens: int) -> str:
        """Words from number `start` on that are about `tokens` tokens together."""
        before = int(self.ends[start - 1]) if start else 0
        rounds, rest = divmod(before + tokens, int(self.ends[-1]))
        whole = int(self.ends.searchsorted(rest, side="right"))
        missing = rest - (int(self.ends[whole - 1]) if whole else 0)
        stop = rounds * len(self.words) + whole
        words = [self.words[number % len(self.words)] for number in range(start, stop)]
        fillers = [self.single[(start + number) % len(self.single)] for number in range(missing)]
        return " ".join([*words, *fillers])


def _fitted(
    filler: _Filler,
    starts: Sequence[int],
    targets: Sequence[int],
    whole_prompt: WholePrompt,
    count: Count,
) -> list[str]:
    """One text for each start, whose whole prompt counts its target.

    Each round asks for as many tokens more or less as the last one missed by; for more where the
    tokenizer joins words into one token. It may then meet some targets never: the nearest stays.
    """
    asked = list(targets)
    nearest: dict[int, tuple[int, str]] = {}  # number: by how many tokens it misses, text
    unsettled = list(range(len(targets)))
    for _ in range(_MOST_ROUNDS):
        texts = [filler.text(starts[number], asked[number]) for number in unsettled]
        wholes = [whole_prompt(number, text) for number, text in zip(unsettled, texts, strict=True)]
        for number, text, tokens in zip(unsettled, texts, count(wholes), strict=True):
            miss = targets[number] - tokens
            scale = max(1.0, asked[number] / max(1, tokens))
            asked[number] = max(1, asked[number] + round(miss * scale))
            nearest[number] = min(nearest.get(number, (abs(miss), text)), (abs(miss), text))
        unsettled = [number for number in unsettled if nearest[number][0]]
        if not unsettled:
            break
    return [nearest[number][1] for number in range(len(targets))]

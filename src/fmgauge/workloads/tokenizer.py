"""Counts a prompt's tokens. Knows tokenizer files and whose counts they are; not what is sent.

A model counts with its own tokenizer. Where a config names none, the project's default counts: a
byte-level BPE trained on the Python language reference, which is also the embedded model's own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from fmgauge.config import LoadedConfig
from fmgauge.config.model import Experiment, LlamacppEndpoint, Workload
from fmgauge.errors import ConfigError, Problem
from fmgauge.records import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>")  # ids 0 to 3
DOCS_VOCABULARY = 4096
# Seen this often, " 0" to " 9" become tokens before any word does: a salt's length never varies.
_SALT_LIKE_TEXT = " 0 1 2 3 4 5 6 7 8 9" * 5000


@dataclass(frozen=True)
class PromptTokenizer:
    """Counts tokens of prompts, says by which tokenizer, and whether the model's own is another."""

    label: str
    approximate: bool
    encoder: Tokenizer = field(repr=False, compare=False)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens."""
        encodings = self.encoder.encode_batch(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encodings]


@dataclass(frozen=True)
class TokenizerChoice:
    """Which tokenizer counts a workload: one that an experiment names, or the project's own."""

    label: str
    approximate: bool
    named: str | None = None  # model.tokenizer of the experiment
    experiment: int | None = None  # its number in the config


# --- the project's own ---------------------------------------------------------------------------


def cache_dir() -> Path:
    """The folder of what is built once and kept: FMGAUGE_CACHE_DIR, else the user's cache."""
    import platformdirs

    chosen = os.environ.get("FMGAUGE_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("fmgauge", appauthor=False))


def docs_text() -> list[str]:
    """The topics of the Python language reference that comes with this Python, in name order."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def docs_tokenizer_path(vocabulary: int = DOCS_VOCABULARY) -> Path:
    """The tokenizer.json of the project's own tokenizer, trained where the cache lacks it.

    Raises ConfigError where the cache cannot be written.
    """
    text = docs_text()
    path = cache_dir() / f"docs-bpe-{vocabulary}-{_fingerprint(text, vocabulary)}.json"
    if not path.exists():
        content = _trained(text, vocabulary).to_str().encode()
        try:
            write_atomically(path, content)
        except OSError as error:
            raise ConfigError(_unwritable(path.parent, error)) from error
    return path


def _fingerprint(text: Sequence[str], vocabulary: int) -> str:
    """Names a tokenizer by all that makes it: text, settings, the library's version."""
    import tokenizers

    settings = [tokenizers.__version__, vocabulary, SPECIAL_TOKENS, _SALT_LIKE_TEXT, *text]
    return hashlib.blake2s(json.dumps(settings).encode(), digest_size=8).hexdigest()


def _trained(text: Iterable[str], vocabulary: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*text, _SALT_LIKE_TEXT], trainer)
    return tokenizer


def _unwritable(folder: Path, error: OSError) -> Problem:
    remedy = "Set the environment variable FMGAUGE_CACHE_DIR to a folder that can be written"
    return Problem(str(folder), None, "", f"cannot be written: {error.strerror}", remedy)


# --- a model's own -------------------------------------------------------------------------------


def tokenizer_for(loaded: LoadedConfig, workload: Workload) -> PromptTokenizer:
    """The tokenizer that counts `workload`'s prompts.

    It is the first that an experiment of the workload has: a `model.tokenizer`, or the project's
    own where the embedded model is served. Where none has, the project's own, as approximate.
    Raises ConfigError where a named tokenizer cannot be found.
    """
    return load_tokenizer(loaded, tokenizer_choice(loaded, workload))


def tokenizer_choice(loaded: LoadedConfig, workload: Workload) -> TokenizerChoice:
    """Which tokenizer counts `workload`'s prompts; nothing is read to tell it."""
    own = f"docs-bpe-{DOCS_VOCABULARY}"
    users = [
        (index, experiment)
        for index, experiment in enumerate(loaded.config.experiments)
        if workload.name in experiment.workloads
    ]
    differ = len({_tokenizer_name(experiment, own) for _, experiment in users}) > 1
    for index, experiment in users:
        name = _tokenizer_name(experiment, own)
        if name is not None:
            label = f"{name} of {experiment.name}" if differ else name
            return TokenizerChoice(label, False, experiment.model.tokenizer, index)
    return TokenizerChoice(own, True)


def counts_as(choice: TokenizerChoice, experiment: Experiment) -> bool:
    """Whether what `choice` counts is what `experiment`'s own model would count."""
    own = f"docs-bpe-{DOCS_VOCABULARY}"
    return not choice.approximate and _tokenizer_name(experiment, own) == (choice.named or own)


def _tokenizer_name(experiment: Experiment, own: str) -> str | None:
    """What `experiment`'s tokenizer is called; None where nothing tells which it is."""
    if experiment.model.tokenizer is not None:
        return experiment.model.tokenizer
    endpoint = experiment.endpoint
    embedded = isinstance(endpoint, LlamacppEndpoint) and endpoint.gguf is None
    return own if embedded else None


def load_tokenizer(loaded: LoadedConfig, choice: TokenizerChoice) -> PromptTokenizer:
    """The chosen tokenizer, from its file or from the hub; ConfigError where it is not there."""
    from tokenizers import Tokenizer

    if choice.named is None:
        encoder = Tokenizer.from_file(str(docs_tokenizer_path()))
    elif needs_hub(loaded, choice):
        encoder = _from_hub(loaded, choice, choice.named)
    else:
        encoder = _from_file(loaded, choice, choice.named)
    encoder.no_truncation()  # a tokenizer.json may ask for either; counts would be false
    encoder.no_padding()
    return PromptTokenizer(choice.label, choice.approximate, encoder)


def needs_hub(loaded: LoadedConfig, choice: TokenizerChoice) -> bool:
    """Whether the chosen tokenizer is named by a hub id, not by a path."""
    if choice.named is None or loaded.resolve(choice.named).exists():
        return False
    looks_like_path = choice.named.startswith(("/", ".", "~")) or choice.named.endswith(".json")
    return not looks_like_path and choice.named.count("/") <= 1


def _from_file(loaded: LoadedConfig, choice: TokenizerChoice, named: str) -> Tokenizer:
    from tokenizers import Tokenizer

    path = loaded.resolve(named)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise _not_found(loaded, choice, problem) from error
    reason = next(_not_a_tokenizer(text), None)
    if reason is not None:
        raise _not_found(loaded, choice, f"{path} is no tokenizer: {reason}")
    return Tokenizer.from_str(text)


def _not_a_tokenizer(text: str) -> Iterator[str]:
    """Why `text` is no tokenizer.json, asked before the library, whose errors have no type."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        yield "it is not JSON"
        return
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        yield "it holds no model with a vocab"


def _from_hub(loaded: LoadedConfig, choice: TokenizerChoice, named: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_pretrained(named)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        problem = f"there is no such file or folder, and the hub gave no {named!r}: {reason}"
        raise _not_found(loaded, choice, problem) from error


def _not_found(loaded: LoadedConfig, choice: TokenizerChoice, problem: str) -> ConfigError:
    location = ("experiments", choice.experiment or 0, "model", "tokenizer")
    remedy = "Give a tokenizer.json, a folder that holds one, or a hub id; or leave it out"
    return loaded.error(location, problem, remedy)

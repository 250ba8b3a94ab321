"""A small Llama with random weights as a GGUF file, made in about a second, for a real engine.

Knows the file's format and the model's shape; not who serves it. Its words mean nothing: what it
costs to compute them is what counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmgauge.errors import EndpointError
from fmgauge.workloads.tokenizer import cache_dir, docs_tokenizer_path

if TYPE_CHECKING:
    from gguf import GGUFWriter

_RECIPE = 1  # part of the file's name: raise it when the same shape would give other bytes
_SEED = 7
_HEAD_SIZE = 64
_WEIGHT_SCALE = 0.02
_LONGEST_CONTEXT = 131072  # costs nothing here; a server reserves what it is asked for
_NORMAL_TOKEN, _CONTROL_TOKEN = 1, 3  # the GGUF format's token types

# Every message is its role's mark, its text and the end mark, as Zephyr's models have it.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>' + message.content + '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class BuiltModel:
    """A GGUF file, the tokenizer.json that it holds, and how many weights it has."""

    path: Path
    tokenizer_path: Path
    parameters: int


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Vocabulary:
    """A byte-level BPE vocabulary as tokenizer.json holds it, tokens in the order of their ids."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    special: frozenset[str]

    @property
    def speakable(self) -> list[bool]:
        """Which tokens are one whole English word, so that each arrives as text of its own."""
        return [self._is_word(token) for token in self.tokens]

    def _is_word(self, token: str) -> bool:
        text = token.removeprefix("Ġ")  # how byte-level BPE writes a space
        return token not in self.special and text.isascii() and text.isalpha()


def built_model(layers: int, width: int) -> BuiltModel:
    """The Llama with `layers` layers of `width`, built where the cache folder lacks it.

    The same shape gives the same weights on every machine. `width` is a multiple of 64.
    Raises EndpointError where the cache cannot be written.
    """
    if layers < 1 or width < 1 or width % _HEAD_SIZE:
        raise ValueError(f"{layers} layers of width {width}: width must be a multiple of 64")
    tokenizer_path = docs_tokenizer_path()
    text = tokenizer_path.read_bytes()
    vocabulary = _vocabulary(json.loads(text))
    tensors = list(_tensors(layers, width, len(vocabulary.tokens)))
    path = cache_dir() / f"llama-{layers}x{width}-{_digest(text)}.gguf"
    if not path.exists():
        try:
            _write_atomically(path, layers, width, vocabulary, tensors)
        except OSError as error:
            raise EndpointError(f"the model cannot be written to {path}: {error}") from error
    return BuiltModel(path, tokenizer_path, sum(tensor.parameters for tensor in tensors))


def _digest(tokenizer: bytes) -> str:
    recipe = f"{_RECIPE}/{_SEED}/{_CHAT_TEMPLATE}/".encode()
    return hashlib.sha256(recipe + tokenizer).hexdigest()[:12]


def _vocabulary(tokenizer: dict[str, Any]) -> _Vocabulary:
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    return _Vocabulary(
        tokens=tuple(sorted(ids, key=ids.__getitem__)),
        merges=tuple(m if isinstance(m, str) else " ".join(m) for m in model["merges"]),
        special=frozenset(token["content"] for token in added),
    )


def _feed_forward(width: int) -> int:
    """Llama's 8/3 of the width, rounded up to a multiple of 16."""
    return math.ceil(8 * width / 3 / 16) * 16


def _tensors(layers: int, width: int, vocabulary: int) -> Iterator[_Tensor]:
    """Every tensor of the model under its GGUF name; one-dimensional ones are norms."""
    inner = _feed_forward(width)
    yield _Tensor("token_embd.weight", (vocabulary, width))
    yield _Tensor("output_norm.weight", (width,))
    yield _Tensor("output.weight", (vocabulary, width))
    for block in (f"blk.{layer}." for layer in range(layers)):
        yield _Tensor(f"{block}attn_norm.weight", (width,))
        yield _Tensor(f"{block}ffn_norm.weight", (width,))
        for part in ("q", "k", "v", "output"):
            yield _Tensor(f"{block}attn_{part}.weight", (width, width))
        yield _Tensor(f"{block}ffn_gate.weight", (inner, width))
        yield _Tensor(f"{block}ffn_up.weight", (inner, width))
        yield _Tensor(f"{block}ffn_down.weight", (width, inner))


def _write_atomically(
    path: Path, layers: int, width: int, vocabulary: _Vocabulary, tensors: Sequence[_Tensor]
) -> None:
    """Write the model so that `path` holds all of it or is not there, also with two writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        _write(partial, layers, width, vocabulary, tensors)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _write(
    path: str, layers: int, width: int, vocabulary: _Vocabulary, tensors: Sequence[_Tensor]
) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    _add_shape(writer, layers, width, len(vocabulary.tokens))
    _add_tokenizer(writer, vocabulary)
    _add_weights(writer, tensors, vocabulary.speakable)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: GGUFWriter, layers: int, width: int, vocabulary: int) -> None:
    writer.add_context_length(_LONGEST_CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(_feed_forward(width))
    writer.add_head_count(width // _HEAD_SIZE)
    writer.add_head_count_kv(width // _HEAD_SIZE)
    writer.add_rope_dimension_count(_HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)


def _add_tokenizer(writer: GGUFWriter, vocabulary: _Vocabulary) -> None:
    """Add the tokenizer as llama.cpp reads it: GPT-2's, byte-level with GPT-2's splitting."""
    special = [token in vocabulary.special for token in vocabulary.tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([_CONTROL_TOKEN if s else _NORMAL_TOKEN for s in special])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.tokens.index("<s>"))
    writer.add_eos_token_id(vocabulary.tokens.index("</s>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)


def _add_weights(writer: GGUFWriter, tensors: Sequence[_Tensor], speakable: Sequence[bool]) -> None:
    """Add seeded weights; rows of the output for tokens that are no word are zero.

    A zero row is never the likeliest token, so greedy decoding gives one word a token. A byte of
    a longer character or a control token would reach a client late, or never.
    """
    import numpy as np

    rng = np.random.default_rng(_SEED)
    for tensor in tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.ones(tensor.shape, np.float32))
            continue
        weights = rng.standard_normal(tensor.shape, np.float32) * np.float32(_WEIGHT_SCALE)
        if tensor.name == "output.weight":
            weights *= np.asarray(speakable, np.float32)[:, None]
        writer.add_tensor(tensor.name, weights.astype(np.float16))

"""From workloads to the payloads of a run. Knows filters, salts, order; not who is asked.

A payload's tokens are those of its whole prompt as sent: salt, template and data together; for
messages, of their contents one after the other. The same config and seed give the same bytes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmgauge.config import LoadedConfig
from fmgauge.config.model import Workload
from fmgauge.errors import ConfigError
from fmgauge.records import Payload, write_json, write_payloads
from fmgauge.runs import Run
from fmgauge.workloads.fitting import context_problems, gguf_problems
from fmgauge.workloads.prompts import Prompt, prompt_of, template_problems
from fmgauge.workloads.rows import Row
from fmgauge.workloads.salts import salt_from
from fmgauge.workloads.sources import needs_network, source_rows
from fmgauge.workloads.tokenizer import (
    PromptTokenizer,
    TokenizerChoice,
    load_tokenizer,
    needs_hub,
    tokenizer_choice,
)

_FEWEST_PROMPTS = 2  # one to measure, one to warm up
_FEWEST_RESERVED = 8


@dataclass(frozen=True)
class PreparedWorkload:
    """One workload's payloads in sending order, and how they were chosen."""

    name: str
    payloads: tuple[Payload, ...]
    tokenizer: str
    approximate: bool
    datasets: tuple[str, ...]
    rows_read: int
    rows_dropped: Mapping[str, int]  # by filter, in the order of filtering
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """How many payloads there are, reserved ones among them."""
        return len(self.payloads)

    @property
    def min_prompt_tokens(self) -> int:
        """Tokens of the shortest whole prompt."""
        return min(payload.prompt_tokens for payload in self.payloads)

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest whole prompt."""
        return max(payload.prompt_tokens for payload in self.payloads)

    def summary(self) -> dict[str, Any]:
        """How the payloads were chosen, as plain data; what workloads.json holds by name."""
        return {
            "datasets": list(self.datasets),
            "tokenizer": self.tokenizer,
            "approximate": self.approximate,
            "rows_read": self.rows_read,
            "rows_dropped": dict(self.rows_dropped),
            "prompts": self.kept,
            "prompts_reserved": sum(payload.reserved for payload in self.payloads),
            "prompt_tokens_mean": sum(one.prompt_tokens for one in self.payloads) / self.kept,
            "prompt_tokens_min": self.min_prompt_tokens,
            "prompt_tokens_max": self.max_prompt_tokens,
            "notes": list(self.notes),
        }


def prepare_payloads(run: Run) -> list[PreparedWorkload]:
    """Choose every workload's payloads and write them, and how they were chosen, into the run.

    Raises ConfigError with every problem found, before anything is written.
    """
    prepared = check_workloads(run.loaded)
    for workload in prepared:
        write_payloads(run.payloads_path(workload.name), workload.payloads)
    write_json(run.workloads_path, {workload.name: workload.summary() for workload in prepared})
    return prepared


def check_workloads(loaded: LoadedConfig, *, offline: bool = False) -> list[PreparedWorkload]:
    """Choose every workload's payloads and write nothing.

    Also asks whether this machine's endpoints have their model files, and room for the payloads.
    With `offline`, workloads whose data or tokenizer are not on this machine are left out.
    Raises ConfigError with every problem found.
    """
    preparation = _Preparation(loaded)
    prepared: list[PreparedWorkload] = []
    problems = [*template_problems(loaded), *gguf_problems(loaded)]
    for index, workload in enumerate(loaded.config.workloads):
        if offline and _is_elsewhere(loaded, workload):
            continue
        try:
            prepared.append(preparation.workload(index))
        except ConfigError as error:
            problems.extend(error.problems)
    problems.extend(context_problems(loaded, {one.name: one.payloads for one in prepared}))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return prepared


def _is_elsewhere(loaded: LoadedConfig, workload: Workload) -> bool:
    """Whether the workload's data or tokenizer must come over the network."""
    choice = tokenizer_choice(loaded, workload)
    return needs_network(loaded, workload.source) or needs_hub(loaded, choice)


@dataclass(frozen=True)
class _Counted:
    """The different prompts of one source, with their tokens, before any window."""

    prompts: list[tuple[Prompt, int]]
    datasets: tuple[str, ...]
    rows_read: int
    dropped: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Preparation:
    """Prepares a config's workloads; what two of them share is read and counted once."""

    loaded: LoadedConfig
    tokenizers: dict[str | None, PromptTokenizer] = field(default_factory=dict)
    counted: dict[tuple[object, ...], _Counted] = field(default_factory=dict)

    def workload(self, index: int) -> PreparedWorkload:
        """The payloads of workload number `index`."""
        workload = self.loaded.config.workloads[index]
        choice = tokenizer_choice(self.loaded, workload)
        counted = self._counted(index, choice)
        dropped = Counter(_outside(workload, tokens) for _, tokens in counted.prompts)
        kept = [one for one in counted.prompts if _outside(workload, one[1]) is None]
        random.Random(f"{self.loaded.config.run.seed}/{workload.name}").shuffle(kept)
        chosen = kept[: workload.max_prompts]
        rows_dropped = {
            **counted.dropped,
            "min_tokens": dropped["min_tokens"],
            "max_tokens": dropped["max_tokens"],
            "max_prompts": len(kept) - len(chosen),
        }
        if len(chosen) < _FEWEST_PROMPTS:
            raise _too_few(self.loaded, index, counted, rows_dropped, choice.label)
        return PreparedWorkload(
            name=workload.name,
            payloads=tuple(_payloads(workload, chosen)),
            tokenizer=choice.label,
            approximate=choice.approximate,
            datasets=counted.datasets,
            rows_read=counted.rows_read,
            rows_dropped=rows_dropped,
            notes=counted.notes,
        )

    def _counted(self, index: int, choice: TokenizerChoice) -> _Counted:
        workload = self.loaded.config.workloads[index]
        source = workload.source.model_dump_json()
        language = workload.filter.language
        key = (source, workload.template, language, workload.salt, choice.named)
        if key not in self.counted:
            self.counted[key] = _count_prompts(self.loaded, index, self._tokenizer(choice))
        return self.counted[key]

    def _tokenizer(self, choice: TokenizerChoice) -> PromptTokenizer:
        if choice.named not in self.tokenizers:
            self.tokenizers[choice.named] = load_tokenizer(self.loaded, choice)
        return self.tokenizers[choice.named]


def _count_prompts(loaded: LoadedConfig, index: int, tokenizer: PromptTokenizer) -> _Counted:
    """Read, fill in, salt and count the rows of workload number `index`."""

    def whole_prompt(number: int, text: str) -> str:
        prompt = prompt_of(loaded, index, Row({"prompt": text}))
        return _with_salt(loaded, index, number, prompt).text

    source = source_rows(loaded, index, whole_prompt, tokenizer.count)
    language = loaded.config.workloads[index].filter.language
    spoken = [
        (number, row)
        for number, row in enumerate(source.rows)
        if language is None or row.values.get("language") == language
    ]
    different: dict[bytes, Prompt] = {}
    for number, row in spoken:
        prompt = prompt_of(loaded, index, row)
        different.setdefault(prompt.key, _with_salt(loaded, index, number, prompt))
    prompts = list(different.values())
    tokens = tokenizer.count([prompt.text for prompt in prompts])
    dropped = {
        "language": len(source.rows) - len(spoken),
        "duplicate": len(spoken) - len(prompts),
    }
    counted = list(zip(prompts, tokens, strict=True))
    return _Counted(counted, source.datasets, len(source.rows), dropped, source.notes)


def _with_salt(loaded: LoadedConfig, index: int, number: int, prompt: Prompt) -> Prompt:
    """The prompt of row `number` with a salt of its own, where its workload is salted."""
    if not loaded.config.workloads[index].salt:
        return prompt
    return prompt.with_salt(salt_from(f"{loaded.config.run.seed}/{number}"))


def _outside(workload: Workload, tokens: int) -> str | None:
    """The bound that a prompt of so many tokens breaks; None within the window."""
    window = workload.filter
    if tokens < window.min_tokens:
        return "min_tokens"
    if window.max_tokens is not None and tokens > window.max_tokens:
        return "max_tokens"
    return None


def _payloads(workload: Workload, chosen: Sequence[tuple[Prompt, int]]) -> Iterator[Payload]:
    """The chosen prompts as payloads; the last ones are reserved for warm-up and drain."""
    number = len(chosen)
    reserved = min(max(_FEWEST_RESERVED, -(-number // 10)), number // 2)
    for position, (prompt, tokens) in enumerate(chosen):
        yield Payload(
            payload_id=f"{workload.name}-{position:04d}",
            prompt=prompt.prompt,
            messages=prompt.messages,
            prompt_tokens=tokens,
            max_output_tokens=prompt.max_tokens or workload.max_output_tokens,
            salt=prompt.salt,
            reserved=position >= number - reserved,
            session_id=prompt.session_id,
        )


def _too_few(
    loaded: LoadedConfig,
    index: int,
    counted: _Counted,
    dropped: Mapping[str, int],
    tokenizer: str,
) -> ConfigError:
    """An empty window, with how many rows each filter dropped."""
    left = counted.rows_read - sum(dropped.values())
    by_filter = ", ".join(f"{name} dropped {number}" for name, number in dropped.items())
    problem = f"{left} of {counted.rows_read} rows are left: {by_filter}"
    remedy = f"At least {_FEWEST_PROMPTS} different prompts are needed; widen the filter"
    if counted.prompts:
        tokens = [tokens for _, tokens in counted.prompts]
        span = f"{min(tokens)} to {max(tokens)} tokens"
        remedy += f". They have {span}, counted with {tokenizer}"
    return loaded.error(("workloads", index, "filter"), problem, remedy)

"""llama.cpp servers of this run's own, embedded and on this machine.

Knows the engine's settings and its model; not how a server's process lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fmgauge.config import LoadedConfig
from fmgauge.config.model import Experiment, LlamacppEndpoint
from fmgauge.emulator import llamacpp_server
from fmgauge.emulator.gguf_model import built_model
from fmgauge.endpoints.local_server import LocalServerKind
from fmgauge.endpoints.protocol import endpoint_of
from fmgauge.records import Endpoint

# Every prompt is computed in full, and every answer has the length that was asked for.
_BODY: dict[str, Any] = {"cache_prompt": False, "ignore_eos": True, "temperature": 0.0}


class LlamacppKind(LocalServerKind[LlamacppEndpoint]):
    """A llama.cpp server, its model the config's or one that is built here."""

    name = "llamacpp"
    module = llamacpp_server.MODULE
    answered_by = "on the embedded llama.cpp engine"

    def prepare(self, loaded: LoadedConfig, wanted: LlamacppEndpoint) -> None:
        """Build its model, where the config names none."""
        _model_path(loaded, wanted)

    def command(
        self, loaded: LoadedConfig, wanted: LlamacppEndpoint, *, lease: Path, ready: Path
    ) -> Sequence[str]:
        """The command line that starts it."""
        return llamacpp_server.command(
            model=_model_path(loaded, wanted),
            parallel=wanted.parallel,
            threads=wanted.threads,
            context_tokens=wanted.context_tokens,
            lease=lease,
            ready=ready,
        )

    def endpoint(self, experiment: Experiment, wanted: LlamacppEndpoint) -> Endpoint:
        """It speaks the chat API, and computes all that it is asked."""
        return endpoint_of(experiment, owned=True, extra_body=dict(_BODY))

    def settings(self, wanted: LlamacppEndpoint) -> Iterator[str]:
        """The size of a model that was built here, and the engine's settings."""
        if wanted.gguf is None:
            yield f"{wanted.layers} layers, width {wanted.width}"
        yield f"{wanted.parallel} {'slot' if wanted.parallel == 1 else 'slots'}"
        yield f"{wanted.threads} {'thread' if wanted.threads == 1 else 'threads'}"
        yield f"{wanted.context_tokens} tokens a slot"

    def model_file(self, wanted: LlamacppEndpoint) -> Path | None:
        """The config's GGUF file."""
        return None if wanted.gguf is None else Path(wanted.gguf)

    def has_random_weights(self, wanted: LlamacppEndpoint) -> bool:
        """A model that is built here knows nothing."""
        return wanted.gguf is None


def _model_path(loaded: LoadedConfig, wanted: LlamacppEndpoint) -> Path:
    if wanted.gguf is None:
        return built_model(wanted.layers, wanted.width).path
    return loaded.resolve(wanted.gguf)

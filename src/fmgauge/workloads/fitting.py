"""Whether the servers of this machine can take what they are asked. Starts and reads no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fmgauge.config import LoadedConfig
from fmgauge.config.model import Experiment, LlamacppEndpoint
from fmgauge.errors import Problem
from fmgauge.records import Payload
from fmgauge.workloads.tokenizer import counts_as, tokenizer_choice

_CHAT_TEMPLATE_TOKENS = 20  # about: marks of roles and ends, and for some models a system line


def gguf_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """Every model file of an endpoint that is not there."""
    for index, experiment in enumerate(loaded.config.experiments):
        endpoint = experiment.endpoint
        if not isinstance(endpoint, LlamacppEndpoint) or endpoint.gguf is None:
            continue
        path = loaded.resolve(endpoint.gguf)
        if not path.is_file():
            problem = f"{path} is no file" if path.exists() else f"there is no file {path}"
            remedy = "Give a GGUF file, or leave gguf out to serve a small model built here"
            yield loaded.problem(("experiments", index, "endpoint", "gguf"), problem, remedy)


def context_problems(
    loaded: LoadedConfig, payloads: Mapping[str, tuple[Payload, ...]]
) -> Iterator[Problem]:
    """Every slot too small for the longest request of the workloads (`payloads`, by name).

    Asked only where a workload is counted as the endpoint's own model counts.
    """
    for index, experiment in enumerate(loaded.config.experiments):
        endpoint = experiment.endpoint
        if not isinstance(endpoint, LlamacppEndpoint):
            continue
        served = [
            (name, payload)
            for name in _counted_as_served(loaded, experiment)
            for payload in payloads.get(name, ())
        ]
        if not served:
            continue
        name, longest = max(served, key=lambda one: _needed_tokens(one[1]))
        if endpoint.context_tokens < _needed_tokens(longest):
            location = ("experiments", index, "endpoint", "context_tokens")
            problem, remedy = _too_small(endpoint.context_tokens, name, longest)
            yield loaded.problem(location, problem, remedy)


def _counted_as_served(loaded: LoadedConfig, experiment: Experiment) -> list[str]:
    choices = {
        name: tokenizer_choice(loaded, loaded.config.workload(name))
        for name in experiment.workloads
    }
    return [name for name, choice in choices.items() if counts_as(choice, experiment)]


def _needed_tokens(payload: Payload) -> int:
    return payload.prompt_tokens + payload.max_output_tokens + _CHAT_TEMPLATE_TOKENS


def _too_small(context_tokens: int, workload: str, payload: Payload) -> tuple[str, str]:
    needed = _needed_tokens(payload)
    problem = (
        f"{context_tokens} tokens are too few for {workload}, which needs {needed}: a prompt of "
        f"{payload.prompt_tokens}, up to {payload.max_output_tokens} of output, and about "
        f"{_CHAT_TEMPLATE_TOKENS} that the chat template adds"
    )
    remedy = (
        f"Set it to {needed} or more, or lower the workload's filter.max_tokens or its output's "
        "length"
    )
    return problem, remedy

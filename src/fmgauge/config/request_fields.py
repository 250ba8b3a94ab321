"""What `extra_body` may not change in a request, lest another thing is measured than was asked for.

Knows the fields that every request has, and those that change what an answer is; not how requests
are built. All other fields are the server's own affair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fmgauge.config.model import Config, OpenaiEndpoint, Workload
from fmgauge.config.yaml_text import YamlText
from fmgauge.errors import Problem

_PROMPTS = "the workload's prompts", "change the workload"
_LENGTH = "the workload's max_output_tokens", "set the length there"
_SET = {  # by API, the fields that the config sets elsewhere: to what, and what to do there
    "chat": {"messages": _PROMPTS, "max_tokens": _LENGTH},
    "completions": {"prompt": _PROMPTS, "max_tokens": _LENGTH},
    "responses": {"input": _PROMPTS, "max_output_tokens": _LENGTH},
}
_MODEL = "the experiment's model.name", "set the name there"
_ONE_ANSWER = "one request is measured as one answer"
_FIXED: dict[str, tuple[int | bool, str]] = {  # fields that have one good value, and why
    "n": (1, _ONE_ANSWER),
    "best_of": (1, _ONE_ANSWER),
    "stream": (True, "tokens are timed as they stream in"),
    "echo": (False, "the prompt's own text would be timed as the first token"),
}
_NEWER_LENGTH = "max_completion_tokens"

_Unfit = Iterator[tuple[str, str, str]]  # field, problem, remedy


def unfit_request_fields(config: Config, text: YamlText) -> Iterator[Problem]:
    """Every field of an `extra_body` that would change what is measured."""
    workloads = {workload.name: workload for workload in config.workloads}
    for index, experiment in enumerate(config.experiments):
        endpoint = experiment.endpoint
        if not isinstance(endpoint, OpenaiEndpoint):
            continue
        served = [workloads[name] for name in experiment.workloads if name in workloads]
        for field, problem, remedy in _unfit_fields(endpoint, served):
            location = ("experiments", index, "endpoint", "extra_body", field)
            yield text.problem(location, problem, remedy)


def _unfit_fields(endpoint: OpenaiEndpoint, served: list[Workload]) -> _Unfit:
    extra = endpoint.extra_body
    for field, (source, remedy) in (_SET[endpoint.api] | {"model": _MODEL}).items():
        if field in extra:
            yield field, f"is taken from {source}", f"Remove it, and {remedy}"
    for field, (wanted, why) in _FIXED.items():
        if field in extra and not _is(extra[field], wanted):
            yield field, f"must be {json.dumps(wanted)}: {why}", "Remove it"
    if endpoint.api != "responses":
        yield from _unfit_stream_options(extra)
        yield from _unfit_length(extra, served)


def _is(value: Any, wanted: int | bool) -> bool:
    """Whether `value` is `wanted` and of its type: to Python, 1 and true are equal."""
    return type(value) is type(wanted) and value == wanted


def _unfit_stream_options(extra: dict[str, Any]) -> _Unfit:
    options = extra.get("stream_options", {"include_usage": True})
    if not isinstance(options, dict) or options.get("include_usage") is not True:
        problem = "must hold include_usage: true, which asks for the server's token counts"
        yield "stream_options", problem, "Add it, or remove stream_options"


def _unfit_length(extra: dict[str, Any], served: list[Workload]) -> _Unfit:
    """The newer name of the output length: models that want it get it here, but no other length."""
    if _NEWER_LENGTH not in extra:
        return
    for workload in served:
        length = _length_asked(workload)
        if length is None or not _is(extra[_NEWER_LENGTH], length):
            own = "output lengths" if length is None else f"{length} output tokens"
            problem = f"would replace the {own} that workload {workload.name!r} asks for"
            yield _NEWER_LENGTH, problem, "Make them equal"


def _length_asked(workload: Workload) -> int | None:
    """The most output tokens that every prompt of `workload` asks for; None where they differ."""
    drawn = workload.source.output_tokens if workload.source.kind == "synthetic" else None
    if drawn is None:
        return workload.max_output_tokens
    return drawn.value if drawn.kind == "fixed" else None

"""From a workload's source to its rows, by kind. Knows which reader reads what; not how."""

from __future__ import annotations

from fmgauge.config import LoadedConfig
from fmgauge.config.model import (
    HuggingfaceSource,
    JsonlSource,
    PythonDocsSource,
    Source,
    SyntheticSource,
)
from fmgauge.workloads.huggingface import huggingface_rows, is_on_hub
from fmgauge.workloads.jsonl import jsonl_rows
from fmgauge.workloads.python_docs import python_docs_rows
from fmgauge.workloads.rows import SourceRows
from fmgauge.workloads.s3 import is_s3
from fmgauge.workloads.synthetic import Count, WholePrompt, synthetic_rows


def source_rows(
    loaded: LoadedConfig, index: int, whole_prompt: WholePrompt, count: Count
) -> SourceRows:
    """The rows of workload number `index`, in their source's own order.

    `whole_prompt` and `count` are for sources that make their rows to a length.
    Raises ConfigError naming the data file and line, or the config's.
    """
    location = ("workloads", index, "source")
    source = loaded.config.workloads[index].source
    match source:
        case JsonlSource():
            return jsonl_rows(loaded, location, source)
        case PythonDocsSource():
            return python_docs_rows()
        case SyntheticSource():
            return synthetic_rows(loaded, location, source, whole_prompt, count)
        case HuggingfaceSource():
            return huggingface_rows(loaded, location, source)


def needs_network(loaded: LoadedConfig, source: Source) -> bool:
    """Whether reading `source` asks anything of the network."""
    match source:
        case JsonlSource():
            return any(is_s3(path) for path in source.paths)
        case HuggingfaceSource():
            return is_on_hub(loaded, source)
        case PythonDocsSource() | SyntheticSource():
            return False

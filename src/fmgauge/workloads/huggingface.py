"""Rows of a Hugging Face data set: a hub id, or a local folder. Knows `datasets`; not prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fmgauge.config import LoadedConfig
from fmgauge.config.model import HuggingfaceSource
from fmgauge.config.yaml_text import Location
from fmgauge.workloads.rows import Row, SourceRows


def is_on_hub(loaded: LoadedConfig, source: HuggingfaceSource) -> bool:
    """Whether `source` names a hub id: it looks like no path, and no local folder has its name."""
    return not source.id.startswith(("/", ".", "~")) and not loaded.resolve(source.id).is_dir()


def huggingface_rows(
    loaded: LoadedConfig, location: Location, source: HuggingfaceSource
) -> SourceRows:
    """The rows of one split, with the columns that `source` renames under both names.

    Raises ConfigError where `datasets` is not installed, gives no such data set, configuration or
    split, or where the data lack a column.
    """
    data = _load(loaded, location, source)
    for wanted, column in source.columns.items():
        if column not in data.column_names:
            there = f"Columns there: {', '.join(data.column_names)}"
            place = (*location, "columns", wanted)
            raise loaded.error(place, f"the data have no column {column!r}", there)
    name = f"{source.id} ({', '.join(filter(None, (source.config, source.split)))})"
    return SourceRows(list(_rows(data, name, source.columns)), (name,))


def _rows(data: Any, name: str, columns: dict[str, str]) -> Iterator[Row]:
    for number, row in enumerate(data, start=1):
        renamed = {wanted: row[column] for wanted, column in columns.items()}
        yield Row({**row, **renamed}, name, number)


def _load(loaded: LoadedConfig, location: Location, source: HuggingfaceSource) -> Any:
    """The split as a `datasets.Dataset`; no code that comes with the data is run."""
    try:
        from datasets.exceptions import DatasetsError
        from datasets.load import load_dataset
    except ModuleNotFoundError as error:
        problem = "the package datasets is not installed"
        remedy = "Install it: pip install 'fmgauge[huggingface]'"
        raise loaded.error((*location, "kind"), problem, remedy) from error

    name = source.id if is_on_hub(loaded, source) else str(loaded.resolve(source.id))
    try:
        return load_dataset(name, source.config, split=source.split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0]
        problem = f"{source.id} cannot be loaded: {reason}"
        remedy = "Check id (a hub id, or a folder), config and split"
        raise loaded.error(location, problem, remedy) from error

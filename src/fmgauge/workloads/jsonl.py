"""Rows from JSON-lines files, on disk or in S3. Knows files and lines; not what columns mean."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import PurePath

import orjson

from fmgauge.config import LoadedConfig
from fmgauge.config.model import JsonlSource
from fmgauge.config.yaml_text import Location
from fmgauge.errors import ConfigError, Problem
from fmgauge.workloads.rows import Row, SourceRows
from fmgauge.workloads.s3 import is_s3, s3_objects

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def jsonl_rows(loaded: LoadedConfig, location: Location, source: JsonlSource) -> SourceRows:
    """The rows of every file that `source` names, in the order of its paths; blank lines are none.

    Raises ConfigError for a path that names nothing, and for a line that is no JSON object.
    """
    contents: dict[str, bytes] = {}
    for number, path in enumerate(source.paths):
        read = s3_objects if is_s3(path) else _local_files
        contents.update(read(loaded, (*location, "paths", number), path))
    rows = [row for file, content in contents.items() for row in _rows(file, content)]
    return SourceRows(rows, tuple(PurePath(file).name for file in contents))


def _local_files(
    loaded: LoadedConfig, location: Location, path: str
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files that `path`, a file or a glob, names."""
    names = [path] if loaded.resolve(path).exists() else _globbed(loaded, path)
    if not names:
        remedy = "Relative paths start at the project's root"
        problem = "matches no file" if glob.has_magic(path) else "there is no such file"
        raise loaded.error(location, f"{path}: {problem}", remedy)
    for name in names:
        try:
            yield name, loaded.resolve(name).read_bytes()
        except OSError as error:
            problem = f"{name} cannot be read: {error.strerror}"
            raise loaded.error(location, problem, "Give a readable file, or a glob") from error


def _globbed(loaded: LoadedConfig, pattern: str) -> list[str]:
    found = glob.glob(pattern, root_dir=loaded.base_dir, recursive=True)
    return sorted(name for name in found if loaded.resolve(name).is_file())


def _rows(file: str, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.removeprefix(_BYTE_ORDER_MARK).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _unusable(file, number, f"is not JSON: {error.msg}") from error
        if not isinstance(values, dict):
            raise _unusable(file, number, "is no JSON object")
        yield Row(values, file, number)


def _unusable(file: str, line: int, problem: str) -> ConfigError:
    remedy = "Write one JSON object on each line"
    return ConfigError(Problem(file, line, "", f"this line {problem}", remedy))

"""Rows: the cheap form in which finished requests are told of, and the columns they become.

Knows a record's columns and their types; knows no files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from fmgauge.records.nouns import RequestRecord, StageKey

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[Any, ...]
"""One finished request: the values of ROW_FIELDS, each a str, float, int, bool, bytes or None.

Instants are absolute readings of the measuring clock. `token_at_s` is packed doubles
(`array("d", ...).tobytes()`), `chunk_tokens` packed 32-bit integers (`array("i", ...)`) or None.
"""

_FIELDS = tuple(field.name for field in fields(RequestRecord))
_SHARED = ("experiment", "workload", "stage", "replication", "worker")  # by all rows of one telling
ROW_FIELDS = tuple(name for name in _FIELDS if name not in _SHARED)


@cache
def record_schema() -> pa.Schema:
    """The Parquet columns of a request record, in the record's own order."""
    import pyarrow as pa

    special = {
        "token_at_s": pa.list_(pa.float64()),
        "chunk_tokens": pa.list_(pa.int32()),
        "connection_reused": pa.bool_(),
        "resent": pa.bool_(),
        "http_status": pa.int32(),
        "replication": pa.int32(),
        "worker": pa.int32(),
    }
    return pa.schema([(name, special.get(name) or _type_by_name(name)) for name in _FIELDS])


def _type_by_name(name: str) -> pa.DataType:
    """Units are in the names, so the names tell the types."""
    import pyarrow as pa

    if name.endswith("_s"):
        return pa.float64()
    return pa.int64() if name.endswith("_tokens") else pa.string()


def records_table(records: Iterable[RequestRecord]) -> pa.Table:
    """Request records as an Arrow table, one row a request."""
    import pyarrow as pa

    rows = [{name: getattr(record, name) for name in _FIELDS} for record in records]
    return pa.Table.from_pylist(rows, schema=record_schema())


def rows_batch(
    rows: Sequence[Row], *, key: StageKey, replication: int, worker: int, origin_s: float
) -> pa.RecordBatch:
    """Rows as an Arrow batch of records, with instants in seconds since `origin_s`.

    Column by column, so that no object is made for a token, and none for a request.
    """
    import pyarrow as pa

    shared = {
        **{"experiment": key.experiment, "workload": key.workload, "stage": key.stage},
        **{"replication": replication, "worker": worker},
    }
    told = zip(*rows, strict=True) if rows else ((),) * len(ROW_FIELDS)
    values = dict(zip(ROW_FIELDS, told, strict=True))
    columns = [
        pa.repeat(pa.scalar(shared[field.name], field.type), len(rows))
        if field.name in shared
        else _column(field, values[field.name], origin_s)
        for field in record_schema()
    ]
    return pa.RecordBatch.from_arrays(columns, schema=record_schema())


def _column(field: pa.Field[Any], values: Sequence[Any], origin_s: float) -> pa.Array[Any]:
    """One column's values as its Arrow array; instants become seconds since `origin_s`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if field.name == "token_at_s":
        return _lists(values, "d", field.type, origin_s)
    if field.name == "chunk_tokens":
        return _lists(values, "i", field.type, 0)
    if field.type == pa.string():
        return _texts(values)
    array = pa.array(values, field.type)
    return pc.subtract(array, origin_s) if field.name.endswith("_at_s") else array


def _texts(values: Sequence[str | None]) -> pa.Array[Any]:
    """Texts as they are; what is no Unicode in one of them, half of a pair, becomes a `?`."""
    import pyarrow as pa

    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        written = (text and text.encode(errors="replace").decode() for text in values)
        return pa.array(list(written), pa.string())


def _lists(
    packed: Sequence[bytes | None], code: str, kind: pa.DataType, origin: float
) -> pa.Array[Any]:
    """Packed numbers of array code `code`, one list a request, each less `origin`."""
    import numpy as np
    import pyarrow as pa

    n_missing = packed.count(None)
    if n_missing == len(packed):
        return pa.nulls(len(packed), kind)
    given = [one or b"" for one in packed]
    lengths = np.fromiter(map(len, given), np.int64, len(given)) // array(code).itemsize
    numbers = np.frombuffer(b"".join(given), dtype=code)
    offsets = np.zeros(len(given) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    missing = pa.array([one is None for one in packed]) if n_missing else None
    values = pa.array(numbers - origin if origin else numbers)
    return pa.ListArray.from_arrays(offsets, values, type=kind, mask=missing)


def record_of(
    row: Row, *, key: StageKey, replication: int = 0, worker: int = 0, origin_s: float
) -> RequestRecord:
    """One row as a record, with instants in seconds since `origin_s`."""
    told = dict(zip(ROW_FIELDS, row, strict=True))
    counts = told.pop("chunk_tokens")
    tokens_at_s = array("d", told.pop("token_at_s"))
    for name, value in told.items():
        if name.endswith("_at_s") and value is not None:
            told[name] = value - origin_s
    return RequestRecord(
        experiment=key.experiment,
        workload=key.workload,
        stage=key.stage,
        replication=replication,
        worker=worker,
        token_at_s=[at_s - origin_s for at_s in tokens_at_s],
        chunk_tokens=None if counts is None else list(array("i", counts)),
        **told,
    )

"""A stage's folder: written as its requests finish, there only when complete, read in pieces.

Knows Parquet, and how much of a stage may be held at once; knows no formulas.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fmgauge.records.files import read_json, write_json
from fmgauge.records.nouns import ClientUse, RequestRecord, StageInfo, StageKey
from fmgauge.records.rows import ROW_FIELDS, Row, record_schema, records_table, rows_batch

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Batches = Callable[[Sequence[str]], Iterator["pa.RecordBatch"]]
"""Names of columns to a stage's records, some at a time, in the order of writing; repeatable."""

GROUP_BYTES = 1 << 24  # of a row group, uncompressed: about what is held before it is written
_REPEATING = (
    *("experiment", "workload", "stage", "phase", "payload_id", "session_id", "status"),
    *("token_source", "error", "finish_reason"),
)
_ROWS_AT_ONCE = 2048
_PHASE, _STATUS = ROW_FIELDS.index("phase"), ROW_FIELDS.index("status")
_TEXT, _OUTPUT_TOKENS = ROW_FIELDS.index("response_text"), ROW_FIELDS.index("output_tokens")


class StageWriter:
    """Writes one stage's requests as they finish; its folder appears only once it is complete.

    Ended by `finish` or by `fail`; as a context manager that is left without either, it leaves
    nothing behind. What is held in memory is one row group. What an earlier try of the stage left
    as `<stage>.failed` is removed once the stage is there whole, so that nobody counts both.
    Raises OSError where the disk takes no more. What was written by then cannot be read, so that
    `finish` and `fail` raise the same from then on.
    """

    def __init__(self, folder: Path, key: StageKey, *, replication: int = 0) -> None:
        self.n_rows = 0
        self.n_measured = 0
        self.n_failed = 0  # of the measured ones
        self._folder = folder
        self._key = key
        self._replication = replication
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._told: dict[tuple[int, float], list[Row]] = {}  # by worker and origin
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._has_uncounted = False
        self._has_ended = False
        self._disk_error: OSError | None = None
        shutil.rmtree(self._partial, ignore_errors=True)  # a killed run's leftovers
        self._partial.mkdir(parents=True)
        self._parquet = _parquet_writer(self._partial / "part-0.parquet")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._has_ended:
            self._discard()

    def write(self, rows: Sequence[Row], *, worker: int, origin_s: float) -> None:
        """Add finished requests, whose instants count from `origin_s` on the measuring clock."""
        self._count(rows)
        told = self._told.setdefault((worker, origin_s), [])
        told.extend(rows)
        if len(told) >= _ROWS_AT_ONCE:
            self._convert(worker, origin_s)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add requests that are records already, as they are; they are in no count."""
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= GROUP_BYTES:
            self._flush()

    def finish(self, info: StageInfo, *, count_tokens: Callable[[str], int] | None) -> None:
        """Complete the stage and put it in its place; an earlier writing of it is replaced.

        Where the server told no output count, `count_tokens` counts the text, which was kept for
        this and is dropped. A kill at any moment leaves either writing whole, or no stage.
        """
        self._close()
        if self._has_uncounted and count_tokens is not None:
            _count_file(self._partial / "part-0.parquet", count_tokens)
        write_json(self._partial / "stage.json", asdict(info))
        _put_in_place(self._partial, self._folder)
        self._has_ended = True
        shutil.rmtree(self._failed, ignore_errors=True)

    def fail(self, reason: str) -> Path | None:
        """Keep what was written beside the stage's place, as no stage; None without any request.

        The folder, `<stage>.failed`, holds the records and failure.json: `reason`, `n_records`.
        """
        self._close()
        if not self.n_rows:
            self._discard()
            return None
        write_json(self._partial / "failure.json", {"reason": reason, "n_records": self.n_rows})
        _put_in_place(self._partial, self._failed)
        self._has_ended = True
        return self._failed

    @property
    def _failed(self) -> Path:
        return self._folder.with_name(f"{self._folder.name}.failed")

    def _count(self, rows: Sequence[Row]) -> None:
        self.n_rows += len(rows)
        for row in rows:
            if row[_PHASE] == "measured":
                self.n_measured += 1
                self.n_failed += row[_STATUS] != "ok"
            if row[_TEXT] and row[_OUTPUT_TOKENS] is None:
                self._has_uncounted = True

    def _convert(self, worker: int, origin_s: float) -> None:
        """Turn rows into records: many at once, for each turning has its price."""
        batch = rows_batch(
            self._told.pop((worker, origin_s)),
            key=self._key,
            replication=self._replication,
            worker=worker,
            origin_s=origin_s,
        )
        self.write_batch(_without_empty_texts(batch))

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            table = pa.Table.from_batches(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            with self._on_disk():
                self._parquet.write_table(table, row_group_size=table.num_rows)

    def _close(self) -> None:
        for worker, origin_s in list(self._told):
            self._convert(worker, origin_s)
        self._flush()
        with self._on_disk():
            self._parquet.close()

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Note that the disk takes no more: Parquet's own writer goes on as if nothing were."""
        if self._disk_error is not None:
            raise self._disk_error
        try:
            yield
        except OSError as error:
            self._disk_error = error
            raise

    def _discard(self) -> None:
        with suppress(OSError):
            self._parquet.close()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._has_ended = True


def _parquet_writer(path: Path) -> pq.ParquetWriter:
    import pyarrow.parquet as pq

    instants = [f.name for f in record_schema() if f.name.endswith("_at_s")]
    instants[instants.index("token_at_s")] = "token_at_s.list.element"
    return pq.ParquetWriter(
        path,
        record_schema(),
        compression="zstd",
        use_dictionary=list(_REPEATING),
        use_byte_stream_split=instants,  # neighbours share their high bytes: a third of the size
    )


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename a complete folder to its name; what has that name is replaced."""
    if folder.exists():
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        folder.replace(replaced)
        partial.replace(folder)
        shutil.rmtree(replaced)
    else:
        partial.replace(folder)


# --- output tokens that the server did not count -------------------------------------------------


def _uncounted(records: pa.RecordBatch | pa.Table) -> Any:
    """Which records keep a text because nobody told how many tokens it is."""
    import pyarrow.compute as pc

    no_count = pc.is_null(records.column("output_tokens"))
    return pc.and_(no_count, pc.is_valid(records.column("response_text")))


def _without_empty_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without the empty texts that were kept to be counted: there is nothing to count."""
    import pyarrow.compute as pc

    texts = batch.column("response_text")
    empty = pc.and_(_uncounted(batch), pc.fill_null(pc.equal(texts, ""), False))
    if not empty.true_count:
        return batch
    place = batch.schema.get_field_index("response_text")
    return batch.set_column(place, batch.schema.field(place), pc.if_else(empty, None, texts))


def _count_file(path: Path, count_tokens: Callable[[str], int]) -> None:
    """Write the file anew with every output counted, a row group at a time."""
    import pyarrow.parquet as pq

    anew = path.with_name(f".{path.name}.counted")
    try:
        with pq.ParquetFile(path) as old, _parquet_writer(anew) as new:
            for number in range(old.num_row_groups):
                table = _counted(old.read_row_group(number), count_tokens)
                new.write_table(table, row_group_size=table.num_rows)
        anew.replace(path)
    finally:
        anew.unlink(missing_ok=True)  # of a tokenizer that failed; the records may still be kept


def _counted(table: pa.Table, count_tokens: Callable[[str], int]) -> pa.Table:
    """The records with output tokens counted from their texts, which are dropped.

    Records whose tokens are known keep their texts: those were asked for.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.combine_chunks()
    uncounted = _uncounted(table).combine_chunks()
    texts = pc.filter(table["response_text"], uncounted).to_pylist()
    counts = pa.array([count_tokens(text) for text in texts], pa.int64())
    told = pc.replace_with_mask(table["output_tokens"].combine_chunks(), uncounted, counts)
    kept = pc.if_else(uncounted, None, table["response_text"])
    for name, column in (("output_tokens", told), ("response_text", kept)):
        table = table.set_column(table.schema.get_field_index(name), table.field(name), column)
    return table


# --- writing and reading stages whole ------------------------------------------------------------


def write_stage(folder: Path, info: StageInfo, records: Iterable[RequestRecord]) -> None:
    """Write one stage's records and facts; the folder appears only once both are complete."""
    remaining = iter(records)
    with StageWriter(folder, info.key, replication=info.replication) as writer:
        while some := list(islice(remaining, _ROWS_AT_ONCE)):
            for batch in records_table(some).to_batches():
                writer.write_batch(batch)
        writer.finish(info, count_tokens=None)


def open_stage(folder: Path) -> tuple[StageInfo, Batches]:
    """One stage's facts, and the way to its records a row group at a time, as they were written."""
    return _read_info(folder), lambda columns: _file_batches(folder, columns)


def _file_batches(folder: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                group = _with_all(columns, file.read_row_group(number, columns=list(columns)))
                yield from group.to_batches(max_chunksize=_ROWS_AT_ONCE)


def _with_all(columns: Sequence[str], group: pa.Table) -> pa.Table:
    """The columns in that order; one that records did not have when they were written is empty."""
    import pyarrow as pa

    for name in set(columns) - set(group.column_names):
        field = record_schema().field(name)
        group = group.append_column(field, pa.nulls(group.num_rows, field.type))
    return group.select(list(columns))


def _read_info(folder: Path) -> StageInfo:
    facts = read_json(folder / "stage.json")
    client = facts.pop("client", None)
    return StageInfo(**facts, client=client and ClientUse(**client))


def read_stage(folder: Path) -> tuple[StageInfo, pa.Table]:
    """One stage's facts and all of its records as an Arrow table, in sending order."""
    import pyarrow as pa

    info, batches = open_stage(folder)
    schema = record_schema()
    table = pa.Table.from_batches(batches(schema.names), schema=schema)
    return info, table.sort_by("intended_at_s")


def stage_folders(requests_folder: Path) -> Iterator[Path]:
    """The folders of the stages that are done, in name order."""
    for marker in sorted(requests_folder.glob("*/*/*/stage.json")):
        if not marker.parent.name.startswith("."):
            yield marker.parent

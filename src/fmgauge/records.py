"""The nouns: payload, endpoint, stage, request record. Knows their files; not how any was made."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

if TYPE_CHECKING:
    import pyarrow as pa

Phase = Literal["warmup", "measured", "drain"]
Status = Literal[
    "ok",
    "throttled",
    "http_error",
    "timeout",
    "connection_error",
    "stream_error",
    "truncated",
    "empty",
    "cancelled",
]


@dataclass(frozen=True, slots=True)
class Payload:
    """One thing to send: a prompt or a list of messages, and the output length to ask for."""

    payload_id: str
    prompt: str | None
    messages: list[dict[str, Any]] | None
    prompt_tokens: int
    max_output_tokens: int
    salt: str | None = None  # digits at the start of the prompt, drawn anew for every sending
    reserved: bool = False  # kept for warm-up and drain, never measured
    session_id: str | None = None
    intended_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one experiment's model answers, what it runs on, and whether this run owns it."""

    experiment: str
    kind: str
    state: Literal["ready", "failed"]
    base_url: str | None
    model: str
    instance_type: str | None
    instance_count: int
    owned: bool
    error: str | None = None
    api_key_env: str | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    created_at: str | None = None
    first_answer_s: float | None = None
    resource: str | None = None  # the ledger's name for what this run created


@dataclass(frozen=True, slots=True)
class StageKey:
    """Which stage: one load level of one workload against one experiment."""

    experiment: str
    workload: str
    stage: str

    def __str__(self) -> str:
        return f"{self.experiment}/{self.workload}/{self.stage}"


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What was true of a whole stage. Instants are seconds since the stage began."""

    experiment: str
    workload: str
    stage: str
    kind: str
    concurrency: int
    started_at: str  # wall clock, UTC, ISO 8601
    window_start_s: float
    window_end_s: float
    finished_at_s: float
    replication: int
    seed: int

    @property
    def key(self) -> StageKey:
        """The stage's experiment, workload and name."""
        return StageKey(self.experiment, self.workload, self.stage)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request. Instants: seconds since its stage began, by one clock."""

    request_id: str
    experiment: str
    workload: str
    stage: str
    replication: int
    phase: Phase
    payload_id: str
    session_id: str | None
    worker: int
    intended_at_s: float
    connected_at_s: float | None
    sent_at_s: float | None
    first_byte_at_s: float | None
    token_at_s: Sequence[float]
    chunk_tokens: Sequence[int] | None
    first_content_at_s: float | None
    finished_at_s: float
    prompt_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    token_source: Literal["server", "tokenizer"]
    status: Status
    http_status: int | None
    error: str | None
    finish_reason: str | None
    server_latency_s: float | None
    connection_reused: bool
    response_text: str | None = None


def record_schema() -> pa.Schema:
    """The Parquet columns of a request record, in the record's own order."""
    import pyarrow as pa

    special = {
        "token_at_s": pa.list_(pa.float64()),
        "chunk_tokens": pa.list_(pa.int32()),
        "connection_reused": pa.bool_(),
        "http_status": pa.int32(),
        "replication": pa.int32(),
        "worker": pa.int32(),
    }
    return pa.schema([(f.name, special.get(f.name) or _type_by_name(f.name)) for f in _FIELDS])


def _type_by_name(name: str) -> pa.DataType:
    """Units are in the names, so the names tell the types."""
    import pyarrow as pa

    if name.endswith("_s"):
        return pa.float64()
    return pa.int64() if name.endswith("_tokens") else pa.string()


_FIELDS = fields(RequestRecord)


def records_table(records: Iterable[RequestRecord]) -> pa.Table:
    """Request records as an Arrow table, one row a request."""
    import pyarrow as pa

    rows = [{f.name: getattr(record, f.name) for f in _FIELDS} for record in records]
    return pa.Table.from_pylist(rows, schema=record_schema())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_atomically(path, orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")


def read_json(path: Path) -> Any:
    """The JSON value in the file at `path`."""
    return orjson.loads(path.read_bytes())


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}-{threading.get_ident()}"  # the lease has several
    partial = path.with_name(f".{path.name}.{writer}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # a full disk leaves no part behind


def write_payloads(path: Path, payloads: Iterable[Payload]) -> None:
    """Write payloads as JSON lines, in the order in which they will be sent."""
    write_atomically(path, b"".join(orjson.dumps(payload) + b"\n" for payload in payloads))


def read_payloads(path: Path) -> list[Payload]:
    """Payloads in sending order."""
    return [Payload(**orjson.loads(line)) for line in path.read_bytes().splitlines()]


def write_endpoints(path: Path, endpoints: Iterable[Endpoint]) -> None:
    """Write endpoints as one JSON object keyed by experiment."""
    write_json(path, {endpoint.experiment: asdict(endpoint) for endpoint in endpoints})


def read_endpoints(path: Path) -> dict[str, Endpoint]:
    """Endpoints by experiment; empty where none were brought up."""
    if not path.exists():
        return {}
    return {name: Endpoint(**value) for name, value in read_json(path).items()}


def write_stage(folder: Path, info: StageInfo, records: Iterable[RequestRecord]) -> None:
    """Write one stage's records and facts; the folder appears only once both are complete.

    What an earlier writing of the stage left is replaced; a kill at any moment leaves either
    writing whole, or no stage.
    """
    import pyarrow.parquet as pq

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed run's leftovers
    partial.mkdir(parents=True)
    pq.write_table(records_table(records), partial / "part-0.parquet", compression="zstd")
    write_json(partial / "stage.json", asdict(info))
    if folder.exists():
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        folder.replace(replaced)
        partial.replace(folder)
        shutil.rmtree(replaced)
    else:
        partial.replace(folder)


def read_stage(folder: Path) -> tuple[StageInfo, pa.Table]:
    """One stage's facts and its records as an Arrow table in sending order."""
    import pyarrow.dataset as ds

    info = StageInfo(**read_json(folder / "stage.json"))
    table = ds.dataset(sorted(map(str, folder.glob("*.parquet"))), format="parquet").to_table()
    return info, table.sort_by("intended_at_s")


def stage_folders(requests_folder: Path) -> Iterator[Path]:
    """The folders of the stages that are done, in name order."""
    for marker in sorted(requests_folder.glob("*/*/*/stage.json")):
        if not marker.parent.name.startswith("."):
            yield marker.parent

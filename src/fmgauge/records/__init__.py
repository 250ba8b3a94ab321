"""The nouns: payload, endpoint, stage, request record. Knows their files; not how any was made."""

from fmgauge.records.files import (
    read_endpoints,
    read_json,
    read_payloads,
    write_atomically,
    write_endpoints,
    write_json,
    write_payloads,
)
from fmgauge.records.locks import held
from fmgauge.records.nouns import (
    ClientUse,
    Endpoint,
    Payload,
    Phase,
    RequestRecord,
    StageInfo,
    StageKey,
    Status,
)
from fmgauge.records.rows import (
    ROW_FIELDS,
    Row,
    record_of,
    record_schema,
    records_table,
    rows_batch,
)
from fmgauge.records.stages import (
    Batches,
    StageWriter,
    open_stage,
    read_stage,
    stage_folders,
    write_stage,
)

__all__ = [
    "ROW_FIELDS",
    "Batches",
    "ClientUse",
    "Endpoint",
    "Payload",
    "Phase",
    "RequestRecord",
    "Row",
    "StageInfo",
    "StageKey",
    "StageWriter",
    "Status",
    "held",
    "open_stage",
    "read_endpoints",
    "read_json",
    "read_payloads",
    "read_stage",
    "record_of",
    "record_schema",
    "records_table",
    "rows_batch",
    "stage_folders",
    "write_atomically",
    "write_endpoints",
    "write_json",
    "write_payloads",
    "write_stage",
]

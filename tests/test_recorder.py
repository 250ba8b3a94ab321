"""The recorder: every frame is written, in order, and a writing that failed is not forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmgauge.load.link import rows_frame
from fmgauge.load.recorder import Recorder
from fmgauge.records import ROW_FIELDS, Row, StageKey, StageWriter

HEAD_BYTES = 5
KEY = StageKey("one", "short", "concurrency-1")


def row(number: int) -> Row:
    """A request that was answered."""
    told = dict.fromkeys(ROW_FIELDS)
    told |= {"request_id": f"r-{number}", "phase": "measured", "payload_id": "p", "status": "ok"}
    told |= {"intended_at_s": 1.0, "finished_at_s": 2.0, "token_at_s": b"", "output_tokens": 1}
    told |= {"token_source": "server", "connection_reused": True}
    return tuple(told.values())


def frames(*numbers: int) -> list[bytes]:
    """One frame for each number, without its head."""
    return [rows_frame([row(number)])[HEAD_BYTES:] for number in numbers]


def test_every_row_is_written(tmp_path: Path) -> None:
    """Leaving the block waits until all that was taken is in the writer."""
    with StageWriter(tmp_path / "stage", KEY) as writer:
        with Recorder(writer) as recorder:
            for number in range(0, 300, 3):
                recorder.take(frames(number, number + 1, number + 2), worker=0, origin_s=0.0)

        assert writer.n_rows == 300


def test_failed_writing_is_raised(tmp_path: Path) -> None:
    """Rows that cannot be written, as on a full disk, end the stage instead of being dropped."""
    with (
        StageWriter(tmp_path / "stage", KEY) as writer,
        pytest.raises(ValueError, match="marshal"),
        Recorder(writer) as recorder,
    ):
        recorder.take([b"no rows at all"], worker=0, origin_s=0.0)

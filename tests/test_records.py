"""The nouns' files: whole or not there, and read back as they were written."""

from __future__ import annotations

import threading
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmgauge.records import (
    Endpoint,
    Payload,
    Phase,
    RequestRecord,
    StageInfo,
    StageKey,
    Status,
    read_endpoints,
    read_json,
    read_payloads,
    read_stage,
    record_schema,
    records_table,
    stage_folders,
    write_atomically,
    write_endpoints,
    write_json,
    write_payloads,
    write_stage,
)

INFO = StageInfo(
    experiment="one",
    workload="short",
    stage="concurrency-2",
    kind="closed_loop",
    concurrency=2,
    started_at="2026-01-01T00:00:00+00:00",
    window_start_s=1.0,
    window_end_s=10.0,
    finished_at_s=10.5,
    replication=0,
    seed=7,
)
RECORD = RequestRecord(
    request_id="r0",
    experiment="one",
    workload="short",
    stage="concurrency-2",
    replication=0,
    phase="measured",
    payload_id="p0",
    session_id=None,
    worker=0,
    intended_at_s=1.0,
    connected_at_s=None,
    sent_at_s=1.001,
    first_byte_at_s=1.1,
    token_at_s=[1.1, 1.2],
    chunk_tokens=[1, 3],
    first_content_at_s=1.1,
    finished_at_s=1.3,
    prompt_tokens=100,
    output_tokens=4,
    reasoning_tokens=None,
    cached_tokens=0,
    token_source="server",
    status="ok",
    http_status=200,
    error=None,
    finish_reason="length",
    server_latency_s=None,
    connection_reused=True,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SECONDS = st.floats(min_value=0, max_value=1e9)
COUNT = st.integers(min_value=0, max_value=2**31 - 1)
RECORDS = st.builds(
    RequestRecord,
    request_id=TEXT,
    experiment=TEXT,
    workload=TEXT,
    stage=TEXT,
    replication=COUNT,
    phase=st.sampled_from(get_args(Phase)),
    payload_id=TEXT,
    session_id=st.none() | TEXT,
    worker=COUNT,
    intended_at_s=SECONDS,
    connected_at_s=st.none() | SECONDS,
    sent_at_s=st.none() | SECONDS,
    first_byte_at_s=st.none() | SECONDS,
    token_at_s=st.lists(SECONDS, max_size=5),
    chunk_tokens=st.none() | st.lists(COUNT, max_size=5),
    first_content_at_s=st.none() | SECONDS,
    finished_at_s=SECONDS,
    prompt_tokens=st.none() | COUNT,
    output_tokens=st.none() | COUNT,
    reasoning_tokens=st.none() | COUNT,
    cached_tokens=st.none() | COUNT,
    token_source=st.sampled_from(["server", "tokenizer"]),
    status=st.sampled_from(get_args(Status)),
    http_status=st.none() | COUNT,
    error=st.none() | TEXT,
    finish_reason=st.none() | TEXT,
    server_latency_s=st.none() | SECONDS,
    connection_reused=st.booleans(),
    response_text=st.none() | TEXT,
)


@settings(deadline=None, max_examples=50)
@given(st.lists(RECORDS, max_size=4))
def test_every_field_of_a_record_survives_parquet(tmp_path_factory, records):
    """What happened to a request is read back to the last bit, None and lists included."""
    path = tmp_path_factory.mktemp("parquet") / "x.parquet"

    pq.write_table(records_table(records), path)

    assert [RequestRecord(**row) for row in pq.read_table(path).to_pylist()] == records


def test_the_columns_are_the_fields_in_order():
    """A Parquet file has one column a field, in the record's own order."""
    assert record_schema().names == [field.name for field in fields(RequestRecord)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("token_at_s", "list<item: double>"),
        ("chunk_tokens", "list<item: int32>"),
        ("sent_at_s", "double"),
        ("prompt_tokens", "int64"),
        ("http_status", "int32"),
        ("connection_reused", "bool"),
        ("error", "string"),
    ],
)
def test_a_column_has_the_type_of_its_unit(name, kind):
    """Instants are doubles, counts integers, the rest text."""
    assert str(record_schema().field(name).type) == kind


def test_a_stage_without_requests_keeps_its_columns():
    """No record at all still makes a table that can be read."""
    table = records_table([])

    assert table.num_rows == 0
    assert table.schema == record_schema()


def test_a_stage_reads_back_as_it_was_written(tmp_path):
    """A stage's facts and its records come back."""
    folder = tmp_path / "one" / "short" / "concurrency-2"

    write_stage(folder, INFO, [RECORD])

    info, table = read_stage(folder)
    assert info == INFO
    assert [RequestRecord(**row) for row in table.to_pylist()] == [RECORD]


def test_records_come_back_in_sending_order(tmp_path):
    """Rows are ordered by the intended instant; equal instants keep their written order."""
    order = [3.0, 1.0, 2.0, 1.0, 3.0]
    records = [
        replace(RECORD, request_id=f"r{n}", intended_at_s=at_s) for n, at_s in enumerate(order)
    ]
    write_stage(tmp_path / "stage", INFO, records)

    _, table = read_stage(tmp_path / "stage")

    assert table["request_id"].to_pylist() == ["r1", "r3", "r2", "r0", "r4"]


def test_a_stage_in_several_files_is_read_whole(tmp_path):
    """Workers may write a file each."""
    write_stage(tmp_path / "stage", INFO, [RECORD])
    late = replace(RECORD, request_id="late", intended_at_s=9.0)
    pq.write_table(records_table([late]), tmp_path / "stage" / "part-1.parquet")

    _, table = read_stage(tmp_path / "stage")

    assert table["request_id"].to_pylist() == ["r0", "late"]


class KilledError(Exception):
    """Stands for the end of the process in the middle of a write."""


def records_until_killed():
    """One record, and then the end."""
    yield RECORD
    raise KilledError


def test_a_stage_that_was_cut_short_is_not_there(tmp_path):
    """A kill in the middle of writing leaves no stage that could be taken for done."""
    folder = tmp_path / "one" / "short" / "concurrency-2"

    with pytest.raises(KilledError):
        write_stage(folder, INFO, records_until_killed())

    assert not folder.exists()
    assert list(stage_folders(tmp_path)) == []


def test_leftovers_of_a_killed_write_are_no_stage(tmp_path):
    """A complete but not yet renamed folder is not listed, and the next writing replaces it."""
    folder = tmp_path / "one" / "short" / "concurrency-2"
    write_stage(folder, INFO, [RECORD, RECORD])
    partial = folder.with_name(".concurrency-2.partial")
    folder.rename(partial)
    (partial / "part-9.parquet").write_bytes(b"half a file")
    assert list(stage_folders(tmp_path)) == []

    write_stage(folder, INFO, [RECORD])

    assert list(stage_folders(tmp_path)) == [folder]
    assert read_stage(folder)[1].num_rows == 1
    assert [path.name for path in folder.parent.iterdir()] == ["concurrency-2"]


def test_writing_a_stage_again_replaces_it(tmp_path):
    """A stage that is done anew holds the new records alone."""
    folder = tmp_path / "one" / "short" / "concurrency-2"
    write_stage(folder, INFO, [RECORD, RECORD])

    write_stage(folder, replace(INFO, seed=8), [RECORD])

    info, table = read_stage(folder)
    assert (info.seed, table.num_rows) == (8, 1)
    assert [path.name for path in folder.parent.iterdir()] == ["concurrency-2"]


def test_stages_are_listed_in_name_order(tmp_path):
    """Experiment, workload, stage, by name; a folder without its facts is no stage."""
    keys = [StageKey("b", "w", "s"), StageKey("a", "w", "t"), StageKey("a", "v", "s")]
    for key in keys:
        write_stage(tmp_path / str(key), INFO, [])
    (tmp_path / "a" / "w" / "unfinished").mkdir()

    assert [str(path.relative_to(tmp_path)) for path in stage_folders(tmp_path)] == [
        "a/v/s",
        "a/w/t",
        "b/w/s",
    ]


def test_no_stages_are_listed_where_nothing_was_run(tmp_path):
    """A folder that is not there holds no stage."""
    assert list(stage_folders(tmp_path / "nothing")) == []


def test_a_stage_knows_its_key():
    """A stage's key is its path below the requests folder."""
    assert str(INFO.key) == "one/short/concurrency-2"


PAYLOADS = st.builds(
    Payload,
    payload_id=TEXT,
    prompt=st.none() | TEXT,
    messages=st.none() | st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=2),
    prompt_tokens=COUNT,
    max_output_tokens=COUNT,
    salt=st.none() | TEXT,
    reserved=st.booleans(),
    session_id=st.none() | TEXT,
    intended_at_s=st.none() | SECONDS,
)


@settings(deadline=None)
@given(st.lists(PAYLOADS, max_size=4))
def test_payloads_read_back_in_order(tmp_path_factory, payloads):
    """Whatever line breaks a prompt holds, a payload is one line of its file."""
    path = tmp_path_factory.mktemp("payloads") / "payload_x.jsonl"

    write_payloads(path, payloads)

    assert read_payloads(path) == payloads
    assert path.read_bytes().count(b"\n") == len(payloads)


def endpoint(experiment: str) -> Endpoint:
    """An endpoint with every field set."""
    return Endpoint(
        experiment=experiment,
        kind="llamacpp",
        state="failed",
        base_url="http://127.0.0.1:8000/v1",
        model="small",
        instance_type="local-cpu",
        instance_count=2,
        owned=True,
        error="it did not answer",
        api_key_env="KEY",
        extra_body={"cache_prompt": False, "stop": ["\n"]},
        created_at="2026-01-01T00:00:00+00:00",
        first_answer_s=1.25,
        resource="llamacpp-one-1",
    )


def test_endpoints_read_back_by_experiment(tmp_path):
    """endpoints.json gives every field of every endpoint, in the order given."""
    endpoints = [endpoint("two"), endpoint("one")]

    write_endpoints(tmp_path / "endpoints.json", endpoints)

    again = read_endpoints(tmp_path / "endpoints.json")
    assert list(again.items()) == [("two", endpoints[0]), ("one", endpoints[1])]
    assert read_json(tmp_path / "endpoints.json")["one"] == asdict(endpoints[1])


def test_no_endpoints_are_read_before_any_were_brought_up(tmp_path):
    """Where there is no endpoints.json there are no endpoints."""
    assert read_endpoints(tmp_path / "endpoints.json") == {}


def test_json_is_read_back(tmp_path):
    """A value is read back from a folder that the writing made."""
    value = {"a": [1, 2.5, None, True], "ü": "\u2028"}

    write_json(tmp_path / "new" / "x.json", value)

    assert read_json(tmp_path / "new" / "x.json") == value


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    """What cannot be put in place leaves no part behind."""
    (tmp_path / "x" / "below").mkdir(parents=True)

    with pytest.raises(OSError, match=r"[Dd]irectory"):
        write_atomically(tmp_path / "x", b"new")

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "x"]


def test_readers_never_see_a_part(tmp_path):
    """While two threads write one file, every reading finds one of the two contents whole."""
    path = tmp_path / "x"
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    write_atomically(path, contents[0])

    def write_often(content: bytes) -> None:
        for _ in range(50):
            write_atomically(path, content)

    writers = [threading.Thread(target=write_often, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_bytes())
    for writer in writers:
        writer.join()

    assert seen <= set(contents)
    assert path.read_bytes() in contents
    assert list(Path(tmp_path).iterdir()) == [path]

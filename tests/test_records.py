"""The nouns' files: whole or not there, and read back as they were written."""

from __future__ import annotations

import marshal
import threading
from array import array
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmgauge.records import (
    ROW_FIELDS,
    ClientUse,
    Endpoint,
    Payload,
    Phase,
    RequestRecord,
    StageInfo,
    StageKey,
    StageWriter,
    Status,
    open_stage,
    read_endpoints,
    read_json,
    read_payloads,
    read_stage,
    record_of,
    record_schema,
    records_table,
    rows_batch,
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
    max_output_tokens=4,
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
    resent=False,
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
    max_output_tokens=st.none() | COUNT,
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
    resent=st.booleans(),
    held_back_at_s=st.none() | SECONDS,
    response_text=st.none() | TEXT,
)


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
        ("max_output_tokens", "int64"),
        ("connection_reused", "bool"),
        ("resent", "bool"),
        ("held_back_at_s", "double"),
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


def test_records_of_before_a_column_have_it_empty(tmp_path):
    """A stage that was written when records held less is read with nothing in the new columns."""
    write_stage(tmp_path / "stage", INFO, [RECORD, RECORD])
    path = tmp_path / "stage" / "part-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["resent", "max_output_tokens"]), path)

    _, table = read_stage(tmp_path / "stage")

    old = replace(RECORD, resent=None, max_output_tokens=None)
    assert [RequestRecord(**row) for row in table.to_pylist()] == [old, old]


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


# --- rows, and stages that are written while they run --------------------------------------------

KEY = StageKey("one", "short", "concurrency-2")
ORIGIN_S = 1000.0


def row(**changes):
    """RECORD as a worker tells of it, with changes: absolute instants, packed tokens."""
    values = {name: getattr(RECORD, name) for name in ROW_FIELDS}
    for name, value in values.items():
        if name.endswith("_at_s") and isinstance(value, float):
            values[name] = ORIGIN_S + value
    values["token_at_s"] = array("d", [ORIGIN_S + 1.125, ORIGIN_S + 1.25]).tobytes()
    values["chunk_tokens"] = array("i", [1, 3]).tobytes()
    return tuple((values | changes).values())


def uncounted(text, **changes):
    """A row whose output tokens are to be counted from its text."""
    told = {"output_tokens": None, "token_source": "tokenizer", "response_text": text}
    return row(**(told | changes))


@given(st.lists(RECORDS, max_size=4), st.floats(0, 1e6))
def test_rows_become_the_records_that_they_tell_of(records, origin_s):
    """Packed tokens, lists of counts or none, and instants less the origin, for any requests."""
    rows = []
    for record in records:
        told = {name: getattr(record, name) for name in ROW_FIELDS}
        told["token_at_s"] = array("d", record.token_at_s).tobytes()
        if record.chunk_tokens is not None:
            told["chunk_tokens"] = array("i", record.chunk_tokens).tobytes()
        rows.append(tuple(told.values()))
    rows = marshal.loads(marshal.dumps(rows))

    batch = rows_batch(rows, key=KEY, replication=3, worker=5, origin_s=origin_s)

    def expected(record):
        moved = {
            name: value - origin_s
            for name in ROW_FIELDS
            if name.endswith("_at_s") and isinstance(value := getattr(record, name), float)
        }
        tokens_at_s = [at_s - origin_s for at_s in record.token_at_s]
        shared = {**asdict(KEY), "replication": 3, "worker": 5}
        return replace(record, **moved, **shared, token_at_s=tokens_at_s)

    wanted = [expected(record) for record in records]
    assert batch.schema == record_schema()
    assert [RequestRecord(**told) for told in batch.to_pylist()] == wanted
    about = {"key": KEY, "replication": 3, "worker": 5, "origin_s": origin_s}
    assert [record_of(told, **about) for told in rows] == wanted


def test_text_that_is_no_unicode_does_not_lose_a_request():
    """Half of a surrogate pair in a server's error is replaced."""
    batch = rows_batch(
        [row(error="bad \ud800"), row()], key=KEY, replication=0, worker=0, origin_s=0.0
    )

    assert batch.column("error").to_pylist() == ["bad ?", None]


def test_a_stage_is_written_from_the_rows_of_several_workers(tmp_path):
    """Each worker's instants count from its own origin; records come back in sending order."""
    late = row(request_id="late", intended_at_s=ORIGIN_S + 9.0)
    with StageWriter(tmp_path / "stage", KEY, replication=2) as writer:
        writer.write([late], worker=1, origin_s=ORIGIN_S)
        writer.write([], worker=1, origin_s=ORIGIN_S)
        writer.write([row(intended_at_s=8.0)], worker=2, origin_s=4.0)
        writer.finish(INFO, count_tokens=None)

    info, table = read_stage(tmp_path / "stage")

    columns = ("request_id", "worker", "replication", "intended_at_s")
    assert info == INFO
    assert list(zip(*(table[name].to_pylist() for name in columns), strict=True)) == [
        ("r0", 2, 2, 4.0),
        ("late", 1, 2, 9.0),
    ]


def test_a_writer_counts_what_was_measured_and_what_failed(tmp_path):
    """Warm-up is counted among the rows alone."""
    with StageWriter(tmp_path / "stage", KEY) as writer:
        rows = [row(), row(status="timeout"), row(phase="warmup", status="timeout")]
        writer.write(rows, worker=0, origin_s=0.0)

        assert (writer.n_rows, writer.n_measured, writer.n_failed) == (3, 2, 1)


def test_a_large_stage_is_written_and_read_a_part_at_a_time(tmp_path):
    """6,000 requests of 1,000 tokens, 48 MB, lie in row groups of about 16 MiB."""
    tokens = array("d", [ORIGIN_S + n for n in range(1000)]).tobytes()
    with StageWriter(tmp_path / "stage", KEY) as writer:
        for _ in range(60):
            rows = [row(token_at_s=tokens, chunk_tokens=None)] * 100
            writer.write(rows, worker=0, origin_s=ORIGIN_S)
        writer.finish(INFO, count_tokens=None)

    file = pq.ParquetFile(tmp_path / "stage" / "part-0.parquet")
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    _, batches = open_stage(tmp_path / "stage")

    assert sum(sizes) == 6000
    assert max(sizes) <= 2 * 2**24 / 8000 + 100
    assert max(batch.nbytes for batch in batches(["token_at_s"])) <= 2.1 * 2**24
    assert sum(batch.num_rows for batch in batches(["status"])) == 6000


def test_a_stage_gives_its_records_as_often_as_asked(tmp_path):
    """Only the columns that were asked for, in the order of writing, the same each time."""
    late = replace(RECORD, request_id="late", intended_at_s=9.0)
    write_stage(tmp_path / "stage", INFO, [late, RECORD])

    info, batches = open_stage(tmp_path / "stage")

    expected = [{"request_id": "late"}, {"request_id": "r0"}]
    assert info == INFO
    for _ in range(2):
        assert [told for b in batches(["request_id"]) for told in b.to_pylist()] == expected


def test_what_the_client_had_to_do_is_read_back(tmp_path):
    """A stage's facts hold the client's use, in open loop as well."""
    client = ClientUse(cpu_share=0.5, loop_lag_p99_s=0.001, loop_lag_max_s=0.01)
    info = replace(
        INFO,
        kind="open_loop",
        concurrency=None,
        request_rate=2.5,
        arrivals="gamma",
        workers=2,
        client=client,
        held_back=3,
    )

    write_stage(tmp_path / "stage", info, [])

    assert read_stage(tmp_path / "stage")[0] == info


def test_texts_are_counted_when_the_stage_is_over_and_dropped(tmp_path):
    """Only where the server told no count: a text that was asked for beside one stays."""
    asked = row(response_text="kept", output_tokens=9)
    with StageWriter(tmp_path / "stage", KEY) as writer:
        counted = []
        rows = [uncounted("three little words"), asked, uncounted(""), uncounted("one")]
        writer.write(rows, worker=0, origin_s=0.0)

        def count(text):
            counted.append(text)
            return len(text.split())

        writer.finish(INFO, count_tokens=count)

    _, table = read_stage(tmp_path / "stage")
    assert counted == ["three little words", "one"]
    assert table["output_tokens"].to_pylist() == [3, 9, None, 1]
    assert table["response_text"].to_pylist() == [None, "kept", None, None]
    assert table.schema == record_schema()
    assert sorted(p.name for p in (tmp_path / "stage").iterdir()) == [
        "part-0.parquet",
        "stage.json",
    ]


def test_a_counter_that_fails_leaves_the_records_to_be_kept(tmp_path):
    """Where the tokenizer cannot be read after all, the stage can still be kept as failed."""

    def count(text):
        raise KilledError

    with StageWriter(tmp_path / "stage", KEY) as writer:
        writer.write([uncounted("one two")], worker=0, origin_s=0.0)
        with pytest.raises(KilledError):
            writer.finish(INFO, count_tokens=count)
        folder = writer.fail("no tokenizer")

    assert pq.read_table(folder / "part-0.parquet")["response_text"].to_pylist() == ["one two"]
    assert [path.name for path in tmp_path.iterdir()] == ["stage.failed"]


def test_nobody_counts_where_the_server_told_every_count(tmp_path):
    """No tokenizer is asked for, and so none is loaded."""
    with StageWriter(tmp_path / "stage", KEY) as writer:
        writer.write([row(), uncounted("")], worker=0, origin_s=0.0)

        writer.finish(INFO, count_tokens=lambda text: pytest.fail("nothing is to be counted"))

    assert read_stage(tmp_path / "stage")[1].num_rows == 2


def test_a_failed_stage_keeps_its_records_but_is_no_stage(tmp_path):
    """What had finished lies beside the stage's place, with the reason; an older one goes."""
    folder = tmp_path / str(KEY)
    for n in (1, 2):
        with StageWriter(folder, KEY) as writer:
            writer.write([row()] * n, worker=0, origin_s=ORIGIN_S)
            failed = writer.fail("worker 0 died")

    assert failed == folder.with_name("concurrency-2.failed")
    assert read_json(failed / "failure.json") == {"reason": "worker 0 died", "n_records": 2}
    assert pq.read_table(failed / "part-0.parquet").num_rows == 2
    assert [path.name for path in folder.parent.iterdir()] == ["concurrency-2.failed"]
    assert list(stage_folders(tmp_path)) == []


def test_a_stage_that_failed_before_any_request_leaves_nothing(tmp_path):
    """There is nothing to keep, and nothing is."""
    with StageWriter(tmp_path / "stage", KEY) as writer:
        assert writer.fail("it could not start") is None

    assert list(tmp_path.iterdir()) == []


def write_until_killed(folder):
    """Some rows, and then the end."""
    with StageWriter(folder, KEY) as writer:
        writer.write([row()] * 5, worker=0, origin_s=0.0)
        raise KilledError


def test_a_stage_that_was_given_up_leaves_nothing(tmp_path):
    """An error that is nobody's failure of the stage: no folder, and an older stage stays."""
    write_stage(tmp_path / "stage", INFO, [RECORD])

    with pytest.raises(KilledError):
        write_until_killed(tmp_path / "stage")

    assert [path.name for path in tmp_path.iterdir()] == ["stage"]
    assert read_stage(tmp_path / "stage")[1].num_rows == 1


# --- which stages there are ----------------------------------------------------------------------


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

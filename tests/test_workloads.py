"""Workloads: from sources to payloads, and every way in which their data can be unusable."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from fmgauge.config import LoadedConfig, load_config
from fmgauge.errors import ConfigError, Problem
from fmgauge.records import Payload, read_json, read_payloads
from fmgauge.runs import Run, open_run
from fmgauge.workloads import (
    PreparedWorkload,
    check_workloads,
    docs_text,
    docs_tokenizer_path,
    marked,
    prepare_payloads,
    salt_from,
)
from fmgauge.workloads.python_docs import python_docs_rows
from fmgauge.workloads.synthetic import draw_lengths
from fmgauge.workloads.templates import render, template_columns

pytestmark = pytest.mark.usefixtures("own_cache")
ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "raw" / "longbench_sample.jsonl"
QUESTION = "{{ context }}\n\n{{ input }}"
SALT = re.compile(r"\d( \d){7}\n\n")

Config = Callable[..., LoadedConfig]


@pytest.fixture
def tokens_of() -> Callable[[str], int]:
    """Counts with the project's own tokenizer, by the library alone."""
    tokenizer = Tokenizer.from_file(str(docs_tokenizer_path()))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Makes a config in a folder of its own, its workloads as given and one experiment for all."""

    def make(
        *workloads: Mapping[str, Any],
        seed: int = 7,
        tokenizer: str | None = None,
        endpoint: Mapping[str, Any] | None = None,
    ) -> LoadedConfig:
        named = [{"name": f"w{number}"} | dict(one) for number, one in enumerate(workloads)]
        experiment = {
            "name": "e",
            "model": {"name": "m"} | ({"tokenizer": tokenizer} if tokenizer else {}),
            "endpoint": {"kind": "llamacpp"} | dict(endpoint or {}),
            "instance_type": "local-cpu",
            "workloads": [one["name"] for one in named],
            "load": [{"kind": "closed_loop", "concurrency": [1]}],
        }
        content = {
            "run": {"name": "test", "seed": seed},
            "workloads": named,
            "experiments": [experiment],
        }
        path = tmp_path / "config.yml"
        path.write_text(json.dumps(content, indent=1))
        return load_config(path)

    return make


def write_lines(path: Path, *rows: object) -> Path:
    """A JSON-lines file of `rows`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def jsonl(*paths: object, **workload: Any) -> dict[str, Any]:
    """A workload of JSON-lines files."""
    return {"source": {"kind": "jsonl", "paths": [str(path) for path in paths]}} | workload


def prepared_by(loaded: LoadedConfig) -> PreparedWorkload:
    """The only workload of a config, prepared."""
    (prepared,) = check_workloads(loaded)
    return prepared


def problem_of(loaded: LoadedConfig) -> Problem:
    """The only problem of a config's workloads."""
    with pytest.raises(ConfigError) as caught:
        check_workloads(loaded)
    (problem,) = caught.value.problems
    return problem


def texts(prepared: PreparedWorkload) -> list[str]:
    """The prompts without their salts, in sending order."""
    return [SALT.sub("", payload.prompt or "", count=1) for payload in prepared.payloads]


def quickstart() -> LoadedConfig:
    """The quickstart's config."""
    return load_config(ROOT / "configs" / "quickstart.yml")


# --- templates -----------------------------------------------------------------------------------


def test_a_place_is_filled_with_the_columns_value() -> None:
    """White space within the braces does not matter."""
    row = {"context": "Rain.", "input": "What falls?", "n": 3}
    filled = render("{{context}} {{ input }} {{  n  }} {{\tn\n}}", row)
    assert filled == "Rain. What falls? 3 3"


def test_nothing_in_a_value_is_evaluated() -> None:
    """A value that looks like a place, or like code, stays as it is."""
    row = {"a": "{{ b }} {% x %} {0} \\1 \\g<0>", "b": "secret"}
    assert render("<{{ a }}>", row) == "<{{ b }} {% x %} {0} \\1 \\g<0>>"


def test_a_lists_items_stand_on_lines_of_their_own() -> None:
    """A list becomes lines, and nothing stands for None."""
    assert render("{{ a }}|{{ b }}", {"a": ["x", 1, None], "b": None}) == "x\n1\n|"


@given(st.text().filter(lambda text: "{{" not in text))
def test_a_template_without_places_is_its_own_prompt(template: str) -> None:
    """Text between places is never changed."""
    assert render(template, {}) == template


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][\w-]*", fullmatch=True), st.text(), min_size=1))
def test_every_column_can_be_named(row: dict[str, str]) -> None:
    """Places are found in their order, and each gives its column's value as it is."""
    template = "|".join(f"{{{{ {column} }}}}" for column in row)
    assert template_columns(template) == list(row)
    assert render(template, row) == "|".join(row.values())


@pytest.mark.parametrize(
    ("template", "stray"),
    [
        ("{{ prompt }", "{{"),
        ("{ prompt }}", "}}"),
        ("{{ prompt }} and {{", "{{"),
        ("{{ {{ prompt }}", "{{"),
        ("{{ prompt }} {{ {prompt} }}", "{{"),
    ],
)
def test_a_place_that_is_not_closed_or_not_opened_is_an_error_at_its_template(
    config: Config, tmp_path: Path, template: str, stray: str
) -> None:
    """It would be sent as it stands, so the remedy shows how a place is written."""
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "b"})
    problem = problem_of(config(jsonl(path, template=f"Read. {{{{ prompt }}}} {template}")))
    assert problem.key == "workloads.0.template"
    assert problem.problem == f"{stray} stands outside of any place"
    assert problem.remedy.startswith("Write {{ column }}")


def test_single_braces_around_places_are_text(config: Config, tmp_path: Path) -> None:
    """JSON around a place is sent as it is, also where a brace touches the place."""
    path = write_lines(tmp_path / "rows.jsonl", {"n": 1}, {"n": 2})
    prepared = prepared_by(config(jsonl(path, template='{"a": {"b": {{ n }}} } {{{ n }}{')))
    assert sorted(texts(prepared)) == ['{"a": {"b": 1} } {1{', '{"a": {"b": 2} } {2{']


# --- salts ---------------------------------------------------------------------------------------


@given(st.text(max_size=50) | st.from_regex(r"[0-9a-f]{16}-[0-9]{1,25}", fullmatch=True))
def test_a_salt_is_eight_digits_with_spaces_between(name: str) -> None:
    """Every name gives a salt of one form."""
    assert re.fullmatch(r"\d( \d){7}", salt_from(name))


@pytest.mark.parametrize("name", ["7/12", "0123456789abcdef-3"])
def test_a_salt_depends_on_its_name_alone(name: str) -> None:
    """Another process, with another hash seed, makes the same salt of the same name."""
    program = f"from fmgauge.workloads import salt_from; print(salt_from({name!r}))"
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == salt_from(name)


@given(
    prefix=st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    first=st.integers(0, 10**8 - 1),
    second=st.integers(0, 10**8 - 1),
)
def test_two_requests_of_a_worker_never_share_a_salt(prefix: str, first: int, second: int) -> None:
    """Up to a hundred million, no two running numbers behind one prefix have the same salt."""
    same_salt = salt_from(f"{prefix}-{first}") == salt_from(f"{prefix}-{second}")
    assert same_salt == (first == second)


@given(prefix=st.from_regex(r"[0-9a-f]{16}", fullmatch=True), number=st.integers(0, 10**9))
def test_neighbours_salts_share_not_even_their_first_digit(prefix: str, number: int) -> None:
    """A cache that keeps what two prompts in a row share finds nothing to keep."""
    this, following = (salt_from(f"{prefix}-{n}") for n in (number, number + 1))
    assert this[0] != following[0]


def test_workers_salts_differ() -> None:
    """Equal numbers behind different prefixes have different salts, as far as chance allows."""
    salts = {salt_from(f"{prefix:016x}-{number}") for prefix in range(30) for number in range(30)}
    assert len(salts) == 900


@pytest.mark.parametrize("name", ["id-01", "id-\u0663", "id-", "-3", "id-" + "9" * 30, "3", "id"])
def test_any_other_name_has_a_salt_of_its_own(name: str) -> None:
    """What only looks like a prefix and a running number shares no salt with what is one."""
    others = {salt_from(other) for other in ("id-1", "id-3", "id-0", "-1")}
    assert salt_from(name) not in others


def test_a_mark_takes_the_place_of_a_prompts_salt() -> None:
    """Only the digits at the start change, whatever the mark's length."""
    payload = Payload("p", "1 1 1\n\n1 1 1 is said", None, 9, 5, salt="1 1 1")
    again = marked(payload, "mark")
    assert (again.prompt, again.salt) == ("mark\n\n1 1 1 is said", "mark")
    assert payload.prompt == "1 1 1\n\n1 1 1 is said"


def test_a_mark_takes_the_place_of_messages_salt() -> None:
    """Only the first message's text changes, and the payload that was salted stays as it was."""
    messages = [{"role": "system", "content": "1 1\n\nHi"}, {"role": "user", "content": "1 1"}]
    payload = Payload("p", None, messages, 9, 5, salt="1 1")
    assert marked(payload, "2 3 4").messages == [
        {"role": "system", "content": "2 3 4\n\nHi"},
        {"role": "user", "content": "1 1"},
    ]
    assert messages[0]["content"] == "1 1\n\nHi"


def test_a_mark_is_put_into_the_first_text_part() -> None:
    """A picture may stand before the text."""
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    content = [picture, {"type": "text", "text": "1 1\n\nHi"}, {"type": "text", "text": "there"}]
    payload = Payload("p", None, [{"role": "user", "content": content}], 9, 5, salt="1 1")
    again = marked(payload, "2 3").messages or []
    assert [part.get("text") for part in again[0]["content"]] == [None, "2 3\n\nHi", "there"]


def test_every_salt_leaves_the_count_as_it_is(tokens_of: Callable[[str], int]) -> None:
    """A thousand salts on one prompt count the same."""
    counts = {tokens_of(f"{salt_from(f'id-{n}')}\n\nRead this.") for n in range(1000)}
    assert len(counts) == 1


# --- jsonl ---------------------------------------------------------------------------------------


def test_longbench_rows_become_prompts(config: Config) -> None:
    """The template's columns are filled from LongBench's, in one language only."""
    prepared = prepared_by(config(jsonl(SAMPLE, template=QUESTION, filter={"language": "en"})))
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    english = [f"{row['context']}\n\n{row['input']}" for row in rows if row["language"] == "en"]
    assert sorted(texts(prepared)) == sorted(english)
    assert prepared.rows_dropped["language"] == len(rows) - len(english) > 0


def test_a_plain_row_brings_its_own_output_length_and_session(
    config: Config, tmp_path: Path
) -> None:
    """What a row says wins over the workload's max_output_tokens."""
    rows = [{"prompt": "One?", "max_tokens": 3, "session_id": 17}, {"prompt": "Two?"}]
    path = write_lines(tmp_path / "plain.jsonl", *rows)
    prepared = prepared_by(config(jsonl(path, max_output_tokens=50)))
    found = {SALT.sub("", p.prompt or ""): p for p in prepared.payloads}
    assert (found["One?"].max_output_tokens, found["One?"].session_id) == (3, "17")
    assert (found["Two?"].max_output_tokens, found["Two?"].session_id) == (50, None)


def test_messages_are_salted_at_their_start_and_counted_together(
    config: Config, tmp_path: Path, tokens_of: Callable[[str], int]
) -> None:
    """A payload of messages keeps its roles, and counts all of its contents."""
    chats = [
        [{"role": "system", "content": f"Be {word}."}, {"role": "user", "content": "Why?"}]
        for word in ("brief", "kind")
    ]
    path = write_lines(tmp_path / "chats.jsonl", *({"messages": chat} for chat in chats))
    for payload in prepared_by(config(jsonl(path))).payloads:
        first, second = payload.messages or []
        assert first["content"].startswith(f"{payload.salt}\n\nBe ")
        assert (first["role"], second) == ("system", {"role": "user", "content": "Why?"})
        assert payload.prompt is None
        assert payload.prompt_tokens == tokens_of(first["content"] + second["content"])


def test_a_glob_reads_every_file_it_matches(config: Config, tmp_path: Path) -> None:
    """Relative globs start at the config's folder; files come once each, in name order."""
    for name in ("b", "a", "sub/c"):
        write_lines(tmp_path / "data" / f"{name}.jsonl", {"prompt": name})
    loaded = config(jsonl("data/**/*.jsonl", "data/a.jsonl"))
    prepared = prepared_by(loaded)
    assert prepared.datasets == ("a.jsonl", "b.jsonl", "c.jsonl")
    assert sorted(texts(prepared)) == ["a", "b", "sub/c"]


def test_a_file_whose_name_looks_like_a_glob_is_read(config: Config, tmp_path: Path) -> None:
    """A path that exists is never taken for a pattern."""
    path = write_lines(tmp_path / "data[1].jsonl", {"prompt": "a"}, {"prompt": "b"})
    assert prepared_by(config(jsonl(path))).datasets == ("data[1].jsonl",)


def test_blank_lines_and_a_byte_order_mark_are_no_rows(config: Config, tmp_path: Path) -> None:
    """Files from other systems' editors read the same."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}')
    assert prepared_by(config(jsonl(path))).rows_read == 2


GOOD = '{"prompt": "a"}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{prompt: a}", "not JSON"),
        ('["a"]', "no JSON object"),
        ('{"text": "a"}', "neither prompt nor messages"),
        ('{"prompt": "a", "messages": []}', "both prompt and messages"),
        ('{"prompt": 5}', "no text"),
        ('{"prompt": ""}', "prompt is empty"),
        ('{"messages": "hello"}', "no list"),
        ('{"messages": []}', "no list"),
        ('{"messages": [{"content": "a"}]}', "message 0 has no role"),
        ('{"messages": ["hello"]}', "message 0 is no object"),
        ('{"messages": [{"role": "user"}]}', "message 0 has no content"),
        ('{"messages": [{"role": "user", "content": null}]}', "message 0 has no content"),
        ('{"messages": [{"role": "user", "content": ""}]}', "all messages are empty"),
        ('{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "holds no text"),
        ('{"messages": [{"role": "user", "content": 5}]}', "message 0 has no content"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "has no content"),
        ('{"messages": [{"role": "user", "content": []}]}', "holds no text"),
        ('{"prompt": "a", "max_tokens": 0}', "no number of tokens"),
        ('{"prompt": "a", "max_tokens": true}', "no number of tokens"),
    ],
)
def test_an_unusable_line_is_named_with_its_file_and_number(
    config: Config, tmp_path: Path, line: str, says: str
) -> None:
    """The error points at the data, not at the config."""
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    problem = problem_of(config(jsonl(path)))
    assert (problem.file, problem.line) == (str(path), 3)
    assert says in problem.problem


def test_a_tool_call_needs_no_content(config: Config, tmp_path: Path) -> None:
    """A later message that calls a tool may hold no text, as the chat API has it."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    chats = [[{"role": "user", "content": word}, call] for word in ("One?", "Two?")]
    path = write_lines(tmp_path / "chats.jsonl", *({"messages": chat} for chat in chats))
    payloads = prepared_by(config(jsonl(path))).payloads
    assert [(payload.messages or [])[1] for payload in payloads] == [call, call]


def test_a_template_that_leaves_nothing_to_ask_names_the_row(
    config: Config, tmp_path: Path
) -> None:
    """A row whose columns are all empty makes no prompt; the error points at it."""
    path = write_lines(tmp_path / "rows.jsonl", {"input": "a"}, {"input": None})
    problem = problem_of(config(jsonl(path, template="{{ input }}")))
    assert (problem.file, problem.line) == (str(path), 2)
    assert "prompt is empty" in problem.problem


@given(st.lists(st.text(min_size=1), min_size=2, unique=True))
def test_any_text_survives_from_line_to_payload(prompts: list[str]) -> None:
    """Whatever JSON can say reaches the payload as it was, and nothing is lost unsaid."""
    with tempfile.TemporaryDirectory() as folder:
        write_lines(Path(folder) / "rows.jsonl", *({"prompt": prompt} for prompt in prompts))
        config = {
            "run": {"name": "test"},
            "workloads": [{"name": "w"} | jsonl("rows.jsonl")],
            "experiments": [
                {
                    "name": "e",
                    "model": {"name": "m"},
                    "endpoint": {"kind": "llamacpp"},
                    "workloads": ["w"],
                    "load": [{"kind": "closed_loop", "concurrency": [1]}],
                }
            ],
        }
        (Path(folder) / "config.yml").write_text(json.dumps(config))
        prepared = prepared_by(load_config(Path(folder) / "config.yml"))
    assert sorted(texts(prepared)) == sorted(prompts)


@pytest.mark.parametrize(
    ("path", "says"), [("none.jsonl", "no such file"), ("none-*.jsonl", "matches no file")]
)
def test_a_path_that_names_nothing_is_an_error_at_its_key(
    config: Config, tmp_path: Path, path: str, says: str
) -> None:
    """The error points at the path's own line in the config."""
    write_lines(tmp_path / "some.jsonl", {"prompt": "a"})
    loaded = config(jsonl("some.jsonl", path))
    problem = problem_of(loaded)
    assert problem.key == "workloads.0.source.paths.1"
    assert path in loaded.path.read_text().splitlines()[(problem.line or 0) - 1]
    assert says in problem.problem


def test_a_folder_is_no_data_file(config: Config, tmp_path: Path) -> None:
    """A folder where a file is asked for is an error at its key."""
    (tmp_path / "folder").mkdir()
    problem = problem_of(config(jsonl("folder")))
    assert (problem.key, "cannot be read" in problem.problem) == (
        "workloads.0.source.paths.0",
        True,
    )


# --- s3 ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    """Address of an S3 on loopback with one bucket of two data files."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    open_client: Callable[..., Any] = boto3.client  # boto3 has no types
    client = open_client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="data")
    for name in ("one", "two"):
        rows = "".join(json.dumps({"prompt": f"{name} {n}"}) + "\n" for n in range(3))
        client.put_object(Bucket="data", Key=f"set/{name}.jsonl", Body=rows.encode())
    client.put_object(Bucket="data", Key="set/broken.txt", Body=b"\n{")
    yield address
    server.stop()


@pytest.fixture
def _s3(s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and address as a user's environment gives them to boto3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))


@pytest.mark.usefixtures("_s3")
@pytest.mark.parametrize(
    ("address", "datasets"),
    [
        ("s3://data/set/one.jsonl", ("one.jsonl",)),
        ("s3://data/set/*.jsonl", ("one.jsonl", "two.jsonl")),
    ],
)
def test_rows_come_from_s3(config: Config, address: str, datasets: Sequence[str]) -> None:
    """An s3:// path reads an object, a glob in its key all objects that match."""
    prepared = prepared_by(config(jsonl(address)))
    assert prepared.datasets == datasets
    assert prepared.rows_read == 3 * len(datasets)


@pytest.mark.usefixtures("_s3")
def test_an_unusable_line_in_s3_is_named_with_its_address(config: Config) -> None:
    """Data in S3 are named as data on disk are."""
    problem = problem_of(config(jsonl("s3://data/set/broken.txt")))
    assert (problem.file, problem.line) == ("s3://data/set/broken.txt", 2)


@pytest.mark.usefixtures("_s3")
@pytest.mark.parametrize(
    "address",
    ["s3://data/none.jsonl", "s3://none/x.jsonl", "s3://data/none*", "s3://data", "s3://"],
)
def test_an_address_that_names_nothing_is_an_error_at_its_key(config: Config, address: str) -> None:
    """A missing object, bucket or key is a problem of the config."""
    problem = problem_of(config(jsonl(address)))
    assert problem.key == "workloads.0.source.paths.0"
    assert address in problem.problem


@pytest.mark.usefixtures("_s3")
def test_missing_credentials_are_an_error_at_the_path(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials the remedy speaks of them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    problem = problem_of(config(jsonl("s3://data/set/one.jsonl")))
    assert problem.key == "workloads.0.source.paths.0"
    assert "credentials" in problem.problem
    assert "credentials" in problem.remedy


# --- python_docs ---------------------------------------------------------------------------------


def test_docs_rows_have_longbenchs_columns() -> None:
    """Every row can stand in for a LongBench row."""
    for row in python_docs_rows().rows:
        assert list(row.values) == [
            *("input", "context", "answers", "length"),
            *("dataset", "language", "all_classes", "_id"),
        ]
        assert row.values["length"] == len(row.values["context"].split())
        assert (row.values["dataset"], row.values["language"]) == ("python_docs", "en")
    assert len({row.values["_id"] for row in python_docs_rows().rows}) == len(
        python_docs_rows().rows
    )


def test_no_paragraph_stands_in_two_passages() -> None:
    """Passages do not overlap, though the reference repeats whole chapters."""
    passages = [row.values["context"].split("\n\n") for row in python_docs_rows().rows]
    long = [{part for part in passage if len(part) > 80} for passage in passages]
    assert not any(one & other for one, other in combinations(long, 2))
    assert all(len(set(passage)) == len(passage) for passage in passages)


def test_passages_are_the_references_own_sentences() -> None:
    """White space aside, every paragraph of every passage stands in the reference."""
    reference = re.sub(r"\s+", "", "".join(docs_text()))
    for row in python_docs_rows().rows:
        for paragraph in row.values["context"].split("\n\n"):
            assert re.sub(r"\s+", "", paragraph) in reference


def test_passages_hold_no_tables_and_no_grammar() -> None:
    """What is left is text and examples, in clean lines."""
    for row in python_docs_rows().rows:
        context = row.values["context"]
        assert "::=" not in context
        assert "+-----" not in context
        assert not re.search(r"^[*=~-]{3,}$", context, re.MULTILINE)
        assert context == context.strip()
        assert all(line == line.rstrip() for line in context.split("\n"))


def test_a_passages_question_names_its_section() -> None:
    """The title in the question is a heading of the reference."""
    headings = {
        line.replace('"', "").strip()
        for topic in docs_text()
        for line, below in pairwise(topic.split("\n"))
        if re.fullmatch(r"\s*([*=\-~^\"'.+#])\1+", below)
    }
    for row in python_docs_rows().rows:
        match = re.fullmatch(r'What does the section "(.+)" say\?', row.values["input"])
        assert match is not None
        assert match[1] in headings


@pytest.mark.parametrize(
    ("name", "low", "high"), [("en_1-500", 1, 500), ("en_500-1000", 500, 1000)]
)
def test_each_window_of_the_quickstart_has_more_than_sixty_prompts(
    tokens_of: Callable[[str], int], name: str, low: int, high: int
) -> None:
    """All different, each with the count and the salt that its payload says, within the window."""
    (prepared,) = [one for one in check_workloads(quickstart()) if one.name == name]
    assert len(set(texts(prepared))) == prepared.kept > 60
    for payload in prepared.payloads:
        assert payload.prompt is not None
        assert payload.prompt.startswith(f"{payload.salt}\n\n")
        assert low <= payload.prompt_tokens <= high
        assert payload.prompt_tokens == tokens_of(payload.prompt)


# --- synthetic -----------------------------------------------------------------------------------

FIXED = {"kind": "fixed", "value": 120}
UNIFORM = {"kind": "uniform", "min": 30, "max": 400}
NORMAL = {"kind": "normal", "mean": 300, "stddev": 50}
LOGNORMAL = {"kind": "lognormal", "median": 200, "sigma": 0.5}


def synthetic(prompt_tokens: Mapping[str, Any], **source: Any) -> dict[str, Any]:
    """A workload of synthetic prompts."""
    return {"source": {"kind": "synthetic", "prompt_tokens": prompt_tokens} | source}


def drawn(loaded: LoadedConfig) -> list[int]:
    """The prompt lengths that the config's only source draws."""
    source = loaded.config.workloads[0].source
    assert source.kind == "synthetic"
    return draw_lengths(source.prompt_tokens, source.n_prompts, loaded.config.run.seed, "prompt")


@pytest.mark.parametrize("lengths", [FIXED, UNIFORM, NORMAL, LOGNORMAL])
@pytest.mark.parametrize("template", [None, "Go on from here:\n{{ prompt }}\nAnd then?"])
def test_synthetic_prompts_have_the_drawn_lengths(
    config: Config, tokens_of: Callable[[str], int], lengths: dict[str, Any], template: str | None
) -> None:
    """Salt and template within, each prompt counts exactly as many tokens as were drawn."""
    loaded = config(synthetic(lengths, n_prompts=50) | {"template": template})
    counts = [tokens_of(payload.prompt or "") for payload in prepared_by(loaded).payloads]
    assert sorted(counts) == sorted(drawn(loaded))


def test_synthetic_prompts_fit_other_tokenizers_too(config: Config, tmp_path: Path) -> None:
    """A unigram tokenizer with word marks, as SentencePiece makes them, meets every length."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1500, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
    )
    tokenizer.train_from_iterator(docs_text()[:20], trainer)
    tokenizer.save(str(tmp_path / "unigram.json"))
    loaded = config(synthetic(UNIFORM, n_prompts=40), tokenizer="unigram.json")
    counts = [len(tokenizer.encode(p.prompt or "").ids) for p in prepared_by(loaded).payloads]
    assert sorted(counts) == sorted(drawn(loaded))


def test_a_tokenizer_that_joins_words_is_met_as_nearly_as_it_allows(
    config: Config, tmp_path: Path
) -> None:
    """A byte-pair tokenizer whose tokens span words misses by few tokens, and says by how many."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False)
    tokenizer.train_from_iterator(docs_text()[:20], trainer)
    tokenizer.save(str(tmp_path / "joining.json"))
    loaded = config(synthetic(FIXED, n_prompts=20), tokenizer="joining.json")
    for payload in prepared_by(loaded).payloads:
        assert payload.prompt_tokens == len(tokenizer.encode(payload.prompt or "").ids)
        assert payload.prompt_tokens == pytest.approx(120, abs=4)


def test_drawn_lengths_follow_their_distribution(config: Config) -> None:
    """Bounds, mean, spread and median of 4000 draws are those asked for."""
    uniform, normal, lognormal = (
        drawn(config(synthetic(lengths, n_prompts=4000)))
        for lengths in (UNIFORM, NORMAL, LOGNORMAL)
    )
    assert (min(uniform), max(uniform)) == (30, 400)
    assert statistics.mean(uniform) == pytest.approx(215, rel=0.03)
    assert statistics.mean(normal) == pytest.approx(300, rel=0.03)
    assert statistics.stdev(normal) == pytest.approx(50, rel=0.06)
    assert statistics.median(lognormal) == pytest.approx(200, rel=0.06)


def test_output_lengths_are_drawn_too(config: Config) -> None:
    """With output_tokens, each payload asks for a length of its own."""
    source = synthetic(FIXED, n_prompts=60, output_tokens={"kind": "uniform", "min": 5, "max": 8})
    lengths = {payload.max_output_tokens for payload in prepared_by(config(source)).payloads}
    assert lengths == {5, 6, 7, 8}


def test_without_output_lengths_the_workloads_limit_is_asked(config: Config) -> None:
    """max_output_tokens holds for every payload."""
    prepared = prepared_by(config(synthetic(FIXED, n_prompts=5) | {"max_output_tokens": 77}))
    assert {payload.max_output_tokens for payload in prepared.payloads} == {77}


def test_lengths_below_the_salt_are_raised_and_counted(config: Config) -> None:
    """A few drawn lengths that cannot be made become the shortest that can, and that is said."""
    lengths = {"kind": "uniform", "min": 1, "max": 60}
    loaded = config(synthetic(lengths, n_prompts=100))
    prepared = prepared_by(loaded)
    shortest = prepared.min_prompt_tokens
    impossible = sum(length < shortest for length in drawn(loaded))
    assert 0 < impossible < 50
    note = f"{impossible} of 100 drawn lengths were raised to {shortest} tokens"
    assert prepared.notes == (note,)


def test_lengths_that_the_salt_alone_exceeds_are_an_error(config: Config) -> None:
    """A prompt of three tokens cannot hold a salt."""
    problem = problem_of(config(synthetic({"kind": "fixed", "value": 3})))
    assert problem.key == "workloads.0.source.prompt_tokens"


# --- huggingface ---------------------------------------------------------------------------------


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the hub's layout: a Parquet file of the split `test`, one of `train`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "poems"
    (folder / "data").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 100)):
        table = pa.table(
            {
                "question": [f"Who wrote poem {first + n}?" for n in range(4)],
                "body": [f"Line {first + n}" for n in range(4)],
            }
        )
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def huggingface(folder: Path, **source: Any) -> dict[str, Any]:
    """A workload of a data set in a local folder."""
    return {
        "source": {"kind": "huggingface", "id": folder.name} | source,
        "template": "{{ body }}: {{ input }}",
    }


def test_rows_come_from_a_split_of_a_data_set(config: Config, dataset_folder: Path) -> None:
    """A local folder in the hub's layout gives the split's rows, with columns renamed."""
    prepared = prepared_by(config(huggingface(dataset_folder, columns={"input": "question"})))
    assert sorted(texts(prepared)) == [
        f"Line {n}: Who wrote poem {n}?" for n in (100, 101, 102, 103)
    ]
    assert prepared.datasets == ("poems (test)",)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"columns": {"input": "riddle"}}, "workloads.0.source.columns.input"),
        ({"split": "validation"}, "workloads.0.source"),
        ({"id": "./none"}, "workloads.0.source"),
    ],
)
def test_a_data_set_that_lacks_what_is_asked_is_an_error_at_its_key(
    config: Config, dataset_folder: Path, source: dict[str, Any], key: str
) -> None:
    """A missing column, split or folder is a problem of the config."""
    assert problem_of(config(huggingface(dataset_folder, **source))).key == key


def test_a_missing_datasets_package_is_an_error_that_says_how_to_install_it(
    config: Config, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is the project's extra."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "datasets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    problem = problem_of(config(huggingface(dataset_folder)))
    assert problem.key == "workloads.0.source.kind"
    assert "fmgauge[huggingface]" in problem.remedy


# --- room for what is asked ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "says"), [("none.gguf", "no file"), (".", "is no file")])
def test_a_model_file_that_is_not_there_is_an_error_at_its_key(
    config: Config, tmp_path: Path, name: str, says: str
) -> None:
    """A relative path starts at the project's root; a folder is no model."""
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "b"})
    problem = problem_of(config(jsonl(path), endpoint={"gguf": name}))
    assert problem.key == "experiments.0.endpoint.gguf"
    assert says in problem.problem
    assert str((tmp_path / name).resolve()) in problem.problem


def test_a_model_file_that_is_there_is_taken(config: Config, tmp_path: Path) -> None:
    """Only that it is a file is asked here."""
    (tmp_path / "model.gguf").touch()
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "b"})
    assert prepared_by(config(jsonl(path), endpoint={"gguf": "model.gguf"})).approximate


def test_a_slot_that_the_longest_request_exceeds_is_an_error_at_its_key(config: Config) -> None:
    """Prompt, output and chat template are told, with the size that would do."""
    workload = synthetic(FIXED, n_prompts=4) | {"max_output_tokens": 60}
    problem = problem_of(config(workload, endpoint={"context_tokens": 199}))
    assert problem.key == "experiments.0.endpoint.context_tokens"
    assert problem.problem == (
        "199 tokens are too few for w0, which needs 200: a prompt of 120, up to 60 of output, "
        "and about 20 that the chat template adds"
    )
    assert problem.remedy.startswith("Set it to 200 or more")


def test_a_slot_that_just_holds_the_longest_request_is_taken(config: Config) -> None:
    """120 tokens of prompt, 60 of output and 20 of the chat template fit into 200."""
    workload = synthetic(FIXED, n_prompts=4) | {"max_output_tokens": 60}
    assert prepared_by(config(workload, endpoint={"context_tokens": 200})).kept == 4


def test_a_slot_is_not_measured_with_an_approximate_count(config: Config, tmp_path: Path) -> None:
    """A model file whose tokenizer nobody named may count otherwise."""
    (tmp_path / "model.gguf").touch()
    endpoint = {"gguf": "model.gguf", "context_tokens": 100}
    prepared = prepared_by(config(synthetic(FIXED, n_prompts=4), endpoint=endpoint))
    assert (prepared.approximate, prepared.max_prompt_tokens) == (True, 120)


# --- payloads ------------------------------------------------------------------------------------


def numbered(folder: Path, number: int) -> Path:
    """A data file of so many different prompts, of growing length."""
    rows = ({"prompt": f"Say {'very ' * n}well."} for n in range(number))
    return write_lines(folder / "numbered.jsonl", *rows)


def test_a_window_includes_both_its_ends(config: Config, tmp_path: Path) -> None:
    """A prompt of exactly min_tokens or max_tokens stays; one token beyond goes."""
    path = numbered(tmp_path, 9)
    sizes = sorted(p.prompt_tokens for p in prepared_by(config(jsonl(path))).payloads)
    window = {"min_tokens": sizes[2], "max_tokens": sizes[6]}
    prepared = prepared_by(config(jsonl(path, filter=window)))
    assert sorted(p.prompt_tokens for p in prepared.payloads) == sizes[2:7]
    assert prepared.rows_dropped["min_tokens"] == prepared.rows_dropped["max_tokens"] == 2


def test_repeated_prompts_are_dropped_and_counted(config: Config, tmp_path: Path) -> None:
    """Only different prompts are sent."""
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "max_tokens": 3}, {"prompt": "a"}]
    prepared = prepared_by(config(jsonl(write_lines(tmp_path / "rows.jsonl", *rows))))
    assert sorted(texts(prepared)) == ["a", "b"]
    assert prepared.rows_dropped["duplicate"] == 2


def test_rows_read_are_rows_kept_and_dropped(config: Config, tmp_path: Path) -> None:
    """Nothing is lost unsaid: the counts add up."""
    path = numbered(tmp_path, 40)
    workload = jsonl(path, path, max_prompts=10, filter={"min_tokens": 25, "max_tokens": 45})
    prepared = prepared_by(config(workload))
    assert prepared.rows_read == prepared.kept + sum(prepared.rows_dropped.values()) == 40
    assert prepared.rows_dropped["max_prompts"] > 0


@pytest.mark.parametrize(
    ("prompts", "reserved"), [(2, 1), (9, 4), (16, 8), (17, 8), (80, 8), (81, 9), (100, 10)]
)
def test_the_last_prompts_are_reserved(
    config: Config, tmp_path: Path, prompts: int, reserved: int
) -> None:
    """A tenth, at least 8, at most half: never measured, and last in the file."""
    payloads = prepared_by(config(jsonl(numbered(tmp_path, prompts)))).payloads
    assert [p.reserved for p in payloads] == [False] * (prompts - reserved) + [True] * reserved


def test_payloads_are_numbered_in_an_order_that_follows_no_length(
    config: Config, tmp_path: Path
) -> None:
    """Ids count up from 0000; the lengths beside them do not."""
    prepared = prepared_by(config(jsonl(numbered(tmp_path, 50), name="long")))
    assert [p.payload_id for p in prepared.payloads] == [f"long-{n:04d}" for n in range(50)]
    sizes = [p.prompt_tokens for p in prepared.payloads]
    rising = sum(one < other for one, other in pairwise(sizes))
    assert 10 < rising < 40


def test_the_seed_decides_order_and_salts(config: Config, tmp_path: Path) -> None:
    """Equal seeds give equal payloads; another seed gives others."""
    path = numbered(tmp_path, 30)
    first, again, other = (
        prepared_by(config(jsonl(path), seed=seed)).payloads for seed in (1, 1, 2)
    )
    assert first == again
    assert [p.prompt_tokens for p in first] != [p.prompt_tokens for p in other]
    assert {p.salt for p in first}.isdisjoint({p.salt for p in other})


def test_an_unsalted_workload_sends_its_prompts_as_they_are(config: Config, tmp_path: Path) -> None:
    """Where prefix caching is the subject, nothing is put before the text."""
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "b"})
    payloads = prepared_by(config(jsonl(path, salt=False))).payloads
    assert sorted((p.prompt, p.salt) for p in payloads) == [("a", None), ("b", None)]


def test_an_empty_window_says_how_many_rows_each_filter_dropped(config: Config) -> None:
    """The error stands at the workload's filter and counts by reason."""
    window = {"language": "en", "min_tokens": 5000, "max_tokens": 6000}
    loaded = config(jsonl(SAMPLE, template=QUESTION, filter=window))
    problem = problem_of(loaded)
    assert problem.key == "workloads.0.filter"
    assert '"filter"' in loaded.path.read_text().splitlines()[(problem.line or 0) - 1]
    assert problem.problem == (
        "0 of 12 rows are left: language dropped 2, duplicate dropped 0, "
        "min_tokens dropped 10, max_tokens dropped 0, max_prompts dropped 0"
    )


def test_one_prompt_is_too_few(config: Config, tmp_path: Path) -> None:
    """One prompt cannot be both measured and kept for warm-up."""
    problem = problem_of(config(jsonl(write_lines(tmp_path / "one.jsonl", {"prompt": "a"}))))
    assert problem.problem.startswith("1 of 1 rows are left")
    assert "At least 2" in problem.remedy


def test_a_template_that_names_a_missing_column_lists_those_there_are(config: Config) -> None:
    """The error stands at the template, and names the row that lacks it."""
    problem = problem_of(config(jsonl(SAMPLE, template="{{ contxt }} {{ input }}")))
    assert problem.key == "workloads.0.template"
    assert "'contxt'" in problem.problem
    assert f"{SAMPLE}:1" in problem.problem
    assert "input, context, answers, length" in problem.remedy


def test_rows_that_only_a_template_can_use_ask_for_one(config: Config) -> None:
    """The docs hold neither prompt nor messages, so their workload needs a template."""
    problem = problem_of(config({"source": {"kind": "python_docs"}}))
    assert problem.key == "workloads.0.template"
    assert "input, context" in problem.remedy


def test_every_problem_is_told_at_once(config: Config) -> None:
    """Two unusable workloads give two problems."""
    with pytest.raises(ConfigError) as caught:
        check_workloads(config(jsonl("none.jsonl"), jsonl(SAMPLE, template="{{ none }}")))
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["workloads.0.source.paths.0", "workloads.1.template"]


@pytest.mark.parametrize(
    ("workload", "tokenizer"),
    [
        (jsonl("s3://bucket/key.jsonl"), None),
        ({"source": {"kind": "huggingface", "id": "some/where"}}, None),
        (jsonl(SAMPLE, template=QUESTION), "some/model"),
    ],
)
def test_an_offline_check_leaves_out_what_is_elsewhere(
    config: Config, workload: dict[str, Any], tokenizer: str | None
) -> None:
    """Nothing is asked of the network, and nothing is said of what was not read."""
    assert check_workloads(config(workload, tokenizer=tokenizer), offline=True) == []


def test_an_offline_check_reads_what_is_here(config: Config) -> None:
    """Local problems are found offline too."""
    with pytest.raises(ConfigError, match="no such file"):
        check_workloads(config(jsonl("none.jsonl")), offline=True)


# --- the run's files -----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the quickstart in a folder of its own."""
    return open_run(ROOT / "configs" / "quickstart.yml", "test", [f"run.results_dir={tmp_path}"])


def written(run: Run) -> dict[str, bytes]:
    """Names and contents of the run's payload files."""
    return {path.name: path.read_bytes() for path in run.workloads_path.parent.iterdir()}


def test_the_runs_files_hold_what_was_chosen(run: Run) -> None:
    """One payload file for each workload, as the payloads are, and one file on the choice."""
    prepared = prepare_payloads(run)
    assert sorted(written(run)) == [
        *("payload_en_1-500.jsonl", "payload_en_500-1000.jsonl", "workloads.json")
    ]
    for one in prepared:
        payloads = read_payloads(run.payloads_path(one.name))
        facts = read_json(run.workloads_path)[one.name]
        sizes = [payload.prompt_tokens for payload in payloads]
        assert tuple(payloads) == one.payloads
        assert facts["prompt_tokens_mean"] == pytest.approx(statistics.mean(sizes))
        assert (facts["prompt_tokens_min"], facts["prompt_tokens_max"]) == (min(sizes), max(sizes))
        assert facts["prompts"] == len(payloads)
        assert facts["prompts_reserved"] == sum(payload.reserved for payload in payloads)
        assert facts["rows_read"] == len(payloads) + sum(facts["rows_dropped"].values())
        assert (facts["tokenizer"], facts["approximate"]) == ("docs-bpe-4096", False)


def test_preparing_again_writes_the_same_bytes(run: Run) -> None:
    """Also in another process, whose hash seed is another."""
    prepare_payloads(run)
    first = written(run)
    program = (
        "import sys\n"
        "from fmgauge.runs import open_run\n"
        "from fmgauge.workloads import prepare_payloads\n"
        "prepare_payloads(open_run(sys.argv[1], 'test', [sys.argv[2]]))\n"
    )
    for path in run.workloads_path.parent.iterdir():
        path.unlink()
    config_path = str(ROOT / "configs" / "quickstart.yml")
    override = f"run.results_dir={run.folder.parent}"
    subprocess.run(
        [sys.executable, "-c", program, config_path, override],
        env=os.environ | {"PYTHONHASHSEED": "99"},
        check=True,
        timeout=60,
    )
    assert written(run) == first


def test_nothing_is_written_where_one_workload_is_unusable(config: Config) -> None:
    """The good workload's file is not written either."""
    loaded = config(jsonl(SAMPLE, template=QUESTION), jsonl("none.jsonl"))
    run = Run("test", loaded.base_dir / "test", loaded)
    with pytest.raises(ConfigError):
        prepare_payloads(run)
    assert not run.workloads_path.parent.exists()


def test_checking_the_quickstart_imports_nothing_heavy() -> None:
    """`fmgauge check` stays fast: cloud, data set and table libraries are left alone."""
    program = (
        "import sys\n"
        "from fmgauge.config import load_config\n"
        "from fmgauge.workloads import check_workloads\n"
        "check_workloads(load_config(sys.argv[1]))\n"
        "heavy = {'pandas', 'boto3', 'datasets', 'numpy', 'pyarrow', 'scipy', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    config_path = str(ROOT / "configs" / "quickstart.yml")
    done = subprocess.run(
        [sys.executable, "-c", program, config_path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"

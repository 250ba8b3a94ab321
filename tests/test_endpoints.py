"""The ledger, and endpoints brought up and taken down on the real engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from conftest import held_elsewhere, until
from fmgauge.config import planned_stages
from fmgauge.emulator import llamacpp_server, simulated_server
from fmgauge.emulator.lease import expired, read_lease, renew
from fmgauge.endpoints import (
    CleanUpReport,
    RunInUse,
    announcements,
    bring_up,
    clean_up,
    hold_lease,
    processes,
    serving,
)
from fmgauge.endpoints.ledger import LedgerEvent, append, last_attempt, outstanding, read_ledger
from fmgauge.endpoints.processes import ProcessId
from fmgauge.errors import ConfigError, StepError
from fmgauge.load import ask_once, run_stages
from fmgauge.records import (
    Endpoint,
    held,
    read_endpoints,
    read_stage,
    write_endpoints,
    write_payloads,
)
from fmgauge.records.locks import holder
from fmgauge.runs import Run, RunFolder, now_utc, open_run
from scripted_server import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Peer,
    Request,
    Script,
    ScriptedServer,
    answer,
    chunk,
    delta,
    response,
    usage,
)
from stage_runs import payloads

SMALL = {"kind": "llamacpp", "layers": 2, "width": 128, "context_tokens": 512}
QUICK = {"step_s": 0.001, "prefill_token_s": 0.0, "decode_sequence_s": 0.0}
SIMULATED = {"kind": "simulated", "profile": QUICK}
each_kind = pytest.mark.parametrize(
    "wanted",
    [SIMULATED, pytest.param(SMALL, marks=pytest.mark.whole)],
    ids=lambda wanted: wanted["kind"],
)


def config(endpoints: dict[str, dict[str, Any]], tokenizer: str | None = None) -> dict[str, Any]:
    """A config with one experiment for each of `endpoints`, one stage each."""
    return {
        "run": {"name": "deploy"},
        "workloads": [
            {"name": "docs", "source": {"kind": "python_docs"}, "template": "{{ input }}"}
        ],
        "experiments": [
            {
                "name": name,
                "model": {"name": "small-llama", "tokenizer": tokenizer},
                "endpoint": endpoint,
                "instance_type": "local-cpu",
                "workloads": ["docs"],
                "load": [
                    {"kind": "closed_loop", "concurrency": [1], "duration_s": 1, "warmup_s": 0.2}
                ],
            }
            for name, endpoint in endpoints.items()
        ],
        "prices": {"hourly_usd": {"local-cpu": 0.1}},
    }


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Open runs in this test's folder; whatever they started is gone at the end."""
    runs: list[Run] = []

    def open_here(
        run_id: str = "run", tokenizer: str | None = None, **endpoints: dict[str, Any]
    ) -> Run:
        path = tmp_path / f"{run_id}.yml"
        path.write_text(yaml.safe_dump(config(endpoints, tokenizer)))
        runs.append(open_run(path, run_id))
        write_payloads(runs[-1].payloads_path("docs"), payloads())
        return runs[-1]

    yield open_here
    assert [clean_up(run).left for run in runs] == [()] * len(runs)
    assert servers_of(tmp_path) == []


def servers_of(folder: Path) -> list[int]:
    """Pids of live servers whose files are below `folder`, found without the product's code."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        arguments = process.info["cmdline"] or []
        ours = any(argument.startswith(f"{folder}{os.sep}") for argument in arguments)
        if ours and {llamacpp_server.MODULE, simulated_server.MODULE} & {*arguments}:
            found.append(process.pid)
    return found


def kill_the_server(folder: Path) -> None:
    """Kill the one server of `folder` behind the product's back."""
    (pid,) = servers_of(folder)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def answers(endpoint: Endpoint) -> bool:
    """Whether a server listens at `endpoint`, asked without the product's transport."""
    try:
        with urllib.request.urlopen(f"{endpoint.base_url}/models", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def ledger_events(run: Run) -> list[tuple[str, str]]:
    """Event and name of each line, read as plain JSON."""
    lines = [json.loads(line) for line in run.ledger_path.read_text().splitlines()]
    return [(line["event"], line["name"]) for line in lines]


# --- bring up, clean up --------------------------------------------------------------------------


def test_brought_up_endpoints_answer_and_clean_up_leaves_no_process(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """Two servers come up side by side, answer, are written down, and are gone after clean-up."""
    run = opened(one=SMALL, four={**SMALL, "parallel": 4})
    endpoints = bring_up(run)
    assert [(e.experiment, e.state, e.owned) for e in endpoints] == [
        ("one", "ready", True),
        ("four", "ready", True),
    ]
    assert all(answers(endpoint) for endpoint in endpoints)
    assert read_endpoints(run.endpoints_path) == {e.experiment: e for e in endpoints}
    report = clean_up(run)
    assert sorted(report.ended) == ["llamacpp-four-1", "llamacpp-one-1"]
    assert (report.left, report.already_gone) == ((), ())
    assert servers_of(tmp_path) == []


def test_endpoint_tells_what_it_is_and_when_it_first_answered(opened: Callable[..., Run]) -> None:
    """An entry holds model, instance, body fields, creation by the wall clock, first answer."""
    began = now_utc()
    (endpoint,) = bring_up(opened(one=SMALL))
    assert (endpoint.model, endpoint.instance_type) == ("small-llama", "local-cpu")
    assert endpoint.extra_body == {"cache_prompt": False, "ignore_eos": True, "temperature": 0.0}
    assert began <= datetime.fromisoformat(endpoint.created_at or "") <= now_utc()
    assert 0 < (endpoint.first_answer_s or 0) <= (now_utc() - began).total_seconds()


@each_kind
def test_ledger_tells_the_life_of_a_server_in_order(
    opened: Callable[..., Run], wanted: dict[str, Any]
) -> None:
    """Planned, created with the process that really runs, deleted; all owned by this run."""
    run = opened(one=wanted)
    bring_up(run)
    clean_up(run)
    planned, created, deleted = read_ledger(run.ledger_path)
    assert [e.event for e in (planned, created, deleted)] == ["planned", "created", "deleted"]
    name = f"{wanted['kind']}-one-1"
    assert {(e.name, e.run_id, e.owned) for e in (planned, created, deleted)} == {
        (name, "run", True)
    }
    ready = json.loads((run.logs_folder / f"{name}.ready.json").read_text())
    assert (created.pid, planned.pid) == (ready["pid"], None)


def test_clean_up_again_finds_nothing_to_do(opened: Callable[..., Run]) -> None:
    """A second clean-up ends nothing, leaves nothing and writes nothing."""
    run = opened(one=SIMULATED)
    bring_up(run)
    clean_up(run)
    before = run.ledger_path.read_bytes()
    assert clean_up(run) == CleanUpReport(ended=(), left=())
    assert run.ledger_path.read_bytes() == before


def test_clean_up_needs_the_ledger_alone(opened: Callable[..., Run], tmp_path: Path) -> None:
    """Without endpoints.json and without logs, the server is still ended."""
    run = opened(one=SIMULATED)
    bring_up(run)
    run.endpoints_path.unlink()
    for path in run.logs_folder.iterdir():
        path.unlink()
    assert clean_up(run).ended == ("simulated-one-1",)
    assert servers_of(tmp_path) == []


def test_bring_up_keeps_an_endpoint_that_still_answers(opened: Callable[..., Run]) -> None:
    """A second bring-up starts nothing and changes no entry."""
    run = opened(one=SIMULATED)
    first = bring_up(run)
    assert bring_up(run) == first
    assert ledger_events(run) == [("planned", "simulated-one-1"), ("created", "simulated-one-1")]


def test_experiment_whose_stages_are_done_is_not_started_again(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """When all of an experiment's stages are on disk its entry stays and nothing is started."""
    run = opened(one=SIMULATED)
    first = bring_up(run)
    clean_up(run)
    for stage in planned_stages(run.config):
        run.stage_folder(stage.key).mkdir(parents=True)
    assert bring_up(run) == first
    assert servers_of(tmp_path) == []


def test_failed_start_is_told_with_its_log_while_the_other_comes_up(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """A model file that is no model fails its own experiment only, with the engine's last words."""
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    run = opened(broken={"kind": "llamacpp", "gguf": "broken.gguf"}, one=SIMULATED)
    broken, one = bring_up(run)
    assert (broken.state, broken.base_url, broken.first_answer_s) == ("failed", None, None)
    assert "ended before it listened; llamacpp-broken-1.log ends with: " in (broken.error or "")
    assert f"cannot serve {tmp_path / 'broken.gguf'}" in (broken.error or "")
    assert one.state == "ready"
    assert answers(one)
    assert ("deleted", "llamacpp-broken-1") in ledger_events(run)


def test_reason_of_a_second_failure_does_not_quote_the_first(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """Each failure quotes its own server's lines."""
    run = opened(broken={"kind": "llamacpp", "gguf": "model.gguf"})
    (first,) = bring_up(run)
    (tmp_path / "model.gguf").write_bytes(b"no model")
    (second,) = bring_up(run)
    assert "there is no model file" in (first.error or "")
    assert "there is no model file" not in (second.error or "")
    assert second.resource == "llamacpp-broken-2"


def test_dead_server_is_replaced(opened: Callable[..., Run], tmp_path: Path) -> None:
    """A server that died is noted as deleted before the next, with a new name, is planned."""
    run = opened(one=SIMULATED)
    bring_up(run)
    kill_the_server(tmp_path)
    (endpoint,) = bring_up(run)
    assert answers(endpoint)
    assert ledger_events(run)[2:] == [
        ("deleted", "simulated-one-1"),
        ("planned", "simulated-one-2"),
        ("created", "simulated-one-2"),
    ]


BUSY = "busy: it did not answer within 10 s, and is kept"


@pytest.mark.whole  # ten seconds of waiting
def test_a_living_server_that_is_too_busy_to_answer_is_kept(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """It is not replaced; that it is busy is said, and forgotten once it answers again."""
    run = opened(one=SIMULATED)
    (first,) = bring_up(run)
    (pid,) = servers_of(tmp_path)
    os.kill(pid, signal.SIGSTOP)

    (busy,) = bring_up(run)
    os.kill(pid, signal.SIGCONT)
    (again,) = bring_up(run)

    assert busy == replace(first, error=BUSY)
    assert list(announcements([busy])) == [f"one: its server is {BUSY}"]
    assert again == first
    assert servers_of(tmp_path) == [pid]


@pytest.mark.whole  # two seconds of waiting
def test_a_living_server_that_answers_wrongly_has_failed_and_lives(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """The reason and what to do are told; what ends it is for its user to decide."""

    async def refuse(_: Request, peer: Peer) -> None:
        await peer.send(response("500 Error", b"oops"))

    run = opened(one=SIMULATED)
    (first,) = bring_up(run)
    servers = servers_of(tmp_path)
    with ScriptedServer(refuse) as wrong:
        write_endpoints(run.endpoints_path, [replace(first, base_url=wrong.base_url)])
        (failed,) = bring_up(run)

    assert (failed.state, failed.resource) == ("failed", first.resource)
    assert "HTTP 500: oops. It lives, so it is kept; to have a new one" in (failed.error or "")
    assert servers_of(tmp_path) == servers


def test_a_living_server_without_an_entry_is_found(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """Whoever started it was killed before the entry was written: the ledger knows it."""
    run = opened(one=SIMULATED)
    (first,) = bring_up(run)
    run.endpoints_path.unlink()
    servers = servers_of(tmp_path)

    (found,) = bring_up(run)

    assert found == replace(first, created_at=None, first_answer_s=None)
    assert servers_of(tmp_path) == servers


def test_endpoints_that_another_process_loads_are_not_touched(opened: Callable[..., Run]) -> None:
    """Its id is told; neither server nor lease nor ledger comes to be."""
    run = opened(one=SIMULATED)

    with held_elsewhere(run.load_lock_path) as pid, pytest.raises(StepError) as refused:
        bring_up(run, patience_s=0)

    told = f"process {pid} brings up or loads the endpoints of run. Wait until it has ended"
    assert str(refused.value).startswith(told)
    files = {path.name for path in run.folder.iterdir()}
    assert files == {"config.yaml", "manifest.json", ".load.lock", "payloads"}


@pytest.mark.parametrize("lock", ["pipeline_lock_path", "load_lock_path"])
def test_clean_up_leaves_a_run_that_another_process_works_on(
    opened: Callable[..., Run], tmp_path: Path, lock: str
) -> None:
    """Its id and the way out are told, and the server lives; with force it is ended."""
    run = opened(one=SIMULATED)
    bring_up(run)

    with held_elsewhere(getattr(run, lock)) as pid:
        with pytest.raises(RunInUse, match=f"process {pid} works on run.*clean-up run --force"):
            clean_up(run)
        servers = servers_of(tmp_path)
        forced = clean_up(run, force=True)

    assert len(servers) == 1
    assert forced.ended == ("simulated-one-1",)


def test_clean_up_of_the_pipeline_itself_and_of_its_notebook_is_not_refused(
    opened: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own locks, and those of the pipeline that runs it, are in nobody's way."""
    run = opened(one=SIMULATED)
    bring_up(run)
    with held(run.pipeline_lock_path, "works on it"):
        assert clean_up(run).ended == ("simulated-one-1",)
    with held_elsewhere(run.pipeline_lock_path) as pid:
        monkeypatch.setenv("FMGAUGE_RUN_BY_PIPELINE", str(pid))
        assert clean_up(run).ended == ()


@each_kind
def test_similar_experiment_names_do_not_meet_in_the_ledger(
    opened: Callable[..., Run], wanted: dict[str, Any]
) -> None:
    """Releasing `a` leaves `a-1` alone, though its names begin alike."""
    run = opened(**{"a": wanted, "a-1": wanted})
    with serving(run) as up:
        up.release("a")
        assert [answers(up.endpoints[name]) for name in ("a", "a-1")] == [False, True]


def test_endpoint_of_somebody_else_is_asked_and_never_touched(opened: Callable[..., Run]) -> None:
    """An openai endpoint is not owned, not in the ledger, and survives release and clean-up."""
    (theirs,) = bring_up(opened("theirs", one=SIMULATED))
    wanted = {"kind": "openai", "base_url": theirs.base_url, "extra_body": {"ignore_eos": True}}
    run = opened("ours", remote=wanted)
    with serving(run) as up:
        remote = up.endpoints["remote"]
        up.release("remote")
    assert clean_up(run) == CleanUpReport(ended=(), left=())
    assert (remote.state, remote.owned, remote.created_at) == ("ready", False, None)
    assert (remote.base_url, remote.extra_body) == (theirs.base_url, {"ignore_eos": True})
    assert answers(theirs)
    assert not run.ledger_path.exists()


def test_endpoint_that_does_not_answer_has_failed(opened: Callable[..., Run]) -> None:
    """An openai endpoint where nobody listens is failed, with the transport's reason."""
    (gone,) = bring_up(opened("theirs", one=SIMULATED))
    clean_up(opened("theirs", one=SIMULATED))
    (remote,) = bring_up(opened("ours", remote={"kind": "openai", "base_url": gone.base_url}))
    assert remote.state == "failed"
    assert "connection_error" in (remote.error or "")


async def _refuses_twice(request: Request, peer: Peer) -> None:
    if request.number < 2:
        await peer.send(response("500 Error", b"oops"))
    else:
        await answer(request, peer)


async def _says_nothing(request: Request, peer: Peer) -> None:
    events = delta(role="assistant", content=""), delta(finish_reason="length"), usage(5, 1), DONE
    await peer.send(STREAM_HEAD, *map(chunk, events), LAST_CHUNK)


@pytest.mark.parametrize("script", [_refuses_twice, _says_nothing])
def test_endpoint_that_answers_in_its_own_way_is_measured(
    opened: Callable[..., Run], script: Script
) -> None:
    """One that fails now and then, or whose first token bears no text, is not left out."""
    with ScriptedServer(script) as server:
        (remote,) = bring_up(opened(remote={"kind": "openai", "base_url": server.base_url}))

    assert (remote.state, remote.error) == ("ready", None)


def test_endpoint_that_only_refuses_has_failed(opened: Callable[..., Run]) -> None:
    """The last refusal is the reason, and it is not asked for ever."""

    async def refuse(_: Request, peer: Peer) -> None:
        await peer.send(response("500 Error", b"oops"))

    with ScriptedServer(refuse) as server:
        (remote,) = bring_up(opened(remote={"kind": "openai", "base_url": server.base_url}))

    assert (remote.state, len(server.requests)) == ("failed", 3)
    assert "HTTP 500: oops" in (remote.error or "")


# --- servers that refuse to be asked for usage ----------------------------------------------------


def refuses(field: str, status: str) -> Script:
    """A script that refuses whoever sends `field`, each time in other words; it tells no usage."""

    async def script(request: Request, peer: Peer) -> None:
        if field in request.fields:
            words = f"question {request.number}: {field} is not permitted"
            await peer.send(response(status, words.encode()))
            return
        text, finish = delta(content="a"), delta(finish_reason="length")
        await peer.send(STREAM_HEAD, *map(chunk, (text, finish, DONE)), LAST_CHUNK)

    return script


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Entity"])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_question_is_put_again_without_stream_options_and_that_is_remembered(
    opened: Callable[..., Run], status: str, api: str
) -> None:
    """One more question makes it ready; the next bring-up of the run leaves the field out."""
    with ScriptedServer(refuses("stream_options", status)) as server:
        run = opened(remote={"kind": "openai", "base_url": server.base_url, "api": api})
        (first,) = bring_up(run)
        (again,) = bring_up(run)

    assert (first.state, first.error, first.usage_in_stream) == ("ready", None, False)
    assert again == first == read_endpoints(run.endpoints_path)["remote"]
    assert ["stream_options" in r.fields for r in server.requests] == [True, False, False]


def test_server_that_takes_stream_options_is_asked_once(opened: Callable[..., Run]) -> None:
    """Usage is asked for wherever nothing speaks against it."""
    with ScriptedServer(answer) as server:
        (remote,) = bring_up(opened(remote={"kind": "openai", "base_url": server.base_url}))

    assert (remote.state, remote.usage_in_stream) == ("ready", True)
    assert ["stream_options" in r.fields for r in server.requests] == [True]


def test_refusal_for_another_reason_is_told_as_it_was_first_told(
    opened: Callable[..., Run],
) -> None:
    """Where leaving the field out does not help, the first answer is the reason."""
    with ScriptedServer(refuses("max_tokens", "400 Bad Request")) as server:
        (remote,) = bring_up(opened(remote={"kind": "openai", "base_url": server.base_url}))

    assert (remote.state, remote.usage_in_stream) == ("failed", True)
    assert remote.error == (
        "the first answer was no answer: http_error: HTTP 400: "
        "question 0: max_tokens is not permitted"
    )
    assert ["stream_options" in r.fields for r in server.requests] == [True, False]


def test_stream_options_of_the_config_are_not_left_out(opened: Callable[..., Run]) -> None:
    """What extra_body asks for is what the user wants: the refusal is told."""
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    with ScriptedServer(refuses("stream_options", "400 Bad Request")) as server:
        wanted = {"kind": "openai", "base_url": server.base_url, "extra_body": options}
        (remote,) = bring_up(opened(remote=wanted))

    assert remote.state == "failed"
    assert "stream_options is not permitted" in (remote.error or "")
    assert all(r.fields["stream_options"] == options["stream_options"] for r in server.requests)


def counting_characters(folder: Path) -> str:
    """A tokenizer.json that counts every character as a token."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def test_stage_of_a_server_that_refuses_stream_options_is_counted_by_the_tokenizer(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """No request is refused; each answer's 16 words of six characters are 96 of this tokenizer."""
    wanted = {**SIMULATED, "faults": {"stream_options_refused": True}}
    run = opened(tokenizer=counting_characters(tmp_path), one=wanted)

    with serving(run) as up:
        (key,) = run_stages(run, up.endpoints, up.release)

    _, table = read_stage(run.stage_folder(key))
    told = {(r["status"], r["token_source"], r["output_tokens"]) for r in table.to_pylist()}
    assert told == {("ok", "tokenizer", 96)}
    assert {*table["prompt_tokens"].to_pylist()} == {7}


def test_announcements_tell_what_is_not_as_it_was_asked_for(opened: Callable[..., Run]) -> None:
    """A line on what failed and on what tells no usage; of all else nothing."""
    silent = {**SIMULATED, "faults": {"stream_options_refused": True}}
    gone = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}

    lines = list(announcements(bring_up(opened(sound=SIMULATED, silent=silent, gone=gone))))

    assert len(lines) == 2
    assert lines[0].startswith("silent: its server refuses stream_options")
    assert "the tokenizer counts its tokens" in lines[0]
    assert lines[1].startswith("gone will not be measured: ")


# --- simulated endpoints --------------------------------------------------------------------------


def test_simulated_endpoint_says_that_it_is_simulated(opened: Callable[..., Run]) -> None:
    """The entry names the kind and the API that the load is to speak; bodies get nothing added."""
    run = opened(one={**SIMULATED, "api": "completions"})
    (endpoint,) = bring_up(run)
    assert (endpoint.state, endpoint.kind, endpoint.api) == ("ready", "simulated", "completions")
    assert (endpoint.owned, endpoint.resource) == (True, "simulated-one-1")
    assert read_endpoints(run.endpoints_path)["one"] == endpoint
    assert endpoint.extra_body == {}


def test_simulated_faults_do_not_meet_the_first_answer(opened: Callable[..., Run]) -> None:
    """A server that fails every request is up all the same: the load is to find that out."""
    (endpoint,) = bring_up(opened(one={**SIMULATED, "faults": {"http_error": 1.0}}))
    assert (endpoint.state, endpoint.error) == ("ready", None)
    assert ask_once(endpoint).http_status == 500


def test_unknown_preset_is_refused_before_anything_starts(opened: Callable[..., Run]) -> None:
    """A preset that is not there is a fault of the config, with the nearest name."""
    wanted = {"kind": "simulated", "preset": "imitated-7b-on-ml.g5.2xlarg"}
    run = opened(one=SIMULATED, two=wanted)
    with pytest.raises(ConfigError) as refused:
        bring_up(run)
    assert "experiments.1.endpoint.preset" in str(refused.value)
    assert "'imitated-7b-on-ml.g5.2xlarge'" in str(refused.value)
    assert not run.ledger_path.exists()


def test_kinds_stand_side_by_side(opened: Callable[..., Run]) -> None:
    """One run may have an embedded and a simulated server, and release one of the two."""
    run = opened(real=SMALL, imitated=SIMULATED)
    with serving(run) as up:
        up.release("real")
        assert [answers(up.endpoints[name]) for name in ("real", "imitated")] == [False, True]
    assert clean_up(run).ended == ("simulated-imitated-1",)


# --- what a killed run leaves --------------------------------------------------------------------


@each_kind
def test_server_that_was_planned_but_not_noted_as_created_is_found(
    opened: Callable[..., Run], tmp_path: Path, wanted: dict[str, Any]
) -> None:
    """A run killed between start and the ledger's next line leaves a server that is ended."""
    run = opened(one=wanted)
    bring_up(run)
    planned = run.ledger_path.read_bytes().splitlines(keepends=True)[0]
    run.ledger_path.write_bytes(planned + b'{"event":"created","resource_ty')
    assert clean_up(run).ended == (f"{wanted['kind']}-one-1",)
    assert servers_of(tmp_path) == []
    assert read_ledger(run.ledger_path)[-1].event == "deleted"


def test_plan_that_was_never_carried_out_is_noted_so(opened: Callable[..., Run]) -> None:
    """A run killed between plan and start leaves nothing, and the ledger says so."""
    run = opened(one=SIMULATED)
    append(run.ledger_path, event("planned", "llamacpp-one-1"))
    assert clean_up(run) == CleanUpReport((), (), already_gone=("llamacpp-one-1",))
    assert ledger_events(run)[-1] == ("never_created", "llamacpp-one-1")


def test_server_that_ended_itself_is_noted_as_deleted(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """A server that is gone before clean-up is not claimed to have been ended by it."""
    run = opened(one=SIMULATED)
    bring_up(run)
    kill_the_server(tmp_path)
    assert clean_up(run) == CleanUpReport((), (), already_gone=("simulated-one-1",))
    assert ledger_events(run)[-1] == ("deleted", "simulated-one-1")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any run."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_recycled_pid_is_not_killed(
    opened: Callable[..., Run], bystander: subprocess.Popen[bytes]
) -> None:
    """A process that has a server's old pid, but began at another time, lives on."""
    run = opened(one=SIMULATED)
    began = psutil.Process(bystander.pid).create_time()
    recycled = {"pid": bystander.pid, "process_created_at": began - 3600}
    append(run.ledger_path, event("created", "llamacpp-one-1", **recycled))
    assert clean_up(run) == CleanUpReport((), (), already_gone=("llamacpp-one-1",))
    assert bystander.poll() is None


def test_process_that_the_run_does_not_own_is_not_killed(
    opened: Callable[..., Run], bystander: subprocess.Popen[bytes]
) -> None:
    """A resource noted as not owned is left alone, even where the ledger points at it."""
    run = opened(one=SIMULATED)
    began = psutil.Process(bystander.pid).create_time()
    theirs = {"pid": bystander.pid, "process_created_at": began, "owned": False}
    append(run.ledger_path, event("created", "llamacpp-one-1", **theirs))
    assert clean_up(run) == CleanUpReport((), ())
    assert bystander.poll() is None


def test_resource_of_an_unknown_type_is_reported_as_left(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """What this version cannot delete is said to be left, not passed over."""
    run = opened(one=SIMULATED)
    append(run.ledger_path, event("created", "somewhere", resource_type="mainframe", arn="arn:x"))
    assert clean_up(run).left == ("somewhere",)
    run.ledger_path.unlink()


HOLDER = """
import sys, time
from fmgauge.endpoints import bring_up
from fmgauge.emulator.lease import hold
from fmgauge.runs import open_run
run = open_run(sys.argv[1], sys.argv[2])
with hold(run.lease_path, "pipeline", 1.5, 0.2):
    bring_up(run)
    print("up", flush=True)
    time.sleep(60)
"""


@pytest.mark.whole
@each_kind
def test_server_is_gone_soon_after_its_pipeline_was_killed(
    opened: Callable[..., Run], tmp_path: Path, wanted: dict[str, Any]
) -> None:
    """SIGKILL of the process that held the pipeline's lease takes the server with it."""
    run = opened(one=wanted)
    holder = [sys.executable, "-c", HOLDER, str(tmp_path / "run.yml"), "run"]
    with subprocess.Popen(holder, stdout=subprocess.PIPE, text=True) as pipeline:
        assert pipeline.stdout is not None
        assert pipeline.stdout.readline() == "up\n"
        assert len(servers_of(tmp_path)) == 1
        pipeline.kill()
    until(lambda: servers_of(tmp_path) == [], deadline_s=20)
    assert (
        "ended: the lease has expired"
        in (run.logs_folder / f"{wanted['kind']}-one-1.log").read_text()
    )


# --- while they are used -------------------------------------------------------------------------


@pytest.mark.whole  # waits until a lease has expired
def test_serving_starts_a_server_again_that_lapsed_in_a_pause(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """A pause longer than the lease costs a restart, not the run."""
    run = opened(one=SIMULATED)
    bring_up(run)
    renew(run.lease_path, "by hand", 0.0)
    until(lambda: servers_of(tmp_path) == [], deadline_s=15)
    with serving(run) as up:
        assert answers(up.endpoints["one"])
        assert up.endpoints["one"].resource == "simulated-one-2"


def test_nothing_is_brought_up_where_there_is_nothing_to_send(opened: Callable[..., Run]) -> None:
    """Notebook 3 before notebook 1: what to run first is told, and no server stands."""
    run = opened(one=SIMULATED)
    run.payloads_path("docs").unlink()

    with pytest.raises(StepError, match="Run notebook 1_prepare_data first"), serving(run):
        pass

    assert read_ledger(run.ledger_path) == ()


def test_release_ends_the_server_at_once(opened: Callable[..., Run], tmp_path: Path) -> None:
    """A released endpoint is gone, its end is in the ledger, and a second release is harmless."""
    run = opened(one=SIMULATED)
    with serving(run) as up:
        up.release("one")
        up.release("one")
        assert servers_of(tmp_path) == []
    assert ledger_events(run)[-1] == ("deleted", "simulated-one-1")


def test_the_end_of_a_server_is_told_with_the_last_lines_of_its_log(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """While it lives there is nothing to tell; what it printed itself is told, nothing older."""
    run = opened(one=SIMULATED)
    with serving(run) as up:
        (pid,) = servers_of(tmp_path)
        alive = up.ended("one")
        kill_the_server(tmp_path)
        killed = up.ended("one")
    with serving(run) as up:
        (second,) = servers_of(tmp_path)
        os.kill(second, signal.SIGTERM)
        until(lambda: up.ended("one"))
        terminated = up.ended("one")

    assert alive is None
    log = "simulated-one-1.log ends with: nothing"
    assert killed == f"its server ended (process {pid}); {log}"
    log = "simulated-one-2.log ends with: ended: SIGTERM"
    assert terminated == f"its server ended (process {second}); {log}"


def test_a_released_endpoint_and_that_of_somebody_else_have_not_ended(
    opened: Callable[..., Run],
) -> None:
    """What this run does not own, or has ended itself, tells nothing of its end."""
    with ScriptedServer(answer) as server:
        run = opened(one=SIMULATED, remote={"kind": "openai", "base_url": server.base_url})
        with serving(run) as up:
            up.release("one")

            assert (up.ended("one"), up.ended("remote")) == (None, None)


def test_clean_up_of_a_copied_run_leaves_the_server_of_the_original(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """The copy's ledger names the process, whose command line names the original's folder."""
    run = opened(one=SIMULATED)
    bring_up(run)
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)

    cleaned = clean_up(RunFolder("copy", copy))

    assert cleaned == CleanUpReport((), (), already_gone=("simulated-one-1",))
    assert answers(read_endpoints(run.endpoints_path)["one"])


def test_endpoints_are_in_use_between_bringing_up_and_loading(opened: Callable[..., Run]) -> None:
    """From bring-up to the last release: clean-up by another process finds who it is."""
    run = opened(one=SIMULATED)
    with serving(run):
        during = holder(run.use_lock_path)

    assert (during, holder(run.use_lock_path)) == (f"process {os.getpid()}", None)


def test_a_ledger_of_a_later_version_is_read(opened: Callable[..., Run]) -> None:
    """What this version does not know of an event is left out, and the event is not."""
    run = opened(one=SIMULATED)
    run.ledger_path.write_bytes(
        b'{"event":"created","resource_type":"simulated_server","name":"simulated-one-1",'
        b'"run_id":"run","at":"2030-01-01T00:00:00+00:00","pid":1,"region":"moon"}\n'
    )

    assert [event.name for event in read_ledger(run.ledger_path)] == ["simulated-one-1"]


def test_a_server_that_ended_in_a_load_is_brought_up_again(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    """Its stages are missing, so a run that goes on has a new server for them."""
    run = opened(one=SIMULATED)
    with serving(run) as up:
        kill_the_server(tmp_path)
        assert up.ended("one")

    with serving(run) as up:
        assert up.endpoints["one"].resource == "simulated-one-2"
        assert up.ended("one") is None
        assert answers(up.endpoints["one"])


def test_serving_by_hand_leaves_half_an_hour(opened: Callable[..., Run]) -> None:
    """A notebook run by hand lets servers live 30 minutes after it."""
    run = opened(one=SIMULATED)
    with serving(run):
        pass
    now = now_utc()
    assert not expired(run.lease_path, now + timedelta(minutes=29))
    assert expired(run.lease_path, now + timedelta(minutes=31))


def test_pipeline_keeps_deciding_while_a_notebook_serves(opened: Callable[..., Run]) -> None:
    """Inside the pipeline's lease, of seconds, a notebook does not put in its half an hour."""
    run = opened(one=SIMULATED)
    with hold_lease(run):
        bring_up(run)
        lease = read_lease(run.lease_path)
        assert lease is not None
        assert lease.holder == "pipeline"
        assert expired(run.lease_path, now_utc() + timedelta(seconds=10))


# --- processes -----------------------------------------------------------------------------------


def test_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """SIGKILL follows where SIGTERM was not heeded, and end waits until it is gone."""
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); "
    command = [sys.executable, "-c", deaf + "time.sleep(60)"]
    process = processes.start_detached(command, tmp_path / "log", os.environ)
    until(lambda: (tmp_path / "log").read_text() == "deaf\n")
    assert processes.end(process, patience_s=0.2)
    assert processes.running(process) is None


def test_ending_a_process_that_is_gone_says_it_is_gone() -> None:
    """A pid that no process has counts as ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert processes.end(ProcessId(process.pid, 0.0))


# --- the ledger ----------------------------------------------------------------------------------


def event(kind: Any, name: str = "server-1", **more: Any) -> LedgerEvent:
    """A ledger event of a run called `run`."""
    facts = {"run_id": "run", "resource_type": "llamacpp_server", "at": "2026-11-23T18:00:00+00:00"}
    return LedgerEvent(**{"event": kind, "name": name, "experiment": "a"} | facts | more)


KINDS = st.sampled_from(["planned", "created", "deleted", "never_created"])
EVENTS = st.lists(st.builds(event, KINDS, st.sampled_from(["a-1", "a-2", "b-1"])), max_size=12)


@given(events=EVENTS)
def test_outstanding_is_what_was_planned_or_created_last(events: list[LedgerEvent]) -> None:
    """A resource is outstanding exactly when the last word on it is planned or created."""
    last = {e.name: e for e in events}
    expected = {e for e in last.values() if e.event in ("planned", "created")}
    assert set(outstanding(events)) == expected


@given(events=EVENTS, cut=st.integers(0, 400), name=st.text(max_size=5))
def test_torn_ledger_keeps_every_whole_line(
    events: list[LedgerEvent],
    cut: int,
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Cut anywhere and written on: whole lines before the cut and the line after it are read."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    for one in events:
        append(path, one)
    content = path.read_bytes() if events else b""
    path.write_bytes(content[: max(0, len(content) - cut)])
    whole = path.read_bytes().count(b"}")
    append(path, event("created", name, pid=12, process_created_at=1.5))
    *before, last = read_ledger(path)
    assert before == events[:whole]
    assert last == event("created", name, pid=12, process_created_at=1.5)


def test_missing_ledger_holds_no_events(tmp_path: Path) -> None:
    """Before anything is planned there is no ledger, and nothing is outstanding."""
    assert read_ledger(tmp_path / "ledger.jsonl") == ()


def test_attempts_of_an_earlier_version_s_ledger_are_counted_by_experiment(tmp_path: Path) -> None:
    """Before events named their experiment the servers' names did; `a` is not `a-1`."""
    for name in ["llamacpp-a-1", "llamacpp-a-2", "llamacpp-a-1-1", "llamacpp-b-1"]:
        append(tmp_path / "ledger.jsonl", event("planned", name, experiment=None))

    assert last_attempt(read_ledger(tmp_path / "ledger.jsonl"), "a") == 2

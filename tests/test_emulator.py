"""The built model, the lease, and the embedded server as a process, on the real engine."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import until
from fmgauge.emulator import lease, llamacpp_server
from fmgauge.emulator.gguf_model import BuiltModel, built_model
from fmgauge.endpoints import processes
from fmgauge.endpoints.processes import ProcessId
from fmgauge.runs import now_utc

LAYERS, WIDTH = 2, 128


@dataclass(frozen=True)
class Server:
    """A server under test: its process and its files."""

    process: ProcessId
    folder: Path

    @property
    def ready(self) -> dict[str, Any]:
        """What it wrote once it listened."""
        return json.loads((self.folder / "ready.json").read_text())

    @property
    def log(self) -> str:
        """What it printed."""
        return (self.folder / "server.log").read_text()

    @property
    def ended(self) -> bool:
        """Whether its process is gone."""
        return processes.running(self.process) is None

    def ask(self, path: str, body: dict[str, Any] | None = None) -> str:
        """The answer's text to a GET, or to a POST of `body`."""
        address = self.ready["base_url"].removesuffix("/v1") + path
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()


def start(folder: Path, *, lease_s: float = 60, model: Path, environment: dict | None = None):
    """Start a server in `folder` under a lease of `lease_s` seconds."""
    lease.renew(folder / "lease.json", "by hand", lease_s)
    command = llamacpp_server.command(
        model=model,
        parallel=2,
        threads=1,
        context_tokens=512,
        lease=folder / "lease.json",
        ready=folder / "ready.json",
    )
    environment = {**os.environ, **(environment or {})}
    return Server(processes.start_detached(command, folder / "server.log", environment), folder)


@pytest.fixture(scope="module")
def model() -> BuiltModel:
    """A small built model, from the cache where it is there."""
    return built_model(LAYERS, WIDTH)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers in this test's folder; whatever still lives at the end is ended."""
    servers: list[Server] = []

    def start_here(**options: Any) -> Server:
        servers.append(start(tmp_path, **options))
        return servers[-1]

    yield start_here
    assert all([processes.end(server.process) for server in servers])


@pytest.fixture(scope="module")
def server(model: BuiltModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that the tests which only ask share."""
    server = start(tmp_path_factory.mktemp("server"), model=model.path)
    until((server.folder / "ready.json").exists)
    yield server
    assert processes.end(server.process)


# --- the model -----------------------------------------------------------------------------------


def test_built_model_has_the_shape_asked_for(model: BuiltModel) -> None:
    """Layers, width, heads and the number of weights in the file are those that were asked for."""
    from gguf import GGUFReader

    reader = GGUFReader(model.path)
    keys = ("block_count", "embedding_length", "attention.head_count")
    assert [reader.get_field(f"llama.{key}").contents() for key in keys] == [2, 128, 128 // 64]
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == model.parameters


def test_built_model_is_reused(model: BuiltModel) -> None:
    """A model that is in the cache is not written again."""
    before = model.path.stat()
    again = built_model(LAYERS, WIDTH)
    assert (again, again.path.stat().st_mtime_ns) == (model, before.st_mtime_ns)


def test_built_model_has_the_same_weights_in_every_cache(
    model: BuiltModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building anew in an empty cache gives the same file name and the same bytes, and no more."""
    monkeypatch.setenv("FMGAUGE_CACHE_DIR", str(tmp_path / "cache"))
    anew = built_model(LAYERS, WIDTH)
    assert anew.path.read_bytes() == model.path.read_bytes()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {
        model.path.name,
        model.tokenizer_path.name,
    }


@pytest.mark.parametrize(("layers", "width"), [(0, 64), (1, 0), (1, 100)])
def test_built_model_refuses_a_shape_that_cannot_be(layers: int, width: int) -> None:
    """A model without layers, or whose width is no multiple of the head size, is refused."""
    with pytest.raises(ValueError, match="multiple of 64"):
        built_model(layers, width)


# --- the engine's answers ------------------------------------------------------------------------


def real_text() -> dict[str, str]:
    """Texts on which tokenizers like to differ."""
    from pydoc_data.topics import topics

    return {
        "english": topics["with"],
        "code": Path(llamacpp_server.__file__).read_text(),
        "unicode": "naïve café, 東京の天気 🌦️ — Ω≈ç√ \u00a0\u200b Здравствуй",
        "whitespace": "a\n\n\n  b\t\tc   \r\n d \n",
        "digits": "8 1 3 0  42 1999 3.14159 it's we'll I'D",
    }


@pytest.mark.parametrize("name", ["english", "code", "unicode", "whitespace", "digits"])
def test_engine_and_tokenizers_agree_on_tokens(
    name: str, model: BuiltModel, server: Server
) -> None:
    """The engine splits real text into the very tokens that our own count has."""
    from tokenizers import Tokenizer

    text = real_text()[name]
    expected = Tokenizer.from_file(str(model.tokenizer_path)).encode(text).ids
    assert json.loads(server.ask("/tokenize", {"content": text}))["tokens"] == expected


def test_chat_template_marks_every_role(server: Server) -> None:
    """A conversation is rendered role by role and ends where the assistant is to speak."""
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} says"} for role in roles]
    rendered = json.loads(server.ask("/apply-template", {"messages": messages}))["prompt"]
    assert rendered == (
        "<|system|>system says</s><|user|>user says</s>"
        "<|assistant|>assistant says</s><|user|>user says</s><|assistant|>"
    )


def test_every_generated_token_arrives_as_a_chunk_of_its_own(server: Server) -> None:
    """Twenty tokens asked for are twenty chunks with a word in each."""
    body = {
        "messages": [{"role": "user", "content": "What is a context manager?"}],
        "max_tokens": 20,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "ignore_eos": True,
    }
    lines = server.ask("/v1/chat/completions", body).splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    words = [choice["delta"].get("content") for event in events for choice in event["choices"]]
    assert [word.strip().isalpha() for word in words if word] == [True] * 20
    assert events[-1]["usage"]["completion_tokens"] == 20


def test_same_prompt_is_computed_again_every_time(server: Server) -> None:
    """A prompt that was just answered is computed in full the next time: nothing is cached."""
    body = {"prompt": "the import statement " * 20, "n_predict": 1}
    first, second = (json.loads(server.ask("/completion", body)) for _ in range(2))
    assert second["timings"]["prompt_n"] == first["timings"]["prompt_n"] > 40


def test_slots_and_context_are_those_asked_for(server: Server) -> None:
    """Each of the two slots has the whole context of 512 tokens to itself."""
    slots = json.loads(server.ask("/slots"))
    assert [slot["n_ctx"] for slot in slots] == [512, 512]


def test_engine_tells_its_own_counts(server: Server) -> None:
    """The server's own metrics are on, as ground truth to compare with."""
    assert "llamacpp:tokens_predicted_total" in server.ask("/metrics")


# --- the server's life ---------------------------------------------------------------------------


def test_ready_file_tells_address_and_process(server: Server) -> None:
    """The ready file names a loopback address and the very process that was started."""
    ready = server.ready
    assert ready["base_url"].startswith("http://127.0.0.1:")
    assert ready["base_url"].endswith("/v1")
    assert ready["pid"] == server.process.pid
    assert ready["process_created_at"] == pytest.approx(server.process.created_at, abs=0.1)


def test_server_ends_itself_when_its_lease_lapses(
    started: Callable[..., Server], model: BuiltModel
) -> None:
    """A server whose lease nobody renews ends within seconds and says why."""
    server = started(lease_s=0.5, model=model.path)
    until(lambda: server.ended, deadline_s=15)
    assert server.log.splitlines()[-1] == "ended: the lease has expired"


@pytest.mark.whole  # three seconds of waiting
def test_server_ends_when_its_lease_file_is_gone(
    started: Callable[..., Server], model: BuiltModel, tmp_path: Path
) -> None:
    """A run's folder that was deleted takes its server with it."""
    server = started(model=model.path)
    until((tmp_path / "ready.json").exists)
    (tmp_path / "lease.json").unlink()
    until(lambda: server.ended, deadline_s=15)
    assert "the lease has expired" in server.log


def test_server_outlives_ctrl_c_and_ends_on_sigterm(
    started: Callable[..., Server], model: BuiltModel, tmp_path: Path
) -> None:
    """SIGINT and SIGHUP from a terminal leave the server up; SIGTERM ends it with its reason."""
    server = started(model=model.path)
    until((tmp_path / "ready.json").exists)
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(server.process.pid, number)
    assert json.loads(server.ask("/health")) == {"status": "ok"}
    os.kill(server.process.pid, signal.SIGTERM)
    until(lambda: server.ended, deadline_s=15)
    assert server.log.splitlines()[-1] == "ended: SIGTERM"


def test_server_is_in_a_session_of_its_own(server: Server) -> None:
    """A server belongs to no terminal, so that closing one does not reach it."""
    assert os.getsid(server.process.pid) == server.process.pid
    assert psutil.Process(server.process.pid).terminal() is None


@pytest.mark.parametrize("content", [None, b"GGUF, but not really"])
def test_server_says_which_model_it_cannot_serve(
    content: bytes | None, started: Callable[..., Server], tmp_path: Path
) -> None:
    """A model file that is missing or broken ends the server with a line that names it."""
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    server = started(model=path)
    until(lambda: server.ended, deadline_s=15)
    last = server.log.splitlines()[-3:]  # the engine's own threads may have the last word
    assert any(str(path) in line for line in last)
    assert "Traceback" not in server.log


def test_server_says_what_to_do_where_the_engine_is_missing(
    started: Callable[..., Server], model: BuiltModel, tmp_path: Path
) -> None:
    """Where no engine can be imported the server ends with a sentence and a way out."""
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('no such wheel')")
    python_path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    server = started(model=model.path, environment={"PYTHONPATH": python_path})
    until(lambda: server.ended, deadline_s=15)
    assert "no such wheel" in server.log
    assert "endpoint: {kind: openai}" in server.log


# --- the lease -----------------------------------------------------------------------------------


@given(ttl_s=st.floats(1, 1e6), passed_s=st.floats(0, 2e6))
def test_lease_expires_when_its_time_has_passed(ttl_s: float, passed_s: float) -> None:
    """A lease of `ttl_s` has expired exactly from then on."""
    began = datetime(2026, 11, 1, tzinfo=UTC)
    held = lease.Lease("pipeline", (began + timedelta(seconds=ttl_s)).isoformat())
    now = began + timedelta(seconds=passed_s)
    assert held.expired(now) == (timedelta(seconds=passed_s) >= timedelta(seconds=ttl_s))


def test_missing_lease_has_expired(tmp_path: Path) -> None:
    """Where there is no lease, nothing may live."""
    assert lease.expired(tmp_path / "lease.json", now_utc())


@pytest.mark.parametrize(
    ("held_by", "held_s", "asked_by", "granted"),
    [
        (None, 0, "by hand", True),
        ("pipeline", 10, "by hand", False),
        ("pipeline", -1, "by hand", True),
        ("by hand", 1800, "by hand", True),
        ("by hand", 1800, "pipeline", True),
        ("pipeline", 10, "pipeline", True),
    ],
)
def test_pipeline_lease_is_left_alone_until_it_expires(
    held_by: lease.Holder | None,
    held_s: float,
    asked_by: lease.Holder,
    granted: bool,
    tmp_path: Path,
) -> None:
    """By hand never overrules a live pipeline; the pipeline always takes over."""
    path = tmp_path / "lease.json"
    if held_by is not None:
        lease.renew(path, held_by, held_s)
    before = lease.read_lease(path)
    assert lease.renew(path, asked_by, 60) is granted
    after = lease.read_lease(path)
    assert after == before if not granted else after is not None and after.holder == asked_by


def test_held_lease_is_renewed_until_its_pipeline_ends(tmp_path: Path) -> None:
    """The heartbeat moves the expiry on while the lease is held; then it has expired at once."""
    path = tmp_path / "lease.json"
    with lease.hold(path, "pipeline", ttl_s=60, every_s=0.02):
        first = lease.read_lease(path)
        until(lambda: lease.read_lease(path) != first, deadline_s=5)
        assert not lease.expired(path, now_utc())
    assert lease.expired(path, now_utc())


def test_lease_held_by_hand_goes_on_after_the_notebook(tmp_path: Path) -> None:
    """Between two notebooks run by hand the servers live on."""
    path = tmp_path / "lease.json"
    with lease.hold(path, "by hand", ttl_s=60, every_s=0.02):
        pass
    assert not lease.expired(path, now_utc())


def test_held_lease_survives_a_time_when_it_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that fails is reported and tried again: the heartbeat does not die of it."""
    path = tmp_path / "lease.json"
    with lease.hold(path, "pipeline", ttl_s=5, every_s=0.02):
        until(lambda: put_folder_in_place_of(path), deadline_s=5)
        until(lambda: "cannot renew the lease" in caplog.text, deadline_s=5)
        path.rmdir()
        until(path.is_file, deadline_s=5)


def put_folder_in_place_of(path: Path) -> bool:
    """Try to; the heartbeat may write the file again in between."""
    path.unlink(missing_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True

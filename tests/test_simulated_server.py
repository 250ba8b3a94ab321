"""The simulated server as a process, asked over real sockets: its bytes, its faults, its truth."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from conftest import until
from fmgauge.config.simulated import BatchingProfile, Faults, SimulatedEndpoint
from fmgauge.emulator import lease, simulated_server
from fmgauge.emulator.faults import FAULTS, FaultDraw
from fmgauge.emulator.simulated_answers import prompt_tokens
from fmgauge.emulator.truth import GroundTruth, RequestTruth
from fmgauge.endpoints import processes
from fmgauge.endpoints.processes import ProcessId
from fmgauge.load import ask_once
from fmgauge.records import Endpoint

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
STEP_S, PROMPT_TOKEN_S = 0.004, 0.0005
PROFILE: dict[str, Any] = {
    "step_s": STEP_S,
    "prefill_token_s": PROMPT_TOKEN_S,
    "decode_sequence_s": 0.0,
    "kv_tokens": 5000,
}
SAY_THREE: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Say three words."}], "max_tokens": 3},
    COMPLETIONS: {"prompt": "Say three words.", "max_tokens": 3},
    RESPONSES: {"input": "Say three words.", "max_output_tokens": 3},
}
each_api = pytest.mark.parametrize("path", SAY_THREE)


@dataclass(frozen=True)
class Reply:
    """What came back until the server closed: the head's first line, headers, and the body."""

    raw: bytes

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.raw.split(b" ", 2)[1])

    @property
    def head(self) -> str:
        """Everything before the body, in lower case."""
        return self.raw.partition(b"\r\n\r\n")[0].decode().lower()

    @property
    def body(self) -> bytes:
        """Everything after the head, as it was on the wire."""
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def chunks(self) -> list[bytes]:
        """The chunks of a body framed in whole chunks, the last one, of size 0, included."""
        chunks, rest = [], self.body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            chunks.append(rest[: int(size, 16)])
            assert rest[int(size, 16) :][:2] == b"\r\n"
            rest = rest[int(size, 16) + 2 :]
        return chunks

    @property
    def events(self) -> list[Any]:
        """The data of the events in those chunks: JSON, or the text [DONE]."""
        *events, last = self.chunks
        assert last == b""
        texts = [event.decode().rstrip("\n").rpartition("data: ")[2] for event in events]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]

    @property
    def words(self) -> list[str]:
        """The texts of the chat's chunks that bear any."""
        deltas = [c["delta"] for e in self.events if e != "[DONE]" for c in e.get("choices", ())]
        return [delta["content"] for delta in deltas if delta.get("content")]


@dataclass(frozen=True)
class Server:
    """A server under test: its process and its files."""

    process: ProcessId
    folder: Path

    @property
    def base_url(self) -> str:
        """The address that its ready file tells."""
        return json.loads((self.folder / "ready.json").read_text())["base_url"]

    @property
    def port(self) -> int:
        """The port of that address."""
        return int(self.base_url.removesuffix("/v1").rpartition(":")[2])

    @property
    def log(self) -> str:
        """What it printed."""
        return (self.folder / "server.log").read_text()

    @property
    def ended(self) -> bool:
        """Whether its process is gone."""
        return processes.running(self.process) is None

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, path: str, body: Any = None, *, method: str = "", **headers: str) -> Reply:
        """The answer to one request on a connection of its own, to the last byte."""
        with self.connect() as connection:
            connection.sendall(request(path, body, method=method, connection="close", **headers))
            return Reply(read_all(connection))

    def stream(self, path: str = CHAT, **fields: Any) -> Reply:
        """The answer to a streaming request for three tokens, or what `fields` make of it."""
        return self.ask(path, {**SAY_THREE[path], "stream": True, **fields})

    def truth(self) -> list[dict[str, Any]]:
        """What the server knows of every request."""
        return [json.loads(line) for line in self.ask("/truth").body.splitlines()]

    def truth_of(self, request_id: str) -> dict[str, Any]:
        """What it knows of one."""
        (found,) = [one for one in self.truth() if one["request_id"] == request_id]
        return found


def request(path: str, body: Any = None, *, method: str = "", **headers: str) -> bytes:
    """A whole request; `_` in the headers' names stands for `-`."""
    content = (
        b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    lines = [f"{method or ('POST' if content else 'GET')} {path} HTTP/1.1", "host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode() + content


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def start(folder: Path, *, lease_s: float = 600, port: int = 0, **endpoint: Any) -> Server:
    """Start a server in `folder` under a lease of `lease_s` seconds."""
    lease.renew(folder / "lease.json", "by hand", lease_s)
    wanted = {"kind": "simulated", "profile": PROFILE, **endpoint}
    command = simulated_server.command(
        endpoint=SimulatedEndpoint.model_validate(wanted),
        lease=folder / "lease.json",
        ready=folder / "ready.json",
        port=port,
        truth=folder / "truth.jsonl",
    )
    return Server(processes.start_detached(command, folder / "server.log", os.environ), folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server without faults of its own, which most tests share."""
    server = start(tmp_path_factory.mktemp("server"))
    until((server.folder / "ready.json").exists)
    yield server
    assert processes.end(server.process)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers in this test's folder; whatever still lives at the end is ended."""
    servers: list[Server] = []

    def start_here(*, listens: bool = True, **options: Any) -> Server:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        servers.append(start(folder, **options))
        if listens:
            until((folder / "ready.json").exists)
        return servers[-1]

    yield start_here
    assert all([processes.end(server.process) for server in servers])


# --- what it says --------------------------------------------------------------------------------


def test_a_chat_streams_role_tokens_finish_reason_and_usage(server):
    """The role comes alone, then one chunk a token, then finish_reason, usage and [DONE]."""
    reply = server.stream(stream_options={"include_usage": True})

    role, *tokens, finish, usage, done = reply.events
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [len(token["choices"][0]["delta"]["content"].split()) for token in tokens] == [1, 1, 1]
    assert finish["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert (usage["choices"], usage["usage"]) == (
        [],
        {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
    )
    assert done == "[DONE]"


def test_completions_stream_texts(server):
    """Plain completions name no role: one text a token, then finish_reason, usage and [DONE]."""
    reply = server.stream(COMPLETIONS, stream_options={"include_usage": True})

    *tokens, finish, usage, done = reply.events
    assert [bool(token["choices"][0]["text"]) for token in tokens] == [True] * 3
    assert (finish["choices"][0]["text"], finish["choices"][0]["finish_reason"]) == ("", "length")
    assert (usage["usage"]["completion_tokens"], done) == (3, "[DONE]")


def test_responses_stream_named_events(server):
    """Every event of the Responses API has its name; the last one holds usage and the reason."""
    reply = server.stream(RESPONSES)

    names = [event.split(b"\n")[0].removeprefix(b"event: ").decode() for event in reply.chunks[:-1]]
    assert names == [event["type"] for event in reply.events]
    assert Counter(names)["response.output_text.delta"] == 3
    response = reply.events[-1]["response"]
    assert (names[0], names[-1]) == ("response.created", "response.incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"] == {"input_tokens": 4, "output_tokens": 3, "total_tokens": 7}


@each_api
def test_an_answer_that_does_not_stream_has_the_streamed_words(server, path):
    """One JSON of known length, with usage, whose text is that of the stream."""
    whole = json.loads(server.ask(path, SAY_THREE[path]).body)
    streamed = server.stream(path).body.decode()

    found = {
        CHAT: lambda: whole["choices"][0]["message"]["content"],
        COMPLETIONS: lambda: whole["choices"][0]["text"],
        RESPONSES: lambda: whole["output"][0]["content"][0]["text"],
    }[path]()
    words = found.split()
    assert len(words) == 3
    assert [f'" {word}"' in streamed for word in words] == [True] * 3
    assert whole["usage"]["total_tokens"] == 7


@each_api
def test_the_projects_own_client_understands_it(server, path):
    """What the server says is a good answer, with its usage, to the transport and its decoders."""
    api = {CHAT: "chat", COMPLETIONS: "completions", RESPONSES: "responses"}[path]
    endpoint = Endpoint(
        experiment="one",
        kind="simulated",
        state="ready",
        base_url=server.base_url,
        model="any",
        instance_type=None,
        instance_count=1,
        owned=True,
        api=api,
    )

    record = ask_once(endpoint, prompt="Say three words.", max_output_tokens=3)

    assert (record.status, record.error, record.finish_reason) == ("ok", None, "length")
    assert (record.prompt_tokens, record.output_tokens, len(record.token_at_s)) == (4, 3, 3)


def test_usage_in_a_stream_is_told_on_request_only(server):
    """Without stream_options no chunk of a chat holds usage."""
    assert b'"usage"' not in server.stream().body


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_output_has_the_length_that_was_asked_for(server, name):
    """Each of the names for the longest output gives exactly that many tokens."""
    body = {"messages": [{"content": "Go on."}], "stream": True, name: 7}

    assert len(server.ask(CHAT, body).words) == 7


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("Don't stop, please.", 7), ("", 1), ("  \n", 1), ("naïve café", 2), ("snake_case", 1)],
)
def test_prompt_tokens_are_words_and_marks(text, tokens):
    """Runs of letters, digits and underscores count once, other visible characters each."""
    assert prompt_tokens([text]) == tokens


def test_every_text_of_a_conversation_is_counted(server):
    """Roles do not count; contents do, whether they are texts or parts."""
    parts = [{"type": "text", "text": "two words"}, {"type": "image_url", "image_url": {}}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]

    answer = json.loads(server.ask(CHAT, {"messages": messages}).body)

    assert answer["usage"]["prompt_tokens"] == 3 + 2
    assert answer["usage"]["completion_tokens"] == 16  # where nothing else is asked for


def test_health_and_models_are_told(server):
    """The two addresses that clients look at first."""
    assert json.loads(server.ask("/health").body) == {"status": "ok"}
    (model,) = json.loads(server.ask("/v1/models").body)["data"]
    assert model["id"] == "simulated-profile"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (CHAT, b"{", 400, "no JSON"),
        (CHAT, [], 400, "object"),
        (CHAT, {"prompt": "Hello"}, 400, "messages"),
        (CHAT, {"messages": [{"content": [{"text": 1}]}]}, 400, "texts"),
        (COMPLETIONS, {"prompt": 5}, 400, "prompt"),
        (RESPONSES, {"input": []}, 400, "input"),
        (CHAT, {**SAY_THREE[CHAT], "max_tokens": 0}, 400, "at least 1"),
        (CHAT, {**SAY_THREE[CHAT], "max_tokens": "3"}, 400, "whole number"),
        (CHAT, {**SAY_THREE[CHAT], "max_tokens": 5000}, 400, "KV cache"),
        (CHAT, {**SAY_THREE[CHAT], "fault": "gremlins"}, 400, "gremlins"),
        (CHAT, None, 405, "methods"),
        ("/v1/embeddings", {"input": "Hello"}, 404, "/v1/embeddings"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(server, path, body, status, words):
    """An error in OpenAI's form, with what is wrong, and no entry in the truth."""
    reply = server.ask(path, body, x_request_id="refused")

    assert reply.status == status
    assert words in json.loads(reply.body)["error"]["message"]
    assert "refused" not in [one["request_id"] for one in server.truth()]


# --- connections ---------------------------------------------------------------------------------


def test_requests_on_one_connection_are_answered_in_order(server):
    """Three requests sent at once, the last of them with `connection: close`, on one connection."""
    bodies = [{**SAY_THREE[CHAT], "max_tokens": tokens} for tokens in (5, 1, 3)]
    ids = [f"pipelined-{number}" for number in range(3)]
    pieces = [request(CHAT, b, x_request_id=i) for b, i in zip(bodies, ids, strict=True)]
    closing = pieces[-1].replace(b"host:", b"connection: close\r\nhost:", 1)

    with server.connect() as connection:
        connection.sendall(b"".join([*pieces[:-1], closing]))
        answers = read_all(connection).split(b"HTTP/1.1 200 OK")[1:]

    lengths = [
        json.loads(a.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] for a in answers
    ]
    assert lengths == [5, 1, 3]
    assert len({server.truth_of(request_id)["connection"] for request_id in ids}) == 1


def test_a_request_may_come_byte_by_byte(server):
    """However a request is cut, it is one request."""
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(CHAT, SAY_THREE[CHAT], connection="close"):
            connection.sendall(bytes([byte]))
        assert Reply(read_all(connection)).status == 200


def test_a_client_that_asks_first_may_send_its_body(server):
    """`Expect: 100-continue` is answered before the body is there."""
    head, _, body = request(
        CHAT, SAY_THREE[CHAT], expect="100-continue", connection="close"
    ).partition(b"\r\n\r\n")
    with server.connect() as connection:
        connection.sendall(head + b"\r\n\r\n")
        interim = connection.recv(1000)
        connection.sendall(body)
        answer = Reply(read_all(connection))

    assert (interim, answer.status) == (b"HTTP/1.1 100 Continue\r\n\r\n", 200)


def test_what_is_no_http_is_refused(server):
    """Garbage gets a 400, and the connection is closed."""
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert Reply(read_all(connection)).status == 400


# --- time and truth ------------------------------------------------------------------------------


def test_tokens_go_out_when_the_timing_model_says_and_never_before(server):
    """Alone on the server: the prompt's step, then one token a step, each no earlier than due."""
    server.ask(CHAT, {**SAY_THREE[CHAT], "max_tokens": 9, "stream": True}, x_request_id="paced")

    truth = server.truth_of("paced")
    first_s = STEP_S + 4 * PROMPT_TOKEN_S  # a prompt of 4 tokens
    due_s = [truth["arrived_at_s"] + first_s + number * STEP_S for number in range(9)]
    late_s = [at - due for at, due in zip(truth["token_at_s"], due_s, strict=True)]
    assert min(late_s) >= 0


def test_the_truth_is_told_by_the_clock_that_clients_read(server):
    """Arrival and tokens lie between this process's own readings before and after."""
    before_s = time.perf_counter()
    server.ask(CHAT, {**SAY_THREE[CHAT], "stream": True}, x_request_id="between")
    after_s = time.perf_counter()

    truth = server.truth_of("between")
    instants = [truth["arrived_at_s"], *truth["token_at_s"], truth["finished_at_s"]]
    assert instants == sorted(instants)
    assert before_s < instants[0]
    assert instants[-1] < after_s
    ends = (truth["first_token_at_s"], truth["last_token_at_s"])
    assert ends == (truth["token_at_s"][0], truth["token_at_s"][-1])
    assert (truth["outcome"], truth["http_status"], truth["fault"]) == ("answered", 200, None)


def test_requests_in_flight_are_counted_at_each_arrival(server):
    """Of requests that none outlives, each finds one more in flight, itself included."""
    body = {**SAY_THREE[CHAT], "stream": True, "max_tokens": 1000}
    connections = [server.connect() for _ in range(4)]
    for number, connection in enumerate(connections):
        connection.sendall(request(CHAT, body, x_request_id=f"crowd-{number}"))
        connection.recv(1000)  # accepted, and far from its last token
    for connection in connections:
        connection.close()

    found = [server.truth_of(f"crowd-{number}")["in_flight_at_arrival"] for number in range(4)]
    assert [one - found[0] for one in found] == [0, 1, 2, 3]


def test_a_client_that_leaves_is_noted_and_frees_its_slot(started):
    """With one slot, the next request is answered although the one before it was never read."""
    server = started(profile={**PROFILE, "slots": 1})
    with server.connect() as connection:
        body = {**SAY_THREE[CHAT], "stream": True, "max_tokens": 4000}
        connection.sendall(request(CHAT, body, x_request_id="left"))
        connection.recv(1000)

    assert server.stream().status == 200
    truth = server.truth_of("left")
    assert truth["outcome"] == "client_left"
    assert len(truth["token_at_s"]) < 4000


def test_a_full_queue_refuses_with_retry_after(started):
    """One slot, no room beside it: the second request is told to come again."""
    server = started(profile={**PROFILE, "slots": 1, "queue": 1})
    busy = {**SAY_THREE[CHAT], "stream": True, "max_tokens": 4000}
    with server.connect() as one, server.connect() as two:
        for connection in (one, two):
            connection.sendall(request(CHAT, busy))
            connection.recv(1000)
        refused = server.ask(CHAT, SAY_THREE[CHAT], x_request_id="third")

    assert refused.status == 429
    assert "retry-after: 1" in refused.head
    truth = server.truth_of("third")
    assert (truth["http_status"], truth["fault"], truth["token_at_s"]) == (429, None, [])


def test_the_truth_can_be_cleared(started):
    """After DELETE only later requests are told of."""
    server = started()
    server.stream()
    server.ask("/truth", method="DELETE")
    server.ask(CHAT, SAY_THREE[CHAT], x_request_id="later")

    assert [one["request_id"] for one in server.truth()] == ["later"]


def test_the_oldest_truth_is_forgotten_where_there_is_too_much():
    """Beyond the most that are kept, only the number of those forgotten is known."""
    truth = GroundTruth(kept=2)
    for name in "abc":
        truth.add(RequestTruth(name, 0, 0.0, 1, None, 1, 1))

    kept = [json.loads(line)["request_id"] for line in truth.lines()]
    assert (kept, truth.forgotten) == (["b", "c"], 1)


# --- faults --------------------------------------------------------------------------------------

TEN: dict[str, Any] = {**SAY_THREE[CHAT], "max_tokens": 10, "stream": True}
WITH_USAGE = {**TEN, "stream_options": {"include_usage": True}}


def test_fault_http_error(server):
    """Status 500 and an error in OpenAI's form."""
    reply = server.ask(CHAT, TEN, x_fault="http_error")

    assert (reply.status, "error" in json.loads(reply.body)) == (500, True)


def test_fault_throttle(server):
    """Status 429 with Retry-After."""
    reply = server.ask(CHAT, TEN, x_fault="throttle")

    assert reply.status == 429
    assert "retry-after: 1" in reply.head


@pytest.mark.parametrize(("path", "ends"), [(CHAT, "[DONE]"), (RESPONSES, None)])
def test_fault_error_in_stream(server, path, ends):
    """Status 200, half of the tokens, an error, and a proper end."""
    body = {**SAY_THREE[path], "stream": True}
    reply = server.ask(path, body, x_fault="error_in_stream")

    assert reply.status == 200
    error = reply.events[-2] if ends else reply.events[-1]
    assert "a simulated failure within the answer" in json.dumps(error)
    assert "error" in error or error["type"] == "error"
    assert ends is None or reply.events[-1] == ends


def test_fault_latency_spike(started):
    """The first token comes no earlier than the spike is long; all tokens come."""
    server = started(faults={"latency_spike_s": 0.3})
    reply = server.ask(CHAT, TEN, x_fault="latency_spike", x_request_id="spike")

    truth = server.truth_of("spike")
    assert truth["first_token_at_s"] - truth["arrived_at_s"] >= 0.3
    assert len(reply.words) == 10


def test_fault_stall(server):
    """Half of the tokens, then silence, the connection open; the client's leaving ends it."""
    with server.connect() as stalled:
        stalled.sendall(request(CHAT, TEN, x_fault="stall", x_request_id="stalled"))
        until(lambda: len(server.truth_of("stalled")["token_at_s"]) == 5)
        server.ask(CHAT, {**TEN, "max_tokens": 30})  # asked later, needs longer: so time enough
        stalled.setblocking(False)
        received = stalled.recv(65536)
        with pytest.raises(BlockingIOError):
            stalled.recv(1)
        assert received.count(b'"content":" ') == 5
        assert server.truth_of("stalled")["finished_at_s"] is None
    until(lambda: server.truth_of("stalled")["outcome"] == "client_left")


def test_fault_truncate(server):
    """Half of the tokens and the last chunk: no finish reason, no usage, no [DONE]."""
    reply = server.ask(CHAT, WITH_USAGE, x_fault="truncate")

    assert (len(reply.words), reply.chunks[-1]) == (5, b"")
    assert b'"length"' not in reply.body
    assert b'"usage"' not in reply.body
    assert b"[DONE]" not in reply.body


def test_fault_close_before_headers(server):
    """Not a byte."""
    assert server.ask(CHAT, TEN, x_fault="close_before_headers").raw == b""


def test_fault_close_after_headers(server):
    """The head of a stream and nothing else."""
    reply = server.ask(CHAT, TEN, x_fault="close_after_headers")

    assert (reply.status, reply.body) == (200, b"")
    assert "transfer-encoding: chunked" in reply.head


def test_fault_close_mid_chunk(server):
    """Half of the tokens, then a chunk that is shorter than it said."""
    reply = server.ask(CHAT, TEN, x_fault="close_mid_chunk")

    *whole, cut = reply.body.split(b"data: ")
    assert sum(b'"content":" ' in chunk for chunk in whole) == 5
    assert 0 < len(cut) < len(whole[-1])


def test_fault_reset(server):
    """Half of the tokens, then a RST."""
    with server.connect() as connection:
        connection.sendall(request(CHAT, TEN, x_fault="reset", x_request_id="reset"))
        with pytest.raises(ConnectionResetError):
            read_all(connection)

    truth = server.truth_of("reset")
    assert (len(truth["token_at_s"]), truth["outcome"]) == (5, "broken_off")


def test_fault_wrong_content_type(server):
    """Status 200 and a page of HTML."""
    reply = server.ask(CHAT, TEN, x_fault="wrong_content_type")

    assert (reply.status, reply.body[:15]) == (200, b"<!doctype html>")
    assert "content-type: text/html" in reply.head


def test_fault_malformed_json(server):
    """One chunk of eleven holds no valid JSON; the stream goes on to its end."""
    reply = server.ask(CHAT, TEN, x_fault="malformed_json")

    broken = []
    for chunk in reply.chunks[:-2]:
        try:
            json.loads(chunk.removeprefix(b"data: "))
        except json.JSONDecodeError:
            broken.append(chunk)
    assert len(broken) == 1
    assert reply.chunks[-2:] == [b"data: [DONE]\n\n", b""]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_fault_stream_options_refused(started, path):
    """400 for whoever asks for usage, also where it wants no fault; all others are served."""
    server = started(faults={"stream_options_refused": True})

    refused = server.stream(path, stream_options={"include_usage": True}, fault="none")
    served = server.stream(path)

    assert refused.status == 400
    assert "stream_options" in json.loads(refused.body)["error"]["message"]
    assert served.events[-1] == "[DONE]"
    assert [truth["http_status"] for truth in server.truth()] == [200]


def test_a_refusal_of_stream_options_is_no_share_of_requests():
    """It stands beside faults that meet every request."""
    assert Faults(http_error=1.0, stream_options_refused=True).stream_options_refused


def test_fault_usage_missing(server):
    """No usage, though it was asked for; all else is there."""
    reply = server.ask(CHAT, WITH_USAGE, x_fault="usage_missing")

    assert (len(reply.words), reply.events[-1]) == (10, "[DONE]")
    assert b'"usage"' not in reply.body


def test_fault_usage_wrong(server):
    """Usage tells half of the tokens."""
    reply = server.ask(CHAT, WITH_USAGE, x_fault="usage_wrong")

    assert (len(reply.words), reply.events[-2]["usage"]["completion_tokens"]) == (10, 5)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_fault_duplicate_role(server, path):
    """What bears no token comes three times, and every token comes once."""
    body = {**SAY_THREE[path], "stream": True}
    events = server.ask(path, body, x_fault="duplicate_role").events[:-2]

    texts = [
        e["choices"][0].get("text", e["choices"][0].get("delta", {}).get("content")) for e in events
    ]
    assert [bool(text) for text in texts] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("fault", ["error_in_stream", "truncate", "malformed_json", "usage_wrong"])
def test_faults_of_an_answer_that_does_not_stream(server, fault):
    """A whole JSON can go wrong, too: an error, no finish reason, half a text, half the usage."""
    body = {**TEN, "stream": False}
    content = server.ask(CHAT, body, x_fault=fault).body

    found = {
        "error_in_stream": lambda: "error" in json.loads(content),
        "truncate": lambda: json.loads(content)["choices"][0]["finish_reason"] is None,
        "malformed_json": lambda: content.startswith(b"{") and not content.endswith(b"}"),
        "usage_wrong": lambda: json.loads(content)["usage"]["completion_tokens"] == 5,
    }[fault]()
    assert found


def test_slow_accept(started):
    """A request that was sent at once arrives no earlier than the wait is long."""
    server = started(faults={"slow_accept_s": 0.3})
    before_s = time.perf_counter()
    server.ask(CHAT, TEN, x_request_id="slow")

    assert server.truth_of("slow")["arrived_at_s"] - before_s >= 0.3


@pytest.mark.parametrize("fault", FAULTS)
def test_other_requests_do_not_notice_a_fault(server, fault):
    """While one request fails, the next one on another connection is answered whole."""
    with server.connect() as connection:
        connection.sendall(request(CHAT, TEN, x_fault=fault, x_request_id=f"with-{fault}"))
        assert len(server.stream().words) == 3

    assert server.truth_of(f"with-{fault}")["fault"] == fault


def test_a_fault_can_be_named_in_the_body(server):
    """What an endpoint's extra_body can hold: a client without headers of its own can aim, too."""
    assert server.ask(CHAT, {**TEN, "fault": "http_error"}).status == 500


def test_faults_are_drawn_by_the_seed_in_the_order_of_arrival(started):
    """Two servers of one seed treat the same requests alike; named faults leave the draw alone."""
    faults = {"http_error": 0.5, "usage_missing": 0.3}
    told = []
    for _ in range(2):
        server = started(faults=faults, seed=11)
        for number in range(12):
            server.ask(CHAT, SAY_THREE[CHAT], x_request_id=str(number))
            if number == 5:
                server.ask(CHAT, SAY_THREE[CHAT], x_fault="none", x_request_id="named")
        told.append({one["request_id"]: one["fault"] for one in server.truth()})

    assert told[0] == told[1]
    assert told[0].pop("named") is None
    assert {"http_error", "usage_missing"} <= set(told[0].values())


@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    names=st.lists(st.sampled_from(FAULTS), min_size=2, max_size=2, unique=True),
)
def test_a_request_has_one_drawn_fault_at_most(seed, share, names):
    """Two faults that add up to all requests leave none without, and draw no third."""
    faults = Faults(**{names[0]: share, names[1]: 1 - share})
    drawn = [FaultDraw(faults, seed).next() for _ in range(3)]

    assert set(drawn) <= set(names)
    assert len(set(drawn)) == 1  # the same seed, drawn anew


def test_faults_are_drawn_in_their_shares():
    """Of 20,000 requests each fault hits its share, within 5 standard deviations."""
    shares = {"http_error": 0.02, "stall": 0.1, "reset": 0.3}
    draw = FaultDraw(Faults(**shares), seed=3)
    counts = Counter(draw.next() for _ in range(20_000))

    for name, share in {**shares, None: 0.58}.items():
        spread = 5 * (20_000 * share * (1 - share)) ** 0.5
        assert abs(counts[name] - 20_000 * share) < spread


def test_shares_of_more_than_all_requests_are_refused():
    """Shares that add up to more than 1 cannot be drawn."""
    with pytest.raises(ValidationError, match="more than all of them"):
        Faults(stall=0.6, reset=0.5)


def test_every_fault_has_a_share_in_the_config():
    """What the server can do wrong is what a config can ask for."""
    shares = {name for name, field in Faults.model_fields.items() if field.default == 0}
    assert set(FAULTS) == shares - {"slow_accept_s", "stream_options_refused"}


# --- its life ------------------------------------------------------------------------------------


def test_the_server_writes_its_truth_when_it_is_ended(started):
    """SIGTERM ends it with its reason, and what it knew is in the file that was asked for."""
    server = started()
    server.ask(CHAT, SAY_THREE[CHAT], x_request_id="written")
    os.kill(server.process.pid, signal.SIGINT)  # a Ctrl-C is not for it
    assert server.ask("/health").status == 200
    os.kill(server.process.pid, signal.SIGTERM)
    until(lambda: server.ended, deadline_s=15)

    lines = (server.folder / "truth.jsonl").read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["written"]
    assert server.log.splitlines()[-1] == "ended: SIGTERM"


@pytest.mark.whole  # three seconds of waiting
def test_the_server_ends_itself_when_its_lease_lapses(started):
    """A server whose lease nobody renews ends within seconds and says why."""
    server = started(lease_s=0.5)
    until(lambda: server.ended, deadline_s=15)

    assert server.log.splitlines()[-1] == "ended: the lease has expired"


def test_a_port_that_is_taken_is_told(started, server):
    """A server that cannot listen ends with a line that names the address."""
    other = started(port=server.port, listens=False)
    until(lambda: other.ended, deadline_s=15)

    assert f"cannot listen on 127.0.0.1:{server.port}" in other.log
    assert "Traceback" not in other.log


def test_a_preset_gives_the_profile_of_its_name():
    """A preset's timing is what the server of an endpoint that names it uses."""
    from fmgauge.emulator.presets import PRESETS

    name = next(iter(PRESETS))
    endpoint = SimulatedEndpoint(kind="simulated", preset=name)

    profile = simulated_server.profile_of(endpoint)

    assert isinstance(profile, BatchingProfile)
    assert profile == PRESETS[name].profile

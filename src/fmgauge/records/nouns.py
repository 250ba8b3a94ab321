"""The nouns: payload, endpoint, stage, request record. Knows no files, nor how any was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
    api: Literal["chat", "completions", "responses"] = "chat"
    api_key_env: str | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    usage_in_stream: bool = True  # False where its server refuses to be asked for that
    created_at: str | None = None
    first_answer_s: float | None = None
    resource: str | None = None  # the ledger's name for what this run created


REFUSALS = frozenset((429, *range(500, 600)))
"""HTTP status codes of answers that cost a server next to nothing: it is full, or it failed."""
PAUSE_AFTER_REFUSAL_S = 0.1
"""For how long a place of a closed loop stands empty after one, or without a connection."""
WarmupEnd = Literal["steady", "capped", "overloaded"]
"""Why a stage's warm-up ended: the load was steady, it took too long, or a backlog grew."""
WindowEnd = Literal["asked", "extended", "capped", "overloaded"]
"""Why its window ended: as asked, later with all requests that its budgets need, at the longest
that was allowed and without them, or early because a backlog grew."""


@dataclass(frozen=True, slots=True)
class StageKey:
    """Which stage: one load level of one workload against one experiment."""

    experiment: str
    workload: str
    stage: str

    def __str__(self) -> str:
        return f"{self.experiment}/{self.workload}/{self.stage}"


@dataclass(frozen=True, slots=True)
class ClientUse:
    """What the client's own process had to do in a stage; of several workers, the worst of each."""

    cpu_share: float  # of one core, from the window's start until all that was due in it ended
    loop_lag_p99_s: float  # by how much stamps were late in that time, beyond 1 % of it or of them
    loop_lag_max_s: float
    ran_out_of: str = ""  # what the machine had too few of for a connection, such as local ports


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What was true of a whole stage. Instants are seconds since the stage began."""

    experiment: str
    workload: str
    stage: str
    kind: str
    concurrency: int | None  # None in open loop
    started_at: str  # wall clock, UTC, ISO 8601
    window_start_s: float
    window_end_s: float
    finished_at_s: float
    replication: int
    seed: int
    request_rate: float | None = None  # mean arrivals per second asked for; None in closed loop
    arrivals: str | None = None
    workers: int = 1
    client: ClientUse | None = None
    held_back: int = 0  # measured requests that waited because max_in_flight was reached
    n_unsent: int = 0  # due in the window, and never sent because the client was too slow
    warmup_end: WarmupEnd | None = None  # None of a stage that was measured before these existed
    window_end: WindowEnd | None = None

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
    max_output_tokens: int | None  # that were asked for; None where the request set no limit
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
    resent: bool  # on a new connection, for the server had closed the kept one unanswered
    held_back_at_s: float | None = None  # ready to be sent, but max_in_flight was reached
    response_text: str | None = None

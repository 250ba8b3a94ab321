"""One sending of one payload: from the instant it is due to its row. Knows no schedules."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from fmgauge.config.model import Timeouts as TimeoutSettings
from fmgauge.errors import ConfigError, EndpointError, Problem
from fmgauge.records import Endpoint, Payload, Phase, RequestRecord, Row, StageKey, record_of
from fmgauge.transport import (
    Client,
    Clock,
    Exchange,
    RealClock,
    Timeouts,
    origin_of,
    run_event_loop,
)
from fmgauge.wire import Cut, Decoder, format_of, request_template

_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Target:
    """Where a stage's requests go, and what all of its rows share."""

    endpoint: Endpoint
    api_key: str | None = field(default=None, repr=False)
    keep_text: bool = False  # in every row; else only where its tokens are still to be counted

    @cached_property
    def decoder(self) -> type[Decoder]:
        """What reads the endpoint's answers, one object each."""
        return format_of(self.endpoint).decoder

    @cached_property
    def sets_length(self) -> bool:
        """Whether the endpoint's `extra_body` says how long an output may be, not the payload."""
        body = self.endpoint.extra_body
        return any(name in body for name in format_of(self.endpoint).length_fields)

    @cached_property
    def max_output_tokens(self) -> int | None:
        """The most output tokens that `extra_body` asks for; None where it sets no limit."""
        body = self.endpoint.extra_body
        told = (body.get(name) for name in format_of(self.endpoint).length_fields)
        return max((value for value in told if type(value) is int), default=None)

    def client(self, clock: Clock, timeouts: Timeouts) -> Client:
        """A client for the endpoint's address; EndpointError where it has none that can be used."""
        try:
            origin = origin_of(self.endpoint.base_url or "")
        except ValueError as error:
            raise EndpointError(f"the endpoint of {self.endpoint.experiment}: {error}") from error
        return Client(origin, clock, timeouts)


def timeouts_of(load: TimeoutSettings) -> Timeouts:
    """The time-outs that a load asks for."""
    return Timeouts(
        total_s=load.timeout_s,
        connect_s=load.connect_timeout_s,
        first_byte_s=load.first_byte_timeout_s,
        between_bytes_s=load.between_bytes_timeout_s,
    )


class Owner(Protocol):
    """Who hears of a sending's end."""

    def ended(self, sending: Sending) -> None:
        """Take note that `sending` is over."""


class Sending(Exchange):
    """One request: what is sent, what came back, and in the end its row."""

    __slots__ = (
        "decoder",
        "held_back_at_s",
        "intended_at_s",
        "on_body",
        "owner",
        "payload",
        "phase",
        "request_id",
        "target",
    )

    def __init__(
        self,
        owner: Owner,
        target: Target,
        payload: Payload,
        request: bytes,
        *,
        request_id: str,
        phase: Phase,
        intended_at_s: float,
        held_back_at_s: float | None = None,
    ) -> None:
        super().__init__(request)
        self.owner = owner
        self.target = target
        self.payload = payload
        self.request_id = request_id
        self.phase = phase
        self.intended_at_s = intended_at_s
        self.held_back_at_s = held_back_at_s
        self.decoder = target.decoder()
        self.on_body = self.decoder.feed  # type: ignore[method-assign]

    def on_end(self) -> None:
        """Tell the owner."""
        self.owner.ended(self)

    def row(self) -> Row:
        """What happened, in the order of ROW_FIELDS; to be asked once, at the end."""
        decoder, payload, target = self.decoder, self.payload, self.target
        status, error = decoder.verdict(
            self.http_status,
            retry_after=self.http_status in (429, 503) and b"retry-after" in self.headers,
            cut=Cut(*self.failure) if self.failure is not None else None,
        )
        if error is not None and target.api_key is not None:
            error = _without(target.api_key, error)
        output_tokens = self._output_tokens_told()
        from_server = output_tokens is not None
        prompt_tokens = payload.prompt_tokens or None  # of `ask_once`, nobody counted it
        if from_server:
            prompt_tokens = decoder.prompt_tokens
        chunk_tokens = decoder.chunk_tokens
        return (
            self.request_id,
            self.phase,
            payload.payload_id,
            payload.session_id,
            self.intended_at_s,
            self.connected_at_s,
            self.sent_at_s,
            self.first_byte_at_s,
            decoder.token_at_s.tobytes(),
            None if chunk_tokens is None else chunk_tokens.tobytes(),
            decoder.first_content_at_s,
            self.finished_at_s,
            prompt_tokens,
            target.max_output_tokens if target.sets_length else payload.max_output_tokens,
            output_tokens,
            decoder.reasoning_tokens,
            decoder.cached_tokens,
            "server" if from_server else "tokenizer",
            status,
            self.http_status,
            error,
            decoder.finish_reason,
            decoder.server_latency_s,
            self.reused,
            self.resent,
            self.held_back_at_s,
            None if from_server and not target.keep_text else decoder.text,
        )

    def _output_tokens_told(self) -> int | None:
        """The server's own count; a 0 beside a text was never counted."""
        told = self.decoder.output_tokens
        return None if told == 0 and self.decoder.text else told


def _without(key: str, error: str) -> str:
    """`error` without the key, nor the start of it where the error was cut short within it."""
    shown = error.replace(key, "***")
    cut = next((n for n in range(len(key) - 1, 3, -1) if shown.endswith(key[:n])), 0)
    return f"{shown[:-cut]}***" if cut else shown


def api_key_of(variable: str | None) -> str | None:
    """The key in an environment variable; ConfigError where it is not set, or can be no header."""
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise _refused_key(variable, "the variable that should hold the key is not set")
    if not _HEADER_VALUE.fullmatch(value):
        raise _refused_key(variable, "the variable holds characters that no key has")
    return value


def _refused_key(variable: str, problem: str) -> ConfigError:
    remedy = f"Set it before the run: export {variable}=..."
    return ConfigError(Problem("environment", None, variable, problem, remedy))


def ask_once(
    endpoint: Endpoint,
    *,
    prompt: str = "Hello",
    max_output_tokens: int = 1,
    timeout_s: float = 60,
) -> RequestRecord:
    """Send one request, on a connection of its own, and return its record.

    A request that fails is a record too. Raises ConfigError where the endpoint's key is not set,
    EndpointError where it has no address.
    """
    target = Target(endpoint, api_key=api_key_of(endpoint.api_key_env), keep_text=True)
    payload = Payload("ask_once", prompt, None, 0, max_output_tokens, reserved=True)
    return run_event_loop(_asked(target, payload, RealClock(), timeout_s))


async def _asked(target: Target, payload: Payload, clock: Clock, timeout_s: float) -> RequestRecord:
    client = target.client(clock, Timeouts(total_s=timeout_s))
    asker, request_id, origin_s = _Asker(), uuid.uuid4().hex, clock.now_s()
    template = request_template(target.endpoint, payload, api_key=target.api_key)
    sending = Sending(
        asker,
        target,
        payload,
        template.filled(request_id, None),
        request_id=request_id,
        phase="warmup",
        intended_at_s=origin_s,
    )
    try:
        client.send(sending)
        row = (await asker.answer).row()
    finally:
        await client.close()
    key = StageKey(target.endpoint.experiment, "", "ask_once")
    return record_of(row, key=key, origin_s=origin_s)


class _Asker:
    """Waits for one sending's end."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Sending] = asyncio.get_running_loop().create_future()

    def ended(self, sending: Sending) -> None:
        """Take note that the one is over."""
        self.answer.set_result(sending)

"""One sending of one payload: from the instant it is due to its record. Knows no schedules."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fmgauge.errors import ConfigError, EndpointError, Problem
from fmgauge.records import Endpoint, Payload, Phase, RequestRecord, StageKey
from fmgauge.transport import Client, Clock, Exchange, RealClock, origin_of, run_event_loop
from fmgauge.wire import ChatDecoder, Cut, chat_request

CountTokens = Callable[[str], int]
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a stage's requests go, and what all of its records share."""

    endpoint: Endpoint
    key: StageKey
    replication: int = 0
    api_key: str | None = field(default=None, repr=False)
    keep_text: bool = False  # in every record; else only where its tokens are still to be counted

    def client(self, clock: Clock, *, timeout_s: float) -> Client:
        """A client for the endpoint's address; EndpointError where it has none that can be used."""
        try:
            origin = origin_of(self.endpoint.base_url or "")
        except ValueError as error:
            raise EndpointError(f"the endpoint of {self.endpoint.experiment}: {error}") from error
        return Client(origin, clock, timeout_s=timeout_s)


class Sending:
    """One request: what is sent, what came back, and in the end its record."""

    __slots__ = (
        "_decoder",
        "exchange",
        "intended_at_s",
        "payload",
        "phase",
        "request_id",
        "target",
    )

    def __init__(
        self,
        target: Target,
        payload: Payload,
        *,
        request_id: str,
        phase: Phase,
        intended_at_s: float,
        on_end: Callable[[Sending], None],
    ) -> None:
        self.target = target
        self.payload = payload
        self.request_id = request_id
        self.phase = phase
        self.intended_at_s = intended_at_s
        self._decoder = ChatDecoder(keep_text=True)
        request = chat_request(
            target.endpoint, payload, request_id=request_id, api_key=target.api_key
        )
        self.exchange = Exchange(request, self._decoder.feed, lambda _: on_end(self))

    def record(self, origin_s: float) -> RequestRecord:
        """What happened, with instants in seconds since `origin_s`; asked once, at the end."""
        decoder = self._decoder
        status, error = self._verdict()
        key, payload = self.target.key, self.payload
        output_tokens = self._output_tokens_told()
        from_server = output_tokens is not None
        return RequestRecord(
            request_id=self.request_id,
            experiment=key.experiment,
            workload=key.workload,
            stage=key.stage,
            replication=self.target.replication,
            phase=self.phase,
            payload_id=payload.payload_id,
            session_id=payload.session_id,
            worker=0,
            **self._instants(origin_s),
            chunk_tokens=None,
            prompt_tokens=(decoder if from_server else payload).prompt_tokens or None,
            output_tokens=output_tokens,
            reasoning_tokens=decoder.reasoning_tokens,
            cached_tokens=decoder.cached_tokens,
            token_source="server" if from_server else "tokenizer",
            status=status,
            http_status=self.exchange.http_status,
            error=error,
            finish_reason=decoder.finish_reason,
            server_latency_s=decoder.server_latency_s,
            connection_reused=self.exchange.reused,
            response_text=decoder.text if self.target.keep_text or not from_server else None,
        )

    def _output_tokens_told(self) -> int | None:
        """The server's own count; a 0 beside a text was never counted."""
        told = self._decoder.output_tokens
        return None if told == 0 and self._decoder.text else told

    def _verdict(self) -> Any:
        """Status and error, the latter without the key, which some servers repeat."""
        exchange = self.exchange
        status, error = self._decoder.verdict(
            exchange.http_status,
            retry_after=b"retry-after" in exchange.headers,
            cut=Cut(*exchange.failure) if exchange.failure else None,
        )
        key = self.target.api_key
        return status, _without(key, error) if error and key else error

    def _instants(self, origin_s: float) -> dict[str, Any]:
        exchange, decoder = self.exchange, self._decoder
        return {
            "intended_at_s": self.intended_at_s - origin_s,
            "connected_at_s": _since(origin_s, exchange.connected_at_s),
            "sent_at_s": _since(origin_s, exchange.sent_at_s),
            "first_byte_at_s": _since(origin_s, exchange.first_byte_at_s),
            "token_at_s": [stamp_s - origin_s for stamp_s in decoder.token_at_s],
            "first_content_at_s": _since(origin_s, decoder.first_content_at_s),
            "finished_at_s": exchange.finished_at_s - origin_s,
        }


def _without(key: str, error: str) -> str:
    """`error` without the key, nor the start of it where the error was cut short within it."""
    shown = error.replace(key, "***")
    cut = next((n for n in range(len(key) - 1, 3, -1) if shown.endswith(key[:n])), 0)
    return f"{shown[:-cut]}***" if cut else shown


def _since(origin_s: float, stamp_s: float | None) -> float | None:
    return None if stamp_s is None else stamp_s - origin_s


def counted(record: RequestRecord, count_tokens: CountTokens) -> RequestRecord:
    """The record with its output tokens counted from its text, where the server told no count.

    The text is then dropped: it was kept for this.
    """
    text = record.response_text
    if record.output_tokens is not None or text is None:
        return record
    return replace(record, output_tokens=count_tokens(text) if text else None, response_text=None)


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
    key = StageKey(endpoint.experiment, "", "ask_once")
    target = Target(endpoint, key, api_key=api_key_of(endpoint.api_key_env), keep_text=True)
    payload = Payload("ask_once", prompt, None, 0, max_output_tokens, reserved=True)
    return run_event_loop(_asked(target, payload, RealClock(), timeout_s))


async def _asked(target: Target, payload: Payload, clock: Clock, timeout_s: float) -> RequestRecord:
    ended: asyncio.Future[Sending] = asyncio.get_running_loop().create_future()
    client = target.client(clock, timeout_s=timeout_s)
    origin_s = clock.now_s()
    sending = Sending(
        target,
        payload,
        request_id=uuid.uuid4().hex,
        phase="warmup",
        intended_at_s=origin_s,
        on_end=ended.set_result,
    )
    try:
        client.send(sending.exchange)
        return (await ended).record(origin_s)
    finally:
        await client.close()

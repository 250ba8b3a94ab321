"""One request being answered by a simulated server: which bytes go out with which token.

Knows the faults, one way of going wrong each; not when tokens are due, nor which fault is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import orjson

from fmgauge.emulator.faults import Fault
from fmgauge.emulator.http_front import LAST_CHUNK, Connection, response, stream_head
from fmgauge.emulator.simulated_answers import Answer, Asked, Usage, error_body
from fmgauge.emulator.truth import Outcome, RequestTruth
from fmgauge.transport import Clock

JSON = "application/json"
_EVENTS = "text/event-stream; charset=utf-8"
_RETRY_AFTER = "retry-after: 1\r\n"
_PAGE = b"<!doctype html><title>Maintenance</title><p>Back soon.</p>"


class Generation:
    """One request from its arrival to the end of its answer, and what is noted of it meanwhile.

    Whoever drives it calls `begin`, then `on_token` for each token in order until it says that it
    is over. `on_end` is called once, whatever the end was.
    """

    __slots__ = (
        "_breaks_at",
        "_clock",
        "_usage",
        "answer",
        "asked",
        "connection",
        "name",
        "on_end",
        "over",
        "truth",
    )

    def __init__(
        self,
        name: str,
        connection: Connection,
        answer: Answer,
        asked: Asked,
        truth: RequestTruth,
        *,
        clock: Clock,
        on_end: Callable[[Generation], None],
    ) -> None:
        self.name = name
        self.connection = connection
        self.answer = answer
        self.asked = asked
        self.truth = truth
        self.on_end = on_end
        self.over = False  # no token is of use any more
        self._clock = clock
        self._usage = self._told_usage()
        # Counted from 1: the token in place of which something else happens; 0 is never reached.
        self._breaks_at = asked.output_tokens // 2 + 1 if truth.fault in self._AT_HALF else 0
        connection.on_lost = self._client_left

    @property
    def fails_at_once(self) -> bool:
        """Whether it fails before anything is computed for it."""
        return self.truth.fault in self._AT_ONCE

    # --- the ordinary course --------------------------------------------------------------------

    def begin(self) -> None:
        """Accept: the head of a stream, and what comes before any token. Or fail at once."""
        at_once = self._AT_ONCE.get(self.truth.fault)
        if at_once is not None:
            at_once(self)
            return
        self.truth.http_status = 200
        if self.asked.stream:
            self.connection.send(stream_head(_EVENTS, self._header()) + self._opening())

    def on_token(self, number: int, *, last: bool) -> None:
        """Send what token `number`, counted from 1, brings with it; the end, too, with the last."""
        if self.over:
            return
        if number == self._breaks_at:
            self._AT_HALF[self.truth.fault](self, number, last)
        elif self.asked.stream:
            self._send_token(self.answer.token(number), last=last)
        elif last:
            self._send_whole()

    def refuse(self) -> None:
        """Answer 429: the queue is full."""
        self._refuse(429, "the queue is full", "rate_limit_error", _RETRY_AFTER)

    def _send_token(self, data: bytes, *, last: bool) -> None:
        if last:
            data += self.answer.closing(self.asked.output_tokens, self._usage)
        self.truth.token_at_s.append(self._clock.now_s())
        self.connection.send(data)
        if last:
            self._finish()

    def _send_whole(self) -> None:
        body = self.answer.whole(self.asked.output_tokens, "length", self._usage)
        self.truth.token_at_s.append(self._clock.now_s())
        self._send_json(body)
        self._finish()

    def _send_json(self, body: bytes, *, sent: int | None = None) -> None:
        """Send a JSON answer, or only the first `sent` bytes of its body."""
        data = response(200, body, JSON, self._header())
        self.connection.send(data if sent is None else data[: len(data) - len(body) + sent])

    def _opening(self) -> bytes:
        opening = self.answer.opening()
        if self.truth.fault == "duplicate_role":
            return 2 * self.answer.announcement() + (opening or self.answer.announcement())
        return opening

    def _told_usage(self) -> Usage | None:
        asked, fault = self.asked, self.truth.fault
        wanted = self.answer.always_tells_usage or asked.include_usage or not asked.stream
        if not wanted or fault == "usage_missing":
            return None
        halved = fault == "usage_wrong"
        return Usage(asked.prompt_tokens, asked.output_tokens // (2 if halved else 1))

    def _header(self) -> str:
        return f"x-request-id: {self.truth.request_id}\r\n"

    # --- ends -----------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._end("answered")
        self.connection.finish()

    def _break_off(self, how: Callable[[], None]) -> None:
        self._end("broken_off")
        how()

    def _client_left(self) -> None:
        self._end("client_left")

    def _end(self, outcome: Outcome) -> None:
        self.over = True
        self.connection.on_lost = None
        self.truth.finished_at_s = self._clock.now_s()
        self.truth.outcome = outcome
        self.on_end(self)

    # --- faults at the beginning ----------------------------------------------------------------

    def _refuse(self, status: int, message: str, kind: str, headers: str = "") -> None:
        self.truth.http_status = status
        body = orjson.dumps(error_body(message, kind))
        self.connection.send(response(status, body, JSON, headers + self._header()))
        self._finish()

    def _http_error(self) -> None:
        self._refuse(500, "a simulated failure", "server_error")

    def _throttle(self) -> None:
        self._refuse(429, "a simulated rate limit", "rate_limit_error", _RETRY_AFTER)

    def _wrong_content_type(self) -> None:
        self.truth.http_status = 200
        self.connection.send(response(200, _PAGE, "text/html", self._header()))
        self._finish()

    def _close_before_headers(self) -> None:
        self._break_off(self.connection.close)

    def _close_after_headers(self) -> None:
        self.truth.http_status = 200
        self.connection.send(stream_head(_EVENTS, self._header()))
        self._break_off(self.connection.close)

    # --- faults after half of the tokens ----------------------------------------------------------

    def _error_in_stream(self, _number: int, _last: bool) -> None:
        message = "a simulated failure within the answer"
        if self.asked.stream:
            self.connection.send(self.answer.error(message))
        else:
            self._send_json(orjson.dumps(error_body(message, "server_error")))
        self._finish()

    def _stall(self, number: int, _last: bool) -> None:
        """Say nothing more; the request is in flight until its client leaves."""
        self.over = True
        if not self.asked.stream:
            body = self.answer.whole(number - 1, None, None)
            self._send_json(body, sent=len(body) // 2)

    def _truncate(self, number: int, _last: bool) -> None:
        if self.asked.stream:
            self.connection.send(LAST_CHUNK)
        else:
            self._send_json(self.answer.whole(number - 1, None, self._usage))
        self._finish()

    def _close_mid_chunk(self, number: int, _last: bool) -> None:
        if self.asked.stream:
            data = self.answer.token(number)
            self.connection.send(data[: len(data) // 2])
        else:
            body = self.answer.whole(number - 1, "length", self._usage)
            self._send_json(body, sent=len(body) // 2)
        self._break_off(self.connection.close)

    def _reset(self, _number: int, _last: bool) -> None:
        self._break_off(self.connection.reset)

    def _malformed_json(self, number: int, last: bool) -> None:
        if self.asked.stream:
            self._send_token(self.answer.malformed_token(number), last=last)
            return
        body = self.answer.whole(self.asked.output_tokens, "length", self._usage)
        self._send_json(body[: len(body) // 2])
        self._finish()

    _AT_ONCE: ClassVar[dict[Fault | None, Callable[[Generation], None]]] = {
        "http_error": _http_error,
        "throttle": _throttle,
        "wrong_content_type": _wrong_content_type,
        "close_before_headers": _close_before_headers,
        "close_after_headers": _close_after_headers,
    }
    _AT_HALF: ClassVar[dict[Fault | None, Callable[[Generation, int, bool], None]]] = {
        "error_in_stream": _error_in_stream,
        "stall": _stall,
        "truncate": _truncate,
        "close_mid_chunk": _close_mid_chunk,
        "reset": _reset,
        "malformed_json": _malformed_json,
    }

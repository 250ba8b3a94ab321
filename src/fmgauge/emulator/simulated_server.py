"""A simulated LLM server as a process of its own, which ends when its lease has expired.

Run as `python -m fmgauge.emulator.simulated_server`. Knows routes, faults by request and its own
end; not who started it, nor how batching takes its time.

It answers /v1/chat/completions, /v1/completions and /v1/responses, streaming or not, as well as
/v1/models and /health. GET /truth tells what it knows of every request, one line of JSON each, and
DELETE /truth forgets it. A request's header `x-fault`, or the field `fault` of its body, names the
fault that it is to meet, or `none`, in place of a drawn one.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import cast

import orjson

from fmgauge.config.simulated import BatchingProfile, SimulatedEndpoint
from fmgauge.emulator.batching import Batching, Job, Token
from fmgauge.emulator.faults import FAULTS, Fault, FaultDraw
from fmgauge.emulator.generation import JSON, Generation
from fmgauge.emulator.http_front import Answerer, Connection, HttpFront, Request, response
from fmgauge.emulator.lease import LeaseWatch
from fmgauge.emulator.presets import preset
from fmgauge.emulator.ready_file import write_ready_file
from fmgauge.emulator.real_time import InRealTime
from fmgauge.emulator.simulated_answers import ANSWERS, Answer, BadRequest, asked_of, error_body
from fmgauge.emulator.truth import GroundTruth, RequestTruth
from fmgauge.records import write_atomically
from fmgauge.runs import now_utc
from fmgauge.transport import Clock, RealClock, new_event_loop

MODULE = "fmgauge.emulator.simulated_server"
NO_FAULT = {"fault": "none"}
"""What a request's body holds that is to meet no fault, drawn or not."""
_NONE = NO_FAULT["fault"]


def command(
    *,
    endpoint: SimulatedEndpoint,
    lease: Path,
    ready: Path,
    port: int = 0,
    truth: Path | None = None,
) -> list[str]:
    """The command line that starts a server; `-P` keeps the working folder's code out of it."""
    options: dict[str, object] = {
        "--endpoint": endpoint.model_dump_json(exclude_defaults=True),
        "--port": port,
        "--lease": lease,
        "--ready": ready,
    }
    if truth is not None:
        options["--truth"] = truth
    program = [sys.executable, "-P", "-m", MODULE]
    return [*program, *(str(part) for option in options.items() for part in option)]


def profile_of(endpoint: SimulatedEndpoint) -> BatchingProfile:
    """The timing model that an endpoint asks for, by name or in full."""
    if endpoint.profile is not None:
        return endpoint.profile
    assert endpoint.preset is not None  # a config has one of the two
    return preset(endpoint.preset)


class SimulatedServer:
    """Answers requests by a timing model, and keeps the truth about each of them."""

    def __init__(self, endpoint: SimulatedEndpoint, clock: Clock) -> None:
        batching = Batching(profile_of(endpoint), seed=endpoint.seed)
        self.truth = GroundTruth()
        self.model = f"simulated-{endpoint.preset or 'profile'}"
        self._clock = clock
        self._created = int(now_utc().timestamp())
        self._draw = FaultDraw(endpoint.faults, endpoint.seed)
        self._spike_s = endpoint.faults.latency_spike_s
        self._refuses_stream_options = endpoint.faults.stream_options_refused
        self._time = InRealTime(batching, clock, self._on_token)
        self._in_flight: dict[str, Generation] = {}
        self._arrivals = 0
        self._front = HttpFront(self._answer, clock, slow_accept_s=endpoint.faults.slow_accept_s)
        self._routes: dict[tuple[str, str], Answerer] = {
            ("GET", "/health"): self._health,
            ("GET", "/v1/models"): self._models,
            ("GET", "/truth"): self._tell_truth,
            ("DELETE", "/truth"): self._forget_truth,
            **{("POST", path): partial(self._generate, api) for path, api in ANSWERS.items()},
        }

    async def listen(self, port: int) -> int:
        """Listen on `port` of 127.0.0.1, or on a free one where it is 0; the port."""
        return await self._front.listen(port)

    def close(self) -> None:
        """Drop every connection, and listen no more."""
        self._front.close()

    # --- routes -----------------------------------------------------------------------------------

    def _answer(self, connection: Connection, request: Request) -> None:
        route = self._routes.get((request.method, request.path))
        if route is not None:
            route(connection, request)
        elif any(request.path == path for _, path in self._routes):
            _say_error(connection, HTTPStatus.METHOD_NOT_ALLOWED, "this path has other methods")
        else:
            _say_error(connection, HTTPStatus.NOT_FOUND, f"there is no path {request.path}")

    def _health(self, connection: Connection, _: Request) -> None:
        _say(connection, {"status": "ok"})

    def _models(self, connection: Connection, _: Request) -> None:
        model = {"id": self.model, "object": "model", "owned_by": "fmgauge"}
        _say(connection, {"object": "list", "data": [model | {"created": self._created}]})

    def _tell_truth(self, connection: Connection, _: Request) -> None:
        """Every request there is a record of; a header tells how many were forgotten."""
        body = b"".join(self.truth.lines())
        forgotten = f"x-truth-forgotten: {self.truth.forgotten}\r\n"
        connection.send(response(HTTPStatus.OK, body, "application/jsonl", forgotten))
        connection.finish()

    def _forget_truth(self, connection: Connection, _: Request) -> None:
        self.truth.clear()
        _say(connection, {"status": "cleared"})

    # --- generating -------------------------------------------------------------------------------

    def _generate(self, api: type[Answer], connection: Connection, request: Request) -> None:
        try:
            generation = self._generation(api, connection, request)
        except BadRequest as error:
            _say_error(connection, HTTPStatus.BAD_REQUEST, str(error))
            return
        self._in_flight[generation.name] = generation
        generation.truth.in_flight_at_arrival = len(self._in_flight)
        self.truth.add(generation.truth)
        if generation.truth.fault == "latency_spike":
            asyncio.get_running_loop().call_later(self._spike_s, self._begin, generation)
        else:
            self._begin(generation)

    def _generation(
        self, api: type[Answer], connection: Connection, request: Request
    ) -> Generation:
        """What a request asks for. BadRequest where that cannot be, before a fault is drawn."""
        asked = asked_of(request.body, api)
        if asked.stream_options and self._refuses_stream_options:
            raise BadRequest("stream_options: extra fields are not permitted")
        job = Job("", asked.prompt_tokens, asked.output_tokens)
        if not self._time.fits(job):
            raise BadRequest("the prompt and its answer are longer than the KV cache")
        given = request.headers.get(b"x-fault")
        fault = self._fault(given.decode("latin-1") if given else asked.fault)
        self._arrivals += 1
        request_id = request.headers.get(b"x-request-id", b"%d" % self._arrivals).decode("latin-1")
        truth = RequestTruth(
            request_id=request_id,
            connection=connection.number,
            arrived_at_s=request.arrived_at_s,
            in_flight_at_arrival=0,
            fault=fault,
            prompt_tokens=asked.prompt_tokens,
            output_tokens=asked.output_tokens,
        )
        answer = api(f"sim-{request_id}", asked.model or self.model, self._created)
        name = str(self._arrivals)
        return Generation(
            name, connection, answer, asked, truth, clock=self._clock, on_end=self._on_end
        )

    def _fault(self, forced: str | None) -> Fault | None:
        """The fault that a request names, else the next one drawn: naming leaves the draw alone."""
        if forced is None:
            return self._draw.next()
        if forced not in (*FAULTS, _NONE):
            raise BadRequest(f"there is no fault {forced!r}: {', '.join((*FAULTS, _NONE))}")
        return None if forced == _NONE else cast(Fault, forced)

    def _begin(self, generation: Generation) -> None:
        if generation.name not in self._in_flight:  # its client left while it waited
            return
        if not generation.fails_at_once:
            asked = generation.asked
            job = Job(generation.name, asked.prompt_tokens, asked.output_tokens)
            if not self._time.submit(job):
                generation.refuse()
                return
        generation.begin()

    def _on_token(self, token: Token) -> None:
        generation = self._in_flight.get(token.name)
        if generation is not None:
            generation.on_token(token.number, last=token.last)

    def _on_end(self, generation: Generation) -> None:
        del self._in_flight[generation.name]
        self._time.cancel(generation.name)


def _say(connection: Connection, value: object, status: int = HTTPStatus.OK) -> None:
    connection.send(response(status, orjson.dumps(value), JSON))
    connection.finish()


def _say_error(connection: Connection, status: int, message: str) -> None:
    _say(connection, error_body(message, "invalid_request_error"), status)


# --- the process ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the lease has expired or SIGTERM comes; the exit code is 0 then, 1 on failure.

    A Ctrl-C or a closed terminal leaves the end to whoever holds the lease.
    """
    options = _options(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        reason = runner.run(_serve(options))
    print(f"ended: {reason}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a timing model on 127.0.0.1.")
    parser.add_argument(
        "--endpoint",
        type=SimulatedEndpoint.model_validate_json,
        required=True,
        help="what a config says of it, as JSON",
    )
    parser.add_argument("--port", type=int, default=0, help="port; a free one where it is 0")
    parser.add_argument("--lease", type=Path, required=True, help="lives as long as this says")
    parser.add_argument("--ready", type=Path, required=True, help="written once it listens")
    parser.add_argument("--truth", type=Path, help="written at the end, one line a request")
    return parser.parse_args(arguments)


async def _serve(options: argparse.Namespace) -> str:
    """Serve; the reason why it ended."""
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _settle, ended, "SIGTERM")
    server = SimulatedServer(options.endpoint, RealClock())
    try:
        port = await server.listen(options.port)
    except OSError as error:
        sys.exit(f"cannot listen on 127.0.0.1:{options.port}: {error.strerror}")
    write_ready_file(options.ready, f"http://127.0.0.1:{port}")
    watching = asyncio.create_task(_watch(options.lease, ended))
    reason = await ended
    watching.cancel()
    server.close()
    if options.truth is not None:
        write_atomically(options.truth, b"".join(server.truth.lines()))
    return reason


def _settle(ended: asyncio.Future[str], reason: str) -> None:
    if not ended.done():
        ended.set_result(reason)


async def _watch(lease: Path, ended: asyncio.Future[str]) -> None:
    watch = LeaseWatch(lease)
    while not watch.over():
        await asyncio.sleep(watch.poll_s)
    _settle(ended, "the lease has expired")


if __name__ == "__main__":
    main()

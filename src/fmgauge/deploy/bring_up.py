"""One endpoint per experiment, started or found, and asked until its first correct answer.

Knows which experiments still need an endpoint; not what load they will be put under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fmgauge.config import planned_stages
from fmgauge.config.model import Experiment, LlamacppEndpoint, OpenaiEndpoint
from fmgauge.deploy import llamacpp_servers
from fmgauge.deploy.llamacpp_servers import Server
from fmgauge.emulator.lease import renew
from fmgauge.errors import EndpointError, FmgaugeError
from fmgauge.load import ask_once
from fmgauge.records import Endpoint, read_endpoints, write_endpoints
from fmgauge.runs import Run, now_utc
from fmgauge.transport import Clock, RealClock

BY_HAND_TTL_S = 1800.0
_FIRST_ANSWER_WITHIN_S = 60.0
_STILL_ANSWERS_WITHIN_S = 10.0
_QUESTIONS = 3
# Every prompt is computed in full, and every answer has the length that was asked for.
_LLAMACPP_BODY = {"cache_prompt": False, "ignore_eos": True, "temperature": 0.0}


def bring_up(run: Run, clock: Clock | None = None) -> list[Endpoint]:
    """Have an endpoint for every experiment that has stages to run, and write endpoints.json.

    An endpoint that still answers is kept, and so is the entry of an experiment whose stages are
    all on disk. One that fails has the state "failed" and the reason; the others go on.
    """
    renew(run.lease_path, "by hand", BY_HAND_TTL_S)
    known = read_endpoints(run.endpoints_path)
    starting = [e for e in run.config.experiments if not _is_done(run, e, known)]
    for experiment in starting:  # models are built one by one, before any clock runs
        _build_model(run, experiment)
    answering = _side_by_side(run, starting, known, clock or RealClock())
    endpoints = [(known | answering)[experiment.name] for experiment in run.config.experiments]
    write_endpoints(run.endpoints_path, endpoints)
    return endpoints


def _is_done(run: Run, experiment: Experiment, known: Mapping[str, Endpoint]) -> bool:
    """Whether nothing is left to ask of `experiment`, and where it ran is known."""
    keys = [stage.key for stage in planned_stages(run.config) if stage.experiment == experiment]
    return experiment.name in known and all(run.stage_folder(key).exists() for key in keys)


def _build_model(run: Run, experiment: Experiment) -> None:
    if isinstance(experiment.endpoint, LlamacppEndpoint):
        llamacpp_servers.model_path(run, experiment.endpoint)


def _side_by_side(
    run: Run, experiments: Sequence[Experiment], known: Mapping[str, Endpoint], clock: Clock
) -> dict[str, Endpoint]:
    """The endpoints of `experiments`, all started at once."""
    with ThreadPoolExecutor(max_workers=max(1, len(experiments))) as pool:
        endpoints = pool.map(lambda e: _endpoint(run, e, known.get(e.name), clock), experiments)
        return {endpoint.experiment: endpoint for endpoint in endpoints}


def _endpoint(run: Run, experiment: Experiment, known: Endpoint | None, clock: Clock) -> Endpoint:
    match experiment.endpoint:
        case LlamacppEndpoint() as wanted:
            if known is not None and _still_answers(run, known):
                return known
            return _new_llamacpp(run, experiment, wanted, clock)
        case OpenaiEndpoint() as wanted:
            return _asked(_openai(experiment, wanted), _FIRST_ANSWER_WITHIN_S)


def _still_answers(run: Run, known: Endpoint) -> bool:
    if known.state != "ready" or known.resource is None:
        return False
    if not llamacpp_servers.is_running(run, known.resource):
        return False
    return _asked(known, _STILL_ANSWERS_WITHIN_S).state == "ready"


def _asked(endpoint: Endpoint, timeout_s: float) -> Endpoint:
    """`endpoint` as it is after a few questions: ready, or failed with the reason.

    One answer is enough, also one whose only token bears no text (the first of a reasoning model,
    or half a character): how often it fails is for the load to find out.
    """
    for _ in range(_QUESTIONS):
        try:
            answer = ask_once(endpoint, timeout_s=timeout_s)
        except FmgaugeError as error:  # its key is not set, for one
            return replace(endpoint, state="failed", error=str(error))
        if answer.status in ("ok", "empty"):
            return endpoint
        if answer.http_status is None:
            break  # nobody said anything: to wait as long again would not help
    reason = f"the first answer was no answer: {answer.status}: {answer.error}"
    return replace(endpoint, state="failed", error=reason)


def _openai(experiment: Experiment, wanted: OpenaiEndpoint) -> Endpoint:
    return Endpoint(
        experiment=experiment.name,
        kind=wanted.kind,
        state="ready",
        base_url=wanted.base_url,
        model=experiment.model.name,
        instance_type=experiment.instance_type,
        instance_count=experiment.instance_count,
        owned=False,
        api_key_env=wanted.api_key_env,
        extra_body=dict(wanted.extra_body),
    )


def _new_llamacpp(
    run: Run, experiment: Experiment, wanted: LlamacppEndpoint, clock: Clock
) -> Endpoint:
    """A server started now, after what an earlier session left of this experiment has ended."""
    for event in llamacpp_servers.outstanding_servers(run, experiment.name):
        llamacpp_servers.close(run, event)
    model = llamacpp_servers.model_path(run, wanted)
    endpoint, began_s = _llamacpp(experiment), clock.now_s()
    try:
        server = llamacpp_servers.start(run, experiment, wanted, model)
    except EndpointError as error:
        return replace(endpoint, state="failed", error=str(error))
    answering = _first_answer(replace(endpoint, resource=server.name), server, clock, began_s)
    if answering.state == "failed":
        return _given_up(run, answering, server)
    return answering


def _llamacpp(experiment: Experiment) -> Endpoint:
    return Endpoint(
        experiment=experiment.name,
        kind="llamacpp",
        state="ready",
        base_url=None,
        model=experiment.model.name,
        instance_type=experiment.instance_type,
        instance_count=experiment.instance_count,
        owned=True,
        extra_body=dict(_LLAMACPP_BODY),
        created_at=now_utc().isoformat(),
    )


def _first_answer(endpoint: Endpoint, server: Server, clock: Clock, began_s: float) -> Endpoint:
    deadline_s = began_s + _FIRST_ANSWER_WITHIN_S
    try:
        base_url = llamacpp_servers.base_url_once_listening(server, clock, deadline_s)
    except EndpointError as error:
        return replace(endpoint, state="failed", error=str(error))
    asked = _asked(replace(endpoint, base_url=base_url), max(1.0, deadline_s - clock.now_s()))
    return replace(asked, first_answer_s=clock.now_s() - began_s)


def _given_up(run: Run, endpoint: Endpoint, server: Server) -> Endpoint:
    """The failed endpoint, its server ended and the last lines of its log in the reason."""
    for event in llamacpp_servers.outstanding_servers(run, endpoint.experiment):
        llamacpp_servers.close(run, event)
    lines = server.last_log_lines() or "nothing"
    error = f"{endpoint.error}; {server.log_path.name} ends with: {lines}"
    return replace(endpoint, base_url=None, first_answer_s=None, error=error)

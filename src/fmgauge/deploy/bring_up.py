"""One endpoint per experiment, started or found, and asked until its first correct answer.

Knows which experiments still need an endpoint; not what load they will be put under.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fmgauge.config import planned_stages
from fmgauge.config.model import Experiment, OpenaiEndpoint
from fmgauge.deploy import local_servers
from fmgauge.deploy.local_kinds import LocalEndpoint, prepare, preset_problems, request_fields
from fmgauge.deploy.local_servers import Server
from fmgauge.emulator.lease import hold
from fmgauge.errors import ConfigError, EndpointError, FmgaugeError
from fmgauge.load import ask_once
from fmgauge.records import Endpoint, RequestRecord, held, read_endpoints, write_endpoints
from fmgauge.runs import Run, now_utc
from fmgauge.transport import Clock, RealClock
from fmgauge.wire import usage_is_optional

BY_HAND_TTL_S = 1800.0
HEARTBEAT_S = 2.0
KILLED_ENDS_WITHIN_S = 10.0  # a notebook whose pipeline was killed goes on for some seconds
_FIRST_ANSWER_WITHIN_S = 60.0
_STILL_ANSWERS_WITHIN_S = 10.0
_ENDS_WITHIN_S = 2.0  # a server whose lease has just expired no longer answers, and ends
_BUSY = f"busy: it did not answer within {_STILL_ANSWERS_WITHIN_S:g} s, and is kept"
_LIVES = (
    ". It lives, so it is kept; to have a new one started, run notebook 6, then notebook 2 again"
)
_QUESTIONS = 3
_FIELD_REFUSED = (400, 422)  # a server that refuses a field of a request says one of these
_NO_KEY = ". Name the variable that holds the key in api_key_env"
_NO_FAULT = {"fault": "none"}  # a simulated server's own: the first answer is not to fail


def bring_up(
    run: Run, clock: Clock | None = None, *, patience_s: float = KILLED_ENDS_WITHIN_S
) -> list[Endpoint]:
    """Have an endpoint for every experiment that has stages to run, and write endpoints.json.

    A server of this run whose process lives is kept, also where it is too busy to answer; a new
    one is started where it has ended. The entry of an experiment whose stages are all on disk is
    kept, too. An endpoint that fails has the state "failed" and the reason; the others go on.
    Raises ConfigError, before anything is started, where one is to imitate what is not known, and
    StepError where another process brings up or loads these endpoints for longer than
    `patience_s`: nothing is touched then.
    """
    if problems := list(preset_problems(run.loaded)):
        raise ConfigError(*problems)
    uses = f"brings up or loads the endpoints of {run.run_id}"
    with (
        held(run.load_lock_path, uses, patience_s=patience_s),
        hold(run.lease_path, "by hand", BY_HAND_TTL_S, HEARTBEAT_S),
    ):
        return _brought_up(run, clock or RealClock())


def _brought_up(run: Run, clock: Clock) -> list[Endpoint]:
    known = read_endpoints(run.endpoints_path)
    starting = [e for e in run.config.experiments if not _is_done(run, e, known)]
    for experiment in starting:  # models are built one by one, before any clock runs
        if isinstance(experiment.endpoint, LocalEndpoint):
            prepare(run.loaded, experiment.endpoint)
    answering = _side_by_side(run, starting, known, clock)
    endpoints = [(known | answering)[experiment.name] for experiment in run.config.experiments]
    write_endpoints(run.endpoints_path, endpoints)
    return endpoints


def announcements(endpoints: Iterable[Endpoint]) -> Iterator[str]:
    """What a person should hear of endpoints before they are loaded, a line each."""
    for endpoint in endpoints:
        if endpoint.state == "failed":
            yield f"{endpoint.experiment} will not be measured: {endpoint.error}"
        elif endpoint.error:
            yield f"{endpoint.experiment}: its server is {endpoint.error}"
        elif not endpoint.usage_in_stream:
            yield (
                f"{endpoint.experiment}: its server refuses stream_options, so it is not asked for "
                "usage; unless it tells it unasked, the tokenizer counts its tokens"
            )


def _is_done(run: Run, experiment: Experiment, known: Mapping[str, Endpoint]) -> bool:
    """Whether nothing is left to ask of `experiment`, and where it ran is known."""
    keys = [stage.key for stage in planned_stages(run.config) if stage.experiment == experiment]
    return experiment.name in known and all(run.stage_folder(key).exists() for key in keys)


def _side_by_side(
    run: Run, experiments: Sequence[Experiment], known: Mapping[str, Endpoint], clock: Clock
) -> dict[str, Endpoint]:
    """The endpoints of `experiments`, all started at once."""
    with ThreadPoolExecutor(max_workers=max(1, len(experiments))) as pool:
        endpoints = pool.map(lambda e: _endpoint(run, e, known.get(e.name), clock), experiments)
        return {endpoint.experiment: endpoint for endpoint in endpoints}


def _endpoint(run: Run, experiment: Experiment, known: Endpoint | None, clock: Clock) -> Endpoint:
    match experiment.endpoint:
        case OpenaiEndpoint() as wanted:
            endpoint = _openai(experiment, wanted)
            if known is not None:  # a run's stages are all asked in one way
                endpoint = replace(endpoint, usage_in_stream=known.usage_in_stream)
            return _asked(endpoint, _FIRST_ANSWER_WITHIN_S)
        case local:
            server = local_servers.living_server(run, experiment.name)
            if server is not None:
                if known is None or known.resource != server.name or known.base_url is None:
                    endpoint = _found(_local(experiment, local), server, clock)
                else:
                    endpoint = _kept(known)
                if endpoint.state == "ready" or not server.ends_within(_ENDS_WITHIN_S):
                    return endpoint
            return _new_local(run, experiment, local, clock)


def _found(endpoint: Endpoint, server: Server, clock: Clock) -> Endpoint:
    """The entry of a living server that has none: whoever started it was killed before."""
    endpoint = replace(endpoint, resource=server.name, created_at=None)
    found = _first_answer(endpoint, server, clock, clock.now_s())
    error = server.with_its_log(found.error) + _LIVES if found.error else None
    return replace(found, first_answer_s=None, error=error)


def _kept(known: Endpoint) -> Endpoint:
    """The entry of a living server after a question; one that is too busy to answer stays."""
    kept = replace(known, state="ready", error=None)
    answering, answer = _questioned(kept, _STILL_ANSWERS_WITHIN_S)
    if answering is not None:
        return kept
    if answer.status == "timeout":
        return known if known.state == "failed" else replace(known, error=_BUSY)
    return replace(kept, state="failed", error=_reason(answer) + _LIVES)


def _asked(endpoint: Endpoint, timeout_s: float) -> Endpoint:
    """`endpoint` as it is after a few questions: ready, or failed with the reason.

    One answer is enough, also one whose only token bears no text (the first of a reasoning model,
    or half a character): how often it fails is for the load to find out. Where the server refuses
    the question, it is put once more without the field that some servers do not know; if that
    helps, every request is sent without it.
    """
    try:
        answering, answer = _questioned(endpoint, timeout_s)
    except FmgaugeError as error:  # its key is not set, for one
        return replace(endpoint, state="failed", error=str(error))
    if answering is not None:
        return answering
    remedy = "" if endpoint.owned else _remedy(endpoint, answer)
    return replace(endpoint, state="failed", error=_reason(answer) + remedy)


def _questioned(endpoint: Endpoint, timeout_s: float) -> tuple[Endpoint | None, RequestRecord]:
    """The endpoint as it is to be asked, or None where no answer was one; and the last answer."""
    for _ in range(_QUESTIONS):
        answer = _answer(endpoint, timeout_s)
        if _is_answered(answer):
            return endpoint, answer
        if answer.http_status in _FIELD_REFUSED and usage_is_optional(endpoint):
            without_usage = replace(endpoint, usage_in_stream=False)
            if _is_answered(_answer(without_usage, timeout_s)):
                return without_usage, answer
            break  # it is the question that it refuses: to ask again would not help
        if answer.http_status is None or answer.status == "timeout":
            break  # to wait as long again would not help
    return None, answer


def _reason(answer: RequestRecord) -> str:
    return f"the first answer was no answer: {answer.status}: {answer.error}"


def _answer(endpoint: Endpoint, timeout_s: float) -> RequestRecord:
    """The answer to one question; a simulated server is not to fail it by its own draw."""
    if endpoint.kind == "simulated":
        endpoint = replace(endpoint, extra_body=endpoint.extra_body | _NO_FAULT)
    return ask_once(endpoint, timeout_s=timeout_s)


def _is_answered(answer: RequestRecord) -> bool:
    return answer.status in ("ok", "empty")


def _remedy(endpoint: Endpoint, answer: RequestRecord) -> str:
    """What can be done about an endpoint of somebody else that cannot be reached, as a sentence."""
    error = answer.error or ""
    if "does not resolve" in error:
        return f". Check the host's name in base_url, {endpoint.base_url}"
    if "certificate verify failed" in error:
        return (
            f". If the authority behind {endpoint.base_url} is a private one, name the file of its "
            "certificates in SSL_CERT_FILE"
        )
    if answer.http_status in (401, 403):
        return f". Check the key in {endpoint.api_key_env}" if endpoint.api_key_env else _NO_KEY
    if answer.http_status == 404 and not (endpoint.base_url or "").rstrip("/").endswith("/v1"):
        return f". Does base_url lack a /v1 at its end? It is {endpoint.base_url}"
    return f". Check that a server answers at {endpoint.base_url}" if _unreached(answer) else ""


def _unreached(answer: RequestRecord) -> bool:
    return answer.http_status is None and answer.status in ("connection_error", "timeout")


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
        api=wanted.api,
        api_key_env=wanted.api_key_env,
        extra_body=dict(wanted.extra_body),
    )


def _new_local(run: Run, experiment: Experiment, wanted: LocalEndpoint, clock: Clock) -> Endpoint:
    """A server started now, after what an earlier session left of this experiment has ended."""
    for event in local_servers.outstanding_servers(run, experiment.name):
        local_servers.close(run, event)
    endpoint, began_s = _local(experiment, wanted), clock.now_s()
    try:
        server = local_servers.start(run, experiment, wanted)
    except EndpointError as error:
        return replace(endpoint, state="failed", error=str(error))
    answering = _first_answer(replace(endpoint, resource=server.name), server, clock, began_s)
    if answering.state == "failed":
        return _given_up(run, answering, server)
    return answering


def _local(experiment: Experiment, wanted: LocalEndpoint) -> Endpoint:
    return Endpoint(
        experiment=experiment.name,
        kind=wanted.kind,
        state="ready",
        base_url=None,
        model=experiment.model.name,
        instance_type=experiment.instance_type,
        instance_count=experiment.instance_count,
        owned=True,
        created_at=now_utc().isoformat(),
        **request_fields(wanted),
    )


def _first_answer(endpoint: Endpoint, server: Server, clock: Clock, began_s: float) -> Endpoint:
    deadline_s = began_s + _FIRST_ANSWER_WITHIN_S
    try:
        base_url = local_servers.base_url_once_listening(server, clock, deadline_s)
    except EndpointError as error:
        return replace(endpoint, state="failed", error=str(error))
    asked = _asked(replace(endpoint, base_url=base_url), max(1.0, deadline_s - clock.now_s()))
    return replace(asked, first_answer_s=clock.now_s() - began_s)


def _given_up(run: Run, endpoint: Endpoint, server: Server) -> Endpoint:
    """The failed endpoint, its server ended and the last lines of its log in the reason."""
    for event in local_servers.outstanding_servers(run, endpoint.experiment):
        local_servers.close(run, event)
    error = server.with_its_log(endpoint.error or "")
    return replace(endpoint, base_url=None, first_answer_s=None, error=error)

"""One endpoint per experiment, created or found, and asked until its first correct answer.

Knows which experiments still need an endpoint; not of which kind it is, or what load comes next.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fmgauge.config import planned_stages
from fmgauge.config.model import Experiment
from fmgauge.emulator.lease import hold
from fmgauge.endpoints.asking import asked, no_answer, questioned
from fmgauge.endpoints.kinds import kind_of
from fmgauge.endpoints.ledger import LedgerEvent, append, last_attempt, read_ledger
from fmgauge.endpoints.release import Deletion, attempts, deleted, release, standing
from fmgauge.errors import ConfigError, EndpointError, FmgaugeError
from fmgauge.records import Endpoint, held, read_endpoints, write_endpoints
from fmgauge.runs import Run, now_utc
from fmgauge.transport import Clock, RealClock

BY_HAND_TTL_S = 1800.0
HEARTBEAT_S = 2.0
KILLED_ENDS_WITHIN_S = 10.0  # a notebook whose pipeline was killed goes on for some seconds
_STILL_ANSWERS_WITHIN_S = 10.0
_ENDS_WITHIN_S = 2.0  # a server whose lease has just expired no longer answers, and ends
_POLL_S = 0.02
_BUSY = f"busy: it did not answer within {_STILL_ANSWERS_WITHIN_S:g} s, and is kept"
_LIVES = (
    ". It lives, so it is kept; to have a new one started, run notebook 6, then notebook 2 again"
)


def bring_up(
    run: Run, clock: Clock | None = None, *, patience_s: float = KILLED_ENDS_WITHIN_S
) -> list[Endpoint]:
    """Have an endpoint for every experiment that has stages to run, and write endpoints.json.

    What this run created and still stands is kept, also where it is too busy to answer; a new one
    is created where it has ended. The entry of an experiment whose stages are all on disk is kept,
    too. An endpoint that fails has the state "failed" and the reason; the others go on. Raises
    ConfigError, before anything is created, where one can never come up, and StepError where
    another process brings up or loads these endpoints for longer than `patience_s`: nothing is
    touched then.
    """
    experiments = run.config.experiments
    problems = [one for e in experiments for one in kind_of(e.endpoint).problems(run.loaded, e)]
    if problems:
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
    for experiment in starting:  # one by one, before any clock runs
        kind_of(experiment.endpoint).prepare(run.loaded, experiment.endpoint)
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
    """The endpoints of `experiments`, all brought up at once."""
    with ThreadPoolExecutor(max_workers=max(1, len(experiments))) as pool:
        endpoints = pool.map(lambda e: _settled(run, e, known.get(e.name), clock), experiments)
        return {endpoint.experiment: endpoint for endpoint in endpoints}


def _settled(run: Run, experiment: Experiment, known: Endpoint | None, clock: Clock) -> Endpoint:
    """The endpoint, failed where nothing can be told of it; what stands of it is kept then."""
    try:
        return _endpoint(run, experiment, known, clock)
    except FmgaugeError as error:
        endpoint = known or kind_of(experiment.endpoint).endpoint(experiment, experiment.endpoint)
        return replace(endpoint, state="failed", error=str(error))


def _endpoint(run: Run, experiment: Experiment, known: Endpoint | None, clock: Clock) -> Endpoint:
    kind = kind_of(experiment.endpoint)
    for created in attempts(standing(run, experiment.name)):
        if _is_whole(run, experiment, created) and kind.ended(run, created) is None:
            endpoint = _found_again(run, experiment, created, known, clock)
            if endpoint.state == "ready" or not _ends_soon(run, endpoint, created, clock):
                return endpoint
    return _new(run, experiment, known, clock)


def _is_whole(run: Run, experiment: Experiment, created: Sequence[LedgerEvent]) -> bool:
    """Whether all that the attempt was to consist of was planned, if not noted as created."""
    plan = kind_of(experiment.endpoint).plan(run, experiment, created[-1].attempt or 0)
    return [resource.name for resource in plan] == [event.name for event in created]


def _found_again(
    run: Run,
    experiment: Experiment,
    created: Sequence[LedgerEvent],
    known: Endpoint | None,
    clock: Clock,
) -> Endpoint:
    """The entry of an endpoint that stands.

    It has none where whoever created it was killed before it was written.
    """
    main = created[-1].name
    if known is not None and known.resource == main and known.base_url is not None:
        return _kept(known)
    kind = kind_of(experiment.endpoint)
    endpoint = kind.endpoint(experiment, experiment.endpoint)
    endpoint = replace(endpoint, resource=main, created_at=None)
    found = _first_answer(run, endpoint, created, clock, clock.now_s())
    error = kind.explained(run, created, found.error) + _LIVES if found.error else None
    return replace(found, first_answer_s=None, error=error)


def _kept(known: Endpoint) -> Endpoint:
    """`known` after a question; one that is too busy to answer stays."""
    kept = replace(known, state="ready", error=None)
    answering, answer = questioned(kept, _STILL_ANSWERS_WITHIN_S)
    if answering is not None:
        return kept
    if answer.status == "timeout":
        return known if known.state == "failed" else replace(known, error=_BUSY)
    return replace(kept, state="failed", error=no_answer(answer) + _LIVES)


def _ends_soon(run: Run, endpoint: Endpoint, created: Sequence[LedgerEvent], clock: Clock) -> bool:
    """Whether an endpoint that gives no answer is about to end."""
    until_s = clock.now_s() + _ENDS_WITHIN_S
    while kind_of(endpoint).ended(run, created) is None:
        if clock.now_s() > until_s:
            return False
        time.sleep(_POLL_S)
    return True


def _new(run: Run, experiment: Experiment, known: Endpoint | None, clock: Clock) -> Endpoint:
    """An endpoint created now, after what an earlier session left of this experiment has gone."""
    left, kind = release(run, experiment.name), kind_of(experiment.endpoint)
    endpoint, began_s = kind.endpoint(experiment, experiment.endpoint), clock.now_s()
    if known is not None:  # a run's stages are all asked in one way
        endpoint = replace(endpoint, usage_in_stream=known.usage_in_stream)
    if left:  # a second one beside it would cost as much again
        return replace(endpoint, state="failed", error=f"no new one is created{_stands(left)}")
    try:
        created = _created(run, experiment)
    except EndpointError as error:
        left = release(run, experiment.name)  # of several things the first may stand
        return replace(endpoint, state="failed", error=f"{error}{_stands(left)}")
    if created:
        endpoint = replace(endpoint, resource=created[-1].name)
    answering = _first_answer(run, endpoint, created, clock, began_s)
    if not created:
        return replace(answering, first_answer_s=None)  # it was there before it was asked
    if answering.state == "ready":
        return answering
    left = release(run, experiment.name)
    reason = kind.explained(run, created, answering.error or "") + _stands(left)
    return replace(answering, base_url=None, first_answer_s=None, error=reason)


def _stands(left: Sequence[Deletion]) -> str:
    """That something could not be deleted, to follow a reason; nothing where all is gone."""
    return f". STILL RUNNING: {', '.join(map(str, left))}" if left else ""


def _created(run: Run, experiment: Experiment) -> list[LedgerEvent]:
    """What the endpoint of `experiment` consists of, each written in the ledger before and after.

    Raises EndpointError where one thing cannot be created; those before it stand.
    """
    attempt = last_attempt(read_ledger(run.ledger_path), experiment.name) + 1
    plan = kind_of(experiment.endpoint).plan(run, experiment, attempt)
    planned = [
        LedgerEvent(
            "planned",
            resource.resource_type,
            resource.name,
            run.run_id,
            now_utc().isoformat(),
            arn=resource.arn,
            experiment=experiment.name,
            attempt=attempt,
            usd_per_hour=resource.usd_per_hour,
        )
        for resource in plan
    ]
    return [_created_one(run, experiment, event) for event in planned]


def _created_one(run: Run, experiment: Experiment, event: LedgerEvent) -> LedgerEvent:
    append(run.ledger_path, event)
    try:
        event = kind_of(experiment.endpoint).create(run, experiment.endpoint, event)
        event = replace(event, event="created", at=now_utc().isoformat())
        append(run.ledger_path, event)
    except (EndpointError, OSError):  # it may exist all the same, and may not be in the ledger
        deleted(run, event)
        raise
    return event


def _first_answer(
    run: Run, endpoint: Endpoint, created: Sequence[LedgerEvent], clock: Clock, began_s: float
) -> Endpoint:
    kind = kind_of(endpoint)
    deadline_s = began_s + kind.first_answer_within_s
    try:
        addressed = kind.wait(run, endpoint, created, clock, deadline_s)
    except EndpointError as error:
        return replace(endpoint, state="failed", error=str(error))
    answering = asked(addressed, max(1.0, deadline_s - clock.now_s()))
    return replace(answering, first_answer_s=clock.now_s() - began_s)

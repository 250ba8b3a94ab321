"""How a run's figures came about, in computed sentences: load, definitions, prompts, tokens.

Knows what a reader has to know before trusting a figure; not what the figures say of candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fmgauge.config.model import ClosedLoop, Load, OpenLoop
from fmgauge.decision import CAVEAT_CODES, StageVerdict
from fmgauge.metrics import PERCENTILES
from fmgauge.report import wording
from fmgauge.report.escaping import Markdown, code, joined, sentences
from fmgauge.report.load_levels import CLOSED, OPEN, kinds_of, labels_of
from fmgauge.report.material import Material, Row, cut_off
from fmgauge.statistics import samples_needed

if TYPE_CHECKING:
    import pandas as pd

_ABOVE = 1.02  # of the asked rate, above which a reader wonders
_FEW_UNSTREAMED = 0.01  # of the answers, below which nobody held them back
_HELD = 0.95  # of the asked concurrency in flight on average, below which the load was not held
_THINKING = "closed loop of users who think"  # the third kind of loop, by what is said of it
_LOOPS = {
    CLOSED: "closed loop: as soon as one answer ends, the next request starts",
    _THINKING: "closed loop of users who think: the next request starts a think time after the "
    "answer to the last one has ended",
    OPEN: "open loop: requests are sent at instants that were settled beforehand, however slow "
    "the answers are",
}


def how_measured(material: Material) -> list[Markdown]:
    """How the figures came about, one item each."""
    return [
        _window(material),
        *_caveats(material),
        *_held_back(material.metrics),
        *_resent(material.metrics),
        *_doubtful_counts(material.metrics),
        *_unstreamed(material.metrics),
        _definitions(material.metrics),
        _percentiles(),
        *_prompts(material),
        _token_counts(material),
    ]


# --- the load asked for -------------------------------------------------------------------------


def load_shapes(material: Material) -> list[str]:
    """Each different load that the config asks for, in words."""
    loads = [load for experiment in material.experiments for load in experiment.load]
    return [
        f"{_closed(load) if isinstance(load, ClosedLoop) else _open(load)}, {_measured(load)} "
        f"after at least {wording.limit(load.warmup_s)} s of warm-up"
        for load in dict.fromkeys(loads)
    ]


def _closed(load: ClosedLoop) -> str:
    if not load.think_time_s:
        return f"closed loop with {joined(load.concurrency)} in flight"
    think = f"who think for {wording.limit(load.think_time_s)} s between answer and question"
    return f"closed loop with {joined(load.concurrency)} users {think}"


def _open(load: OpenLoop) -> str:
    arrivals = {
        "constant": "evenly spaced arrivals",
        "poisson": "Poisson arrivals",
        "gamma": f"gamma-distributed gaps of shape {wording.limit(load.burstiness or 1)}",
        "ramp": "Poisson arrivals",
    }[load.arrivals]
    rates = f"{joined(wording.limit(rate) for rate in load.request_rate)} requests/s"
    if load.ramp_to_rate is not None:
        rates = f"from {rates} to {wording.limit(load.ramp_to_rate)} over the window"
    else:
        rates = f"at {rates}"
    cap = f", {load.max_in_flight} in flight at most" if load.max_in_flight else ""
    return f"open loop with {arrivals} {rates}{cap}"


def _measured(load: Load) -> str:
    """When the window ends, in words."""
    count = wording.plural(load.requests, "request") if load.requests else ""
    if load.duration_s is None:
        return f"{count} measured"
    least = "" if isinstance(load, OpenLoop) and load.arrivals == "ramp" else "at least "
    time = f"{least}{wording.limit(load.duration_s)} s measured"
    return f"{time}, or {count} where they come first," if count else time


# --- the load that came about -------------------------------------------------------------------


def _window(material: Material) -> Markdown:
    phases = material.requests["phase"].value_counts()
    counts = [f"{phases.get(phase, 0):,}" for phase in ("warmup", "measured", "drain")]
    n_cut_off = int(cut_off(material.requests).sum())
    ended = f"; {n_cut_off:,} of the drain requests were cut off when their stage ended"
    sent = Markdown(
        "Load runs before, through and after the window; {} warm-up, {} measured and {} drain "
        "requests were sent{}."
    ).fill(*counts, ended if n_cut_off else "")
    return sentences(
        _loops(material.metrics),
        sent,
        _took(material.metrics),
        _kept_in_flight(material),
        _waiting_users(material.metrics),
        _load_not_held(material),
        _kept_schedule(material.metrics),
        _above_asked(material.metrics),
        _read_late(material.metrics),
    )


def _took(metrics: pd.DataFrame) -> str:
    """How long warm-ups and windows were, which the load decides; nothing where none was run."""
    run = metrics[metrics["status"] == "ok"]
    if run.empty:
        return ""
    warmups, windows = (
        wording.span(run[name].min(), run[name].max()) for name in ("warmup_s", "duration_s")
    )
    return (
        f"Warm-ups took {warmups} s and windows {windows} s: a stage is measured once its load is "
        "steady, and until it has the requests that the budgets need."
    )


def _loops(metrics: pd.DataFrame) -> str:
    loops = metrics["kind"].mask(metrics["think_time_s"] > 0, _THINKING)
    counts = {kind: int((loops == kind).sum()) for kind in _LOOPS if (loops == kind).any()}
    if len(counts) == 1:
        (kind,) = counts
        return f"Each stage is {'an' if kind == OPEN else 'a'} {_LOOPS[kind]}."
    return " ".join(
        f"{wording.plural(n, 'stage')} in {_LOOPS[kind]}." for kind, n in counts.items()
    )


def _without_pauses(metrics: pd.DataFrame) -> pd.DataFrame:
    """The metrics of closed-loop stages whose users do not pause: these hold their concurrency."""
    return metrics[(metrics["kind"] == CLOSED) & (metrics["think_time_s"] == 0)]


def _waiting_users(metrics: pd.DataFrame) -> str:
    """How many of the users who think waited for an answer at a time; nothing without any."""
    thinking = metrics[metrics["think_time_s"] > 0]
    waiting = (thinking["mean_in_flight"] / thinking["concurrency"].astype("float64")).dropna()
    if waiting.empty:
        return ""
    span = wording.percent_span(waiting.min(), waiting.max())
    return f"Of the users who think, {span} waited for an answer at a time, on average."


def _kept_in_flight(material: Material) -> str:
    closed = _without_pauses(material.metrics)
    kept = (closed["mean_in_flight"] / closed["concurrency"].astype("float64")).dropna()
    if kept.empty:
        measured = material.metrics["mean_in_flight"].notna().any()
        return "" if measured else "No window was measured."
    span = wording.percent_span(kept.min(), kept.max())
    return f"Over the windows, {span} of the asked number were in flight on average."


def _load_not_held(material: Material) -> Markdown:
    """The stages in which clearly less was in flight than asked; nothing where there are none."""
    closed = _without_pauses(material.metrics)
    slack = closed[closed["mean_in_flight"] < _HELD * closed["concurrency"].astype("float64")]
    if slack.empty:
        return Markdown("")
    return Markdown(
        "Less than {} of it was in flight for {}: there the client or the endpoint's connections "
        "did not keep the load up, and the figures are those of a lower load."
    ).fill(wording.percent(_HELD), _stages(slack))


def _kept_schedule(metrics: pd.DataFrame) -> str:
    """How late the requests of open-loop stages were sent, in the worst of them.

    Stages whose cap on requests in flight was reached are told apart: there it was the cap.
    """
    free = metrics[(metrics["kind"] == OPEN) & (metrics["held_back"] == 0)]
    delays = free[["send_delay_s_p99", "send_delay_s_mean"]].max()
    for statistic, words in (("p99", "at the 99th percentile"), ("mean", "on average")):
        delay_s = float(delays[f"send_delay_s_{statistic}"])
        if delay_s == delay_s:
            late = f"{wording.milliseconds(delay_s)} ms {words}"
            return f"In open loop, requests were sent late by {late} in the worst stage."
    return ""


def _above_asked(metrics: pd.DataFrame) -> str:
    """Why an open loop may have served more than was asked; nothing where none did."""
    served, asked = metrics["request_rate"], metrics["request_rate_asked"]
    if not ((metrics["kind"] == OPEN) & (served > _ABOVE * asked)).any():
        return ""
    return (
        "Where more was served than the rate asked for, arrivals drawn at random came out above "
        "it, or requests of the warm-up ended inside the window: each counts by the share of its "
        "time that lies in it. The shorter the window, the more that is."
    )


def _read_late(metrics: pd.DataFrame) -> str:
    """How late the client read answers, by its own measure, in the worst stage."""
    lag_s = float(metrics["loop_lag_s_p99"].max())
    if lag_s != lag_s:
        return ""
    late = wording.milliseconds(lag_s)
    return (
        f"The client read what had arrived within {late} ms, 99 % of the time and for 99 % of what "
        "arrived, in every stage."
    )


def _stages(metrics: pd.DataFrame) -> Markdown:
    """Stages by name: each experiment and dataset once, with its load levels."""
    groups = metrics.groupby(["experiment_name", "workload"], sort=False)
    return joined(
        (
            Markdown("{} on {} at {}").fill(code(name), code(workload), labels_of(one))
            for (name, workload), one in groups
        ),
        "; and ",
    )


# --- what limits the figures --------------------------------------------------------------------


def stage_notes(row: Row, stage: StageVerdict) -> str:
    """What a reader of one stage's figures has to know; nothing of most stages."""
    notes = [caveat.short for caveat in stage.caveats]
    if row["held_back"] > 0:
        notes.append(f"{row['held_back']:,} held back by max_in_flight")
    if row["n_resent"] > 0:
        notes.append(f"{row['n_resent']:,} sent again")
    if _is_unstreamed(row["n_unstreamed"], row["n_ok"]):
        notes.append(f"{row['n_unstreamed']:,} answers came all at once")
    if row["n_doubtful_counts"] > 0:
        notes.append(f"{row['n_doubtful_counts']:,} impossible token counts")
    return "; ".join(notes)


def _caveats(material: Material) -> Iterator[Markdown]:
    """Each caveat with the stages that have it; the table of all stages has the numbers."""
    for code_of_caveat in CAVEAT_CODES:
        found = {
            stage: caveat
            for stage in material.decision.stages
            for caveat in stage.caveats
            if caveat.code == code_of_caveat
        }
        if found:
            caveat = next(iter(found.values()))
            name = f"{caveat.name[0].upper()}{caveat.name[1:]}"
            yield sentences(
                Markdown("**{}** for {}.").fill(name, _stages(material.rows(found))),
                caveat.meaning,
                "These stages are not valid." if caveat.is_invalid else "",
            )


def _held_back(metrics: pd.DataFrame) -> Iterator[Markdown]:
    """The stages whose cap on requests in flight was reached."""
    held = metrics[metrics["held_back"] > 0]
    if len(held):
        n = int(held["held_back"].sum())
        verb = "was" if n == 1 else "were"
        yield Markdown(
            "{} {} held back because max_in_flight was reached, for {}: the wait is part of "
            "their latency."
        ).fill(wording.plural(n, "request"), verb, _stages(held))


def _resent(metrics: pd.DataFrame) -> Iterator[Markdown]:
    """The stages in which requests crossed the server's close of a kept connection."""
    again = metrics[metrics["n_resent"] > 0]
    if len(again):
        n = int(again["n_resent"].sum())
        yield Markdown(
            "{} {} sent again on a new connection, for the server had closed the kept one "
            "unanswered, for {}: what counts from their sending counts from the second one."
        ).fill(wording.plural(n, "measured request"), "was" if n == 1 else "were", _stages(again))


def _doubtful_counts(metrics: pd.DataFrame) -> Iterator[Markdown]:
    """The endpoints whose own token counts are impossible, and what goes by them."""
    doubtful = metrics[metrics["n_doubtful_counts"] > 0]
    names = metrics["experiment_name"]
    if len(doubtful):
        counts = metrics[names.isin(doubtful["experiment_name"])].groupby(names, sort=False)
        yield Markdown(
            "**The endpoint's own token counts cannot be right** for {}: they are of fewer output "
            "tokens than there were chunks that bore some or than were reasoning, of more than "
            "were asked for, or of a prompt without tokens. They "
            "stand as they were told, for they are what is billed: prices and throughput per "
            "token, and TPOT, go by them."
        ).fill(joined(_doubtful_share(name, one) for name, one in counts))


def _is_unstreamed(n_unstreamed: float, n_ok: float) -> bool:
    """Whether so many answers came at one instant that figures between tokens are of the rest.

    A client that stood still for a moment reads a short answer at once, too.
    """
    return bool(n_unstreamed > _FEW_UNSTREAMED * n_ok)


def _unstreamed(metrics: pd.DataFrame) -> Iterator[Markdown]:
    """The candidates whose answers came in one piece, and what is not known of these."""
    names = metrics["experiment_name"]
    sums = metrics.groupby(names, sort=False)[["n_unstreamed", "n_ok"]].sum()
    held_back = [
        Markdown("{} of {} of {}").fill(
            f"{int(n):,}", wording.plural(int(n_ok), "answer"), code(name)
        )
        for name, n, n_ok in sums.itertuples()
        if _is_unstreamed(n, n_ok)
    ]
    if held_back:
        yield Markdown(
            "**Answers came all at once:** {}. A server, or a proxy before it, held them back, so "
            "nothing lies between their tokens: TPOT and ITL are of the others alone, and their "
            "TTFT is the time to the whole answer."
        ).fill(joined(held_back))


def _doubtful_share(name: object, metrics: pd.DataFrame) -> Markdown:
    n, n_ok = int(metrics["n_doubtful_counts"].sum()), int(metrics["n_ok"].sum())
    return Markdown("{} of {} of {}").fill(f"{n:,}", wording.plural(n_ok, "answer"), code(name))


def doubtful_counts(row: Row) -> str:
    """A sentence on a stage whose server told impossible token counts; "" of any other."""
    n = int(row["n_doubtful_counts"])
    if not n:
        return ""
    return (
        f"The endpoint's own token counts cannot be right for {n:,} of "
        f"{wording.plural(int(row['n_ok']), 'answer')} there, and figures per token go by them."
    )


# --- definitions --------------------------------------------------------------------------------


def _definitions(metrics: pd.DataFrame) -> Markdown:
    kinds = set(kinds_of(metrics))
    sent = "Latency runs from the instant a request was sent to its last token, TTFT to its first"
    due = "from the instant at which it was to be sent"
    begins = f"{sent}; in open loop both run {due}" if OPEN in kinds else sent
    if kinds == {OPEN}:
        begins = f"Latency runs {due} to the request's last token, TTFT to its first"
    return Markdown(
        "{}; TPOT is the time per token after the first. Rates count what happened inside the "
        "window. A transaction is one successful request; an hourly price is divided by the rate "
        "that the stage reached."
    ).fill(begins)


def _percentiles() -> Markdown:
    needs = joined(f"{name} {samples_needed(p)}" for name, p in PERCENTILES.items())
    return Markdown(
        "Means are over successful requests. Percentiles are over all of them, a failed one "
        "counting as infinitely slow, and are n/a below the number of requests that carries "
        "them ({}). What stands in brackets after a mean is a within-run 95 % interval: "
        "optimistic, for the requests of one run are not independent."
    ).fill(needs)


# --- prompts and tokens -------------------------------------------------------------------------


def _prompts(material: Material) -> Iterator[Markdown]:
    for workload in material.config.workloads:
        facts = material.workloads[workload.name]
        dropped = [f"{n:,} by {name}" for name, n in facts["rows_dropped"].items() if n]
        salt = _salt(workload.salt, _cached_share(material.requests, workload.name))
        yield Markdown(
            "Dataset {}: {} of {} to {} tokens (mean {}) from {} of {}{}; {} measured with, {} "
            "kept for warm-up and drain. {}"
        ).fill(
            code(workload.name),
            wording.plural(facts["prompts"], "prompt"),
            facts["prompt_tokens_min"],
            facts["prompt_tokens_max"],
            wording.whole(facts["prompt_tokens_mean"]),
            wording.plural(facts["rows_read"], "row"),
            joined(map(code, facts["datasets"])),
            f", dropped: {', '.join(dropped)}" if dropped else "",
            facts["prompts"] - facts["prompts_reserved"],
            facts["prompts_reserved"],
            sentences(salt, *(f"{note}." for note in facts["notes"])),
        )


def _cached_share(requests: pd.DataFrame, workload: str) -> float:
    """The share of a workload's prompt tokens that servers say they took from a cache."""
    told = requests[(requests["workload"] == workload) & (requests["cached_tokens"] > 0)]
    everything = requests.loc[requests["workload"] == workload, "prompt_tokens"].sum()
    return float(told["cached_tokens"].sum() / everything) if len(told) else 0.0


def _salt(salted: bool, cached: float) -> str:
    """Whether a prompt cache could answer, and whether one did by the server's own account."""
    own = "Every sending began with digits of its own"
    if cached > 0:
        sent = f"{own}, yet" if salted else "Prompts are sent as they are, and"
        return f"{sent} {wording.percent(cached)} of the prompt tokens came from a server's cache."
    if salted:
        return f"{own}, so that no prompt cache could answer."
    return "Prompts are sent as they are: a prompt cache may have answered."


def _token_counts(material: Material) -> Markdown:
    labels = dict.fromkeys(
        f"{facts['tokenizer']}{' (approximate)' if facts['approximate'] else ''}"
        for facts in material.workloads.values()
    )
    served = sorted(set(material.metrics["token_source"]) - {"none"})
    whose = {
        "server": "as the server reported them",
        "tokenizer": "counted with that tokenizer",
    }.get("+".join(served), "as the server reported them, or counted with that tokenizer")
    if not served:
        whose = "not known, for nothing was served"
    return Markdown("Prompts were chosen by tokens of {}. The tokens served are {}.").fill(
        joined(labels), whose
    )

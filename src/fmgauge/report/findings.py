"""What a run says, in computed sentences. Knows words and which numbers go into them.

Every sentence is Markdown made from figures; text from configs and errors goes in escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

from fmgauge.config.model import Experiment
from fmgauge.decision import Budget, Recommendation, StageVerdict
from fmgauge.metrics import NO_RECORDS, PER_TOKEN, PERCENTILES
from fmgauge.pricing import Price
from fmgauge.report import wording
from fmgauge.report.escaping import Markdown, code, joined
from fmgauge.report.latency_figures import MOST_POINTS, measured_points
from fmgauge.report.material import Material, Row, cut_off, instance_of, read_material
from fmgauge.report.price_figure import n_budget_lines
from fmgauge.runs import Run
from fmgauge.statistics import samples_needed

if TYPE_CHECKING:
    import pandas as pd

SEE_TABLE = " See table below."
_MOST_NAMED = 4  # experiments that one sentence names
_FEW_REQUESTS = 30
_HELD = 0.95  # of the asked concurrency in flight on average, below which the load was not held
_NO_FIGURES = Markdown("No figures: nothing was measured.")


def answer_sentences(run: Run) -> Markdown:
    """The answer of a run whose metrics and decision exist, as Markdown for a notebook."""
    return answer(read_material(run))


def answer(material: Material) -> Markdown:
    """Which stage to buy, what it gives and costs, and how many stages missed a budget."""
    missed = failed_criteria(material).removesuffix(SEE_TABLE)
    return Markdown("\n\n".join([summary(material), details(material), missed]))


# --- what was measured, and on what -------------------------------------------------------------


def measured(material: Material) -> list[Markdown]:
    """What was measured, where, when and how, and at which prices; one item each."""
    return [_what(material), _where(material), _when(material), _prices(material)]


def _what(material: Material) -> Markdown:
    """The models by what answered for them, then which of them are not real."""
    by_engine: dict[str, list[Markdown]] = {}
    for experiment in material.experiments:
        by_engine.setdefault(_ENGINES[experiment.endpoint.kind], []).append(_model(experiment))
    sentences = [
        Markdown("{} {}.").fill(joined(dict.fromkeys(models)), engine)
        for engine, models in by_engine.items()
    ]
    return Markdown("**What:** " + " ".join([*sentences, *_random_weights(material)]))


_ENGINES = {
    "openai": "behind an OpenAI-compatible server that was already there",
    "llamacpp": "on the embedded llama.cpp engine",
}


def _model(experiment: Experiment) -> Markdown:
    """A model's name, with its file where it came from one."""
    model, endpoint = code(experiment.model.name), experiment.endpoint
    if endpoint.kind == "openai" or endpoint.gguf is None:
        return model
    return Markdown("{} (file {})").fill(model, code(PurePath(endpoint.gguf).name))


def _random_weights(material: Material) -> Iterator[Markdown]:
    """One sentence on the models that this package made up, where there are any."""
    made = [
        e for e in material.experiments if e.endpoint.kind == "llamacpp" and not e.endpoint.gguf
    ]
    models = list(dict.fromkeys(code(experiment.model.name) for experiment in made))
    if not models:
        return
    plural = len(models) > 1
    subject = Markdown("The models" if plural else "The model")
    if len(made) < len(material.experiments):
        subject = joined(models)
    yield Markdown("{} {} random weights that fmgauge made: {} real, {} not.").fill(
        subject,
        "have" if plural else "has",
        "their speed is" if plural else "its speed is",
        "their words are" if plural else "its words are",
    )


def _where(material: Material) -> Markdown:
    embedded = {experiment.endpoint.kind == "llamacpp" for experiment in material.experiments}
    subject = "the machine that sent the load" if embedded == {False} else "one machine for both"
    if embedded == {True}:
        subject = "engine and load generator shared one machine"
    machine = material.manifest["machine"]
    return Markdown("**Where:** {}, with {} ({}), {} GiB of memory, {}.").fill(
        subject,
        machine["processor"],
        wording.plural(machine["cores"], "core"),
        machine["memory_gib"],
        machine["system"],
    )


def _when(material: Material) -> Markdown:
    metrics = material.metrics
    n_done = int((metrics["status"] == "ok").sum())
    return Markdown("**When and how:** {}, {} of {}, {}: {}.").fill(
        _dates(material),
        n_done,
        wording.plural(len(metrics), "planned stage"),
        joined(load_shapes(material), "; "),
        _measured_requests(metrics),
    )


def _measured_requests(metrics: pd.DataFrame) -> str:
    n, n_failed = int(metrics["n_requests"].sum()), int(metrics["n_failed"].sum())
    if not n:
        return "no request was measured"
    failed = f"{n_failed:,}" if n_failed else "none"
    return f"{wording.plural(n, 'measured request')}, {failed} of which failed"


def _dates(material: Material) -> str:
    days = sorted({stage.started_at[:10] for stage in material.stages})
    if len(days) < 2:
        return days[0] if days else "no stage was run"
    return f"{days[0]} to {days[-1]}"


def load_shapes(material: Material) -> list[str]:
    """Each different load that the config asks for, in words."""
    loads = [load for experiment in material.experiments for load in experiment.load]
    return [
        f"closed loop with {joined(load.concurrency)} in flight, "
        f"{wording.limit(load.duration_s)} s measured after {wording.limit(load.warmup_s)} s of "
        "warm-up"
        for load in dict.fromkeys(loads)
    ]


def _prices(material: Material) -> Markdown:
    """Every price with its source; the sentence of a source stands once."""
    by_source: dict[Markdown, list[Markdown]] = {}
    for experiment in material.experiments:
        price = material.prices[experiment.name]
        words = by_source.setdefault(_source(price), [])
        words.append(_price_words(experiment, price))
    sentences = (
        Markdown("{} ({}).").fill(joined(dict.fromkeys(words)), source)
        for source, words in by_source.items()
    )
    return Markdown("**Prices:** " + " ".join(sentences))


def _price_words(experiment: Experiment, price: Price) -> Markdown:
    if price.usd_per_hour is None:
        return Markdown("{} at {} per million prompt tokens and {} per million output tokens").fill(
            code(experiment.model.name),
            Markdown(wording.usd_listed(price.usd_per_1m_input or 0)),
            Markdown(wording.usd_listed(price.usd_per_1m_output or 0)),
        )
    count = experiment.instance_count
    each = Markdown("{} at {} an hour").fill(
        code(instance_of(experiment)), Markdown(wording.usd_listed(price.usd_per_hour / count))
    )
    return each if count == 1 else Markdown("{}, times {}").fill(each, count)


def _source(price: Price) -> Markdown:
    if price.as_of is None:
        return Markdown("source: {}, where no date is given").fill(price.source)
    return Markdown("source: {}; as of {}").fill(price.source, price.as_of)


# --- the summary --------------------------------------------------------------------------------


def summary(material: Material) -> Markdown:
    """The answer for the workload of interest in one sentence."""
    recommendation = material.recommendation
    opening = Markdown(
        'We did performance benchmarking for {} on "{}" on {} and based on the test '
    )
    opening = opening.fill(_models(material), _instances(material), _datasets(material))
    workload = code(material.workload)
    if recommendation.chosen is None:
        none = Markdown("{}results no experiment {} for dataset {}. {}")
        lacks = _lacks(recommendation, "meets every budget")
        return none.fill(opening, lacks, workload, recommendation.reason)
    provided = Markdown(
        "{}results the best price performance for dataset {} is provided by the {}."
    )
    return provided.fill(opening, workload, _provider(material, recommendation.chosen))


def _lacks(recommendation: Recommendation, words: str) -> str:
    """`words`, or what is lacking where budgets are met and no price is known."""
    closest = recommendation.closest
    return "can be recommended" if closest and closest.meets_budgets else words


def _models(material: Material) -> Markdown:
    return joined(dict.fromkeys(code(e.model.name) for e in material.experiments))


def _instances(material: Material) -> Markdown:
    return joined(dict.fromkeys(code(instance_of(e)) for e in material.experiments), ", ")


def _datasets(material: Material) -> Markdown:
    names = dataset_names(material)
    if len(material.config.workloads) > 1 or len(names) > 1:
        return Markdown("multiple datasets")
    return Markdown("the dataset {}").fill(joined(map(code, names)))


def dataset_names(material: Material) -> list[str]:
    """The data sets behind all workloads, each once, in the order of use."""
    return list(
        dict.fromkeys(name for facts in material.workloads.values() for name in facts["datasets"])
    )


def _provider(material: Material, stage: StageVerdict) -> Markdown:
    """What to buy: the instance type, and the experiment where the type names several."""
    instance = code(stage.instance_type)
    if not material.shares_instance(stage.instance_type):
        return instance
    return Markdown("{} with experiment {}").fill(instance, code(stage.experiment))


def details(material: Material) -> Markdown:
    """What the answer costs and gives, and how far the next best experiment is."""
    chosen = material.recommendation.chosen
    if chosen is None:
        return closest_sentence(material)
    row = material.row(chosen)
    return Markdown(
        "At a concurrency of {}, over {}, it costs {} per 10,000 transactions, with {} and {} "
        "transactions/minute.{} {} This is one run: how much another would differ, it cannot "
        "tell.{}"
    ).fill(
        chosen.concurrency,
        wording.plural(row["n_requests"], "measured request"),
        _usd(row["usd_per_10k_txn"]),
        _mean_latency(row),
        wording.whole(row["transactions_per_minute"]),
        _few(row["n_requests"]),
        _runner_up(material, chosen),
        _unfinished(material),
    )


def _few(n_requests: int) -> str:
    """What to do about an answer that rests on few requests; nothing where there are enough."""
    if n_requests >= _FEW_REQUESTS:
        return ""
    return " That is few: measure longer before acting on it."


def _unfinished(material: Material) -> str:
    """How many stages an interrupted run still lacks; nothing where all had their turn."""
    metrics = material.metrics
    missing = int((metrics["status"] == NO_RECORDS).sum())
    if not missing:
        return ""
    return f" The run is not finished: {missing} of {len(metrics)} planned stages have no records."


def closest_sentence(material: Material) -> Markdown:
    """Which stage the table beside it shows where none meets the budgets."""
    closest = material.recommendation.closest
    if closest is None:
        return Markdown("There are no figures to show.")
    words = "The table shows the stage that came closest, {} at a concurrency of {}."
    return Markdown(words).fill(code(closest.experiment), closest.concurrency)


def _mean_latency(row: Row) -> str:
    low, high = (float(row.get(f"latency_mean_ci_{end}", math.nan)) for end in ("low", "high"))
    shown = wording.fixed(row["latency_mean"])
    mean = f"a mean latency of {shown} s"
    if not (math.isfinite(low) and math.isfinite(high)):
        return mean
    ends = f"{wording.like(shown, low)} to {wording.like(shown, high)}"
    return f"{mean} (within-run 95 % interval {ends} s)"


def _runner_up(material: Material, chosen: StageVerdict) -> Markdown:
    """The cheapest stage of another experiment within every budget, beside the chosen one."""
    others = [
        stage
        for stage in material.stage_verdicts(material.workload)
        if stage.meets_budgets and stage.experiment != chosen.experiment
    ]
    if len(material.experiments) == 1:
        return Markdown("It is the only experiment of this run.")
    if not others:
        return Markdown("No other experiment was found to meet every budget.")
    second = min(others, key=_price_of)
    if second.price_per_txn is None:
        return Markdown("No other experiment meets every budget at a known price.")
    return Markdown("Next is {} at a concurrency of {}: {} per 10,000, {}. {}").fill(
        code(second.experiment),
        second.concurrency,
        _usd(_price_of(second) * 1e4),
        _how_much_more(_price_of(second), _price_of(chosen)),
        _told_apart(material.row(chosen), material.row(second)),
    )


def _told_apart(cheapest: Row, second: Row) -> str:
    """Whether the two prices' intervals lie apart; neither can be said without intervals."""
    high = float(cheapest.get("price_per_txn_ci_high", math.nan))
    low = float(second.get("price_per_txn_ci_low", math.nan))
    if not (math.isfinite(high) and math.isfinite(low)):
        return "One of the two prices has no interval, so whether they differ cannot be said."
    if high < low:
        return "Their within-run intervals lie apart."
    return "Their within-run intervals overlap: this run does not tell the two apart."


def _how_much_more(price: float, base: float) -> str:
    if wording.usd(price) == wording.usd(base):
        return "the same price"
    return f"{wording.percent(price / base - 1)} more"


def _price_of(stage: StageVerdict) -> float:
    return math.inf if stage.price_per_txn is None else stage.price_per_txn


def failed_criteria(material: Material) -> Markdown:
    """How many stages failed a criterion, and which criteria there are."""
    missed = [stage for stage in material.decision.stages if not stage.meets_budgets]
    run = [stage for stage in missed if material.row(stage)["status"] == "ok"]
    failed = [s for s in run if any(check.verdict == "FAIL" for check in s.checks)]
    total = Markdown(
        "There were a total of {} experiment run(s) that failed at least one configured "
        "performance criteria: {}."
    ).fill(len(failed), joined(map(_criterion, material.decision.budgets), ", "))
    notes = "".join(_notes_on_failed(material.metrics, len(run) - len(failed)))
    return Markdown(total + notes + (SEE_TABLE if missed else ""))


def _notes_on_failed(metrics: pd.DataFrame, n_undecided: int) -> Iterator[str]:
    """The stages that neither failed a criterion nor met them all, by what kept them from it."""
    n_without_records = int((metrics["status"] == NO_RECORDS).sum())
    n_not_run = int((metrics["status"] != "ok").sum()) - n_without_records
    if n_undecided:
        yield f" For {n_undecided} more, what was measured does not decide a criterion."
    if n_not_run:
        yield f" {n_not_run} more could not be run."
    if n_without_records:
        yield f" {n_without_records} more have no records."


def _criterion(budget: Budget) -> Markdown:
    limit = wording.limit(budget.limit)
    if budget.unit == "s":
        return Markdown("{} < {}").fill(code(budget.label), code(f"{limit}s"))
    return Markdown("{}: {}").fill(
        code(budget.label), code(f"${limit}" if budget.unit == "usd" else limit)
    )


def costs(material: Material) -> Markdown:
    """What all experiments cost together."""
    return Markdown(
        "The cost to run each experiment is provided in the table below. The total cost for "
        "running all experiments is {}."
    ).fill(Markdown(wording.usd_total(float(material.costs["cost"].sum()))))


# --- per instance -------------------------------------------------------------------------------


def datasets_sentence(material: Material) -> Markdown:
    """What the next table is about, and from which data sets the prompts came."""
    return Markdown(
        "The following table provides the best combinations for running inference for different "
        "sizes prompts on different instance types. The following dataset(s) were used for this "
        "test: {}."
    ).fill(joined(map(code, dataset_names(material)), ", "))


def recommendation_sentence(material: Material, recommendation: Recommendation) -> Markdown:
    """The best option for one workload on one instance type, or that there is none."""
    payload = code(f"payload_{recommendation.workload}.jsonl")
    place = _place(recommendation.instance_type or "")
    if recommendation.chosen is None:
        none = "No option {} {} for the {} dataset. {}"
        lacks = _lacks(recommendation, "stays within every budget")
        return Markdown(none).fill(place, lacks, payload, recommendation.reason)
    return Markdown("{} {}").fill(
        _best_option(material, recommendation.chosen, place, payload),
        _achieved(material.row(recommendation.chosen)),
    )


def _best_option(
    material: Material, stage: StageVerdict, place: Markdown, payload: Markdown
) -> Markdown:
    level = code(f"concurrency level of {stage.concurrency}")
    option = Markdown("a {}").fill(level)
    if material.shares_instance(stage.instance_type):
        option = Markdown("{} at a {}").fill(code(stage.experiment), level)
    return Markdown("The best option for staying within {} {} for the {} dataset is {}.").fill(
        joined(map(_asked, material.decision.budgets)), place, payload, option
    )


def _place(instance_type: str) -> Markdown:
    if instance_type == PER_TOKEN:
        return Markdown("at a price per token")
    return Markdown("on a {}").fill(code(instance_type))


def _asked(budget: Budget) -> Markdown:
    """A budget in words: a latency budget of 5 seconds."""
    if budget.unit == "s":
        limit = code(wording.seconds(budget.limit))
        return Markdown("a {} budget of {}").fill(_spoken(budget.label), limit)
    if budget.unit == "usd":
        limit = code(f"${wording.limit(budget.limit)}")
        return Markdown("a cost budget of {} per 10k transactions").fill(limit)
    return Markdown("an {} budget of {}").fill(budget.label, code(wording.percent(budget.limit)))


def _spoken(label: str) -> str:
    """A budget's label within a sentence: Latency p95 is latency p95, TTFT stays."""
    return label[0].lower() + label[1:] if label[1:2].islower() else label


def _achieved(row: Row) -> Markdown:
    return Markdown("A concurrency level of {} achieves an {}, for an {} and {} with {}.").fill(
        row["concurrency"],
        code(f"average latency of {wording.short(row['latency_mean'])} seconds"),
        code(f"average prompt size of {wording.whole(row['prompt_token_count_mean'])} tokens"),
        code(f"completion size of {wording.whole(row['completion_token_count_mean'])} tokens"),
        code(f"{wording.whole(row['transactions_per_minute'])} transactions/minute"),
    )


# --- how to read the pictures -------------------------------------------------------------------


def readings(material: Material) -> dict[str, Markdown]:
    """How to read each picture and what it shows, by the picture's file name without its end."""
    return {
        "business_summary": _read_prices(material),
        "error_rates": _read_failures(material.metrics),
        "tokens_vs_latency": _read_points(material),
        "concurrency_vs_inference_latency": _read_growth(material),
    }


def _has_figures(material: Material) -> bool:
    """Whether a request of the summary's workload was measured."""
    metrics = material.metrics
    return bool(metrics.loc[metrics["workload"] == material.workload, "n_requests"].sum())


def _read_prices(material: Material) -> Markdown:
    if not _has_figures(material):
        return _NO_FIGURES
    lines = ("", "The dashed line is a budget. ", "Dashed lines are budgets. ")
    return Markdown(
        "*How to read it.* {} {}A black line at a bar's end is a within-run 95 % interval."
    ).fill(
        "Each row is a load level of the only candidate."
        if len(material.experiments) == 1
        else "Each row is a candidate at its cheapest load level within every budget, or where "
        "there is none, at the one that misses fewest budgets.",
        Markdown(lines[min(2, n_budget_lines(material))]),
    )


def _read_failures(metrics: pd.DataFrame) -> Markdown:
    n, n_failed = int(metrics["n_requests"].sum()), int(metrics["n_failed"].sum())
    if not n:
        return _NO_FIGURES
    return Markdown(
        "*How to read it.* Each field is a stage, with the failed share of its measured "
        "requests. A latency beside failures tells only of the requests that survived. "
        "Of {}, {} failed."
    ).fill(wording.plural(n, "measured request"), f"{n_failed:,}")


def _read_points(material: Material) -> Markdown:
    n = len(measured_points(material.requests))
    if not n:
        is_measured = bool(material.metrics["n_requests"].sum())
        return Markdown("No figures: no request succeeded.") if is_measured else _NO_FIGURES
    drawn = f"Of {n:,}, {MOST_POINTS:,} are drawn, chosen by a seeded draw."
    return Markdown(
        "*How to read it.* Each point is a measured request that succeeded. Latency that rises "
        "with the prompt's tokens is time spent reading the prompt; latency that rises with "
        "the requests in flight is time spent waiting or sharing. {}"
    ).fill(drawn if n > MOST_POINTS else f"All {n:,} are drawn.")


def _read_growth(material: Material) -> Markdown:
    if not _has_figures(material):
        return _NO_FIGURES
    return Markdown(
        "*How to read it.* A line that stays flat has capacity to spare; where latency grows "
        "in proportion to concurrency, requests wait for each other. Error bars are within-run "
        "95 % intervals, a cross is a stage of which no latency came. {}"
    ).fill(_growth(material))


def _growth(material: Material) -> Markdown:
    """How much mean latency grew from the lowest load to the highest, for a few experiments."""
    rows = material.metrics[material.metrics["workload"] == material.workload]
    rows = rows[rows["latency_mean"].notna()].sort_values("concurrency")
    grown = [
        Markdown("for {} it is {} times as high at {} as at {}").fill(
            code(name),
            wording.short(one["latency_mean"].iloc[-1] / one["latency_mean"].iloc[0]),
            one["concurrency"].iloc[-1],
            one["concurrency"].iloc[0],
        )
        for name, one in rows.groupby("experiment_name", sort=False)
        if len(one) > 1
    ]
    if not grown:
        return Markdown("")
    few = grown[:_MOST_NAMED]
    more = "" if len(few) == len(grown) else f" ({len(grown) - len(few)} more in the table below)"
    return Markdown("Here, {}{}.").fill(joined(few), more)


# --- how it was measured ------------------------------------------------------------------------


def how_measured(material: Material) -> list[Markdown]:
    """How the figures came about, one item each."""
    return [
        _window(material),
        _definitions(),
        _percentiles(),
        *_prompts(material),
        _token_counts(material),
    ]


def _window(material: Material) -> Markdown:
    phases = material.requests["phase"].value_counts()
    counts = [f"{phases.get(phase, 0):,}" for phase in ("warmup", "measured", "drain")]
    n_cut_off = int(cut_off(material.requests).sum())
    ended = f"; {n_cut_off:,} of the drain requests were cut off when their stage ended"
    return Markdown(
        "Each stage is a closed loop: as soon as one answer ends, the next request starts. Load "
        "runs before, through and after a fixed window; {} warm-up, {} measured and {} drain "
        "requests were sent{}. {}{}"
    ).fill(
        *counts,
        ended if n_cut_off else "",
        _kept_in_flight(material.metrics),
        _load_not_held(material.metrics),
    )


def _kept_in_flight(metrics: pd.DataFrame) -> str:
    kept = (metrics["mean_in_flight"] / metrics["concurrency"]).dropna()
    if kept.empty:
        return "No window was measured."
    low, high = wording.percent(kept.min()), wording.percent(kept.max())
    span = low if low == high else f"{low} to {high}"
    return f"Over the windows, {span} of the asked number were in flight on average."


def _load_not_held(metrics: pd.DataFrame) -> Markdown:
    """The stages in which clearly less was in flight than asked; nothing where there are none."""
    slack = metrics[metrics["mean_in_flight"] < _HELD * metrics["concurrency"]]
    if slack.empty:
        return Markdown("")
    stages = [
        Markdown("{} on {} at a concurrency of {}").fill(
            code(name), code(workload), joined(one["concurrency"])
        )
        for (name, workload), one in slack.groupby(["experiment_name", "workload"], sort=False)
    ]
    return Markdown(
        " Less than {} of it was in flight for {}: there the client or the endpoint's connections "
        "did not keep the load up, and the figures are those of a lower load."
    ).fill(wording.percent(_HELD), joined(stages, "; and "))


def _definitions() -> Markdown:
    return Markdown(
        "Latency runs from the instant a request was sent to its last token, TTFT to its first; "
        "TPOT is the time per token after the first. Rates count what happened inside the window. "
        "A transaction is one successful request; an hourly price is divided by the rate that the "
        "stage reached."
    )


def _percentiles() -> Markdown:
    needs = joined(f"{name} {samples_needed(p)}" for name, p in PERCENTILES.items())
    return Markdown(
        "Means are over successful requests. Percentiles are over all of them, a failed one "
        "counting as infinitely slow, and are n/a below the number of requests that carries "
        "them ({}). What stands in brackets after a mean is a within-run 95 % interval: "
        "optimistic, for the requests of one run are not independent."
    ).fill(needs)


def _prompts(material: Material) -> Iterator[Markdown]:
    for workload in material.config.workloads:
        facts = material.workloads[workload.name]
        dropped = [f"{n:,} by {name}" for name, n in facts["rows_dropped"].items() if n]
        notes = "".join(f" {note}." for note in facts["notes"])
        yield Markdown(
            "Dataset {}: {} of {} to {} tokens (mean {}) from {} of {}{}; {} kept for warm-up "
            "and drain. {}{}"
        ).fill(
            code(workload.name),
            wording.plural(facts["prompts"], "prompt"),
            facts["prompt_tokens_min"],
            facts["prompt_tokens_max"],
            wording.whole(facts["prompt_tokens_mean"]),
            wording.plural(facts["rows_read"], "row"),
            joined(map(code, facts["datasets"])),
            f", dropped: {', '.join(dropped)}" if dropped else "",
            facts["prompts_reserved"],
            _salt(workload.salt, _cached_share(material.requests, workload.name)),
            notes,
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


def _usd(value: float) -> Markdown:
    """A price of ours, whose dollar sign needs no escape."""
    return Markdown(wording.usd(float(value)))

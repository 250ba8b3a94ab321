"""What a run says, in computed sentences. Knows words and which numbers go into them.

Every sentence is Markdown made from figures; text from configs and errors goes in escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fmgauge.config.model import Experiment
from fmgauge.decision import (
    Budget,
    Recommendation,
    StageVerdict,
    edge_caveat,
    left_out_sentence,
    next_edge_caveat,
    standing,
)
from fmgauge.endpoints import kind_of
from fmgauge.metrics import NO_RECORDS, PER_TOKEN
from fmgauge.pricing import Price
from fmgauge.report import wording
from fmgauge.report.escaping import Markdown, code, escaped, joined, sentences
from fmgauge.report.latency_figures import MOST_POINTS, measured_points
from fmgauge.report.load_levels import (
    CLOSED,
    LINE,
    OPEN,
    is_concurrency_only,
    kinds_of,
    with_levels,
)
from fmgauge.report.material import Material, Row, instance_of, read_material
from fmgauge.report.method import doubtful_counts, load_shapes
from fmgauge.report.price_figure import n_budget_lines
from fmgauge.runs import Run

if TYPE_CHECKING:
    import pandas as pd

SEE_TABLE = " See table below."
_MOST_NAMED = 4  # experiments that one sentence names
_FEW_REQUESTS = 30
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
    return [
        *(_what(material), _where(material), _when(material), _prices(material)),
        _budgets(material),
    ]


def _what(material: Material) -> Markdown:
    """The models by what answered for them, then which of them are not real."""
    by_engine: dict[str, list[Markdown]] = {}
    for experiment in material.experiments:
        answered_by = kind_of(experiment.endpoint).answered_by
        by_engine.setdefault(answered_by, []).append(_model(experiment))
    sentences = [
        Markdown("{} {}.").fill(joined(dict.fromkeys(models)), engine)
        for engine, models in by_engine.items()
    ]
    caveats = (*_random_weights(material), *_simulated(material))
    return Markdown("**What:** " + " ".join([*sentences, *caveats]))


def _model(experiment: Experiment) -> Markdown:
    """A model's name, with its file where it came from one."""
    model = code(experiment.model.name)
    file = kind_of(experiment.endpoint).model_file(experiment.endpoint)
    return Markdown("{} (file {})").fill(model, code(file.name)) if file else model


def _random_weights(material: Material) -> Iterator[Markdown]:
    """One sentence on the models that this package made up, where there are any."""
    made = [e for e in material.experiments if kind_of(e.endpoint).has_random_weights(e.endpoint)]
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


def _simulated(material: Material) -> Iterator[Markdown]:
    """One sentence on the experiments behind which no model ran, where there are any."""
    names = [code(e.name) for e in material.experiments if kind_of(e.endpoint).is_simulated]
    if names:
        which = joined(names) if len(names) < len(material.experiments) else "every experiment"
        yield Markdown(
            "**Simulated:** in {} no model ran; a timing model set when each token was sent, so "
            "the figures are of an imitation, not of real hardware."
        ).fill(which)


def _where(material: Material) -> Markdown:
    embedded = {kind_of(experiment.endpoint).is_local for experiment in material.experiments}
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
        Markdown("; ".join(map(escaped, load_shapes(material)))),
        _measured_requests(metrics),
    )


def _measured_requests(metrics: pd.DataFrame) -> str:
    n, n_failed = int(metrics["n_requests"].sum()), int(metrics["n_failed"].sum())
    if not n:
        return "no request was measured"
    failed = f"{n_failed:,}" if n_failed else "none"
    return f"{wording.plural(n, 'measured request')}, {failed} of which failed"


def simulated_sentence(run: Run) -> str:
    """That a run's figures are an imitation's, for a terminal; "" where every endpoint is real."""
    names = [e.name for e in run.config.experiments if kind_of(e.endpoint).is_simulated]
    if not names:
        return ""
    if len(names) == len(run.config.experiments):
        return "SIMULATED: every endpoint is a timing model, so no figure above is of real hardware"
    return f"SIMULATED: {', '.join(names)}: timing models, whose figures are not of real hardware"


def _dates(material: Material) -> str:
    days = sorted({stage.started_at[:10] for stage in material.stages})
    if len(days) < 2:
        return days[0] if days else "no stage was run"
    return f"{days[0]} to {days[-1]}"


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


def _budgets(material: Material) -> Markdown:
    """Every limit with its operator and unit."""
    return Markdown("**Budgets:** {}.").fill(joined(map(_limit, material.decision.budgets)))


def _limit(budget: Budget) -> Markdown:
    limit = wording.limit(budget.limit)
    if budget.unit == "s":
        mean = " mean" if budget.metric.endswith("_mean") else ""
        return Markdown("{} ≤ {} s").fill(f"{_spoken(budget.label)}{mean}", limit)
    shown = Markdown(f"${limit}") if budget.unit == "usd" else wording.percent(budget.limit)
    return Markdown("{} ≤ {}").fill(budget.label, shown)


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
        lacks = _lacks(material, recommendation, "meets every budget")
        return none.fill(opening, lacks, workload, recommendation.reason)
    provided = Markdown(
        "{}results the best price performance for dataset {} is provided by the {}."
    )
    return provided.fill(opening, workload, _provider(material, recommendation.chosen))


def _lacks(material: Material, recommendation: Recommendation, words: str) -> str:
    """`words`, or what is lacking where a stage meets every budget and cannot be chosen."""
    met = any(stage.meets_budgets for stage in _of_instance(material, recommendation))
    return "can be recommended" if met else words


def _of_instance(material: Material, recommendation: Recommendation) -> list[StageVerdict]:
    """The stages among which a recommendation chose."""
    stages, kind = material.stage_verdicts(recommendation.workload), recommendation.instance_type
    return [stage for stage in stages if kind in (None, stage.instance_type)]


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
    answer = Markdown(
        "At {}, over {}, it costs {} per 10,000 transactions, with {} and {} transactions/minute."
    ).fill(
        chosen.label,
        wording.plural(row["n_requests"], "measured request"),
        _usd(row["usd_per_10k_txn"]),
        _mean_latency(row),
        wording.whole(row["transactions_per_minute"]),
    )
    return sentences(
        answer,
        _few(row["n_requests"]),
        edge_caveat(chosen, material.stage_verdicts(material.workload)),
        *(caveat.long for caveat in chosen.caveats),
        _caveats(material, chosen),
        left_out_sentence(chosen, material.stage_verdicts(material.workload)),
        _runner_up(material, chosen),
        _ramps(material),
        "This is one run: how much another would differ, it cannot tell.",
        _unfinished(material),
    )


def _few(n_requests: int) -> str:
    """What to do about an answer that rests on few requests; nothing where there are enough."""
    if n_requests >= _FEW_REQUESTS:
        return ""
    return "That is few: measure longer before acting on it."


def _caveats(material: Material, stage: StageVerdict) -> Markdown:
    """What else keeps the answer's figures from being the endpoint's own; nothing as a rule."""
    row = material.row(stage)
    simulated = kind_of(material.config.experiment(stage.experiment).endpoint).is_simulated
    held = f"max_in_flight held {wording.plural(row['held_back'], 'request')} back there."
    return sentences(
        "These figures are simulated." if simulated else "",
        held if row["held_back"] else "",
        doubtful_counts(row),
    )


def _unfinished(material: Material) -> str:
    """How many stages an interrupted run still lacks; nothing where all had their turn."""
    metrics = material.metrics
    missing = int((metrics["status"] == NO_RECORDS).sum())
    if not missing:
        return ""
    return f"The run is not finished: {missing} of {len(metrics)} planned stages have no records."


def closest_sentence(material: Material) -> Markdown:
    """Which stage the table beside it shows where none meets the budgets."""
    closest = material.recommendation.closest
    if closest is None:
        return Markdown("There are no figures to show.")
    words = Markdown("The table shows the stage that came closest, {} at {}.")
    shown = words.fill(code(closest.experiment), closest.label)
    return sentences(shown, _caveats(material, closest))


def _mean_latency(row: Row) -> str:
    low, high = (float(row.get(f"latency_mean_ci_{end}", math.nan)) for end in ("low", "high"))
    shown = wording.fixed(row["latency_mean"])
    mean = f"a mean latency of {shown} s"
    if not (math.isfinite(low) and math.isfinite(high)):
        return mean
    ends = f"{wording.like(shown, low)} to {wording.like(shown, high)}"
    return f"{mean} (within-run 95 % interval {ends} s)"


def _runner_up(material: Material, chosen: StageVerdict) -> Markdown:
    """The cheapest valid stage of another experiment within every budget, and its price."""
    others = [
        stage
        for stage in material.stage_verdicts(material.workload)
        if stage.meets_budgets and stage.experiment != chosen.experiment and not stage.is_ramp
    ]
    if len(material.experiments) == 1:
        return Markdown("It is the only experiment of this run.")
    if not others:
        return Markdown("No other experiment was found to meet every budget.")
    second = min(others, key=standing)
    if not second.is_valid:
        return Markdown("No other experiment has a valid stage that meets every budget.")
    if second.price_per_txn is None:
        return Markdown("No other experiment meets every budget at a known price.")
    next_best = Markdown("Next is {} at {}: {} per 10,000, {}.").fill(
        code(second.experiment),
        second.label,
        _usd(_price_of(second) * 1e4),
        _how_much_more(_price_of(second), _price_of(chosen)),
    )
    apart = _told_apart(material.row(chosen), material.row(second))
    return sentences(
        next_best, apart, next_edge_caveat(second, material.stage_verdicts(material.workload))
    )


def _ramps(material: Material) -> str:
    """That ramps did not compete; nothing where there are none."""
    stages = material.stage_verdicts(material.workload)
    n = sum(stage.is_ramp for stage in stages)
    if not n:
        return ""
    levels = {stage.experiment for stage in stages if not stage.is_ramp}
    only = dict.fromkeys(s.experiment for s in stages if s.experiment not in levels)
    nothing_else = f" {joined(only)} had nothing else." if only else ""
    verb = "was" if n == 1 else "were"
    return f"{wording.plural(n, 'ramp')} {verb} not considered: a ramp's load is no one level." + (
        nothing_else
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
    criteria = joined(map(_criterion, material.decision.budgets), ", ")
    total = Markdown(
        "There were a total of {} experiment run(s) that failed at least one configured "
        "performance criteria: {}."
    ).fill(len(failed), criteria)
    if not failed:
        total = Markdown("No experiment run failed a configured performance criterion: {}.")
        total = total.fill(criteria)
    n_invalid = sum(s.meets_budgets and not s.is_valid for s in material.decision.stages)
    notes = "".join(_notes_on_failed(material.metrics, len(run) - len(failed), n_invalid))
    return Markdown(total + notes + (SEE_TABLE if missed else ""))


def _notes_on_failed(metrics: pd.DataFrame, n_undecided: int, n_invalid: int) -> Iterator[str]:
    """The stages that neither failed a criterion nor met them all, by what kept them from it."""
    n_without_records = int((metrics["status"] == NO_RECORDS).sum())
    n_not_run = int((metrics["status"] != "ok").sum()) - n_without_records
    if n_undecided:
        yield f" For {n_undecided} more, what was measured does not decide a criterion."
    if n_invalid:
        verbs = "meets every budget and is" if n_invalid == 1 else "meet every budget and are"
        yield f" {wording.plural(n_invalid, 'stage')} {verbs} not valid."
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
    total = Markdown(
        "The cost to run each experiment is provided in the table below. The total cost for "
        "running all experiments is {}."
    ).fill(Markdown(wording.usd_total(float(material.costs["cost"].sum()))))
    return sentences(total, _not_billed(material))


def _not_billed(material: Material) -> Markdown:
    """Which of the costs nobody has to pay, and what they imitate; nothing where all is real."""
    imitated = [e for e in material.experiments if kind_of(e.endpoint).is_simulated]
    if not imitated:
        return Markdown("")
    names = [experiment.name for experiment in imitated]
    usd = material.costs.loc[material.costs["experiment_name"].isin(names), "cost"].sum()
    partly = Markdown("Of that, {} was not billed: {} {} simulated").fill(
        Markdown(wording.usd_total(float(usd))),
        joined(map(code, names)),
        "is" if len(names) == 1 else "are",
    )
    wholly = Markdown("Nothing of it was billed: every endpoint is simulated")
    used = dict.fromkeys("time under load" if e.instance_type else "tokens" for e in imitated)
    return Markdown("{}, and the cost is what the same {} would cost on {}.").fill(
        wholly if len(imitated) == len(material.experiments) else partly,
        joined(used),
        joined(dict.fromkeys(code(e.instance_type or e.model.name) for e in imitated)),
    )


# --- per instance -------------------------------------------------------------------------------


def datasets_sentence(material: Material) -> Markdown:
    """What the next table is about, and from which data sets the prompts came."""
    used = joined(map(code, dataset_names(material)), ", ")
    if len(material.decision.per_instance) == 1:
        return Markdown(
            "The following table provides the best load level of the only dataset on the only "
            "instance type. The following dataset(s) were used for this test: {}."
        ).fill(used)
    return Markdown(
        "The following table provides the best combinations for running inference for different "
        "sizes prompts on different instance types. The following dataset(s) were used for this "
        "test: {}."
    ).fill(used)


def comparison_sentence(material: Material) -> str:
    """What the picture of prices compares."""
    if len(material.experiments) == 1:
        return "Price and performance at each load level are presented below:"
    if len({instance_of(experiment) for experiment in material.experiments}) == 1:
        return "The price performance comparison of the candidates is presented below:"
    return "The price performance comparison for different instance types is presented below:"


def recommendation_sentence(material: Material, recommendation: Recommendation) -> Markdown:
    """The best option for one workload on one instance type, or that there is none."""
    payload = code(f"payload_{recommendation.workload}.jsonl")
    place = _place(recommendation.instance_type or "")
    if recommendation.chosen is None:
        none = "No option {} {} for the {} dataset. {}"
        lacks = _lacks(material, recommendation, "stays within every budget")
        return Markdown(none).fill(place, lacks, payload, recommendation.reason)
    chosen = recommendation.chosen
    return sentences(
        _best_option(material, chosen, place, payload),
        _achieved(material.row(chosen), _level(chosen)),
        *(caveat.long for caveat in chosen.caveats),
        left_out_sentence(chosen, _of_instance(material, recommendation)),
        doubtful_counts(material.row(chosen)),
    )


def _best_option(
    material: Material, stage: StageVerdict, place: Markdown, payload: Markdown
) -> Markdown:
    level = code(_level(stage))
    option = Markdown("a {}").fill(level)
    if material.shares_instance(stage.instance_type):
        option = Markdown("{} at a {}").fill(code(stage.experiment), level)
    return Markdown("The best option for staying within {} {} for the {} dataset is {}.").fill(
        joined(map(_asked, material.decision.budgets)), place, payload, option
    )


def _level(stage: StageVerdict) -> str:
    """A load level in the seed's words, or in like ones where it is a rate."""
    if stage.concurrency is None or stage.think_time_s:
        return f"load of {stage.label}"
    return f"concurrency level of {stage.concurrency}"


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


def _achieved(row: Row, level: str) -> Markdown:
    return Markdown("A {} achieves an {}, for an {} and {} with {}.").fill(
        level,
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
        else "Each row is a candidate at its cheapest valid load level within every budget, or "
        "where there is none, at the one that misses fewest budgets.",
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
    load = "requests in flight" if is_concurrency_only(material.metrics) else "load"
    drawn = f"Of {n:,}, {MOST_POINTS:,} are drawn, chosen by a seeded draw."
    return Markdown(
        "*How to read it.* Each point is a measured request that succeeded. Latency that rises "
        "with the prompt's tokens is time spent reading the prompt; latency that rises with "
        "the {} is time spent waiting or sharing. {}"
    ).fill(load, drawn if n > MOST_POINTS else f"All {n:,} are drawn.")


_GROWTH = {
    CLOSED: "where latency grows in proportion to concurrency, requests wait for each other",
    OPEN: "where latency shoots up between two request rates, the endpoint cannot keep up with "
    "the higher one",
}


def _read_growth(material: Material) -> Markdown:
    if not _has_figures(material):
        return _NO_FIGURES
    metrics = material.metrics
    kinds = kinds_of(metrics[metrics["workload"] == material.workload])
    return Markdown(
        "*How to read it.* A line that stays flat has capacity to spare; {}. Error bars are "
        "within-run 95 % intervals, a cross is a stage of which no latency came. {}"
    ).fill("; ".join(_GROWTH[kind] for kind in kinds), _growth(material))


def _growth(material: Material) -> Markdown:
    """How much mean latency grew from the lowest load to the highest, for a few experiments."""
    rows = with_levels(material.metrics[material.metrics["workload"] == material.workload])
    lines = rows[rows["latency_mean"].notna()].groupby(LINE, sort=False)
    grown = [
        Markdown("for {} it is {} times as high at {} as at {}").fill(
            code(key[0]),
            wording.short(one["latency_mean"].iloc[-1] / one["latency_mean"].iloc[0]),
            one["label"].iloc[-1],
            one["label"].iloc[0],
        )
        for key, one in lines
        if len(one) > 1
    ]
    if not grown:
        return Markdown("")
    few, left_out = grown[:_MOST_NAMED], len(grown[_MOST_NAMED:])
    if not left_out:
        return Markdown("Here, {}.").fill(joined(few))
    return Markdown("Here, {} ({} more in the table below).").fill(joined(few), left_out)


def _usd(value: float) -> Markdown:
    """A price of ours, whose dollar sign needs no escape."""
    return Markdown(wording.usd(float(value)))

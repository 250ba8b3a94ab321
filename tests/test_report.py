"""The report: its sections, sentences and tables against the frames; hostile text; pictures."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import math
import re
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from fmgauge.config import planned_stages
from fmgauge.config.model import Budgets
from fmgauge.decision import decide, write_decision
from fmgauge.metrics import compute_metrics, read_metrics, write_metrics
from fmgauge.records import (
    ClientUse,
    Endpoint,
    Payload,
    RequestRecord,
    StageInfo,
    read_json,
    read_stage,
    stage_folders,
    write_endpoints,
    write_json,
    write_stage,
)
from fmgauge.report import Material, answer_sentences, build_report, read_material, wording
from fmgauge.report.drawing import short_names
from fmgauge.report.error_figure import error_rates
from fmgauge.report.escaping import code, escaped, one_line, table
from fmgauge.report.figures import pictures
from fmgauge.report.findings import readings
from fmgauge.report.html import report_html
from fmgauge.report.latency_figures import (
    MOST_POINTS,
    concurrency_vs_latency,
    drawn_points,
    tokens_vs_latency,
)
from fmgauge.report.markdown import report_markdown
from fmgauge.report.method import load_shapes
from fmgauge.report.price_figure import business_summary
from fmgauge.runs import Run, open_run
from fmgauge.workloads import PreparedWorkload

WINDOW_S = (1.5, 11.5)
LATE_S = 0.004

CLOSED_LOAD = {"kind": "closed_loop", "concurrency": [1, 2], "duration_s": 10, "warmup_s": 1.5}
OPEN_LOAD = {"kind": "open_loop", "request_rate": [1, 4], "duration_s": 10, "warmup_s": 1.5}
CONSTANT_LOAD = {**OPEN_LOAD, "request_rate": [2], "arrivals": "constant"}
ONE_LEVEL = {**CLOSED_LOAD, "concurrency": [4]}


def config_of(**changes: Any) -> dict[str, Any]:
    """A config of two experiments on one machine and two workloads, with `changes` at its top."""
    load = [{"kind": "closed_loop", "concurrency": [1, 2, 4], "duration_s": 10, "warmup_s": 1.5}]
    workloads = [
        {"name": name, "source": {"kind": "python_docs"}, "max_output_tokens": 32}
        for name in ("en_1-500", "en_500-1000")
    ]
    names = [workload["name"] for workload in workloads]
    experiments = [
        {
            "name": f"llamacpp-{parallel}-slots",
            "model": {"name": "docs-llama"},
            "endpoint": {"kind": "llamacpp", "parallel": parallel},
            "instance_type": "local-cpu",
            "workloads": names,
            "load": load,
        }
        for parallel in (1, 4)
    ]
    budgets = {"latency_s": {"mean": 1.0}, "usd_per_10k_txn": 0.5, "error_rate": 0}
    return {
        "run": {"name": "synthetic", "results_dir": "results"},
        "workloads": workloads,
        "experiments": experiments,
        "budgets": budgets,
        "prices": {"hourly_usd": {"local-cpu": 0.10}},
        "report": {"workload_of_interest": "en_500-1000"},
        **changes,
    }


def loaded_with(*loads: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The config of two experiments, each under these loads, on one workload."""
    config = config_of(report={}, **changes)
    config["workloads"] = config["workloads"][:1]
    config["experiments"] = [
        {**one, "workloads": ["en_1-500"], "load": list(loads)} for one in config["experiments"]
    ]
    return config


def record_of(
    info: StageInfo, number: int, begin_s: float, end_s: float, status: str
) -> RequestRecord:
    """One request of 32 tokens: the first after a fifth of its time, the others evenly spread."""
    ok = status == "ok"
    step_s = (end_s - begin_s) * 0.8 / 31
    first_s = begin_s + (end_s - begin_s) * 0.2
    phase = "measured" if info.window_start_s <= begin_s < info.window_end_s else "warmup"
    return RequestRecord(
        request_id=f"{info.key}-{number}",
        experiment=info.experiment,
        workload=info.workload,
        stage=info.stage,
        replication=0,
        phase="drain" if begin_s >= info.window_end_s else phase,
        payload_id=f"{info.workload}-{number:04d}",
        session_id=None,
        worker=0,
        intended_at_s=begin_s,
        connected_at_s=begin_s,
        sent_at_s=begin_s,
        first_byte_at_s=first_s if ok else None,
        token_at_s=[first_s + step_s * k for k in range(32)] if ok else [],
        chunk_tokens=[1] * 32 if ok else None,
        first_content_at_s=first_s if ok else None,
        finished_at_s=end_s,
        prompt_tokens=300 + 17 * (number % 13) if ok else None,
        max_output_tokens=32,
        output_tokens=32 if ok else None,
        reasoning_tokens=None,
        cached_tokens=None,
        token_source="server",
        status=status,  # type: ignore[arg-type]
        http_status=200 if ok else 500,
        error=None if ok else "the server said | `no` <script>alert(1)</script>",
        finish_reason="length" if ok else None,
        server_latency_s=None,
        connection_reused=False,
        resent=False,
    )


def stage_records(
    info: StageInfo, latency_s: float, status: Callable[[int], str]
) -> list[RequestRecord]:
    """A closed loop whose every slot answers in about `latency_s`, until the window is over."""
    records = []
    for slot in range(info.concurrency):
        begin_s, number = 0.01 * slot, slot
        while begin_s < info.window_end_s + 0.5:
            end_s = begin_s + latency_s * (1 + 0.1 * ((number * 7) % 5 - 2) / 2)
            records.append(record_of(info, number, begin_s, end_s, status(number)))
            begin_s, number = end_s, number + info.concurrency
    return records


def open_records(
    info: StageInfo, latency_s: float, status: Callable[[int], str]
) -> list[RequestRecord]:
    """An open loop of even arrivals, each sent LATE_S after its instant."""
    assert info.request_rate is not None
    dues = [(n + 0.5) / info.request_rate for n in range(int(12 * info.request_rate))]
    sent = [
        record_of(info, n, due + LATE_S, due + LATE_S + latency_s, status(n))
        for n, due in enumerate(dues)
    ]
    return [
        dataclasses.replace(one, intended_at_s=due) for one, due in zip(sent, dues, strict=True)
    ]


def latency_of(experiment: int, workload: int, concurrency: int) -> float:
    """Seconds an answer takes: the second experiment shares better, longer prompts take longer."""
    return 0.15 * (1 + workload) * concurrency ** (0.9 - 0.4 * (experiment % 7))


def build_run(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    latency: Callable[[int, int, int], float | None] = latency_of,
    status: Callable[[str, int, int], str] = lambda experiment, concurrency, number: "ok",
    failed_endpoints: Sequence[str] = (),
    client: ClientUse | None = None,
    held_back: int = 0,
) -> Run:
    """A run's folder as notebooks 1 to 4 leave it; a stage whose latency is None was not run."""
    path = folder / "synthetic.yml"
    path.write_text(json.dumps(config or config_of()))
    run = open_run(path, "synthetic-20261123T120000Z")
    names = [experiment.name for experiment in run.config.experiments]
    workloads = [workload.name for workload in run.config.workloads]
    for planned in planned_stages(run.config):
        key, level = planned.key, planned.concurrency or planned.level
        latency_s = latency(names.index(key.experiment), workloads.index(key.workload), level)
        if latency_s is None or key.experiment in failed_endpoints:
            continue
        is_open = planned.load.kind == "open_loop"
        info = StageInfo(
            *(key.experiment, key.workload, key.stage, planned.load.kind, planned.concurrency),
            *("2026-11-23T12:00:00+00:00", *WINDOW_S, WINDOW_S[1] + 1, 0, 7),
            request_rate=planned.mean_request_rate,
            arrivals=getattr(planned.load, "arrivals", None),
            client=client,
            held_back=held_back if is_open else 0,
        )
        records = (open_records if is_open else stage_records)(
            info, latency_s, lambda n, e=key.experiment, c=level: status(e, c, n)
        )
        write_stage(run.stage_folder(key), info, records)
    write_files(run, failed_endpoints)
    return run


def build_alike(folder: Path, config: Mapping[str, Any]) -> Run:
    """A run whose first candidate was measured, and whose others have the same figures."""
    run = build_run(folder, config, latency=lambda experiment, *_: None if experiment else 2.0)
    names = [experiment.name for experiment in run.config.experiments]
    first = read_metrics(run).query("experiment_name == @names[0]")
    metrics = pd.concat([first.assign(experiment_name=n) for n in names], ignore_index=True)
    write_metrics(run, metrics)
    write_decision(run.decision_path, decide(metrics, run.config))
    return run


def write_files(run: Run, failed_endpoints: Sequence[str]) -> None:
    """Endpoints, the choice of payloads, metrics and decision, by the project's own writers."""
    write_endpoints(
        run.endpoints_path,
        (
            Endpoint(
                *(e.name, e.endpoint.kind, "failed" if e.name in failed_endpoints else "ready"),
                *(None, e.model.name, e.instance_type, e.instance_count, True),
                error="it did | not `start`" if e.name in failed_endpoints else None,
                first_answer_s=None if e.name in failed_endpoints else 0.42,
            )
            for e in run.config.experiments
        ),
    )
    payloads = tuple(
        Payload(f"p{n}", "text", None, 100 + n, 32, reserved=n > 54) for n in range(60)
    )
    prepared = [
        PreparedWorkload(
            w.name, payloads, "the project's own", True, ("python_docs",), 700, {"max_tokens": 640}
        )
        for w in run.config.workloads
    ]
    write_json(run.workloads_path, {one.name: one.summary() for one in prepared})
    metrics = compute_metrics(run)
    write_metrics(run, metrics)
    write_decision(run.decision_path, decide(metrics, run.config))


# --- reading the report back ---------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """A report: the run behind it, what was read of it, its Markdown."""

    run: Run
    material: Material
    markdown: str

    def section(self, title: str) -> str:
        """The text below the heading `title`, up to the next heading."""
        return self.markdown.split(f"\n## {title}\n")[1].split("\n## ")[0]

    def table(self, first_column: str, section: str | None = None) -> list[dict[str, str]]:
        """The rows of the table whose header begins with `first_column`, cells as written."""
        text = self.markdown if section is None else self.section(section)
        lines = text.splitlines()
        start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_column} "))
        rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))
        header, _, *body = [cells_of(row) for row in rows]
        return [dict(zip(header, cells, strict=True)) for cells in body]


def cells_of(row: str) -> list[str]:
    """A table row's cells; an escaped pipe does not end one."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


def told(run: Run) -> Report:
    """The report of `run` in words: no picture is drawn, and nothing written."""
    material = read_material(run)
    return Report(run, material, report_markdown(material))


@dataclass(frozen=True)
class Built:
    """What the build of a report left in its run's folder."""

    run: Run
    markdown: str
    page: str


def built(run: Run) -> Built:
    """Build the report of `run`, pictures too, and read it back."""
    page = build_report(run)
    return Built(run, (run.folder / "report.md").read_text(), page.read_text())


def judged_by(report: Report, budgets: Mapping[str, Any]) -> Report:
    """The report of the same figures, had the config asked for these budgets."""
    config = report.material.config.model_copy(update={"budgets": Budgets(**budgets)})
    decision = decide(read_metrics(report.run), config)
    material = dataclasses.replace(report.material, config=config, decision=decision)
    return Report(report.run, material, report_markdown(material))


def copy_of(run: Run, folder: Path) -> Run:
    """The same run, its files copied below `folder` for a test to change."""
    files = shutil.copytree(run.folder, folder / run.run_id)
    return dataclasses.replace(run, folder=files)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A run in which everything went well and one stage misses the latency budget."""
    return told(build_run(tmp_path_factory.mktemp("usual")))


@pytest.fixture(scope="module")
def usual_built(usual: Report, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same, with its pictures and its page."""
    return built(copy_of(usual.run, tmp_path_factory.mktemp("built")))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two experiments, each with one and with two requests in flight."""
    return told(build_run(tmp_path_factory.mktemp("closed"), loaded_with(CLOSED_LOAD)))


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two experiments, each at one and at four requests a second."""
    return told(build_run(tmp_path_factory.mktemp("paced"), loaded_with(OPEN_LOAD)))


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Four candidates: one good, one with some failures, one all failures, one not run."""
    config = config_of()
    candidate = config["experiments"][0]
    config["experiments"] = [{**candidate, "name": n} for n in ("good", "shaky", "dead", "absent")]

    def status(experiment: str, concurrency: int, number: int) -> str:
        failing = experiment == "dead" or (experiment == "shaky" and number % 11 == 3)
        return "http_error" if failing else "ok"

    folder = tmp_path_factory.mktemp("troubled")
    return told(build_run(folder, config, status=status, failed_endpoints=["absent"]))


def rows_of(run: Run) -> list[dict[str, Any]]:
    """The metrics table's rows, read without the product's reader."""
    return pd.read_parquet(run.folder / "metrics.parquet").to_dict("records")


# --- the seed's report ---------------------------------------------------------------------------

SEED_SECTIONS = ["Summary", "Per instance results", "Plots"]
SEED_PICTURES = [
    "business_summary.png",
    "error_rates.png",
    "tokens_vs_latency.png",
    "concurrency_vs_inference_latency.png",
]


def test_seed_sections_come_first_and_in_order(usual: Report) -> None:
    """The seed's title and sections open the report; what it lacks follows."""
    lines = usual.markdown.splitlines()

    assert lines[0] == "# Results for performance benchmarking"
    assert re.fullmatch(
        r"\*\*Last modified \(UTC\): \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\*\*", lines[2]
    )
    assert [line[3:] for line in lines if line.startswith("## ")] == [
        *SEED_SECTIONS,
        *("All stages", "Failures by kind", "How this was measured", "Machine and versions"),
        "Endpoints",
    ]


def test_pictures_stand_in_the_seed_s_order(usual: Report) -> None:
    """The four pictures are shown under the seed's names and in its order."""
    assert re.findall(r"!\[[^]]+\]\(([^)]+)\)", usual.markdown) == SEED_PICTURES


def test_first_lines_say_what_was_measured(usual: Report) -> None:
    """Model, machine, date, load, requests and prices stand before the summary."""
    opening = usual.markdown.split("## Summary")[0]
    machine = json.loads((usual.run.folder / "manifest.json").read_text())["machine"]
    n = sum(row["n_requests"] for row in rows_of(usual.run))

    assert "`docs-llama` on the embedded llama.cpp engine" in opening
    assert "random weights" in opening
    assert f"({machine['cores']} core" in opening
    assert "2026-11-23, 12 of 12 planned stages" in opening
    assert "in flight, at least 10 s measured after at least 1.5 s of warm-up" in opening
    assert f"{n} measured requests, none of which failed" in opening
    assert "`local-cpu` at $0.10 an hour (source: prices in the config" in opening


def test_summary_names_the_cheapest_within_budgets(usual: Report) -> None:
    """The seed's sentence names the winner, and its experiment where the instance is shared."""
    assert (
        'We did performance benchmarking for `docs-llama` on "`local-cpu`" on multiple datasets '
        "and based on the test results the best price performance for dataset `en_500-1000` is "
        "provided by the `local-cpu` with experiment `llamacpp-4-slots`."
    ) in usual.section("Summary")


@pytest.mark.parametrize(
    ("dearer", "sentence"),
    [(1.02, "this run does not tell the two apart"), (1.5, "Their within-run intervals lie apart")],
)
def test_summary_says_whether_the_next_price_is_really_higher(
    tmp_path: Path, dearer: float, sentence: str
) -> None:
    """Prices 2 % apart lie within each other's intervals; prices 50 % apart do not."""
    run = build_run(
        tmp_path,
        loaded_with(ONE_LEVEL),
        latency=lambda experiment, workload, level: 0.2 * (dearer if experiment else 1),
    )

    assert sentence in told(run).markdown


@pytest.mark.parametrize(
    ("priced", "sentences"),
    [
        ("llamacpp-4-slots", ["No other experiment meets every budget at a known price."]),
        ("neither", ["no experiment can be recommended for", "No option on a `local-cpu` can be"]),
    ],
)
def test_a_stage_of_unknown_price_is_not_said_to_miss_a_budget(
    tmp_path: Path, priced: str, sentences: list[str]
) -> None:
    """Where budgets are met but tokens were not counted, the sentences say what is lacking."""
    run = build_run(tmp_path, loaded_with(ONE_LEVEL, budgets={"latency_s": {"mean": 9}}))
    metrics = read_metrics(run)
    metrics.loc[metrics["experiment_name"] != priced, "price_per_txn"] = math.nan
    write_metrics(run, metrics)
    write_decision(run.decision_path, decide(metrics, run.config))

    markdown = told(run).markdown

    assert all(sentence in markdown for sentence in sentences)


def test_information_table_holds_the_winner_s_metrics(usual: Report) -> None:
    """Every row of Information and Value is the winner's figure in metrics.parquet."""
    shown = {row["Information"]: row["Value"] for row in usual.table("Information")}
    best = min(
        (r for r in rows_of(usual.run) if r["workload"] == "en_500-1000" and r["latency_mean"] < 1),
        key=lambda row: row["price_per_txn"],
    )

    assert list(shown) == [*list(best)[:3], *list(best)[4:16]]
    for name in ("experiment_name", "payload_file", "instance_type", "concurrency"):
        assert shown[name] == str(best[name])
    for name in ("latency_mean", "latency_p50", "price_per_txn", "transactions_per_minute"):
        assert float(shown[name]) == pytest.approx(best[name], rel=0.006)
    assert shown["latency_p95"] == "n/a (needs ≥ 72)"
    assert shown["latency_p99"] == "n/a (needs ≥ 368)"


def test_failed_criteria_table_is_coloured_by_budget(usual: Report) -> None:
    """Exactly the stages beyond a budget are listed: green within it, bold red beyond."""
    missed = [row for row in rows_of(usual.run) if row["latency_mean"] > 1]
    rows = usual.table("experiment_name | payload_file", "Summary")
    sentence = (
        f"There were a total of {len(missed)} experiment run(s) that failed at least one "
        "configured performance criteria: `Latency` < `1s`, `cost per 10k transactions`: `$0.5`, "
        "`error rate`: `0`. See table below."
    )

    assert sentence in usual.markdown
    assert [(row["experiment_name"], row["payload_file"]) for row in rows] == [
        (row["experiment_name"], row["payload_file"]) for row in missed
    ]
    for row, metrics in zip(rows, missed, strict=True):
        latency = f"<span style='color:red'>**{metrics['latency_mean']:.2f}**</span>"
        price = f"<span style='color:green'>{metrics['usd_per_10k_txn']:.4f}</span>"
        assert row["error_rate_text"] == "<span style='color:green'>0.00</span>"
        assert row["latency_mean_text"] == latency
        assert row["price_per_10k_txn_text"] == price


def test_costs_are_the_time_under_load(usual: Report) -> None:
    """Each experiment's cost is its stages' time at the hourly price; the total is their sum."""
    rows = usual.table("experiment_name | instance_type", "Summary")
    stage_s = 12.5  # as the stages' own files say

    assert [float(row["duration_in_seconds"]) for row in rows] == [6 * stage_s] * 2
    assert [float(row["cost"]) for row in rows] == pytest.approx([0.10 / 3600 * 75] * 2, abs=1e-6)
    assert "The total cost for running all experiments is $0.0042." in usual.markdown


def test_each_instance_gets_a_recommendation_per_dataset(usual: Report) -> None:
    """The seed's sentence, with the figures of the cheapest stage within the budgets."""
    section = usual.section("Per instance results")
    rows = [r for r in rows_of(usual.run) if r["workload"] == "en_1-500" and r["latency_mean"] < 1]
    best = min(rows, key=lambda row: row["price_per_txn"])

    assert "The following dataset(s) were used for this test: `python_docs`." in section
    assert "|Dataset   | Instance type   | Recommendation   |\n|---|---|---|\n" in section
    assert (
        "|`payload_en_1-500.jsonl`|`local-cpu`|The best option for staying within a latency budget "
        "of `1 second`, a cost budget of `$0.5` per 10k transactions and an error rate budget of "
        "`0 %` on a `local-cpu` for the `payload_en_1-500.jsonl` dataset is "
        f"`{best['experiment_name']}` at a `concurrency level of {best['concurrency']}`. A "
        f"concurrency level of {best['concurrency']} achieves an `average latency of "
        f"{round(best['latency_mean'], 3)} seconds`, for an `average prompt size of "
        f"{best['prompt_token_count_mean']:.0f} tokens` and `completion size of 32 tokens` with "
        f"`{best['transactions_per_minute']:.0f} transactions/minute`.|"
    ) in section


def test_an_instance_of_its_own_needs_no_experiment_name(tmp_path: Path) -> None:
    """With one experiment and one dataset the sentences are the seed's, word for word."""
    config = config_of(report={})
    config["workloads"] = config["workloads"][:1]
    config["experiments"] = [{**config["experiments"][0], "workloads": ["en_1-500"]}]
    markdown = told(build_run(tmp_path, config)).markdown

    assert (
        'on "`local-cpu`" on the dataset `python_docs` and based on the test results the best '
        "price performance for dataset `en_1-500` is provided by the `local-cpu`."
    ) in markdown
    assert "for the `payload_en_1-500.jsonl` dataset is a `concurrency level of 4`." in markdown


# --- what the seed lacks -------------------------------------------------------------------------


def test_every_planned_stage_has_its_figures(usual: Report) -> None:
    """The stages' table holds the frame's numbers, interval and verdict of every stage."""
    rows = usual.table("experiment", "All stages")
    metrics = rows_of(usual.run)

    assert len(rows) == len(metrics) == 12
    for row, own in zip(rows, metrics, strict=True):
        for column, name in (
            ("latency mean, s", "latency_mean"),
            ("USD per 10k", "usd_per_10k_txn"),
        ):
            shown = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", row[column])
            bounds = [own[f"{name}{end}"] for end in ("", "_ci_low", "_ci_high")]
            assert shown is not None
            assert list(map(float, shown.groups())) == pytest.approx(bounds, rel=0.006)
            assert len({len(number.partition(".")[2]) for number in shown.groups()}) == 1
        ttft_ms = float(row["TTFT mean, ms"].split()[0])
        assert ttft_ms == pytest.approx(own["ttft_s_mean"] * 1000, rel=0.006)
        assert float(row["TPOT mean, ms"]) == pytest.approx(own["tpot_s_mean"] * 1000, rel=0.006)
        assert (row["requests"], row["error rate"]) == (str(own["n_requests"]), "0 %")
        assert row["budgets"] == ("met" if own["latency_mean"] <= 1 else "missed")


@pytest.mark.parametrize(("column", "needs"), [("latency p95, s", 72), ("latency p99, s", 368)])
def test_a_percentile_says_how_many_requests_it_needs(
    usual: Report, column: str, needs: int
) -> None:
    """Below the needed number of requests stands n/a with that number, above it the figure."""
    for row in usual.table("experiment", "All stages"):
        is_missing = int(row["requests"]) < needs
        assert (row[column] == f"n/a (needs ≥ {needs})") is is_missing


def test_no_failures_are_said_plainly(usual: Report) -> None:
    """Without a failure the section says so."""
    words = "No request failed in any phase of any stage that was run."
    assert usual.section("Failures by kind").strip() == words


def test_what_failed_and_what_was_not_run_stay_in_every_table(troubled: Report) -> None:
    """Both the experiment without a success and the one without a request are always listed."""
    tables = {
        "failed criteria": troubled.table("experiment_name | payload_file", "Summary"),
        "costs": troubled.table("experiment_name | instance_type", "Summary"),
        "stages": troubled.table("experiment", "All stages"),
        "endpoints": troubled.table("experiment", "Endpoints"),
    }
    for rows in tables.values():
        names = {row.get("experiment_name") or row.get("experiment") for row in rows}
        assert {"dead", "absent"} <= names


def test_missing_figures_are_worded(troubled: Report) -> None:
    """A stage that failed wholly, partly or was not run says so in place of its figures."""
    stages = {
        (r["experiment"], r["dataset"], r["load"]): r
        for r in troubled.table("experiment", "All stages")
    }

    assert stages["absent", "en_1-500", "4 in flight"]["latency mean, s"] == "not run"
    assert stages["dead", "en_1-500", "4 in flight"]["latency mean, s"] == "n/a (all failed)"
    assert stages["dead", "en_1-500", "4 in flight"]["latency p50, s"] == "∞ (100 % failed)"
    assert stages["dead", "en_1-500", "4 in flight"]["transactions/min"] == "0"
    assert stages["shaky", "en_1-500", "4 in flight"]["latency p95, s"].startswith("∞ (")


def test_a_latency_that_nothing_defines_is_not_a_matter_of_more_requests(tmp_path: Path) -> None:
    """Without streaming there is no TTFT: the tables ask for no more requests, nor the summary."""
    run = build_run(tmp_path, loaded_with(CLOSED_LOAD, budgets={"ttft_s": {"p95": 1.0}}))
    metrics = read_metrics(run)
    metrics.loc[:, metrics.columns.str.startswith("ttft_s_")] = math.nan
    write_metrics(run, metrics)
    write_decision(run.decision_path, decide(metrics, run.config))

    report = told(run)

    assert {row["TTFT p95, ms"] for row in report.table("experiment", "All stages")} == {"n/a"}
    assert "For 4 more, what was measured does not decide a criterion." in report.markdown


def test_a_picture_calls_a_stage_failed_only_where_it_failed(
    closed: Report, tmp_path: Path
) -> None:
    """A price that is not known, beside requests that succeeded, is called just that."""
    run = copy_of(closed.run, tmp_path)
    metrics = read_metrics(run)
    metrics["usd_per_10k_txn"] = math.nan
    write_metrics(run, metrics)

    panel = business_summary(read_material(run)).axes[0]

    assert {text.get_text() for text in panel.texts} == {"not known"}


def test_failures_are_counted_by_kind(troubled: Report) -> None:
    """Each kind of failure has its count from the records and its first error, also in warm-up."""
    rows = troubled.table("experiment", "Failures by kind")
    counted = {(r["experiment"], r["dataset"], r["load"]): r for r in rows}
    failed = [row for row in rows_of(troubled.run) if row["n_failed"]]

    assert len(counted) == len(failed) == 12
    for metrics in failed:
        load = f"{metrics['concurrency']} in flight"
        row = counted[metrics["experiment_name"], metrics["workload"], load]
        assert int(row["measured"]) == metrics["n_failed"]
        assert int(row["in warm-up or drain"]) > 0
        assert (row["kind"], row["HTTP status"]) == ("http_error", "500")


def test_a_request_cut_off_at_the_end_is_no_failure(closed: Report, tmp_path: Path) -> None:
    """Drain requests cancelled with their stage are counted apart, not among the failures."""
    run = copy_of(closed.run, tmp_path)
    for folder in stage_folders(run.requests_folder):
        info, records = read_stage(folder)
        last = record_of(info, 900, info.window_end_s + 0.2, info.finished_at_s, "cancelled")
        shutil.rmtree(folder)
        write_stage(folder, info, [*(RequestRecord(**r) for r in records.to_pylist()), last])
    report = told(run)

    assert "No request failed" in report.section("Failures by kind")
    assert "; 4 of the drain requests were cut off when their stage ended." in report.markdown


def test_a_cache_that_answered_is_not_denied(closed: Report, tmp_path: Path) -> None:
    """Where a server says that it took tokens from its cache, the report says so, salt or not."""
    run = copy_of(closed.run, tmp_path)
    for folder in stage_folders(run.requests_folder):
        info, records = read_stage(folder)
        rows = [{**r, "cached_tokens": r["prompt_tokens"] // 2} for r in records.to_pylist()]
        write_stage(folder, info, [RequestRecord(**row) for row in rows])

    markdown = told(run).markdown

    assert re.search(r"yet (49\.\d|50) % of the prompt tokens came from a server's cache", markdown)
    assert "no prompt cache could answer" not in markdown


def test_verdict_and_price_stand_before_the_percentiles(usual: Report) -> None:
    """What matters is on the left of the widest table."""
    columns = list(usual.table("experiment", "All stages")[0])

    assert columns[:4] == ["experiment", "dataset", "load", "budgets"]
    assert columns.index("USD per 10k") < columns.index("latency p50, s")


@pytest.mark.parametrize(("latency_s", "is_few"), [(0.2, False), (2.0, True)])
def test_the_answer_says_on_how_many_requests_it_rests(
    tmp_path: Path, latency_s: float, is_few: bool
) -> None:
    """Ten seconds of the cheapest stage hold 2 or 20 requests a slot; below 30 is called few."""
    config = loaded_with(ONE_LEVEL, budgets={"latency_s": {"mean": 9}})
    run = build_run(tmp_path, config, latency=lambda *_: latency_s)
    chosen = read_material(run).recommendation.chosen
    assert chosen is not None
    n = next(
        r["n_requests"]
        for r in rows_of(run)
        if (r["experiment_name"], r["workload"], r["stage"])
        == (chosen.experiment, chosen.workload, chosen.stage)
    )

    answer = answer_sentences(run)

    assert f"At 4 in flight, over {n} measured requests, it costs $" in answer
    assert (n < 30) is is_few
    assert ("That is few: measure longer before acting on it." in answer) is is_few


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"latency_s": {"mean": 0.2}, "usd_per_10k_txn": 0.05}, "Dashed lines are budgets."),
        ({"latency_s": {"mean": 0.2}, "usd_per_10k_txn": 99}, "The dashed line is a budget."),
        ({"latency_s": {"mean": 99}, "usd_per_10k_txn": 99}, None),
    ],
)
def test_only_budgets_on_the_scale_are_called_lines(
    closed: Report, limits: dict[str, Any], sentence: str | None
) -> None:
    """A budget far beyond the bars has no line, and the reading speaks of none."""
    said = readings(judged_by(closed, limits).material)

    found = re.findall(r"[^.]*dashed[^.]*\.", said["business_summary"], re.IGNORECASE)

    assert found == ([f" {sentence}"] if sentence else [])


def test_a_bar_names_the_budgets_that_it_misses(closed: Report) -> None:
    """A candidate that is not within every budget says below its name which it misses."""
    limits = {"latency_s": {"mean": 0.01}, "usd_per_10k_txn": 0.0001}
    figure = business_summary(judged_by(closed, limits).material)
    lines = {label.get_text().splitlines()[-1] for label in figure.axes[0].get_yticklabels()}

    assert lines == {"misses Latency, price"}


def test_random_weights_are_explained_once(tmp_path: Path) -> None:
    """Two made-up models share one sentence on their weights."""
    config = loaded_with(ONE_LEVEL)
    for experiment, name in zip(config["experiments"], ("small", "large"), strict=True):
        experiment["model"] = {"name": name}

    markdown = told(build_run(tmp_path, config)).markdown

    assert "`small` and `large` on the embedded llama.cpp engine. The models have" in markdown
    assert markdown.count("random weights") == 1


def test_a_load_that_was_not_held_is_said(closed: Report, tmp_path: Path) -> None:
    """A stage with clearly less in flight than asked is named where the load is described."""
    run = copy_of(closed.run, tmp_path)
    metrics = read_metrics(run)
    slack = (metrics["experiment_name"] == "llamacpp-1-slots") & (metrics["concurrency"] == 2)
    metrics.loc[slack, "mean_in_flight"] = 1.85
    write_metrics(run, metrics)

    assert (
        "Less than 95 % of it was in flight for `llamacpp-1-slots` on `en_1-500` at 2 in "
        "flight: there the client or the endpoint's connections did not keep the load up"
    ) in told(run).section("How this was measured")


def test_a_held_load_is_not_doubted(usual: Report) -> None:
    """Where every stage kept its concurrency, no stage is named."""
    assert "did not keep the load up" not in usual.markdown


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    """Stages that a kill kept from their turn neither failed a criterion nor could not be run."""
    run = build_run(
        tmp_path,
        loaded_with(CLOSED_LOAD),
        latency=lambda experiment, workload, level: None if experiment else 0.1,
    )

    summary = told(run).section("Summary")

    assert "The run is not finished: 2 of 4 planned stages have no records." in summary
    assert "No experiment run failed a configured performance criterion" in summary
    assert "2 more have no records." in summary
    assert "could not be run" not in summary
    assert "No other experiment was found to meet every budget." in summary


def test_stages_not_run_give_their_reason(troubled: Report) -> None:
    """The endpoint's error stands beside the stages that it kept from running."""
    section = troubled.section("Failures by kind").split("These stages were not run:")[1]

    assert (
        section.count(r"| absent | en_1-500 | 1, 2, 4 in flight | `` it did \| not `start` `` |")
        == 1
    )


def test_stages_not_run_fail_no_criterion(troubled: Report) -> None:
    """What an endpoint kept from running is counted apart, and is not red in the table."""
    failed = [r for r in rows_of(troubled.run) if r["n_failed"] or r["latency_mean"] > 1]
    rows = troubled.table("experiment_name | payload_file", "Summary")
    texts = {row["latency_mean_text"] for row in rows if row["experiment_name"] == "absent"}

    assert f"a total of {len(failed)} experiment run(s) that failed" in troubled.markdown
    assert " 6 more could not be run." in troubled.section("Summary")
    assert texts == {"not run"}


def test_no_winner_is_said_with_what_came_closest(closed: Report) -> None:
    """Where no stage meets the budgets the report says so, and shows the closest."""
    budgets = {"latency_s": {"mean": 0.01, "p95": 0.02}, "ttft_s": {"mean": 0.001}}
    report = judged_by(closed, budgets)
    summary = report.section("Summary")
    rows = report.table("experiment_name | payload_file", "Summary")

    assert "no experiment meets every budget for dataset `en_1-500`." in summary
    assert "Closest" in summary
    assert "best price performance" not in summary
    assert "No option on a `local-cpu` stays within every budget" in report.markdown
    assert len(rows) == 4
    assert list(rows[0])[3:] == [
        *("error_rate_text", "latency_mean_text", "price_per_10k_txn_text"),
        *("latency_p95_text", "ttft_s_mean_text"),
    ]
    assert rows[0]["latency_p95_text"] == "n/a (needs ≥ 72)"
    assert float(rows[0]["price_per_10k_txn_text"]) > 0  # no budget binds it: no colour


def test_nothing_measured_makes_a_report_all_the_same(tmp_path: Path) -> None:
    """A run whose endpoints all failed gives every section, and no figures."""
    names = ["llamacpp-1-slots", "llamacpp-4-slots"]
    report = told(build_run(tmp_path, failed_endpoints=names))

    assert "nothing was measured" in report.section("Summary")
    assert "0 of 12 planned stages" in report.markdown
    assert "no request was measured" in report.markdown
    assert "none of which failed" not in report.markdown
    assert "No experiment run failed a configured performance criterion" in report.markdown
    assert "12 more could not be run." in report.markdown
    assert report.markdown.count("No figures: nothing was measured.") == len(SEED_PICTURES)
    assert "How to read it" not in report.markdown
    assert {row["budgets"] for row in report.table("experiment", "All stages")} == {"not run"}


def test_the_answer_for_the_notebook_is_the_summary(usual: Report) -> None:
    """Notebook 5 shows the report's own sentences."""
    answer = answer_sentences(usual.run)

    for paragraph in answer.split("\n\n"):
        assert paragraph in usual.markdown


# --- open loops ----------------------------------------------------------------------------------

LABELS = ["1 in flight", "2 in flight", "1 request/s", "4 requests/s", "2 requests/s (constant)"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Closed and open loops side by side; some requests fail at 4 requests/s."""
    config = loaded_with(CLOSED_LOAD, OPEN_LOAD, CONSTANT_LOAD)
    return told(
        build_run(
            tmp_path_factory.mktemp("mixed"),
            config,
            status=lambda _, level, n: "timeout" if (level, n) == (4, 20) else "ok",
        )
    )


def test_every_stage_is_named_by_its_load(mixed: Report) -> None:
    """In the table of all stages, requests in flight or requests a second."""
    rows = mixed.table("experiment", "All stages")

    assert [row["load"] for row in rows] == LABELS * 2


def test_the_seed_s_tables_show_a_rate_where_there_is_one(mixed: Report) -> None:
    """The failed criteria's column is then called load, and failures are told by rate too."""
    failed = mixed.table("experiment_name | payload_file", "Summary")
    kinds = mixed.table("experiment", "Failures by kind")

    assert {row["load"] for row in failed} == {"4 requests/s"}
    assert {(row["load"], row["kind"]) for row in kinds} == {("4 requests/s", "timeout")}


def test_an_open_loop_s_answer_is_told_by_its_rate(paced: Report) -> None:
    """Summary, Information and recommendation name requests a second, never a concurrency."""
    shown = {row["Information"]: row["Value"] for row in paced.table("Information")}

    assert "At 4 requests/s, over 40 measured requests, it costs $" in paced.markdown
    assert (shown["load"], shown.get("concurrency")) == ("4 requests/s", None)
    assert (
        "`llamacpp-4-slots` at a `load of 4 requests/s`. A load of 4 requests/s" in paced.markdown
    )
    assert "oncurrency" not in re.sub(r"!\[[^]]*\]\([^)]*\)", "", paced.markdown)


def test_an_open_loop_s_latencies_count_from_the_intended_instants(mixed: Report) -> None:
    """Each request was sent 4 ms late: its latency and its TTFT in the table hold them."""
    rows = {
        (row["experiment"], row["load"]): row for row in mixed.table("experiment", "All stages")
    }
    row = rows["llamacpp-1-slots", "1 request/s"]  # takes 0.15 s, a fifth of it to the first token

    assert float(row["latency mean, s"].split()[0]) == pytest.approx(0.154, abs=5e-4)
    assert float(row["TTFT mean, ms"].split()[0]) == pytest.approx(34.0, abs=0.05)
    assert "in open loop both run from the instant at which it was to be sent" in mixed.markdown


def test_both_kinds_of_loop_are_explained_where_both_stand(mixed: Report) -> None:
    """How many stages are which, what was in flight in the one, how late the other was."""
    said = mixed.section("How this was measured")

    assert "4 stages in closed loop: as soon as one answer ends" in said
    assert "6 stages in open loop: requests are sent at instants that were settled" in said
    assert "Over the windows, 100 % of the asked number were in flight on average." in said
    assert "requests were sent late by 4.00 ms on average in the worst stage." in said


def test_concurrency_and_rate_never_share_an_axis(mixed: Report) -> None:
    """Two panels of one height: one of requests in flight, one of requests a second."""
    closed, open_ = concurrency_vs_latency(mixed.material).axes
    drawn = [
        sorted({float(x) for line in axes.containers for x in line[0].get_xdata()})
        for axes in (closed, open_)
    ]

    assert [axes.get_title(loc="left") for axes in (closed, open_)] == [
        "Concurrency, requests in flight",
        "Request rate, requests/s",
    ]
    assert drawn == [[1.0, 2.0], [1.0, 2.0, 4.0]]
    assert closed.get_ylim() == open_.get_ylim()


def test_a_candidate_looks_alike_under_both_kinds_of_load(mixed: Report) -> None:
    """Its closed loop and its Poisson arrivals have one colour, and one place in the legend."""
    figure = concurrency_vs_latency(mixed.material)
    colors = [
        {str(one.get_label()): one[0].get_color() for one in axes.containers}
        for axes in figure.axes
    ]
    names = [text.get_text() for text in figure.legends[0].get_texts()]

    assert colors[0].items() <= colors[1].items()
    assert names.count("llamacpp-1-slots") == 1


def test_arrivals_of_different_kinds_are_lines_of_their_own(mixed: Report) -> None:
    """Constant arrivals at 2/s are not a point of the line through Poisson ones at 1/s and 4/s."""
    open_ = concurrency_vs_latency(mixed.material).axes[1]
    drawn = {str(one.get_label()): one[0].get_xdata().tolist() for one in open_.containers}

    assert drawn == {
        "llamacpp-1-slots": [1.0, 4.0],
        "llamacpp-1-slots, constant": [2.0],
        "llamacpp-4-slots": [1.0, 4.0],
        "llamacpp-4-slots, constant": [2.0],
    }


def test_many_candidates_under_both_kinds_have_a_panel_each(tmp_path: Path) -> None:
    """Seven candidates make fourteen panels; titles and ticks tell which load each shows."""
    config = loaded_with(CLOSED_LOAD, OPEN_LOAD)
    config["experiments"] = [
        {**config["experiments"][0], "name": f"candidate-{n}"} for n in range(7)
    ]
    figure = concurrency_vs_latency(read_material(build_alike(tmp_path, config)))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    ticks = [[label.get_text() for label in axes.get_xticklabels()] for axes in panels]

    assert [axes.get_title(loc="left") for axes in panels] == [
        f"candidate-{n}\n{load}" for load in ("requests in flight", "requests/s") for n in range(7)
    ]
    assert ticks == [["1", "2"]] * 7 + [["1/s", "4/s"]] * 7


@pytest.mark.parametrize(
    ("report", "axis", "ticks"),
    [
        ("closed", "Concurrency, requests in flight", ["1", "2"]),
        ("paced", "Request rate, requests/s", ["1", "4"]),
        (
            "mixed",
            "Load: requests in flight, or requests per second (/s)",
            ["1 in flight", "2 in flight", "1/s", "2/s constant", "4/s"],
        ),
    ],
)
def test_an_axis_of_loads_says_what_its_numbers_are(
    request: pytest.FixtureRequest, report: str, axis: str, ticks: list[str]
) -> None:
    """Error rates across concurrency, across rates, or across both with their unit."""
    figure = error_rates(request.getfixturevalue(report).material)

    assert figure.get_supxlabel() == axis
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ticks


@pytest.mark.parametrize(
    ("report", "title", "levels"),
    [
        ("closed", "requests in flight", ["1", "2"]),
        ("paced", "requests/s", ["1", "4"]),
        (
            "mixed",
            "load",
            [
                *("1 in flight", "2 in flight"),
                *("1 request/s", "2 requests/s (constant)", "4 requests/s"),
            ],
        ),
    ],
)
def test_points_are_told_apart_by_their_load(
    request: pytest.FixtureRequest, report: str, title: str, levels: list[str]
) -> None:
    """The legend names requests in flight, requests a second, or both with their unit."""
    figure = tokens_vs_latency(request.getfixturevalue(report).material)
    (legend,) = figure.legends

    assert legend.get_title().get_text() == title
    assert [text.get_text() for text in legend.get_texts()] == levels


def test_growth_is_told_within_one_kind_of_load(mixed: Report) -> None:
    """Latency at a rate is compared with latency at another rate."""
    said = readings(mixed.material)["concurrency_vs_inference_latency"]
    pairs = re.findall(r"times as high at (\d [a-z /]+?) as at (\d (?:in flight|request/s))", said)

    assert pairs == [("2 in flight", "1 in flight")] * 2 + [("4 requests/s", "1 request/s")] * 2


def test_note_on_a_dataset_is_a_sentence_of_its_own(closed: Report, tmp_path: Path) -> None:
    """A space stands before it."""
    run = copy_of(closed.run, tmp_path)
    facts = read_json(run.workloads_path)
    facts["en_1-500"]["notes"] = ["3 of 60 drawn lengths were raised to 9 tokens"]
    write_json(run.workloads_path, facts)

    said = told(run).section("How this was measured")

    assert ". 3 of 60 drawn lengths were raised to 9 tokens." in said


def test_growth_that_is_not_told_is_counted(tmp_path: Path) -> None:
    """Of six lines four are told; a space stands before the count of the others."""
    loads = CLOSED_LOAD, OPEN_LOAD, {**OPEN_LOAD, "arrivals": "constant"}
    said = readings(read_material(build_run(tmp_path, loaded_with(*loads))))

    sentence = said["concurrency_vs_inference_latency"].partition(" Here, ")[2]
    assert sentence.count("times as high") == 4
    assert re.search(r" request/s( \(constant\))? \(2 more in the table below\)\.$", sentence)


def test_stages_not_run_are_named_by_their_load(tmp_path: Path) -> None:
    """Each unit stands once."""
    config = loaded_with(CLOSED_LOAD, OPEN_LOAD)
    report = told(build_run(tmp_path, config, failed_endpoints=["llamacpp-1-slots"]))

    assert r"| llamacpp-1-slots | en_1-500 | 1, 2 in flight; 1, 4 requests/s | " in report.markdown


BUSY = ClientUse(cpu_share=0.97, loop_lag_p99_s=0.001, loop_lag_max_s=0.002)
CHEAPEST = "llamacpp-4-slots on local-cpu at 4 requests/s"


def remeasured(run: Run, where: Mapping[str, str], **changes: Any) -> Run:
    """The run with columns of some stages' metrics changed, and decided anew."""
    metrics = read_metrics(run)
    chosen = pd.Series(True, index=metrics.index)
    for column, value in where.items():
        chosen &= metrics[column] == value
    for column, value in changes.items():
        metrics.loc[chosen, column] = value
    write_metrics(run, metrics)
    write_decision(run.decision_path, decide(metrics, run.config))
    return run


def test_a_client_that_was_the_bottleneck_is_told_wherever_its_figures_stand(
    tmp_path: Path,
) -> None:
    """In the answer, in each recommendation, in the stage table, and in the method."""
    report = told(build_run(tmp_path, loaded_with(OPEN_LOAD), client=BUSY))
    caveat = "the client was the bottleneck: the client used 97 % of a core"
    rows = report.table("experiment", "All stages")

    assert "no experiment can be recommended for dataset" in report.section("Summary")
    assert f"4 stages that meet every budget are not valid: {CHEAPEST} ({caveat});" in (
        report.section("Summary")
    )
    assert "4 stages meet every budget and are not valid." in report.section("Summary")
    assert f"{CHEAPEST} ({caveat})" in report.section("Per instance results")
    assert {(row["budgets"], row["notes"]) for row in rows} == {("met, not valid", caveat)}
    assert (
        "**The client was the bottleneck** for `llamacpp-1-slots` on `en_1-500` at 1, 4 "
        "requests/s; and `llamacpp-4-slots` on `en_1-500` at 1, 4 requests/s. The figures are "
        "partly those of the machine that sent the load. These stages are not valid."
    ) in report.section("How this was measured")
    assert report.section("Summary").count(caveat) == 3  # of the cheapest stages, each once


def test_how_late_the_client_read_is_told_of_the_worst_stage(
    closed: Report, tmp_path: Path
) -> None:
    """Every instant of an answer is that of its reading."""
    run = copy_of(closed.run, tmp_path)
    metrics = read_metrics(run)
    metrics["loop_lag_s_p99"] = [0.0002, math.nan, 0.00345, 0.001]
    write_metrics(run, metrics)

    said = told(run).section("How this was measured")

    assert (
        "The client read what had arrived within 3.45 ms, 99 % of the time and for 99 % of what "
        "arrived, in every stage." in said
    )


def test_budgets_stand_with_operator_and_unit(closed: Report) -> None:
    """On the first screen, each limit once."""
    budgets = {"latency_s": {"mean": 0.75, "p95": 2}, "usd_per_10k_txn": 5}

    report = judged_by(closed, budgets)

    limits = "latency mean ≤ 0.75 s, latency p95 ≤ 2 s, cost per 10k transactions ≤ $5"
    assert f"**Budgets:** {limits} and error rate ≤ 0 %." in report.markdown.replace("\\$", "$")


def test_answers_that_came_all_at_once_are_told(closed: Report, tmp_path: Path) -> None:
    """Where a server held them back; one or two that a busy client read at once are not."""
    run = copy_of(closed.run, tmp_path)
    metrics = read_metrics(run)
    metrics["n_ok"], metrics["n_unstreamed"] = 200, [150, 150, 1, 1]
    write_metrics(run, metrics)

    said = told(run).markdown

    assert "**Answers came all at once:** 300 of 400 answers of `llamacpp-1-slots`. A" in said
    assert re.findall(r"\d+ answers came all at once", said) == ["150 answers came all at once"] * 2


def test_the_answer_names_a_cheaper_stage_that_is_not_valid(paced: Report, tmp_path: Path) -> None:
    """The next best is recommended, and no invalid stage is called the next in price."""
    cheapest = {"experiment_name": "llamacpp-4-slots", "stage": "rate-4"}
    run = remeasured(
        copy_of(paced.run, tmp_path),
        cheapest,
        client_limited="it was late",
        price_per_txn=1e-6,
    )

    report = told(run)
    summary = report.section("Summary")

    assert "provided by the `local-cpu` with experiment `llamacpp-1-slots`." in summary
    for section in (summary, report.section("Per instance results")):
        assert (
            f"Left out: 1 cheaper stage that is not valid: {CHEAPEST} (the client was the "
            "bottleneck: it was late)."
        ) in section
    assert "Next is `llamacpp-4-slots` at 1 request/s: " in summary


def test_a_stage_that_fell_behind_is_told_with_its_numbers(paced: Report, tmp_path: Path) -> None:
    """In its row and in the method; it is not recommended."""
    grown = {"outstanding_growth": 38.0, "outstanding_growth_ci_low": 12.0}
    behind = {"experiment_name": "llamacpp-4-slots", "stage": "rate-4"}
    run = remeasured(copy_of(paced.run, tmp_path), behind, outstanding_mean=52.0, **grown)

    report = told(run)
    row = report.table("experiment", "All stages")[-1]

    assert row["budgets"] == "met, not valid"
    assert row["notes"] == (
        "the stage fell behind: unanswered requests grew by 38 in 10 s, with 52 on average"
    )
    assert (
        "**The stage fell behind** for `llamacpp-4-slots` on `en_1-500` at 4 requests/s. The "
        "longer such a load lasts, the longer answers take. These stages are not valid."
    ) in report.section("How this was measured")


def test_a_run_without_another_valid_stage_says_so(paced: Report, tmp_path: Path) -> None:
    """The other experiment met the budgets, in no stage that is valid."""
    other = {"experiment_name": "llamacpp-1-slots"}
    run = remeasured(copy_of(paced.run, tmp_path), other, warmup_end="capped")

    said = answer_sentences(run)

    assert "No other experiment has a valid stage that meets every budget." in said


NOTHING = {
    "n_requests": 0,
    "n_ok": 0,
    "error_rate": math.nan,
    "latency_mean": math.nan,
}


def test_a_stage_without_a_request_does_not_stand_for_its_candidate(tmp_path: Path) -> None:
    """Another level was measured and missed the budget: the price picture shows that one."""
    config = loaded_with(CLOSED_LOAD, budgets={"latency_s": {"mean": 0.01}})
    run = remeasured(build_run(tmp_path, config), {"stage": "concurrency-2"}, **NOTHING)

    axes = business_summary(read_material(run)).axes[0]

    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.splitlines()[1] for label in labels] == ["local-cpu, 1 in flight"] * 2
    assert "no request" not in {text.get_text() for text in axes.texts}


def test_a_stage_that_is_not_valid_does_not_stand_for_its_candidate(
    paced: Report, tmp_path: Path
) -> None:
    """Not in the price picture, even where it is cheaper; alone it does, and says what it is."""
    run = copy_of(paced.run, tmp_path)
    remeasured(run, {"stage": "rate-4"}, client_limited="it was late")
    remeasured(run, {"experiment_name": "llamacpp-1-slots"}, client_limited="it was late")

    figure = business_summary(read_material(run))

    labels = [label.get_text().splitlines() for label in figure.axes[0].get_yticklabels()]
    assert sorted(labels) == [
        [
            "llamacpp-1-slots",
            "local-cpu, 4 requests/s",
            "the client was the bottleneck",
        ],
        ["llamacpp-4-slots", "local-cpu, 1 request/s"],
    ]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "cheapest within every budget",
        "not valid",
    }


def test_a_client_that_kept_up_is_not_mentioned(mixed: Report) -> None:
    """No caveat, and no column of notes in which nothing stands."""
    assert "bottleneck" not in mixed.markdown
    assert "notes" not in mixed.table("experiment", "All stages")[0]


def test_a_cap_that_was_reached_is_told(tmp_path: Path) -> None:
    """How many requests waited, where it is the answer's stage, in its row, and in the method."""
    report = told(build_run(tmp_path, loaded_with(OPEN_LOAD), held_back=3))

    assert "max_in_flight held 3 requests back there." in report.section("Summary")
    assert {row["notes"] for row in report.table("experiment", "All stages")} == {
        "3 held back by max_in_flight"
    }
    assert (
        "12 requests were held back because max_in_flight was reached, for `llamacpp-1-slots`"
    ) in report.section("How this was measured")
    assert "requests were sent late by" not in report.markdown


def changed(run: Run, change: Callable[[RequestRecord], Mapping[str, Any]]) -> Run:
    """The run with some fields of its records changed, and all that follows from them."""
    for folder in stage_folders(run.requests_folder):
        info, table = read_stage(folder)
        records = [RequestRecord(**row) for row in table.to_pylist()]
        write_stage(folder, info, [dataclasses.replace(one, **change(one)) for one in records])
    write_files(run, [])
    return run


def test_token_counts_that_cannot_be_right_are_told(closed: Report, tmp_path: Path) -> None:
    """By endpoint in the method, beside the answer and its recommendation, and in stages' rows."""

    def halved(one: RequestRecord) -> dict[str, Any]:
        struck = one.experiment == "llamacpp-4-slots" and one.request_id.endswith("3")
        return {"output_tokens": 16, "chunk_tokens": None} if struck else {}

    report = told(changed(copy_of(closed.run, tmp_path), halved))
    own = [row for row in rows_of(report.run) if row["experiment_name"] == "llamacpp-4-slots"]
    notes = [row["notes"] for row in report.table("experiment", "All stages")]
    n, n_ok = (sum(row[name] for row in own) for name in ("n_doubtful_counts", "n_ok"))
    chosen = report.material.recommendation.chosen
    caveat = next(
        f"cannot be right for {row['n_doubtful_counts']} of {row['n_ok']} answers there"
        for row in own
        if row["stage"] == chosen.stage
    )

    assert chosen.experiment == "llamacpp-4-slots"
    assert n > 1
    assert (
        "**The endpoint's own token counts cannot be right** for "
        f"{n} of {n_ok} answers of `llamacpp-4-slots`: they are of fewer"
    ) in report.section("How this was measured")
    assert caveat in report.section("Summary")
    assert caveat in report.section("Per instance results")
    assert notes == [
        *("none", "none"),
        *(f"{row['n_doubtful_counts']} impossible token counts" for row in own),
    ]


def test_requests_that_were_sent_again_are_told(closed: Report, tmp_path: Path) -> None:
    """How many, of which stages; in those stages' rows too."""
    run = copy_of(closed.run, tmp_path)
    first = {
        "llamacpp-1-slots/en_1-500/concurrency-2-60",
        "llamacpp-1-slots/en_1-500/concurrency-2-61",
    }
    report = told(changed(run, lambda one: {"resent": one.request_id in first}))

    assert (
        "2 measured requests were sent again on a new connection, for the server had closed the "
        "kept one unanswered, for `llamacpp-1-slots` on `en_1-500` at 2 in flight: what counts"
    ) in report.section("How this was measured")
    assert [row["notes"] for row in report.table("experiment", "All stages")] == [
        *("none", "2 sent again", "none", "none"),
    ]


def test_what_was_told_rightly_and_sent_once_is_not_mentioned(mixed: Report) -> None:
    """No doubt, and no word of a second sending."""
    assert "cannot be right" not in mixed.markdown
    assert "sent again" not in mixed.markdown


def test_users_who_think_are_not_said_to_hold_their_number(tmp_path: Path) -> None:
    """With think time fewer are in flight than users; that is no load that was not held."""
    load = {**CLOSED_LOAD, "think_time_s": 2}
    run = build_run(tmp_path, loaded_with(load))
    metrics = read_metrics(run)
    metrics["mean_in_flight"] = 0.4
    write_metrics(run, metrics)

    said = told(run).markdown

    assert "closed loop with 1 and 2 users who think for 2 s between answer and question" in said
    assert "did not keep the load up" not in said
    assert "in flight on average" not in said


def test_how_long_warm_ups_and_windows_took_is_said(closed: Report, tmp_path: Path) -> None:
    """The shortest and the longest of the stages that were run, which the config does not know."""
    run = copy_of(closed.run, tmp_path)
    metrics = read_metrics(run)
    metrics["warmup_s"] = [1.5, 13.071, 2.0, 2.0]
    metrics["duration_s"] = [11.9514, 10.0, 10.0, 10.0]
    write_metrics(run, metrics)

    said = told(run).section("How this was measured")

    assert "Warm-ups took 1.5 to 13.1 s and windows 10 to 12 s: a stage is measured once" in said


TOLD_LOADS = [
    (
        {**CLOSED_LOAD, "requests": 100},
        "closed loop with 1 and 2 in flight, at least 10 s measured, or 100 requests where "
        "they come first, after at least 1.5 s of warm-up",
    ),
    (
        {"kind": "open_loop", "request_rate": [0.5], "requests": 1},
        "open loop with Poisson arrivals at 0.5 requests/s, 1 request measured after at "
        "least 5 s of warm-up",
    ),
    (
        {**CONSTANT_LOAD, "max_in_flight": 9},
        "open loop with evenly spaced arrivals at 2 requests/s, 9 in flight at most, at "
        "least 10 s measured after at least 1.5 s of warm-up",
    ),
    (
        {**OPEN_LOAD, "arrivals": "gamma", "burstiness": 0.3},
        "open loop with gamma-distributed gaps of shape 0.3 at 1 and 4 requests/s, at "
        "least 10 s measured after at least 1.5 s of warm-up",
    ),
    (
        {**OPEN_LOAD, "arrivals": "ramp", "ramp_to_rate": 8},
        "open loop with Poisson arrivals from 1 and 4 requests/s to 8 over the window, 10 s "
        "measured after at least 1.5 s of warm-up",
    ),
]


def test_a_load_is_told_as_it_was_asked_for(tmp_path: Path) -> None:
    """Kind, levels, arrivals and end of every load."""
    config = loaded_with(*(load for load, _ in TOLD_LOADS))
    run = build_run(tmp_path, config, latency=lambda *_: None)

    assert load_shapes(read_material(run)) == [words for _, words in TOLD_LOADS]


def test_what_was_simulated_is_labelled(tmp_path: Path) -> None:
    """At the top, beside the answer, and where the endpoints are listed."""
    config = loaded_with(CLOSED_LOAD)
    simulated = {"kind": "simulated", "preset": "imitated", "faults": {"reset": 0.1}}
    config["experiments"] = [{**config["experiments"][0], "endpoint": simulated}]
    report = told(build_run(tmp_path, config))

    assert (
        "`docs-llama` on a simulated server. **Simulated:** in every experiment no model"
        in (report.markdown.split("## Summary")[0])
    )
    assert "These figures are simulated." in report.section("Summary")
    assert report.table("experiment", "Endpoints")[0]["settings"] == (
        "chat API, preset imitated, seed 7, with faults"
    )


def simulated_as(**changes: Any) -> dict[str, Any]:
    """An experiment's endpoint that is simulated, with `changes` to the experiment."""
    return {"endpoint": {"kind": "simulated", "preset": "imitated"}, **changes}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            simulated_as(instance_type="ml.a"),
            simulated_as(instance_type="ml.b"),
            "Nothing of it was billed: every endpoint is simulated, and the cost is what the same "
            "time under load would cost on `ml.a` and `ml.b`.",
        ),
        (
            simulated_as(instance_type="ml.a"),
            {},
            "Of that, $0.10 was not billed: `llamacpp-1-slots` is simulated, and the cost is what "
            "the same time under load would cost on `ml.a`.",
        ),
        (
            simulated_as(instance_type=None, model={"name": "metered-7b"}),
            simulated_as(instance_type="ml.a"),
            "Nothing of it was billed: every endpoint is simulated, and the cost is what the same "
            "tokens and time under load would cost on `metered-7b` and `ml.a`.",
        ),
        ({}, {}, ""),
    ],
)
def test_simulated_costs_are_not_said_to_be_billed(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], words: str
) -> None:
    """25 s at $14.40 an hour: the total says which of it nobody pays, and what it imitates."""
    prices = {
        "hourly_usd": {"local-cpu": 0.1, "ml.a": 14.4, "ml.b": 3.6},
        "usd_per_1m_tokens": {"metered-7b": {"input": 1, "output": 2}},
    }
    config = loaded_with(CLOSED_LOAD, prices=prices)
    one, other = config["experiments"]
    config["experiments"] = [{**one, **first}, {**other, **second}]
    report = told(build_run(tmp_path, config))
    said = report.section("Summary").split("The total cost for running all experiments is ")[1]

    assert re.match(rf"\$[\d.]+\.{' ' if words else ''}{re.escape(words)}\n", said)


# --- hostile text --------------------------------------------------------------------------------

HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "`tick` ``two``",
    "line\nbreak\r\n| cell |",
    "[x](javascript:alert(1))",
    "![x](http://example.invalid/x.png)",
    "**bold** _em_ ~~gone~~",
    "<span style='color:red'>fake</span>",
    "\\| \\` end\\",
    "&lt;b&gt; &amp; $x$ www.example.invalid http://example.invalid",
    "<!-- --> <http://example.invalid> </span>",
]


class Page(HTMLParser):
    """The texts of a page's table cells, and every tag and attribute in it."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag; a cell begins a new text."""
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        """A cell's text ends with it."""
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        """Add to the cell that is open."""
        if self.in_cell:
            self.cells[-1] += data


def parsed(page: str) -> Page:
    """The page as a browser's parser sees it."""
    parser = Page()
    parser.feed(page)
    return parser


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("write", [escaped, code])
def test_a_cell_shows_hostile_text_and_nothing_else(write: Callable[[str], str], text: str) -> None:
    """Through Markdown and HTML a cell's text comes out as it went in, on one line, as text."""
    markdown = table(("name", "next"), [(write(text), "after")])
    page = parsed(report_html(markdown, {}, {}, "title"))

    assert page.cells == ["name", "next", " ".join(text.split()), "after"]
    in_body = {tag for tag, _ in page.tags[page.tags.index(("main", {})) :]}
    assert in_body <= {"main", "div", "table", "thead", "tbody", "tr", "th", "td", "code"}


@given(st.text(max_size=60))
def test_any_text_survives_a_cell(text: str) -> None:
    """Whatever the text, the table keeps its shape and the cell shows exactly its one line."""
    markdown = table(("a", "b", "c"), [(text, code(text), "end")])
    page = parsed(report_html(markdown, {}, {}, "title"))
    line = one_line(text)

    assert page.cells == ["a", "b", "c", line, line or "(empty)", "end"]


def test_hostile_names_in_a_run_break_nothing(tmp_path: Path) -> None:
    """Names, instance types and errors of the worst kind leave one table shape and no markup."""
    config = loaded_with(CLOSED_LOAD)
    instance = "cpu|`x` <b>$1$ 2$</b>"
    for experiment in config["experiments"]:
        experiment["model"] = {"name": "a|b](javascript:alert(1)) <script>`"}
        experiment["instance_type"] = instance
    config["prices"] = {"hourly_usd": {instance: 0.1}}
    run = build_run(tmp_path, config, status=lambda e, c, n: "timeout" if n % 9 == 2 else "ok")
    html = built(run).page
    page = parsed(html)

    assert len(told(run).table("experiment", "All stages")) == 4
    assert instance in page.cells
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "b", "object"} == set()
    assert {attrs.get("href") for tag, attrs in page.tags if tag == "a"} == {
        "#config-yaml",
        *(f"#{anchor}" for anchor in re.findall(r'<h2 id="([^"]+)"', html)),
    }


# --- the page and the pictures -------------------------------------------------------------------


def test_report_md_holds_the_report_s_words(usual: Report, usual_built: Built) -> None:
    """All that the report says is in the file; only the line of when it was made is another."""
    lines, written = usual.markdown.splitlines(), usual_built.markdown.splitlines()

    assert [n for n, pair in enumerate(zip(lines, written, strict=True)) if len({*pair}) > 1] == [2]


def test_the_page_needs_nothing_beside_it(usual_built: Built) -> None:
    """No script, no style sheet, no picture from elsewhere: pictures are within the page."""
    page = parsed(usual_built.page)
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    encoded = [source.removeprefix("data:image/png;base64,") for source in sources]

    assert {"script", "link", "iframe"} & {tag for tag, _ in page.tags} == set()
    assert "http://" not in usual_built.page
    assert "https://" not in usual_built.page
    assert "url(" not in usual_built.page
    assert [base64.b64decode(one) for one in encoded] == [
        (usual_built.run.folder / name).read_bytes() for name in SEED_PICTURES
    ]
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")


def test_verdicts_keep_their_colour_in_the_page(usual_built: Built) -> None:
    """The tables' own spans, and only those, become spans of the page."""
    classes = [attrs["class"] for tag, attrs in parsed(usual_built.page).tags if tag == "span"]
    markdown = re.findall(r"<span style='color:(green|red)'>", usual_built.markdown)

    assert classes == [{"green": "met", "red": "missed"}[color] for color in markdown]
    assert "missed" in classes


def picture_size(content: bytes) -> tuple[int, int]:
    """Width and height from a PNG's own header."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def are_readable(drawn: Mapping[str, bytes]) -> bool:
    """Whether each picture is a PNG of 9 inches at 150 dots wide, and of a height to look at."""
    sizes = [picture_size(content) for content in drawn.values()]
    return all(width == 1350 and 150 < height < 2000 for width, height in sizes)


def test_pictures_are_png_of_readable_size(usual_built: Built) -> None:
    """Each file is 9 inches at 150 dots wide."""
    assert are_readable(
        {name: (usual_built.run.folder / name).read_bytes() for name in SEED_PICTURES}
    )


@pytest.mark.parametrize("report", ["troubled", "mixed"])
def test_pictures_keep_their_size_whatever_happened(
    request: pytest.FixtureRequest, report: str
) -> None:
    """Failures, stages that were not run, or both kinds of load: the four are as wide as ever."""
    drawn = pictures(request.getfixturevalue(report).material)

    assert list(drawn) == SEED_PICTURES
    assert are_readable(drawn)


def test_pictures_carry_no_note_of_this_machine(usual_built: Built) -> None:
    """A PNG holds pixels and their size, no text."""
    for name in SEED_PICTURES:
        content = (usual_built.run.folder / name).read_bytes()
        assert b"tEXt" not in content
        assert b"iTXt" not in content


def test_one_stage_is_enough_for_pictures_and_they_leave_nothing_behind(tmp_path: Path) -> None:
    """A single stage is drawn too; pyplot knows no figure then, and matplotlib has its settings."""
    config = loaded_with(ONE_LEVEL)
    config["experiments"] = config["experiments"][:1]
    material = read_material(build_run(tmp_path, config))
    settings_before = dict(matplotlib.rcParams)

    drawn = pictures(material)

    assert list(drawn) == SEED_PICTURES
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings_before


@pytest.mark.parametrize(
    "changes",
    [
        {"status": lambda experiment, concurrency, number: "timeout"},
        {"failed_endpoints": ["llamacpp-1-slots", "llamacpp-4-slots"]},
    ],
    ids=["failures only", "nothing measured"],
)
def test_a_run_without_a_success_is_drawn_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Where every request failed, and where none was sent, there are four pictures and a page."""
    report = built(build_run(tmp_path, loaded_with(CLOSED_LOAD), **changes))

    assert report.page.count("data:image/png;base64,") == len(SEED_PICTURES)


def test_no_two_labels_overlap_with_many_candidates(tmp_path: Path) -> None:
    """Forty candidates with long names keep their labels apart, within their picture."""
    config = loaded_with(ONE_LEVEL)
    names = [f"one-of-many-candidates-with-a-long-name-{n:02d}" for n in range(40)]
    config["experiments"] = [{**config["experiments"][0], "name": name} for name in names]
    figure = business_summary(read_material(build_alike(tmp_path, config)))
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)

    assert len({label.get_text() for label in labels}) == 40
    assert min(box.x0 for box in boxes) >= 0
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))


def texts_beyond(axes: Axes) -> set[Text]:
    """What a panel has and does not show: all where it is hidden, else ticks beyond its axes."""
    if not axes.get_visible():
        return set(axes.findobj(Text))
    return {
        tick.label1
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }


def boxes_of(figure: Figure) -> list[Bbox]:
    """Where the figure shows a text, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    hidden = set().union(*map(texts_beyond, figure.axes))
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    shown = [text for text in texts if text not in hidden]
    return [text.get_window_extent(renderer) for text in shown]


MANY_LEVELS = [
    {**CLOSED_LOAD, "concurrency": [1, 2, 4, 8, 16]},
    {**OPEN_LOAD, "request_rate": [0.5, 1, 2, 4, 8]},
    CONSTANT_LOAD,
]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("n_candidates", "loads"),
    [(2, MANY_LEVELS), (7, [CLOSED_LOAD, CONSTANT_LOAD])],
)
def test_no_two_labels_of_mixed_loads_collide(
    tmp_path: Path, n_candidates: int, loads: list[Any]
) -> None:
    """Many levels, or many candidates, on two datasets: every text in its picture, and apart."""
    config = config_of(report={})
    candidate = {**config["experiments"][0], "load": loads}
    config["experiments"] = [
        {**candidate, "name": f"candidate-{n}-of-several"} for n in range(n_candidates)
    ]
    run = build_run(
        tmp_path, config, latency=lambda *_: 2.0, failed_endpoints=["candidate-1-of-several"]
    )
    material = read_material(run)

    for draw in (business_summary, error_rates, tokens_vs_latency, concurrency_vs_latency):
        figure = draw(material)
        boxes = boxes_of(figure)
        assert len(boxes) > 10
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
        assert [
            (one, other)
            for one, other in itertools.combinations([box.padded(-1) for box in boxes], 2)
            if one.overlaps(other)
        ] == []


def test_many_points_are_thinned_alike_and_said(usual: Report) -> None:
    """More than 5,000 requests are thinned by a repeatable draw, and the report says so."""
    material = usual.material
    many = pd.concat([material.requests] * 10, ignore_index=True)
    n = 10 * sum(row["n_ok"] for row in rows_of(usual.run))
    one, other = drawn_points(many), drawn_points(many)

    assert len(one) == MOST_POINTS == 5000
    assert one.index.equals(other.index)
    said = readings(dataclasses.replace(material, requests=many))["tokens_vs_latency"]
    assert f"Of {n:,}, 5,000 are drawn" in said


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "value", "text"),
    [
        (wording.percent, 0.0312, "3.12 %"),
        (wording.percent, 1.0, "100 %"),
        (wording.percent, 0.99987, "99.98 %"),  # a success among failures stays visible
        (wording.percent, 12.34, "1230 %"),
        (wording.fixed, 89.5432, "89.54"),
        (wording.fixed, 2.8, "2.80"),
        (wording.fixed, 0.0, "0.00"),
        (wording.fixed, 0.04653, "0.0465"),
        (wording.short, 2.8612499999999996, "2.86"),
        (wording.short, 2.89735, "2.9"),
        (wording.short, 0.0, "0.0"),
        (wording.whole, 418.16, "418"),
        (wording.whole, 0.4321, "0.432"),
        (wording.price, 0.003167, "0.003167"),
        (wording.price, 0.00000416, "0.00000416"),
        (wording.usd_total, 0.037715, "$0.04"),
        (wording.usd_total, 0.00417, "$0.0042"),
        (wording.usd_listed, 0.1, "$0.10"),
        (wording.usd_listed, 15.58, "$15.58"),
        (wording.usd_listed, 0.0034, "$0.0034"),
        (wording.seconds, 1.0, "1 second"),
        (wording.seconds, 5.0, "5 seconds"),
        (wording.limit, 0.8, "0.8"),
        (wording.percent, 0.0896, "8.96 %"),
        (wording.milliseconds, 0.0299, "29.9"),
        (wording.milliseconds, 0.019, "19.0"),
        (wording.milliseconds, 0.00123, "1.23"),
        (wording.milliseconds, 0.2504, "250"),
    ],
)
def test_numbers_in_words(words: Callable[[float], str], value: float, text: str) -> None:
    """Each way of writing a number keeps the digits that the seed's report has, or that tell."""
    assert words(value) == text


def test_long_names_lose_what_they_share_first() -> None:
    """Labels of long names stay apart, by the part in which the names differ."""
    names = ["llama2-7b-on-a-very-long-name-13b", "llama2-7b-on-a-very-long-name-17b"]

    assert list(short_names(names, 12).values()) == ["…13b", "…17b"]

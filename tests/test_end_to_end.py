"""The quickstart's small sibling, through all six notebooks, on the real engine.

Its numbers are computed here once more from the records, without the product's code.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
import pytest

from conftest import QUICKSTART, command, processes_of, small_overrides
from fmgauge.pipeline.notebooks import NOTEBOOKS

pytestmark = pytest.mark.whole
HOURLY_USD = 0.10  # local-cpu in data/prices/local.yaml


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of one finished run, and what the command printed."""
    results = tmp_path_factory.mktemp("end-to-end")
    done = subprocess.run(
        command("run", QUICKSTART, *small_overrides(results, duration_s=3)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    return next(results.glob("quickstart-*")), done


@pytest.fixture(scope="module")
def rows(finished) -> list[dict[str, str]]:
    """metrics.csv, as text."""
    with (finished[0] / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stage_of(folder: Path, row: dict[str, str]) -> tuple[dict, list[dict]]:
    """The facts and records behind one row of metrics.csv."""
    stage = folder / "requests" / row["experiment_name"] / row["workload"] / row["stage"]
    records = [
        record for part in stage.glob("*.parquet") for record in pq.read_table(part).to_pylist()
    ]
    return json.loads((stage / "stage.json").read_text()), records


def streamed(record: dict) -> bool:
    """Whether tokens came one after the other; a client that stood still reads them at once."""
    return record["token_at_s"][0] < record["token_at_s"][-1]


def end_of(record: dict) -> float:
    """When an answer's last token came."""
    return record["token_at_s"][-1]


def tpot_s(record: dict) -> float | None:
    """The time per token after the first; None where nothing lies between them."""
    if not streamed(record):
        return None
    return (end_of(record) - record["token_at_s"][0]) / (record["output_tokens"] - 1)


def measured(records: list[dict]) -> list[dict]:
    """Successful requests that were sent inside the window."""
    return [r for r in records if r["phase"] == "measured" and r["status"] == "ok"]


def share_in(window: tuple[float, float], begin: float, end: float) -> float:
    """The share of [begin, end] that lies in the window."""
    overlap = min(end, window[1]) - max(begin, window[0])
    return max(overlap, 0.0) / (end - begin)


def tokens_in(window: tuple[float, float], record: dict) -> float:
    """Streamed tokens by their instants; those that came at one, by the request's share."""
    if not streamed(record):
        return record["output_tokens"] * share_in(window, record["sent_at_s"], end_of(record))
    at_s = record["token_at_s"]
    return record["output_tokens"] * sum(window[0] <= at < window[1] for at in at_s) / len(at_s)


def test_every_stage_has_its_row(rows):
    """Two experiments, two workloads, two load levels: eight rows, in the config's order."""
    named = [(row["experiment_name"], row["workload"], row["concurrency"]) for row in rows]
    experiments = ("llamacpp-4m", "llamacpp-7m")
    workloads = ("en_1-500", "en_500-1000")

    assert named == [(e, w, c) for e in experiments for w in workloads for c in ("1", "2")]


def test_no_request_failed(rows):
    """The engine on this machine answers every request."""
    assert [float(row["error_rate"]) for row in rows] == [0.0] * 8


def test_counts_are_the_records(finished, rows):
    """n_requests counts the records that were due inside the window."""
    for row in rows:
        info, records = stage_of(finished[0], row)
        due = [r["intended_at_s"] for r in records]
        inside = [at for at in due if info["window_start_s"] <= at < info["window_end_s"]]
        assert int(row["n_requests"]) == len(inside) >= 3


@pytest.mark.parametrize(
    ("column", "of_record"),
    [
        ("latency_mean", lambda r: end_of(r) - r["sent_at_s"]),
        ("ttft_s_mean", lambda r: r["token_at_s"][0] - r["sent_at_s"]),
        ("tpot_s_mean", tpot_s),
        ("prompt_token_count_mean", lambda r: r["prompt_tokens"]),
        ("completion_token_count_mean", lambda r: r["output_tokens"]),
    ],
)
def test_means_are_the_records(finished, rows, column, of_record):
    """Each mean is the plain mean over the successful requests of the window."""
    for row in rows:
        found = [of_record(record) for record in measured(stage_of(finished[0], row)[1])]
        values = [value for value in found if value is not None]
        assert float(row[column]) == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_throughput_and_price_are_the_window_s(finished, rows):
    """Transactions, tokens and price follow from what happened inside the window alone."""
    for row in rows:
        info, records = stage_of(finished[0], row)
        window = (info["window_start_s"], info["window_end_s"])
        length_s = window[1] - window[0]
        good = [r for r in records if r["status"] == "ok"]
        rate = sum(share_in(window, r["sent_at_s"], end_of(r)) for r in good) / length_s
        tokens = sum(tokens_in(window, r) for r in good)
        assert float(row["transactions_per_minute"]) == pytest.approx(60 * rate, rel=1e-6)
        assert float(row["completion_token_throughput"]) == pytest.approx(
            tokens / length_s, rel=1e-6
        )
        assert float(row["price_per_txn"]) == pytest.approx(HOURLY_USD / 3600 / rate, rel=1e-6)


def test_the_load_held_its_concurrency(rows):
    """Never more than the asked number of requests were in flight, and on average nearly all."""
    for row in rows:
        asked = int(row["concurrency"])
        assert 0.75 * asked < float(row["mean_in_flight"]) <= asked + 1e-9


def test_outputs_have_the_asked_length(finished, rows):
    """The engine generated 32 tokens for every request, by its own count."""
    for row in rows:
        records = measured(stage_of(finished[0], row)[1])
        assert {(r["output_tokens"], r["token_source"]) for r in records} == {(32, "server")}


def test_no_cache_answered(finished, rows):
    """The engine took no prompt token from a cache."""
    for row in rows:
        records = measured(stage_of(finished[0], row)[1])
        assert {r["cached_tokens"] or 0 for r in records} == {0}


def test_prompts_lie_in_their_windows(finished):
    """Each window holds at least 60 different prompts, all inside its bounds."""
    for name, low, high in [("en_1-500", 1, 500), ("en_500-1000", 500, 1000)]:
        lines = (finished[0] / "payloads" / f"payload_{name}.jsonl").read_text().splitlines()
        payloads = [json.loads(line) for line in lines]
        assert len({payload["prompt"] for payload in payloads}) >= 60
        assert all(low <= payload["prompt_tokens"] <= high for payload in payloads)


def test_experiments_got_the_same_prompts(finished, rows):
    """The n-th measured request of a stage has the same payload for every experiment."""
    folder = finished[0]
    for workload, concurrency in {(row["workload"], row["concurrency"]) for row in rows}:
        stages = [r for r in rows if (r["workload"], r["concurrency"]) == (workload, concurrency)]
        sent = []
        for row in stages:
            records = [r for r in stage_of(folder, row)[1] if r["phase"] == "measured"]
            sent.append([r["payload_id"] for r in sorted(records, key=lambda r: r["sent_at_s"])])
        shortest = min(map(len, sent))
        assert sorted(sent[0][:shortest]) == sorted(sent[1][:shortest])


def test_small_samples_carry_no_high_percentile(rows):
    """A p99 needs 368 requests; with fewer it is left empty."""
    for row in rows:
        assert int(row["n_requests"]) < 368
        assert row["latency_p99"] == "" or math.isnan(float(row["latency_p99"]))


def is_valid(row: dict[str, str]) -> bool:
    """Whether the client kept up and the load was steady, on a machine that does more than this."""
    return row["client_limited"] == "" and row["warmup_end"] != "capped"


def test_the_recommendation_is_the_cheapest_within_budget(finished, rows):
    """decision.json names the cheapest of the valid stages that are within every budget."""
    decision = json.loads((finished[0] / "decision.json").read_text())
    for answer in decision["recommendations"]:
        within = [
            row
            for row in rows
            if row["workload"] == answer["workload"]
            and float(row["latency_mean"]) <= 0.75
            and float(row["ttft_s_mean"]) <= 0.5
            and float(row["price_per_txn"]) * 10_000 <= 0.15
            and float(row["error_rate"]) == 0.0
            and is_valid(row)
        ]
        chosen = answer["chosen"]
        if not within:
            assert chosen is None
            continue
        cheapest = min(within, key=lambda row: float(row["price_per_txn"]))
        assert (chosen["experiment"], chosen["stage"]) == (
            cheapest["experiment_name"],
            cheapest["stage"],
        )


def test_the_report_and_its_pictures_are_there(finished):
    """report.md, a self-contained report.html, and the four pictures by name."""
    folder = finished[0]
    pictures = (
        "business_summary.png",
        "error_rates.png",
        "tokens_vs_latency.png",
        "concurrency_vs_inference_latency.png",
    )
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert "# Results for performance benchmarking" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert 'src="http' not in page


def test_the_notebooks_were_executed(finished):
    """Six executed notebooks, with every code cell run and none failed."""
    for name in NOTEBOOKS:
        notebook = nbformat.read(finished[0] / "notebooks" / f"{name}.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]


def test_nothing_is_left_running(finished):
    """Every created server is noted deleted, and no process of the run lives."""
    folder = finished[0]
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    created = {event["name"] for event in events if event["event"] == "created"}
    deleted = {event["name"] for event in events if event["event"] == "deleted"}

    assert len(created) == 2
    assert created == deleted
    assert processes_of(folder) == []


def test_the_command_says_what_it_did(finished):
    """Without a terminal: plain lines for each notebook, the answers, and the report's place."""
    printed = finished[1].stdout
    assert all(f"{name}: done" in printed for name in NOTEBOOKS)
    assert "report.html" in printed
    assert "\x1b[" not in printed

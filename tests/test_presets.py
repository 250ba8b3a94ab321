"""Presets against their sums done by hand, against the document that lists them, and the seed."""

from __future__ import annotations

import re
import statistics
from datetime import date
from pathlib import Path

import pytest

from fmgauge.config import load_config
from fmgauge.emulator.batching import Job
from fmgauge.emulator.in_virtual_time import closed_loop
from fmgauge.emulator.presets import PRESETS, preset
from fmgauge.pricing import experiment_price

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "simulated.md").read_text(encoding="utf-8")
PRICES = ROOT / "data" / "prices" / "aws-us-east-1-2025-04.yaml"
CONFIG = """\
run: {{name: priced}}
workloads:
  - {{name: w, source: {{kind: python_docs}}, template: "{{{{ context }}}}"}}
experiments:
  - name: imitation
    model: {{name: any}}
    endpoint: {{kind: openai, base_url: "http://127.0.0.1:1/v1"}}
    instance_type: {instance_type}
    workloads: [w]
    load: [{{kind: closed_loop, concurrency: [1], duration_s: 50}}]
prices: {{table: {table}}}
"""
each_preset = pytest.mark.parametrize("name", PRESETS)


def latency_s(name: str, concurrency: int) -> float:
    """Mean end-to-end latency of requests as long as those of the seed's report."""
    asked = [Job(f"j{index}", 304, 329) for index in range(12 * concurrency)]
    outcomes = closed_loop(preset(name), asked, concurrency=concurrency, seed=7)
    return statistics.mean(outcome.finished_s - outcome.arrived_s for outcome in outcomes)


def table_of(heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading of the document: first cell, other cells."""
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| \n").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


def test_every_preset_is_compared_in_the_shipped_config():
    """configs/simulated-instances.yml has an experiment for each, on the instance it imitates."""
    experiments = load_config(ROOT / "configs" / "simulated-instances.yml").config.experiments

    compared = {one.endpoint.preset: one.instance_type for one in experiments}

    assert compared == {name: found.instance_type for name, found in PRESETS.items()}


@pytest.mark.parametrize("heading", ["The presets", "Beside the seed's report"])
def test_the_document_lists_every_preset_and_nothing_else(heading):
    """Each of the two tables of docs/simulated.md has one row for one preset."""
    assert {*table_of(heading)} == {*PRESETS}


@each_preset
def test_a_preset_says_what_it_imitates(name):
    """The name, the words and the instance type belong together, and a source is told."""
    found = PRESETS[name]

    assert name == f"imitated-7b-on-{found.instance_type}"
    assert found.instance_type in found.imitates
    assert found.source


def test_an_unknown_preset_is_a_key_error():
    """Whoever reads the config tells the user the nearest name."""
    with pytest.raises(KeyError):
        preset("measured-7b")


def test_one_a10g_by_hand():
    """13.48 GB at 480 GB/s and 1 ms; 13.48 GFLOP at 35 TFLOPS; what 21.6 GB hold beside."""
    found = preset("imitated-7b-on-ml.g5.2xlarge")

    assert found.step_s == pytest.approx(0.02808 + 0.001, rel=0.005)
    assert found.prefill_token_s == pytest.approx(385e-6, rel=0.005)
    assert found.decode_sequence_s == 10e-6
    assert found.kv_token_s == pytest.approx(524_288 / 480e9, rel=0.005)
    assert found.kv_tokens == 15_487


def test_eight_a100_by_hand():
    """Weights, 64 agreements and 1 ms; arithmetic and exchange; memory of eight."""
    found = preset("imitated-7b-on-ml.p4d.24xlarge")

    assert found.step_s == pytest.approx(0.001355 + 64 * 20e-6 + 0.001, rel=0.005)
    assert found.prefill_token_s == pytest.approx(10.8e-6 + 917_504 / 230e9, rel=0.005)
    assert found.decode_sequence_s == pytest.approx(10e-6 + 917_504 / 230e9, rel=0.005)
    assert found.kv_tokens == int((320e9 * 0.9 - 13.48e9) / 524_288)


@each_preset
def test_decoding_stays_bound_by_memory(name):
    """With every slot decoding, arithmetic at half the peak is done before the weights are read.

    Ridge of the roofline, in sequences: half the peak by four fifths of the bandwidth, one FLOP
    to one byte.
    """
    ridge = {"g5": 35e12 / 480e9, "p4d": 156e12 / 1244e9, "inf2": 95e12 / 656e9}
    family = PRESETS[name].instance_type.split(".")[1]

    assert preset(name).slots < ridge[family]


@each_preset
def test_the_document_has_every_figure(name):
    """docs/simulated.md lists each preset's profile as the code has it."""
    found = preset(name)

    assert table_of("The presets")[name] == [
        f"{found.step_s * 1e3:g}",
        f"{found.prefill_token_s * 1e6:g}",
        f"{found.decode_sequence_s * 1e6:g}",
        f"{found.kv_token_s * 1e9:g}",
        f"{found.slots}",
        f"{found.kv_tokens:,}",
    ]


@each_preset
def test_the_document_has_the_latencies_that_follow(name):
    """The latencies beside the seed's in docs/simulated.md are those that the model gives."""
    told = [float(cell) for cell in table_of("Beside the seed's report")[name]]

    assert told == [pytest.approx(latency_s(name, users), abs=0.0051) for users in (1, 2, 4)]


@pytest.mark.parametrize(("concurrency", "reported_s"), [(1, 2.02), (2, 2.80), (4, 2.86)])
def test_the_imitated_inf2_is_of_the_seed_s_order(concurrency, reported_s):
    """Its latencies lie within a factor of two of the seed's report on ml.inf2.48xlarge."""
    ratio = latency_s("imitated-7b-on-ml.inf2.48xlarge", concurrency) / reported_s

    assert 0.5 < ratio < 2


def test_the_document_says_simulated_not_measured():
    """Nobody can take a preset's figure for a machine's."""
    assert "**Nothing here was measured.**" in DOCUMENT
    assert not re.search(r"\bmeasured on (a|an|one|four|eight|twelve|ml)\b", DOCUMENT)


@pytest.mark.parametrize(
    ("instance_type", "usd_per_hour"),
    [
        ("ml.g5.2xlarge", 1.515),
        ("ml.g5.12xlarge", 7.09),
        ("ml.g5.48xlarge", 20.36),
        ("ml.p4d.24xlarge", 37.688),
        ("ml.inf2.48xlarge", 15.58),
    ],
)
def test_an_imitated_instance_is_priced_from_the_project_s_table(
    instance_type, usd_per_hour, tmp_path
):
    """The table of AWS prices has the five instance types, with their date and region."""
    (tmp_path / "config.yml").write_text(CONFIG.format(table=PRICES, instance_type=instance_type))
    loaded = load_config(tmp_path / "config.yml")

    price = experiment_price(loaded, loaded.config.experiments[0])

    assert (price.usd_per_hour, price.as_of, price.region) == (
        usd_per_hour,
        date(2025, 4, 11),
        "us-east-1",
    )

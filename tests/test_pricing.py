"""Prices: by the hour and by the token, from tables and from the config, and never by default."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from fmgauge.config import LoadedConfig, load_config
from fmgauge.errors import ConfigError
from fmgauge.pricing import (
    Price,
    experiment_price,
    price_problems,
    price_table,
    projected_spend_usd,
)

TABLE = """\
source: a vendor
as_of: 2026-01-31
region: us-east-1
hourly_usd:
  ml.big: 15.58
  ml.small: 1.5
usd_per_1m_tokens:
  talker: {input: 3, output: 15}
"""
CONFIG = """\
run: {name: priced}
workloads:
  - {name: w, source: {kind: python_docs}, template: "{{ context }}"}
experiments:
  - name: rented
    model: {name: any}
    endpoint: {kind: openai, base_url: "http://127.0.0.1:1/v1"}
    instance_type: ml.big
    instance_count: 2
    workloads: [w]
    load: [{kind: closed_loop, concurrency: [1, 2], duration_s: 50, warmup_s: 10}]
  - name: metered
    model:
      name: talker
    endpoint: {kind: openai, base_url: "http://127.0.0.1:1/v1"}
    workloads: [w]
    load: [{kind: closed_loop, concurrency: [1], duration_s: 50, warmup_s: 10}]
prices: {table: table.yaml}
"""


def loaded(folder: Path, *overrides: str, table: str | None = TABLE) -> LoadedConfig:
    """The config above, with overrides, beside a price table."""
    if table is not None:
        (folder / "table.yaml").write_text(table)
    (folder / "config.yml").write_text(CONFIG)
    return load_config(folder / "config.yml", overrides, folder)


def price(config: LoadedConfig, name: str) -> Price:
    """What the experiment called `name` costs."""
    return experiment_price(config, config.config.experiment(name))


def test_an_instance_type_is_priced_by_the_hour_for_all_instances(tmp_path):
    """Two instances at $15.58 cost $31.16 an hour, with the table's provenance."""
    assert price(loaded(tmp_path), "rented") == Price(
        "hourly", 31.16, None, None, "a vendor", date(2026, 1, 31), "us-east-1"
    )


def test_without_an_instance_type_tokens_are_priced(tmp_path):
    """The model's name finds its price per million tokens."""
    assert price(loaded(tmp_path), "metered") == Price(
        "per_token", None, 3.0, 15.0, "a vendor", date(2026, 1, 31), "us-east-1"
    )


def test_the_config_s_hourly_entry_wins_over_the_table(tmp_path):
    """A negotiated price stands beside the experiment, undated."""
    config = loaded(tmp_path, 'prices.hourly_usd={"ml.big": 10}')

    found = price(config, "rented")

    assert (found.usd_per_hour, found.source, found.as_of) == (20.0, "prices in the config", None)


def test_the_config_s_token_entry_wins_over_the_table(tmp_path):
    """As for hours, so for tokens."""
    config = loaded(tmp_path, "prices.usd_per_1m_tokens={talker: {input: 1, output: 2}}")

    found = price(config, "metered")

    assert (found.usd_per_1m_input, found.usd_per_1m_output) == (1.0, 2.0)


def test_tokens_cost_input_and_output_separately(tmp_path):
    """1000 in at $3 and 200 out at $15 per million are $0.006."""
    assert price(loaded(tmp_path), "metered").tokens_usd(1000, 200) == pytest.approx(0.006)


def test_an_hourly_price_prices_no_tokens(tmp_path):
    """There is no 0 to multiply by."""
    with pytest.raises(ValueError, match="hourly"):
        price(loaded(tmp_path), "rented").tokens_usd(1, 1)


def test_a_missing_hourly_price_is_an_error_at_the_instance_type(tmp_path):
    """File, line, key and remedy."""
    config = loaded(tmp_path, table=TABLE.replace("ml.big", "ml.other"))

    with pytest.raises(ConfigError) as caught:
        price(config, "rented")

    problem = caught.value.problems[0]
    assert (problem.line, problem.key) == (8, "experiments.0.instance_type")
    assert "'ml.big'" in problem.problem
    assert "prices.hourly_usd" in problem.remedy


def test_a_missing_token_price_is_an_error_at_the_model_s_name(tmp_path):
    """File, line, key and remedy."""
    config = loaded(tmp_path, table=TABLE.replace("talker", "other"))

    with pytest.raises(ConfigError) as caught:
        price(config, "metered")

    problem = caught.value.problems[0]
    assert (problem.line, problem.key) == (14, "experiments.1.model.name")
    assert "prices.usd_per_1m_tokens" in problem.remedy


def test_every_unpriced_experiment_is_told_at_once(tmp_path):
    """Without any table both experiments lack a price."""
    config = loaded(tmp_path, "prices.table=null", table=None)

    keys = [problem.key for problem in price_problems(config)]

    assert keys == ["experiments.0.instance_type", "experiments.1.model.name"]


def test_a_priced_config_has_no_problem(tmp_path):
    """Every experiment finds its price and no spending limit binds."""
    assert price_problems(loaded(tmp_path)) == []


def test_a_missing_table_is_told_where_it_is_named(tmp_path):
    """At prices.table, not at the experiments that miss their prices."""
    problems = price_problems(loaded(tmp_path, table=None))

    assert [(p.key, p.problem) for p in problems] == [
        ("prices.table", "there is no file table.yaml")
    ]


@pytest.mark.parametrize(
    ("before", "after", "line", "key"),
    [
        ("ml.small: 1.5", "ml.small: 0", 6, 'hourly_usd."ml.small"'),
        ("ml.small: 1.5", "ml.small: -1", 6, 'hourly_usd."ml.small"'),
        ("ml.small: 1.5", "ml.small: cheap", 6, 'hourly_usd."ml.small"'),
        ("ml.small: 1.5", "ml.small: .inf", 6, 'hourly_usd."ml.small"'),
        ("as_of: 2026-01-31", "as_of: lately", 2, "as_of"),
        ("region:", "regoin:", 3, "regoin"),
        ("output: 15", "ouput: 15", 8, "usd_per_1m_tokens.talker.ouput"),
        (TABLE, "- a list", 1, ""),
    ],
)
def test_a_malformed_table_is_an_error_in_its_own_file(tmp_path, before, after, line, key):
    """The table's file, line and key are named; no price of 0 passes."""
    config = loaded(tmp_path, table=TABLE.replace(before, after))

    problems = price_problems(config)

    assert (line, key) in [(problem.line, problem.key) for problem in problems]
    assert {problem.file for problem in problems} == {str(tmp_path / "table.yaml")}


def test_a_table_without_a_date_is_refused(tmp_path):
    """An undated price is no price."""
    config = loaded(tmp_path, table=TABLE.replace("as_of: 2026-01-31\n", ""))

    with pytest.raises(ConfigError, match="as_of: this key is missing"):
        price_table(config)


def test_projected_spend_is_time_under_load_at_hourly_prices(tmp_path):
    """Two stages of 60 s on two instances, or of four times as long as they go on until steady.

    What the metered experiment's tokens will cost is not known.
    """
    least_usd = 2 * 60 / 3600 * 31.16

    assert projected_spend_usd(loaded(tmp_path)) == pytest.approx((least_usd, 4 * least_usd))


@pytest.mark.parametrize(("limit", "keys"), [(4.15, ["budgets.spend_usd"]), (4.16, [])])
def test_a_plan_dearer_than_the_spending_limit_is_refused(tmp_path, limit, keys):
    """The plan may cost $4.1547."""
    config = loaded(tmp_path, f"budgets.spend_usd={limit}")

    assert [problem.key for problem in price_problems(config)] == keys


COUNTED = "experiments.{}.load.0={{kind: closed_loop, concurrency: [1], requests: 5, warmup_s: 36}}"


def test_a_count_alone_cannot_keep_within_a_spending_limit(tmp_path):
    """How long five requests take is not known; the limit asks for a longest time."""
    config = loaded(tmp_path, COUNTED.format(0), "budgets.spend_usd=100")

    problems = price_problems(config)

    assert [(p.key, p.problem, p.remedy) for p in problems] == [
        (
            "experiments.0.load.0.requests",
            "how long this takes is not known, so budgets.spend_usd cannot be kept",
            "Give duration_s or duration_max_s, too",
        )
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        [COUNTED.format(0)],
        [COUNTED.format(1), "budgets.spend_usd=100"],
        [COUNTED.format(0), "experiments.0.load.0.duration_s=50", "budgets.spend_usd=100"],
    ],
    ids=["no limit", "priced per token", "a longest time"],
)
def test_a_count_alone_is_taken_where_no_limit_hangs_on_it(tmp_path, overrides):
    """A limit is on hourly instances, and a longest time is enough for it."""
    assert price_problems(loaded(tmp_path, *overrides)) == []


def test_of_what_a_count_ends_the_warm_up_is_projected(tmp_path):
    """36 s of two instances at 15.58 an hour, or 4 x (36 s + 60 s) - 60 s until it is steady."""
    projected = projected_spend_usd(loaded(tmp_path, COUNTED.format(0)))

    assert projected == pytest.approx((0.3116, 0.3116 / 36 * 324))

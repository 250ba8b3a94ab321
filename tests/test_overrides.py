"""--set changes one key of a config, and every error in what it set names --set, not a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmgauge.config import load_config
from fmgauge.config.keys import dotted_key, key_parts, split_assignment
from fmgauge.config.overrides import apply_override
from fmgauge.errors import ConfigError

DATA = {
    "run": {"name": "probe", "seed": 7},
    "experiments": [{"name": "one", "workloads": ["a", "b"]}, {"name": "two"}],
    "prices": None,
    "empty": [],
}
CONFIG = """\
run: {name: probe, seed: 7}
workloads:
  - name: short
    source: {kind: python_docs}
    filter: {min_tokens: 10}
experiments:
  - name: one
    model: {name: small}
    endpoint: {kind: llamacpp, parallel: 4}
    workloads: [short]
    load: [{kind: closed_loop, concurrency: [1, 2]}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A sound config in a file."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    return path


def refusal(path: Path, *overrides: str) -> str:
    """What is told of the config at `path` with `overrides`."""
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    return str(raised.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.seed=8", {**DATA, "run": {"name": "probe", "seed": 8}}),
        ("run.name=x", {**DATA, "run": {"name": "x", "seed": 7}}),
        ("run.name='8'", {**DATA, "run": {"name": "8", "seed": 7}}),
        ("run.name=2026-01-01", {**DATA, "run": {"name": "2026-01-01", "seed": 7}}),
        ("run.name=a=b", {**DATA, "run": {"name": "a=b", "seed": 7}}),
        ("run.name=", {**DATA, "run": {"name": None, "seed": 7}}),
        ("run={name: y}", {**DATA, "run": {"name": "y"}}),
        (
            "experiments.0.workloads.1=c",
            {**DATA, "experiments": [{"name": "one", "workloads": ["a", "c"]}, {"name": "two"}]},
        ),
        ("experiments.1=x", {**DATA, "experiments": [DATA["experiments"][0], "x"]}),
        ("empty=[1, 2]", {**DATA, "empty": [1, 2]}),
        ("prices.hourly_usd.cpu=0.1", {**DATA, "prices": {"hourly_usd": {"cpu": 0.1}}}),
        ("budgets.ttft_s.p95=1", {**DATA, "budgets": {"ttft_s": {"p95": 1}}}),
        (
            'prices.hourly_usd."ml.g5.xlarge"=1.41',
            {**DATA, "prices": {"hourly_usd": {"ml.g5.xlarge": 1.41}}},
        ),
        ('"a b"=1', {**DATA, "a b": 1}),
        ('"a=b".c=1', {**DATA, "a=b": {"c": 1}}),
        ("run.0=1", {**DATA, "run": {"name": "probe", "seed": 7, "0": 1}}),
    ],
)
def test_an_override_sets_one_value(override, expected):
    """Keys are dotted, items numbered, dots quoted, missing mappings made, values YAML."""
    assert apply_override(DATA, override) == expected


def test_an_override_leaves_the_data_as_it_was():
    """The data that is given is not changed."""
    before = repr(DATA)

    apply_override(DATA, "experiments.0.workloads.0=z")

    assert repr(DATA) == before


SPELLING = "Write it as --set a.b.c=value; a part that holds dots stands in double quotes"
TAG = "Remove the tag: only plain YAML values are read, or put the value in quotes"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("run.name", f"run.name: this is not key=value. {SPELLING}"),
        ("=x", f"this is not key=value. {SPELLING}"),
        ("run..name=x", f"run..name: this is not key=value. {SPELLING}"),
        (".name=x", f".name: this is not key=value. {SPELLING}"),
        ("run.name.=x", f"run.name.: this is not key=value. {SPELLING}"),
        ("run name=x", f"run name: this is not key=value. {SPELLING}"),
        ('run."name=x', f'run."name: this is not key=value. {SPELLING}'),
        (
            "experiments.2.name=x",
            "experiments.2.name: there is no item 2 in that list. "
            "Name an item by its number, 0 to 1",
        ),
        (
            "experiments.-1.name=x",
            "experiments.-1.name: there is no item -1 in that list. "
            "Name an item by its number, 0 to 1",
        ),
        (
            "experiments.one.name=x",
            "experiments.one.name: there is no item one in that list. "
            "Name an item by its number, 0 to 1",
        ),
        (
            f"experiments.{'9' * 5000}=x",
            f"experiments.{'9' * 5000}: there is no item {'9' * 5000} in that list. "
            "Name an item by its number, 0 to 1",
        ),
        (
            "empty.0=x",
            "empty.0: there is no item 0 in that list. Name an item only once the list holds one",
        ),
        (
            "run.seed.x=1",
            "run.seed.x: run.seed is a plain value, nothing lies below it. Set run.seed",
        ),
        (
            "run.name=[",
            "run.name: is not YAML: expected the node content, but found '<stream end>'. "
            "Mend its syntax, or put the value in quotes",
        ),
        (
            "run.name=!!python/name:os.getcwd",
            f"run.name: the tag !!python/name:os.getcwd is refused. {TAG}",
        ),
        (
            f"run.name={'[' * 1000}",  # more than Python calls within each other
            "run.name: is nested more than 50 levels deep, or holds itself. "
            "Flatten it, or put the value in quotes",
        ),
        (
            f"{'.'.join('a' * 21)}=1",
            f"{'.'.join('a' * 21)}: this key has more than 20 parts. Shorten it",
        ),
    ],
)
def test_an_override_that_cannot_be_applied_names_the_option(override, told):
    """What cannot be applied is told with the key alone: the value may be a secret."""
    with pytest.raises(ConfigError) as raised:
        apply_override(DATA, override)

    assert str(raised.value) == f"--set: {told}"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "run.name=1",
            "--set: run.name: must be text, not 1. Put it in quotes: --set 'run.name=\"1\"'",
        ),
        (
            "run.seed=x",
            '--set: run.seed: must be a whole number, not "x". '
            "Change it (Seed of every random choice in the run)",
        ),
        ("run.sede=8", "--set: run.sede: unknown key. Did you mean 'seed'?"),
        (
            "experiments.0.endpoint.parallel=0",
            "--set: experiments.0.endpoint.parallel: must be at least 1, not 0. "
            "Change it (Requests served side by side (slots))",
        ),
        (
            "experiments.0.load.0.concurrency=[1, 0]",
            "--set: experiments.0.load.0.concurrency.1: must be at least 1, not 0. "
            "Change it (Requests kept in flight; one stage each)",
        ),
        (
            "budgets.ttft_s={mean: -1}",
            "--set: budgets.ttft_s.mean: must be more than 0, not -1. "
            "Change it (Limit on the mean)",
        ),
        (
            'prices.hourly_usd."ml.g5.xlarge"=.inf',
            '--set: prices.hourly_usd."ml.g5.xlarge": must be a finite number, not .inf. '
            "Change it (Instance type: USD per instance and hour)",
        ),
        (
            "run={}",
            "--set: run.name: this key is missing. Add it (First part of every run id)",
        ),
        (
            "workloads.0.filter.max_tokens=9",
            "--set: workloads.0.filter.max_tokens: 9 is below min_tokens, which is 10. "
            "Raise it, or lower min_tokens",
        ),
        (
            "experiments.0.workloads.0=shrt",
            "--set: experiments.0.workloads.0: there is no workload 'shrt'. Did you mean 'short'?",
        ),
    ],
)
def test_a_wrong_value_from_an_override_names_the_option(config, override, told):
    """An error in a value that --set gave points there, by the key, not at a line of the file."""
    assert refusal(config, override).splitlines()[0] == told


def test_a_fault_of_the_file_still_names_its_line(config):
    """--set on one key leaves the places of the others alone."""
    config.write_text(CONFIG.replace("parallel: 4", "parallel: 0"))

    told = refusal(config, "experiments.0.endpoint.threads=0")

    assert [line.split(": must")[0] for line in told.splitlines()] == [
        f"{config}:9: experiments.0.endpoint.parallel",
        "--set: experiments.0.endpoint.threads",
    ]


def test_the_last_of_several_overrides_wins(config):
    """Overrides are applied in the order in which they were typed."""
    loaded = load_config(config, ["run.seed=8", "run.seed=9", "run.name=x"])

    assert (loaded.config.run.seed, loaded.config.run.name) == (9, "x")


def test_an_override_can_mend_the_file(config):
    """The config is checked after overrides, not before."""
    config.write_text(CONFIG.replace("parallel: 4", "parallel: 0"))

    loaded = load_config(config, ["experiments.0.endpoint.parallel=2"])

    assert loaded.config.experiment("one").endpoint.parallel == 2


def test_overrides_of_a_file_without_a_mapping_are_refused_for_the_file(config):
    """A config that is a list is told as such before any override is applied."""
    config.write_text("- 1\n")

    assert refusal(config, "0=run").startswith(f"{config}:1: must be a mapping of keys. ")


PARTS = st.text(
    st.characters(codec="utf-8", exclude_characters='"', exclude_categories=("Cc",)), min_size=1
)


@given(st.lists(PARTS, min_size=1, max_size=5), st.text())
def test_every_key_can_be_spelt_and_read_back(parts, value):
    """A dotted key splits into the parts that it was made of, whatever dots they hold."""
    assignment = split_assignment(f"{dotted_key(parts)}={value}")

    assert assignment == (dotted_key(parts), value)
    assert key_parts(dotted_key(parts)) == parts


@given(st.text(max_size=40))
def test_any_override_is_applied_or_a_config_error(override):
    """No text after --set makes it fail in a way of its own."""
    try:
        outcome = apply_override(DATA, override)
    except ConfigError as error:
        outcome = error.problems[0].file
    assert outcome == "--set" or isinstance(outcome, dict)

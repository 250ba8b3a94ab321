"""A config that cannot be used is told in plain words: file, line, key, problem, remedy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fmgauge.config import Config, differing_keys, load_config, planned_stages
from fmgauge.config.model import (
    Budgets,
    ClosedLoop,
    Experiment,
    LlamacppEndpoint,
    OpenLoop,
    Prices,
    RunSettings,
    Workload,
)
from fmgauge.config.stages import load_label
from fmgauge.config.yaml_text import parse_yaml, to_yaml
from fmgauge.errors import ConfigError

GOOD = """\
run: {name: probe, seed: 7}
workloads:
  - name: short
    source: {kind: jsonl, paths: [rows.jsonl]}
    filter: {min_tokens: 1, max_tokens: 100}
  - name: long
    source: {kind: python_docs}
experiments:
  - name: one
    model: {name: small}
    endpoint: {kind: openai, base_url: "http://127.0.0.1:8000/v1"}
    instance_type: local-cpu
    workloads: [short, long]
    load:
      - {kind: closed_loop, concurrency: [1, 2], duration_s: 9}
  - name: two
    model: {name: small}
    endpoint: {kind: llamacpp, parallel: 4}
    workloads: [short]
    load:
      - {kind: closed_loop, concurrency: [1], duration_s: 9}
budgets: {error_rate: 0.5}
prices: {hourly_usd: {local-cpu: 0.1}}
"""
NAME_REMEDY = (
    "It becomes a folder's name: begin it with a letter or a digit, and use only letters, digits, "
    "dots, dashes and underscores, 100 characters at most"
)
CLOSED = "kind: closed_loop, concurrency: [1, 2], duration_s: 9"
OPEN = "kind: open_loop, request_rate: [0.5, 2]"
PATH = "config.yml"
SCHEME = "does not begin with http:// or https://. Write it like http://localhost:8000/v1"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str | bytes, *overrides: str) -> Config:
    """The config that `text` describes."""
    Path(PATH).write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(PATH, overrides).config


def refusal(text: str | bytes) -> str:
    """What is told of `text`, one problem a line."""
    with pytest.raises(ConfigError) as raised:
        load(text)
    return str(raised.value)


def changed(before: str, after: str) -> str:
    """GOOD with its first `before` replaced."""
    assert before in GOOD
    return GOOD.replace(before, after, 1)


def test_a_sound_config_loads():
    """Every value arrives, and what is not given has its default."""
    config = load(GOOD)

    assert (config.run.name, config.run.seed, config.run.results_dir) == ("probe", 7, "results")
    assert config.experiment("two").endpoint.parallel == 4
    assert config.workload("short").filter.max_tokens == 100
    assert config.workload_of_interest == "short"
    assert config.budgets.error_rate == 0.5
    assert config.prices.hourly_usd == {"local-cpu": 0.1}


def test_a_config_cannot_be_changed():
    """A loaded config is frozen."""
    config = load(GOOD)

    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 8


def test_stages_come_in_the_order_of_running():
    """Experiment by experiment, workload by workload, load level by load level."""
    stages = [str(stage.key) for stage in planned_stages(load(GOOD))]

    assert stages == [
        "one/short/concurrency-1",
        "one/short/concurrency-2",
        "one/long/concurrency-1",
        "one/long/concurrency-2",
        "two/short/concurrency-1",
    ]


def test_a_stage_plans_its_warm_up_too():
    """The planned time of a stage is its warm-up and its window."""
    assert [stage.planned_s for stage in planned_stages(load(GOOD))] == [14.0] * 5


def test_open_loop_stages_are_named_by_rate_and_arrivals():
    """The rate as it was written; Poisson, the rule, is not named."""
    constant = "kind: open_loop, request_rate: [2000000], arrivals: constant, requests: 9"
    loads = f"{{{OPEN}}}\n      - {{{constant}}}"
    stages = planned_stages(load(changed(f"{{{CLOSED}}}", loads)))[:3]

    assert [stage.name for stage in stages] == ["rate-0.5", "rate-2", "rate-2000000-constant"]
    assert [stage.request_rate for stage in stages] == [0.5, 2.0, 2e6]
    assert {stage.concurrency for stage in stages} == {None}


@pytest.mark.parametrize(
    ("loads", "names"),
    [
        (
            ["kind: closed_loop, concurrency: [2]", f"{CLOSED}, think_time_s: 0.5"],
            ["concurrency-2", "concurrency-1", "concurrency-2-think-0.5"],
        ),
        (
            [f"{OPEN}, arrivals: gamma, burstiness: {shape}" for shape in (0.3, 2)],
            [
                f"rate-{rate}-gamma-burstiness-{shape}"
                for shape in ("0.3", "2")
                for rate in ("0.5", "2")
            ],
        ),
        (
            ["kind: open_loop, request_rate: [2]", f"{OPEN}, max_in_flight: 8"],
            ["rate-2", "rate-0.5", "rate-2-at-most-8"],
        ),
        (
            [
                f"kind: open_loop, request_rate: [2], arrivals: ramp, ramp_to_rate: {to}"
                for to in (4, 8)
            ],
            ["rate-2-ramp-to-4", "rate-2-ramp-to-8"],
        ),
    ],
)
def test_loads_of_one_level_are_named_by_what_tells_them_apart(loads, names):
    """Think time, burstiness, cap, a ramp's end: named only where a name would stand twice."""
    config = load(changed(f"{{{CLOSED}}}", "\n      - ".join(f"{{{one}}}" for one in loads)))
    stages = [stage for stage in planned_stages(config) if stage.experiment.name == "one"]

    assert [stage.name for stage in stages if stage.workload.name == "short"] == names


@pytest.mark.parametrize(
    ("given", "most_s"),
    [
        ("duration_s: 9", (4 * 14.0 - 9.0, 4 * 14.0)),
        ("duration_s: 9, warmup_max_s: 20", (20.0, 4 * 14.0)),
        ("duration_s: 9, duration_max_s: 10", (4 * 14.0 - 9.0, 4 * 14.0 - 9.0 + 10.0)),
        ("duration_s: 9, warmup_max_s: 7, duration_max_s: 10", (7.0, 17.0)),
        ("requests: 100", (4 * 65.0 - 60.0, None)),
        ("requests: 100, duration_max_s: 30", (4 * 65.0 - 60.0, 4 * 65.0 - 60.0 + 30.0)),
    ],
)
def test_a_stage_takes_at_most_four_times_what_was_asked_or_its_own_limits(given, most_s):
    """The longest warm-up, and the longest that warm-up and window take together."""
    stage = planned_stages(load(changed("duration_s: 9", given)))[0]

    assert (stage.most_warmup_s, stage.most_planned_s) == most_s


def test_a_ramp_takes_no_longer_than_its_warm_up_makes_it():
    """Its window has the length that was asked for, whatever duration_max_s says."""
    ramp = "kind: open_loop, request_rate: [2], arrivals: ramp, ramp_to_rate: 4, duration_s: 9"
    stage = planned_stages(load(changed(CLOSED, f"{ramp}, duration_max_s: 90")))[0]

    assert stage.most_window_s(5.0) == 9.0


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (CLOSED, ["1 in flight", "2 in flight"]),
        (OPEN, ["0.5 requests/s", "2 requests/s"]),
        ("kind: open_loop, request_rate: [1]", ["1 request/s"]),
        (f"{OPEN}, arrivals: constant", ["0.5 requests/s (constant)", "2 requests/s (constant)"]),
        (
            "kind: open_loop, request_rate: [2], arrivals: ramp, ramp_to_rate: 5",
            ["3.5 requests/s (mean of a ramp)"],
        ),
    ],
)
def test_a_load_level_has_one_label(given, labels):
    """Requests in flight, or requests a second; of a ramp, the mean of its ends."""
    config = load(changed(CLOSED, given))
    stages = [stage for stage in planned_stages(config) if stage.experiment.name == "one"]

    assert [stage.label for stage in stages if stage.workload.name == "short"] == labels


@pytest.mark.parametrize(
    ("given", "ends", "planned_s"),
    [
        ("", (60.0, None), 65.0),
        (", duration_s: 9", (9.0, None), 14.0),
        (", requests: 100", (None, 100), None),
        (", requests: 100, duration_s: 9", (9.0, 100), 14.0),
        (", requests: null", (60.0, None), 65.0),
    ],
)
def test_a_window_ends_by_time_by_count_or_by_the_first_of_both(given, ends, planned_s):
    """60 s where neither is given; a count alone leaves the planned time unknown."""
    config = load(changed(", duration_s: 9", given))
    own = config.experiment("one").load[0]

    assert (own.duration_s, own.requests) == ends
    assert planned_stages(config)[0].planned_s == planned_s


def test_what_only_a_count_ends_is_planned_for_its_warm_up_at_least():
    """Nobody knows how long the requests take."""
    stage = planned_stages(load(changed("duration_s: 9", "requests: 10, warmup_s: 3")))[0]

    assert stage.least_planned_s == 3.0


# --- one field ------------------------------------------------------------------------------------


def said(model: type[BaseModel], key: str) -> str:
    """What a remedy adds of the key that it is about: the key's own description."""
    description = model.model_fields[key].description
    assert description
    return f"({description.removesuffix('.')})"


RESTS = {
    "unknown key": (
        "seed: 7",
        "sede: 7",
        "config.yml:1: run.sede: unknown key. Did you mean 'seed'?",
    ),
    "unknown key, nothing near": (
        "seed: 7",
        "xyzzy: 7",
        "config.yml:1: run.xyzzy: unknown key. Use one of name, results_dir, seed, workers",
    ),
    "unknown key in a variant": (
        "parallel: 4",
        "parallels: 4",
        "config.yml:18: experiments.1.endpoint.parallels: unknown key. Did you mean 'parallel'?",
    ),
    "key of another variant": (
        "parallel: 4",
        "base_url: http://h",
        "config.yml:18: experiments.1.endpoint.base_url: belongs to kind: openai, not to "
        "kind: llamacpp. Remove it, or change the kind",
    ),
    "missing key": (
        "name: probe, ",
        "",
        "config.yml:1: run.name: this key is missing. Add it (First part of every run id)",
    ),
    "a number where text is wanted": (
        "name: probe",
        "name: 7",
        "config.yml:1: run.name: must be text, not 7. Put it in quotes",
    ),
    "nothing where text is wanted": (
        "name: probe",
        "name:",
        f"config.yml:1: run.name: must be text, not empty. Change it {said(RunSettings, 'name')}",
    ),
    "text where a whole number is wanted": (
        "seed: 7",
        'seed: "7"',
        'config.yml:1: run.seed: must be a whole number, not "7". Write it as 7, without quotes',
    ),
    "words where a whole number is wanted": (
        "seed: 7",
        "seed: seven",
        'config.yml:1: run.seed: must be a whole number, not "seven". '
        f"Change it {said(RunSettings, 'seed')}",
    ),
    "a fraction where a whole number is wanted": (
        "seed: 7",
        "seed: 7.5",
        "config.yml:1: run.seed: must be a whole number, not 7.5. "
        f"Change it {said(RunSettings, 'seed')}",
    ),
    "a truth value where a whole number is wanted": (
        "seed: 7",
        "seed: yes",
        "config.yml:1: run.seed: must be a whole number, not true. "
        f"Change it {said(RunSettings, 'seed')}",
    ),
    "an exponent that YAML takes for text": (
        "duration_s: 9",
        "duration_s: 1e3",
        'config.yml:15: experiments.0.load.0.duration_s: must be a number, not "1e3". '
        "Write it as 1000, without quotes",
    ),
    "a number where a list is wanted": (
        "[1, 2]",
        "4",
        "config.yml:15: experiments.0.load.0.concurrency: must be a list, not 4. Write it as [4]",
    ),
    "a mapping where a list is wanted": (
        "[1, 2]",
        "{a: 1}",
        "config.yml:15: experiments.0.load.0.concurrency: must be a list, not a mapping. "
        f"Change it {said(ClosedLoop, 'concurrency')}",
    ),
    "a list where a mapping is wanted": (
        "{error_rate: 0.5}",
        "[1]",
        "config.yml:22: budgets: must be a mapping, not a list. "
        f"Change it {said(Config, 'budgets')}",
    ),
    "text where a variant is wanted": (
        "{kind: llamacpp, parallel: 4}",
        "llamacpp",
        'config.yml:18: experiments.1.endpoint: must be a mapping, not "llamacpp". '
        f"Change it {said(Experiment, 'endpoint')}",
    ),
    "text where true or false is wanted": (
        "source: {kind: python_docs}",
        "source: {kind: python_docs}\n    salt: 'no'",
        'config.yml:8: workloads.1.salt: must be true or false, not "no". '
        f"Change it {said(Workload, 'salt')}",
    ),
    "concurrency 0": (
        "[1, 2]",
        "[1, 0]",
        "config.yml:15: experiments.0.load.0.concurrency.1: must be at least 1, not 0. "
        f"Change it {said(ClosedLoop, 'concurrency')}",
    ),
    "negative concurrency": (
        "[1, 2]",
        "[-3]",
        "config.yml:15: experiments.0.load.0.concurrency.0: must be at least 1, not -3. "
        f"Change it {said(ClosedLoop, 'concurrency')}",
    ),
    "no concurrency": (
        "[1, 2]",
        "[]",
        "config.yml:15: experiments.0.load.0.concurrency: must not be empty. "
        f"Fill it {said(ClosedLoop, 'concurrency')}",
    ),
    "no workloads of an experiment": (
        "[short, long]",
        "[]",
        "config.yml:13: experiments.0.workloads: must not be empty. "
        f"Fill it {said(Experiment, 'workloads')}",
    ),
    "empty text": (
        "instance_type: local-cpu",
        "instance_type: ''",
        "config.yml:12: experiments.0.instance_type: must not be empty. "
        f"Fill it {said(Experiment, 'instance_type')}",
    ),
    "a duration of 0": (
        "duration_s: 9",
        "duration_s: 0",
        "config.yml:15: experiments.0.load.0.duration_s: must be more than 0, not 0. "
        f"Change it {said(ClosedLoop, 'duration_s')}",
    ),
    "a share above 1": (
        "error_rate: 0.5",
        "error_rate: 1.5",
        "config.yml:22: budgets.error_rate: must be at most 1, not 1.5. "
        f"Change it {said(Budgets, 'error_rate')}",
    ),
    "a seed that no generator takes": (
        "seed: 7",
        "seed: 4294967296",
        "config.yml:1: run.seed: must be at most 4294967295, not 4294967296. "
        f"Change it {said(RunSettings, 'seed')}",
    ),
    "a width that no head divides": (
        "parallel: 4",
        "width: 100",
        "config.yml:18: experiments.1.endpoint.width: must be a multiple of 64, not 100. "
        f"Change it {said(LlamacppEndpoint, 'width')}",
    ),
    "an unknown kind": (
        "kind: python_docs",
        "kind: python_doc",
        "config.yml:7: workloads.1.source.kind: there is no kind 'python_doc'. "
        "Did you mean 'python_docs'?",
    ),
    "no kind": (
        "{kind: python_docs}",
        "{}",
        "config.yml:7: workloads.1.source.kind: this key is missing. "
        "Add it: one of jsonl, python_docs, synthetic, huggingface",
    ),
    "an unknown kind of load": (
        "kind: closed_loop",
        "kind: open_lop",
        "config.yml:15: experiments.0.load.0.kind: there is no kind 'open_lop'. "
        "Did you mean 'open_loop'?",
    ),
    "a key of the other kind of load": (
        f"{{{CLOSED}}}",
        f"{{{OPEN}, think_time_s: 1}}",
        "config.yml:15: experiments.0.load.0.think_time_s: belongs to kind: closed_loop, not to "
        "kind: open_loop. Remove it, or change the kind",
    ),
    "a rate of 0": (
        CLOSED,
        "kind: open_loop, request_rate: [2, 0]",
        "config.yml:15: experiments.0.load.0.request_rate.1: must be more than 0, not 0. "
        f"Change it {said(OpenLoop, 'request_rate')}",
    ),
    "a negative rate": (
        CLOSED,
        "kind: open_loop, request_rate: [-1.5]",
        "config.yml:15: experiments.0.load.0.request_rate.0: must be more than 0, not -1.5. "
        f"Change it {said(OpenLoop, 'request_rate')}",
    ),
    "no rate": (
        CLOSED,
        "kind: open_loop, request_rate: []",
        "config.yml:15: experiments.0.load.0.request_rate: must not be empty. "
        f"Fill it {said(OpenLoop, 'request_rate')}",
    ),
    "a burstiness that no gap survives": (
        CLOSED,
        f"{OPEN}, arrivals: gamma, burstiness: 0.001",
        "config.yml:15: experiments.0.load.0.burstiness: must be at least 0.01, not 0.001. "
        f"Change it {said(OpenLoop, 'burstiness')}",
    ),
    "a bad number before a default that hangs on it": (
        "duration_s: 9",
        "requests: 0",
        "config.yml:15: experiments.0.load.0.requests: must be at least 1, not 0. "
        f"Change it {said(ClosedLoop, 'requests')}",
    ),
    "a count that no float holds": (
        CLOSED,
        f"{OPEN}, requests: 1{'0' * 400}",
        "config.yml:15: experiments.0.load.0.requests: must be at most 1e+15, not "
        f"1{'0' * 58}…. Change it {said(OpenLoop, 'requests')}",
    ),
    "a negative think time": (
        "duration_s: 9",
        "duration_s: 9, think_time_s: -1",
        "config.yml:15: experiments.0.load.0.think_time_s: must be at least 0, not -1. "
        f"Change it {said(ClosedLoop, 'think_time_s')}",
    ),
    "no worker": (
        "seed: 7",
        "workers: 0",
        "config.yml:1: run.workers: must be at least 1, not 0. "
        f"Change it {said(RunSettings, 'workers')}",
    ),
    "a fault below a dotted key": (
        "{local-cpu: 0.1}",
        "{ml.g5.xlarge: 0}",
        'config.yml:23: prices.hourly_usd."ml.g5.xlarge": must be more than 0, not 0. '
        f"Change it {said(Prices, 'hourly_usd')}",
    ),
}


@pytest.mark.parametrize("case", RESTS)
def test_a_wrong_value_is_told_once(case):
    """One fault makes one line, with what is wanted, what stands there and what to do."""
    before, after, expected = RESTS[case]

    assert refusal(changed(before, after)) == expected


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "..", ".", ".hidden", "a/b", "a\\b", "a b", "-x", "é", "x" * 101, "a\n", "~"],
)
def test_a_name_that_would_leave_its_folder_says_what_a_name_may_hold(name):
    """Names become folders, so paths, hidden files and blanks are refused."""
    written = yaml.safe_dump({"name": name, "seed": 7}, width=1000, default_flow_style=True).strip()
    shown = name if len(name) <= 60 else f"{name[:59]}…"

    told = refusal(changed("{name: probe, seed: 7}", written))

    assert told == f'config.yml:1: run.name: "{shown}" cannot be a name. {NAME_REMEDY}'


def test_an_empty_name_says_what_a_name_may_hold():
    """An experiment's name is a folder too."""
    told = refusal(changed("name: two", "name: ''"))

    assert told == f'config.yml:16: experiments.1.name: "" cannot be a name. {NAME_REMEDY}'


@pytest.mark.parametrize("name", ["a", "7b", "Llama-2.7b_x", "x" * 100, "2026-01-01"])
def test_a_name_of_letters_digits_dots_dashes_and_underscores_is_taken(name):
    """What a folder can be called on every system is a name; a date is one too."""
    assert load(changed("name: probe", f"name: {name}")).run.name == name


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("localhost:8000/v1", f'"localhost:8000/v1" {SCHEME}'),
        ("ftp://host/v1", f'"ftp://host/v1" {SCHEME}'),
        ("", f'"" {SCHEME}'),
        ("http://", '"http://" is not an address. Write it like http://localhost:8000/v1'),
        ("http:///v1", '"http:///v1" is not an address. Write it like http://localhost:8000/v1'),
        ("http://h:0", '"http://h:0" is not an address. Write it like http://localhost:8000/v1'),
        ("http://h:65536", None),
        ("http://h:port/v1", None),
        ("http://[::1", None),
        ("http://h /v1", None),
    ],
)
def test_an_address_says_what_it_lacks(address, told):
    """An address without scheme or host is refused, with one that would do."""
    told = told or f'"{address}" is not an address. Write it like http://localhost:8000/v1'

    problem = refusal(changed("http://127.0.0.1:8000/v1", address))

    assert problem == f"config.yml:11: experiments.0.endpoint.base_url: {told}"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (
            "https://me:hunter2@host/v1",
            "holds credentials. "
            "Remove them, and name the variable that holds the key in api_key_env",
        ),
        (
            "me:hunter2@host/v1",
            "holds credentials. "
            "Remove them, and name the variable that holds the key in api_key_env",
        ),
        (
            "https://host/v1?key=hunter2",
            "goes on after its path. Remove everything from the ? or # on",
        ),
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_shown(address, told):
    """A secret in an address is neither taken nor repeated."""
    problem = refusal(changed("http://127.0.0.1:8000/v1", address))

    assert problem == f"config.yml:11: experiments.0.endpoint.base_url: {told}"


@pytest.mark.parametrize("route", ["/chat/completions", "/completions", "/chat/completions/"])
def test_an_address_that_names_the_route_is_refused(route):
    """Requests add the route to the address; twice, the server would not know it."""
    address = f"http://h/v1{route}"

    problem = refusal(changed("http://127.0.0.1:8000/v1", address))

    assert problem == (
        f'config.yml:11: experiments.0.endpoint.base_url: "{address}" goes on after the API\'s '
        f"base. Cut {route.rstrip('/')} off: it is added to the address when a request is sent"
    )


@pytest.mark.parametrize("address", ["http://h", "https://h:443/v1", "http://[::1]:8000/v1/"])
def test_an_http_address_is_taken(address):
    """http and https, with or without port and path, are addresses."""
    config = load(changed("http://127.0.0.1:8000/v1", address))

    assert config.experiment("one").endpoint.base_url == address


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("http://bücher.example/v1", "http://xn--bcher-kva.example/v1"),
        ("https://BÜCHER.example:8443/v1/", "https://xn--bcher-kva.example:8443/v1/"),
        ("http://例え.jp", "http://xn--r8jz45g.jp"),
        ("http://[::1]:80/größe%20/v1", "http://[::1]:80/gr%C3%B6%C3%9Fe%20/v1"),
        ("http://xn--bcher-kva.example/v1", "http://xn--bcher-kva.example/v1"),
        ("http://My_Host./v1", "http://My_Host./v1"),
    ],
)
def test_an_address_is_taken_in_ascii(address, taken):
    """An internationalized host becomes what DNS knows it as; what is ASCII stays as it is."""
    config = load(changed("http://127.0.0.1:8000/v1", address))

    assert config.experiment("one").endpoint.base_url == taken


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("bücher..example", "is not a host name"),
        (f"{'ü' * 58}", "is not a host name"),
        ("a..b", "is not a host name"),
        ("xn--ü.example", "is not a host name"),
        ("faß.example", "may stand for several host names"),  # fass.example, or a name of its own
        ("例え。jp", "may stand for several host names"),
    ],
)
def test_a_host_that_has_no_one_name_in_dns_is_refused(host, why):
    """A name that IDNA refuses, or would change into another, says how to write it."""
    problem = refusal(changed("http://127.0.0.1:8000/v1", f"http://{host}/v1"))

    assert problem == (
        f'config.yml:11: experiments.0.endpoint.base_url: "{host}" {why}. Write it as DNS has it, '
        "like example.com, or xn--bcher-kva.example for bücher.example"
    )


def test_a_key_in_place_of_its_variable_is_refused_and_not_shown():
    """api_key_env names a variable; the key itself is not repeated."""
    problem = refusal(changed("{kind: openai,", "{kind: openai, api_key_env: sk-hunter2,"))

    assert problem == (
        "config.yml:11: experiments.0.endpoint.api_key_env: is not the name of an environment "
        "variable. Give the variable's name, such as OPENAI_API_KEY, never the key itself"
    )


FLOATS = {
    "duration_s": ("duration_s: 9", "duration_s: {}", "experiments.0.load.0.duration_s", 15),
    "warmup_s": ("duration_s: 9", "warmup_s: {}", "experiments.0.load.0.warmup_s", 15),
    "timeout_s": ("duration_s: 9", "timeout_s: {}", "experiments.0.load.0.timeout_s", 15),
    "request_rate": (
        CLOSED,
        "kind: open_loop, request_rate: [{}]",
        "experiments.0.load.0.request_rate.0",
        15,
    ),
    "ramp_to_rate": (
        CLOSED,
        "kind: open_loop, request_rate: [1], ramp_to_rate: {}",
        "experiments.0.load.0.ramp_to_rate",
        15,
    ),
    "burstiness": (
        CLOSED,
        "kind: open_loop, request_rate: [1], arrivals: gamma, burstiness: {}",
        "experiments.0.load.0.burstiness",
        15,
    ),
    **{
        key: ("duration_s: 9", f"{key}: {{}}", f"experiments.0.load.0.{key}", 15)
        for key in (
            "ramp_up_s",
            "connect_timeout_s",
            "first_byte_timeout_s",
            "between_bytes_timeout_s",
        )
    },
    "think_time_s": ("duration_s: 9", "think_time_s: {}", "experiments.0.load.0.think_time_s", 15),
    "drain_s": ("duration_s: 9", "drain_s: {}", "experiments.0.load.0.drain_s", 15),
    "error_rate": ("error_rate: 0.5", "error_rate: {}", "budgets.error_rate", 22),
    "ttft_s": ("error_rate: 0.5", "ttft_s: {{p99: {}}}", "budgets.ttft_s.p99", 22),
    "spend_usd": ("error_rate: 0.5", "spend_usd: {}", "budgets.spend_usd", 22),
    "hourly_usd": ("local-cpu: 0.1", "local-cpu: {}", "prices.hourly_usd.local-cpu", 23),
    "tokens": (
        "{hourly_usd: {local-cpu: 0.1}}",
        "{{usd_per_1m_tokens: {{small: {{input: 1, output: {}}}}}}}",
        "prices.usd_per_1m_tokens.small.output",
        23,
    ),
}


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("field", FLOATS)
def test_no_number_may_be_infinite_or_not_a_number(field, value):
    """.nan and .inf are refused wherever a number is asked for."""
    before, after, key, line = FLOATS[field]

    told = refusal(changed(before, after.format(value)))

    assert told.startswith(f"config.yml:{line}: {key}: must be a finite number, not {value}. ")


MAY_BE_ZERO = {"warmup_s", "think_time_s", "drain_s", "ramp_up_s", "error_rate"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in FLOATS for value in ("-1", "nan", '"-1"', "[1]", "true")),
        *((field, "0") for field in FLOATS if field not in MAY_BE_ZERO),
    ],
)
def test_no_number_may_be_too_low_or_something_else(field, value):
    """Below its least, a word, a text, a list: one line, with the key and where it stands."""
    before, after, key, line = FLOATS[field]

    told = refusal(changed(before, after.format(value)))

    assert told.startswith(f"config.yml:{line}: {key}: must be ")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("value", [".nan", "[1, {b: .inf}]"])
def test_fields_of_a_request_body_must_be_finite_too(value):
    """JSON has no infinity, so extra_body may hold none at any depth."""
    told = refusal(changed("{kind: openai,", f"{{kind: openai, extra_body: {{a: {value}}},"))

    assert told == (
        "config.yml:11: experiments.0.endpoint.extra_body.a: must be a finite number. "
        "JSON has no such number: give another"
    )


def test_every_fault_is_told_at_once():
    """Faults in several places make one line each."""
    text = changed("seed: 7", "seed: x").replace("[1, 2]", "[0]").replace("0.5", "2")

    assert [line.split(": ")[1] for line in refusal(text).splitlines()] == [
        "run.seed",
        "experiments.0.load.0.concurrency.0",
        "budgets.error_rate",
    ]


def test_a_fault_behind_an_alias_is_told_where_its_anchor_stands():
    """One wrong value that two experiments share makes one line."""
    text = changed(
        "{kind: closed_loop, concurrency: [1, 2]", "&l {kind: closed_loop, concurrency: 0"
    )
    text = text.replace("- {kind: closed_loop, concurrency: [1], duration_s: 9}", "- *l")

    assert refusal(text) == (
        "config.yml:15: experiments.0.load.0.concurrency: must be a list, not 0. Write it as [0]"
    )


# --- between fields -------------------------------------------------------------------------------

CROSS = {
    "equal experiment names": (
        "name: two",
        "name: one",
        "config.yml:16: experiments.1.name: the name 'one' stands twice. Give each its own name",
    ),
    "names that differ in case": (
        "name: two",
        "name: ONE",
        "config.yml:16: experiments.1.name: 'ONE' and 'one' differ only in case: "
        "some systems make one folder of both. Give each its own name",
    ),
    "a workload that does not exist": (
        "[short, long]",
        "[short, long, lang]",
        "config.yml:13: experiments.0.workloads.2: there is no workload 'lang'. "
        "Did you mean 'long'?",
    ),
    "a workload that is nowhere near": (
        "[short, long]",
        "[short, long, zz]",
        "config.yml:13: experiments.0.workloads.2: there is no workload 'zz'. "
        "Use one of short, long",
    ),
    "a workload that no experiment uses": (
        "[short, long]",
        "[short]",
        "config.yml:6: workloads.1.name: no experiment uses 'long'. "
        "List it under an experiment's workloads, or remove it",
    ),
    "a workload served twice": (
        "[short, long]",
        "[short, long, short]",
        "config.yml:13: experiments.0.workloads.2: the workload 'short' stands twice. Keep one",
    ),
    "a workload of interest that does not exist": (
        "budgets:",
        "report: {workload_of_interest: shirt}\nbudgets:",
        "config.yml:22: report.workload_of_interest: there is no workload 'shirt'. "
        "Did you mean 'short'?",
    ),
    "a load level twice": (
        "[1, 2]",
        "[1, 2, 1]",
        "config.yml:15: experiments.0.load.0.concurrency.2: concurrency 1 stands twice. "
        "Keep one of them",
    ),
    "a request rate twice": (
        CLOSED,
        "kind: open_loop, request_rate: [0.5, 0.5]",
        "config.yml:15: experiments.0.load.0.request_rate.1: request rate 0.5 stands twice. "
        "Keep one of them",
    ),
    "a window without an end": (
        "duration_s: 9",
        "duration_s: null",
        "config.yml:15: experiments.0.load.0.duration_s: nothing ends the window. "
        "Give duration_s, requests, or both",
    ),
    "a ramp-up that reaches into the window": (
        "duration_s: 9",
        "warmup_s: 2, ramp_up_s: 2.5",
        "config.yml:15: experiments.0.load.0.ramp_up_s: 2.5 would reach into the window: it is "
        "above warmup_s, which is 2. Lower it, or raise warmup_s",
    ),
    "a longest warm-up below the least": (
        "duration_s: 9",
        "duration_s: 9, warmup_max_s: 4",
        "config.yml:15: experiments.0.load.0.warmup_max_s: 4 is below warmup_s, which is 5. "
        "Raise it, or lower warmup_s",
    ),
    "a longest window below the least": (
        "duration_s: 9",
        "duration_s: 9, duration_max_s: 8.5",
        "config.yml:15: experiments.0.load.0.duration_max_s: 8.5 is below duration_s, which is 9. "
        "Raise it, or lower duration_s",
    ),
    "users who think for the whole window": (
        "duration_s: 9",
        "duration_s: 9, think_time_s: 9",
        "config.yml:15: experiments.0.load.0.think_time_s: 9 leaves users no second question: it "
        "is not below duration_s, which is 9. Lower it, or raise duration_s",
    ),
    "burstiness of Poisson arrivals": (
        CLOSED,
        f"{OPEN}, burstiness: 2",
        "config.yml:15: experiments.0.load.0.burstiness: has no meaning with arrivals: poisson. "
        "Write arrivals: gamma",
    ),
    "gamma arrivals without burstiness": (
        CLOSED,
        f"{OPEN}, arrivals: gamma",
        "config.yml:15: experiments.0.load.0.arrivals: gamma needs burstiness. "
        "Give burstiness beside it",
    ),
    "a ramp to nowhere": (
        CLOSED,
        f"{OPEN}, arrivals: ramp",
        "config.yml:15: experiments.0.load.0.arrivals: ramp needs ramp_to_rate. "
        "Give ramp_to_rate beside it",
    ),
    "a ramp of unknown length": (
        CLOSED,
        f"{OPEN}, arrivals: ramp, ramp_to_rate: 9, requests: 5",
        "config.yml:15: experiments.0.load.0.arrivals: a ramp needs a window of known length. "
        "Give duration_s",
    ),
    "a ramp that a count would end": (
        CLOSED,
        f"{OPEN}, arrivals: ramp, ramp_to_rate: 9, requests: 5, duration_s: 9",
        "config.yml:15: experiments.0.load.0.requests: a count could end the window before the "
        "ramp. Remove it",
    ),
    "a rate beyond any number": (
        CLOSED,
        "kind: open_loop, request_rate: [1.0e+308]",
        "config.yml:15: experiments.0.load.0.request_rate.0: 1e+308 would be inf requests in one "
        "stage, more than 2e+07. Lower it, or shorten the stage",
    ),
    "an open loop without an end": (
        CLOSED,
        f"{OPEN}, duration_s: null",
        "config.yml:15: experiments.0.load.0.duration_s: nothing ends the window. "
        "Give duration_s, requests, or both",
    ),
    "more arrivals than memory holds": (
        CLOSED,
        "kind: open_loop, request_rate: [1000000]",
        "config.yml:15: experiments.0.load.0.request_rate.0: 1e+06 would be 6.5e+07 requests in "
        "one stage, more than 2e+07. Lower it, or shorten the stage",
    ),
    "a simulated endpoint of no profile": (
        "{kind: llamacpp, parallel: 4}",
        "{kind: simulated}",
        "config.yml:18: experiments.1.endpoint: a simulated endpoint has either a preset or a "
        "profile. Give one of the two",
    ),
    "a token window upside down": (
        "min_tokens: 1,",
        "min_tokens: 101,",
        "config.yml:5: workloads.0.filter.max_tokens: 100 is below min_tokens, which is 101. "
        "Raise it, or lower min_tokens",
    ),
    "lengths upside down": (
        "{kind: python_docs}",
        "{kind: synthetic, prompt_tokens: {kind: uniform, min: 9, max: 8}}",
        "config.yml:7: workloads.1.source.prompt_tokens.max: 8 is below min, which is 9. "
        "Raise it, or lower min",
    ),
}


@pytest.mark.parametrize("case", CROSS)
def test_fields_that_do_not_fit_each_other_are_told(case):
    """A fault between fields points at the field to change."""
    before, after, expected = CROSS[case]

    assert refusal(changed(before, after)) == expected


# --- fields of a request body ---------------------------------------------------------------------


def with_fields(fields: str, api: str = "chat") -> str:
    """GOOD with fields for every request body."""
    return changed("{kind: openai,", f"{{kind: openai, api: {api}, extra_body: {{{fields}}},")


ONE_ANSWER = "must be 1: one request is measured as one answer. Remove it"
PROMPTS = "is taken from the workload's prompts. Remove it, and change the workload"
LENGTH = "is taken from the workload's max_output_tokens. Remove it, and set the length there"
USAGE = (
    "must hold include_usage: true, which asks for the server's token counts. "
    "Add it, or remove stream_options"
)


@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("n: 2", ONE_ANSWER),
        ("n: true", ONE_ANSWER),
        ("n: null", ONE_ANSWER),
        ("best_of: 3", ONE_ANSWER),
        ("stream: false", "must be true: tokens are timed as they stream in. Remove it"),
        (
            "echo: true",
            "must be false: the prompt's own text would be timed as the first token. Remove it",
        ),
        (
            "model: other",
            "is taken from the experiment's model.name. Remove it, and set the name there",
        ),
    ],
)
def test_a_field_that_would_change_what_is_measured_is_refused(api, field, told):
    """One request is one streamed answer of the experiment's model, whatever extra_body adds."""
    key = field.split(":")[0]

    assert refusal(with_fields(field, api)) == (
        f"config.yml:11: experiments.0.endpoint.extra_body.{key}: {told}"
    )


@pytest.mark.parametrize(
    ("api", "field", "told"),
    [
        ("chat", "messages: []", PROMPTS),
        ("completions", "prompt: [a, b]", PROMPTS),
        ("responses", "input: a", PROMPTS),
        ("chat", "max_tokens: 100", LENGTH),
        ("completions", "max_tokens: 9", LENGTH),
        ("responses", "max_output_tokens: 9", LENGTH),
        ("chat", "stream_options: null", USAGE),
        ("chat", "stream_options: {include_usage: false}", USAGE),
        ("completions", "stream_options: {continuous_usage_stats: true}", USAGE),
    ],
)
def test_a_field_that_an_api_s_requests_have_already_is_refused(api, field, told):
    """What the config sets elsewhere is set there alone; usage may be asked for in more ways."""
    key = field.split(":")[0]

    assert refusal(with_fields(field, api)) == (
        f"config.yml:11: experiments.0.endpoint.extra_body.{key}: {told}"
    )


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        ("chat", "n: 1, stream: true, echo: false, ignore_eos: true, temperature: 0"),
        ("chat", "stream_options: {include_usage: true, continuous_usage_stats: true}"),
        ("chat", "max_completion_tokens: 100"),
        ("completions", "best_of: 1, min_tokens: 4"),
        ("responses", "stream_options: {include_obfuscation: false}, prompt: {id: p}"),
    ],
)
def test_fields_that_leave_the_measured_answer_alone_are_taken(api, fields):
    """What a server wants beside is its own affair."""
    taken = load(with_fields(fields, api)).experiment("one").endpoint

    assert taken.extra_body == yaml.safe_load(f"{{{fields}}}")


def test_the_newer_name_of_the_output_length_must_hold_the_same_length():
    """Its value is what is sent, so it may not belie any workload that the experiment serves."""
    text = with_fields("max_completion_tokens: 100").replace(
        "source: {kind: python_docs}",
        "source: {kind: python_docs}\n    max_output_tokens: 64",
    )

    assert refusal(text) == (
        "config.yml:12: experiments.0.endpoint.extra_body.max_completion_tokens: would replace "
        "the 64 output tokens that workload 'long' asks for. Make them equal"
    )


@pytest.mark.parametrize(
    ("drawn", "told"),
    [
        ("{kind: fixed, value: 9}", "9 output tokens"),
        ("{kind: uniform, min: 1, max: 100}", "output lengths"),
    ],
)
def test_the_newer_name_of_the_output_length_replaces_no_drawn_lengths(drawn, told):
    """A synthetic workload's own lengths count, where it has any."""
    source = "kind: synthetic, prompt_tokens: {kind: fixed, value: 9}"
    text = with_fields("max_completion_tokens: 100").replace(
        "{kind: python_docs}", f"{{{source}, output_tokens: {drawn}}}"
    )

    assert refusal(text) == (
        "config.yml:11: experiments.0.endpoint.extra_body.max_completion_tokens: would replace "
        f"the {told} that workload 'long' asks for. Make them equal"
    )


# --- what fits ------------------------------------------------------------------------------------


def test_fewer_requests_than_users_are_allowed():
    """Ten users who ask one question between them: some of them only warm up."""
    own = load(changed(CLOSED, "kind: closed_loop, concurrency: [10], requests: 1"))

    assert own.experiment("one").load[0].requests == 1


def test_a_ramp_up_as_long_as_the_warm_up_fits():
    """The last first request is then sent when the window begins."""
    own = load(changed("duration_s: 9", "warmup_s: 2, ramp_up_s: 2"))

    assert own.experiment("one").load[0].ramp_up_s == 2.0


def test_a_window_of_one_length_is_not_empty():
    """Bounds are inclusive, so equal bounds keep prompts of just that length."""
    config = load(changed("min_tokens: 1,", "min_tokens: 100,"))

    assert config.workload("short").filter.min_tokens == 100


# --- YAML -----------------------------------------------------------------------------------------

ROOT_REMEDY = "Begin it with run:, workloads: and experiments:"
DEEP = "is nested more than 50 levels deep, or holds itself. Flatten it"
NOT_YAML = {
    "an empty file": ("", f"config.yml:1: is empty. {ROOT_REMEDY}"),
    "only a comment": ("# nothing\n", f"config.yml:1: is empty. {ROOT_REMEDY}"),
    "a list": ("- run\n", f"config.yml:1: must be a mapping of keys. {ROOT_REMEDY}"),
    "a word": ("run\n", f"config.yml:1: must be a mapping of keys. {ROOT_REMEDY}"),
    "a tab": (
        "run:\n\tname: x\n",
        "config.yml:2: a tab stands where YAML wants spaces. Indent with spaces",
    ),
    "an open brace": (
        "run: {name: x\n",
        "config.yml:2: is not YAML: expected ',' or '}', but got '<stream end>'. Mend its syntax",
    ),
    "two documents": (
        "a: 1\n---\nb: 2\n",
        "config.yml:2: is not YAML: expected a single document in the stream, "
        "but found another document. Mend its syntax",
    ),
    "an alias of nothing": (
        "run: *x\n",
        "config.yml:1: is not YAML: found undefined alias 'x'. Mend its syntax",
    ),
    "a merge of no mapping": (
        "run:\n  <<: 3\n",
        "config.yml:2: is not YAML: expected a mapping or list of mappings for merging, "
        "but found scalar. Mend its syntax",
    ),
    "a tag that builds an object": (
        "a: 1\nrun: !!python/object/apply:os.getcwd []\n",
        "config.yml:2: the tag !!python/object/apply:os.getcwd is refused. "
        "Remove the tag: only plain YAML values are read",
    ),
    "a tag of one's own": (
        "run: !secret x\n",
        "config.yml:1: the tag !secret is refused. Remove the tag: only plain YAML values are read",
    ),
    "a tag on a key": (
        "!!python/name:os.getcwd run: 1\n",
        "config.yml:1: the tag !!python/name:os.getcwd is refused. "
        "Remove the tag: only plain YAML values are read",
    ),
    "a set": (
        "run: !!set {a}\n",
        "config.yml:1: the tag !!set is refused. Remove the tag: only plain YAML values are read",
    ),
    "a key twice": ("run: 1\na: 2\nrun: 3\n", "config.yml:3: run: this key stands twice. Keep one"),
    "a key twice below": (
        "run:\n  name: a\n  'name': b\n",
        "config.yml:3: name: this key stands twice. Keep one",
    ),
    "a list as a key": (
        "run: {}\n? [a, b]\n: c\n",
        "config.yml:2: a list or a mapping stands as a key. Use text as the key",
    ),
    "deep lists": ("run: " + "[\n" * 5000 + "]" * 5000, f"config.yml: {DEEP}"),
    "rather deep lists": ("run:\n  " + "[" * 60 + "]" * 60, f"config.yml:2: {DEEP}"),
    "a value that holds itself": ("run: &a {name: *a}\n", f"config.yml:1: {DEEP}"),
    "aliases that multiply": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
            for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "config.yml: holds more than 200000 values once its aliases are followed. "
        "Use fewer aliases",
    ),
    "a NUL": (
        "run:\n  name: \0\n",
        "config.yml:2: holds the character U+0000, which YAML does not allow. Remove it",
    ),
    "an escaped NUL": (
        'run:\n  name: "\\0"\n',
        "config.yml:2: holds an escape that stands for no character of a text. Remove it",
    ),
    "half a surrogate pair": (
        'run: "\\uD800"\n',
        "config.yml:1: holds an escape that stands for no character of a text. Remove it",
    ),
    "not UTF-8": (
        b"run: \xff\n",
        "config.yml: cannot be read: it is not UTF-8 text. Give a readable YAML file",
    ),
}


@pytest.mark.parametrize("case", NOT_YAML)
def test_text_that_is_not_plain_yaml_is_told(case):
    """What YAML forbids, and what would build objects or never end, names its line."""
    text, expected = NOT_YAML[case]

    assert refusal(text) == expected


def test_a_missing_file_is_told():
    """A config that is not there is named."""
    with pytest.raises(ConfigError) as raised:
        load_config("nowhere.yml")

    assert str(raised.value) == "nowhere.yml: there is no such file. Give the path of a YAML file"


def test_a_folder_is_no_config():
    """A folder in place of a file is told, not opened."""
    Path("folder.yml").mkdir()

    with pytest.raises(ConfigError) as raised:
        load_config("folder.yml")

    reason = os.strerror(21)
    assert str(raised.value) == f"folder.yml: cannot be read: {reason}. Give a readable YAML file"


def test_a_number_too_long_to_read_is_told():
    """A number of thousands of digits does not crash the reader."""
    told = refusal(f"run: {'9' * 5000}\n")

    assert told.startswith("config.yml: holds a value that cannot be read: ")


def test_a_byte_order_mark_is_skipped():
    """Editors that begin a file with a mark are forgiven."""
    assert load(b"\xef\xbb\xbf" + GOOD.encode()).run.name == "probe"


def test_anchors_aliases_and_merge_keys_work():
    """A merged mapping gives what the mapping itself does not."""
    text = changed(
        "{kind: closed_loop, concurrency: [1, 2], duration_s: 9}",
        "&load {kind: closed_loop, concurrency: [1, 2], duration_s: 9}",
    ).replace(
        "{kind: closed_loop, concurrency: [1], duration_s: 9}",
        "{<<: *load, duration_s: 8}",
    )

    load_of_two = load(text).experiment("two").load[0]

    assert (load_of_two.concurrency, load_of_two.duration_s) == ((1, 2), 8.0)


def test_a_fault_in_a_merged_mapping_is_told_where_it_stands():
    """The line is that of the mapping that was merged."""
    text = changed(
        "{kind: closed_loop, concurrency: [1], duration_s: 9}",
        "{<<: *load, duration_s: 8}",
    )
    text = f"{text}report: {{}}\n".replace(
        "{kind: closed_loop, concurrency: [1, 2], duration_s: 9}",
        "&load {kind: closed_loop, concurrency: [1, 1], duration_s: 9}",
    )

    assert [line.split(": ")[:2] for line in refusal(text).splitlines()] == [
        ["config.yml:15", "experiments.0.load.0.concurrency.1"],
        ["config.yml:15", "experiments.1.load.0.concurrency.1"],
    ]


@pytest.mark.parametrize("key", ["2026-01-01", "7", "1.50", "yes", "~", "=", "null", "on"])
def test_a_key_is_the_text_that_was_written(key):
    """A date, a number or a truth value in place of an instance type stays what was typed."""
    config = load(changed("{local-cpu: 0.1}", f"{{local-cpu: 0.1, {key}: 2}}"))

    assert config.prices.hourly_usd == {"local-cpu": 0.1, key: 2.0}


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_data_or_a_config_error(text):
    """No text makes the reader fail in a way of its own."""
    try:
        data, _ = parse_yaml(text, "x")
    except ConfigError:
        return
    assert is_plain(data)


YAML_PIECES = [
    "a",
    ": ",
    "- ",
    "\n",
    "  ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&x ",
    "*x",
    "<<: ",
    "!!int ",
    "?",
]
YAML_PIECES += [
    "!!bool ",
    "!!float ",
    "!x ",
    "'",
    '"',
    "|\n",
    "1",
    ".nan",
    "~",
    "#",
    "2026-01-01",
    "=",
    "\t",
]


@given(st.lists(st.sampled_from(YAML_PIECES), max_size=14).map("".join))
def test_anything_like_yaml_is_data_or_a_config_error(text):
    """No heap of YAML's own signs makes the reader fail in a way of its own."""
    try:
        data, _ = parse_yaml(text, "x")
    except ConfigError:
        return
    assert is_plain(data)


def is_plain(data: Any) -> bool:
    """Whether `data` is made of nothing but text, numbers, truth values, None, lists, mappings."""
    if isinstance(data, dict):
        return all(type(key) is str and is_plain(value) for key, value in data.items())
    if isinstance(data, list):
        return all(map(is_plain, data))
    return data is None or type(data) in (str, int, float, bool)


# --- the resolved config --------------------------------------------------------------------------


@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40),
    prices=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10),
        st.floats(min_value=1e-300, max_value=1e300),
        max_size=3,
    ),
)
def test_a_resolved_config_reads_back_as_itself(text, prices):
    """What is stored with the results gives the same config, whatever its texts hold."""
    config = load(GOOD).model_dump(mode="json")
    config["workloads"][0]["template"] = text
    config["prices"]["hourly_usd"] = prices

    data, _ = parse_yaml(to_yaml(config), "x")

    assert data == config


def test_canonical_spells_out_every_default():
    """A resolved config loads alone and equals the one that it came from."""
    config = load(GOOD)

    again = load(to_yaml(config.canonical()))

    assert again == config
    assert config.canonical()["experiments"][0]["load"][0]["timeout_s"] == 120.0


def test_equal_configs_differ_nowhere():
    """A config compared with itself has no differing key."""
    data = load(GOOD).canonical()

    assert list(differing_keys(data, load(GOOD).canonical())) == []


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ({"a": 1}, {"a": 2}, ["a"]),
        ({"a": 1}, {}, ["a"]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, ["a.c"]),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ["a.1.b"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a"]),
        ({"a": {"ml.g5": 1}}, {"a": {"ml.g5": 2}}, ['a."ml.g5"']),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, ["a", "b"]),
    ],
)
def test_differing_keys_are_named_as_set_takes_them(one, other, keys):
    """Every differing value is named once, by the dotted key that --set would take."""
    assert list(differing_keys(one, other)) == keys


# --- relative paths -------------------------------------------------------------------------------


def test_relative_paths_start_at_the_project_root(tmp_path):
    """The nearest folder above the config that holds pyproject.toml or .git is the root."""
    (tmp_path / "project" / "configs").mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    path = tmp_path / "project" / "configs" / "x.yml"
    path.write_text(GOOD)

    loaded = load_config(path)

    assert loaded.resolve("data/x.yaml") == (tmp_path / "project/data/x.yaml").resolve()
    assert loaded.resolve("/data/x.yaml") == Path("/data/x.yaml")


def test_relative_paths_start_at_the_config_where_there_is_no_project(tmp_path):
    """Without a project, the config's own folder is the root."""
    (tmp_path / "lonely").mkdir()
    path = tmp_path / "lonely" / "x.yml"
    path.write_text(GOOD)

    assert load_config(path).resolve("rows.jsonl") == (tmp_path / "lonely/rows.jsonl").resolve()


def test_a_home_that_is_unknown_is_taken_as_written(tmp_path):
    """~ is the home folder; a user that the system does not know is no crash."""
    Path(PATH).write_text(GOOD)
    loaded = load_config(PATH)

    assert loaded.resolve("~/x") == Path("~/x").expanduser().resolve()
    assert loaded.resolve("~no-such-user/x") == (tmp_path / "~no-such-user/x").resolve()


def test_an_error_of_a_later_step_points_at_the_line():
    """Whoever finds a fault later tells it with file, line and key as well."""
    Path(PATH).write_text(GOOD)
    loaded = load_config(PATH)

    told = str(loaded.error(("workloads", 0, "template"), "names a column", "Correct it"))

    assert told == "config.yml:3: workloads.0.template: names a column. Correct it"


@pytest.mark.parametrize(
    ("level", "label"),
    [
        ((6, None, None, 0.5), "6 users, 0.5 s think time"),
        ((1, None, None, 2.0), "1 user, 2 s think time"),
        ((6, None, None), "6 in flight"),
        ((None, 6.5, "ramp"), "6.5 requests/s (mean of a ramp)"),
    ],
)
def test_a_load_level_is_called_what_it_is(level: tuple[Any, ...], label: str) -> None:
    """Users who pause are not in flight."""
    assert load_label(*level) == label

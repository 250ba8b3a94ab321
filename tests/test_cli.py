"""What a person types: bad input is told with file, line, key and remedy, and starts nothing.

What is wrong within one config, and how that is told, is in test_config.py.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest

from conftest import ROOT, command, held_elsewhere, processes_of, until
from fmgauge.cli import _as_called
from fmgauge.emulator import lease
from fmgauge.runs import now_utc, open_run

GOOD = """\
run: {name: probe, seed: 7}
workloads:
  - name: plain
    source: {kind: jsonl, paths: [rows.jsonl]}
    template: "Say {{ word }}."
    filter: {language: en, min_tokens: 1, max_tokens: 100}
experiments:
  - name: one
    model: {name: docs-llama-5m}
    endpoint: {kind: llamacpp}
    instance_type: local-cpu
    workloads: [plain]
    load:
      - {kind: closed_loop, concurrency: [1, 2], duration_s: 1}
prices: {hourly_usd: {local-cpu: 0.1}}
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path) -> Path:
    """A folder with a sound config and its data."""
    rows = [f'{{"word": "word{n}", "language": "en"}}' for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "good.yml").write_text(GOOD)
    return tmp_path


def test_a_sound_config_passes_check(called):
    """`check` says what the run would do and exits 0."""
    done = called("check", "good.yml")

    assert done.returncode == 0, done.stderr
    assert "1 experiment(s), 2 stages" in done.stdout


def test_bad_input_ends_the_program_with_exit_code_2(project, fmgauge):
    """The shell is given 2, stderr one line with file, line, key and remedy; stdout is empty."""
    (project / "bad.yml").write_text(GOOD.replace("seed: 7", "sede: 7"))

    done = fmgauge("run", "bad.yml")

    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "bad.yml:1: run.sede: unknown key. Did you mean 'seed'?\n",
    )
    assert not (project / "results").exists()


BAD = {
    "an experiment's name outside the results": (
        "name: one",
        "name: ../one",
        ["bad.yml:8", "cannot be a name"],
    ),
    "an empty name of a workload": ("name: plain", "name: ''", ["bad.yml:3", "name"]),
    "a column that the data lacks": (
        "{{ word }}",
        "{{ wrd }}",
        ["bad.yml:5", "template", "wrd", "word"],
    ),
    "an empty window": (
        "min_tokens: 1, max_tokens: 100",
        "min_tokens: 90, max_tokens: 100",
        ["bad.yml:6", "filter", "40"],
    ),
    "a filter that drops every row": ("language: en", "language: de", ["bad.yml:6", "40"]),
    "a missing price": (
        "{local-cpu: 0.1}",
        "{other: 0.1}",
        ["bad.yml:11", "instance_type", "local-cpu", "prices"],
    ),
    "data that is missing": ("rows.jsonl", "gone.jsonl", ["bad.yml:4", "gone.jsonl"]),
    "a spend above the budget": (
        "prices:",
        "budgets: {spend_usd: 0.00001}\nprices:",
        ["bad.yml:15", "spend_usd"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_and_nothing_starts(project, called, name):
    """Exit code 2, a message with file, line, key and remedy, and no results folder."""
    before, after, expected = BAD[name]
    assert before in GOOD
    (project / "bad.yml").write_text(GOOD.replace(before, after, 1))

    done = called("run", "bad.yml")

    assert done.returncode == 2
    assert [part for part in expected if part not in done.stderr] == []
    assert not (project / "results").exists()


SERVER = """\
    endpoint: {kind: openai, base_url: "http://127.0.0.1:9/v1", api_key_env: FMGAUGE_TEST_UNSET}
"""


def test_a_key_that_is_not_set_is_told_before_the_run(project, called):
    """The variable is named, with the line that names it."""
    (project / "bad.yml").write_text(GOOD.replace("    endpoint: {kind: llamacpp}\n", SERVER))

    done = called("run", "bad.yml")

    assert done.returncode == 2
    assert "bad.yml:10: experiments.0.endpoint.api_key_env" in done.stderr
    assert "export FMGAUGE_TEST_UNSET=" in done.stderr
    assert not (project / "results").exists()


def test_check_does_not_guess_what_tokens_will_cost(project, called):
    """A plan priced per token has no projected cost in dollars."""
    priced = GOOD.replace("    instance_type: local-cpu\n", "").replace(
        "{hourly_usd: {local-cpu: 0.1}}",
        "{usd_per_1m_tokens: {docs-llama-5m: {input: 1, output: 2}}}",
    )
    (project / "metered.yml").write_text(priced)

    done = called("check", "metered.yml")

    assert done.returncode == 0, done.stderr
    assert "its cost is that of the tokens of one, which nobody knows beforehand" in done.stdout
    assert "$" not in done.stdout


def test_check_tells_that_results_have_no_place(project, called):
    """A file where the results folder should be is found before anything starts."""
    (project / "results").write_text("mine")

    done = called("check", "good.yml")

    assert done.returncode == 2
    assert "run.results_dir" in done.stderr


@pytest.mark.parametrize("run_id", ["probe-20260101T000000Z", "../probe"])
def test_an_unknown_run_cannot_be_resumed(project, called, run_id):
    """Resuming a run that is not there is refused, and nothing is created."""
    done = called("run", "good.yml", "--resume", run_id)

    assert done.returncode == 2
    assert "there is no run" in done.stderr
    assert not (project / "results").exists()


def test_a_run_of_another_config_cannot_be_resumed(project, called):
    """A run whose config has changed since names the keys that differ."""
    open_run(project / "good.yml", "mine")

    done = called("run", "good.yml", "--resume", "mine", "--set", "run.seed=8")

    assert done.returncode == 2
    assert "run.seed" in done.stderr


def test_an_override_that_cannot_be_applied_is_told(project, called):
    """--set with an unknown key fails as the same key in the file would."""
    done = called("check", "good.yml", "--set", "run.sede=8")

    assert done.returncode == 2
    assert "--set" in done.stderr
    assert "'seed'" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["run", "a", "--set"]])
def test_bad_usage_is_exit_code_2(called, arguments):
    """Usage errors exit with 2, as argparse does."""
    assert called(*arguments).returncode == 2


def test_clean_up_without_runs_finds_nothing(called):
    """clean-up in a folder without results ends well."""
    done = called("clean-up")

    assert done.returncode == 0
    assert "0 resource(s) left running" in done.stdout


def test_clean_up_of_a_mistyped_run_tells_the_nearest(project, called):
    """Exit code 2, the id that was probably meant, and nothing is made."""
    open_run(project / "good.yml", "mine-20260101T000000Z")

    done = called("clean-up", "mien-20260101T000000Z")

    assert done.returncode == 2
    assert "Did you mean mine-20260101T000000Z?" in done.stderr
    assert [path.name for path in (project / "results").iterdir()] == ["mine-20260101T000000Z"]


@pytest.mark.parametrize("lock", [".pipeline.lock", ".load.lock"])
def test_clean_up_of_all_leaves_alone_what_a_living_process_works_on(project, called, lock):
    """The run and the process are named; the others are cleaned, and so is this one by force."""
    for name in ("mine", "other"):
        open_run(project / "good.yml", name)
    with held_elsewhere(project / "results" / "mine" / lock) as process_id:
        every, forced = called("clean-up"), called("clean-up", "--force")

    assert (every.returncode, forced.returncode) == (0, 0)
    line, closing = every.stdout.splitlines()
    assert line.startswith(f"mine: left alone: process {process_id} works on mine, so nothing")
    place = f"2 run(s) looked at in {project / 'results'}"
    assert closing == (
        f"{place}, 1 of them in use and left alone; 0 resource(s) of the others left running."
    )
    assert forced.stdout == f"{place}; 0 resource(s) left running.\n"


def test_clean_up_of_a_run_that_a_living_process_works_on_is_refused(project, called):
    """Exit code 1 with the process's id and the way out; a dead one's id refuses nobody."""
    folder = open_run(project / "good.yml", "mine").folder
    with held_elsewhere(folder / ".pipeline.lock") as process_id:
        refused, forced = called("clean-up", "mine"), called("clean-up", "mine", "--force")
    afterwards = called("clean-up", "mine")

    assert [done.returncode for done in (refused, forced, afterwards)] == [1, 0, 0]
    assert refused.stderr.startswith(f"fmgauge: process {process_id} works on mine, so nothing")
    assert "`fmgauge clean-up mine --force`" in refused.stderr


def test_check_writes_nothing(project, called):
    """`check` leaves the folder as it was."""
    before = sorted(project.rglob("*"))

    called("check", "good.yml")

    assert sorted(project.rglob("*")) == before


def test_help_imports_nothing_heavy():
    """`--help` loads neither pandas nor pydantic nor papermill: it must answer at once."""
    code = (
        "import sys; from fmgauge.cli import _parser; _parser().format_help();"
        "heavy = ('pandas', 'pydantic', 'papermill', 'rich', 'numpy');"
        "print([name for name in heavy if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# --- runs in which nothing is measured -----------------------------------------------------------

UNREACHED = GOOD.replace("{kind: llamacpp}", "{kind: openai, base_url: URL}").replace("5m", "7b")


@pytest.fixture
def unreached(project) -> str:
    """A config whose one endpoint is an address where nobody listens; the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    (project / "unreached.yml").write_text(UNREACHED.replace("URL", f'"{address}"'))
    return address


def test_a_run_in_which_no_stage_was_measured_has_failed(project, called, unreached):
    """Exit code 1; reason, remedy and how to go on are told on stderr, and a report is written."""
    done = called("run", "unreached.yml")

    (folder,) = (project / "results").iterdir()
    again = shlex.join(command("run", "unreached.yml", "--resume", folder.name))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "fmgauge: not one stage could be measured.",
        "one will not be measured: the first answer was no answer: connection_error: cannot "
        f"connect: {unreached[7:-3]}: Connection refused. Check that a server answers at "
        f"{unreached}",
        "Where the config or a --set is wrong: mend it and begin a new run, for a run keeps both.",
        f"Where the fault lies elsewhere (a server down, a key), once it is mended: {again}",
    ]
    assert "nothing was measured" in (folder / "report.md").read_text()


# --- how it was called ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("called", "found_by_name", "again"),
    [
        ("bin/fmgauge", False, "bin/fmgauge"),
        ("bin/fmgauge", True, "fmgauge"),
        ("my bin/fmgauge", False, "'my bin/fmgauge'"),
        ("my bin/fmgauge", True, "'my bin/fmgauge'"),
        ("src/fmgauge/cli.py", True, f"{sys.executable} -m fmgauge.cli"),
    ],
)
def test_what_to_type_next_begins_as_this_call_did(
    tmp_path, monkeypatch, called, found_by_name, again
):
    """The path as it was typed; the bare name only where the shell finds this very program."""
    for folder in ("bin", "my bin"):
        (tmp_path / folder).mkdir()
        shutil.copy("/bin/true", tmp_path / folder / "fmgauge")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / ("bin" if found_by_name else "none")))

    assert _as_called(called) == again


# --- serve ---------------------------------------------------------------------------------------

QUICK = "{step_s: 0.001, prefill_token_s: 0, decode_sequence_s: 0}"
SERVED = GOOD.replace("{kind: llamacpp}", f"{{kind: simulated, profile: {QUICK}}}").replace(
    "prices:",
    GOOD[GOOD.index("  - name: one") : GOOD.index("prices:")]
    .replace("name: one", "name: two")
    .replace("{kind: llamacpp}", "{kind: simulated, preset: imitated-7b-on-ml.p4d.24xlarge}")
    + "prices:",
)


@pytest.fixture
def serving(project, started, monkeypatch):
    """Serve a config of two simulated endpoints; gives the process and its addresses, by name."""
    (project / "served.yml").write_text(SERVED)
    folder = project / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))

    def serve(*options, endpoints=2):
        process = started("serve", "served.yml", *options)
        output = project / "output-0.txt"
        until(lambda: "Ctrl-C" in output.read_text())
        lines = [line.split() for line in output.read_text().splitlines()[:endpoints]]
        return process, {name.rstrip(":"): address for name, address, _ in lines}

    return serve


def is_healthy(base_url):
    """Whether a server answers at this address."""
    try:
        address = f"{base_url.removesuffix('/v1')}/health"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.loads(answer.read()) == {"status": "ok"}
    except OSError:
        return False


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.whole)],
)
def test_serve_answers_until_it_is_told_to_stop(project, serving, number, code):
    """Every simulated endpoint answers at its address; after the signal nothing is left of them."""
    process, addresses = serving()
    assert [is_healthy(addresses[name]) for name in ("one", "two")] == [True, True]

    process.send_signal(number)

    assert process.wait(20) == code
    assert [is_healthy(address) for address in addresses.values()] == [False, False]
    assert processes_of(project) == []
    assert list((project / "temporary").iterdir()) == []
    assert not (project / "results").exists()


@pytest.mark.whole
def test_serve_ends_with_its_servers_when_it_is_killed(project, serving):
    """What SIGKILL leaves behind ends itself within seconds, for nobody renews its lease any more.

    The lease's last seconds are not waited for: it is looked at, and then it is ended early.
    """
    process, addresses = serving()
    (leased,) = (project / "temporary").glob("fmgauge-serve-*/lease.json")

    process.kill()
    process.wait()

    assert lease.expired(leased, now_utc() + timedelta(seconds=15))
    lease.renew(leased, "pipeline", 0.0)
    until(lambda: processes_of(project / "temporary") == [], deadline_s=30)
    assert [is_healthy(address) for address in addresses.values()] == [False, False]


def test_serve_takes_one_experiment_and_a_port(serving):
    """The one endpoint that was asked for listens on the port that was asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    _, addresses = serving("--experiment", "two", "--port", port, endpoints=1)

    assert addresses == {"two": f"http://127.0.0.1:{port}/v1"}
    assert is_healthy(addresses["two"])


@pytest.mark.parametrize(
    ("api", "path"),
    [
        ("chat", "chat/completions"),
        pytest.param("completions", "completions", marks=pytest.mark.whole),
        pytest.param("responses", "responses", marks=pytest.mark.whole),
    ],
)
def test_serve_tells_how_to_try_it_and_how_to_stop_it(project, serving, api, path):
    """A curl command in the endpoint's own API, which is answered as it stands, and Ctrl-C."""
    _, addresses = serving(
        "--experiment", "one", "--set", f"experiments.0.endpoint.api={api}", endpoints=1
    )
    *_, trying, stopping = (project / "output-0.txt").read_text().splitlines()

    assert stopping == "Ctrl-C stops it."
    label, _, command = trying.partition(": ")
    program, unbuffered, url, header_option, header, data_option, body = shlex.split(command)
    assert (label, program, url) == ("Try it", "curl", f"{addresses['one']}/{path}")
    assert (unbuffered, header_option, data_option) == ("-N", "-H", "-d")
    asked = urllib.request.Request(url, body.encode(), dict([header.split(": ")]))
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert answer.read().count(b" light") >= 1


def test_serve_tells_that_its_port_is_taken(project, called, monkeypatch):
    """A step that failed, with the address; the servers that did come up are ended."""
    (project / "served.yml").write_text(SERVED)
    monkeypatch.setattr(tempfile, "tempdir", str(project))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = called("serve", "served.yml", "--port", port)

    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert processes_of(project) == []


@pytest.mark.parametrize(
    ("before", "after", "options", "expected"),
    [
        (
            SERVED,
            GOOD,
            [],
            ["bad.yml", "no experiment has a simulated endpoint", "kind: simulated"],
        ),
        ("", "", ["--experiment", "tow"], ["--experiment", "'tow'", "Did you mean 'two'?"]),
        ("p4d.24xlarge", "p4d.24xlrge", [], ["bad.yml:17", "preset", "p4d.24xlarge'?"]),
    ],
)
def test_serve_tells_that_there_is_nothing_to_serve(
    project, called, before, after, options, expected
):
    """Exit code 2 and a remedy, before anything is started."""
    (project / "bad.yml").write_text(SERVED.replace(before, after, 1))

    done = called("serve", "bad.yml", *options)

    assert done.returncode == 2
    assert [part for part in expected if part not in done.stderr] == []


def test_an_unknown_preset_is_found_by_check(project, called):
    """`check` names the line and the nearest preset."""
    (project / "bad.yml").write_text(SERVED.replace("p4d.24xlarge", "p4d.24xlrge"))

    done = called("check", "bad.yml")

    assert done.returncode == 2
    assert "bad.yml:17: experiments.1.endpoint.preset" in done.stderr
    assert "imitated-7b-on-ml.p4d.24xlarge" in done.stderr


# --- make run ------------------------------------------------------------------------------------


@pytest.fixture
def make_run(tmp_path):
    """Run `make run` with an fmgauge that only says how it was called; exit code and output."""
    tools = tmp_path / "bin"
    tools.mkdir()

    def make(*, engine, code=0, **variables):
        (tmp_path / "xllamacpp.py").write_text("raise ImportError('no such wheel')")
        path = "" if engine else f"PYTHONPATH={tmp_path} "
        scripts = {
            "python": f'{path}exec {sys.executable} "$@"',
            "fmgauge": f'echo fmgauge "$@"; exit {code}',
        }
        for name, script in scripts.items():
            (tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (tools / name).chmod(0o755)
        settings = [f"{name}={value}" for name, value in {"BIN": tools, **variables}.items()]
        command = ["make", "--assume-old", ".venv/ready", "run", *settings]
        # A make that runs the tests would pass its own flags on, and be told of folders.
        own = {name: v for name, v in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(
            command, cwd=ROOT, env=own, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr + done.stdout

    return make


def test_make_run_measures_the_quickstart_where_the_engine_works(make_run):
    """The real engine is what `make run` is for."""
    assert make_run(engine=True) == (0, "fmgauge run configs/quickstart.yml\n")


def test_make_run_simulates_where_there_is_no_engine(make_run):
    """It says why, and that what follows is simulated."""
    code, output = make_run(engine=False)

    assert code == 0
    assert "no such wheel" in output
    assert "simulated servers" in output
    assert output.splitlines()[-1] == "fmgauge run configs/simulated-instances.yml"


def test_make_run_measures_the_config_that_was_asked_for(make_run):
    """A config of the user's own is never replaced."""
    made = make_run(engine=False, CONFIG="configs/openai-endpoint.yml")

    assert made == (0, "fmgauge run configs/openai-endpoint.yml\n")


@pytest.mark.parametrize(("code", "ends_well"), [(0, True), (3, True), (1, False), (2, False)])
def test_make_run_ends_well_where_something_was_measured(make_run, code, ends_well):
    """Also where no candidate met the budgets, for that is an answer."""
    made = make_run(engine=True, code=code, CONFIG="any.yml")  # of which no engine is asked for

    assert (made[0] == 0) is ends_well


SHIPPED = sorted((ROOT / "configs").glob("*.yml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_passes_check(called, path):
    """Each config in configs/ is sound, with its data and its prices."""
    done = called("check", path, "--offline")

    assert (done.returncode, done.stderr) == (0, "")

"""A run's folder: whose it is, how it is found again, and what is told where it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from conftest import ROOT
from fmgauge import __version__
from fmgauge.config import load_config
from fmgauge.errors import ConfigError
from fmgauge.records import StageKey
from fmgauge.runs import (
    check_results_dir,
    find_run,
    find_run_folder,
    find_run_folder_by_config,
    find_run_folders,
    mark_step,
    new_run_id,
    now_utc,
    open_run,
    read_manifest,
)

CONFIG = """\
run: {name: probe, seed: 7}
workloads:
  - name: short
    source: {kind: jsonl, paths: [rows.jsonl]}
experiments:
  - name: one
    model: {name: small}
    endpoint: {kind: llamacpp}
    workloads: [short]
    load: [{kind: closed_loop, concurrency: [1, 2], duration_s: 9}]
prices: {hourly_usd: {ml.g5.xlarge: 1.41}}
"""
REMEDY = "Use a new run_id, or the config that the run began with"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, a project with one config."""
    folder = (tmp_path / "project").resolve()
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    (folder / "config.yml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    return folder


def refusal(call, *arguments, **options) -> str:
    """What is told when `call` is refused."""
    with pytest.raises(ConfigError) as raised:
        call(*arguments, **options)
    return str(raised.value)


def test_a_new_run_has_its_config_and_manifest(project):
    """A run's folder holds the resolved config and the manifest from the first moment."""
    run = open_run("config.yml", "first")

    assert run.folder == project / "results" / "first"
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "manifest.json"]
    assert [path.name for path in run.folder.parent.iterdir()] == ["first"]
    assert load_config(run.config_path).config == run.config


def test_the_manifest_says_where_and_with_what(project):
    """The manifest names the run, its config, where paths start, the machine and versions."""
    manifest = read_manifest(open_run("config.yml", "first", ["run.seed=8"]))

    assert (manifest["run_id"], manifest["config_path"]) == ("first", "config.yml")
    assert (manifest["base_dir"], manifest["seed"]) == (str(project), 8)
    assert manifest["machine"]["cores"] == os.cpu_count()
    assert manifest["versions"].get("fmgauge", __version__) == __version__
    assert set(manifest["versions"]) >= {"pandas", "pyarrow"}
    assert manifest["steps"] == {}
    assert datetime.fromisoformat(manifest["created_at"]).utcoffset() == timedelta(0)


def test_a_run_id_is_name_and_utc_time():
    """A run's id is its name and the second in UTC, whatever the zone."""
    at = datetime(2026, 1, 2, 1, 4, 5, 999999, timezone(timedelta(hours=2)))

    assert new_run_id("probe", at.astimezone(UTC)) == "probe-20260101T230405Z"


def test_the_wall_clock_is_utc():
    """The wall clock that names runs is in UTC."""
    assert now_utc().utcoffset() == timedelta(0)


def test_files_lie_where_the_design_says(project):
    """Every step's files have fixed places in the run's folder."""
    run = open_run("config.yml", "first")

    paths = {
        run.ledger_path: "ledger.jsonl",
        run.endpoints_path: "endpoints.json",
        run.payloads_path("short"): "payloads/payload_short.jsonl",
        run.stage_folder(StageKey("one", "short", "concurrency-1")): (
            "requests/one/short/concurrency-1"
        ),
        run.metrics_path: "metrics.parquet",
        run.decision_path: "decision.json",
        run.notebooks_folder: "notebooks",
    }
    assert {str(path.relative_to(run.folder)) for path in paths} == set(paths.values())


# --- opening again --------------------------------------------------------------------------------


def test_a_run_is_opened_again_with_its_config(project):
    """Opening a run that exists changes nothing in it."""
    run = open_run("config.yml", "first")
    before = run.manifest_path.read_bytes()

    again = open_run("config.yml", "first", must_exist=True)

    assert again.config == run.config
    assert again.manifest_path.read_bytes() == before


def test_a_run_is_opened_with_the_config_that_it_stored(project, tmp_path, monkeypatch):
    """The stored config resolves paths as the original did, from any working folder."""
    run = open_run("config.yml", "first", ["run.results_dir=out/deep"])
    monkeypatch.chdir(tmp_path)

    again = open_run(run.config_path, "first")

    assert again.folder == run.folder == project / "out" / "deep" / "first"
    assert again.loaded.resolve("rows.jsonl") == project / "rows.jsonl"


def test_a_run_that_was_moved_goes_on_where_it_lies_now(project, tmp_path):
    """Its stored config opens the folder that holds it, not the one where it began."""
    run = open_run("config.yml", "first")
    moved = shutil.move(run.folder, tmp_path / "first")

    again = open_run(moved / "config.yaml", "first")

    assert again.folder == tmp_path / "first"
    assert not run.folder.exists()


def test_a_config_that_a_user_calls_config_yaml_is_no_run_s(project):
    """Also where its folder is called as the run is: the run goes to the results folder."""
    (project / "first").mkdir()
    shutil.copy(project / "config.yml", project / "first" / "config.yaml")
    changes = [f"run.results_dir={project / 'results'}"]

    run = open_run(project / "first" / "config.yaml", "first", changes)

    assert run.folder == project / "results" / "first"


def test_a_config_stored_outside_the_project_resolves_from_it(project, tmp_path, monkeypatch):
    """Relative paths start where the manifest says, also when the config is read alone."""
    elsewhere = tmp_path / "elsewhere"
    run = open_run("config.yml", "first", [f"run.results_dir={elsewhere}"])
    monkeypatch.chdir(tmp_path)

    loaded = load_config(os.path.relpath(run.config_path, tmp_path))

    assert run.folder == elsewhere.resolve() / "first"
    assert loaded.resolve("rows.jsonl") == project / "rows.jsonl"


def test_a_config_is_looked_for_upwards(project, monkeypatch):
    """A notebook that runs in its own folder finds a config of the project."""
    (project / "notebooks").mkdir()
    monkeypatch.chdir(project / "notebooks")

    run = open_run("config.yml", "first")

    assert run.folder == project / "results" / "first"


def test_a_config_that_is_nowhere_is_told_as_typed(project):
    """A config found neither here nor above is named as it was typed."""
    told = refusal(open_run, "configs/none.yml", "first")

    assert told == "configs/none.yml: there is no such file. Give the path of a YAML file"


def test_a_changed_config_names_the_key_that_differs(project):
    """A run's folder takes no other config; the line of the first difference is told."""
    folder = open_run("config.yml", "first").folder
    (project / "config.yml").write_text(CONFIG.replace("duration_s: 9", "duration_s: 8"))

    told = refusal(open_run, "config.yml", "first")

    assert told == (
        "config.yml:10: experiments.0.load.0.duration_s: "
        f"{folder} belongs to another config, which differs in experiments.0.load.0.duration_s. "
        f"{REMEDY}"
    )


def test_a_changed_override_names_the_option(project):
    """A difference that --set made points at --set, and to resume another config is not to do."""
    folder = open_run("config.yml", "first").folder

    told = refusal(
        open_run, "config.yml", "first", ['prices.hourly_usd."ml.g5.xlarge"=2'], must_exist=True
    )

    key = 'prices.hourly_usd."ml.g5.xlarge"'
    assert told == (
        f"--set: {key}: {folder} belongs to another config, which differs in {key}. "
        "Leave out --resume to begin a new run, or give the config (and every --set) that this "
        "one began with"
    )


def test_many_differences_are_counted(project):
    """Five differing keys are named, and the rest counted."""
    open_run("config.yml", "first")
    limits = [f"budgets.{name}=1" for name in ("usd_per_10k_txn", "error_rate", "spend_usd")]
    model = [f"experiments.0.endpoint.{name}=3" for name in ("layers", "parallel", "threads")]

    told = refusal(open_run, "config.yml", "first", [*limits, *model, "run.seed=8"])

    assert (
        "differs in budgets.error_rate, budgets.spend_usd, budgets.usd_per_10k_txn, "
        "experiments.0.endpoint.layers, experiments.0.endpoint.parallel and 2 more. "
    ) in told


def test_a_comment_makes_no_other_config(project):
    """What the config says counts, not how it is written."""
    open_run("config.yml", "first")
    (project / "config.yml").write_text(f"# the same\n{CONFIG}budgets: {{error_rate: 0}}\n")

    assert open_run("config.yml", "first", must_exist=True).run_id == "first"


# --- refused folders ------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", ["../x", "/x", "", ".", "..", ".x", "a/b", "a b", "x\n"])
def test_a_run_id_that_is_no_folder_name_is_refused(project, run_id):
    """A run's id cannot lead out of the results folder."""
    told = refusal(open_run, "config.yml", run_id)

    assert told == (
        f"run_id: {run_id!r} is no run id. "
        "Use letters, digits, dots, dashes and underscores, a letter or digit first"
    )
    assert sorted(path.name for path in project.iterdir()) == ["config.yml", "pyproject.toml"]


def test_an_unknown_run_lists_those_that_are_there(project):
    """Resuming what does not exist names the last runs that do, and creates nothing."""
    for number in range(6):
        open_run("config.yml", f"run-{number}")

    told = refusal(open_run, "config.yml", "other", must_exist=True)

    assert told == (
        f"{project / 'results'}: there is no run 'other'. "
        "Runs there: run-1, run-2, run-3, run-4, run-5"
    )
    assert not (project / "results" / "other").exists()


@pytest.mark.parametrize("call", [find_run_folder, find_run])
def test_a_mistyped_run_lists_the_nearest(project, call):
    """Of all runs those whose ids are nearest are named."""
    for name in ("first-20260101T000000Z", "second-20260101T000000Z", "other"):
        open_run("config.yml", name)

    told = refusal(call, "frist-20260101T000000Z")

    assert told == (
        "results: there is no run 'frist-20260101T000000Z'. "
        "Did you mean first-20260101T000000Z or second-20260101T000000Z?"
    )


def test_an_unknown_run_where_there_are_none(project):
    """Without any run, that is said, and no results folder appears."""
    told = refusal(open_run, "config.yml", "first", must_exist=True)

    assert told == f"{project / 'results'}: there is no run 'first'. No run is there yet"
    assert not (project / "results").exists()


def test_a_folder_with_other_files_is_left_alone(project):
    """A folder that holds something but no run belongs to somebody else."""
    folder = project / "results" / "first"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")

    told = refusal(open_run, "config.yml", "first")

    assert told == (
        f"config.yml:1: run.results_dir: {folder} is no run's folder, yet it holds thesis.txt. "
        "Use another run id, or move that folder away"
    )
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_becomes_the_run(project):
    """A folder that somebody made in advance is used."""
    (project / "results" / "first").mkdir(parents=True)

    assert open_run("config.yml", "first").config_path.exists()


def test_a_creation_that_was_cut_short_is_begun_anew(project):
    """What a killed creation left is no run, and is in nobody's way."""
    partial = project / "results" / ".first.partial"
    partial.mkdir(parents=True)
    (partial / "config.yaml").write_text("run: {")
    assert find_run_folders() == []

    run = open_run("config.yml", "first")

    assert find_run("first").config == run.config
    assert not partial.exists()


def test_a_file_in_place_of_the_results_folder_is_told(project):
    """Results cannot go where a file stands."""
    (project / "taken").touch()

    told = refusal(open_run, "config.yml", "first", ["run.results_dir=taken"])

    assert told == (
        f"--set: run.results_dir: {project}/taken/first cannot be made: "
        "a file stands in its place. Name another folder"
    )


def test_a_file_in_place_of_the_run_is_told(project):
    """A run's folder cannot stand where a file does."""
    (project / "results").mkdir()
    (project / "results" / "first").touch()

    told = refusal(open_run, "config.yml", "first")

    assert told == (
        f"config.yml:1: run.results_dir: {project}/results/first cannot be made: "
        "a file stands in its place. Name another folder"
    )


def test_a_results_folder_that_cannot_be_made_is_told(project):
    """The system's own reason is given."""
    long_name = "x" * 300

    told = refusal(open_run, "config.yml", "first", [f"run.results_dir={long_name}"])

    assert told.startswith(f"--set: run.results_dir: {project}/{long_name}/first cannot be made: ")
    assert "too long" in told


@pytest.mark.parametrize("results_dir", ["taken", "taken/below/deep", "x" * 300, "s3://bucket/x"])
def test_a_results_folder_is_refused_before_a_run_as_its_creation_would_be(project, results_dir):
    """The check tells what creation tells, of the folder without the run's name."""
    (project / "taken").touch()
    setting = [f"run.results_dir={results_dir}"]

    told = refusal(check_results_dir, load_config("config.yml", setting))

    assert told == refusal(open_run, "config.yml", "first", setting).replace(
        "/first cannot", " cannot"
    )
    assert {path.name for path in project.iterdir()} == {"config.yml", "pyproject.toml", "taken"}


@pytest.mark.parametrize("results_dir", ["there", "there/below", "new/deep"])
def test_a_results_folder_that_can_be_made_passes_unmade(project, results_dir):
    """A good folder is neither refused nor made."""
    (project / "there").mkdir()

    check_results_dir(load_config("config.yml", [f"run.results_dir={results_dir}"]))

    assert list((project / "there").iterdir()) == []
    assert not (project / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_results_folder_is_told_by_the_check(project):
    """A folder without the right to write is told without an attempt to write."""
    (project / "closed").mkdir(mode=0o500)

    told = refusal(check_results_dir, load_config("config.yml", ["run.results_dir=closed/x"]))

    assert "closed/x cannot be made: Permission denied" in told


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_results_folder_that_is_closed_is_told(project):
    """A folder without the right to write is told before anything starts."""
    (project / "closed").mkdir(mode=0o500)

    told = refusal(open_run, "config.yml", "first", ["run.results_dir=closed"])

    assert "closed/first cannot be made: Permission denied" in told


def test_an_address_is_no_results_folder(project):
    """Only a local folder can hold results."""
    told = refusal(open_run, "config.yml", "first", ["run.results_dir=s3://bucket/x"])

    assert told == ("--set: run.results_dir: only a local folder can hold results. Give a folder")
    assert sorted(path.name for path in project.iterdir()) == ["config.yml", "pyproject.toml"]


# --- finding --------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_id(project):
    """A run's id is enough where the results are."""
    opened = open_run("config.yml", "first")

    found = find_run("first")

    assert (found.run_id, found.folder, found.config) == ("first", opened.folder, opened.config)


def test_a_run_is_found_by_its_folder_from_anywhere(project, tmp_path, monkeypatch):
    """A run's folder is enough anywhere, relative or absolute."""
    opened = open_run("config.yml", "first")
    monkeypatch.chdir(tmp_path)

    found = [find_run("project/results/first/"), find_run(str(opened.folder))]

    assert [run.folder for run in found] == [opened.folder] * 2
    assert [run.loaded.base_dir for run in found] == [project] * 2


def test_a_copied_run_keeps_its_id(project):
    """The folder may be called anything: a run's id stands in its manifest."""
    opened = open_run("config.yml", "first")
    copy = opened.folder.rename(project / "sample")

    found = find_run(str(copy))

    assert (found.run_id, found.folder) == ("first", copy)


@pytest.mark.parametrize("run_id", ["second", "", "../x", "x" * 5000, "config.yml"])
def test_a_run_that_is_nowhere_is_told(project, run_id):
    """What is neither a run's id nor its folder is told, with the runs that are there."""
    open_run("config.yml", "first")

    told = refusal(find_run, run_id)

    assert told == f"results: there is no run {run_id!r}. Runs there: first"


def test_a_run_without_its_manifest_is_told(project):
    """A run whose manifest has gone cannot be used."""
    run = open_run("config.yml", "first")
    run.manifest_path.unlink()

    told = {refusal(find_run, "first"), refusal(open_run, "config.yml", "first")}

    assert told == {f"{run.manifest_path}: is missing. Restore it, or begin a new run"}


@pytest.mark.parametrize("torn", ["", '{"run_id": "first", "base', "[]", "{}", "null"])
def test_a_run_with_a_torn_manifest_is_told(project, torn):
    """Half a manifest is told by name, whichever way the run is asked for."""
    run = open_run("config.yml", "first")
    run.manifest_path.write_text(torn)

    told = [
        refusal(find_run, "first"),
        refusal(open_run, "config.yml", "first"),
        refusal(load_config, run.config_path),
        refusal(read_manifest, run),
        refusal(mark_step, run, "1_prepare_data", "done"),
    ]

    assert all(line.startswith(f"{run.manifest_path}: is ") for line in told)
    assert all(line.endswith("Restore it, or begin a new run") for line in told)


def test_every_run_is_found(project):
    """Runs come by name; folders that are none are passed over."""
    for name in ("b", "a"):
        open_run("config.yml", name)
    (project / "results" / "notes").mkdir()

    assert [run.run_id for run in find_run_folders()] == ["a", "b"]


def test_no_runs_are_found_where_there_are_no_results(project):
    """Without a results folder there are no runs."""
    assert find_run_folders() == []


def test_the_commit_is_the_program_s_own(project):
    """A program copied into another checkout does not take that one's commit for its own."""
    shutil.copytree(ROOT / "src" / "fmgauge", project / "venv" / "lib" / "fmgauge")
    commands = ["git init -q .", "git -c user.name=x -c user.email=x commit -q --allow-empty -m x"]
    for line in commands:
        subprocess.run(line.split(), cwd=project, check=True)
    code = "from fmgauge.runs import open_run, read_manifest as read;"
    code += "print(read(open_run('config.yml', 'elsewhere'))['commit'])"

    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "venv" / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout.strip() == "None"


def test_a_damaged_run_s_folder_is_found(project):
    """What a run left behind can be looked for even where its config or manifest is damaged."""
    open_run("config.yml", "a")
    (project / "results" / "a" / "manifest.json").unlink()
    (project / "results" / "a" / "config.yaml").write_text("run: {")

    found = find_run_folder("a")

    assert (found.run_id, found.folder) == ("a", project / "results" / "a")


def test_a_run_of_which_the_ledger_alone_is_left_is_found(project):
    """What it created stands there; that is enough to end it."""
    folder = open_run("config.yml", "a").folder
    (folder / "ledger.jsonl").touch()
    (folder / "config.yaml").unlink()

    assert [run.folder for run in (find_run_folder("a"), *find_run_folders())] == [folder] * 2


EDITS = {
    "not at all": CONFIG,
    "another load": CONFIG.replace("duration_s: 9", "duration_s: 8"),
    "other results": CONFIG.replace("seed: 7", "seed: 7, results_dir: elsewhere"),
    "not readable": "run: {",
}


@pytest.mark.parametrize("edited", EDITS)
@pytest.mark.parametrize("below", [".", "notebooks"])
def test_a_run_is_found_whatever_became_of_its_config(project, monkeypatch, edited, below):
    """From the project or from a folder in it, with the config as it is now."""
    folder = open_run("config.yml", "first").folder
    (project / "config.yml").write_text(EDITS[edited])
    (project / below).mkdir(exist_ok=True)
    monkeypatch.chdir(project / below)

    found = find_run_folder_by_config("config.yml", "first")

    assert (found.run_id, found.folder) == ("first", folder)
    assert not (project / "elsewhere").exists()


@pytest.mark.parametrize("edited", EDITS)
def test_a_run_elsewhere_is_found_by_the_config_that_it_stored(project, tmp_path, edited):
    """Its folder is that config's, also where nothing can be read from it."""
    run = open_run("config.yml", "first", [f"run.results_dir={tmp_path / 'deep'}"])
    run.config_path.write_text(EDITS[edited])

    assert find_run_folder_by_config(run.config_path, "first").folder == run.folder


@pytest.mark.parametrize("config", ["config.yml", "none.yml"])
def test_a_mistyped_run_is_looked_for_and_not_made(project, config):
    """The nearest is named, and no folder appears."""
    open_run("config.yml", "first")

    told = refusal(find_run_folder_by_config, config, "frist")

    assert told == f"{project / 'results'}: there is no run 'frist'. Did you mean first?"
    assert [path.name for path in (project / "results").iterdir()] == ["first"]


# --- steps ----------------------------------------------------------------------------------------


def test_steps_are_noted_in_the_manifest(project):
    """The last state of each step stands in the manifest, with its time; the rest stays."""
    run = open_run("config.yml", "first")
    before = read_manifest(run)

    mark_step(run, "1_prepare_data", "running")
    mark_step(run, "2_deploy_endpoints", "running")
    mark_step(run, "1_prepare_data", "done")

    manifest = json.loads(run.manifest_path.read_text())
    assert {name: step["state"] for name, step in manifest["steps"].items()} == {
        "1_prepare_data": "done",
        "2_deploy_endpoints": "running",
    }
    assert all(datetime.fromisoformat(step["at"]) for step in manifest["steps"].values())
    assert {**manifest, "steps": {}} == before

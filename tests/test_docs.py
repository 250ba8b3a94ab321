"""The documents agree with the code: modules, links, commands and examples are what they say."""

from __future__ import annotations

import importlib
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import until
from fmgauge.cli import _parser
from fmgauge.config import load_config
from fmgauge.config.simulated import BatchingProfile, Faults
from fmgauge.pipeline.preflight import preflight
from test_architecture import LAYERS, PACKAGE

ROOT = Path(__file__).parents[1]
SIMULATED = ROOT / "docs" / "simulated.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@dataclass(frozen=True)
class Example:
    """A fenced block of a document."""

    path: Path
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.name}-{self.number}"


def examples(*languages: str) -> Iterator[Example]:
    """Every fenced block in one of these languages."""
    for path in DOCUMENTS:
        found = FENCED.findall(path.read_text(encoding="utf-8"))
        for number, (language, text) in enumerate(found, start=1):
            if language in languages:
                yield Example(path, number, language, text)


def command_lines() -> Iterator[list[str]]:
    """Every command line of every example, in words, without prompts and comments."""
    for example in examples("bash", "console"):
        for line in example.text.splitlines():
            if example.language == "console" and not line.startswith("$ "):
                continue
            if words := shlex.split(line.removeprefix("$ "), comments=True):
                yield words


STEPS = ("config", "workloads", "endpoints", "load", "metrics", "decision", "report")
FMGAUGE_LINES = [words[1:] for words in command_lines() if words[0].endswith("fmgauge")]
MAKE_TARGETS = sorted(
    {words[1] for words in command_lines() if words[0] == "make"}
    | {name for path in DOCUMENTS for name in re.findall(r"`make ([\w-]+)", path.read_text())}
)


def test_every_module_stands_in_the_architecture_in_order():
    """docs/architecture.md has one row per module, and its order is the order of imports."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| Module | Knows |")[1].split("\n\n")[0]

    assert re.findall(r"^\| `(\w+)/?`", table, re.MULTILINE) == [*LAYERS]


def test_the_walk_of_a_payload_is_the_code_s():
    """Every name in the walk is one of the package's, where the walk says, in the data's order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walk = text.split("## The walk of a payload")[1].split("\n## ")[0]
    names = re.findall(r"`([a-z_]+(?:\.\w+)+)(?<!\.csv)(?<!\.json)(?<!\.md)(?<!\.html)`", walk)

    assert len(names) > 15
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"fmgauge.{module}"), attribute), name
    rooms = list(dict.fromkeys(name.split(".")[0] for name in names if name.startswith(STEPS)))
    assert rooms == [*STEPS]


@pytest.mark.parametrize("layer", LAYERS)
def test_every_module_of_the_architecture_exists(layer):
    """What the documents call a module is one."""
    assert (PACKAGE / f"{layer}.py").is_file() or (PACKAGE / layer / "__init__.py").is_file()


@each_document
def test_links_lead_somewhere(path):
    """Every relative link names a file or a folder that is there."""
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))

    assert [target for target in targets if not (path.parent / target).exists()] == []


def anchors_of(path: Path) -> set[str]:
    """What a link may name after its #, as GitHub makes anchors of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@each_document
def test_links_into_a_document_lead_to_a_heading(path):
    """Every link that names a place in a document, this one or another, names a heading."""
    links = re.findall(r"\]\(([\w./-]*)#([^)]+)\)", path.read_text(encoding="utf-8"))

    assert [
        (target, anchor)
        for target, anchor in links
        if anchor not in anchors_of(path.parent / target if target else path)
    ] == []


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", FMGAUGE_LINES, ids=" ".join)
def test_every_command_line_is_understood(words):
    """What a document tells a reader to type is a command with options that it has."""
    assert _parser().parse_args(words).command


@pytest.mark.parametrize("words", FMGAUGE_LINES, ids=" ".join)
def test_every_config_that_is_to_be_typed_is_there(words):
    """Configs stand in configs/, but for the one that the reader makes by copying."""
    configs = {word for word in words if word.endswith(".yml")} - {"configs/my.yml"}

    assert [config for config in configs if not (ROOT / config).is_file()] == []


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_every_target_of_make_is_one(target):
    """What a document tells a reader to make, make can."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)


# --- examples of configs -------------------------------------------------------------------------

AROUND: dict[str, Any] = {
    "run": {"name": "around"},
    "workloads": [{"name": "docs", "source": {"kind": "python_docs"}, "template": "{{ input }}"}],
    "prices": {"hourly_usd": {"my-machine": 1.2}},
}
EXPERIMENT: dict[str, Any] = {
    "name": "one",
    "model": {"name": "tiny"},
    "endpoint": {"kind": "llamacpp"},
    "instance_type": "my-machine",
    "workloads": ["docs"],
    "load": [{"kind": "closed_loop", "concurrency": [1], "duration_s": 1}],
}


def config_text(example: Example) -> str:
    """The example as it stands where it is a whole config; else put into an experiment of one."""
    given = yaml.safe_load(example.text)
    if "run" in given:
        return example.text
    return yaml.safe_dump(AROUND | {"experiments": [EXPERIMENT | given]})


@pytest.mark.parametrize("example", list(examples("yaml")), ids=str)
def test_every_example_of_a_config_passes_check(example, tmp_path):
    """Whole configs and parts of an experiment can be run as they stand in a document."""
    (tmp_path / "example.yml").write_text(config_text(example))

    assert preflight(tmp_path / "example.yml", offline=True)


def whole_config(folder: Path) -> Any:
    """The whole config that docs/simulated.md shows."""
    (text,) = (one.text for one in examples("yaml") if one.path == SIMULATED and "run:" in one.text)
    (folder / "whole.yml").write_text(text)
    return load_config(folder / "whole.yml").config


def test_the_example_of_a_profile_names_every_figure(tmp_path):
    """Nothing that a profile can hold is left out, and a default is told where there is one."""
    profile = whole_config(tmp_path).experiments[0].endpoint.profile
    told = dict(re.findall(r"^ +(\w+): [\d.]+ .*\(default:? (.+)\)$", SIMULATED.read_text(), re.M))
    defaults = {
        name: field.default
        for name, field in BatchingProfile.model_fields.items()
        if not field.is_required()
    }

    assert profile.model_fields_set == set(BatchingProfile.model_fields)
    assert told.pop("seed") == "7"
    assert told.pop("queue") == "no limit"
    assert defaults.pop("queue") is None
    assert {name: float(value) for name, value in told.items()} == defaults


def test_every_fault_stands_in_the_table_with_its_default():
    """docs/simulated.md has one row per key of `faults`."""
    table = SIMULATED.read_text().split("| Key | What happens | Default |")[1].split("\n\n")[0]
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", table, re.MULTILINE))

    assert {name: yaml.safe_load(value) for name, value in told.items()} == {
        name: field.get_default(call_default_factory=True)
        for name, field in Faults.model_fields.items()
    }


def test_the_example_of_serve_says_what_serve_says(started, tmp_path):
    """The output under the command is what the command prints, on another port."""
    (text,) = (one.text for one in examples("console") if one.path == SIMULATED)
    typed, _, shown = text.partition("\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = shlex.split(typed.removeprefix("$ ").replace("8100", port))[1:]
    words[words.index("configs/simulated-instances.yml")] = ROOT / "configs/simulated-instances.yml"

    process = started(*words)

    output = tmp_path / "output-0.txt"
    until(lambda: "Ctrl-C" in output.read_text())
    process.terminate()
    process.wait(20)
    assert output.read_text() == shown.replace("8100", port)

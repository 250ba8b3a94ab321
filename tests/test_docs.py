"""The documents agree with the code: every module is named, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from test_architecture import LAYERS, PACKAGE

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_module_stands_in_the_architecture_in_order():
    """docs/architecture.md has one row per module, and its order is the order of imports."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| Module | Knows |")[1].split("\n\n")[0]

    assert re.findall(r"^\| `(\w+)/?`", table, re.MULTILINE) == [*LAYERS]


@pytest.mark.parametrize("layer", LAYERS)
def test_every_module_of_the_architecture_exists(layer):
    """What the documents call a module is one."""
    assert (PACKAGE / f"{layer}.py").is_file() or (PACKAGE / layer / "__init__.py").is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """Every relative link names a file or a folder that is there."""
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))

    assert [target for target in targets if not (path.parent / target).exists()] == []

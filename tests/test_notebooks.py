"""The notebooks are chapters: thin, parameterized, without stored results."""

from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from fmgauge.pipeline.notebooks import NOTEBOOKS, PARAMETERS, notebooks_folder

PATHS = sorted(notebooks_folder().glob("*.ipynb"))


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells of the notebook at `path`."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_the_pipeline_s_notebooks_are_the_folder_s():
    """Every numbered notebook in the folder is run, and none is run that is not there."""
    assert tuple(path.stem for path in PATHS) == NOTEBOOKS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
class TestEachNotebook:
    """What is true of every notebook."""

    def test_opens_with_its_title_and_files(self, path):
        """The first cell is a title that says what is read and written."""
        first = nbformat.read(path, as_version=4).cells[0]

        assert first.cell_type == "markdown"
        assert first.source.startswith(f"# {path.stem[0]}. ")
        assert "Reads" in first.source
        assert "Writes" in first.source

    def test_declares_the_two_parameters(self, path):
        """Exactly one cell is tagged parameters, and it sets config_path and run_id."""
        import papermill

        tagged = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]

        assert len(tagged) == 1
        assert set(papermill.inspect_notebook(str(path))) == PARAMETERS

    def test_has_short_cells_that_define_nothing(self, path):
        """No cell has over 12 lines, a function or a class."""
        for cell in code_cells(path):
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 12
            assert not [line for line in lines if line.lstrip().startswith(("def ", "class "))]

    def test_stores_no_result(self, path):
        """No output and no execution count is kept in git."""
        assert [cell.outputs for cell in code_cells(path) if cell.outputs] == []
        assert [c.execution_count for c in code_cells(path) if c.execution_count] == []

    def test_explains_every_step(self, path):
        """Prose stands before every code cell but the imports."""
        cells = nbformat.read(path, as_version=4).cells
        pairs = list(pairwise(cells))
        bare = [c.source for before, c in pairs if c.cell_type == before.cell_type == "code"]

        assert len(bare) == 1
        assert "import" in bare[0]

    def test_is_valid_nbformat(self, path):
        """The file follows the notebook format's own schema."""
        nbformat.validate(nbformat.read(path, as_version=4))

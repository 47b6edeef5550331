"""The notebooks of docs/notebooks/: they run as they are, and are kept without outputs."""

import json
import re
from pathlib import Path

import pytest
from conftest import COMPILATION_OF_LARGE

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def name(path):
    return path.stem


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["animate", "fine_tune_on_your_clip", "look_inside", "train_on_puppets"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_outputs_are_not_kept(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_cells_are_short_and_told(path):
    """Each has a title, and no more than a screen of code between two texts."""
    assert re.match("# .+\n", source(cells(path, "markdown")[0]))
    assert all(len(source(cell).splitlines()) <= 32 for cell in cells(path, "code"))


def test_all_begin_with_the_same_installation():
    assert len({source(cells(path, "code")[0]) for path in NOTEBOOKS}) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    """The trainings of both notebooks compile the same step of the first stage, which takes longest, as it is kept."""
    nbformat = pytest.importorskip("nbformat", reason='needs the packages of ".[test]"')
    nbclient = pytest.importorskip("nbclient", reason='needs the packages of ".[test]"')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a kernel is a process of its own
    monkeypatch.setenv("XLA_FLAGS", COMPILATION_OF_LARGE)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    run = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    run.execute()  # raises CellExecutionError with the traceback of the cell
    shown = [x for cell in notebook.cells if cell.cell_type == "code" for x in cell.outputs if "data" in x]
    assert any("image/png" in x["data"] or "image/gif" in x["data"] for x in shown), "no picture is shown"

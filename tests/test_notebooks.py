"""Every notebook runs top to bottom in its reduced setting, and was saved with its figures."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch):
    monkeypatch.setenv("POEJAX_NOTEBOOK_FAST", "1")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    pictures = [_num_pictures(cell) for cell in notebook.cells]
    assert sum(pictures) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_saved_with_small_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 600_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(map(_num_pictures, notebook.cells)) >= 4
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds


def _num_pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))

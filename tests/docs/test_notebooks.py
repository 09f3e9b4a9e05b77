"""Every notebook runs at its small size, and the executed file that is shipped has the cells of its script."""

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(p for p in FOLDER.glob("*.py") if p.name != "execute.py")


@pytest.mark.filterwarnings("ignore")  # of the notebook tools, not ours
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_notebook_runs_small(script, tmp_path, monkeypatch):
    import jupytext
    from nbclient import NotebookClient

    monkeypatch.setenv("JAXFL_SMALL", "1")
    book = jupytext.read(script)
    shipped = jupytext.read(script.with_suffix(".ipynb"))
    assert [c.source for c in shipped.cells] == [c.source for c in book.cells], "run python notebooks/execute.py"
    assert any(c.get("outputs") for c in shipped.cells if c.cell_type == "code")
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "JAXFL_SMALL" in os.environ


def test_there_are_notebooks():
    assert SCRIPTS

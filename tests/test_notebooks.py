"""The notebooks: committed without outputs, short sentences, code that compiles; run in the slow test."""

import ast
from pathlib import Path

import pytest

from test_documents import LONGEST_SENTENCE, sentences

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")


def named(path: Path) -> str:
    return path.stem


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["clean-a-folder", "read-a-verdict"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_is_valid_and_holds_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert [cell.source for cell in code if cell.outputs or cell.execution_count is not None] == []
    for cell in code:
        ast.parse(cell.source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_the_prose_of_a_notebook_has_short_sentences(path):
    notebook = nbformat.read(path, as_version=4)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert texts
    assert [s for text in texts for s in sentences(text) if len(s.split()) > LONGEST_SENTENCE] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_runs_and_finds_what_was_put_in(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )
    assert "suspicious" in printed
    assert (tmp_path / "runs").is_dir()

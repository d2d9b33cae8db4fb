"""The tutorial: its chapters run in test_docs.py, and here as a notebook."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parents[1] / "docs/tutorial"


@pytest.fixture(scope="module")
def make():
    if not HERE.exists():
        pytest.skip("the pages are not beside the tests")
    return SimpleNamespace(**runpy.run_path(str(HERE / "make.py")))


def test_the_notebook_is_that_of_the_chapters(make):
    """`make tutorial` writes it."""
    assert (HERE / "tutorial.ipynb").read_text() == make.notebook()


def test_chapters_are_made_of_their_parts(make):
    for chapter in make.chapters():
        kinds = {"prose": "{}", "python": "```python\n{}```", "text": "```text\n{}```", "picture": "{}"}
        pieces = [kinds[part.kind].format(part.text.strip("\n") if part.kind in ("prose", "picture") else part.text)
                  for part in make.parts(chapter)]  # fmt: skip
        assert "\n\n".join(pieces) + "\n" == chapter.read_text()
        for part in make.parts(chapter):
            if part.kind == "picture":
                assert (HERE / re.findall(r"\((\S+)\)", part.text)[-1]).exists()


def test_the_notebook_is_one(make):
    content = (HERE / "tutorial.ipynb").read_text()
    cells = json.loads(content)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 25
    for cell in code:
        compile(cell, "cell", "exec")
    assert not re.search(r"```python|\]\(\d-|\.png", content)  # all is cells; no link leads nowhere
    pytest.importorskip("nbformat").validate(json.loads(content))


@pytest.mark.slow
def test_the_notebook_runs(make, tmp_path):
    """In Jupyter: with a progress bar, pages and histories inline, and no error."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for extra in ("ipykernel", "ipywidgets", "matplotlib", "tqdm"):
        pytest.importorskip(extra)
    notebook = nbformat.reads((HERE / "tutorial.ipynb").read_text(), as_version=4)
    last = [cell for cell in notebook.cells if cell["cell_type"] == "code"][-1]
    last["source"] += "\nhistory"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") == 4
    assert shown.count("text/html") >= 1
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]

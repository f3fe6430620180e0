"""The notebooks run from their first cell to their last."""

import json
import os
import sys
from pathlib import Path

import pytest

from helpers.javascript import npm_package
from helpers.paths import ROOT

NOTEBOOKS = ROOT / "docs" / "notebooks"


def execute(name: str, folder: Path, monkeypatch) -> str:
    """Run a notebook in an empty folder; returns all that its cells printed."""
    nbclient = pytest.importorskip("nbclient", reason="needs pip install -e '.[docs]'")
    nbformat = pytest.importorskip("nbformat")
    programs = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", programs + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=3000, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_photos_become_a_page_in_the_browser(tmp_path, monkeypatch):
    """A cell that fails ends a newcomer's first hour."""
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "onnxruntime-web").symlink_to(npm_package("onnxruntime-web"))
    printed = execute("own_photos", tmp_path, monkeypatch)
    assert "error:" not in printed
    assert (tmp_path / "photos_prepared").is_dir()
    assert {"index.html", "model.js", "runtime_wasm.js"} <= {path.name for path in (tmp_path / "page").iterdir()}


@pytest.mark.slow
def test_three_methods_are_compared_with_an_interval(tmp_path, monkeypatch):
    """A notebook that compares must end in a table with the intervals."""
    printed = execute("compare_methods", tmp_path, monkeypatch)
    assert "error:" not in printed
    table = (tmp_path / "runs" / "methods" / "table.md").read_text(encoding="utf-8")
    assert all(f"| {method} |" in table for method in ("baseline", "kd", "kd_cwd"))
    assert "[" in table
    assert (tmp_path / "runs" / "methods" / "gains.png").is_file()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_starts_by_installing_and_holds_no_output(path):
    """On Colab nothing is installed; and stored outputs age."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert "%pip install" in "".join(code[0]["source"])
    assert not any(cell["outputs"] for cell in code)

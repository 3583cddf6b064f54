"""The notebook of the quick start: what is committed was executed, and it still runs."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorials" / "quickstart.ipynb"
FIGURES = """
import json
print(json.dumps({"on_object": on_object(attention, test), "chance": float(chance), "accuracy": accuracy,
                  "features": features.shape, "attention": attention.shape}))
"""


def outputs_of(cells) -> list[dict]:
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def test_committed_notebook_was_executed_and_is_small():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))  # each cell, in order
    outputs = outputs_of(cells)
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 6
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 300_000


@pytest.mark.slow
def test_notebook_runs_and_localizes_the_birds(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    # A checkout of its own, for the runs that it writes.
    (tmp_path / "docs" / "tutorials").mkdir(parents=True)
    for name in ("configs", "cvsa_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("QUICKSTART_STEPS", "100")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(FIGURES))
    folder = {"metadata": {"path": str(tmp_path / "docs" / "tutorials")}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=folder).execute()
    assert (tmp_path / "runs" / "quickstart" / "cvsa" / "report" / "index.html").exists()
    figures = json.loads(notebook.cells[-1].outputs[-1]["text"])
    assert figures["features"] == [480, 64] and figures["attention"] == [120, 8, 8]
    assert figures["on_object"] > 2 * figures["chance"] > 0.2
    assert figures["accuracy"]["look head"] > 1.5 / 12  # chance: 1 / 12

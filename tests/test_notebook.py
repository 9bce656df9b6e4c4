"""analysis.ipynb runs from top to bottom, computes nothing itself, and is committed without outputs.

The executed copy is written to the file that the environment variable EXECUTED_NOTEBOOK names, if any.
"""

import ast
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from ablations.study import Cell
from runners.figures import FIGURES
from runners.store.record import Record
from runners.store.store import open_store

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "analysis.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def statements(source: str) -> list[ast.stmt]:
    return ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("%"))).body


def test_outputs_are_stripped(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def test_it_selects_and_draws_and_computes_nothing(notebook):
    computing = (ast.BinOp, ast.For, ast.While, ast.FunctionDef, ast.Lambda, ast.ListComp, ast.DictComp, ast.With)
    for source in code(notebook):
        nodes = [node for statement in statements(source) for node in ast.walk(statement)]
        assert not [node for node in nodes if isinstance(node, computing)], source
        imported = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        assert all(module.partition(".")[0] == "runners" for module in imported)


def test_every_figure_of_a_table_is_drawn_and_explained_in_one_sentence(notebook):
    cells = notebook.cells
    shown = [index for index, cell in enumerate(cells) if cell.cell_type == "code" and "show(" in cell.source]
    assert [name for name in FIGURES if any(f'show("{name}"' in cells[i].source for i in shown)] == [*FIGURES]
    for index in shown:
        below = cells[index + 1]
        assert below.cell_type == "markdown"
        assert below.source.count(". ") == 0 and below.source.endswith(".")


def executed(notebook, folder: Path):
    """Run a copy of the notebook in a folder; its code is that of this checkout."""
    copy = nbformat.from_dict(notebook)
    NotebookClient(copy, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return copy


def texts(notebook) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_it_runs_on_the_committed_sample(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "results").mkdir()
    for sample in (ROOT / "results").glob("sample_*.csv"):
        shutil.copy(sample, tmp_path / "results")
    done = executed(notebook, tmp_path)
    nbformat.write(done, os.environ.get("EXECUTED_NOTEBOOK", tmp_path / "executed.ipynb"))
    drawn = [cell for cell in done.cells if cell.cell_type == "code" and "show(" in cell.source]
    assert len(drawn) == len(FIGURES)
    for cell in drawn:
        has_picture = any("image/png" in output.get("data", {}) for output in cell.outputs)
        # a table holds no learning curves
        assert has_picture == ("learning" not in cell.source), cell.source
    assert texts(done).count("is not drawn") == texts(done).count("learning is not drawn") == 1
    (swept,) = (cell for cell in done.cells if cell.cell_type == "code" and "Sweep(" in cell.source)
    shown = [output.data["text/html"] for output in swept.outputs]
    assert any("4/4 cells" in html and "done" in html for html in shown), "the progress bar"
    assert "first_core_gmacs" in shown[-1] and shown[-1].count("<tr") == 5


@pytest.mark.slow
@pytest.mark.exhaustive
def test_it_runs_on_ones_own_results_and_says_what_they_do_not_show(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    store = open_store(tmp_path / "results" / "runs", create=True)
    for side in (64, 128):
        for device in ("cpu-mine", "gpu-mine"):
            values = {"infer_latency_ms": side / 10, "resolution": f"{side}x{side}"}
            key = store.add_cell(Cell(attn="axial", height_px=side, width_px=side))
            environment = {"device_name": device, "versions": {"torch": "2.14"}}
            common = {"status": "ok", "values": values, "environment": environment}
            store.write_record(key, Record(measure="throughput", device_id=device, protocol=1, **common))
    done = executed(notebook, tmp_path)
    (complexity,) = (cell for cell in done.cells if 'show("complexity"' in cell.source)
    assert any("image/png" in output.get("data", {}) for output in complexity.outputs)
    assert "pareto is not drawn: " in texts(done)

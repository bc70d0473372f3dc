"""What every committed notebook must be, so that comparing its outputs means something."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from papermill import inspect_notebook
from small import NOTEBOOKS, TOC

# An absolute path of some machine; an address such as https://example.org/home/ is none.
ABSOLUTE = re.compile(r"(?<![\w.:/])/(home|root|Users|tmp|work|opt|usr|var|mnt|content)/|\b[A-Z]:\\\\?Users")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_book_shows_every_notebook():
    shown = {chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]}
    assert NOTEBOOKS
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} == {file for file in shown if file.startswith("notebooks/")}


def test_is_valid_and_small(path: Path, notebook: nbformat.NotebookNode):
    nbformat.validate(notebook)
    assert path.stat().st_size <= 1_000_000


def test_was_executed_once_from_top_to_bottom(notebook: nbformat.NotebookNode):
    """What stands before the parameters may be written into an executed notebook: Colab's cell, what the page found."""
    cells = code_cells(notebook)
    opening = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    early = [cell.execution_count for cell in cells[:opening] if cell.execution_count is not None]
    counts = early + [cell.execution_count for cell in cells[opening:]]
    assert counts == list(range(1, len(counts) + 1))


def test_prints_something_to_compare(notebook: nbformat.NotebookNode):
    """A notebook without text in its outputs passes nbval whatever it computes."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    text = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    assert re.search(r"\d", text)


def test_names_the_kernel_that_everybody_has(notebook: nbformat.NotebookNode):
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata  # traces of a run: its paths and times


def test_shows_no_warnings_or_errors(notebook: nbformat.NotebookNode):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []


def test_holds_no_absolute_path(notebook: nbformat.NotebookNode):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in [kind for kind in output.get("data", {}) if kind.startswith(("image/", "video/"))]:
                del output["data"][kind]  # base64 may spell anything
    assert [cell.source for cell in notebook.cells if ABSOLUTE.search(json.dumps(cell))] == []


def test_every_figure_is_described(notebook: nbformat.NotebookNode):
    drawn = [cell for cell in code_cells(notebook) if any("image/png" in out.get("data", {}) for out in cell.outputs)]
    assert [cell.source for cell in drawn if not cell.metadata.get("mystnb", {}).get("image", {}).get("alt")] == []


def test_has_one_cell_of_typed_and_explained_parameters(path: Path, notebook: nbformat.NotebookNode):
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    lines = [line for line in cell.source.splitlines() if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"\w+: \S.* = \S.*  # \S.*", line)] == []
    # What `papermill --help-notebook` tells its reader.
    parameters = inspect_notebook(str(path))
    assert len(parameters) == len(lines)
    assert all(known["help"] and known["inferred_type_name"] != "None" for known in parameters.values())

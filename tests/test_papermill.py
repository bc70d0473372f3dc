"""The notebooks as programs: papermill runs with right and wrong parameters."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from papermill import execute_notebook

from assim_lib import ParameterError

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
QUARTER = "every_4th_dim_partial_obs"


def beginning(name: str) -> list[str]:
    """The code of a notebook: its parameters, and what follows up to where they are read."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    declared = next(index for index, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", []))
    sources = ["".join(cell["source"]) for cell in code[declared:]]
    read = next(index for index, source in enumerate(sources) if "= notebook_parameters(" in source)
    return sources[: read + 1]


def begin(name: str, /, **changed: Any) -> dict[str, Any]:
    """Run the beginning of a notebook with parameters changed, as papermill changes them."""
    declaration, *others = beginning(name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(declaration, namespace)
    namespace |= changed
    for source in others:
        exec(source, namespace)
    return namespace


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_every_notebook_accepts_its_own_parameters_and_no_others(name, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    namespace = begin(name)
    declared = namespace["__annotations__"]
    assert declared
    with pytest.raises(ParameterError, match="Unknown parameter `sed`"):
        begin(name, sed=3)
    for parameter in declared:
        with pytest.raises(ParameterError, match=f"^{parameter} = "):
            begin(name, **{parameter: [0.5]})


def alone(name: str, folder: Path) -> str:
    """A copy of a notebook, alone in a folder; without the solutions of its exercises, which nbval runs."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    notebook["cells"] = [cell for cell in notebook["cells"] if "solution" not in cell["metadata"].get("tags", [])]
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    return str(folder / f"{name}.ipynb")


def executed(name: str, folder: Path, **parameters: Any) -> Any:
    """Run a notebook there with parameters changed; its metrics."""
    parameters = {"metrics": "mine/metrics.json", **parameters}
    execute_notebook(alone(name, folder), folder / "out.ipynb", parameters, progress_bar=False, cwd=folder)
    return json.loads((folder / parameters["metrics"]).read_text())


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("noize=1", "Unknown parameter `noize`: did you mean `noise`?"),
        ("test_dropout=false", "test_dropout = 'false' (of type str) is not allowed; test_dropout is True or False"),
    ],
)
def test_a_wrong_parameter_is_one_sentence_and_a_failure(parameter, sentence, tmp_path):
    command = [sys.executable, "-m", "papermill", alone("05_l96_conv", tmp_path), "out.ipynb", "--no-progress-bar"]
    command += ["-p", *parameter.split("=")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode != 0
    assert sentence in run.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    executed = [cell for cell in cells if cell["cell_type"] == "code" and cell["execution_count"]]
    assert "build_filter" not in "".join("".join(cell["source"]) for cell in executed), "something was computed"


def test_a_size_that_is_not_tuned_in_a_setting_is_refused(monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    with pytest.raises(ParameterError, match=r"^m = 5 has no classical methods; take one of \[10, 30\]\.$"):
        begin("08_baselines", system="two_level", obs_conf="every_4th_dim_partial_obs", m=5)


# Expected RMSE and relative tolerance: a short training differs from machine to machine by a few per cent. What is left
# at its default is run with the comparison of the committed outputs; here trainings are only as long as they need be.
@pytest.mark.parametrize(
    ("name", "expected", "tolerance", "given"),
    [
        ("04_l96_ff", 5.2, 0.1, {"obs_conf": QUARTER, "network": "ff_per_operator", "updates": 20}),
        ("05_l96_conv", 0.5, 0.35, {"obs_conf": "partial_obs", "analysis": "hybrid", "m": 6, "updates": 10}),
        ("06_ks", 0.26, 0.25, {"obs_conf": "partial_obs", "noise": 1.5, "updates": 10}),
        ("07_misspec", 1.23, 0.25, {"noise": 2.5, "updates": 20}),
        ("08_baselines", 0.8, 0.25, {"obs_conf": QUARTER, "cycles": 600}),
        ("16_vl20", 0.3, 0.25, {"obs_conf": "full_obs", "updates": 10}),
        ("10_robustness", 0.48, 0.25, {"starts": 8, "seed": 3}),
        ("13_many_settings", 0.6, 0.15, {"obs_conf": "random_50_fixed", "noise": 1.5}),
        ("11_recipe", 0.97, 0.05, {"against": "lag 0"}),
    ],
)
def test_a_papermill_run_writes_metrics_within_tolerance(name, expected, tolerance, given, tmp_path):
    metrics = executed(name, tmp_path, **given)
    assert metrics["rmse"] == pytest.approx(expected, rel=tolerance)
    used = metrics.get("experiment", {})
    assert {**used, **{option: given[option] for option in given.keys() & used.keys()}} == used


def test_a_setting_without_a_filter_of_ten_members_can_be_looked_at_too(tmp_path):
    assert executed("09_results", tmp_path, setting="ks-full_obs-dt1-s2.5")["rmse_by_label_and_members"] == {}


def test_a_notebook_runs_alone_in_an_empty_folder(tmp_path):
    metrics = executed("00_quickstart", tmp_path, updates=20, metrics="runs/00_quickstart.json")
    assert metrics["rmse"] == pytest.approx(0.5, rel=0.25)

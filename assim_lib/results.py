"""The table of scores: one JSON file a run under ``data/results``, one tidy row each in ``scores.csv``.

Every figure and table of the book is computed from these files. ``scores.csv`` is derived from the JSON files
and never edited; a run appears once its file does. The JSON file says the rest: full settings, training
history, package versions, commit.
"""

import json
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pandas as pd

from assim_lib.evaluation import Scores
from assim_lib.experiments import Experiment, configure
from assim_lib.storage import atomic_path, data_dir, write_json
from assim_lib.trajectories import TestSet

SETTING = ["system", "obs_conf", "step_size", "noise"]
COLUMNS = [
    *SETTING, "method", "m", "label", "rmse", "rmse_lo", "rmse_hi", "spread", "crps", "cycles",
    "ms_per_cycle", "seed", "checkpoint", "commit", "diverged", "diverged_starts", "starts", "failed", "untrained_rmse", "validation_rmse", "best",
    "file",
]  # fmt: skip


def results_dir() -> Path:
    """Where results are stored."""
    return data_dir() / "results"


def store_result(
    name: str,
    test_set: TestSet,
    *,
    method: str,
    m: int,
    label: str,
    test: Scores,
    validation: Scores,
    ms_per_cycle: float,
    seed: int,
    details: dict[str, Any],
    checkpoint: str | None = None,
    diverged: bool = False,
) -> Path:
    """Write the JSON file of a run; ``details`` must hold its ``provenance``.

    Parameters
    ----------
    name : the file's name, without its ending.
    label : tells apart runs with the same method and m.
    test, validation : scores on the frozen test set, and on the validation set that choices are made by.
    """
    path = results_dir() / f"{name}.json"
    write_json(
        path,
        {
            **{key: getattr(test_set, key) for key in SETTING},
            "method": method,
            "m": m,
            "label": label,
            "test": test.as_dict(),
            "validation": validation.as_dict(),
            "ms_per_cycle": ms_per_cycle,
            "seed": seed,
            "checkpoint": checkpoint,
            "diverged": diverged,
            **details,
        },
    )
    return path


def _row(path: Path) -> dict[str, Any]:
    result = json.loads(path.read_text())
    return {
        **{key: result[key] for key in COLUMNS if key in result},
        **result["test"],
        "validation_rmse": result["validation"]["rmse"],
        "untrained_rmse": result.get("untrained", {}).get("rmse", float("nan")),
        # Settings that were better on validation data, and lost the truth on the test set.
        "failed": len(result["failed"]) if "failed" in result else None,
        "commit": result["provenance"]["commit"],
        "file": path.name,
    }


def collect(folder: Path | None = None) -> pd.DataFrame:
    """Build the table from the JSON files of a folder.

    ``best`` marks, among runs of one method and ensemble size in one setting, that of the lowest RMSE on
    *validation* data: the test set chooses nothing.
    """
    table = pd.DataFrame([_row(path) for path in sorted((folder or results_dir()).glob("*.json"))], columns=COLUMNS)
    # A run that diverged on validation data is the best of its kind only where there is no other.
    error = table["validation_rmse"].fillna(float("inf"))
    # One of them, where two runs are equal.
    table["best"] = error.groupby([table[key] for key in (*SETTING, "method", "m")]).rank(method="first") == 1
    return table.sort_values([*SETTING, "method", "m", "label", "seed"], ignore_index=True)


def write_scores() -> Path:
    """Bring ``data/results/scores.csv`` up to date with the JSON files."""
    path = results_dir() / "scores.csv"
    with atomic_path(path) as temporary:
        collect().to_csv(temporary, index=False, float_format="%.5g")
    return path


def load_scores(**setting: Any) -> pd.DataFrame:
    """The rows of ``scores.csv`` in a setting, e.g. ``load_scores(system="l96", method=["LETKF", "iEnKS"])``."""
    table = pd.read_csv(results_dir() / "scores.csv", dtype={"step_size": float, "noise": float})
    for column, value in setting.items():
        table = table.loc[table[column].isin(_choices(value))]
    return table.reset_index(drop=True)


def _choices(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _learned(**setting: Any) -> list[tuple[str, dict[str, Any]]]:
    results = [(path.stem, json.loads(path.read_text())) for path in sorted(results_dir().glob("*.json"))]
    return [(n, r) for n, r in results if "history" in r and all(r[k] in _choices(v) for k, v in setting.items())]


def histories(**setting: Any) -> dict[str, list[dict[str, int | float]]]:
    """Learning curves of the learned filters in a setting, by label and ensemble size.

    Of several runs that are called the same, the best on validation data is shown. The curve of a filter trained in
    many settings is a mean over some of them, whatever setting is asked for.
    """
    curves: dict[str, list[dict[str, int | float]]] = {}
    for _, result in sorted(_learned(**setting), key=lambda named: named[1]["validation"]["rmse"]):
        curves.setdefault(f"{result['label']}, m = {result['m']}", result["history"])
    return curves


def training_runs(**setting: Any) -> pd.DataFrame:
    """One row per learned filter: its size, its training time, its origin, and the command that repeats it.

    ``validation_rmse`` of a filter with results in several settings is their geometric mean.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for _, result in _learned(**setting):
        results.setdefault(Path(result["checkpoint"]).stem, []).append(result)
    rows = []
    for name, (result, *others) in results.items():
        # Options that came later included; wherever it was trained, this machine need not have a GPU.
        experiment = Experiment.model_validate({**result["experiment"], "device": "auto"}).model_dump()
        base = configure(experiment["experiment"], **{k: experiment[k] for k in ("preset", "analysis")}).model_dump()
        named = ("preset", "analysis") if experiment["settings"] else ("preset", "analysis", "obs_conf")
        options = {k: v for k, v in experiment.items() if v != base[k] or k in named}
        words = ["python -m assim_lib train", experiment["experiment"]]
        words += [f"--{k}" if v is True else f"--no-{k}" if v is False else f"--{k} {v}" for k, v in options.items()]
        rows.append(
            {
                "name": name,
                "updates": experiment["updates"],
                "core_minutes": result["core_seconds"] / 60,
                "validation_rmse": geometric_mean(r["validation"]["rmse"] for r in (result, *others)),
                "torch": result["provenance"]["versions"]["torch"],
                "command": " ".join(words),
            }
        )
    return pd.DataFrame(rows)

"""How long a training takes, from nothing, until its filter is as good as was wished for.

The time is that of one core's processor. Simulating the data, building the filter and its updates count; scoring does
not: who knows the recipe need not look.
"""

import os
import statistics
import time
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import pandas as pd
from tqdm import tqdm

from assim_lib.filter import AmortizedFilter
from assim_lib.storage import cache_dir, provenance
from assim_lib.stored import Stored
from assim_lib.study.cost.measuring import Value, alone
from assim_lib.training.build import build_filter
from assim_lib.training.data import training_data
from assim_lib.training.experiment import configure
from assim_lib.training.trainer import Trainer
from assim_lib.training.validation import validation_rmse


class Target(NamedTuple):
    """An RMSE on validation data that a training should reach in so many seconds."""

    rmse: float
    seconds: float
    options: dict[str, Any]


FROM_NOTHING = {
    "analysis": "recurrent", "m": 1, "hidden_size": 32, "window": 6, "updates": 200, "lr": 0.01, "adamw_lr": 0.008,
    "rates": "steps",
}  # fmt: skip
KALMAN = {"analysis": "hybrid", "m": 10, "lr": 0.002, "adamw_lr": 0.002}
EVERY_4TH = {"obs_conf": "every_4th_dim_partial_obs", "lag": 3, "updates": 2000}
TARGETS = {
    "all sites, from nothing": Target(0.5, 40, FROM_NOTHING),
    "all sites, on a Kalman part": Target(0.265, 180, {**KALMAN, "lag": 5, "updates": 1200}),
    "every fourth site, on a Kalman part": Target(0.6, 240, {**KALMAN, **EVERY_4TH}),
}
SEEDS, LOOKS, PATIENCE = (0, 1, 2), 40, 2  # the last: a run is given so many times the seconds
HOW = (
    "one thread, each run in a process of its own; seconds of processor time, data included and scoring not, at each "
    f"look at the validation data, {LOOKS} at most; a run ends when its target is met, or after twice the time"
)


class Finished(Stored):
    """Runs that are done while others are not yet, and the commit that they are of."""

    commit: str
    rows: list[dict[str, Value]]


def measure() -> list[dict[str, Value]]:
    """Train for every target and seed; what was stopped goes on with the next run."""
    path, commit, rows = cache_dir() / "accuracy.json", provenance()["commit"], []
    if path.exists() and (kept := Finished.read(path)).commit == commit:
        rows = list(kept.rows)
    done = {(row["name"], row["seed"]) for row in rows}
    runs = [(name, seed) for seed in SEEDS for name in TARGETS if (name, seed) not in done]
    for name, seed in tqdm(runs, desc="accuracy", unit="training"):
        rows += alone(train_until, name, seed)
        Finished(commit=commit, rows=rows).write(path)
    path.unlink(missing_ok=True)
    return rows


def train_until(name: str, seed: int) -> list[dict[str, Value]]:
    """Seconds and RMSE at each look, the first before any update, the last when the target is met or time is up."""
    target, rows = TARGETS[name], []
    experiment = configure("l96_conv", **target.options).changed(device="cpu", seed=seed)
    every = max(1, experiment.updates // LOOKS)
    started = time.process_time()

    def look(model: AmortizedFilter) -> bool:
        nonlocal started
        seconds = time.process_time() - started
        rows.append({"name": name, "seed": seed, "seconds": seconds, "rmse": validation_rmse(experiment, model)})
        started = time.process_time() - seconds
        return rows[-1]["rmse"] <= target.rmse or seconds > PATIENCE * target.seconds

    # Nothing is taken from an earlier run.
    with TemporaryDirectory() as empty, mock.patch.dict(os.environ, ASSIM_CACHE=empty):
        model = build_filter(experiment)
        trainer = Trainer(experiment, model, training_data(experiment))
        if not look(model):
            for step in trainer.fit():
                if step["update"] % every == 0 and look(trainer.averaged):
                    break
    return rows


def reached(table: pd.DataFrame, name: str) -> list[float]:
    """Seconds until the target was met, by seed; infinite where it was not."""
    met = table[(table.name == name) & (table.rmse <= TARGETS[name].rmse)].groupby("seed").seconds.min()
    return [float(met.get(seed, float("inf"))) for seed in sorted(set(table[table.name == name].seed))]


def median_seconds(table: pd.DataFrame, name: str) -> float:
    """The median over the seeds."""
    return statistics.median(reached(table, name))

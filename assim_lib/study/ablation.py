"""What each part of the recipe is worth: the same filter with one thing changed, under one budget.

A :data:`VARIANTS` entry changes the :data:`RECIPE` in one respect. Each is given the same processor time on one core,
not the same number of updates: what is slower must be better by that much. Scores are on validation data; the test set
has no part in the choice of a recipe.
"""

import time
from pathlib import Path
from typing import Any

import pandas as pd

from assim_lib.storage import OtherRunError, data_dir, provenance
from assim_lib.stored import Stored, StoredScores
from assim_lib.study.results import Provenance
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import stored_experiment
from assim_lib.training.data import training_data
from assim_lib.training.experiment import Experiment, ParameterError, configure
from assim_lib.training.run import train
from assim_lib.training.trainer import Trainer
from assim_lib.training.validation import score

BUDGET = 600.0  # seconds of one core, for updates alone
WARM, TIMED = 3, 12  # updates before, and while, the time of an update is taken

# Lorenz-96 from a quarter of the sites, always the same: there the Kalman part alone does badly, and training decides.
RECIPE: dict[str, Any] = {
    "obs_conf": "every_4th_fixed",
    "step_size": 0.15,
    "analysis": "extended",
    "m": 1,
    "lag": 1,
    "hidden_size": 64,
    "blocks": 4,
    "memory": 16,
    "window": 8,
    "batch": 16,
    "lr": 1e-3,
    "adamw_lr": 1e-3,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    # The analysis, and what it has for an ensemble.
    "recurrent, m = 1": {"analysis": "recurrent"},
    "hybrid, m = 5": {"analysis": "hybrid", "m": 5},
    "hybrid, m = 10": {"analysis": "hybrid", "m": 10},
    "hybrid, m = 20": {"analysis": "hybrid", "m": 20},
    "hybrid, m = 10, covariances as features": {"analysis": "hybrid", "m": 10, "band": 2},
    "covariant, m = 10": {"analysis": "covariant", "m": 10},
    "original, m = 10": {"analysis": "original", "m": 10},
    # The Kalman part.
    "no localization": {"taper_length": 1000.0},
    "inflation 1.1": {"inflation": 1.1},
    "full lag at once": {"lag_warmup": 0},
    # The time between the state that is corrected and the observation.
    "lag 0": {"lag": 0},
    "lag 2": {"lag": 2},
    "lag 3": {"lag": 3},
    # The network.
    "width 32": {"hidden_size": 32},
    "width 96": {"hidden_size": 96},
    "2 blocks": {"blocks": 2},
    "6 blocks": {"blocks": 6},
    "memory 4": {"memory": 4},
    "memory 32": {"memory": 32},
    # The training.
    "AdamW": {"optimizer": "adamw"},
    "half the rates": {"lr": 5e-4, "adamw_lr": 5e-4},
    "twice the rates": {"lr": 2e-3, "adamw_lr": 2e-3},
    "batch 8": {"batch": 8},
    "batch 32": {"batch": 32},
    "window 4": {"window": 4},
    "window 16": {"window": 16},
    "last weights": {"averaging": 0.0},
    "a quarter of the record": {"segments": 16},
    # Each cycle comes back a quarter as often: what more data would add.
    "four times the record": {"segments": 256},
    "loss against the truth": {"loss": "clean_analysis"},
}


class Variant(Stored):
    """What is stored of a variant: its training log, and its scores on validation data.

    Attributes:
        changed: options that differ from :data:`RECIPE`.
        budget: core-seconds that its updates were planned for.
    """

    variant: str
    seed: int
    changed: dict[str, Any]
    validation: StoredScores
    ms_per_cycle: float
    budget: float
    experiment: dict[str, Any]
    provenance: Provenance
    resumed: tuple[Provenance, ...] = ()
    seconds: float
    core_seconds: float
    history: list[dict[str, Any]]
    scored: Provenance


class Plan(Stored):
    """How long an interrupted run was to be when it began."""

    updates: int
    budget: float


def variant(name: str, seed: int = 0, **options: Any) -> Experiment:
    """The experiment of a variant.

    Args:
        options: others that differ, e.g. ``updates=100``.

    Raises:
        ParameterError: if there is no variant of that name, or an option cannot be.
    """
    if name not in VARIANTS:
        raise ParameterError(f"variant = {name!r} is not known; known: {', '.join(VARIANTS)}.")
    return configure("l96_conv", **{"preset": "cpu", **RECIPE, **VARIANTS[name], "seed": seed, **options})


def ablation_path(name: str, seed: int) -> Path:
    """Where the result of a variant is stored."""
    words = "".join(letter if letter.isalnum() else " " for letter in name).split()
    return data_dir() / "ablation" / f"{'-'.join(words)}-seed{seed}.json"


def seconds_per_update(experiment: Experiment) -> float:
    """Processor time of an update, measured."""
    trainer = Trainer(experiment, build_filter(experiment), training_data(experiment))
    updates = trainer.fit()
    for _ in range(WARM):
        next(updates)
    started = time.process_time()
    for _ in range(TIMED):
        next(updates)
    return (time.process_time() - started) / TIMED


def ablate(name: str, seed: int, runs: Path, budget: float = BUDGET, progress: bool = True) -> Path:
    """Train a variant for the budget and store its validation score; a stored one is kept.

    Args:
        runs: folder for unfinished runs: one that was stopped goes on.
        budget: seconds of one core.

    Raises:
        OtherRunError: if the result, or the unfinished run, of that name is of other options than the variant has now.
    """
    path = ablation_path(name, seed)
    if path.exists():
        stored = stored_experiment(Variant.read(path).model_dump())  # options that came later included
        if stored != variant(name, seed, updates=stored.updates):
            raise OtherRunError(
                f"{path} is of other options than {name!r} has now; remove it to have it trained again."
            )
        return path
    folder = runs / "ablation" / path.stem
    # An interrupted run goes on with the number of updates it began with; `train` refuses one that began otherwise.
    plan = folder / "plan.json"
    if not plan.exists():
        updates = max(1, round(budget / seconds_per_update(variant(name, seed))))
        Plan(updates=updates, budget=budget).write(plan)
    planned = Plan.read(plan)
    experiment = variant(name, seed, updates=planned.updates)
    model, log = train(experiment, folder, curve_points=10, progress=progress)
    validation, milliseconds = score(experiment, model, "validation")
    result = Variant(
        variant=name,
        seed=seed,
        changed=VARIANTS[name],
        validation=validation,
        ms_per_cycle=milliseconds,
        budget=planned.budget,
        **log,
        scored=Provenance(**provenance(str(experiment.torch_device))),
    )
    return result.write(path, exclude_unset=True)


def ablation_table() -> pd.DataFrame:
    """The stored results, one row each, in the order of :data:`VARIANTS`: validation scores, updates and cost."""
    rows = []
    for name in VARIANTS:
        for path in sorted(ablation_path(name, 0).parent.glob(ablation_path(name, 0).name.replace("seed0", "seed*"))):
            stored = Variant.read(path)
            updates = stored.experiment["updates"]
            rows.append(
                {
                    "variant": name,
                    "seed": stored.seed,
                    **stored.validation.as_dict(),
                    "updates": updates,
                    "ms_per_update": 1000 * stored.core_seconds / updates,
                    "ms_per_cycle": stored.ms_per_cycle,
                }
            )
    return pd.DataFrame(rows)

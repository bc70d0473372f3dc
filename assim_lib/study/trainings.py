"""What the pages show of the stored trainings: learning curves, what they cost, the commands that repeat them.

Everything here is derived from :mod:`assim_lib.study.results`; nothing is stored.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pandas as pd

from assim_lib.setting import SETTING_COLUMNS
from assim_lib.study.results import TrainingLog, collect, select, training_log


def _learned(**wanted: Any) -> pd.DataFrame:
    """The rows of learned filters, in the order of their files."""
    return select(collect(), **wanted).dropna(subset="checkpoint").sort_values("file")


def histories(**wanted: Any) -> dict[str, list[dict[str, int | float]]]:
    """Learning curves of the learned filters in a setting, by label and ensemble size; see :func:`learning_curve`.

    Of several runs that are called the same, the best on validation data is shown. A filter that another of them went
    on from is a part of its curve, and has none of its own. The curve of a filter trained in many settings is a mean
    over some of them, whatever setting is asked for.

    Args:
        wanted: columns of the table of scores and their values, as in :func:`~assim_lib.study.results.load_scores`.
    """
    rows = _learned(**wanted).sort_values("validation_rmse", kind="stable")
    first = rows.drop_duplicates(["label", "m"])
    rows = zip(first.label, first.m, first.checkpoint, strict=True)
    logs = {f"{label}, m = {m}": training_log(checkpoint) for label, m, checkpoint in rows}
    earlier = [leg.experiment for log in logs.values() for leg in _legs(log)[:-1]]
    return {name: learning_curve(log) for name, log in logs.items() if log.experiment not in earlier}


def learning_curve(log: TrainingLog | Mapping[str, Any]) -> list[dict[str, int | float]]:
    """The learning curve of a training, from the first update of the filter that it went on from.

    Each of its points has ``cycles``, those that all trajectories had been trained on by then. Points of a filter that
    was trained in another setting are left out, for they are no errors in this one; its cycles count.

    Args:
        log: of a stored filter, or as :func:`~assim_lib.training.run.train` returns it.
    """
    log = log if isinstance(log, TrainingLog) else TrainingLog.model_validate(dict(log))
    legs = _legs(log)
    keys = ("experiment", "n_settings", *SETTING_COLUMNS)
    here = [log.experiment.get(key) for key in keys]
    points, before = [], 0
    for leg in legs:
        if [leg.experiment.get(key) for key in keys] == here:
            points += [point | {"cycles": before + _cycles(leg, point["update"])} for point in leg.history]
        before += _cycles(leg)
    return points


def _legs(log: TrainingLog) -> list[TrainingLog]:
    """The trainings that a filter went through, this one last."""
    earlier = log.experiment.get("pretrained")
    return [*(_legs(training_log(f"{earlier}.safetensors")) if earlier else ()), log]


def _cycles(log: TrainingLog, updates: int | float | None = None) -> int:
    """How many cycles of how many trajectories so many updates are trained on; None: all of them."""
    updates = log.experiment["updates"] if updates is None else updates
    return int(updates * log.experiment["batch"] * log.experiment["window"])


def training_runs(**wanted: Any) -> pd.DataFrame:
    """One row per learned filter: its size, its training time, its origin, and the command that repeats it.

    ``pretrained`` names the filter that a training went on from. ``updates``, times and ``cycles_seen``, those of all
    trajectories, count from the first update of that one. ``gpu_minutes`` is wall time on a GPU, NaN of filters that
    were trained without one.
    ``validation_rmse`` of a filter with results in several settings is their geometric mean.

    Args:
        wanted: as for :func:`histories`.
    """
    rows = []
    for checkpoint, results in _learned(**wanted).groupby("checkpoint", sort=False):
        log = training_log(str(checkpoint))
        legs = _legs(log)
        gpu = [leg.seconds for leg in legs if leg.provenance.device == "cuda"]
        rows.append(
            {
                "name": Path(str(checkpoint)).stem,
                "pretrained": log.experiment.get("pretrained") or "",
                "updates": sum(leg.experiment["updates"] for leg in legs),
                "cycles_seen": sum(_cycles(leg) for leg in legs),
                "core_minutes": sum(leg.core_seconds for leg in legs) / 60,
                "gpu_minutes": sum(gpu) / 60 if gpu else float("nan"),
                "validation_rmse": geometric_mean(results.validation_rmse),
                "torch": log.provenance.versions["torch"],
                "command": _command(log.experiment),
            }
        )
    return pd.DataFrame(rows)


def other_seeds(checkpoint: str) -> pd.DataFrame:
    """The scores of the filters that were trained as this one was, but for the seed.

    Of a training that went on from another filter, that one may have had another seed as well, or be the same one.

    Args:
        checkpoint: file name of its weights, as in the table of scores.
    """
    log = training_log(checkpoint)
    here = {key: log.experiment[key] for key in SETTING_COLUMNS}
    rows = _learned(**here).query("checkpoint != @checkpoint")
    same = rows.checkpoint.map(lambda other: _but_for_seeds(training_log(other)) == _but_for_seeds(log))
    return rows.loc[same.astype(bool)]


def _but_for_seeds(log: TrainingLog) -> dict[str, Any]:
    options = _completed(log.experiment)
    return {**options, "seed": None, "pretrained": re.sub(r"-seed\d+", "", options["pretrained"])}


def _completed(stored: dict[str, Any]) -> dict[str, Any]:
    """All options of an experiment, those included that came after it; wherever it was trained."""
    from assim_lib.training.experiment import Experiment  # late: tables do not need PyTorch

    return Experiment.model_validate({**stored, "device": "auto"}).model_dump()


def _command(stored: dict[str, Any]) -> str:
    """The command that trains an experiment: what differs from its preset, spelled out."""
    from assim_lib.training.experiment import configure  # late: tables do not need PyTorch

    experiment = _completed(stored)
    base = configure(experiment["experiment"], **{k: experiment[k] for k in ("preset", "analysis")}).model_dump()
    named = ("preset", "analysis") if experiment["n_settings"] else ("preset", "analysis", "obs_conf")
    options = {k: v for k, v in experiment.items() if v != base[k] or k in named}
    if options.get("training_m", 1) is None:  # which a command cannot say: there, None is what the preset has
        options["training_m"] = experiment["m"]
    own = [f"--own {name}={value}" for name, value in options.pop("own", {}).items() if value != base["own"][name]]
    words = ["python -m assim_lib train", experiment["experiment"]]
    words += [f"--{k}" if v is True else f"--no-{k}" if v is False else f"--{k} {v}" for k, v in options.items()]
    return " ".join([*words, *own])

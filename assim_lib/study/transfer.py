"""A trained filter in settings that it was not trained in, from cold starts.

Truth and errors are simulated here, and are none of those that filters are trained, tuned or scored on.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from assim_lib.evaluation import LOST_AFTER, lost_truth, rmse
from assim_lib.filter import AmortizedFilter
from assim_lib.seeds import STRESS
from assim_lib.stored import Number, Stored
from assim_lib.systems import Dynamics, system_of
from assim_lib.tracking import assimilate
from assim_lib.training.checkpoints import load_filter
from assim_lib.training.experiment import Experiment, ParameterError
from assim_lib.trajectories import observed, simulate

SEGMENTS, CYCLES, BURN_IN = 32, 300, 100  # of the short runs; the first cycles do not count


def changes(experiment: Experiment) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Other settings by name: options of the experiment that differ, and attributes of the true system.

    The filter is told what an observer knows (error, places and interval of the observations), and not what nobody
    tells it: that the true system has another forcing than its model.
    """
    dt, noise = experiment.step_size, experiment.noise
    named: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"as trained": ({}, {})}
    named |= {f"σ = {scale * noise:g}": ({"noise": scale * noise}, {}) for scale in (0.3, 0.5, 2.0, 3.0)}
    confs = ("full_obs", "partial_obs", "every_4th_dim_partial_obs", "every_4th_fixed")
    named |= {conf: ({"obs_conf": conf}, {}) for conf in confs if conf != experiment.obs_conf}
    intervals = [round(scale * dt, 6) for scale in (0.5, 1.5, 2.0)]
    named |= {f"interval {interval:g}": ({"step_size": interval}, {}) for interval in intervals}
    own = getattr(system_of(experiment.system), "forcing", None)
    if own is not None:
        forcings = [own * share for share in (0.75, 0.875, 1.125, 1.25)]
        named |= {f"true forcing {forcing:g}": ({}, {"forcing": forcing}) for forcing in forcings}
    return named


class Transferred(Stored):
    """What became of a filter in one of :func:`changes`.

    Attributes:
        change: its name there.
        rmse: the mean after :data:`BURN_IN` cycles.
        standard_error: of that, over independent runs.
        climatology: RMSE of the climatological mean.
        lost: the share of runs that end worse than that.
        reason: why the filter cannot work there; it then has no figures.
    """

    change: str
    rmse: Number = math.nan
    standard_error: Number = math.nan
    climatology: Number = math.nan
    lost: Number = math.nan
    reason: str = ""


def transfer(checkpoint: Path, progress: bool = True) -> list[Transferred]:
    """A trained filter in each of :func:`changes`."""
    experiment, _ = load_filter(checkpoint)
    rows = []
    for name, (changed, true) in tqdm(changes(experiment).items(), desc="other settings", disable=not progress):
        try:
            other, model = load_filter(checkpoint, **changed)
        except ParameterError as error:
            rows.append(Transferred(change=name, reason=str(error)))
            continue
        dynamics = replace(system_of(other.system), **true)
        rows.append(_short_runs(name, other, model, dynamics))
    return rows


def _short_runs(name: str, experiment: Experiment, model: AmortizedFilter, dynamics: Dynamics) -> Transferred:
    burn_in = BURN_IN + model.warmup  # while its lag grows, a filter is not yet what it will be
    runs = follow(experiment, model, SEGMENTS, CYCLES + model.warmup, STRESS, dynamics)
    error = runs.rmse[:, burn_in:]
    return Transferred(
        change=name,
        rmse=float(error.mean()),
        standard_error=float(error.mean(1).std(ddof=1) / SEGMENTS**0.5),
        climatology=runs.climatology,
        lost=float(runs.lost.mean()),
    )


@dataclass(frozen=True)
class ShortRuns:
    """Filters that started cold, each along a truth of its own.

    Attributes:
        truth: what each was to find.
        observations: what each was given of it; NaN where nothing was seen.
        ensemble: the analyses.
        climatology: RMSE of the climatological mean.
    """

    truth: Float[np.ndarray, "start cycle channel site"]
    observations: Float[np.ndarray, "start cycle channel site"]
    ensemble: Float[np.ndarray, "start cycle member channel site"]
    climatology: float

    @property
    def rmse(self) -> Float[np.ndarray, "start cycle"]:
        """RMSE of each cycle."""
        return rmse(self.ensemble, self.truth)

    @property
    def lost(self) -> Bool[np.ndarray, " start"]:
        """Which of them have lost the truth over the last :data:`~assim_lib.evaluation.LOST_AFTER` cycles."""
        return lost_truth(self.rmse[:, -LOST_AFTER:], self.climatology)


def follow(
    experiment: Experiment,
    model: AmortizedFilter,
    starts: int,
    cycles: int,
    seed: int,
    dynamics: Dynamics | None = None,
) -> ShortRuns:
    """Let a filter find truths that are simulated here, each from a cold start of its own.

    Args:
        seed: of truths, errors and cold starts.
        dynamics: the true system; by default that of the experiment.
    """
    dataset = simulate(dynamics or system_of(experiment.system), experiment.step_size, cycles, starts, seed)
    truth, observations = observed(dataset, model.observation_model)
    ensemble = assimilate(model, observations, torch.Generator().manual_seed(seed), dropout=experiment.test_dropout)
    states = torch.from_numpy(dataset.truth.values)
    climatology = float((states - states.mean((0, 1, 3), keepdim=True)).square().mean().sqrt())
    return ShortRuns(truth.numpy(), observations.numpy(), ensemble.numpy(), climatology)


def place_of(change: str) -> tuple[int, float]:
    """Where one of :func:`changes` stands in a table: as trained, errors, places, intervals, forcings."""
    kinds = ["as", "σ =", "places", "interval", "true forcing"]
    kind, number = change.rsplit(" ", 1) if " " in change else (change, "")
    if kind not in kinds:
        return kinds.index("places"), 0.0
    return kinds.index(kind), float(number) if kind != "as" else 0.0

"""Scores of a trained filter: on short runs while it is trained, and along the whole of a frozen set."""

import math
import time

import numpy as np
import torch

from assim_lib.evaluation import BLOCK, SETTLING, Scores, rmse
from assim_lib.filter import AmortizedFilter
from assim_lib.mistakes import is_whole
from assim_lib.seeds import SHORT_RUNS
from assim_lib.tracking import DRAWS, assimilate
from assim_lib.training.data import starting_points
from assim_lib.training.experiment import Experiment
from assim_lib.training.many_settings import VALIDATED, in_settings, scored_settings
from assim_lib.twin import TwinExperiment

SEGMENT = 200  # cycles of a short run


def validation_rmse(experiment: Experiment, model: AmortizedFilter) -> float:
    """RMSE on the validation data, run as a batch of short segments from cold starts (quick enough for a curve).

    Of a filter of many settings: the geometric mean over some of them, in which a per cent counts the same in each,
    and not what is hard to see the most.
    """
    settings = in_settings(experiment, model, scored_settings(experiment, VALIDATED))
    errors = [_short_runs_rmse(*setting) for setting in settings]
    return math.prod(errors) ** (1 / len(errors))


def _short_runs_rmse(experiment: Experiment, model: AmortizedFilter) -> float:
    twin = experiment.setting.load("validation")
    # A filter whose lag grows first is scored as long after that as the others after their start.
    length, burn_in = SEGMENT + model.warmup, SETTLING + model.warmup
    segments = len(twin.observations) // length
    observations, truth = (
        torch.from_numpy(part[: segments * length]).unflatten(0, (segments, length))
        for part in (twin.observations, twin.truth)
    )
    ensemble = assimilate(
        model,
        observations,
        torch.Generator().manual_seed(SHORT_RUNS),
        first_cycle=length * torch.arange(segments),
        dropout=experiment.test_dropout,
        near=starting_points(experiment, observations[:, 0], truth[:, 0]),
    )
    return float(rmse(ensemble.numpy(), truth.numpy())[:, burn_in:].mean())


def run_filter(
    experiment: Experiment,
    model: AmortizedFilter,
    twin: TwinExperiment,
    cycles: int | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, float]:
    """Analysis ensembles of a filter along a twin experiment (its first ``cycles``), and milliseconds per cycle.

    Of a filter that carries a covariance, they are :data:`~assim_lib.tracking.DRAWS` members drawn from it around its
    analysis.

    The time is the processor's, so that whatever else the machine does does not count; on a GPU it is wall time. It
    holds the drawing of those members and their forecast over the lag, a quarter to a third of it.

    Raises:
        ValueError: if there are not so many cycles, or filter and observations are not of one setting.
    """
    _refuse_other_setting(experiment, model, twin)
    if cycles is not None and not is_whole(cycles, 1, len(twin.observations)):
        raise ValueError(
            f"cycles = {cycles} must be a whole number from 1 to {len(twin.observations)}, the cycles of {twin.name}."
        )
    observations, truth = (torch.from_numpy(part[:cycles]) for part in (twin.observations, twin.truth))
    clock = time.process_time if experiment.torch_device.type == "cpu" else time.monotonic
    started = clock()
    ensemble = assimilate(
        model,
        observations,
        torch.Generator().manual_seed(experiment.seed),
        first_cycle=twin.first_cycle,
        dropout=experiment.test_dropout,
        near=starting_points(experiment, observations[0], truth[0]),
        draws=DRAWS,
        progress=progress,
    )
    return ensemble.numpy(), 1000 * (clock() - started) / len(observations)


def score(
    experiment: Experiment,
    model: AmortizedFilter,
    split: str = "test",
    cycles: int | None = None,
    progress: bool = False,
) -> tuple[Scores, float]:
    """Scores over a whole frozen set, or its first ``cycles``, burn-in included; and milliseconds per cycle.

    Raises:
        ValueError: if ``cycles`` are too few for an interval, or more than there are.
    """
    twin = experiment.setting.load(split)
    if cycles is not None and cycles < twin.burn_in + 2 * BLOCK:
        raise ValueError(f"cycles = {cycles} must be at least {twin.burn_in + 2 * BLOCK}, burn-in included.")
    ensemble, milliseconds = run_filter(experiment, model, twin, cycles, progress)
    return twin.score(ensemble), milliseconds


def _refuse_other_setting(experiment: Experiment, model: AmortizedFilter, twin: TwinExperiment) -> None:
    """A filter is set for what is observed, how often and how well; other observations would be taken for these."""
    instruments = twin.observation_model
    same = model.step_size == twin.setting.step_size and torch.equal(model.schedule.cpu() > 0, instruments.schedule)
    same = same and torch.allclose(model.error.double().cpu(), instruments.standard_deviation, rtol=1e-5)
    if experiment.setting != twin.setting or not same:
        raise ValueError(
            f"the filter of {experiment.setting.title} cannot run on {twin.setting.title}; load it for that setting: "
            "load_filter(…, obs_conf=…, noise=…)."
        )

"""What a filter is trained on: a record of noisy observations, and nothing that only a simulation knows."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assim_lib.losses import NEEDS_TRUTH
from assim_lib.observations import observation_model
from assim_lib.seeds import Purpose, generator_for, seed_for
from assim_lib.systems import system_of
from assim_lib.training.experiment import Experiment
from assim_lib.trajectories import cached, observed


class TrainingData(NamedTuple):
    """Observations of some trajectories, each (segment, cycle, channel, site).

    Attributes:
        observations: NaN where nothing was received; where errors are drawn anew at each pass, without them, and NaN
            where nothing can ever be received.
        near: what filters start from, NaN where that is the climatology; None if it is everywhere.
        truth: only for the losses in :data:`~assim_lib.losses.NEEDS_TRUTH`; None for the others.
        phase: (segment, cycle), entries of the observation schedule; None if they come in turn.
        first: number of the first cycle in time; None: 0.
    """

    observations: Float[Tensor, "segment cycle channel site"]
    near: Float[Tensor, "segment cycle channel site"] | None = None
    truth: Float[Tensor, "segment cycle channel site"] | None = None
    phase: Int[Tensor, "segment cycle"] | None = None
    first: Int[Tensor, ""] | None = None

    def to(self, device: torch.device) -> "TrainingData":
        """The same numbers on a device."""
        parts = self._asdict().items()
        return TrainingData(**{name: part.to(device) for name, part in parts if part is not None})


def starting_points(
    experiment: Experiment,
    observations: Float[Tensor, "*cycles channel site"],
    truth: Float[Tensor, "*cycles channel site"],
) -> Float[Tensor, "*cycles channel site"] | None:
    """What members start around, NaN where that is the climatology; see :meth:`AmortizedFilter.cold_start`."""
    match experiment.start:
        case "first_observation":
            return observations
        case "truth":
            return truth
        case _:
            return None


def training_data(experiment: Experiment, progress: bool = False) -> TrainingData:
    """Simulated observations to train on, their errors drawn once unless the experiment draws them anew.

    The truth stays behind in this function, unless the experiment asks for what cannot be had without it.
    """
    dynamics = system_of(experiment.system)
    seed = seed_for(Purpose.TRAINING_TRUTH, experiment.seed)
    dataset = cached(dynamics, experiment.step_size, experiment.cycles, experiment.segments, seed, progress)
    channels, sites = dataset.truth.shape[-2:]
    instruments, phase = observation_model(experiment.obs_conf, channels, sites, experiment.noise), None
    if experiment.order == "random" and experiment.noise_draws == "once":
        source = generator_for(Purpose.TRAINING_ORDER, experiment.seed)
        phase = torch.randint(instruments.period, (experiment.segments, experiment.cycles), generator=source)
    truth, observations = observed(dataset, instruments, phase)
    near = starting_points(experiment, observations, truth)
    if experiment.noise_draws == "each":
        # Nothing of the truth but what an instrument will look at, or may.
        in_turn = instruments.mask(torch.arange(experiment.cycles))
        visible = instruments.schedule.any(0) if experiment.order == "random" else in_turn
        observations = torch.where(visible, instruments.operator(truth), torch.nan)
    return TrainingData(
        observations, near=near, truth=truth if experiment.loss in NEEDS_TRUTH else None, phase=phase
    ).to(experiment.torch_device)

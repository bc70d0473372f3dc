"""An untrained filter, from the experiment that describes it."""

from typing import Any

import torch
from torch import Tensor

from assim_lib.analyses import ANALYSES, Normalization
from assim_lib.displacement import Displacement
from assim_lib.filter import AmortizedFilter
from assim_lib.networks import NETWORKS, TrunkSizes
from assim_lib.observations import observation_model
from assim_lib.seeds import Purpose, generator_for, seed_for
from assim_lib.systems import Dynamics
from assim_lib.training.dry import refuse_unfit_code, refuse_unfit_operator
from assim_lib.training.experiment import Experiment
from assim_lib.training.rules import OF_THE_MASKS

# Fewer on a large ring, each of which holds as much as several states of a small one.
CLIMATOLOGY_STATES, FEWEST_STATES, CLIMATOLOGY_NUMBERS = 512, 32, 2**18


def build_filter(
    experiment: Experiment, climatology: Tensor | None = None, normalization: Normalization | None = None
) -> AmortizedFilter:
    """An untrained filter for an experiment, on the experiment's device.

    Args:
        climatology: states of the free-running model, (state, channel, site); simulated from the experiment's seed by
            default. The units of the network's features are taken from them: a trained filter must be given its own,
            since chaos makes others of the same seed on another machine.
        normalization: units of a filter that was trained on another climatology.
    """
    dynamics = experiment.forecast_model
    instruments = observation_model(experiment.obs_conf, dynamics.channels, dynamics.sites, experiment.noise)
    if climatology is None:
        source = generator_for(Purpose.CLIMATOLOGY, experiment.seed)
        climatology = _climatology(dynamics, source).float()
    dynamics.refuse_unfit(climatology.dtype)
    refuse_unfit_operator(instruments, climatology, experiment.obs_conf)
    sizes = TrunkSizes(
        sites=dynamics.sites,
        operators=instruments.period,
        hidden=experiment.hidden_size,
        blocks=experiment.blocks,
        kernel=experiment.kernel,
        dropout=experiment.dropout,
    )
    kind = ANALYSES[experiment.analysis]
    options = experiment.model_dump() | {OF_THE_MASKS: _mask_features(instruments.schedule)}
    passed: dict[str, Any] = {**{name: options[name] for name in kind.uses}, **experiment.own}
    with torch.random.fork_rng():
        # torch initializes layers from its global generator: seed it here, and put it back.
        torch.manual_seed(seed_for(Purpose.WEIGHTS, experiment.seed))
        analysis = kind(
            channels=dynamics.channels,
            members=experiment.m,
            normalization=normalization or Normalization.of(climatology),
            network=NETWORKS[experiment.network],
            sizes=sizes,
            memory=experiment.memory,
            lag=experiment.lag,
            **passed,
        )
        channels, sites, kernel = dynamics.channels, dynamics.sites, experiment.kernel
        displacement = Displacement(channels, sites, kernel) if experiment.displacement else None
    model = AmortizedFilter(
        dynamics,
        instruments,
        analysis,
        experiment.step_size,
        climatology,
        lag_warmup=experiment.lag_warmup,
        clamp=experiment.clamp,
        displacement=displacement,
    ).to(experiment.torch_device, climatology.dtype)
    refuse_unfit_code(model, experiment)
    return model


def _climatology(dynamics: Dynamics, source: torch.Generator) -> Tensor:
    states = max(FEWEST_STATES, min(CLIMATOLOGY_STATES, CLIMATOLOGY_NUMBERS // (dynamics.channels * dynamics.sites)))
    past = dynamics.spinup * torch.arange(states) / states
    return dynamics.states_at(states, source, until=-past)


def _mask_features(schedule: Tensor) -> int:
    """How many mask channels tell what is seen: none where all is; one where a site is seen as a whole or not."""
    if schedule.all():
        return 0
    return 1 if bool((schedule == schedule[:, :1]).all()) else schedule.shape[1]

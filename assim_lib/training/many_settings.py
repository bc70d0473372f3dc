r"""Many settings for one filter: those it is trained in, and those it is scored in.

What an observer knows of the observations is used by the filter, not learned: the standard deviation :math:`\sigma` of
their error and their places by the analysis, the interval by the forecast. One network can therefore serve all
settings, if training shows it enough of them. They are drawn at random: :math:`\sigma` log-uniformly, since it is a
factor that makes the difference; masks and intervals in turn, so that none is rare.
"""

from itertools import product
from math import exp, log

import numpy as np

from assim_lib.filter import AmortizedFilter
from assim_lib.observations import RANDOM_SHARES, observation_model
from assim_lib.seeds import seed_of_setting
from assim_lib.setting import Setting
from assim_lib.training.experiment import Experiment

NOISES = (0.3, 3.0)
INTERVALS = (0.05, 0.1, 0.15)
REGULAR = ("full_obs", "partial_obs", "every_4th_dim_partial_obs", "every_4th_fixed")
MASKS = (*REGULAR, *(f"random_{share}_{kind}" for share in RANDOM_SHARES for kind in ("fixed", "moving")))
# Where there is a frozen test set.
SCORED = (
    Setting("l96", "full_obs", 0.1, 1.0),
    Setting("l96", "full_obs", 0.1, 2.5),
    Setting("l96", "every_4th_dim_partial_obs", 0.1, 1.0),
    Setting("l96", "every_4th_dim_partial_obs", 0.1, 2.5),
    Setting("l96", "every_4th_fixed", 0.15, 1.0),
    Setting("l96", "every_4th_fixed", 0.15, 0.7),
)
# A curve while training needs no more: large and small errors, dense and sparse observations, another interval.
VALIDATED = tuple(SCORED[i] for i in (0, 1, 2, 4))


def training_settings(experiment: Experiment) -> list[Experiment]:
    """The settings that a filter is trained in: of that many, drawn from its seed, or its own alone.

    Each is an experiment of one setting with trajectories of its own. Every pair of mask and interval comes
    once before any comes twice.
    """
    if not experiment.n_settings:
        return [experiment]
    # The stream of the legacy generator never changes: an unfinished run goes on in the same settings.
    random = np.random.RandomState(experiment.seed)
    pairs = list(product(MASKS, INTERVALS))
    rounds = -(-experiment.n_settings // len(pairs))
    order = np.concatenate([random.permutation(len(pairs)) for _ in range(rounds)])
    drawn = []
    for number, pair in enumerate(order[: experiment.n_settings]):
        obs_conf, step_size = pairs[pair]
        noise = round(exp(random.uniform(log(NOISES[0]), log(NOISES[1]))), 3)
        seed = seed_of_setting(experiment.seed, number)
        drawn.append(experiment.changed(n_settings=0, obs_conf=obs_conf, step_size=step_size, noise=noise, seed=seed))
    return drawn


def scored_settings(experiment: Experiment, settings: tuple[Setting, ...] = SCORED) -> list[Experiment]:
    """The settings that a filter of many is scored in, with its own seed; the experiment itself if it has only one."""
    if not experiment.n_settings:
        return [experiment]
    return [experiment.changed(n_settings=0, **setting.as_dict()) for setting in settings]


def in_settings(
    experiment: Experiment, model: AmortizedFilter, settings: list[Experiment]
) -> list[tuple[Experiment, AmortizedFilter]]:
    """Each of the settings with the filter in it, weights shared; the model itself if the experiment has no others."""
    if not experiment.n_settings:
        return [(setting, model) for setting in settings]
    channels, sites = model.climatology.shape[-2:]
    return [
        (s, model.with_observations(observation_model(s.obs_conf, channels, sites, s.noise), s.step_size))
        for s in settings
    ]

"""A short twin experiment on Lorenz-96, and classical methods with hyperparameters that suit it."""

import dataclasses

import numpy as np

from assim_lib.classical.baseline import Baseline
from assim_lib.observations import observation_model
from assim_lib.setting import Setting
from assim_lib.systems import Lorenz96
from assim_lib.trajectories import observed, simulate
from assim_lib.twin import TwinExperiment

FULL, PARTIAL = "full_obs", "every_4th_dim_partial_obs"
STEP_SIZE = 0.1


def make_twin(obs_conf, cycles=300, noise=1.0, burn_in=100):
    dataset = simulate(Lorenz96(), STEP_SIZE, cycles, segments=1, seed=5)
    parts = (part[0].numpy() for part in observed(dataset, observation_model(obs_conf, 1, 40, noise)))
    setting = Setting("l96", obs_conf, STEP_SIZE, noise)
    return TwinExperiment(f"toy-{obs_conf}", setting, dataset.truth.values[0, 0], *parts, burn_in)


def with_gaps(twin, *gaps):
    """The same experiment without what was observed there."""
    observations = twin.observations.copy()
    for gap in gaps:
        observations[gap] = np.nan
    return dataclasses.replace(twin, observations=observations)


LAGGED = {"upd_a": "Sqrt", "nIter": 10, "wtol": 1e-4, "rot": True}


def baseline(method, m=1, **hyperparameters):
    return Baseline(method=method, m=m, hyperparameters=hyperparameters)


LETKF5, LETKF10 = baseline("LETKF", 5, loc_rad=2, infl=1.1, rot=True), baseline("LETKF", 10, loc_rad=4, infl=1.04)
LETKF_PARTIAL = baseline("LETKF", 10, loc_rad=4, infl=1.07, rot=False)
VAR3D, VAR4D = baseline("3D-Var", B="clim", xB=0.04), baseline("4D-Var", B="eye", xB=0.2, Lag=1, wtol=1e-4)
IENKS = baseline("iEnKS", 30, Lag=3, infl=1.04, **LAGGED)

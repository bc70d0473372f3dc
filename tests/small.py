"""Small filters on a small ring, for tests: a cycle takes a millisecond."""

import json
from functools import cache

import torch
from torch import Tensor, nn

from assim_lib import kalman  # noqa: F401  (registers its analyses)
from assim_lib.analyses import ANALYSES, Analysis, Scales
from assim_lib.dynamics import Dynamics
from assim_lib.filters import AmortizedFilter
from assim_lib.networks import NETWORKS, Sizes
from assim_lib.observations import observation_model
from assim_lib.systems import Lorenz96

SITES = 12
STEP_SIZE = 0.1
SETTING = {"system": "l96", "obs_conf": "full_obs", "step_size": STEP_SIZE, "noise": 1.0}


def scales(mean: float = 2.3, std: float = 3.6, noise: float = 1.0, channels: int = 1) -> Scales:
    """The same units for all channels."""
    return Scales(*(torch.full((channels, 1), value, dtype=torch.float64) for value in (mean, std)), noise)


SCALES = scales()
# Every analysis, and the one that works without an ensemble.
CASES = [("original", 4), ("gated", 4), ("recurrent", 4), ("recurrent", 1), ("hybrid", 4), ("covariant", 4), ("extended", 1)]


def soon_on_attractor(self: Dynamics, batch: int, generator: torch.Generator, spinup: float = 4.0) -> Tensor:
    """In place of :meth:`Dynamics.on_attractor`, for tests of what is done with its states: a shorter spin-up."""
    return Dynamics.on_attractor(self, batch, generator, spinup)


class Quick(Lorenz96):
    """Lorenz-96 with a short way to the attractor."""

    on_attractor = soon_on_attractor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def climatology(sites: int = SITES) -> Tensor:
    return Lorenz96(sites=sites).on_attractor(64, generator(7))


def shaken(module: nn.Module, size: float = 0.2, seed: int = 1):
    """The module with random numbers added to its parameters: what it does untrained tests little."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=source, dtype=torch.float64)
    return module


def built(kind: type[nn.Module], *sizes, **options):
    """A module in float64, with the same initial weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*sizes, **options).double()


def small_analysis(
    name: str,
    members: int,
    *,
    channels: int = 1,
    scales: Scales = SCALES,
    network: str = "conv",
    operators: int = 1,
    hidden: int = 6,
    memory: int = 3,
    dropout: float = 0.0,
    sites: int = SITES,
    **options,
) -> Analysis:
    sizes = Sizes(sites=sites, operators=operators, hidden=hidden, blocks=1, kernel=3, dropout=dropout)
    return built(ANALYSES[name], channels, members, scales, NETWORKS[network], sizes, memory=memory, **options)


def small_filter(
    name: str = "recurrent", members: int = 4, lag: int = 0, obs_conf: str = "full_obs", sites: int = SITES, **options
) -> AmortizedFilter:
    """An untrained filter, in float64."""
    seen = observation_model(obs_conf, 1, sites)
    analysis = small_analysis(name, members, lagged=lag > 0, sites=sites, operators=seen.period, **options)
    # A copy: a state dict is loaded into it in place.
    return AmortizedFilter(Lorenz96(sites=sites), seen, analysis, STEP_SIZE, lag, climatology(sites).clone())


def write_result(folder, label, validation=0.3, test=0.2, **changed):
    """A result file as the table of scores is made of."""
    scores = {"rmse": test, "rmse_lo": 0.1, "rmse_hi": 0.4, "spread": 0.2, "crps": 0.1, "cycles": 500}
    row = {**SETTING, "method": "LETKF", "m": 5, "label": label, "test": scores, "validation": {"rmse": validation}}
    row |= {"provenance": {"commit": "c"}, "seed": 0, "ms_per_cycle": 1.0, "diverged": False, "checkpoint": None}
    (folder / f"{label}.json").write_text(json.dumps(row | changed))

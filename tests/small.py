"""Small filters on a small ring, for tests: a cycle takes a millisecond."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from assim_lib.analyses import ANALYSES, Analysis, AnalysisInput, Normalization
from assim_lib.filter import AmortizedFilter
from assim_lib.networks import NETWORKS, TrunkSizes
from assim_lib.observations import observation_model
from assim_lib.setting import Setting
from assim_lib.storage import write_json
from assim_lib.systems import Dynamics, Lorenz96

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PARTIAL = "every_4th_dim_partial_obs"
SITES = 12
STEP_SIZE = 0.1
SETTING = Setting("l96", "full_obs", STEP_SIZE, 1.0)


def normalization(mean: float = 2.3, std: float = 3.6, channels: int = 1) -> Normalization:
    """The same units for all channels."""
    return Normalization(*(torch.full((channels, 1), value, dtype=torch.float64) for value in (mean, std)))


# Every analysis, and the one that works without an ensemble.
CASES = [
    ("original", 4),
    ("gated", 4),
    ("recurrent", 4),
    ("recurrent", 1),
    ("hybrid", 4),
    ("covariant", 4),
    ("extended", 1),
]


def soon_on_attractor(self: Dynamics, batch: int, generator: torch.Generator, spinup: float = 4.0) -> Tensor:
    """In place of :meth:`Dynamics.on_attractor`, for tests of what is done with its states: a shorter spin-up."""
    return Dynamics.on_attractor(self, batch, generator, spinup)


class Quick(Lorenz96):
    """Lorenz-96 with a short way to the attractor."""

    on_attractor = soon_on_attractor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SPINUP = Lorenz96.spinup  # tests shorten it, and what is cached must not depend on which came first


@cache
def climatology(sites: int = SITES) -> Tensor:
    return Lorenz96(sites=sites).on_attractor(64, generator(7), SPINUP)


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
    normalization: Normalization = normalization(),  # noqa: B008  (never changed)
    network: str = "conv",
    operators: int = 1,
    hidden: int = 6,
    memory: int = 3,
    dropout: float = 0.0,
    sites: int = SITES,
    **options,
) -> Analysis:
    sizes = TrunkSizes(sites=sites, operators=operators, hidden=hidden, blocks=1, kernel=3, dropout=dropout)
    return built(ANALYSES[name], channels, members, normalization, NETWORKS[network], sizes, memory=memory, **options)


def small_filter(
    name: str = "recurrent",
    members: int = 4,
    lag: int = 0,
    obs_conf: str = "full_obs",
    sites: int = SITES,
    noise: float = 1.0,
    **options,
) -> AmortizedFilter:
    """An untrained filter, in float64."""
    instruments = observation_model(obs_conf, 1, sites, noise)
    analysis = small_analysis(name, members, lag=lag, sites=sites, operators=instruments.period, **options)
    # A copy: a state dict is loaded into it in place.
    return AmortizedFilter(Lorenz96(sites=sites), instruments, analysis, STEP_SIZE, climatology(sites).clone())


def record(model: AmortizedFilter, batch: tuple[int, ...] = (), cycles: int = 7, seed: int = 9) -> Tensor:
    """Observations along a truth, NaN where nothing is seen."""
    truth = [climatology()[torch.randint(64, batch, generator=generator(seed))]]
    for _ in range(cycles):
        truth.append(model.flow(truth[-1]))
    truth = torch.stack(truth[1:], -3)
    return model.observation_model.observe(
        truth, torch.randn(truth.shape, generator=generator(seed + 1), dtype=torch.float64)
    )


def stored_scores(rmse: float | tuple[float, ...]) -> dict[str, Any]:
    """Scores as they are stored: of one RMSE, or of that of several blocks."""
    scores = {"rmse_lo": 0.1, "rmse_hi": 0.4, "spread": 0.2, "crps": 0.1, "cycles": 500}
    if isinstance(rmse, tuple):
        return scores | {"blocks": rmse, "rmse": sum(rmse) / len(rmse)}
    return scores | {"rmse": rmse}


def write_result(
    folder: Path, label: str, validation: float = 0.3, test: float | tuple[float, ...] = 0.2, **changed: Any
) -> None:
    """A result file as the table of scores is made of."""
    row = {**SETTING.as_dict(), "method": "LETKF", "m": 5, "label": label, "test": stored_scores(test), "seed": 0}
    row |= {"validation": stored_scores(validation), "ms_per_cycle": 1.0, "diverged": False, "checkpoint": None}
    origin = {"commit": "c", "python": "3.12", "versions": {"torch": "2.9"}, "device": "cpu", "processor": "x"}
    write_json(folder / f"{label}.json", row | {"provenance": origin} | changed)


class Linear(NamedTuple):
    """A linear map of states, channels and sites flattened: what an analysis may ask to be predicted."""

    matrix: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        return (states.flatten(-2) @ self.matrix.mT).unflatten(-1, states.shape[-2:])


def given(
    analysis: Analysis,
    batch: tuple[int, ...] = (),
    seed: int = 0,
    share: float = 0.5,
    operators: int = 1,
    sites: int = SITES,
) -> AnalysisInput:
    """Random numbers in every place for an analysis on a ring, about a half of which are seen."""
    source, channels = generator(seed), analysis.channels

    def normal(*shape: int) -> Tensor:
        return torch.randn((*batch, *shape), generator=source, dtype=torch.float64)

    state, size = (analysis.members, channels, sites), channels * sites
    base = 2 + 3 * normal(*state)
    forecast = base + normal(*state) if analysis.lagged else base
    mask = (torch.rand((*batch, *state[1:]), generator=source) < share).double()
    error = 0.5 + torch.rand((channels, sites), generator=source, dtype=torch.float64)
    states = torch.randn((2 * size, *state[1:]), generator=source, dtype=torch.float64)
    memory = analysis.initial_memory(*batch, climatology=states)
    predict = Linear(torch.eye(size).double() + 0.1 * normal(size, size))
    window: dict[str, Any] = {}
    if analysis.sees_window:
        seen = (torch.rand((*batch, analysis.lag, *state[1:]), generator=source) < share).double()
        received = (2 + 3 * normal(analysis.lag, *state[1:])) * seen
        window = {"recent": torch.stack([received, seen], -3), "predict_each": predicted_each(predict, analysis.lag)}
    covariance = analysis.initial_covariance(*batch, climatology=states)
    scale = 0.2 + 3 * torch.rand((*batch, 1, 1), generator=source, dtype=torch.float64)
    return AnalysisInput(
        base=base,
        forecast=forecast,
        predicted=forecast,
        observation=(2 + 3 * normal(*state[1:])) * mask,
        mask=mask,
        error=error,
        error_variance=error.square(),
        phase=torch.randint(operators, batch, generator=source),
        tendency=8 * normal(*state),
        memory=0.5 * normal(*memory.shape[len(batch) :]),
        covariance=None if covariance is None else scale * covariance,
        predict=predict,
        **window,
    )


def predicted_each(predict: Callable[[Tensor], Tensor], lag: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What a model of a cycle makes of states, from none of so many cycles to all."""

    def each(states: Tensor) -> tuple[Tensor, ...]:
        path = [states]
        for _ in range(lag):
            path.append(predict(path[-1]))
        return tuple(path)

    return each

"""How far analyses lie off the truth by a rule that their forecast tells, whatever made them.

The same that :mod:`assim_lib.displacement` learns with a network, here by least squares after the fact, and so for
classical filters as well: a function of the forecast, added to the analysis, fits the observations that went into it.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.evaluation import interval
from assim_lib.stored import Stored
from assim_lib.study.results import Label
from assim_lib.twin import TwinExperiment

REACH = 2  # sites to each side of one

Analyses = Float[np.ndarray, "_ channel site"]


class Displaced(Stored):
    """RMSE of the analyses of a filter along the test set, as they are and displaced, with its 95 % interval.

    Attributes:
        file: of their scores.
    """

    label: Label
    file: str
    rmse: float
    displaced: float
    displaced_lo: float
    displaced_hi: float


def quadratic(forecast: Float[np.ndarray, "cycle site"]) -> Float[np.ndarray, "cycle site feature"]:
    """One, the sites around each site, and the products of any two of these."""
    around = [np.roll(forecast, -k, -1) for k in range(-REACH, REACH + 1)]
    products = [a * b for i, a in enumerate(around) for b in around[i:]]
    return np.stack([np.ones_like(forecast), *around, *products], -1)


def fitted(
    analyses: Analyses, twin: TwinExperiment, flow: Callable[[Tensor], Tensor]
) -> Callable[[Analyses], Analyses]:
    """What to add to analyses, by least squares on the observations of a twin experiment; no truth is looked at.

    Args:
        analyses: along ``twin``, from its first cycle on; those of its burn-in are left out.
        flow: the model over a cycle; what the rule says of an analysis, it says from the forecast of the one before.

    Returns:
        Of analyses along a record, from the second of them on, what is to be added.

    Raises:
        ValueError: for states of several channels.
    """
    if analyses.shape[1] != 1:
        raise ValueError(f"analyses of {analyses.shape[1]} channels; the rule is one for states of one.")

    def features(states: Analyses) -> Float[np.ndarray, "_ site feature"]:
        forecast = flow(torch.from_numpy(states[:-1]).double()).numpy()[:, 0]
        return quadratic((forecast - analyses.mean()) / analyses.std())

    first = twin.burn_in
    missed = (twin.observations - analyses)[first:, 0]
    received = np.isfinite(missed)
    weights, *_ = np.linalg.lstsq(features(analyses[first - 1 :])[received], missed[received], rcond=None)
    return lambda states: (features(states) @ weights)[:, None]


def displaced(
    label: str,
    file: str,
    learned_on: tuple[Analyses, TwinExperiment],
    scored_on: tuple[Analyses, TwinExperiment],
    flow: Callable[[Tensor], Tensor],
) -> Displaced:
    """The scores of analyses with a displacement that was fitted on another record."""
    rule = fitted(*learned_on, flow)
    analyses, twin = scored_on
    first = twin.burn_in
    errors = (analyses - twin.truth)[first:]
    moved = errors + rule(analyses[first - 1 :])
    before, after = (np.sqrt(np.square(e).mean((-2, -1))) for e in (errors, moved))
    low, high = interval(after)
    return Displaced(
        label=label,
        file=file,
        rmse=float(before.mean()),
        displaced=float(after.mean()),
        displaced_lo=float(low),
        displaced_hi=float(high),
    )

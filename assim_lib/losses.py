r"""What is compared with what in training.

The **self-supervised forecast loss** compares the forecast made from the analysis at cycle :math:`k` with the
*next* observation, which the analysis has not seen:

.. math:: \ell_k = \frac{1}{p\,\sigma^2}\,\bigl\| H\bigl(\overline{x}^f_{k+1}\bigr) - y_{k+1} \bigr\|^2 .

The error of :math:`y_{k+1}` is independent of the forecast and has mean zero; the expectation of
:math:`\ell_k` is therefore the squared distance to the observed *truth* (over :math:`\sigma^2`), plus the constant 1.
The same holds of forecasts for later cycles. With several **leads** an analysis is scored several times, which averages
over observation errors, and where it will not be looked at next counts as well.
Two more losses are here to be compared with it: one that looks at an observation which the analysis has seen, and
one that looks at the truth.

A filter that has lost the truth would drown the others. Each trajectory therefore has a **weight**, which is decided
by its *last* innovation: whatever weighs an error must not depend on the observation that the error is measured with,
or the expectation would no longer be the distance to the truth.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.registry import Registry

LARGEST_LOSS = 2.0


class LossInputs(NamedTuple):
    """What a loss may compare at one cycle. Of what is observed, only what the filter may know the operator of.

    Args:
        observation: what was received, zero elsewhere.
        mask: where something was (1 or 0).
        forecasts: for the cycles that follow, one a lead.
        next_observations: what is received then.
        next_masks: where.
        sigma: the observation error's standard deviation.
        weight: of each trajectory, see :func:`trajectory_weight`.
    """

    analysis: Float[Tensor, "batch member channel site"]
    forecasts: Float[Tensor, "batch lead member channel site"]
    observation: Float[Tensor, "batch channel site"]
    mask: Float[Tensor, "batch channel site"]
    next_observations: Float[Tensor, "batch lead channel site"]
    next_masks: Float[Tensor, "batch lead channel site"]
    truth: Float[Tensor, "batch channel site"] | None
    operator: Callable[[Tensor], Tensor]
    sigma: Float[Tensor, "channel site"]
    weight: Float[Tensor, " batch"]


LOSSES: Registry[Callable[[LossInputs], Tensor]] = Registry("loss")
NEEDS_TRUTH = {"clean_analysis"}


@LOSSES.register("ss_forecast")
def ss_forecast(inputs: LossInputs) -> Tensor:
    """Squared distance of the mean forecasts to the observations ahead, in units of the error variance."""
    error = inputs.operator(inputs.forecasts.mean(-3)) - inputs.next_observations
    return _weighted(mean_square(error, inputs.next_masks, inputs.sigma).mean(1), inputs.weight)


@LOSSES.register("ss_analysis")
def ss_analysis(inputs: LossInputs) -> Tensor:
    """Squared distance of the mean analysis to the observation *that it has seen*, in units of the error variance.

    A counterexample: the error of the observation is in the analysis as well, so that repeating the observation costs
    nothing.
    """
    error = inputs.operator(inputs.analysis.mean(-3)) - inputs.observation
    return _weighted(mean_square(error, inputs.mask, inputs.sigma), inputs.weight)


@LOSSES.register("clean_analysis")
def clean_analysis(inputs: LossInputs) -> Tensor:
    """Squared distance of the mean analysis to the truth, in units of the error variance: what supervision buys."""
    error = inputs.analysis.mean(-3) - cast(Tensor, inputs.truth)
    return _weighted(mean_square(error, torch.ones_like(error), inputs.sigma), inputs.weight)


def displacement_loss(inputs: LossInputs, displacement: Float[Tensor, "batch 1 channel site"]) -> Tensor:
    """Squared distance of the mean analysis to the observation that it has seen, from which the displacement in it
    learns alone; see :mod:`assim_lib.displacement`.

    All trajectories weigh the same: the error of the observation is in the innovation that would decide.
    """
    analysis = inputs.analysis.mean(-3).detach() + (displacement - displacement.detach()).squeeze(-3)
    error = inputs.operator(analysis) - inputs.observation
    return mean_square(error, inputs.mask, inputs.sigma).mean()


def mean_square(
    difference: Float[Tensor, "*batch channel site"],
    mask: Float[Tensor, "*batch channel site"],
    sigma: Float[Tensor, "channel site"],
) -> Float[Tensor, "*batch"]:
    """Mean square over the entries of the mask, in units of the error variance; zero where there is none."""
    return (difference / sigma * mask).square().sum((-2, -1)) / mask.sum((-2, -1)).clamp_min(1)


def trajectory_weight(
    innovation: Float[Tensor, "*batch channel site"],
    mask: Float[Tensor, "*batch channel site"],
    sigma: Float[Tensor, "channel site"],
) -> Float[Tensor, "*batch"]:
    """The weight of a trajectory by what its last forecast missed, from 1 down for a filter that has lost the truth.

    It falls as the mean square of the innovation grows beyond a bound which that of a filter that tracks exceeds by
    chance only. That happens the more often the fewer numbers are observed, and so the bound is wider.
    """
    bound = LARGEST_LOSS + 4 * (2 / mask.sum((-2, -1)).clamp_min(1)).sqrt()
    return (bound / mean_square(innovation, mask, sigma).detach().clamp_min(1e-12)).clamp(max=1.0)


def _weighted(loss: Tensor, weight: Tensor) -> Tensor:
    return (weight * loss).mean()

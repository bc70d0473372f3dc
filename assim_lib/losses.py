r"""What is compared with what in training.

The **self-supervised forecast loss** compares the forecast made from the analysis at cycle :math:`k` with the
*next* observation, which the analysis has not seen:

.. math:: \ell_k = \frac{1}{p\,\sigma^2}\,\bigl\| H\bigl(\overline{x}^f_{k+1}\bigr) - y_{k+1} \bigr\|^2 .

The error of :math:`y_{k+1}` is independent of the forecast and has mean zero; the expectation of
:math:`\ell_k` is therefore the squared distance to the observed *truth* (over :math:`\sigma^2`), plus the constant 1.
Two more losses are here to be compared with it: one that looks at an observation which the analysis has seen, and
one that looks at the truth.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.registry import Registry

LARGEST_LOSS = 2.0


class Step(NamedTuple):
    """What a loss may compare at one cycle. Of what is observed, only what the filter may know the operator of."""

    analysis: Float[Tensor, "batch member channel site"]
    forecast: Float[Tensor, "batch member channel site"]
    observation: Float[Tensor, "batch channel site"]
    mask: Float[Tensor, "batch channel site"]
    next_observation: Float[Tensor, "batch channel site"]
    next_mask: Float[Tensor, "batch channel site"]
    truth: Float[Tensor, "batch channel site"] | None
    operator: Callable[[Tensor], Tensor]
    noise: float


LOSSES: Registry[Callable[[Step], Tensor]] = Registry("loss")
NEEDS_TRUTH = {"clean_analysis"}


@LOSSES.register("ss_forecast")
def ss_forecast(step: Step) -> Tensor:
    """Squared distance of the mean forecast to the next observation, in units of the error variance."""
    return _bounded(step.operator(step.forecast.mean(-3)) - step.next_observation, step.next_mask, step.noise)


@LOSSES.register("ss_analysis")
def ss_analysis(step: Step) -> Tensor:
    """Squared distance of the mean analysis to the observation *that it has seen*, in units of the error variance.

    A counterexample: the error of the observation is in the analysis as well, so that repeating the observation costs
    nothing.
    """
    return _bounded(step.operator(step.analysis.mean(-3)) - step.observation, step.mask, step.noise)


@LOSSES.register("clean_analysis")
def clean_analysis(step: Step) -> Tensor:
    """Squared distance of the mean analysis to the truth, in units of the error variance: what supervision would buy."""
    error = step.analysis.mean(-3) - cast(Tensor, step.truth)
    return _bounded(error, torch.ones_like(error), step.noise)


def _bounded(error: Tensor, mask: Tensor, noise: float) -> Tensor:
    # A filter that has lost its way (after a cold start, most often) would drown the others: the weight of each
    # trajectory bounds its influence to that of a loss which a filter that tracks exceeds by chance only, which happens
    # the more often the fewer numbers are observed. The others keep the exact square.
    seen = mask.sum((-2, -1)).clamp_min(1)  # a cycle that sees nothing costs nothing
    loss = (error * mask).square().sum((-2, -1)) / (seen * noise**2)
    bound = LARGEST_LOSS + 4 * (2 / seen).sqrt()
    return (loss * (bound / loss.detach()).clamp(max=1.0)).mean()

"""A filter along a record of observations: what it makes of them, and how its analyses answer to them."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from assim_lib.filter import AmortizedFilter
from assim_lib.observations import as_observations

OUTLIER = 10.0  # expected deviations from what is expected, beyond which a number is no observation
DRAWS = 20  # members that are drawn from a covariance, where a filter carries one in place of members


@torch.no_grad()
def assimilate(
    model: AmortizedFilter,
    observations: Any,
    generator: torch.Generator,
    first_cycle: Int[Tensor, "*batch"] | int = 0,
    dropout: bool = False,
    near: Float[Tensor, "*batch channel site"] | None = None,
    draws: int = 0,
    progress: bool = False,
    compiled: bool = False,
) -> Float[Tensor, "*batch cycle member channel site"]:
    """Run a filter from a cold start along a record of observations; return the analysis ensembles.

    Args:
        observations: (…, cycle, channel, site), a tensor or what NumPy makes an array of; NaN where nothing was
            received, and what is not finite was not. :func:`~assim_lib.assimilate_record` reads files and other shapes.
        generator: a CPU generator, for the cold start (and for dropout, if kept on).
        first_cycle: number of the first cycle in the observation schedule.
        dropout: keep dropout on at test time, as the original code does; it then serves to spread the ensemble.
        near: what the members start from, see :meth:`AmortizedFilter.cold_start`.
        draws: of a filter that carries a covariance in place of members, return so many members that are drawn from it,
            with the filter's analysis for their mean (0: that analysis alone). Others return the members they have.
        compiled: run a compiled filter, see :meth:`AmortizedFilter.compiled`; it takes a minute to compile one.

    Raises:
        ValueError: if the observations are no numbers, or not of the filter's channels and sites.
    """
    observations = as_observations(observations, *model.climatology.shape[-2:])
    if compiled:
        model = model.compiled(whole=not dropout)
    batch, device = observations.shape[:-3], model.climatology.device
    first_cycle = torch.as_tensor(first_cycle, device=device).expand(batch)
    carry = model.cold_start(*batch, generator=generator, near=near, number=first_cycle)
    observations = observations.to(model.climatology)
    remark_on_what_is_far(model, observations, first_cycle)
    sample = None
    if draws and carry.covariance is not None:
        sample = partial(model.analysis.sample_members, members=draws, generator=generator)
    analyses = []
    for k in tqdm(range(observations.shape[-3]), desc="assimilate", unit="cycle", disable=not progress):
        carry, analysis = model.cycle(
            carry, observations[..., k, :, :], first_cycle + k, generator if dropout else None, age=k, sample=sample
        )
        analyses.append(analysis.cpu())
    return torch.stack(analyses, -4)


def remark_on_what_is_far(model: AmortizedFilter, observations: Tensor, first_cycle: Tensor | int = 0) -> None:
    """Warn of numbers more than :data:`OUTLIER` expected deviations off the climatology: fill values, most often.

    Args:
        observations: (…, cycle, channel, site); NaN where nothing was received.
        first_cycle: number of the first one in the observation schedule.
    """
    if model.observation_model.unknown:  # what such an instrument shows may be of any size
        return
    far = far_off(model, observations, first_cycle)
    if far.any():
        where = tuple(far.nonzero()[0].tolist())
        warnings.warn(
            f"{int(far.sum())} observations are more than {OUTLIER:g} expected deviations off the climatology, the "
            f"first, {float(observations[where]):g}, at {where}; give what was not received as NaN, or use "
            "assimilate_record(…, fill_value=…, drop_outliers=True).",
            stacklevel=4,
        )


def far_off(model: AmortizedFilter, observations: Tensor, first_cycle: Tensor | int) -> Tensor:
    """Which observations are; on the filter's device, as they are."""
    expected = model.observation_model.operator(model.climatology)
    width = (expected.var(0) + model.error.square()).sqrt()
    device = model.schedule.device
    first = torch.as_tensor(first_cycle, device=device)[..., None]
    expects = model.schedule[(first + torch.arange(observations.shape[-3], device=device)) % len(model.schedule)] > 0
    return expects & observations.isfinite() & ((observations - expected.mean(0)).abs() > OUTLIER * width)


def mean_gain(
    model: AmortizedFilter,
    observations: Float[np.ndarray, "cycle channel site"],
    burn_in: int = 100,
    cycles: int = 20,
    seed: int = 0,
) -> Float[np.ndarray, "state state"]:
    """Derivative of the mean analysis with respect to the observation, averaged over some cycles.

    Args:
        observations: NaN where nothing was seen; at least ``burn_in + cycles`` of them.
        burn_in: cycles that the filter is given to find the truth.

    Returns:
        Entry (i, j) says how the analysis at i answers to the observation at j, channels and sites flattened.

    Raises:
        ValueError: if there are fewer.
    """
    if len(observations) < burn_in + cycles:
        raise ValueError(
            f"observations of {len(observations)} cycles are fewer than burn_in + cycles = {burn_in + cycles}."
        )
    observed = torch.from_numpy(observations[: burn_in + cycles]).to(model.climatology.device)
    carry = model.cold_start(generator=torch.Generator().manual_seed(seed))
    jacobians = []
    for k, y in enumerate(observed):
        if k >= burn_in:
            of_observation = torch.func.jacrev(
                lambda y, k=k, carry=carry: model.cycle(carry, y, k, age=k)[1].mean(-3).flatten()
            )
            jacobians.append(of_observation(y).flatten(1).detach())
        with torch.no_grad():
            carry, _ = model.cycle(carry, y, k, age=k)
    return torch.stack(jacobians).mean(0).cpu().numpy()

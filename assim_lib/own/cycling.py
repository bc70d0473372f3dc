"""A filter along a record, cycle by cycle: from a cold start, or from where it stood."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assim_lib.filter import AmortizedFilter, Carry
from assim_lib.observations import identity
from assim_lib.own.state import FilterState
from assim_lib.tracking import DRAWS, OUTLIER


class Cycled(NamedTuple):
    """What a filter made of a record, in the units of the state and of the observation.

    Attributes:
        mean: of the analysis ensemble.
        spread: its standard deviation; NaN of a single member.
        members: None unless asked for.
        innovation: observation less forecast, NaN where nothing was seen.
        expected: the innovation's standard deviation as the filter expects it; NaN where it does not know.
        outlier: where it is more than :data:`~assim_lib.tracking.OUTLIER` times as large.
        state: where the filter stands at the end.
    """

    mean: Float[np.ndarray, "cycle channel site"]
    spread: Float[np.ndarray, "cycle channel site"]
    members: Float[np.ndarray, "cycle member channel site"] | None
    innovation: Float[np.ndarray, "cycle channel site"]
    expected: Float[np.ndarray, "cycle channel site"]
    outlier: Bool[np.ndarray, "cycle channel site"]
    state: FilterState


def known_at_first(
    start: str, model: AmortizedFilter, values: Float[np.ndarray, "*batch channel site"], number: Tensor | int
) -> Float[Tensor, "*batch channel site"] | None:
    """What members start around, NaN where nothing is known; None: the climatology.

    Args:
        start: option of the filter's training. One that then started around the truth starts around the next best.
        values: the first observations.
        number: of their cycle.
    """
    instruments = model.observation_model
    if start == "climatology" or instruments.operator is not identity:
        return None
    return instruments.usable(torch.from_numpy(values), number)


def cold_state(
    model: AmortizedFilter,
    seed: int,
    number: int = 0,
    near: Float[Tensor, "channel site"] | None = None,
) -> FilterState:
    """A filter that knows the climatology only, or something ``near`` (NaN elsewhere); ``number`` is that of its first
    cycle in the observation schedule."""
    generator = torch.Generator().manual_seed(seed)
    carry = model.cold_start(generator=generator, near=near, number=number)
    variance = _variance(model, carry.forecast)
    if carry.covariance is not None:
        variance = model.observation_model.operator(model.climatology).var(0)
    return FilterState(carry, variance, generator.get_state(), number, age=0)


def members_of(carry: Carry) -> int:
    """Number of members that stand for what a filter knows."""
    return carry.base.shape[-3] if carry.covariance is None else DRAWS


@torch.no_grad()
def run_along(
    model: AmortizedFilter,
    values: Float[np.ndarray, "cycle channel site"],
    state: FilterState,
    error: Float[np.ndarray, "#cycle channel site"] | None = None,
    dropout: bool = False,
    keep_members: bool = False,
    drop_outliers: bool = False,
    told: Callable[[], object] = lambda: None,
) -> Cycled:
    """Run a filter along observations.

    Args:
        values: NaN where nothing was received.
        state: where the filter stands.
        error: standard deviation of the observations' errors, if not the filter's own.
        dropout: keep dropout on.
        keep_members: return the members; of a filter that carries a covariance, :data:`~assim_lib.tracking.DRAWS` drawn
            from it.
        drop_outliers: do not use observations whose innovation is more than :data:`~assim_lib.tracking.OUTLIER`
            expected deviations.
        told: called after each cycle.
    """
    like = model.climatology
    generator = torch.Generator()
    generator.set_state(state.random)
    carry = state.carry.each(lambda part: part.to(like))
    variance = state.forecast_variance.to(like)
    # What nothing is known of may still be told from nonsense: by the climatology.
    widest = model.observation_model.operator(model.climatology).var(0)
    sample, drawn = None, carry.covariance is not None
    if drawn:
        sample = partial(model.analysis.sample_members, members=DRAWS, generator=generator)
    shape = values.shape
    count = members_of(carry)
    mean, spread, innovation, expected = (np.full(shape, np.nan, np.float32) for _ in range(4))
    members = np.empty((shape[0], count, *shape[1:]), np.float32) if keep_members else None
    outlier = np.zeros(shape, bool)
    for k in range(shape[0]):
        y = torch.from_numpy(values[k]).to(like)
        number, age = state.number + k, state.age + k
        phase = number % len(model.schedule)
        used_error = model.error
        if error is not None:
            own = torch.from_numpy(error[k if len(error) > 1 else 0]).to(like)
            used_error = torch.where(own.isfinite(), own, model.error)
        # What it is expected to see, of instruments that it may know.
        seen = (model.known[phase] > 0) & y.isfinite()
        # A forecast that is no number misses everything: it must not pass for an observation that is missing.
        missed = (y - model.observation_model.operator(carry.forecast.mean(-3))).nan_to_num(torch.inf)
        missed = torch.where(seen, missed, torch.nan)
        deviation = (variance + used_error.square()).sqrt()
        limit = (torch.where(variance.isfinite(), variance, widest) + used_error.square()).sqrt()
        far = missed.abs() > OUTLIER * limit
        outlier[k], innovation[k], expected[k] = (part.cpu().numpy() for part in (far, missed, deviation))
        if drop_outliers:
            y = torch.where(far, torch.nan, y)
            innovation[k][outlier[k]] = np.nan
        carry, analysis = model.cycle(
            carry,
            y,
            number,
            generator if dropout else None,
            age=age,
            sample=sample,
            error=None if error is None else used_error,
        )
        variance = _variance(model, model.flow(analysis, 1, number) if drawn else carry.forecast)
        mean[k] = analysis.mean(-3).cpu().numpy()
        if count > 1:
            spread[k] = analysis.std(-3).cpu().numpy()
        if members is not None:
            members[k] = analysis.cpu().numpy()
        told()
    expected[np.isnan(innovation)] = np.nan
    end = FilterState(carry, variance, generator.get_state(), state.number + shape[0], state.age + shape[0])
    return Cycled(mean, spread, members, innovation, expected, outlier, end)


def _variance(model: AmortizedFilter, forecast: Tensor) -> Float[Tensor, "channel site"]:
    """Of what is forecast to be observed; NaN of a single member, which says nothing of it."""
    observed = model.observation_model.operator(forecast)
    return observed.var(-3) if observed.shape[-3] > 1 else torch.full_like(observed[0], torch.nan)

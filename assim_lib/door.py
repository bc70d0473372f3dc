"""What is looked at before a filter runs along a record: its form, and whether its numbers can be of this system."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from assim_lib.filter import AmortizedFilter

FAR = 10.0  # expected deviations from the climatology's mean beyond which a number is no observation


def received(model: "AmortizedFilter", observations: Any) -> Tensor:
    """Observations as the filter takes them, ``(*batch, cycle, channel, site)``: in its precision, on its device.

    Parameters
    ----------
    observations : a tensor, or whatever NumPy makes an array of; of one channel also (cycle, site). What is not finite
        was not received.

    Raises
    ------
    ValueError : if their shape or type is none of the filter's.
    """
    given = observations if isinstance(observations, Tensor) else _as_tensor(observations)
    channels, sites = model.climatology.shape[-2:]
    shape, kind = tuple(given.shape), str(given.dtype).removeprefix("torch.")
    if given.ndim == 2 and channels == 1 and shape[1] == sites:
        given = given[:, None]
    if given.ndim < 3 or tuple(given.shape[-2:]) != (channels, sites) or given.is_complex() or kind == "bool":
        raise ValueError(
            f"observations of shape {shape} and type {kind} must be real numbers of shape (…, cycle, {channels}, "
            f"{sites}){f' or (cycle, {sites})' if channels == 1 else ''}."
        )
    if not given.shape[-3]:
        raise ValueError(f"observations of shape {shape} have no cycle; they must have at least one.")
    given = given.to(model.climatology)
    given = torch.where(given.isfinite(), given, torch.nan)
    _remark_on_what_is_far(model, given)
    return given


def _as_tensor(observations: Any) -> Tensor:
    try:
        array = np.asarray(observations)
        if array.dtype.kind not in "iuf":
            raise TypeError
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(
            f"observations of type {type(observations).__name__} must be an array of real numbers."
        ) from None


def _remark_on_what_is_far(model: "AmortizedFilter", observations: Tensor) -> None:
    expected = model.observation_model.operator(model.climatology)
    width = (expected.var(0) + model.error.square()).sqrt()
    far = (observations - expected.mean(0)).abs() > FAR * width
    if model.observation_model.unknown:  # what they show may be of any size
        return
    if far.any():
        where = tuple(far.nonzero()[0].tolist())
        warnings.warn(
            f"{int(far.sum())} observations are more than {FAR:g} expected deviations off the climatology, the first, "
            f"{float(observations[where]):g}, at {where}; give what was not received as NaN, or use "
            "assimilate_record(…, fill_value=…, drop_outliers=True).",
            stacklevel=4,
        )

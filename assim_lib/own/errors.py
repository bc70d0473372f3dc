"""The errors of observations, as they were brought: a number, an array, or a variable beside the observations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from assim_lib.own.grid import placed
from assim_lib.own.sources import DIMENSIONS, RecordError, Source, numbers, open_source, refuse_no_numbers

Errors = Callable[[slice], Float[np.ndarray, "#time channel site"]]  # reads those of some times


def errors_of(source: Source, observations: Any, error: Any, sizes: tuple[int, int, int]) -> Errors | None:
    """What reads the errors of some times; (time, channel, site) are the sizes of the observations."""
    if isinstance(error, str):
        array = open_source(observations, error).values
    elif isinstance(error, xr.DataArray):
        array = error
        refuse_no_numbers(array, "error")
    elif error is None:
        if source.error is None:
            return None
        array = source.error
    else:
        return _plain_error(error, source.values.ndim == 2, sizes)
    return _labelled_error(array, sizes)


def _plain_error(error: Any, no_channel: bool, sizes: tuple[int, int, int]) -> Errors:
    if isinstance(error, torch.Tensor):
        error = error.detach().cpu().numpy()
    plain = np.asarray(error)
    if plain.dtype.kind not in "iuf":
        raise RecordError(f"error = {error!r} must be a number, an array of numbers, or the name of a variable.")
    plain = plain.astype(np.float64)
    if plain.ndim == 2 and no_channel:  # of (time, site)
        plain = plain[:, None, :]
    try:
        np.broadcast_to(plain, sizes)
    except ValueError:
        raise RecordError(
            f"error of shape {np.shape(error)} must broadcast to (time, channel, site) = {sizes}."
        ) from None
    plain = plain.reshape((1,) * (3 - plain.ndim) + plain.shape)
    plain = np.broadcast_to(plain, (len(plain), *sizes[1:]))
    return lambda rows: plain if len(plain) == 1 else plain[rows]


def _labelled_error(array: xr.DataArray, sizes: tuple[int, int, int]) -> Errors:
    roles = {str(name): role for role, names in DIMENSIONS.items() for name in array.dims if str(name).lower() in names}
    if len(roles) < array.ndim:
        raise RecordError(
            f"error of dimensions {tuple(map(str, array.dims))} must have some of time, channel and site."
        )
    array = array.rename({name: role for name, role in roles.items() if name != role})
    wanted: dict[str, int] = dict(zip(("time", "channel", "site"), sizes, strict=True))
    timed = "time" in array.dims

    def arranged(rows: slice) -> xr.DataArray:
        part = array.isel(time=rows) if timed else array
        return placed(part, sizes[2]) if "site" in part.dims else part

    found = {**arranged(slice(0)).sizes, **({"time": array.sizes["time"]} if timed else {})}
    if any(size != wanted[str(name)] for name, size in found.items()):
        raise RecordError(f"error of sizes {dict(array.sizes)} must fit the observations of sizes {wanted}.")

    def read(rows: slice) -> np.ndarray:
        part = numbers(arranged(rows), "error")
        part = part.drop_vars(list(part.coords)).expand_dims({k: 1 for k in wanted if k not in part.dims})
        plain = part.transpose("time", "channel", "site").to_numpy()
        return np.broadcast_to(plain, (len(plain), *sizes[1:]))

    return read


def refuse_no_errors(error: np.ndarray, received: np.ndarray, first: int) -> None:
    """Raise :class:`RecordError` if an observation has an error that is no finite number above zero.

    Parameters
    ----------
    error : (time, channel, site), or one time for all.
    received : (time, channel, site), NaN where there is no observation.
    first : number of the first of these times, for the sentence.
    """
    wrong = ~((error > 0) & np.isfinite(error)) & np.isfinite(received)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        value = np.broadcast_to(error, received.shape)[at]
        raise RecordError(
            f"error = {value:g} at (time, channel, site) = {(first + at[0], *at[1:])} must be a finite number > 0 "
            "wherever there is an observation."
        )

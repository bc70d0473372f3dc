"""The errors of observations, as they were brought: a number, an array, or a variable beside the observations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from assim_lib.own.conventions import DIMENSIONS, RecordError, said
from assim_lib.own.grid import named, placed, roles_of
from assim_lib.own.sources import Source, numbers, open_source, refuse_no_numbers, without_mask

Errors = Callable[[slice], Float[np.ndarray, "#time channel site"]]  # reads those of some times


def errors_of(
    source: Source, array: xr.DataArray, observations: Any, error: Any, sizes: tuple[int, int, int]
) -> Errors | None:
    """What reads the errors of some times.

    Args:
        source: the observations as they came.
        array: they, under the names of :func:`~assim_lib.own.grid.arranged`.
        observations, error: see :func:`~assim_lib.own.record.read_record`.
        sizes: (time, channel, site) of the grid.
    """
    if isinstance(error, str):
        read = open_source(observations, error, "error").values
    elif isinstance(error, xr.DataArray):
        read = error
        refuse_no_numbers(read, "error")
    elif error is None:
        if source.error is None:
            return None
        read = source.error
    else:
        read = _plain_error(error, array, sizes)
        if not isinstance(read, xr.DataArray):
            return read
    return _labelled_error(_aligned(read, source.values, array), sizes)


def _plain_error(error: Any, array: xr.DataArray, sizes: tuple[int, int, int]) -> Errors | xr.DataArray:
    if isinstance(error, torch.Tensor):
        error = error.detach().cpu().numpy()
    try:
        plain = without_mask(error)
    except ValueError:  # rows of several lengths
        plain = np.empty(0, object)
    if plain.dtype.kind not in "iuf":
        raise RecordError(f"error = {error!r} must be a number, an array of numbers, or the name of a variable.")
    plain = plain.astype(np.float64)
    if "site" in array.coords and plain.ndim in (1, array.ndim) and plain.shape[-1] == array.sizes["site"]:
        dims = array.dims if plain.ndim == array.ndim else ("site",)
        if all(size == array.sizes[dim] for dim, size in zip(dims, plain.shape, strict=True)):
            return xr.DataArray(plain, dims=dims)  # in the order in which the sites came
    if plain.ndim == 2 and "channel" not in array.dims:  # of (time, site)
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


def _aligned(error: xr.DataArray, brought: xr.DataArray, array: xr.DataArray) -> xr.DataArray:
    """Its dimensions called what they are, and what is labelled in the order of the observations' labels."""
    roles = {str(name): role for role, names in DIMENSIONS.items() for name in error.dims if str(name).lower() in names}
    roles |= {name: role for name, role in roles_of(brought).items() if name in error.dims}
    if len(set(roles.values())) < error.ndim:
        raise RecordError(
            f"error of dimensions {tuple(map(str, error.dims))} must have some of time, channel and site."
        )
    error = named(error, roles)
    for role in set(error.dims) & set(array.dims) & set(array.coords):
        labels = array[role].to_index()
        if role in error.coords:
            index = error[role].to_index()
            at = index.get_indexer(labels) if index.is_unique else np.array([-1])
            if (at < 0).any():
                raise RecordError(
                    f"error is labelled by {role} = {said(index.tolist())}, and must have each {role} of the "
                    f"observations once, such as {labels[at.argmin()]}."
                )
            error = error.isel({role: at})
        elif error.sizes[role] == len(labels):
            error = error.assign_coords({role: labels})
    return error


def _labelled_error(array: xr.DataArray, sizes: tuple[int, int, int]) -> Errors:
    wanted: dict[str, int] = dict(zip(("time", "channel", "site"), sizes, strict=True))
    timed = "time" in array.dims

    def arranged(rows: slice) -> xr.DataArray:
        part = array.isel(time=rows) if timed else array
        return placed(part, sizes[2]) if "site" in part.dims else part

    came = {**arranged(slice(0)).sizes, **({"time": array.sizes["time"]} if timed else {})}
    if any(size != wanted[str(name)] for name, size in came.items()):
        raise RecordError(f"error of sizes {dict(array.sizes)} must fit the observations of sizes {wanted}.")

    def read(rows: slice) -> np.ndarray:
        part = numbers(arranged(rows), "error")
        part = part.drop_vars(list(part.coords)).expand_dims({k: 1 for k in wanted if k not in part.dims})
        plain = part.transpose("time", "channel", "site").to_numpy()
        return np.broadcast_to(plain, (len(plain), *sizes[1:]))

    return read


def refuse_no_errors(error: np.ndarray, received: np.ndarray, first: int) -> None:
    """Raise :class:`RecordError` if an observation has an error that is no finite number above zero.

    Args:
        error: (time, channel, site), or one time for all.
        received: (time, channel, site), NaN where there is no observation.
        first: number of the first of these times, for the sentence.
    """
    wrong = ~((error > 0) & np.isfinite(error)) & np.isfinite(received)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        value = np.broadcast_to(error, received.shape)[at]
        raise RecordError(
            f"error = {value:g} at (time, channel, site) = {(first + at[0], *at[1:])} must be a finite number > 0 "
            "wherever there is an observation."
        )

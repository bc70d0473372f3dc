"""A record of observations on the grid of a filter: what was brought, checked, cycle by cycle."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from assim_lib.own.clock import Clock, cycles_of
from assim_lib.own.sources import DIMENSIONS, RecordError, Source, numbers, open_source


@dataclass(frozen=True)
class OwnRecord:
    """Observations of successive cycles.

    Attributes
    ----------
    values : (cycle, channel, site), NaN where nothing was received.
    error : their errors' standard deviation, in their own unit; broadcasts to the values. None: the filter's.
    clock : the time of its last cycle.
    first : number of its first cycle in the observation schedule; None: not said, 0 or where a state goes on.
    label, checksum : of its source.
    units : of the numbers, "" where not known.
    """

    values: Float[np.ndarray, "cycle channel site"]
    error: Float[np.ndarray, "#cycle channel site"] | None
    clock: Clock
    first: int | None
    label: str
    checksum: str
    units: str = ""

    @property
    def times(self) -> np.ndarray:
        """Of its cycles: dates, durations, numbers in the system's unit, or numbers of cycles."""
        return self.clock.times(len(self.values))


def read_record(
    observations: Any,
    shape: Sequence[int],
    step_size: float,
    *,
    variable: str | None = None,
    error: Any = None,
    fill_value: Any = None,
    interval: Any = None,
    since: Clock | None = None,
) -> OwnRecord:
    """Read observations and bring them onto a grid.

    Parameters
    ----------
    observations : a path (netCDF, .zarr, .csv), or (time, site) or (time, channel, site) numbers in memory: NumPy,
        PyTorch, xarray, pandas. NaN, infinite and fill values were not received. Whole-number coordinates ``site`` may
        name some of the sites, from 0.
    shape : (channels, sites) of the filter's state.
    step_size : the filter's observation interval, which times that are plain numbers are multiples of.
    variable : name of the observations, where there are several.
    error : standard deviation of the errors: a number, an array that broadcasts to the observations, or the name of a
        variable beside them; by default the variable ``error``, if there is one.
    fill_value : a number that stands for what was not received.
    interval, since : see :func:`~assim_lib.own.clock.cycles_of`.

    Raises
    ------
    RecordError : one sentence, for whatever cannot be meant.
    FileNotFoundError : if there is no such file.
    """
    source = open_source(observations, variable)
    values = _arranged(source.values, shape, source.label)
    received = values.to_numpy()
    if fill_value is not None:
        if not isinstance(fill_value, int | float):
            raise RecordError(f"fill_value = {fill_value!r} of type {type(fill_value).__name__} must be a number.")
        received = np.where(np.isclose(received, fill_value), np.nan, received)
    given_error = _error(source, observations, error, values, shape)
    times = values["time"].to_numpy() if "time" in values.coords else None
    cycles, clock = cycles_of(times, len(received), step_size, interval, since)
    dense = _dense(received, cycles)
    if given_error is not None:
        wrong = ~((given_error > 0) & np.isfinite(given_error)) & np.isfinite(received)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            value = np.broadcast_to(given_error, received.shape)[at]
            raise RecordError(
                f"error = {value:g} at (time, channel, site) = {at} must be a finite number > 0 wherever there is an "
                "observation."
            )
        given_error = given_error.astype(np.float32) if len(given_error) == 1 else _dense(given_error, cycles)
    _warn_of_steps(cycles, clock, source.label)
    whole = clock.kind == "cycle" and times is not None and since is None
    first = int(clock.now) + 1 - len(dense) if whole else None
    units = str(source.values.attrs.get("units", ""))
    return OwnRecord(dense, given_error, clock, first, source.label, source.checksum, units)


def _arranged(array: xr.DataArray, shape: Sequence[int], label: str) -> xr.DataArray:
    """(time, channel, site), in double precision, every site at its place."""
    channels, sites = shape
    wanted = f"(time, site) or (time, channel, site) with {channels} channel(s) and {sites} sites"
    described = f"{label} of shape {array.shape}, dimensions {tuple(map(str, array.dims))} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 2 and channels > 1):
        raise RecordError(f"{described} must be {wanted}.")
    roles = ["time", "site"] if array.ndim == 2 else ["time", "channel", "site"]
    arranged = _named(array, roles).transpose(*roles)
    if array.ndim == 2:
        arranged = arranged.expand_dims("channel", 1)
    arranged = _placed(arranged, sites)
    if arranged.shape[1:] != (channels, sites):
        raise RecordError(
            f"{described} must be {wanted}; stations at some of them are named by whole numbers from 0 to "
            f"{sites - 1} as the coordinate `site`."
        )
    return arranged


def _named(array: xr.DataArray, roles: Sequence[str]) -> xr.DataArray:
    """Its dimensions called what they are: by their names, the others by their order."""
    found = {}
    for role in roles:
        match = [name for name in array.dims if str(name).lower() in DIMENSIONS[role] and name not in found.values()]
        if len(match) == 1:
            found[role] = match[0]
    left = [name for name in array.dims if name not in found.values()]
    found |= dict(zip([role for role in roles if role not in found], left, strict=True))
    for role, name in found.items():
        if name == role:
            continue
        if role in array.coords and array[role].dims == (name,):  # a coordinate of another name than its dimension
            array = array.swap_dims({name: role})
        else:
            array = array.drop_vars(role, errors="ignore").rename({name: role})
    return array


def _placed(array: xr.DataArray, sites: int) -> xr.DataArray:
    """Some sites, or sites in another order, at the places that their whole-number coordinates name."""
    if "site" not in array.coords or array["site"].dtype.kind not in "iu":
        return array
    places = array["site"].to_numpy()
    if len(set(places)) < len(places) or not ((places >= 0) & (places < sites)).all():
        return array
    return array.reindex(site=np.arange(sites))


def _error(
    source: Source, observations: Any, error: Any, values: xr.DataArray, shape: Sequence[int]
) -> Float[np.ndarray, "#cycle channel site"] | None:
    if isinstance(error, str):
        named = open_source(observations, error)
        array = named.values
    elif isinstance(error, xr.DataArray):
        array = numbers(error, "error")
    elif error is None:
        if source.error is None:
            return None
        array = source.error
    else:
        if isinstance(error, torch.Tensor):
            error = error.detach().cpu().numpy()
        plain = np.asarray(error)
        if plain.dtype.kind not in "iuf":
            raise RecordError(f"error = {error!r} must be a number, an array of numbers, or the name of a variable.")
        plain = plain.astype(np.float64)
        if plain.ndim == 2 and source.values.ndim == 2:  # of (time, site), without the one channel
            plain = plain[:, None, :]
        try:
            np.broadcast_to(plain, values.shape)
        except ValueError:
            raise RecordError(
                f"error of shape {np.shape(error)} must broadcast to (time, channel, site) = {values.shape}."
            ) from None
        plain = plain.reshape((1,) * (3 - plain.ndim) + plain.shape)
        return np.broadcast_to(plain, (len(plain), *shape))
    named_dims = {
        str(name): role for role, names in DIMENSIONS.items() for name in array.dims if str(name).lower() in names
    }
    if len(named_dims) < array.ndim:
        raise RecordError(
            f"error of dimensions {tuple(map(str, array.dims))} must have some of time, channel and site."
        )
    array = array.rename({name: role for name, role in named_dims.items() if name != role})
    if "site" in array.dims:
        array = _placed(array, shape[1])
    sizes: dict[str, int] = dict(zip(("time", "channel", "site"), values.shape, strict=True))
    if any(size != sizes[str(name)] for name, size in array.sizes.items()):
        raise RecordError(f"error of sizes {dict(array.sizes)} must fit the observations of sizes {sizes}.")
    array = array.drop_vars(list(array.coords)).expand_dims({k: 1 for k in sizes if k not in array.dims})
    plain = array.transpose("time", "channel", "site").to_numpy()
    return np.broadcast_to(plain, (len(plain), *shape))


def _dense(values: np.ndarray, cycles: np.ndarray) -> Float[np.ndarray, "cycle channel site"]:
    """Cycles without a time are those at which nothing was received; nor is what is not finite."""
    dense = np.full((int(cycles[-1]) + 1, *values.shape[1:]), np.nan, np.float32)
    with np.errstate(over="ignore"):
        dense[cycles] = values
    dense[~np.isfinite(dense)] = np.nan
    return dense


def _warn_of_steps(cycles: np.ndarray, clock: Clock, label: str) -> None:
    steps = np.diff(cycles)
    if len(steps) and steps.min() > 1:
        warnings.warn(
            f"{label} has times at every {steps.min()}th cycle at most; if they are successive cycles, give their "
            f"distance as interval (now {clock.interval:g}).",
            stacklevel=4,
        )

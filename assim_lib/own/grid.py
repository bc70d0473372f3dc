"""The dimensions of what was brought: called what they are, and sites put in their places."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from assim_lib.own.sources import DIMENSIONS, RecordError


def arranged(array: xr.DataArray, shape: Sequence[int], label: str) -> xr.DataArray:
    """(time, site) or (time, channel, site) under these names, not read yet."""
    channels, sites = shape
    wanted = f"(time, site) or (time, channel, site) with {channels} channel(s) and {sites} sites"
    described = f"{label} of shape {array.shape}, dimensions {tuple(map(str, array.dims))} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 2 and channels > 1):
        raise RecordError(f"{described} must be {wanted}.")
    arranged = _named(array, ["time", "site"] if array.ndim == 2 else ["time", "channel", "site"])
    if on_grid(arranged.isel(time=slice(0)), sites).shape[1:] != (channels, sites):
        raise RecordError(
            f"{described} must be {wanted}; stations at some of them are named by whole numbers from 0 to "
            f"{sites - 1} as the coordinate `site`."
        )
    return arranged


def on_grid(array: xr.DataArray, sites: int) -> xr.DataArray:
    """(time, channel, site), every site at its place."""
    if "channel" not in array.dims:
        array = array.drop_vars("channel", errors="ignore").expand_dims("channel")
    return placed(array.transpose("time", "channel", "site"), sites)


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


def placed(array: xr.DataArray, sites: int) -> xr.DataArray:
    """Some sites, or sites in another order, at the places that their whole-number coordinates name."""
    if "site" not in array.coords or array["site"].dtype.kind not in "iu":
        return array
    places = array["site"].to_numpy()
    if len(set(places)) < len(places) or not ((places >= 0) & (places < sites)).all():
        return array
    return array.reindex(site=np.arange(sites))

"""The dimensions of what was brought: called what they are, and sites put in their places."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from assim_lib.own.conventions import DIMENSIONS, RecordError, said


def arranged(array: xr.DataArray, shape: Sequence[int], label: str) -> xr.DataArray:
    """(time, site) or (time, channel, site) under these names, not read yet."""
    channels, sites = shape
    wanted = f"(time, site) or (time, channel, site) with {channels} channel(s) and {sites} sites"
    described = f"{label} of shape {array.shape}, dimensions {tuple(map(str, array.dims))} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 2 and channels > 1):
        raise RecordError(f"{described} must be {wanted}.")
    arranged = named(array, roles_of(array))
    if on_grid(arranged.isel(time=slice(0)), sites).shape[1:] != (channels, sites):
        times = f" Times are called {', '.join(DIMENSIONS['time'])}." if array.shape[-1] == sites + 1 else ""
        raise RecordError(
            f"{described} must be {wanted}; stations at some of them are named by whole numbers from 0 to "
            f"{sites - 1} as the coordinate `site`.{times}"
        )
    return arranged


def on_grid(array: xr.DataArray, sites: int) -> xr.DataArray:
    """(time, channel, site), every site at its place."""
    if "channel" not in array.dims:
        array = array.drop_vars("channel", errors="ignore").expand_dims("channel")
    return placed(array.transpose("time", "channel", "site"), sites)


def roles_of(array: xr.DataArray) -> dict[str, str]:
    """What its dimensions are: by their names, the others by their order."""
    roles = ["time", "site"] if array.ndim == 2 else ["time", "channel", "site"]
    found: dict[str, str] = {}
    for role in roles:
        match = [str(name) for name in array.dims if str(name).lower() in DIMENSIONS[role] and str(name) not in found]
        if len(match) == 1:
            found[match[0]] = role
    left = [str(name) for name in array.dims if str(name) not in found]
    return found | dict(zip(left, [role for role in roles if role not in found.values()], strict=True))


def named(array: xr.DataArray, roles: Mapping[str, str]) -> xr.DataArray:
    """Its dimensions called what they are."""
    for name, role in roles.items():
        if name == role or name not in array.dims:
            continue
        if role in array.coords and array[role].dims == (name,):  # a coordinate of another name than its dimension
            array = array.swap_dims({name: role})
        else:
            array = array.drop_vars(role, errors="ignore").rename({name: role})
    return array


def placed(array: xr.DataArray, sites: int) -> xr.DataArray:
    """Some sites, or sites in another order, at the places that their whole-number coordinates name.

    Other numbers, degrees say, are those of sites one after another.

    Raises:
        RecordError: if they name no places and do not increase, or may be counted from 0 or from 1: neither all are
            there, nor 0.
    """
    if "site" not in array.coords or array["site"].dtype.kind not in "iuf":
        return array
    names = array["site"].to_numpy()
    whole = bool((np.isfinite(names) & (names == np.round(names))).all())
    places = names.astype(np.int64) if whole else np.full(len(names), -1)
    if set(places) == set(range(1, sites + 1)):
        places = places - 1
    if len(set(places)) < len(places) or not ((places >= 0) & (places < sites)).all():
        if len(names) == sites and not (np.diff(names.astype(float)) > 0).all():
            raise RecordError(
                f"sites are called {said(names.tolist())}; numbers that name their places are different whole ones "
                f"from 0 to {sites - 1}, and others must increase."
            )
        return array
    if len(places) < sites and len(places) and 0 not in places:
        raise RecordError(
            f"sites are numbered {said(places.tolist())} without 0, and are {len(places)} of {sites}: whether the "
            "first is 0 or 1 is not known; count from 0, and name site 0 too, without numbers if it has none."
        )
    return array.assign_coords(site=places).reindex(site=np.arange(sites))

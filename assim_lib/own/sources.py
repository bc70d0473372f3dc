"""Where a record of observations comes from: netCDF, Zarr, CSV, or an array in memory."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr

from assim_lib.own.conventions import ERROR, RecordError
from assim_lib.own.files import opened, unreadable
from assim_lib.own.tables import of_table
from assim_lib.storage import sha256

NO_NUMBER = 9.9e35  # netCDF's own fill value, 9.97e36, where a file does not name one; no observation is that large
PART = 1000  # times that are in memory at a time


class Source(NamedTuple):
    """What was brought.

    Attributes:
        label: what it is called in sentences and attributes.
        checksum: SHA-256 of the file, or of the numbers in memory.
        values: as they came; of netCDF and Zarr, not read before a part of it is asked for.
        error: the errors' standard deviation, if there are any of its own.
    """

    label: str
    checksum: str
    values: xr.DataArray
    error: xr.DataArray | None = None


def open_source(observations: Any, variable: str | None = None, asked: str = "variable") -> Source:
    """What is in a file (netCDF, Zarr, CSV) or in memory (NumPy, PyTorch, xarray, pandas).

    Args:
        variable: name of the observations, where a file holds more than one.
        asked: the parameter that says it, for sentences.

    Raises:
        RecordError: if it cannot be read, or holds no numbers.
        FileNotFoundError: if there is no such file.
    """
    if isinstance(observations, str | Path):
        path = Path(observations).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"observations = {str(observations)!r}: there is no such file.")
        label, dataset = path.name, opened(path)
        checksum = sha256(path) if path.is_file() else _of_numbers(dataset, label)
    else:
        label, dataset = "observations", _in_memory(observations)
        checksum = _of_numbers(dataset, label)
    values = _chosen(dataset, variable, label, asked)
    error = dataset.get(ERROR)
    refuse_no_numbers(values, label)
    if error is not None:
        refuse_no_numbers(error, f"error of {label}")
    return Source(label, checksum, values, error)


def refuse_no_numbers(array: xr.DataArray, label: str) -> None:
    """Raise :class:`RecordError` if it holds no real numbers."""
    if array.dtype.kind not in "iuf":
        raise RecordError(f"{label} is of type {array.dtype}; it must hold real numbers.")


def numbers(array: xr.DataArray, label: str) -> xr.DataArray:
    """Read an array in double precision, NaN for what is missing or beyond what can be meant.

    Raises:
        RecordError: if its file is damaged.
    """
    try:
        converted = array.astype(np.float64)
    except Exception:  # of many kinds: whatever a damaged file does to its reader
        raise unreadable(label) from None
    if "scale_factor" not in array.encoding:  # else the limits are those of the packed numbers
        low, high = _valid(array, "valid_range", (-np.inf, np.inf), label)
        (low,), (high,) = _valid(array, "valid_min", (low,), label), _valid(array, "valid_max", (high,), label)
        converted = converted.where((converted >= low) & (converted <= high))
    return converted.where(np.abs(converted) < NO_NUMBER)


def _valid(array: xr.DataArray, name: str, usual: tuple[float, ...], label: str) -> list[float]:
    """A limit of valid numbers, or both."""
    given = array.attrs.get(name, usual)
    try:
        limits = np.asarray(given, np.float64).ravel().tolist()
    except (TypeError, ValueError):
        limits = []
    if len(limits) != len(usual):
        count = {1: "a number", 2: "two numbers"}[len(usual)]
        raise RecordError(f"{label}: {name} = {given!r} of variable {array.name!r} must be {count}.")
    return limits


def without_mask(values: Any) -> np.ndarray:
    """Anything as an array, NaN where NumPy masks it."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.filled(values.astype(np.float64), np.nan)
    return np.asarray(values)


def _in_memory(observations: Any) -> xr.Dataset:
    if isinstance(observations, xr.Dataset):
        return observations
    if isinstance(observations, xr.DataArray):
        return observations.rename("observations").to_dataset()
    if isinstance(observations, pd.DataFrame):
        return of_table(observations)
    if isinstance(observations, torch.Tensor):
        observations = observations.detach().cpu().numpy()
    try:
        values = without_mask(observations)
    except ValueError:
        raise RecordError("observations have rows of several lengths; they must be (time, site).") from None
    if values.ndim not in (2, 3):
        raise RecordError(
            f"observations of shape {values.shape} and type {values.dtype} must be (time, site) or (time, channel, "
            "site)."
        )
    dims = ("time", "site") if values.ndim == 2 else ("time", "channel", "site")
    return xr.Dataset({"observations": (dims, values)})


def _chosen(dataset: xr.Dataset, variable: str | None, label: str, asked: str) -> xr.DataArray:
    known = [str(name) for name, array in dataset.data_vars.items() if array.ndim >= 2 and name != ERROR]
    if variable is not None:
        if variable not in dataset:
            every = known if asked == "variable" else sorted(map(str, dataset.data_vars))
            raise RecordError(f"{asked} = {variable!r} is not in {label}; it has {_listed(every)}.")
        return dataset[variable]
    usual = [name for name in ("observations", "observation") if name in known]
    if len(known) == 1 or usual:
        return dataset[(usual or known)[0]]
    raise RecordError(
        f"{label} holds {_listed(known)} with at least two dimensions; name the observations by variable."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no variable"


def _of_numbers(dataset: xr.Dataset, label: str) -> str:
    digest = hashlib.sha256()
    try:
        for name in sorted(map(str, dataset.variables)):
            variable = dataset[name].variable
            digest.update(f"{name} {variable.dtype} {variable.shape}".encode())
            rows = variable.shape[0] if variable.ndim else 1
            for first in range(0, rows, PART):
                part = variable[first : first + PART] if variable.ndim else variable
                digest.update(np.ascontiguousarray(part.to_numpy()).tobytes())
    except Exception:  # see above
        raise unreadable(label) from None
    return digest.hexdigest()

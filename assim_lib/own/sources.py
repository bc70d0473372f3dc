"""Where a record of observations comes from: netCDF, Zarr, CSV, or an array in memory."""

import hashlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr

from assim_lib.mistakes import Mistake
from assim_lib.storage import sha256

NETCDF = (".nc", ".nc4", ".cdf", ".netcdf", ".h5")
NO_NUMBER = 9.9e35  # netCDF's own fill value, 9.97e36, where a file does not name one; no observation is that large
PART = 1000  # times that are in memory at a time
ERROR = "error"  # the variable that holds the errors' standard deviation
# What a dimension may be called; one of another name is known by its place among the others.
DIMENSIONS = {
    "time": ("time", "cycle", "date", "datetime", "t"),
    "channel": ("channel", "component"),
    "site": ("site", "station", "location", "x", "lon", "longitude"),
}


class RecordError(Mistake):
    """Observations that cannot be used; its message is one sentence naming them, what came and what is allowed."""


class Source(NamedTuple):
    """What was brought.

    Attributes
    ----------
    label : what it is called in sentences and attributes.
    checksum : SHA-256 of the file, or of the numbers in memory.
    values : as they came; of netCDF and Zarr, not read before a part of it is asked for.
    error : the errors' standard deviation, if there are any of its own.
    """

    label: str
    checksum: str
    values: xr.DataArray
    error: xr.DataArray | None = None


def open_source(observations: Any, variable: str | None = None) -> Source:
    """What is in a file (netCDF, Zarr, CSV) or in memory (NumPy, PyTorch, xarray, pandas).

    Parameters
    ----------
    variable : name of the observations, where a file holds more than one.

    Raises
    ------
    RecordError : if it cannot be read, or holds no numbers.
    FileNotFoundError : if there is no such file.
    """
    if isinstance(observations, str | Path):
        path = Path(observations).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"observations = {str(observations)!r}: there is no such file.")
        label, dataset = path.name, _opened(path)
        checksum = sha256(path) if path.is_file() else _of_numbers(dataset, label)
    else:
        label, dataset = "observations", _in_memory(observations)
        checksum = _of_numbers(dataset, label)
    values = _chosen(dataset, variable, label)
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

    Raises
    ------
    RecordError : if its file is damaged.
    """
    try:
        converted = array.astype(np.float64)
    except Exception as error:  # of many kinds: whatever a damaged file does to its reader
        raise _unreadable(label, error) from None
    if "scale_factor" not in array.encoding:  # else the limits are those of the packed numbers
        low, high = array.attrs.get("valid_range", (-np.inf, np.inf))
        low, high = array.attrs.get("valid_min", low), array.attrs.get("valid_max", high)
        converted = converted.where((converted >= low) & (converted <= high))
    return converted.where(np.abs(converted) < NO_NUMBER)


def _opened(path: Path) -> xr.Dataset:
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            return _of_table(pd.read_csv(path))
        if suffix in NETCDF:
            return xr.open_dataset(path, decode_timedelta=False, cache=False)
        if suffix == ".zarr":
            if find_spec("zarr") is None:
                raise RecordError("it needs the package zarr, which is not installed; write netCDF or CSV.")
            return xr.open_dataset(path, engine="zarr", decode_timedelta=False, cache=False)
    except RecordError as error:
        raise RecordError(f"{path.name}: {error}") from None
    except Exception as error:  # of many kinds: whatever a damaged file does to its reader
        raise _unreadable(path.name, error) from None
    raise RecordError(
        f"{path.name} ends in {suffix or 'nothing'!r}; observations are netCDF ({', '.join(NETCDF)}), .zarr or .csv."
    )


def _unreadable(label: str, error: Exception) -> RecordError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return RecordError(f"{label} cannot be read: {reason}.")


def _in_memory(observations: Any) -> xr.Dataset:
    if isinstance(observations, xr.Dataset):
        return observations
    if isinstance(observations, xr.DataArray):
        return observations.rename("observations").to_dataset()
    if isinstance(observations, pd.DataFrame):
        return _of_table(observations if isinstance(observations.index, pd.RangeIndex) else observations.reset_index())
    if isinstance(observations, torch.Tensor):
        observations = observations.detach().cpu().numpy()
    try:
        values = np.asarray(observations)
    except ValueError:
        raise RecordError("observations have rows of several lengths; they must be (time, site).") from None
    if values.ndim not in (2, 3):
        raise RecordError(
            f"observations of shape {values.shape} and type {values.dtype} must be (time, site) or (time, channel, "
            "site)."
        )
    dims = ("time", "site") if values.ndim == 2 else ("time", "channel", "site")
    return xr.Dataset({"observations": (dims, values)})


def _of_table(table: Any) -> xr.Dataset:
    """A column a site, or a row a number with its time, site and value."""
    table = table.rename(columns=lambda name: str(name).strip())
    if len(table.columns) == 1 and ";" in table.columns[0]:
        raise RecordError("its columns are separated by ';'; separate them by commas.")
    stated = [name for name in table.columns if not name.isdecimal() and not name.startswith("Unnamed: ")]
    if stated and all(map(_is_number, stated)):
        raise RecordError(
            f"its first row holds numbers, such as {stated[0]}; it must name the columns: time, and sites."
        )
    names = [name for name in table.columns if name.lower() in DIMENSIONS["time"]]
    time = names[0] if names else None
    if time is not None and table[time].dtype.kind not in "iufM":
        try:
            table[time] = pd.to_datetime(table[time])
        except (ValueError, TypeError):
            raise RecordError(
                f"column {time!r} holds times that cannot be read, such as {table[time].iloc[0]!r}."
            ) from None
    if {"site", "value"} <= set(table.columns):
        if time is None:
            raise RecordError("a table with a row a number needs the columns time, site and value, and has no time.")
        return _of_rows(table.rename(columns={time: "time"}))
    sites = table.drop(columns=[time] if time else [])
    for name, column in sites.items():
        if column.dtype.kind not in "iuf":
            raise RecordError(f"column {name!r} is of type {column.dtype}; it must hold real numbers.")
    coordinates: dict[str, Any] = {"time": table[time].to_numpy()} if time else {}
    if all(name.isdecimal() for name in sites.columns):
        coordinates["site"] = sites.columns.astype(int)
    return xr.Dataset({"observations": (("time", "site"), sites.to_numpy())}, coordinates)


def _is_number(name: str) -> bool:
    try:
        float(re.sub(r"(?<=\d)\.\d+$", "", name))  # pandas tells equal names apart by a suffix
    except ValueError:
        return False
    return True


def _of_rows(table: Any) -> xr.Dataset:
    """Several numbers of one place and time become the one that says the same: their mean, weighted by precision."""
    keys = ["time", *(["channel"] if "channel" in table else []), "site"]
    for name in ("value", ERROR):
        if name in table and table[name].dtype.kind not in "iuf":
            raise RecordError(f"column {name!r} is of type {table[name].dtype}; it must hold real numbers.")
    if ERROR in table:
        wrong = table["value"].notna() & ~((table[ERROR] > 0) & np.isfinite(table[ERROR]))
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise RecordError(
                f"error = {table[ERROR].iloc[row]:g} in row {row} (counted from 0) must be a finite number > 0 "
                "wherever there is a value."
            )
    weight = 1.0 / table[ERROR] ** 2 if ERROR in table else pd.Series(1.0, table.index)
    table = table.assign(weight=weight.where(table["value"].notna(), 0.0))
    table["weighted"] = table["value"].fillna(0.0) * table["weight"]
    if ERROR not in table and table.duplicated(keys).any():
        raise RecordError(
            "the table has several numbers of one place and time; to weigh them it needs a column error with their "
            "standard deviations."
        )
    summed = cast(Any, table.groupby(keys, sort=True)[["weight", "weighted"]].sum()).to_xarray()
    dataset = xr.Dataset({"observations": summed["weighted"] / summed["weight"]})
    return dataset.assign({ERROR: summed["weight"] ** -0.5}) if ERROR in table else dataset


def _chosen(dataset: xr.Dataset, variable: str | None, label: str) -> xr.DataArray:
    known = [str(name) for name, array in dataset.data_vars.items() if array.ndim >= 2 and name != ERROR]
    if variable is not None:
        if variable not in dataset:
            raise RecordError(f"variable = {variable!r} is not in {label}; it has {_listed(known)}.")
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
    except Exception as error:  # see above
        raise _unreadable(label, error) from None
    return digest.hexdigest()

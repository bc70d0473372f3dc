"""Files of a record, looked at before a library reads them: what is none is said in a sentence of one's own."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from assim_lib.own.conventions import DIMENSIONS, NETCDF, RecordError
from assim_lib.own.tables import read_table

_BEGINNINGS = (b"CDF\x01", b"CDF\x02", b"CDF\x05", b"\x89HDF\r\n\x1a\n")  # of netCDF 3 and 4
_SECONDS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 0.001}
for _unit, _name in zip(tuple(_SECONDS), ("day", "hour", "minute", "second", "millisecond"), strict=True):
    _SECONDS |= dict.fromkeys((_name, _name + "s"), _SECONDS[_unit])


def opened(path: Path) -> xr.Dataset:
    """What is in a file, not read yet.

    Raises:
        RecordError: if it is none of those that can be read.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            _look_first(path)
            return read_table(path)
        if suffix in NETCDF:
            _look_first(path, _BEGINNINGS)
            return _opened(path)
        if suffix == ".zarr":
            if find_spec("zarr") is None:
                raise RecordError("it needs the package zarr, which is not installed; write netCDF or CSV.")
            return _opened(path, engine="zarr")
    except RecordError as error:
        raise RecordError(f"{path.name}: {error}") from None
    except Exception:  # of many kinds: whatever a damaged file does to its reader
        raise unreadable(path.name) from None
    raise RecordError(
        f"{path.name} ends in {suffix or 'nothing'!r}; observations are netCDF ({', '.join(NETCDF)}), .zarr or .csv."
    )


def unreadable(label: str) -> RecordError:
    """The sentence for a damaged file."""
    return RecordError(f"{label} cannot be read: it is damaged, or not written to its end.")


def _look_first(path: Path, beginnings: tuple[bytes, ...] = ()) -> None:
    if path.is_dir():
        raise RecordError("it is a folder, and must be a file.")
    with open(path, "rb") as file:
        begins = file.read(8)
    if not begins:
        raise RecordError("it is empty.")
    if beginnings and not begins.startswith(beginnings):
        raise RecordError("it is no netCDF file, whatever its name says.")


def _opened(path: Path, **engine: Any) -> xr.Dataset:
    """With dates and durations; of numbers that are no times, a unit of time changes nothing."""
    try:
        dataset = xr.open_dataset(path, decode_timedelta=False, cache=False, **engine)
    except ValueError:
        for name, variable in xr.open_dataset(path, decode_times=False, **engine).variables.items():
            if " since " in str(units := variable.attrs.get("units")):
                calendar = variable.attrs.get("calendar", "standard")
                raise RecordError(
                    f"{name} has units {units!r} of calendar {calendar!r}, which are no dates, as 'hours since "
                    "2026-01-01' are."
                ) from None
        raise
    for name, times in dataset.coords.items():
        unit = _SECONDS.get(str(times.attrs.get("units")))
        if unit and str(name).lower() in DIMENSIONS["time"] and times.dtype.kind in "iuf":
            passed = pd.to_timedelta(unit * times.to_numpy().ravel(), unit="s").to_numpy()
            dataset = dataset.assign_coords({name: (times.dims, passed.reshape(times.shape))})
    return dataset

"""The analysis as netCDF, by the CF conventions."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from assim_lib.own.cycling import Cycled
from assim_lib.own.innovations import InnovationScores
from assim_lib.own.record import OwnRecord
from assim_lib.own.sources import RecordError
from assim_lib.storage import PACKAGE, netcdf_bytes, why_not_writable, write_bytes

_TEXT = {
    "mean": "analysis: mean of the ensemble",
    "spread": "expected error of the analysis: standard deviation of the ensemble",
    "members": "analysis: members of the ensemble",
    "innovation": "observation less its forecast, where it was seen",
    "innovation_spread": "expected standard deviation of the innovation",
}


def as_dataset(cycled: Cycled, record: OwnRecord, scores: InnovationScores, about: dict[str, Any]) -> xr.Dataset:
    """The analysis with its times and its origin.

    Parameters
    ----------
    about : global attributes that name the filter.
    """
    grid = ("time", "channel", "site")
    parts: dict[str, Any] = {
        "mean": (grid, cycled.mean),
        "spread": (grid, cycled.spread),
        "innovation": (grid, cycled.innovation),
        "innovation_spread": (grid, cycled.expected),
    }
    if cycled.members is not None:
        parts["members"] = (("time", "member", "channel", "site"), cycled.members)
    units = {"units": record.units} if record.units else {}
    dataset = xr.Dataset(
        {name: (dims, values, {"long_name": _TEXT[name], **units}) for name, (dims, values) in parts.items()}
    )
    dataset["mean"].attrs["ancillary_variables"] = "spread"
    clock = {
        "cycle": "number of the cycle",
        "number": "time in the unit of the system",
        "date": "time of the analysis",
        "duration": "time since the first of the record's own",
    }
    cycles = cycled.state.number - len(cycled.mean) + np.arange(len(cycled.mean))
    of_time = {"long_name": clock[record.clock.kind], "axis": "T"}
    if record.clock.kind == "date":
        of_time["standard_name"] = "time"
    scored = {f"innovation_{name}": value for name, value in scores.as_dict().items() if not np.isnan(value)}
    return dataset.assign_coords(
        time=("time", record.times, of_time),
        cycle=("time", cycles, {"long_name": "number of the cycle in the observation schedule"}),
        channel=("channel", np.arange(cycled.mean.shape[1]), {"long_name": "channel of the state"}),
        site=("site", np.arange(cycled.mean.shape[2]), {"long_name": "site of the grid"}),
    ).assign_attrs(
        Conventions="CF-1.11",
        title="Analysis of observations by a learned ensemble filter",
        source=f"amortized-assimilation {_version()}",
        observations=record.label,
        observations_sha256=record.checksum,
        **about,
        **scored,
    )


def check_destination(path: Path, name: str) -> None:
    """Ask, before anything is computed, whether a file can be written there.

    Raises
    ------
    RecordError : if not.
    """
    if path.is_dir():
        raise RecordError(f"{name} = {str(path)!r} is a folder; it must be a file.")
    if not path.parent.is_dir():
        raise RecordError(f"{name} = {str(path)!r} is in a folder that does not exist; make it first.")
    if reason := why_not_writable(path):
        raise RecordError(f"{name} = {str(path)!r} cannot be written: {reason}.")


def write_netcdf(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset, atomically."""
    # A NaN means the same as a fill value, and coordinates have none.
    encoding: dict[Any, Any] = {name: {"_FillValue": None} for name in dataset.coords}
    write_bytes(path, netcdf_bytes(dataset, encoding=encoding))


def _version() -> str:
    try:
        return version("amortized-assimilation")
    except PackageNotFoundError:
        return f"from {PACKAGE.name}"

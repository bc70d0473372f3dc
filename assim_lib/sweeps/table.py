"""What a sweep found, as one tidy table and as a dataset on the grid."""

import tempfile
from pathlib import Path
from typing import Any

import fastparquet
import pandas as pd
import xarray as xr

from assim_lib.storage import netcdf_bytes
from assim_lib.sweeps.folder import Folder
from assim_lib.sweeps.grid import COLUMNS

INDEX = "sweep.json"


def sweep_table(folder: Folder) -> pd.DataFrame:
    """One row a point of the grid, in its order; what is not finished has no metrics.

    Args:
        folder: of a sweep.

    Returns:
        The coordinates; the metrics that are numbers or words, where none is called as a coordinate is; ``seconds``
        that the point took, and ``overhead``, those of them that were spent outside of its cells; ``failed``, why it
        failed; ``key``, the name of its files. A metric of one of these four names is called ``metric_seconds``, and so
        on.
    """
    points, finished = folder.read_json(INDEX)["points"], folder.stems("points", ".json")
    failed = folder.stems("failed", ".json")
    rows: list[dict[str, Any]] = []
    for point in points:
        key, row = point["key"], dict(point["coordinates"])
        if key in finished:
            done = folder.read_json(f"points/{key}.json")
            plain = {
                f"metric_{name}" if name in COLUMNS else name: value
                for name, value in done["metrics"].items()
                if isinstance(value, bool | int | float | str)
            }
            measured = plain | {"seconds": done["seconds"], "overhead": done["overhead"]}
            row |= {name: value for name, value in measured.items() if name not in row}
        why = folder.read_json(f"failed/{key}.json")["error"] if key in failed - finished else ""
        rows.append({**row, "failed": why, "key": key})
    return pd.DataFrame(rows)


def on_grid(table: pd.DataFrame, axes: list[str]) -> xr.Dataset:
    """A sweep's numbers with the axes of its grid as dimensions, NaN where a point is not finished.

    Args:
        table: of :func:`sweep_table`.
        axes: its coordinates.
    """
    table = table.drop(columns=["failed", "key"])
    for name in axes:
        if table[name].dtype == object:  # None among numbers, say: netCDF has one type a variable
            table[name] = table[name].map(str)
    numbers = table.drop(columns=axes).select_dtypes(["number", "bool"])
    return xr.Dataset.from_dataframe(numbers.astype(float).set_index([table[name] for name in axes]))


def write_tables(folder: Folder) -> list[str]:
    """Write ``table.parquet`` and ``sweep.nc``; return their paths."""
    table = sweep_table(folder)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "table.parquet"
        fastparquet.write(str(path), table)
        written = [folder.write(path.name, path.read_bytes())]
    axes = folder.read_json(INDEX)["axes"]
    return [*written, folder.write("sweep.nc", netcdf_bytes(on_grid(table, axes)))] if axes else written

"""The analysis as a dataset, by the CF conventions: in memory, as netCDF, or as Zarr; written part by part."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5netcdf
import h5py
import numpy as np
import xarray as xr

from assim_lib.own.conventions import NETCDF, RecordError
from assim_lib.own.cycling import Cycled
from assim_lib.own.innovations import InnovationScores
from assim_lib.own.record import OwnRecord
from assim_lib.own.sources import PART
from assim_lib.storage import PACKAGE, atomic_folder, atomic_path, netcdf_bytes, why_not_writable

_TEXT = {
    "mean": "analysis: mean of the ensemble",
    "spread": "expected error of the analysis: standard deviation of the ensemble",
    "innovation": "observation less its forecast, where it was seen",
    "innovation_spread": "expected standard deviation of the innovation",
    "members": "analysis: members of the ensemble",
}


class Sink(NamedTuple):
    """Where an analysis goes: ``write`` puts cycles, from the given one on, where they belong, each array by the name
    of its variable; ``finish`` adds the scores."""

    write: Callable[[int, Mapping[str, np.ndarray]], None]
    finish: Callable[[InnovationScores], None]


def layout(record: OwnRecord, number: int, shape: tuple[int, ...], members: int, about: dict[str, Any]) -> xr.Dataset:
    """The analysis before it is known: names, dimensions, times and origin. It takes no memory.

    Args:
        number: of the record's first cycle in the observation schedule.
        shape: (channels, sites) of the state.
        members: number of them that are written; 0: none.
        about: global attributes that name the filter.
    """
    sizes = {"time": record.cycles, "member": members, "channel": shape[0], "site": shape[1]}
    units = {"units": record.units} if record.units else {}
    variables = {}
    for name, text in _TEXT.items():
        dims = ["time", "channel", "site"] if name != "members" else list(sizes)
        empty = np.broadcast_to(np.float32(np.nan), [sizes[dim] for dim in dims])
        if empty.size:
            variables[name] = (dims, empty, {"long_name": text, **units})
    dataset = xr.Dataset(variables)
    dataset["mean"].attrs["ancillary_variables"] = "spread"
    clock = {
        "cycle": "number of the cycle",
        "number": "time in the unit of the system",
        "date": "time of the analysis",
        "duration": "time since the first of the record's own",
    }
    of_time = {"long_name": clock[record.clock.kind], "axis": "T"}
    if record.clock.kind == "date":
        of_time["standard_name"] = "time"
    cycles = number + np.arange(record.cycles)
    return dataset.assign_coords(
        time=("time", record.times, of_time),
        cycle=("time", cycles, {"long_name": "number of the cycle in the observation schedule"}),
        channel=("channel", np.arange(shape[0]), {"long_name": "channel of the state"}),
        site=("site", np.arange(shape[1]), {"long_name": "site of the grid"}),
    ).assign_attrs(
        Conventions="CF-1.11",
        title="Analysis of observations by a learned ensemble filter",
        source=f"amortized-assimilation {_version()}",
        observations=record.label,
        observations_sha256=record.checksum,
        **about,
        **_scored(InnovationScores(np.nan, np.nan, np.nan, np.nan, 0, 0)),
    )


def written(cycled: Cycled) -> dict[str, np.ndarray]:
    """What is written of some cycles, by the name of its variable."""
    members = {} if cycled.members is None else {"members": cycled.members}
    innovation = {"innovation": cycled.innovation, "innovation_spread": cycled.expected}
    return {"mean": cycled.mean, "spread": cycled.spread, **innovation, **members}


@contextmanager
def sink_of(planned: xr.Dataset, path: Path | None) -> Iterator[Sink]:
    """A file, or a dataset in memory, that is filled part by part. A file takes its name when the block is left.

    Args:
        planned: see :func:`layout`; in memory, a deep copy of it, which is filled.
        path: a netCDF file, or a Zarr store where it ends in ``.zarr``; None: memory.
    """
    if path is None:
        yield _memory(planned)
    elif is_zarr(path):
        with atomic_folder(path) as folder:
            yield _zarr(planned, folder)
    else:
        with atomic_path(path) as temporary:
            _make_netcdf(planned, temporary)
            with open(temporary, "r+b") as file:
                yield _netcdf(planned, file)


def read_back(path: Path) -> xr.Dataset:
    """What was written; its numbers are read when they are asked for."""
    if is_zarr(path):
        return xr.open_zarr(path, chunks=None, decode_timedelta=True)
    return xr.open_dataset(path, decode_timedelta=True)


def is_zarr(path: Path) -> bool:
    """Whether it is written as Zarr, which is a folder."""
    return path.suffix.lower() == ".zarr"


def check_destination(path: Path, name: str) -> None:
    """Ask, before anything is computed, whether a file can be written there.

    Raises:
        RecordError: if not.
    """
    zarr = name == "output" and is_zarr(path)
    if name == "output" and not zarr and path.suffix.lower() not in NETCDF and not path.is_dir():
        raise RecordError(
            f"output = {str(path)!r} ends in {path.suffix or 'nothing'!r}; an analysis is netCDF ({', '.join(NETCDF)}) "
            "or .zarr."
        )
    if zarr and find_spec("zarr") is None:
        raise RecordError(f"{name} = {str(path)!r} needs the package zarr, which is not installed; take netCDF (.nc).")
    replaced = zarr and any((path / mark).exists() for mark in (".zgroup", "zarr.json"))
    if path.is_dir() and not replaced:
        raise RecordError(f"{name} = {str(path)!r} is a folder; it must be a file.")
    if not path.parent.is_dir():
        raise RecordError(f"{name} = {str(path)!r} is in a folder that does not exist; make it first.")
    if reason := why_not_writable(path / "part" if replaced else path):
        raise RecordError(f"{name} = {str(path)!r} cannot be written: {reason}.")


def refuse_same_files(files: Mapping[str, str | Path | None]) -> None:
    """Raise :class:`RecordError` where two of the files, each under the name of its parameter, are one."""
    known: dict[Path, str] = {}
    for name, file in files.items():
        if file is None:
            continue
        place = Path(file).expanduser().resolve()
        if place in known:
            raise RecordError(f"{name} = {str(file)!r} is the file of {known[place]} too; take another.")
        known[place] = name


def _memory(filled: xr.Dataset) -> Sink:
    def write(first: int, parts: Mapping[str, np.ndarray]) -> None:
        for name, part in parts.items():
            filled[name].values[first : first + len(part)] = part

    return Sink(write, lambda scores: filled.attrs.update(_scored(scores)))


def _zarr(planned: xr.Dataset, folder: Path) -> Sink:
    import zarr

    _coordinates(planned).to_zarr(folder, mode="w", zarr_format=2, consolidated=False)
    group = zarr.open_group(folder, mode="r+")
    arrays = {}
    for name, array in planned.data_vars.items():
        chunks = (min(PART, array.shape[0]), *array.shape[1:])
        made = group.create_array(str(name), shape=array.shape, chunks=chunks, dtype="f4", fill_value=np.nan)
        for key, value in {**_attributes(array), "_ARRAY_DIMENSIONS": list(map(str, array.dims))}.items():
            made.attrs[key] = value
        arrays[name] = made

    def write(first: int, parts: Mapping[str, np.ndarray]) -> None:
        for name, part in parts.items():
            arrays[name][first : first + len(part)] = part

    def finish(scores: InnovationScores) -> None:
        group.attrs.update(_scored(scores))
        zarr.consolidate_metadata(folder, zarr_format=2)

    return Sink(write, finish)


def _make_netcdf(planned: xr.Dataset, path: Path) -> None:
    """The library makes a file with a place for every number; it is small until they are there."""
    coordinates = _coordinates(planned)
    encoding: dict[Any, Any] = {name: {"_FillValue": None} for name in coordinates.coords}  # they have none
    path.write_bytes(netcdf_bytes(coordinates, encoding=encoding))
    with h5netcdf.File(path, "r+") as file:
        for name in planned.sizes.keys() - file.dimensions.keys():
            file.dimensions[name] = planned.sizes[name]
        placed = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        placed.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        placed.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for name, array in planned.data_vars.items():
            # A NaN means the same as a fill value.
            made = file.create_variable(str(name), array.dims, "<f4", fillvalue=np.float32(np.nan), dcpl=placed)
            made.attrs.update(_attributes(array))


def _netcdf(planned: xr.Dataset, file: BinaryIO) -> Sink:
    """Numbers go to their places without the library, which would end the whole program on a full disk."""
    with h5py.File(file.name, "r") as made:
        places = {name: made[name].id.get_offset() for name in planned.data_vars}

    def write(first: int, parts: Mapping[str, np.ndarray]) -> None:
        for name, part in parts.items():
            file.seek(places[name] + first * part[0].size * 4)
            file.write(np.ascontiguousarray(part, "<f4").tobytes())

    def finish(scores: InnovationScores) -> None:
        file.flush()
        with h5py.File(file.name, "r+") as made:
            for name, value in _scored(scores).items():
                made.attrs.modify(name, value)  # in their places, too

    return Sink(write, finish)


def _coordinates(planned: xr.Dataset) -> xr.Dataset:
    return planned.drop_vars(list(planned.data_vars))


def _attributes(array: xr.DataArray) -> dict[str, Any]:
    return {**array.attrs, "coordinates": "cycle"}


def _scored(scores: InnovationScores) -> dict[str, float | int]:
    return {f"innovation_{name}": value for name, value in scores.as_dict().items()}


def _version() -> str:
    try:
        return version("amortized-assimilation")
    except PackageNotFoundError:
        return f"from {PACKAGE.name}"

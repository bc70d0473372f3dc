"""A record of observations on the grid of a filter: what was brought, checked, cycle by cycle."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from assim_lib.own.clock import Clock, cycles_of
from assim_lib.own.conventions import RecordError
from assim_lib.own.errors import errors_of, refuse_no_errors
from assim_lib.own.grid import arranged, on_grid
from assim_lib.own.sources import PART, numbers, open_source


class Part(NamedTuple):
    """Some successive cycles of a record.

    Attributes:
        first: of them, counted from the record's first.
        values: (cycle, channel, site), NaN where nothing was received.
        error: their errors' standard deviation, in their own unit; broadcasts to the values. None: the filter's.
    """

    first: int
    values: Float[np.ndarray, "cycle channel site"]
    error: Float[np.ndarray, "#cycle channel site"] | None


@dataclass(frozen=True)
class OwnRecord:
    """Observations of successive cycles. Those of a file are read when they are asked for.

    Attributes:
        cycles: number of them.
        part: reads the cycles from one number up to another.
        clock: the time of its last cycle.
        first: number of its first cycle in the observation schedule; None: not said, 0 or where a state goes on.
        label: of its source.
        checksum: of its source.
        units: of the numbers, "" where not known.
        brought: the cycles that came with a time, and these times.
    """

    cycles: int
    part: Callable[[int, int], Part]
    clock: Clock
    first: int | None
    label: str
    checksum: str
    units: str = ""
    brought: tuple[np.ndarray, np.ndarray] | None = None

    def parts(self, length: int = PART) -> Iterator[Part]:
        """All of it, so many cycles at a time."""
        return (self.part(first, min(first + length, self.cycles)) for first in range(0, self.cycles, length))

    @cached_property
    def values(self) -> Float[np.ndarray, "cycle channel site"]:
        """All observations, in memory."""
        return self.part(0, self.cycles).values

    @cached_property
    def error(self) -> Float[np.ndarray, "#cycle channel site"] | None:
        """All errors, in memory."""
        return self.part(0, self.cycles).error

    def begins(self, timed: bool) -> int:
        """Number of its first cycle: what whole-number times say, else 0.

        Args:
            timed: whether the model depends on time; then times in its unit say it as well.
        """
        if timed and self.clock.kind == "number":
            return round(self.clock.now / self.clock.interval) + 1 - self.cycles
        return self.first or 0

    @property
    def times(self) -> np.ndarray:
        """Of its cycles: dates, durations, numbers in the system's unit, or numbers of cycles.

        Those that were brought are the same to the last bit, so that an analysis is beside its observations.
        """
        times = self.clock.times(self.cycles)
        if self.brought is not None:
            cycles, brought = self.brought
            times[cycles] = brought
        return times


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

    Args:
        observations: a path (netCDF, .zarr, .csv), or (time, site) or (time, channel, site) numbers in memory: NumPy,
            PyTorch, xarray, pandas. NaN, infinite and fill values were not received. Whole-number coordinates ``site``
            may name some of the sites, from 0.
        shape: (channels, sites) of the filter's state.
        step_size: the filter's observation interval, which times that are plain numbers are multiples of.
        variable: name of the observations, where there are several.
        error: standard deviation of the errors: a number, an array that broadcasts to the observations, or the name of
            a variable beside them; by default the variable ``error``, if there is one.
        fill_value: a number that stands for what was not received.
        interval, since: see :func:`~assim_lib.own.clock.cycles_of`.

    Raises:
        RecordError: one sentence, for whatever cannot be meant.
        FileNotFoundError: if there is no such file.
    """
    source = open_source(observations, variable)
    if fill_value is not None:
        if isinstance(fill_value, bool) or not isinstance(fill_value, Real):
            raise RecordError(f"fill_value = {fill_value!r} of type {type(fill_value).__name__} must be a number.")
        fill_value = float(fill_value)
    array = arranged(source.values, shape, source.label)
    errors = errors_of(source, array, observations, error, (array.sizes["time"], shape[0], shape[1]))
    times = array["time"].to_numpy() if "time" in array.coords else None
    cycles, clock = cycles_of(times, array.sizes["time"], step_size, interval, since)

    def part(first: int, last: int) -> Part:
        rows = slice(*np.searchsorted(cycles, [first, last]).tolist())
        received = on_grid(numbers(array.isel(time=rows), source.label), shape[1]).to_numpy()
        if fill_value is not None:
            received = np.where(np.isclose(received, fill_value), np.nan, received)
        given = None if errors is None else errors(rows)
        if given is not None:
            refuse_no_errors(given, received, rows.start)
            given = np.where((given > 0) & np.isfinite(given), given, np.nan)  # zero, say, where nothing was received
            given = given.astype(np.float32) if len(given) == 1 else _dense(given, cycles[rows] - first, last - first)
        return Part(first, _dense(received, cycles[rows] - first, last - first), given)

    _warn_of_steps(cycles, clock, source.label)
    whole = clock.kind == "cycle" and times is not None and since is None
    count = int(cycles[-1]) + 1
    first = int(clock.now) + 1 - count if whole else None
    units = str(source.values.attrs.get("units", ""))
    brought = None if times is None else (cycles, times)
    record = OwnRecord(count, part, clock, first, source.label, source.checksum, units, brought)
    for _ in record.parts():  # whatever is wrong is found now
        pass
    return record


def _dense(values: np.ndarray, cycles: np.ndarray, count: int) -> Float[np.ndarray, "cycle channel site"]:
    """Cycles without a time are those at which nothing was received; nor is what is not finite."""
    dense = np.full((count, *values.shape[1:]), np.nan, np.float32)
    with np.errstate(over="ignore"):
        dense[cycles] = values
    dense[~np.isfinite(dense)] = np.nan
    return dense


def _warn_of_steps(cycles: np.ndarray, clock: Clock, label: str) -> None:
    steps = np.diff(cycles)
    if len(steps) and steps.min() > 1:
        warnings.warn(
            f"times of {label} lie at least {steps.min()} cycles of {clock.length} apart; if they are successive "
            "cycles, give their distance as interval.",
            stacklevel=4,
        )

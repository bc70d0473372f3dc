"""The times of a record, and the cycles of the filter that they are.

Times are dates, durations or plain numbers, a whole number of intervals apart; a cycle between two of them, at which
nothing was received, is a cycle all the same. How long an interval is: of dates, what the caller says, or the smallest
difference of two, give or take some jitter; of whole numbers 1, which are numbers of cycles; of other numbers the
filter's own interval.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from assim_lib.own.conventions import RecordError

OFF = 0.05  # how far from a cycle a time may lie, in intervals: times in single precision are rounded
JITTER = 0.2  # of a difference, in intervals: what is further off is another interval
SPARSEST = 20  # cycles to a time, where nobody says that so many are meant
LONGEST_GAP = 100_000  # cycles; after far fewer a forecast has forgotten where it started


@dataclass(frozen=True)
class Clock:
    """What a cycle's time is.

    Attributes:
        kind: "date" and "duration", in nanoseconds; "number", in the system's unit; "cycle", where times are whole
            numbers or there are none.
        now: time of a cycle, the last of a record.
        interval: between two cycles.
    """

    kind: str
    now: float | int
    interval: float | int

    @property
    def length(self) -> str:
        """The interval in words."""
        return _length(self.kind, self.interval)

    def times(self, cycles: int) -> np.ndarray:
        """Times of the last so many cycles."""
        before = np.arange(1 - cycles, 1)
        if self.kind in ("date", "duration"):
            unit = "datetime64[ns]" if self.kind == "date" else "timedelta64[ns]"
            return (int(self.now) + before * int(self.interval)).astype(unit)
        return int(self.now) + before if self.kind == "cycle" else self.now + before * self.interval


def cycles_of(
    times: np.ndarray | None,
    count: int,
    step_size: float,
    interval: Any = None,
    since: Clock | None = None,
) -> tuple[np.ndarray, Clock]:
    """The cycles that times are of.

    Args:
        times: of the record; None: its cycles follow one another.
        count: number of times.
        step_size: the filter's observation interval, in the system's unit.
        interval: between two cycles, a number, or of dates something like ``"6h"``; None: see above.
        since: the last cycle before the record, from which its own are counted.

    Returns:
        Cycle of each time, from 0 for the first of the record, or the first after ``since``. And the clock at the last.

    Raises:
        RecordError: if times are no whole number of intervals apart, do not increase, or leave too large a gap.
    """
    if count == 0:
        raise RecordError("the record has no times; it must have at least one.")
    if times is None:
        if interval is not None:
            raise RecordError(f"interval = {interval!r} would be ignored: the record has no times.")
        clock = since or Clock("cycle", -1.0, 1.0)
        return np.arange(count), replace(clock, now=clock.now + count * clock.interval)
    kind, numbers = _as_numbers(times)
    if kind == "number" and times.dtype.kind in "iu" and interval is None and (since is None or since.kind == "cycle"):
        kind = "cycle"
    _refuse_unordered(numbers, times, "", "")
    length = _interval(kind, numbers, times, step_size, interval, since)
    start = numbers[0].item() - length if since is None else since.now
    exact = (numbers - start) / length
    cycles = np.round(exact).astype(np.int64)
    off = np.abs(exact - cycles)
    if off.max() > OFF:
        worst = int(np.argmax(off > OFF))
        raise RecordError(
            f"time[{worst}] = {_shown(times[worst])} lies {off[worst]:.2g} intervals off a cycle; times must be a "
            f"whole number of intervals, here {_length(kind, length)}, apart (another interval may be given)."
        )
    _refuse_unordered(cycles, times, "a cycle ", ", one to a cycle")
    _refuse_gaps(cycles, times, since)
    span = int(cycles[-1] - cycles[0]) + 1
    if interval is None and since is None and span > SPARSEST * count:
        raise RecordError(
            f"only {count} of {span} cycles have a time, if {_length(kind, length)} lies between two; say by interval "
            "(--interval) how far cycles lie apart."
        )
    return cycles - 1, Clock(kind, start + cycles[-1].item() * length, length)


def _refuse_unordered(numbers: np.ndarray, times: np.ndarray, by: str, so: str) -> None:
    """Of times that are these numbers, in units of their own or of cycles."""
    if (np.diff(numbers) <= 0).any():
        worst = int(np.argmax(np.diff(numbers) <= 0)) + 1
        raise RecordError(
            f"time[{worst}] = {_shown(times[worst])} is not {by}after time[{worst - 1}] = {_shown(times[worst - 1])}; "
            f"times must increase{so}."
        )


def _refuse_gaps(cycles: np.ndarray, times: np.ndarray, since: Clock | None) -> None:
    """Of the cycles of times, counted from 1 for the first that may be there."""
    if cycles[0] < 1:
        raise RecordError(
            f"the record begins at {_shown(times[0])}, and the state has seen everything up to "
            f"{_shown(since.times(1)[0] if since else times[0])}; give later observations, or another state."
        )
    gaps = np.diff(cycles, prepend=0)
    if gaps.max() > LONGEST_GAP:
        worst = int(gaps.argmax())
        raise RecordError(
            f"{gaps.max()} cycles lie before time[{worst}] = {_shown(times[worst])}, and at most {LONGEST_GAP} may; "
            "begin anew there, or give another interval."
        )


def _as_numbers(times: np.ndarray) -> tuple[str, np.ndarray]:
    if times.dtype.kind not in "iufmM":
        raise RecordError(f"times of type {times.dtype} must be dates, durations or numbers.")
    if times.dtype.kind in "mM":
        if np.isnat(times).any():
            raise RecordError(f"time[{int(np.isnat(times).argmax())}] is missing; every time must be known.")
        kind, unit = ("date", "datetime64[ns]") if times.dtype.kind == "M" else ("duration", "timedelta64[ns]")
        counted = times.astype(unit)
        if (wrong := counted.astype(times.dtype) != times).any():  # 64 bits of nanoseconds are 584 years
            worst = int(wrong.argmax())
            raise RecordError(
                f"time[{worst}] = {_shown(times[worst])} is not one of the years 1678 to 2261 that nanoseconds can "
                "count; give numbers in place of dates."
            )
        return kind, counted.astype(np.int64)
    if not np.isfinite(times).all():
        raise RecordError(f"time[{int((~np.isfinite(times)).argmax())}] is missing; every time must be known.")
    return "number", times.astype(np.float64)


def _interval(
    kind: str, numbers: np.ndarray, times: np.ndarray, step_size: float, interval: Any, since: Clock | None
) -> float | int:
    if since is not None and since.kind != kind:
        known = "that counts its cycles" if since.kind == "cycle" else f"with times of kind {since.kind!r}"
        instead = "; leave interval out" if since.kind == "cycle" and times.dtype.kind in "iu" else ""
        raise RecordError(f"the record has times of kind {kind!r}, and its state comes from one {known}{instead}.")
    length = _given(kind, interval) if interval is not None else None
    if since is not None:
        if length is not None and abs(length - since.interval) > 1e-6 * since.interval:
            raise RecordError(
                f"interval = {interval!r} is not that of the state, {_length(kind, since.interval)}; leave it out."
            )
        return since.interval
    if length is not None:
        return length
    if kind in ("number", "cycle"):
        return step_size if kind == "number" else 1.0
    differences = np.diff(numbers)
    if not len(differences):
        raise RecordError(
            f"the record has one time only, {_shown(times[0])}; say by interval how far its cycles lie apart."
        )
    smallest = differences.min()
    steps = np.round(differences / smallest)
    if np.abs(differences / smallest - steps).max() > JITTER:
        return int(smallest)
    # Of times that are not exact, the smallest difference is too small.
    passed = numbers[-1] - numbers[0]
    return round(passed.item() / round(passed.item() / float(np.median(differences / steps))))


def _given(kind: str, interval: Any) -> float | int:
    if kind in ("date", "duration") and _has_no_unit(interval):
        raise RecordError(f"interval = {interval!r} has no unit; interval is a duration > 0, such as '6h'.")
    try:
        length = float(interval) if kind == "number" else pd.Timedelta(interval).as_unit("ns").value
    except (ValueError, TypeError, OverflowError):
        length = 0
    if not 0 < length < np.inf:
        allowed = "a number > 0" if kind == "number" else "a duration > 0, such as '6h'"
        raise RecordError(f"interval = {interval!r} is not allowed; interval is {allowed}.")
    return length


def _has_no_unit(interval: Any) -> bool:
    try:
        float(interval)
    except (ValueError, TypeError):
        return False
    return not isinstance(interval, np.timedelta64)


def _length(kind: str, length: float | int) -> str:
    return f"{length:g}" if kind in ("number", "cycle") else str(pd.Timedelta(int(length), "ns"))


def _shown(time: Any) -> str:
    return str(time)[:19] if isinstance(time, np.datetime64) else str(time)

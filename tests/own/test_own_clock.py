"""Times and the cycles that they are."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from assim_lib.own.clock import Clock, cycles_of
from assim_lib.own.conventions import RecordError
from assim_lib.own.record import read_record

DATES = pd.to_datetime(["2026-03-01 00", "2026-03-01 06", "2026-03-02 00"]).to_numpy()


def cycles(times, **options):
    times = None if times is None else np.asarray(times)
    return cycles_of(times, 3 if times is None else len(times), 0.1, **options)


@pytest.mark.parametrize(
    ("times", "options", "expected", "interval"),
    [
        (None, {}, [0, 1, 2], 1.0),
        ([0.1, 0.2, 0.5], {}, [0, 1, 4], 0.1),
        (np.float32([0.1, 0.2, 0.5]) + np.float32(100), {}, [0, 1, 4], 0.1),
        ([7, 8, 11], {}, [0, 1, 4], 1.0),
        ([0, 6, 24], {"interval": 6}, [0, 1, 4], 6.0),
        ([0.0, 6.0, 24.0], {"interval": "6"}, [0, 1, 4], 6.0),
        (DATES, {}, [0, 1, 4], 6 * 3600e9),
        (DATES, {"interval": "3h"}, [0, 2, 8], 3 * 3600e9),
        (DATES - DATES[0], {"interval": np.timedelta64(6, "h")}, [0, 1, 4], 6 * 3600e9),
        (DATES[:1], {"interval": "6h"}, [0], 6 * 3600e9),
    ],
    ids=str,
)
def test_gaps_are_cycles_without_observations(times, options, expected, interval):
    found, clock = cycles(times, **options)
    np.testing.assert_array_equal(found, expected)
    assert clock.interval == interval
    back = clock.times(expected[-1] + 1)
    if times is not None:
        if np.asarray(times).dtype.kind == "f":
            np.testing.assert_allclose(back[expected], times, rtol=1e-6)
        else:
            np.testing.assert_array_equal(back[expected], times)


def test_times_may_be_a_little_off():
    """The smallest difference of two is then no interval."""
    exact = pd.date_range("2026-03-01", periods=2001, freq="6h").to_numpy()
    off = np.random.RandomState(0).randint(-60, 61, len(exact)).astype("timedelta64[s]")
    found, clock = cycles(np.delete(exact + off, [7, 8]))
    np.testing.assert_array_equal(found, np.delete(np.arange(2001), [7, 8]))
    assert abs(clock.interval / 6 / 3600e9 - 1) < 1e-4


@pytest.mark.parametrize(
    "times", [None, [0.1, 0.2, 0.5, 0.6], [7, 8, 11, 12], pd.date_range("2026", periods=4)], ids=str
)
def test_a_later_part_goes_on_where_the_state_is(times):
    part = (lambda first, last: None) if times is None else (lambda first, last: times[first:last])
    whole, end = cycles(times) if times is not None else cycles_of(None, 4, 0.1)
    first, clock = cycles_of(None if times is None else np.asarray(part(0, 2)), 2, 0.1)
    second, last = cycles_of(None if times is None else np.asarray(part(2, 4)), 2, 0.1, since=clock)
    np.testing.assert_array_equal([*first, *(len(range(first[-1] + 1)) + second)], whole)
    assert last.now == pytest.approx(end.now)
    assert (last.kind, last.interval) == (end.kind, end.interval)


@pytest.mark.parametrize(
    ("times", "options", "sentence"),
    [
        ([0.1, 0.17, 0.3], {}, r"time\[1\] = 0.17 lies 0.3 intervals off a cycle; .* here 0.1, apart"),
        ([0.1, 0.3, 0.2], {}, r"time\[2\] = 0.2 is not after time\[1\] = 0.3; times must increase"),
        ([0.1, 0.1, 0.2], {}, r"time\[1\] = 0.1 is not after time\[0\] = 0.1"),
        ([0.1, np.nan, 0.2], {}, r"time\[1\] is missing"),
        ([0.1, np.inf, 0.2], {}, r"time\[1\] is missing"),
        (np.array(["2026-01-01", "NaT"], "datetime64[ns]"), {}, r"time\[1\] is missing"),
        (["a", "b"], {}, "times of type <U1 must be dates, durations or numbers"),
        (DATES, {"interval": "soon"}, "interval = 'soon' is not allowed; interval is a duration > 0, such as '6h'"),
        (DATES, {"interval": "-6h"}, "interval = '-6h' is not allowed"),
        (DATES, {"interval": "6"}, "interval = '6' has no unit; interval is a duration > 0, such as '6h'"),
        (DATES, {"interval": 6}, "interval = 6 has no unit"),
        (DATES[[0, 2, 1]] + np.timedelta64(7, "m"), {}, r"time\[2\] = 2026-03-01T06:07:00 is not after time\[1\]"),
        ([0.1, 0.2, 9.1], {}, r"only 3 of 91 cycles have a time, if 0.1 lies between two; say by interval"),
        ([0.1, 0.2], {"interval": 0}, "interval = 0 is not allowed; interval is a number > 0"),
        (
            DATES,
            {"interval": "5h"},
            r"time\[1\] = 2026-03-01T06:00:00 lies 0.2 intervals off a cycle; .* 0 days 05:00:00",
        ),
        (DATES[:1], {}, "the record has one time only, 2026-03-01T00:00:00; say by interval"),
        (DATES[[0, 0]], {}, r"time\[1\] = 2026-03-01T00:00:00 is not after time\[0\]"),
        (None, {"interval": 2}, "interval = 2 would be ignored: the record has no times"),
        ([0.0, 1e9], {}, r"\d+ cycles lie before time\[1\] = 1000000000.0, and at most 100000 may"),
        (
            [0.1],
            {"since": Clock("number", 0.1, 0.1)},
            "the record begins at 0.1, and the state has seen everything up to 0.1",
        ),
        (
            DATES,
            {"since": Clock("number", 0.1, 0.1)},
            "the record has times of kind 'date', and its state comes from one",
        ),
        (
            [8, 9],
            {"since": Clock("cycle", 7.0, 1.0), "interval": 1},
            "the record has times of kind 'number', and its state comes from one that counts its cycles; leave inter",
        ),
        ([0.2], {"since": Clock("number", 0.1, 0.1), "interval": 0.2}, "interval = 0.2 is not that of the state, 0.1"),
    ],
    ids=str,
)
def test_times_that_are_no_cycles_are_refused(times, options, sentence):
    with pytest.raises(RecordError, match=f"^{sentence}") as caught:
        cycles(times, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "times",
    [
        np.delete(np.arange(30) * 0.1, [7, 8]),
        np.float32([0.1, 0.2, 0.3, 0.7]) + np.float32(100),
        np.datetime64("2026-03-01", "ns") + np.array([0, 3_600_100, 7_199_900, 18_000_000]) * np.timedelta64(1, "ms"),
        np.array([3, 4, 9]),
    ],
    ids=["numbers", "single precision", "jitter", "cycles"],
)
def test_times_that_were_brought_stay_what_they_are(times):
    """An analysis minus its observations is of all cycles; a gap has times of its own."""
    values = xr.DataArray(np.zeros((len(times), 40)), dims=("time", "site"), coords={"time": times})
    record = read_record(values, (1, 40), 0.1)
    assert np.isin(values.time.to_numpy(), record.times).all()
    assert len(np.unique(record.times)) == record.cycles
    assert (np.diff(record.times) > np.zeros(1, np.diff(record.times).dtype)).all()


@pytest.mark.parametrize("years", ["1000-01-01", "2400-01-01"])
def test_dates_that_nanoseconds_cannot_count_are_refused(years):
    times = np.datetime64(years, "s") + np.arange(3) * np.timedelta64(6, "h")
    with pytest.raises(RecordError, match=r"^time\[0\] = .* is not one of the years 1678 to 2261"):
        cycles(times)

"""What a reader brings: files and arrays, read as they are meant or refused in one sentence."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from assim_lib.own.conventions import RecordError
from assim_lib.own.record import read_record

SITES, STEP = 4, 0.5
VALUES = np.arange(12.0).reshape(3, SITES)
DATES = pd.date_range("2026-03-01", periods=3, freq="6h")


def read(observations, shape=(1, SITES), **options):
    return read_record(observations, shape, STEP, **options)


def dataset(**more):
    return xr.Dataset({"observations": (("time", "site"), VALUES), **more}, {"time": DATES})


@pytest.mark.parametrize(
    "observations",
    [
        VALUES,
        VALUES.astype(int),
        VALUES.astype(np.float16),
        VALUES.tolist(),
        torch.from_numpy(VALUES),
        VALUES[:, None],
        pd.DataFrame(VALUES),
        xr.DataArray(VALUES, dims=("time", "site")),
        xr.DataArray(VALUES.T, dims=("site", "time")),
        xr.DataArray(VALUES, dims=("t", "lon")),
        xr.DataArray(VALUES, dims=("when", "where")),
        xr.DataArray(VALUES[:, None], dims=("time", "component", "site")),
        xr.DataArray(VALUES[:, [2, 0, 1, 3]], dims=("time", "site"), coords={"site": [2, 0, 1, 3]}),
        dataset(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_in_memory(observations):
    record = read(observations)
    assert record.values.dtype == np.float32
    np.testing.assert_array_equal(record.values, VALUES[:, None])
    assert len(record.checksum) == 64


@pytest.mark.parametrize("ending", ["nc", "zarr", "csv", "rows.csv"])
def test_files(tmp_path, ending):
    holed = dataset().where(dataset().observations != 5)
    path = tmp_path / f"observations.{ending}"
    if ending == "nc":
        holed.to_netcdf(path, encoding={"observations": {"_FillValue": -9999.0, "dtype": "int16", "scale_factor": 0.5}})
    elif ending == "zarr":
        holed.to_zarr(path, zarr_format=2)
    elif ending == "csv":
        holed.observations.to_pandas().to_csv(path)
    else:
        rows = (
            holed.observations.to_dataframe("value").reset_index().assign(site=lambda table: np.tile(range(SITES), 3))
        )
        rows.sample(frac=1, random_state=0).dropna().to_csv(path, index=False)
    record = read(path)
    expected = np.where(VALUES == 5, np.nan, VALUES)[:, None]
    np.testing.assert_array_equal(record.values, expected)
    np.testing.assert_array_equal(record.times, DATES.to_numpy("datetime64[ns]"))
    assert record.label == path.name
    np.testing.assert_array_equal(read(str(path)).values, expected)


def test_what_is_no_number_was_not_received(tmp_path):
    values = VALUES.copy()
    values[0] = [np.inf, -np.inf, np.nan, 9.96921e36]  # the last is netCDF's own fill value
    values[1, 0], values[1, 1] = -9999, 1e38
    array = xr.DataArray(values, dims=("time", "site"), attrs={"valid_range": [-1e5, 1e40]})
    record = read(array, fill_value=-9999)
    assert np.isnan(record.values[0]).all()
    assert np.isnan(record.values[1, 0, :2]).all()
    assert np.isfinite(record.values[1, 0, 2:]).all()
    array.attrs = {"valid_min": -1.0}
    assert np.isnan(read(array).values[1, 0, 0])


@pytest.mark.parametrize("places", [[3, 0], [3.0, 0.0]])
def test_stations_are_where_their_coordinate_says(places):
    record = read(xr.DataArray(VALUES[:, :2], dims=("time", "site"), coords={"site": places}))
    np.testing.assert_array_equal(record.values[:, 0, [3, 0]], VALUES[:, :2])
    assert np.isnan(record.values[:, 0, [1, 2]]).all()


def test_stations_counted_from_one(tmp_path):
    """All of them are where they are; of some it is not known, and 0 decides."""
    table = pd.DataFrame(VALUES, columns=[2, 1, 3, 4])
    np.testing.assert_array_equal(read(table).values[:, 0, [1, 0, 2, 3]], VALUES)
    for wrong in ([0, 0, 1, 2], [9, 4, 5, 7], [27.0, 18.0, 9.0, 0.5]):
        with pytest.raises(RecordError, match=r"^sites are called .*; numbers that name their places are different"):
            read(xr.DataArray(VALUES, dims=("time", "site"), coords={"site": wrong}))
    ordered = read(xr.DataArray(VALUES, dims=("time", "site"), coords={"site": [5, 6, 7, 8]}))
    np.testing.assert_array_equal(ordered.values[:, 0], VALUES)
    with pytest.raises(RecordError, match=r"^sites are numbered 2, 1, 3 without 0, and are 3 of 4: .* name site 0 too"):
        read(table.drop(columns=4))
    known = read(table.drop(columns=4).assign(**{"0": np.nan})).values[:, 0]
    np.testing.assert_array_equal(known[:, [2, 1, 3]], VALUES[:, :3])


def long(names):
    return pd.DataFrame({"time": np.repeat(range(3), SITES), "site": names * 3, "value": VALUES.ravel(), "error": 1.0})


def test_stations_with_names_are_in_the_order_of_the_rows():
    names = ["s0", "s1", "s10", "s2"][::-1]
    with pytest.warns(UserWarning, match=r"^sites are taken in the order of the rows: s2, s10, s1, s0\.$"):
        np.testing.assert_array_equal(read(long(names)).values[:, 0], VALUES)
    with pytest.raises(RecordError, match=r"^its sites s10, s1, s0, s2 have no order: number them from 0, or let"):
        read(long(names)[1:])


def test_some_rows_of_a_table():
    """Their numbers are times, where no column holds any."""
    table = pd.DataFrame(VALUES)[[True, False, True]]
    np.testing.assert_array_equal(read(table).values[[0, 2], 0], VALUES[::2])
    np.testing.assert_array_equal(read(table.assign(time=[1, 2])).values[:, 0], VALUES[::2])
    rows = long(list(range(SITES))).rename(columns={"site": "Station", "value": "Value"})
    np.testing.assert_array_equal(read(rows[SITES:]).values[:, 0], VALUES[1:])


def test_what_pandas_knows_to_be_missing_was_not_received():
    table = pd.DataFrame(VALUES).convert_dtypes()
    table.iloc[1, 2] = pd.NA
    np.testing.assert_array_equal(np.argwhere(np.isnan(read(table).values)), [[1, 0, 2]])


def test_what_numpy_masks_was_not_received():
    mask = VALUES == 5
    record = read(np.ma.array(VALUES, mask=mask), error=np.ma.array(np.ones((3, SITES)), mask=mask))
    np.testing.assert_array_equal(np.isnan(record.values[:, 0]), mask)


def test_labels_of_an_error_are_those_of_the_observations():
    record = dataset(site=("site", [2, 0, 1, 3]))
    assert (read(record, error=[2.0, 1.0, 1.0, 1.0]).error[0, 0] == [1, 1, 2, 1]).all()
    by_time = xr.DataArray([3.0, 2.0, 1.0], dims="time", coords={"time": DATES[::-1]})
    np.testing.assert_array_equal(read(record, error=by_time).error[:, 0, 0], [1, 2, 3])
    with pytest.raises(RecordError, match=r"^error is labelled by time = .* such as 2026-03-01 12:00:00\.$"):
        read(record, error=by_time[1:])
    dims = {"time": "t", "site": "station_id"}
    own = dataset().rename(dims).assign(sigma=("station_id", [1.0, 2.0, 3.0, 4.0]))
    assert (read(own, error="sigma").error[0, 0] == [1, 2, 3, 4]).all()


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("time,0,1,2,3\n2026-03-01T00:00Z,0,1,2,3\n2026-03-01T08:00+02:00,4,-,6,7\n", True),
        ("time;0;1;2;3\n2026-03-01;0,0;1,0;2,0;3,0\n2026-03-01T06:00;4,0;-;6,0;7,0\n", True),
        ("# of whom\n# of what\ntime\t0\t1\t2\t3\n2026-03-01\t0\t1\t2\t3\n2026-03-01T06:00\t4\t-\t6\t7\n", True),
        ("time;0;1;2;3\n2026-03-01;0;1;2;3\n2026-03-01T06:00;4,0;-;6,0;7,0\n", True),
        (",time,0,1,2,3\n0,2026-03-01,0,1,2,3\n1,2026-03-01T06:00,4,-,6,7\n", True),
        (",0,1,2,3\n2026-03-01 00:00,0,1,2,3\n2026-03-01 06:00,4,-,6,7\n", True),
        (",0,1,2,3\n0,0,1,2,3\n1,4,,6,7\n", False),
        ("date,0,1,2,3\n20260228,0,1,2,3\n20260301,4,,6,7\n", False),  # a cycle later
    ],
)
def test_tables_as_programs_write_them(tmp_path, text, dates):
    (tmp_path / "a.csv").write_text(text)
    record = read(tmp_path / "a.csv")
    np.testing.assert_array_equal(record.values[:, 0], np.where(VALUES == 5, np.nan, VALUES)[:2])
    if dates:
        np.testing.assert_array_equal(record.times, DATES[:2].to_numpy("datetime64[ns]"))


def test_durations_are_no_plain_numbers(tmp_path):
    record = dataset().assign_coords(time=("time", [6.0, 12.0, 24.0], {"units": "hours"}))
    record.to_netcdf(tmp_path / "a.nc")
    made = read(tmp_path / "a.nc", interval="6h")
    np.testing.assert_array_equal(np.isnan(made.values[:, 0, 0]), [False, False, True, False])
    assert made.times.dtype.kind == "m"


def test_several_numbers_of_one_place_are_the_one_that_says_the_same(tmp_path):
    rows = pd.DataFrame({"time": 0, "site": [0, 0, 2], "value": [1.0, 4.0, 7.0], "error": [1.0, 2.0, 3.0]})
    record = read(rows)
    np.testing.assert_allclose(record.values[0, 0], [8 / 5, np.nan, 7.0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(record.error[0, 0, [0, 2]], [0.8**0.5, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (0.5, 0.5),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]),
        (np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2.0, 3.0])[:, None, None]),
        (1 + VALUES, 1 + VALUES[:, None]),
        (torch.tensor(2.0), 2.0),
        (xr.DataArray([1.0, 2.0, 3.0], dims="time"), np.array([1.0, 2.0, 3.0])[:, None, None]),
        (xr.DataArray([4.0, 3.0, 2.0, 1.0], dims="site", coords={"site": [3, 2, 1, 0]}), [1.0, 2.0, 3.0, 4.0]),
        ("sigma", [1.0, 1.0, 2.0, 2.0]),
        (None, 7.0),
    ],
    ids=str,
)
def test_an_error_of_any_shape_that_broadcasts(error, expected):
    sigma = ("site", [1.0, 1.0, 2.0, 2.0])
    record = read(dataset(sigma=sigma, error=((), 7.0)), error=error)
    np.testing.assert_array_equal(
        np.broadcast_to(record.error, (3, 1, SITES)), np.broadcast_to(expected, (3, 1, SITES))
    )


@pytest.mark.parametrize("none", [0.0, -9.0, np.inf])
def test_an_error_of_what_was_not_received_is_none(none):
    values, error = np.array(VALUES), np.ones_like(VALUES)
    values[1, 2], error[1, 2] = -99.0, none
    record = read(values, error=error, fill_value=np.float32(-99))
    assert np.isnan(record.values[1, 0, 2])
    assert np.isnan(record.error[1, 0, 2])
    assert np.isfinite(record.error).sum() == record.error.size - 1


def rows(**columns):
    return pd.DataFrame({"time": 0, "site": [0, 1], "value": 1.0, "error": 1.0} | columns)


@pytest.mark.parametrize(
    ("observations", "options", "sentence"),
    [
        (VALUES[:, :3], {}, r"observations of shape \(3, 3\), dimensions .* must be \(time, site\) or .* 4 sites; "),
        (VALUES[:, :1], {}, r"observations of shape \(3, 1\)"),
        (VALUES[0], {}, r"observations of shape \(4,\) and type float64 must be \(time, site\)"),
        (VALUES[None, None], {}, r"observations of shape \(1, 1, 3, 4\)"),
        (VALUES[:0], {}, "the record has no times"),
        (VALUES > 3, {}, "observations is of type bool; it must hold real numbers"),
        (VALUES + 1j, {}, "observations is of type complex128"),
        (VALUES.astype(str), {}, "observations is of type <U32"),
        ([[1.0], [1.0, 2.0]], {}, "observations have rows of several lengths"),
        (xr.Dataset(), {}, "observations holds no variable with at least two dimensions"),
        (dataset(), {"variable": "wind"}, "variable = 'wind' is not in observations; it has observations"),
        (dataset(), {"error": "sigma"}, "error = 'sigma' is not in observations; it has observations"),
        *(
            (xr.DataArray(VALUES, dims=("time", "site"), attrs={"valid_range": given}), {}, sentence)
            for given, sentence in {
                "-100 100": "observations: valid_range = '-100 100' of variable 'observations' must be two numbers",
                (1.0, 2.0, 3.0): r"observations: valid_range = \(1.0, 2.0, 3.0\) of variable",
            }.items()
        ),
        (pd.DataFrame({"time": ["01.02.2026"], "a": 1.0}), {}, "column 'time' .* '01.02.2026'; dates are year first"),
        (pd.DataFrame({"when": ["2026-01-01"], "a": 1.0}), {}, "column 'when' .* times a column called time, cycle,"),
        (pd.DataFrame(VALUES).assign(hours=1), {}, r"observations of shape \(3, 5\).* Times are called time, cycle,"),
        (VALUES, {"error": -1}, r"error = -1 at \(time, channel, site\) = \(0, 0, 0\) must be a finite number > 0"),
        (VALUES, {"fill_value": "none"}, "fill_value = 'none' of type str must be a number"),
        (VALUES, {"fill_value": True}, "fill_value = True of type bool must be a number"),
        (VALUES, {"error": np.nan}, "error = nan at"),
        (VALUES, {"error": [1.0, 2.0]}, r"error of shape \(2,\) must broadcast to .* = \(3, 1, 4\)"),
        (VALUES, {"error": True}, "error = True must be a number"),
        (VALUES, {"error": [[1.0, 2.0], [3.0]]}, r"error = \[\[1.0, 2.0\], \[3.0\]\] must be a number, an array"),
        (VALUES, {"error": xr.DataArray([1.0], dims="height")}, r"error of dimensions \('height',\) must have some of"),
        (VALUES, {"error": xr.DataArray([1.0], dims="time")}, "error of sizes {'time': 1} must fit"),
        (
            pd.DataFrame({"time": ["soon"], "a": 1.0}),
            {},
            "column 'time' holds times that cannot be read, such as 'soon'",
        ),
        (pd.DataFrame([[0.5, 1.5]], columns=["0.25", "-1.5"]), {}, "its first row holds numbers, such as 0.25;"),
        (pd.DataFrame({"time;s0;s1": ["0;1;2"]}), {}, "its columns are separated by ';'"),
        (pd.DataFrame({"time": [0], "a": "x"}), {}, "column 'a' is of type "),
        (pd.DataFrame({"site": [0], "value": 1.0}), {}, "a table with a row a number needs the columns time, site"),
        (pd.DataFrame({"time": 0, "site": [1, 1], "value": 1.0}), {}, "the table has several numbers of one place"),
        (rows(value="x"), {}, "column 'value' is of type "),
        (rows(error="x"), {}, "column 'error' is of type "),
        *(
            (
                rows(error=[1.0, wrong]),
                {},
                rf"error = {wrong:g} in row 1 \(counted from 0\) must be a finite number > 0 ",
            )
            for wrong in (0.0, -1.0, np.inf, np.nan)
        ),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_one_sentence(observations, options, sentence, unchecked_shapes):
    with pytest.raises(RecordError, match=f"^{sentence}") as caught:
        read(observations, **options)
    assert caught.value._render_traceback_() == [f"RecordError: {caught.value}"]
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "nothing.nc")
    whole = dataset().to_netcdf()
    dated = dataset().assign_coords(time=("time", [0.0, 1.0, 2.0], {"units": "hours since yesterday"})).to_netcdf()
    for name, content, sentence in [
        ("a.nc", b"garbage", "a.nc: it is no netCDF file, whatever its name says."),
        ("b.nc", b"", "b.nc: it is empty."),
        ("c.nc", bytes(whole)[:2000], "c.nc cannot be read: it is damaged, or not written to its end."),
        ("d.nc", dated, "d.nc: time has units 'hours since yesterday' of calendar 'standard', which are no dates"),
        ("a.csv", b"\x00\x01garbage", "a.csv: column "),
        ("b.csv", b"\xff\xfe\x00", "b.csv: it is no table"),
        ("c.csv", b"\n", "c.csv: it is no table"),
        ("a.npy", b"", "a.npy ends in '.npy'; observations are netCDF"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordError, match=f"^{sentence}") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "e.nc").mkdir()
    with pytest.raises(RecordError, match=r"^e.nc: it is a folder, and must be a file\.$"):
        read(tmp_path / "e.nc")
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(RecordError, match=r"^a.zarr cannot be read"):
        read(tmp_path / "a.zarr")


def test_a_csv_without_names_of_columns_loses_no_row(tmp_path):
    np.savetxt(tmp_path / "a.csv", np.full((5, 3), 1.25), delimiter=",")  # equal numbers, which pandas tells apart
    with pytest.raises(RecordError, match=r"^a.csv: its first row holds numbers"):
        read(tmp_path / "a.csv")


def test_zarr_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("assim_lib.own.files.find_spec", lambda _: None)
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(RecordError, match=r"^a.zarr: it needs the package zarr, which is not installed"):
        read(tmp_path / "a.zarr")


def test_two_channels_need_their_dimension():
    record = read(np.stack([VALUES, -VALUES], 1), (2, SITES))
    assert record.values.shape == (3, 2, SITES)
    with pytest.raises(RecordError, match=r"must be \(time, site\) or \(time, channel, site\) with 2 channel"):
        read(VALUES, (2, SITES))

"""A table as a record: a column a site, or a row a number with its time, site and value."""

import re
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr

from assim_lib.own.conventions import DIMENSIONS, ERROR, RecordError, said

TIMES = ", ".join(DIMENSIONS["time"])
ROW_NUMBERS = "Unnamed: 0"  # what pandas calls the first column of a table that it wrote with its index


def read_table(path: Path) -> xr.Dataset:
    """A CSV file as a record. Columns end with a comma, a tab, or a semicolon, where commas are decimal; ``-`` is none.

    Lines before the first row that begin with ``#`` are comments.

    Raises:
        RecordError: if it is none.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            comments, names = 0, file.readline()
            while names.startswith("#"):
                comments, names = comments + 1, file.readline()
            separator = next((mark for mark in ";\t" if mark in names), ",")
            # Any row may be the first with a fraction.
            decimal = "," if separator != "," and any(re.search(r"\d,\d", row) for row in file) else "."
        table = pd.read_csv(path, sep=separator, decimal=decimal, na_values=["-"], skiprows=comments)
    except pd.errors.ParserError:
        raise RecordError("its rows have more columns than the first, which names them.") from None
    except ValueError:  # no text, or nothing but empty lines
        raise RecordError("it is no table: its first row must name the columns, time and sites.") from None
    return of_table(table)


def of_table(table: Any) -> xr.Dataset:
    """A table in memory as a record: a column a site, or a row a number with its time, site and value."""
    table = _with_index(table).rename(columns=lambda name: str(name).strip())
    if len(table.columns) == 1 and ";" in table.columns[0]:
        raise RecordError("its columns are separated by ';'; separate them by commas.")
    stated = [name for name in table.columns if not name.isdecimal() and not name.startswith("Unnamed: ")]
    if stated and all(map(_is_number, stated)):
        raise RecordError(
            f"its first row holds numbers, such as {stated[0]}; it must name the columns: time, and sites."
        )
    table = _without_row_numbers(table)
    names = [name for name in table.columns if name.lower() in DIMENSIONS["time"]]
    time = names[0] if names else None
    if time is not None:
        table[time] = _times(table[time])
    called = {name: name.lower() for name in table.columns if name.lower() in ("value", ERROR, "channel")}
    called |= {name: "site" for name in table.columns if name.lower() in DIMENSIONS["site"]}
    if {"site", "value"} <= set(called.values()):
        if time is None:
            raise RecordError(
                "a table with a row a number needs the columns time, site and value, and has no time; it may be "
                f"called {TIMES}."
            )
        return _of_rows(table.rename(columns={**called, time: "time"}))
    sites = table.drop(columns=[time] if time else [])
    for name, column in sites.items():
        if column.dtype.kind not in "iuf":
            raise RecordError(
                f"column {name!r} is of type {column.dtype}; it must hold real numbers"
                + (f", and times a column called {TIMES}." if time is None else ".")
            )
    coordinates: dict[str, Any] = {"time": table[time].to_numpy()} if time else {}
    if all(name.isdecimal() for name in sites.columns):
        coordinates["site"] = sites.columns.astype(int)
    numbers = sites.to_numpy()
    if numbers.dtype == object:  # columns that know of missing values
        numbers = sites.to_numpy(np.float64, na_value=np.nan)
    return xr.Dataset({"observations": (("time", "site"), numbers)}, coordinates)


def _with_index(table: Any) -> Any:
    """With its index as a column: that of times, where it has no name and no other column holds them."""
    index = table.index
    if isinstance(index, pd.RangeIndex) and (index.start, index.step) == (0, 1):
        return table
    if index.nlevels > 1 or index.name is not None:
        return table.reset_index()
    timed = any(str(name).strip().lower() in DIMENSIONS["time"] for name in table.columns)
    return table.reset_index(drop=True) if timed else table.reset_index(names="time")


def _is_number(name: str) -> bool:
    try:
        float(re.sub(r"(?<=\d)\.\d+$", "", name))  # pandas tells equal names apart by a suffix
    except ValueError:
        return False
    return True


def _without_row_numbers(table: Any) -> Any:
    """Without pandas' index, where it only counts the rows; else the first column without a name holds times."""
    if table.columns[:1].tolist() != [ROW_NUMBERS]:
        return table
    counted = np.array_equal(table[ROW_NUMBERS], np.arange(len(table)))
    named = any(name.lower() in DIMENSIONS["time"] for name in table.columns)
    return table.drop(columns=ROW_NUMBERS) if counted or named else table.rename(columns={ROW_NUMBERS: "time"})


def _times(column: Any) -> Any:
    """Numbers as they are; dates by ISO 8601, of which month and day are sure, in UTC where they have a zone."""
    if column.dtype.kind == "i" and column.between(19_000_101, 21_001_231).all():  # such as 20260201
        column = column.astype(str)
    if column.dtype.kind in "iufm":
        return column
    try:
        dates = pd.to_datetime(column, format=None if column.dtype.kind == "M" else "ISO8601", utc=True)
    except (ValueError, TypeError):
        shown = column[pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce").isna()].iloc[0]
        raise RecordError(
            f"column {column.name!r} holds times that cannot be read, such as {shown!r}; dates are year first, such as "
            "2026-02-01 or 2026-02-01T06:00Z."
        ) from None
    return dates.dt.tz_localize(None)


def _of_rows(table: Any) -> xr.Dataset:
    """Several numbers of one place and time become the one that says the same: their mean, weighted by precision."""
    keys = ["time", *(["channel"] if "channel" in table else []), "site"]
    for name in ("value", ERROR):
        if name in table and table[name].dtype.kind not in "iuf":
            raise RecordError(f"column {name!r} is of type {table[name].dtype}; it must hold real numbers.")
    for name in keys:
        if table[name].isna().any():
            raise RecordError(f"column {name!r} is empty in row {int(table[name].isna().to_numpy().argmax())}.")
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
    order = _order(table) if table["site"].dtype.kind not in "iuf" else sorted(table["site"].unique())
    summed = cast(Any, table.groupby(keys, sort=True)[["weight", "weighted"]].sum()).to_xarray().sel(site=order)
    dataset = xr.Dataset({"observations": summed["weighted"] / summed["weight"]})
    return dataset.assign({ERROR: summed["weight"] ** -0.5}) if ERROR in table else dataset


def _order(table: Any) -> list[Any]:
    """Sites that have names in place of numbers, as the rows of one time list them: all of it, or it is not sure."""
    order = table["site"].unique().tolist()
    if table.loc[table["time"] == table["time"].iloc[0], "site"].unique().tolist() != order:
        raise RecordError(
            f"its sites {said(order)} have no order: number them from 0, or let the rows of the first time name all of "
            "them, with an empty value where there is none."
        )
    warnings.warn(f"sites are taken in the order of the rows: {said(order)}.", stacklevel=2)
    return order

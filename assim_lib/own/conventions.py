"""What files, variables and dimensions of a record are called, and how it is refused."""

from collections.abc import Sequence

from assim_lib.mistakes import Mistake

NETCDF = (".nc", ".nc4", ".cdf", ".netcdf", ".h5")
ERROR = "error"  # the variable that holds the errors' standard deviation
# What a dimension may be called; one of another name is known by its place among the others.
DIMENSIONS = {
    "time": ("time", "cycle", "date", "datetime", "t"),
    "channel": ("channel", "component"),
    "site": ("site", "station", "location", "x", "lon", "longitude"),
}


class RecordError(Mistake):
    """Observations that cannot be used; its message is one sentence naming them, what came and what is allowed."""


def said(names: Sequence[object]) -> str:
    """The first few of many names."""
    return ", ".join(map(str, names[:5])) + (", …" if len(names) > 5 else "")

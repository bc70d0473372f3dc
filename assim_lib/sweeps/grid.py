"""A grid of parameters, as a file states it, and its points.

.. code-block:: yaml

    constants: {preset: quick}                   # at every point
    grid:
      m: [5, 10, 20]                             # a list,
      noise: {start: 0.5, stop: 1.5, step: 0.5}  # a range that holds both ends,
      lr: {start: 0.001, stop: 0.003, num: 5}    # or so many values from end to end
    seeds: 3                                     # 0, 1, 2; or a list
    experiments:                                 # each with constants of its own
      learned: {analysis: gated}
      kalman: {analysis: hybrid, lag: 3}
"""

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from assim_lib.stored import Stored
from assim_lib.training.experiment import ParameterError

MOST_POINTS = 100_000
_OURS = {"metrics": "the sweep names the file", "folder": "its points would share one state"}
COLUMNS = ("seconds", "overhead", "failed", "key")  # what a sweep says of its points, in a table of their coordinates


class Point(NamedTuple):
    """A point of a grid.

    Attributes:
        coordinates: what tells it from the other points, by name: parameters, and ``experiment`` if these are named.
        parameters: all that the notebook is given.
    """

    coordinates: dict[str, Any]
    parameters: dict[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value!r}" for name, value in self.coordinates.items()) or "the only point"


class Grid(Stored):
    """A grid as its file states it; see the module for an example.

    Attributes:
        constants: parameters that all points share.
        grid: parameter → its values: a list, or a range with ``start``, ``stop`` and either ``step`` or ``num``.
        seeds: values of the parameter ``seed``, or how many, from 0 on.
        experiments: name → parameters that its points share.
    """

    constants: dict[str, Any] = {}
    grid: dict[str, list[Any] | dict[str, Any]] = {}
    seeds: int | list[int] = []
    experiments: dict[str, dict[str, Any]] = {}

    @classmethod
    def load(cls, path: Path | str) -> "Grid":
        """The grid in a YAML file.

        Raises:
            ParameterError: if it is none; the sentence names the file and the entry.
            FileNotFoundError: if there is no such file.
        """
        path = Path(path)
        try:
            stated = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not stated:
                raise ParameterError(f"{path.name} is empty; a grid states at least one parameter.")
            return cls(**stated)
        except ValidationError as error:
            first = error.errors()[0]
            entry = ".".join(map(str, first["loc"][:2]))
            raise ParameterError(
                f"{path.name}: {entry} = {first['input']!r} is not allowed; a grid has constants and experiments "
                "(parameter: value), grid (parameter: list or range) and seeds (a number or a list)."
            ) from None
        except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
            where = getattr(error, "problem_mark", None)
            place = f" (line {where.line + 1})" if where else ""
            raise ParameterError(f"{path.name} is no grid{place}; it is a YAML file, see the help.") from None

    def axes(self) -> dict[str, list[Any]]:
        """Every dimension of the grid with its values, in the order of the file; experiments are the first.

        Raises:
            ParameterError: if a parameter is given twice, an axis is empty or repeats a value, or a range is none.
        """
        seeds = list(range(min(self.seeds, MOST_POINTS + 1))) if isinstance(self.seeds, int) else self.seeds
        if isinstance(self.seeds, int) and self.seeds < 1:
            raise ParameterError(f"seeds = {self.seeds} is not allowed; seeds is a list, or how many there are.")
        axes = {name: _values(name, stated) for name, stated in self.grid.items()}
        axes |= {"seed": seeds} if seeds else {}
        if self.experiments:
            axes = {"experiment": list(self.experiments), **axes}
        for name, values in axes.items():
            if not values or len({repr(value) for value in values}) < len(values):
                raise ParameterError(f"{name} = {values!r} is not allowed; an axis has values, each of them once.")
            if name in COLUMNS:
                raise ParameterError(f"{name} cannot be an axis of a sweep: its table has a column of that name.")
        stated = [
            *self.constants,
            *self.grid,
            *(["seed"] if seeds else []),
            *(["experiment"] if self.experiments else []),
        ]
        stated += sorted({name for parameters in self.experiments.values() for name in parameters})
        for name in stated:
            if stated.count(name) > 1:
                raise ParameterError(f"{name} is given in two places of the grid; one must go.")
            if name in _OURS:
                raise ParameterError(f"{name} cannot be set in a sweep: {_OURS[name]}.")
        size = math.prod(map(len, axes.values()))
        if size > MOST_POINTS:
            raise ParameterError(f"the grid has {size:,} points; at most {MOST_POINTS:,} are allowed.")
        return axes

    def points(self) -> Iterator[Point]:
        """All points, the last axis varying fastest."""
        axes = self.axes()
        for values in product(*axes.values()):
            coordinates = dict(zip(axes, values, strict=True))
            parameters = {name: value for name, value in coordinates.items() if name in self.grid or name == "seed"}
            own = self.experiments.get(coordinates["experiment"], {}) if self.experiments else {}
            yield Point(coordinates, {**self.constants, **own, **parameters})


def _values(name: str, stated: list[Any] | dict[str, Any]) -> list[Any]:
    if isinstance(stated, list):
        return stated
    wrong = ParameterError(
        f"{name} = {stated!r} is no range; a range has start, stop, and either step, which leads from one to the "
        "other, or num, a whole number ≥ 2."
    )
    numbers = [value for value in stated.values() if type(value) in (int, float) and math.isfinite(value)]
    if len(numbers) < 3 or stated.keys() not in ({"start", "stop", "step"}, {"start", "stop", "num"}):
        raise wrong
    start, stop = stated["start"], stated["stop"]
    if "num" in stated and not (isinstance(stated["num"], int) and stated["num"] > 1):
        raise wrong
    step = (stop - start) / (stated["num"] - 1) if "num" in stated else stated["step"]
    steps = (stop - start) / step if step else -1
    if steps > MOST_POINTS:
        raise ParameterError(f"{name} has more than {MOST_POINTS:,} values.")
    if steps < 0 or abs(steps - round(steps)) > 1e-6:
        raise wrong
    # Twelve digits: 0.1 + 2 · 0.1 is meant to be 0.3.
    values = [
        float(f"{start + (stop - start) * index / max(round(steps), 1):.12g}") for index in range(round(steps) + 1)
    ]
    whole = all(type(value) is int for value in stated.values()) and all(value.is_integer() for value in values)
    return [round(value) for value in values] if whole else values

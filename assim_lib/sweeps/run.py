"""A sweep: every point of a grid is one run of a notebook, a task of dask.distributed.

A point is known by its validated configuration and the notebook's code. Its worker writes the executed notebook and
then one JSON file with its metrics to the folder of the sweep, so that nothing that is finished depends on whoever
started it: with the same folder a sweep goes on where it was, whatever was killed in between.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from assim_lib.sweeps.folder import Folder
from assim_lib.sweeps.grid import Grid, Point
from assim_lib.sweeps.point import run_point
from assim_lib.sweeps.program import Program
from assim_lib.sweeps.table import INDEX, write_tables
from assim_lib.training.experiment import ParameterError
from assim_lib.workers import running


class Outcome(NamedTuple):
    """What a sweep came to: the paths of its tables, and the points that failed: key → why, and where that is shown."""

    tables: list[str]
    failed: dict[str, str]


class Sweep:
    """A notebook, a grid and a folder, found right before anything is computed.

    Args:
        notebook: path of the notebook, see :class:`~assim_lib.sweeps.program.Program`.
        grid: the grid, or the path of its file.
        output: a local folder, or an address that fsspec and all workers know.

    Attributes:
        points: all points, as the index of the folder lists them; two that have the same configuration share a ``key``.

    Raises:
        ParameterError: if a point cannot be run; one sentence with the first, and its parameter.
        OSError: if there is no such notebook, grid, or kind of address.
    """

    def __init__(self, notebook: Path | str, grid: Grid | Path | str, output: str):
        self.grid = grid if isinstance(grid, Grid) else Grid.load(grid)
        self.program, self.folder = Program(notebook), Folder(output)
        self.points: list[dict[str, Any]] = []
        wrong: list[str] = []
        for point in self.grid.points():
            try:
                configuration = self.program.configuration(point.parameters)
            except ParameterError as error:
                wrong.append(f"{point}: {error}")
                continue
            self.points.append({"key": self.program.key(configuration), **point._asdict()})
        if wrong:
            others = f" ({len(wrong) - 1} more points cannot be run.)" if len(wrong) > 1 else ""
            raise ParameterError(f"the point {wrong[0]}{others}")

    def name(self, key: str) -> str:
        """What a point is called in a sentence."""
        point = next(point for point in self.points if point["key"] == key)
        return str(Point(point["coordinates"], point["parameters"]))

    def missing(self) -> dict[str, dict[str, Any]]:
        """Parameters of the points that are not finished, by key."""
        finished = self.folder.stems("points", ".json")
        return {point["key"]: point["parameters"] for point in self.points if point["key"] not in finished}

    def run(
        self,
        scheduler: str | None = None,
        workers: int | None = None,
        timeout: float | None = None,
        retries: int = 1,
        progress: bool = True,
    ) -> Outcome:
        """Run the points that are missing, and write the tables of all that are there.

        Args:
            scheduler: address of a running scheduler; None: processes of one thread on this machine.
            workers: how many of these; None: one a core, as memory allows.
            timeout: seconds after which a point is ended; None: never.
            retries: how many more times a point is tried that fails.

        Returns:
            The paths of the tables, and the points that failed.

        Raises:
            OSError: if the folder cannot be written to, or the scheduler cannot be reached or is lost.
        """
        dimensions = list(self.grid.axes())
        self.folder.write_json(INDEX, {"notebook": self.program.path.name, "axes": dimensions, "points": self.points})
        todo = self.missing()
        failed: dict[str, str] = {}
        keys = {point["key"] for point in self.points}
        if todo:
            tasks = {
                key: (self.program.text, key, parameters, self.folder.url, timeout, os.getcwd())
                for key, parameters in todo.items()
            }
            done = len(keys) - len(todo)
            with (
                running(run_point, tasks, scheduler, workers, retries) as ended,
                tqdm(total=len(keys), initial=done, unit="point", disable=not progress) as bar,
            ):
                for key, _, error in ended:
                    if error:
                        failed[key] = self._report(key, f"{error}".splitlines()[0])
                        bar.set_postfix_str(f"{len(failed)} failed")
                    bar.update()
        return Outcome(write_tables(self.folder), failed)

    def _report(self, key: str, error: str) -> str:
        notebook = f"failed/{key}.ipynb"
        shown = self.folder.fs.exists(f"{self.folder.root}/{notebook}")
        sentence = f"{error} ({self.folder.path(notebook) if shown else 'it left no notebook'})"
        self.folder.write_json(f"failed/{key}.json", {"error": error, "notebook": notebook if shown else None})
        return sentence

"""A sweep: every point of a grid is one run of a notebook, a task of dask.distributed.

A point is known by its validated configuration and the notebook's code. Its worker writes the executed notebook and
then one JSON file with its metrics to the folder of the sweep, so that nothing that is finished depends on whoever
started it: with the same folder a sweep goes on where it was, whatever was killed in between.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import dask.config
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, as_completed
from distributed.system import MEMORY_LIMIT
from tqdm import tqdm

from assim_lib.sweeps.folder import Folder
from assim_lib.sweeps.grid import Grid, Point
from assim_lib.sweeps.point import end_kernels, run_point
from assim_lib.sweeps.program import Program
from assim_lib.sweeps.table import INDEX, write_tables
from assim_lib.training.experiment import ParameterError

# One a core, and not more than memory is there for: a kernel with PyTorch and its worker take a gigabyte.
WORKERS = max(1, min(CPU_COUNT, MEMORY_LIMIT // 2**30))

CONNECT = 10  # seconds in which a scheduler answers


class Outcome(NamedTuple):
    """What a sweep came to: the paths of its tables, and the points that failed: key → why, and where that is shown."""

    tables: list[str]
    failed: dict[str, str]


class Sweep:
    """A notebook, a grid and a folder, found right before anything is computed.

    Parameters
    ----------
    notebook : path of the notebook, see :class:`~assim_lib.sweeps.program.Program`.
    grid : the grid, or the path of its file.
    output : a local folder, or an address that fsspec and all workers know.

    Attributes
    ----------
    points : all points, as the index of the folder lists them; two that have the same configuration share a ``key``.

    Raises
    ------
    ParameterError : if a point cannot be run; one sentence with the first, and its parameter.
    OSError : if there is no such notebook, grid, or kind of address.
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

        Parameters
        ----------
        scheduler : address of a running scheduler; None: processes of one thread on this machine.
        workers : how many of these; None: one a core, as memory allows.
        timeout : seconds after which a point is ended; None: never.
        retries : how many more times a point is tried that fails.

        Returns
        -------
        The paths of the tables, and the points that failed.

        Raises
        ------
        OSError : if the folder cannot be written to, or the scheduler cannot be reached or is lost.
        """
        dimensions = list(self.grid.axes())
        self.folder.write_json(INDEX, {"notebook": self.program.path.name, "axes": dimensions, "points": self.points})
        todo = self.missing()
        failed: dict[str, str] = {}
        keys = {point["key"] for point in self.points}
        if todo:
            # As many worker deaths as retries: a point that takes its worker along is a point that fails.
            allowed = dask.config.set({"distributed.scheduler.allowed-failures": retries})
            done = len(keys) - len(todo)
            with (
                allowed,
                _client(scheduler, workers, len(todo)) as client,
                tqdm(total=len(keys), initial=done, unit="point", disable=not progress) as bar,
            ):
                for key, error in _outcomes(client, self.program.text, todo, self.folder.url, timeout, retries):
                    if error:
                        failed[key] = self._report(key, error)
                        bar.set_postfix_str(f"{len(failed)} failed")
                    bar.update()
        return Outcome(write_tables(self.folder), failed)

    def _report(self, key: str, error: str) -> str:
        notebook = f"failed/{key}.ipynb"
        shown = self.folder.fs.exists(f"{self.folder.root}/{notebook}")
        sentence = f"{error} ({self.folder.path(notebook) if shown else 'it left no notebook'})"
        self.folder.write_json(f"failed/{key}.json", {"error": error, "notebook": notebook if shown else None})
        return sentence


@contextmanager
def _client(scheduler: str | None, workers: int | None, tasks: int) -> Iterator[Client]:
    """A client of a scheduler that runs, or of one's own; after an interruption no kernel is left behind."""
    cluster = None
    if scheduler is None:
        cluster = LocalCluster(
            n_workers=min(workers or WORKERS, tasks),
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            preload=[run_point.__module__],
        )
    try:
        try:
            client = Client(cluster or scheduler, timeout=CONNECT)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"scheduler = {scheduler!r} cannot be reached: {error}".splitlines()[0]) from None
        with client:
            try:
                yield client
            except BaseException:
                # A kernel is its worker's child in a session of its own: no signal of a terminal reaches it.
                if cluster:
                    client.run(end_kernels, on_error="ignore")
                raise
    finally:
        if cluster:
            cluster.close()


def _outcomes(
    client: Client, text: str, todo: dict[str, dict[str, Any]], output: str, timeout: float | None, retries: int
) -> Iterator[tuple[str, str]]:
    """Key and error of each point as it ends; the error is empty where there is none."""
    futures = {
        client.submit(
            run_point,
            text,
            key,
            parameters,
            output,
            timeout,
            os.getcwd(),
            key=f"point-{key}",
            retries=retries,
            pure=False,
        ): key
        for key, parameters in todo.items()
    }
    try:
        for future in as_completed(futures):
            if future.status in ("cancelled", "lost"):
                raise ConnectionError("the scheduler is gone; what is finished is kept: run the command again.")
            error = future.exception()
            yield futures[future], "" if error is None else f"{error}".splitlines()[0]
    finally:
        client.cancel(list(futures))

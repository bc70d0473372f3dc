"""Tasks on workers: processes of this machine, or those of any scheduler of dask.distributed.

A task writes what it finds, so that nothing that is finished depends on whoever gave it out. Needs the extra ``sweep``.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import dask.config
import psutil
from dask.system import CPU_COUNT
from distributed import CancelledError, Client, Future, LocalCluster, as_completed
from distributed.system import MEMORY_LIMIT

# One a core, and not more than memory is there for: a process with PyTorch takes a gigabyte.
WORKERS = max(1, min(CPU_COUNT, MEMORY_LIMIT // 2**30))

CONNECT = 10  # seconds in which a scheduler answers


class Ended(NamedTuple):
    """A task that has ended: its name, and what it returned or raised."""

    name: str
    result: Any
    error: BaseException | None


@contextmanager
def running(
    function: Callable[..., Any],
    tasks: Mapping[str, tuple[Any, ...]],
    scheduler: str | None = None,
    workers: int | None = None,
    retries: int = 0,
) -> Iterator[Iterator[Ended]]:
    """Call a function with the arguments of each task; what is given comes one by one, as tasks end.

    Args:
        function: one that workers can import.
        tasks: arguments by name.
        scheduler: address of a running scheduler; None: processes of one thread on this machine.
        workers: how many of these; None: one a core, as memory allows.
        retries: how many more times a task is tried that raises, or whose worker dies.

    Raises:
        ConnectionError: if the scheduler cannot be reached or is lost.
    """
    # As many worker deaths as retries: a task that takes its worker along is a task that fails.
    allowed = dask.config.set({"distributed.scheduler.allowed-failures": retries})
    with allowed, _quiet(), _client(scheduler, min(workers or WORKERS, len(tasks)), function.__module__) as client:
        futures = {
            client.submit(function, *arguments, key=f"{function.__name__}-{name}", retries=retries, pure=False): name
            for name, arguments in tasks.items()
        }
        try:
            yield _ended(futures)
        finally:
            with suppress(OSError):  # of a scheduler that is gone
                client.cancel(list(futures))


def _ended(futures: Mapping[Future, str]) -> Iterator[Ended]:
    for future in as_completed(futures):
        try:
            if future.status == "lost":  # and never to be found
                raise CancelledError
            error = future.exception()
            result = None if error else future.result()
        except (CancelledError, OSError):  # what a task raises is returned above: the scheduler ended in between
            raise ConnectionError("the scheduler is gone; what is finished is kept: run the command again.") from None
        yield Ended(futures[future], result, error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask tells of what it lost in tracebacks; here it is a sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _client(scheduler: str | None, workers: int, module: str) -> Iterator[Client]:
    """A client of a scheduler that runs, or of one's own; after an interruption none of its processes is left behind.

    Args:
        module: imported when a worker starts, and not by its first task.
    """
    cluster = None
    if scheduler is None:
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", preload=[__name__, module]
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
                # A notebook's kernel is its worker's child in a session of its own: no signal of a terminal reaches it.
                if cluster:
                    client.run(_end_children, on_error="ignore")
                raise
    finally:
        if cluster:
            cluster.close()


def dask_setup(_: Any) -> None:
    """Leave Ctrl-C to the command; a worker on the same terminal meets it as well. Called by name when one starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def dask_teardown(_: Any) -> None:
    """Let a worker end in silence: Python may tell of event loops that notebooks left as it exits. Called by name."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _end_children() -> None:
    """End whatever this worker has started."""
    for child in psutil.Process().children(recursive=True):
        child.kill()

"""The command ``sweep``; what it needs is imported when it is run."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assim_lib.commands.arguments import Work, count, positive, positive_seconds


def sweep_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sweep``."""
    parser.description = (
        "Run a notebook at every point of a grid, each once: what is finished in the folder is skipped, what is "
        "missing is run. All points are validated first. The grid is a YAML file with constants (parameter: value), "
        "grid (parameter: list, or {start, stop, step or num}), seeds and experiments (name: constants)."
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--grid", type=Path, required=True, help="YAML file")
    parser.add_argument("--output", help="folder, or an address such as s3://bucket/folder (runs/NAME of the grid)")
    parser.add_argument("--scheduler", help="address of a dask scheduler, tcp://HOST:PORT; without: this machine")
    parser.add_argument("--workers", type=positive, help="processes on this machine (one a core)")
    parser.add_argument("--timeout", type=positive_seconds, help="seconds after which a point is ended")
    parser.add_argument("--retries", type=count, default=1, help="how often a point is tried again that fails")


def sweep(notebook: Path, grid: Path, output: str | None, **options: Any) -> Work:
    """Run a notebook at every point of a grid."""
    try:
        from assim_lib.sweeps.run import Sweep
    except ModuleNotFoundError as error:
        raise LookupError(f"it needs {error.name}, of the extra `sweep`: pip install '.[sweep]'") from None
    planned = Sweep(notebook, grid, output or str(Path("runs") / grid.stem))

    def work() -> Iterator[str]:
        try:
            outcome = planned.run(**options)
        except KeyboardInterrupt:
            missing, every = (len({*keys}) for keys in (planned.missing(), (p["key"] for p in planned.points)))
            raise SystemExit(
                f"assim_lib sweep: interrupted; {every - missing} of {every} points are finished and kept, the same "
                "command goes on."
            ) from None
        yield from outcome.tables
        if outcome.failed:
            said = "\n".join(f"{planned.name(key)}: {why}" for key, why in outcome.failed.items())
            raise SystemExit(f"assim_lib sweep: failed, and tried again by the same command:\n{said}")

    return work

"""The command for observations of one's own."""

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from assim_lib.commands.arguments import Work, count, number_or_name, positive, set_threads, with_plugins, with_reading


def assimilate_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``assimilate``."""
    parser.description = (
        "Observations are netCDF, Zarr or CSV: (time, site) or (time, channel, site), missing ones NaN or fill values; "
        "a variable `error` beside them holds their standard deviations. Times are dates, or multiples of the filter's "
        "interval; a gap is so many cycles without observations."
    )
    parser.add_argument("name", help="of a checkpoint, without the ending")
    parser.add_argument("observations", type=Path, help=".nc, .zarr or .csv")
    parser.add_argument("analysis", type=Path, help="file to write: netCDF, or Zarr where it ends in .zarr")
    parser.add_argument("--state", type=Path, help="file from which a run goes on, and where it is kept at the end")
    parser.add_argument("--members", action="store_true", help="write the members as well")
    parser.add_argument("--any-mask", action="store_true", help="use numbers where the filter expects none as well")
    parser.add_argument(
        "--drop-outliers", action="store_true", help="leave out what is ten deviations off its forecast"
    )
    parser.add_argument("--compiled", action="store_true", help="compile the filter, which pays in long records")
    parser.add_argument(
        "--chunk", type=partial(count, least=1, most=10**6), help="so many cycles are in memory at a time (1000)"
    )
    with_reading(parser)
    parser.add_argument("--checkpoints", type=Path, help="folder of the filter, if not data/checkpoints")
    parser.add_argument("--first-cycle", type=count, help="number of the first cycle in the observation schedule")
    parser.add_argument("--obs_conf", help="where it is observed, if not as in training")
    parser.add_argument(
        "--step_size", type=float, help="observation interval in the system's unit, if not as in training"
    )
    parser.add_argument("--noise", type=float, help="standard deviation of the errors, if not as in training")
    parser.add_argument("--seed", type=count, help="of the cold start")
    parser.add_argument("--threads", type=positive, default=1, help="processor threads")
    with_plugins(parser)


def assimilate(
    name: str, observations: Path, analysis: Path, error: str | None, threads: int, plugins: str, **options: Any
) -> Work:
    """Run a stored filter along observations of one's own."""
    from assim_lib.assimilation import prepare_record
    from assim_lib.registry import import_plugins

    set_threads(threads)
    import_plugins(plugins)
    with said_in_a_line():
        run = prepare_record(name, observations, analysis, error=number_or_name(error), **options)

    def work() -> Iterator[Path]:
        with said_in_a_line():
            made = run(True)
            print("error:", made.analysis.attrs["observation_error"])
            print(made.scores)
        yield analysis

    return work


@contextmanager
def said_in_a_line() -> Iterator[None]:
    """Warnings as sentences, without the place in the code that they come from."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if category is UserWarning:
                tqdm.write(f"assim_lib: {message}", file=sys.stderr)  # above a bar that is under way
            else:
                usual(message, category, *place, **options)

        warnings.showwarning = show
        yield

"""The commands for observations of one's own; what they need is imported when one is run."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assim_lib.training.experiment import Experiment

READING = ("variable", "error", "fill_value", "interval")  # how a record is read


def count(text: str, least: int = 0, most: int = 2**32 - 1) -> int:
    """A whole number within bounds, of an argument."""
    if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} to {most}")
    return int(text)


def positive(text: str) -> int:
    """A number of threads, processes or repetitions, of an argument."""
    return count(text, least=1, most=1024)


def chunk(text: str) -> int:
    """A number of cycles, of an argument."""
    return count(text, least=1, most=10**6)


def train_on(
    record: Path,
    reading: dict[str, Any],
    configured: "Experiment",
    runs: Path,
    curve_points: int,
    again: bool,
    train: Callable[..., Any],
    checkpoints: Path | None,
) -> Callable[[], Iterable[Path]]:
    """Train on a record of one's own; ``train`` is :func:`~assim_lib.training.run.train`, told how."""
    from assim_lib.study.publish import refuse_other_training, refuse_unwritable
    from assim_lib.training.checkpoints import checkpoint_path, read_state
    from assim_lib.training.own_record import on_record, save_on_record

    reading["error"] = _number_or_name(reading["error"])
    with _said_in_a_line():
        configured, data = on_record(configured, record, **reading)
    path = checkpoint_path(configured.name, checkpoints)
    refuse_unwritable(path)
    if not again:
        refuse_other_training(configured, path)
    folder = runs / configured.name
    if (folder / "state.safetensors").exists():
        read_state(folder / "state.safetensors", configured)

    def work() -> Iterator[Path]:
        with _said_in_a_line():
            model, note = train(configured, folder, curve_points, observations=data.record)
        print("held out:", save_on_record(path, configured, model, note, data))
        yield path

    return work


def with_reading(parser: argparse.ArgumentParser) -> None:
    """Options that say how a record is read."""
    parser.add_argument("--variable", help="name of the observations, where the file holds several variables")
    parser.add_argument("--error", help="their standard deviation, a number or the name of a variable")
    parser.add_argument("--fill-value", type=float, help="a number that stands for none")
    parser.add_argument("--interval", help="between two cycles, e.g. 6h: of dates by default the smallest difference")


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
    parser.add_argument("--chunk", type=chunk, help="so many cycles are in memory at a time (1000)")
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
    parser.add_argument("--plugins", default="", help="modules to import first, which register names of your own")


def assimilate(
    name: str, observations: Path, analysis: Path, error: str | None, threads: int, plugins: str, **options: Any
) -> Callable[[], Iterable[Path]]:
    """Run a published filter along observations of one's own."""
    import torch

    from assim_lib.assimilation import prepare_record
    from assim_lib.registry import import_plugins

    torch.set_num_threads(threads)
    import_plugins(plugins)
    with _said_in_a_line():
        run = prepare_record(name, observations, analysis, error=_number_or_name(error), **options)

    def work() -> Iterator[Path]:
        with _said_in_a_line():
            print(run(True).scores)
        yield analysis

    return work


def _number_or_name(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


@contextmanager
def _said_in_a_line() -> Iterator[None]:
    """Warnings as sentences, without the place in the code that they come from."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if warning.category is UserWarning:
            print(f"assim_lib: {warning.message}", file=sys.stderr)

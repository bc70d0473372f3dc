"""The commands that make what is scored: frozen truth, trained filters."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from assim_lib.commands.arguments import (
    READING,
    Work,
    count,
    number_or_name,
    own_option,
    set_threads,
    with_plugins,
    with_reading,
    with_runs,
    writable_folder,
)
from assim_lib.commands.own import said_in_a_line

if TYPE_CHECKING:
    from assim_lib.training.experiment import Experiment


def test_sets_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``test-sets``."""
    with_plugins(parser).add_argument("--system", default="l96")
    parser.add_argument("--step-size", type=float, default=0.1)
    parser.add_argument(
        "--again", action="store_true", help="replace what is frozen: all stored scores refer to the old one"
    )


def test_sets(system: str, step_size: float, again: bool, plugins: str) -> Work:
    """Simulate and freeze the truth that everything is scored on."""
    from assim_lib.registry import import_plugins
    from assim_lib.setting import Setting
    from assim_lib.systems import system_of
    from assim_lib.twin import CYCLES, freeze, is_frozen, trajectory_path

    import_plugins(plugins)
    dynamics = system_of(system)
    dynamics.steps_per_cycle(step_size)
    # Interrupted, it goes on with what is missing.
    frozen = Setting(dynamics.name, step_size=step_size)
    paths = {split: trajectory_path(dynamics.name, step_size, split) for split in CYCLES}
    wanted = [split for split, path in paths.items() if again or not (is_frozen(frozen, split) and path.exists())]
    if not wanted:
        raise FileExistsError(
            f"system = {dynamics.name!r} with step_size = {step_size:g} is frozen already, and all its scores refer to "
            "that truth; replace it with --again."
        )
    return lambda: (freeze(dynamics, step_size, split, again=again) for split in wanted)


def train_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``train``."""
    from assim_lib.training.experiment import Experiment, allowed

    with_runs(parser)
    parser.add_argument("experiment")
    parser.add_argument(
        "--curve-points", type=count, default=40, help="how often to score on validation data on the way"
    )
    parser.add_argument(
        "--again", action="store_true", help="replace a filter of the same name that was trained otherwise"
    )
    parser.add_argument("--compiled", action="store_true", help="compile the filter, which pays in runs of an hour")
    parser.add_argument("--graphed", action="store_true", help="launch an update as one CUDA graph, on a GPU")
    parser.add_argument(
        "--recompute", action="store_true", help="hold one cycle in memory at a time, in up to twice the time"
    )
    with_plugins(parser)
    parser.add_argument("--record", type=Path, help="observations of your own to train on (.nc, .zarr, .csv)")
    with_reading(parser)
    parser.add_argument(
        "--checkpoints", type=writable_folder, help="folder for a filter of your own (data/checkpoints)"
    )
    parser.add_argument(
        "--own", type=own_option, action="append", metavar="NAME=VALUE", help="an option of an analysis of your own"
    )
    for name, field in Experiment.model_fields.items():
        if name in ("experiment", "record", "own"):
            continue
        words = allowed(name).replace("%", "%%")  # which argparse would fill in
        if field.annotation is bool:
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=words)
            continue
        # The type itself, or the one beside None.
        kind = next((k for k in (int, float) if k in (field.annotation, *get_args(field.annotation))), str)
        parser.add_argument(f"--{name}", type=kind, help=words)


def train(
    experiment: str,
    runs: Path,
    threads: int,
    curve_points: int,
    again: bool,
    compiled: bool,
    graphed: bool,
    recompute: bool,
    plugins: str,
    record: Path | None,
    checkpoints: Path | None,
    **options: Any,
) -> Work:
    """Train an experiment and publish it, or keep it as a filter of a record of one's own."""
    from assim_lib.registry import import_plugins
    from assim_lib.study.publish import check_publishable, publish
    from assim_lib.training.experiment import configure
    from assim_lib.training.graphs import check_ways
    from assim_lib.training.processes import Processes, process_group
    from assim_lib.training.run import train

    set_threads(threads)
    import_plugins(plugins)
    reading = {name: options.pop(name) for name in READING}
    options["own"] = dict(options["own"]) if options["own"] else None
    configured, processes = configure(experiment, **options), Processes.launched()
    check_ways(configured, graphed, recompute)
    processes.check(configured)
    trained = process_group()(partial(train, compiled=compiled, graphed=graphed, recompute=recompute))
    first = processes.rank == 0
    if record is not None:
        for name in ("cycles", "segments", "order", "n_settings"):
            if options[name] is not None:
                raise ValueError(f"{name} = {options[name]!r} would be ignored: a record has its own; leave it out.")
        return train_on(record, reading, configured, runs, curve_points, again, trained, checkpoints, first)
    for name, value in {**reading, "checkpoints": checkpoints}.items():
        if value is not None:
            raise ValueError(f"{name} = {str(value)!r} would be ignored without a record of your own (--record).")
    if first:
        check_publishable(configured, again)
    folder = folder_of(configured, runs, again)

    def work() -> list[Path]:
        model, log = trained(configured, folder, curve_points)
        return [publish(configured, model, log)] if first else []

    return work


def folder_of(configured: "Experiment", runs: Path, again: bool) -> Path:
    """Where the state of a run is kept, which goes on from there.

    Args:
        again: the state of another run makes room, if that was finished.

    Raises:
        OtherRunError: if the state of another run is there.
    """
    from assim_lib.storage import OtherRunError
    from assim_lib.training.checkpoints import is_finished, read_state

    folder = runs / configured.name
    state = folder / "state.safetensors"
    try:
        if state.exists():
            read_state(state, configured)
    except OtherRunError as error:
        if not (again and is_finished(state)):
            raise OtherRunError(f"{str(error).rstrip('.')} (another folder is --runs FOLDER).") from None
        state.unlink()
    return folder


def train_on(
    record: Path,
    reading: dict[str, Any],
    configured: "Experiment",
    runs: Path,
    curve_points: int,
    again: bool,
    train: Callable[..., Any],
    checkpoints: Path | None,
    first: bool,
) -> Work:
    """Train on a record of one's own; ``train`` is :func:`~assim_lib.training.run.train`, told how.

    Of several processes the ``first`` alone stores what they have trained.
    """
    from assim_lib.study.publish import refuse_other_training, refuse_unwritable
    from assim_lib.training.checkpoints import checkpoint_path
    from assim_lib.training.own_record import on_record, save_on_record

    reading["error"] = number_or_name(reading["error"])
    with said_in_a_line():
        configured, data = on_record(configured, record, **reading)
    path = checkpoint_path(configured.name, checkpoints)
    if first:
        refuse_unwritable(path)
    if not again:
        refuse_other_training(configured, path)
    folder = folder_of(configured, runs, again)

    def work() -> Iterator[Path]:
        with said_in_a_line():
            model, log = train(configured, folder, curve_points, observations=data.record)
        if not first:
            return
        print("held out:", save_on_record(path, configured, model, log, data))
        yield path

    return work

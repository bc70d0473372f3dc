"""Commands: ``python -m assim_lib COMMAND --help``.

test-sets   simulate and freeze the truth that everything is scored on
train       train an experiment, resuming an unfinished run; publish its checkpoint and scores
assimilate  run a published filter along observations of your own
score       score published filters again, after a change of the library
verify      score published filters again, and compare with what is stored; exit status 1 where one has drifted
stress      run a published filter for very long, and in settings it was not trained on
ablate      train variants of the recipe under one budget, one thing changed in each
bench       measure what a cycle, a larger ring, a simulation and a training cost
baselines   tune DAPPER's methods and score them on the frozen test sets; what is stored is not run again
forecasts   forecast from the analyses of the best filter of each kind, and from the truth
sweep       run a notebook at every point of a grid, on this machine or on many
scores      collect data/results/*.json into data/results/scores.csv
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, get_args

from assim_lib.own_commands import READING, assimilate, assimilate_parser, count, positive, train_on, with_reading
from assim_lib.storage import IntegrityError, OtherRunError
from assim_lib.sweeps.command import sweep, sweep_parser

# Each command finds its arguments right before anything is computed, and returns what then writes files, one by one.
Work = Callable[[], Iterable[Path | str]]

# What is found right before anything is computed, and what may still come then: no mistakes of the program.
_MISTAKES = (ValueError, LookupError, OSError, IntegrityError, ImportError)
_ACCIDENTS = (IntegrityError, OtherRunError, OSError, FloatingPointError)


def _with_runs(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--runs", type=_folder, default=Path("runs"), help="folder for unfinished runs")
    parser.add_argument(
        "--threads", type=positive, default=1, help="processor threads (these small tensors gain little from more)"
    )
    return parser


def _folder(text: str) -> Path:
    """A folder that can be written to; it is made where it is missing only when something is written."""
    path = Path(text).expanduser()
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written to: {there} is no folder that can")
    return path


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def test_sets_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", default="l96")
    parser.add_argument("--step-size", type=float, default=0.1)
    parser.add_argument(
        "--again", action="store_true", help="replace what is frozen: all stored scores refer to the old one"
    )


def test_sets(system: str, step_size: float, again: bool) -> Work:
    from assim_lib.setting import Setting
    from assim_lib.systems import system_of
    from assim_lib.twin import CYCLES, freeze, is_frozen, trajectory_path

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
    from assim_lib.training.experiment import Experiment

    _with_runs(parser)
    parser.add_argument("experiment")
    parser.add_argument(
        "--curve-points", type=count, default=40, help="how often to score on validation data on the way"
    )
    parser.add_argument(
        "--again", action="store_true", help="replace a filter of the same name that was trained otherwise"
    )
    parser.add_argument("--compiled", action="store_true", help="compile the filter, which pays in runs of an hour")
    parser.add_argument("--graphed", action="store_true", help="launch an update as one CUDA graph, on a GPU")
    parser.add_argument("--recompute", action="store_true", help="hold one cycle in memory at a time: a third slower")
    parser.add_argument("--plugins", default="", help="modules to import first, which register names of your own")
    parser.add_argument("--record", type=Path, help="observations of your own to train on (.nc, .zarr, .csv)")
    with_reading(parser)
    parser.add_argument("--checkpoints", type=_folder, help="folder for a filter of your own record (data/checkpoints)")
    for name, field in Experiment.model_fields.items():
        if name in ("experiment", "record"):
            continue
        words = str(field.description).replace("%", "%%")  # which argparse would fill in
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
    from assim_lib.registry import import_plugins
    from assim_lib.study.publish import check_publishable, publish
    from assim_lib.training.checkpoints import read_state
    from assim_lib.training.experiment import configure
    from assim_lib.training.graphs import check_graphed
    from assim_lib.training.run import train

    _set_threads(threads)
    import_plugins(plugins)
    reading = {name: options.pop(name) for name in READING}
    configured = configure(experiment, **options)
    check_graphed(configured, graphed)
    trained = partial(train, compiled=compiled, graphed=graphed, recompute=recompute)
    if record is not None:
        return train_on(record, reading, configured, runs, curve_points, again, trained, checkpoints)
    for name, value in {**reading, "checkpoints": checkpoints}.items():
        if value is not None:
            raise ValueError(f"{name} = {str(value)!r} would be ignored without a record of your own (--record).")
    check_publishable(configured, again)
    folder = runs / configured.name
    if (folder / "state.safetensors").exists():
        read_state(folder / "state.safetensors", configured)
    return lambda: [publish(configured, *trained(configured, folder, curve_points))]


def score_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="+", help="of a checkpoint, without the ending")


def score(name: list[str]) -> Work:
    from assim_lib.study.publish import publish_again
    from assim_lib.training.checkpoints import checkpoint_path, load_filter

    _set_threads(1)
    for each in name:
        load_filter(checkpoint_path(each))
    return lambda: map(publish_again, name)


def verify_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", help="of a checkpoint, without the ending; all by default")
    parser.add_argument(
        "--cycles", type=partial(count, least=200), help="scored cycles to compare, at least 200; all by default"
    )


def verify(name: list[str], cycles: int | None) -> Work:
    from assim_lib.study.verify import HEADER, to_verify, verify

    _set_threads(1)
    results = to_verify(name)

    def work() -> Iterator[Path]:
        print(HEADER)
        drifted = 0
        for verified in verify(results, cycles):
            print(verified, flush=True)
            drifted += verified.drifted
        print(f"{drifted} of {len(results)} scores have drifted")
        if drifted:
            sys.exit(1)
        yield from ()

    return work


def stress_parser(parser: argparse.ArgumentParser) -> None:
    _with_runs(parser).add_argument("name", help="of a checkpoint, without the ending")


def stress(name: str, runs: Path, threads: int) -> Work:
    from assim_lib.study.long_runs import stress_test
    from assim_lib.training.checkpoints import checkpoint_path, load_filter

    _set_threads(threads)
    load_filter(checkpoint_path(name))
    return lambda: [stress_test(name, runs / name)]


def ablate_parser(parser: argparse.ArgumentParser) -> None:
    _with_runs(parser).add_argument("variant", nargs="*", help="all by default")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])


def ablate(variant: list[str], seed: list[int], runs: Path, threads: int) -> Work:
    from assim_lib.study import ablation

    _set_threads(threads)
    wanted = [(name, number) for number in seed for name in variant or ablation.VARIANTS]
    for name, number in wanted:
        ablation.variant(name, number)
    return lambda: (ablation.ablate(name, number, runs) for name, number in wanted)


def bench_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="cycles, scaling, simulation, training; all")
    parser.add_argument("--compiled", action="store_true", help="measure compiled filters as well: some minutes more")
    parser.add_argument("--repeats", type=positive, default=5, help="of which the median is taken")
    parser.add_argument("--largest", type=int, default=4000, help="sites of the largest ring, up to 400000")


def bench(sections: list[str], compiled: bool, repeats: int, largest: int) -> Work:
    from assim_lib.study.cost import SECTIONS, Effort, run_sections

    for section in sections:
        if section not in SECTIONS:
            raise ValueError(f"section {section!r} is not known; known: {', '.join(SECTIONS)}.")
    _set_threads(1)
    return lambda: run_sections(sections or SECTIONS, Effort(repeats, compiled, largest))


def baselines_parser(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tune and score classical methods: those that are not scored yet, of the settings, methods and sizes that are "
        "asked for (all by default). Stop it at any time: it goes on where it was."
    )
    kinds = {"system": str, "obs_conf": str, "step_size": float, "noise": float, "method": str, "m": int}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind, nargs="+")
    parser.add_argument("--processes", type=positive, default=1)
    parser.add_argument("--again", action="store_true", help="run on the test set even if the score is stored")


def baselines(processes: int, again: bool, **wanted: list[Any] | None) -> Work:
    from assim_lib.classical.contenders import choose
    from assim_lib.classical.dapper_bridge import import_dapper
    from assim_lib.study.benchmark import compare_all

    chosen = choose(**{name: values for name, values in wanted.items() if values})
    import_dapper()
    return lambda: chain(compare_all(chosen, processes, again), _table())


def forecasts_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", default="two_level")
    parser.add_argument("--obs_conf", default="full_obs")
    parser.add_argument("--step_size", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=1.0)


def forecasts(**setting: Any) -> Work:
    from assim_lib.setting import Setting
    from assim_lib.study.forecasts import best_of_each_kind, forecast_skill

    _set_threads(1)
    wanted = Setting(**setting)
    if best_of_each_kind(wanted).empty:
        raise LookupError(f"{wanted.slug} has no scores; `python -m assim_lib train` and `baselines` make them.")
    return lambda: [forecast_skill(wanted)]


def scores_parser(parser: argparse.ArgumentParser) -> None:
    """It takes no arguments."""


def scores() -> Work:
    return _table


def _table() -> Iterator[Path]:
    from assim_lib.study.results import write_scores

    yield write_scores()  # when it is its turn: after all others


# Name → what it does in a few words, its arguments, and itself.
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[..., Work]]] = {
    "test-sets": (
        "freeze test and validation truth (chaos: never the same twice elsewhere)",
        test_sets_parser,
        test_sets,
    ),
    "train": ("train an experiment and publish it", train_parser, train),
    "assimilate": ("run a published filter along observations of your own", assimilate_parser, assimilate),
    "score": ("score published filters again", score_parser, score),
    "verify": ("whether published filters still have their scores", verify_parser, verify),
    "stress": ("what a published filter stands: long runs, other settings", stress_parser, stress),
    "ablate": ("what each part of the recipe is worth; what is stored is not run again", ablate_parser, ablate),
    "bench": ("what cycles, rings, simulations and trainings cost, on this machine", bench_parser, bench),
    "baselines": ("tune and score classical methods", baselines_parser, baselines),
    "forecasts": ("how well the model forecasts from analyses", forecasts_parser, forecasts),
    "sweep": ("run a notebook at every point of a grid", sweep_parser, sweep),
    "scores": ("collect the results into one table", scores_parser, scores),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assim_lib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (words, add_arguments, _) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=words))
    return parser


def main() -> None:
    """Run one command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may lack σ or ≥
            stream.reconfigure(errors="replace")
    arguments = vars(_parser().parse_args())
    name = arguments.pop("command")
    try:
        work = COMMANDS[name][2](**arguments)
    except _MISTAKES as error:
        _refuse(name, error)
    try:
        for path in work():
            print("wrote", path)
    except _ACCIDENTS as error:
        _refuse(name, error)


def _refuse(name: str, error: Exception) -> NoReturn:
    """End as argparse does where an argument is wrong."""
    sentence = str(error)
    if isinstance(error, OSError) and error.errno:
        sentence = (
            f"{error.filename or 'a file'} cannot be read or written: {error.strerror}; see that it may be and that "
            "there is room, then run the command again."
        )
    print(f"assim_lib {name}: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

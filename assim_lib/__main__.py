"""Commands: ``python -m assim_lib COMMAND --help``.

test-sets   simulate and freeze the truth that everything is scored on
train       train an experiment, resuming an unfinished run; publish its checkpoint and scores
score       score published filters again, after a change of the library
examine     run a published filter for very long, and in settings it was not trained on
ablate      train variants of the recipe under one budget, one thing changed in each
baselines   tune DAPPER's methods and score them on the frozen test sets; what is stored is not run again
scores      collect data/results/*.json into data/results/scores.csv
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from assim_lib.experiments import Experiment, configure
from assim_lib.results import write_scores
from assim_lib.systems import system_of
from assim_lib.trajectories import CYCLES, freeze, trajectory_path


def _positive(text: str) -> int:
    return _count(text, least=1)


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number ≥ {least}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assim_lib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sets = commands.add_parser(
        "test-sets", help="freeze test and validation truth (chaos: never the same twice elsewhere)"
    )
    sets.add_argument("--system", default="l96")
    sets.add_argument("--step-size", type=float, default=0.1)
    sets.add_argument(
        "--again", action="store_true", help="replace what is frozen: all stored scores refer to the old one"
    )
    baselines = commands.add_parser(
        "baselines",
        help="tune and score classical methods",
        description="Tune and score classical methods: those that are not scored yet, of the settings, methods and sizes "
        "that are asked for (all by default). Stop it at any time: it goes on where it was.",
    )
    for name, kind in {
        "system": str,
        "obs_conf": str,
        "step_size": float,
        "noise": float,
        "method": str,
        "m": int,
    }.items():
        baselines.add_argument(f"--{name}", type=kind, nargs="+")
    baselines.add_argument("--processes", type=_positive, default=1)
    baselines.add_argument("--again", action="store_true", help="run on the test set even if the score is stored")
    ablate = commands.add_parser(
        "ablate", help="what each part of the recipe is worth; what is stored is not run again"
    )
    ablate.add_argument("variant", nargs="*", help="all by default")
    ablate.add_argument("--seed", type=int, nargs="+", default=[0])
    ablate.add_argument("--runs", type=Path, default=Path("runs"), help="folder for unfinished runs")
    examine = commands.add_parser("examine", help="what a published filter stands: long runs, other settings")
    examine.add_argument("name", help="of its checkpoint, without the ending")
    examine.add_argument("--runs", type=Path, default=Path("runs"), help="folder for unfinished runs")
    score = commands.add_parser("score", help="score published filters again")
    score.add_argument("name", nargs="+", help="of a checkpoint, without the ending")
    commands.add_parser("scores", help="collect the results into one table")
    train = commands.add_parser("train", help="train an experiment and publish it")
    train.add_argument("experiment")
    train.add_argument("--runs", type=Path, default=Path("runs"), help="folder for unfinished runs")
    train.add_argument(
        "--curve-points", type=_count, default=40, help="how often to score on validation data on the way"
    )
    train.add_argument(
        "--again", action="store_true", help="replace a filter of the same name that was trained otherwise"
    )
    for name, field in Experiment.model_fields.items():
        if name != "experiment":
            # The type itself, or the one beside None.
            kind = next((k for k in (int, float) if k in (field.annotation, *get_args(field.annotation))), str)
            if field.annotation is bool:
                train.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=field.description)
            else:
                train.add_argument(f"--{name}", type=kind, help=field.description)
    return parser


def _prepared(command: str, arguments: dict[str, Any]) -> Callable[[], Iterable[Path]]:
    """A command whose arguments have been found right, before anything is computed; it yields the files it wrote.

    Raises
    ------
    ValueError, LookupError, FileNotFoundError, FileExistsError : if they are not.
    """
    # Imports come late: no command needs all of the library, and `baselines` alone needs DAPPER.
    if command == "test-sets":
        dynamics, step_size = system_of(arguments["system"]), arguments["step_size"]
        dynamics.steps_per_cycle(step_size)
        frozen = [split for split in CYCLES if trajectory_path(dynamics.name, step_size, split).exists()]
        if frozen and not arguments["again"]:
            raise FileExistsError(
                f"system = {dynamics.name!r} with step_size = {step_size:g} is frozen already, and all its scores refer to that "
                "truth; replace it with --again."
            )
        return lambda: (freeze(dynamics, step_size, split) for split in CYCLES)
    if command == "baselines":
        from assim_lib.comparison import compare_all
        from assim_lib.tuning import choose

        processes, again = arguments.pop("processes"), arguments.pop("again")
        chosen = choose(**{name: values for name, values in arguments.items() if values})
        return lambda: chain(compare_all(chosen, processes, again), _scores())
    if command == "ablate":
        from assim_lib.ablation import VARIANTS, ablate, variant

        wanted = [(name, seed) for seed in arguments["seed"] for name in arguments["variant"] or VARIANTS]
        for name, seed in wanted:
            variant(name, seed)
        return lambda: (ablate(name, seed, arguments["runs"]) for name, seed in wanted)
    if command == "examine":
        from assim_lib.robustness import examine
        from assim_lib.runs import load_filter, published

        name = arguments["name"]
        load_filter(published(name))
        return lambda: [examine(name, arguments["runs"] / name)]
    if command == "score":
        from assim_lib.runs import load_filter, publish_again, published

        for name in arguments["name"]:
            load_filter(published(name))
        return lambda: (publish_again(name) for name in arguments["name"])
    if command == "train":
        from assim_lib.runs import may_publish, publish, train
        from assim_lib.training import read_state

        runs, points, again = (arguments.pop(name) for name in ("runs", "curve_points", "again"))
        experiment = configure(arguments.pop("experiment"), **arguments)
        may_publish(experiment, again)
        folder = runs / experiment.name
        if (folder / "state.safetensors").exists():
            read_state(folder / "state.safetensors", experiment)
        return lambda: [publish(experiment, *train(experiment, folder, points))]
    return _scores


def _scores() -> Iterable[Path]:
    yield write_scores()  # when it is its turn: after all others


def main() -> None:
    """Run one command."""
    arguments = vars(_parser().parse_args())
    command = arguments.pop("command")
    try:
        run = _prepared(command, arguments)
    except (ValueError, LookupError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f"assim_lib {command}: {error}")
    for path in run():
        print("wrote", path)


if __name__ == "__main__":
    main()

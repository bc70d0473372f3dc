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
from pathlib import Path
from typing import get_args

from assim_lib.experiments import Experiment, ParameterError, configure
from assim_lib.results import write_scores
from assim_lib.systems import system_of
from assim_lib.trajectories import CYCLES, freeze


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
    baselines.add_argument("--processes", type=int, default=1)
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
    train.add_argument("--curve-points", type=int, default=40, help="how often to score on validation data on the way")
    for name, field in Experiment.model_fields.items():
        if name != "experiment":
            # The type itself, or the one beside None.
            kind = next((k for k in (int, float) if k in (field.annotation, *get_args(field.annotation))), str)
            if field.annotation is bool:
                train.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=field.description)
            else:
                train.add_argument(f"--{name}", type=kind, help=field.description)
    return parser


def main() -> None:
    """Run one command."""
    arguments = vars(_parser().parse_args())
    command = arguments.pop("command")
    if command == "test-sets":
        dynamics = system_of(arguments["system"])
        for split in CYCLES:
            print("wrote", freeze(dynamics, arguments["step_size"], split))
    elif command == "baselines":
        # Imported late, here and below: the other commands need neither DAPPER nor the learned filters.
        from assim_lib.comparison import compare_all
        from assim_lib.tuning import choose

        processes, again = arguments.pop("processes"), arguments.pop("again")
        try:
            chosen = choose(**{name: values for name, values in arguments.items() if values})
        except ValueError as error:
            sys.exit(f"assim_lib baselines: {error}")
        for path in compare_all(chosen, processes, again):
            print("scored", path.stem)
        print("wrote", write_scores())
    elif command == "ablate":
        from assim_lib.ablation import VARIANTS, ablate

        try:
            for seed in arguments["seed"]:
                for name in arguments["variant"] or VARIANTS:
                    print("wrote", ablate(name, seed, arguments["runs"]))
        except ParameterError as error:
            sys.exit(f"assim_lib ablate: {error}")
    elif command == "examine":
        from assim_lib.robustness import examine

        name = arguments["name"]
        print("wrote", examine(name, arguments["runs"] / name))
    elif command == "score":
        from assim_lib.runs import publish_again

        for name in arguments["name"]:
            print("wrote", publish_again(name))
    elif command == "scores":
        print("wrote", write_scores())
    else:
        from assim_lib.runs import publish, train

        folder, points = arguments.pop("runs"), arguments.pop("curve_points")
        try:
            experiment = configure(arguments.pop("experiment"), **arguments)
        except ParameterError as error:
            sys.exit(f"assim_lib train: {error}")
        print("wrote", publish(experiment, *train(experiment, folder / experiment.name, points)))


if __name__ == "__main__":
    main()

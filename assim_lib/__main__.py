"""Commands: ``python -m assim_lib COMMAND --help``.

test-sets   simulate and freeze the truth that everything is scored on
train       train an experiment, resuming an unfinished run; publish its checkpoint and scores
baselines   score DAPPER's methods on the frozen test sets; those already stored are not run again
scores      collect data/results/*.json into data/results/scores.csv
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from assim_lib.experiments import Experiment, ParameterError, configure
from assim_lib.results import write_scores
from assim_lib.systems import system_of
from assim_lib.trajectories import CYCLES, freeze, load_test_set


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
    commands.add_parser("baselines", help="score the classical methods that are not scored yet")
    commands.add_parser("scores", help="collect the results into one table")
    train = commands.add_parser("train", help="train an experiment and publish it")
    train.add_argument("experiment")
    train.add_argument("--runs", type=Path, default=Path("runs"), help="folder for unfinished runs")
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
        from assim_lib.baselines import BASELINES
        from assim_lib.comparison import compare

        for setting in BASELINES:
            for path in compare(load_test_set(*setting)):
                print("scored", path.stem)
        print("wrote", write_scores())
    elif command == "scores":
        print("wrote", write_scores())
    else:
        from assim_lib.runs import publish, train

        folder = arguments.pop("runs")
        try:
            experiment = configure(arguments.pop("experiment"), **arguments)
        except ParameterError as error:
            sys.exit(f"assim_lib train: {error}")
        print("wrote", publish(experiment, *train(experiment, folder / experiment.name)))


if __name__ == "__main__":
    main()

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
import sys
from collections.abc import Callable
from typing import NoReturn

from assim_lib.commands import compared, own, published, sweep, train
from assim_lib.commands.arguments import Work
from assim_lib.storage import IntegrityError, OtherRunError

# What is found right before anything is computed, and what may still come then: no mistakes of the program.
_MISTAKES = (ValueError, LookupError, OSError, IntegrityError, ImportError)
_BUGS = (KeyError, IndexError)  # a LookupError is a sentence, these are none: they show where they come from
_ACCIDENTS = (IntegrityError, OtherRunError, OSError, FloatingPointError)

# Name → its arguments, and itself.
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[..., Work]]] = {
    "test-sets": (train.test_sets_parser, train.test_sets),
    "train": (train.train_parser, train.train),
    "assimilate": (own.assimilate_parser, own.assimilate),
    "score": (published.score_parser, published.score),
    "verify": (published.verify_parser, published.verify),
    "stress": (published.stress_parser, published.stress),
    "ablate": (compared.ablate_parser, compared.ablate),
    "bench": (compared.bench_parser, compared.bench),
    "baselines": (compared.baselines_parser, compared.baselines),
    "forecasts": (published.forecasts_parser, published.forecasts),
    "sweep": (sweep.sweep_parser, sweep.sweep),
    "scores": (published.scores_parser, published.scores),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assim_lib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (add_arguments, _) in COMMANDS.items():
        add_arguments(commands.add_parser(name))
    return parser


def main() -> None:
    """Run one command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may lack σ or ≥
            stream.reconfigure(errors="replace")
    arguments = vars(_parser().parse_args())
    name = arguments.pop("command")
    try:
        work = COMMANDS[name][1](**arguments)
    except _BUGS:
        raise
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

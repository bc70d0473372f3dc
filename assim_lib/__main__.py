"""Commands: ``python -m assim_lib COMMAND --help``.

test-sets   simulate and freeze the truth that everything is scored on
train       train an experiment, resuming an unfinished run; publish its checkpoint and scores
assimilate  run a stored filter along observations of your own
score       score stored filters again, after a change of the library
verify      score stored filters again, and compare with what is stored; exit status 1 where one has drifted
stress      run a stored filter for very long, and in settings it was not trained on
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
import time
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NoReturn

from assim_lib.commands import compared, own, published, sweep, train
from assim_lib.commands.arguments import Work
from assim_lib.mistakes import Mistake
from assim_lib.storage import IntegrityError, OtherRunError

# What is found right before anything is computed, and what may still come then: no mistakes of the program.
_MISTAKES = (ValueError, LookupError, OSError, IntegrityError, ImportError)
_BUGS = (KeyError, IndexError)  # a LookupError is a sentence, these are none: they show where they come from
_ACCIDENTS = (IntegrityError, OtherRunError, Mistake, ImportError, OSError, FloatingPointError)

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


class _Parser(argparse.ArgumentParser):
    """Knows how its options are spelled, with hyphens or underscores: either will do."""

    def __init__(self, *args: Any, **options: Any):
        self.spelled: dict[str, str] = {}
        super().__init__(*args, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        self.spelled |= {spelling.replace("_", "-"): spelling for spelling in action.option_strings}
        return action

    def corrected(self, word: str) -> str:
        """An option as it is spelled here; anything else as it is."""
        name, *value = word.split("=", 1)
        known = self.spelled.get(name.replace("_", "-")) if name.startswith("--") else None
        return "=".join([known or name, *value])


def _parsed(words: list[str]) -> dict[str, Any]:
    parser = _Parser(prog="assim_lib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    known = {name: commands.add_parser(name) for name in COMMANDS}
    for name, (add_arguments, _) in COMMANDS.items():
        add_arguments(known[name])
    chosen = known.get(words[0], parser) if words else parser
    arguments, left = parser.parse_known_args([chosen.corrected(word) for word in words])
    if left:
        close = get_close_matches(left[0].split("=")[0], chosen.spelled.values(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        chosen.error(f"unrecognized arguments: {' '.join(left)}{hint}")
    return vars(arguments)


def main() -> None:
    """Run one command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may lack σ or ≥
            stream.reconfigure(errors="replace")
    arguments = _parsed(sys.argv[1:])
    name = arguments.pop("command")
    try:
        _run(name, arguments)
    except KeyboardInterrupt:
        print(f"assim_lib {name}: interrupted; what is finished is kept, the same command goes on.", file=sys.stderr)
        sys.exit(130)  # as a shell has it


def _run(name: str, arguments: dict[str, Any]) -> None:
    started = time.time() - 1  # a file system may count coarsely
    try:
        work = COMMANDS[name][1](**arguments)
    except _BUGS:
        raise
    except _MISTAKES as error:
        _refuse(name, error)
    try:
        for path in work():
            kept = os.path.exists(path) and os.path.getmtime(path) < started
            print("already there:" if kept else "wrote", path)
    except _ACCIDENTS as error:
        _refuse(name, error)


def _refuse(name: str, error: Exception) -> NoReturn:
    """End as argparse does where an argument is wrong."""
    sentence = str(error)
    if isinstance(error, FileNotFoundError) and error.errno and error.filename:
        sentence = f"{error.filename}: there is no such file."
    elif isinstance(error, OSError) and error.errno:
        sentence = (
            f"{error.filename or 'a file'} cannot be read or written: {error.strerror}; see that it may be and that "
            "there is room, then run the command again."
        )
    print(f"assim_lib {name}: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

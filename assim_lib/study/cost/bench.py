"""One command for all sections; each is a file of its own."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from assim_lib.study.cost import accuracy, cycles, profile, scaling, simulation, training
from assim_lib.study.cost.measuring import REPEATS, Value, cost_path, costs_of


class Effort(NamedTuple):
    """How much to measure: the median of how many repeats, compiled filters too, and how large a ring."""

    repeats: int = REPEATS
    compiled: bool = False
    largest: int = 4000


SECTIONS: dict[str, tuple[str, Callable[[Effort], list[dict[str, Value]]]]] = {
    "cycles": (cycles.HOW, lambda effort: cycles.measure(effort.compiled, effort.repeats)),
    "scaling": (scaling.HOW, lambda effort: scaling.measure(effort.largest)),
    "simulation": (simulation.HOW, lambda effort: simulation.measure(effort.repeats)),
    "training": (training.HOW, lambda _: training.measure()),
    "accuracy": (accuracy.HOW, lambda _: accuracy.measure()),
    "profile": (profile.HOW, lambda _: profile.measure()),
}
USUAL = ("cycles", "scaling", "simulation", "training")  # the others take long, and are to be asked for


def run_sections(sections: Iterable[str], effort: Effort = Effort()) -> Iterator[Path]:  # noqa: B008  (never changed)
    """Measure some sections and store each; yield where."""
    for section in sections:
        how, measure = SECTIONS[section]
        costs = costs_of(section, how, lambda measure=measure: measure(effort))
        yield costs.write(cost_path(section))

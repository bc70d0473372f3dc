"""What was wished for, what was measured, and why something is missed."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from assim_lib.study.cost.accuracy import TARGETS, median_seconds
from assim_lib.study.cost.cycles import PRODUCTS
from assim_lib.study.cost.measuring import Costs, cost_path
from assim_lib.study.cost.profile import of_memory, of_the_system, sentence
from assim_lib.study.cost.scaling import NAMES, SCORED_SITES

# Of an update of the original code with the paper's sizes: 9.1 s of two cores, of the kind that `data/cost` was
# measured on.
ORIGINAL_SECONDS = 2 * 9.1
# The smallest ring that an exponent is fitted from.
FIRST_SITES = {"ms": 400, "memory": 4000}
# Why a goal was out of reach, by the profile.
WHY = {
    "recurrent": "Its matrix products alone take {products:.2f} ms: a cheaper cycle takes a smaller network.",
    "original m=5": "Its matrix products alone take {products:.2f} ms. It draws dropout at test time, from a generator "
    "that a compiled program cannot have: the rest are hundreds of small operations, which take long to start.",
    "hybrid lag 3": "Its matrix products alone take {products:.2f} ms. The rest of its compiled cycle are model steps "
    "and a Cholesky factor, and the iEnKS does little more than such.",
    "extended lag 10": "Most of its cycle are model steps. At forty sites the differences cannot be moved together: "
    "within its lag news reaches around the ring, and so do the columns of the covariance's root.",
    "rmse": "Networks that normalize over all sites see another ring; what Kalman algebra does window by window leaves "
    "out covariances beyond the margins.",
    "simulation": "On few numbers a step is the price of starting its operations, which NumPy starts sooner.",
    "scaling": "Tensors of more than some ten megabytes fill no cache, and are new memory each time.",
    "accuracy": "A training of another seed or length may be faster; the curves say how far off it is.",
    "training": "An update is matrix products, and operations on single numbers between them that wait for memory. "
    "Recomputed, the carried states of every cycle of a window are still kept, and the observations.",
}


class Goal(NamedTuple):
    """``measured`` should be at most (or, where ``least``, at least) ``wanted``."""

    what: str
    wanted: float
    measured: float
    least: bool = False
    why: str = ""

    @property
    def met(self) -> bool:
        return bool(self.measured >= self.wanted if self.least else self.measured <= self.wanted)


def goals() -> list[Goal]:
    """Every goal that the stored sections say something of."""
    profiles = stored("profile")
    makers = {
        "cycles": partial(_of_cycles, profiles=profiles),
        "scaling": partial(_of_scaling, profiles=profiles),
        "simulation": _of_simulation,
        "training": partial(_of_training, profiles=profiles),
        "accuracy": _of_accuracy,
    }
    return [goal for name, make in makers.items() if len(table := stored(name)) for goal in make(table)]


def stored(section: str) -> pd.DataFrame:
    """The rows of a section; none if it is not measured."""
    return Costs.read(cost_path(section)).table if cost_path(section).exists() else pd.DataFrame()


def exponent(sites: pd.Series, costs: pd.Series) -> float:
    """Slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(sites), np.log(costs), 1)[0])


def of_large_rings(table: pd.DataFrame, name: str, column: str) -> tuple[pd.Series, pd.Series]:
    """Sites and costs of a filter where the cost is of the ring, and not of starting an operation.

    Time counts from 400 sites on. Memory counts from 4,000 on: below, the peak is that of Python and PyTorch.
    """
    costs = pd.Series(table[table.name == name].set_index("sites")[column]).dropna()
    kept = pd.Series(costs[costs.index >= FIRST_SITES[column]])
    return pd.Series(kept.index, dtype=float), kept


def _of_cycles(table: pd.DataFrame, profiles: pd.DataFrame) -> Iterator[Goal]:
    best = table[table.batch == 1].groupby("name").ms.min()
    for name, limit in (("recurrent", 0.3), ("original m=5", 0.4), ("hybrid lag 3", 0.6)):
        compiled = bool(table[(table.name == name) & table.compiled].size)
        profiled = sentence(profiles, name, 40, compiled)
        why = f"{WHY[name].format(products=best[f'{name}, {PRODUCTS}'])} {profiled}".strip()
        yield Goal(f"{name}: ms a cycle at batch 1", limit, best[name], why=why)
        for than, wanted in (("LETKF m=10", 10), ("iEnKS m=30 Lag 3", 5)):
            yield Goal(f"{name}: times cheaper than {than}", wanted, best[than] / best[name], True, why)
    name, than = "extended lag 10", "iEnKS m=30 Lag 10"
    yield Goal(f"{name}: cost as a part of that of {than}", 1, best[name] / best[than], why=WHY[name])


def _of_scaling(table: pd.DataFrame, profiles: pd.DataFrame) -> Iterator[Goal]:
    for name in NAMES:
        known = [of_the_system(profiles, name), sentence(profiles, name, 40_000)]
        why = " ".join([WHY["scaling"], *filter(None, known)])
        for column, what in (("ms", "cost"), ("memory", "memory")):
            sites, costs = of_large_rings(table, name, column)
            if len(sites) > 1:
                slope = exponent(sites, costs)
                text = f"{name}: exponent of {what}, {sites.min():,.0f} to {sites.max():,.0f} sites"
                yield Goal(text, 1.05, slope, why=why)
        rmse = table[table.name == name].set_index("sites").rmse.dropna()
        yield Goal(
            f"{name}: RMSE on {SCORED_SITES} sites relative to that on 40",
            1.02,
            rmse[SCORED_SITES] / rmse[40],
            why=WHY["rmse"],
        )


def _of_simulation(table: pd.DataFrame) -> Iterator[Goal]:
    for key, group in table.groupby(["system", "trajectories"]):
        system, number = cast(tuple[str, int], key)
        ms = group.set_index("name").ms
        for name in ms.index.drop("assim_lib"):
            text = f"{system}, {number:,} trajectories: our cost as a part of {name}'s"
            yield Goal(text, 1, ms["assim_lib"] / ms[name], why=WHY["simulation"])


def _of_training(table: pd.DataFrame, profiles: pd.DataFrame) -> Iterator[Goal]:
    runs, paper = table.set_index("name"), "original, the paper's sizes"
    share = runs.seconds[paper] / ORIGINAL_SECONDS
    yield Goal(
        "an update of the paper's sizes, as a part of that of the original code", 0.7, share, why=WHY["training"]
    )
    again = f"{paper}, recomputed"
    yield Goal("memory of the paper's sizes, recomputed, in MB", 1000, runs.memory[again], why=WHY["training"])
    longer = runs.seconds[again] / runs.seconds[paper]
    yield Goal("time of an update of the paper's sizes, recomputed, relative to ours", 1.4, longer, why=WHY["training"])
    ratio = runs.memory["recurrent, window 400, recomputed"] / runs.memory["recurrent, window 40, recomputed"]
    why = f"{WHY['training']} {of_memory(profiles)}".strip()
    yield Goal("memory of a window of 400 cycles, recomputed, relative to 40", 1.1, ratio, why=why)


def _of_accuracy(table: pd.DataFrame) -> Iterator[Goal]:
    for name, target in TARGETS.items():
        if name in set(table.name):
            text = f"{name}: seconds until RMSE ≤ {target.rmse:g}"
            yield Goal(text, target.seconds, median_seconds(table, name), why=WHY["accuracy"])

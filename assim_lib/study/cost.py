"""What a cycle costs: published filters and classical methods, all in one run.

A busy machine makes everything slower, and not everything alike: what is compared is measured in turns, several times,
and only ratios within one run mean anything. The time is the processor's.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from assim_lib.classical.methods import run_baseline
from assim_lib.filter import AmortizedFilter, Carry
from assim_lib.records import Record
from assim_lib.storage import data_dir, provenance, write_json
from assim_lib.study.benchmark import stored_baseline
from assim_lib.study.results import Provenance
from assim_lib.training.checkpoints import checkpoint_path, load_filter
from assim_lib.training.experiment import Experiment
from assim_lib.twin import TwinExperiment

FULL = "l96_conv-full_obs-dt0.1-s1"
QUARTER = "l96_conv-every_4th_dim_partial_obs_upstream-dt0.1-s1"
FILTERS = {
    "recurrent": f"{FULL}-recurrent-m1-seed4",
    "original m=5": f"{QUARTER}-original-m5-seed0",
    "hybrid lag 3": f"{FULL}-hybrid-lag3-m10-seed0",
    "covariant lag 5": f"{FULL}-covariant-lag5-m10-seed0",
    "extended lag 10": f"{FULL}-extended-lag10-m1-seed0",
}
CLASSICAL = {"LETKF N=10": ("LETKF", 10), "EnKF-N N=30": ("EnKF-N", 30), "iEnKS N=30 Lag 10": ("iEnKS", 30)}
# What, compared with what, and how many times cheaper it should be.
GOALS = [
    *((name, "LETKF N=10", 10.0) for name in ("recurrent", "original m=5", "hybrid lag 3")),
    ("extended lag 10", "iEnKS N=30 Lag 10", 1.0),  # of the same lag
]
WARM_UP, CYCLES, REPEATS = 20, 30, 5


class Cost(Record):
    """Milliseconds of processor time a cycle: the median and the least of some repeats."""

    name: str
    compiled: bool
    median: float
    least: float


class Goal(Record):
    """``ratio`` says how many times cheaper the best form of ``name`` is than ``than``, and ``wanted`` how many times
    it should be."""

    name: str
    than: str
    wanted: float
    ratio: float

    @property
    def met(self) -> bool:
        return self.ratio >= self.wanted


class CycleCosts(Record):
    """One run: what it measured, how, and where."""

    measured: str
    costs: list[Cost]
    goals: list[Goal]
    provenance: Provenance


def cost_path() -> Path:
    """Where a run is stored."""
    return data_dir() / "benchmark" / "cycles.json"


def measure_cycles(compiled: bool = False, repeats: int = REPEATS, progress: bool = True) -> CycleCosts:
    """Measure every method in turn, so many times.

    Parameters
    ----------
    compiled : measure the filters compiled as well, which takes some minutes first. Dropout keeps a filter from it.
    """
    runs = _classical() | _learned(compiled)
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in runs}
    for _ in tqdm(range(repeats), desc="cycles", unit="repeat", disable=not progress):
        for key, run in runs.items():
            times[key].append(run())
    costs = [
        Cost(name=name, compiled=whole, median=statistics.median(series), least=min(series))
        for (name, whole), series in times.items()
    ]
    best = {name: min(cost.median for cost in costs if cost.name == name) for name in (cost.name for cost in costs)}
    goals = [Goal(name=name, than=than, wanted=x, ratio=best[than] / best[name]) for name, than, x in GOALS]
    how = (
        f"one thread, batch 1, {CYCLES} cycles {repeats} times in turn, processor time on a machine that others use "
        "too: compare within this file only"
    )
    return CycleCosts(measured=how, costs=costs, goals=goals, provenance=Provenance(**provenance()))


def write_cycle_costs(compiled: bool = False, repeats: int = REPEATS) -> Path:
    """Measure, and store what was measured."""
    path, costs = cost_path(), measure_cycles(compiled, repeats)
    write_json(path, json.loads(costs.model_dump_json()))
    return path


def _classical() -> dict[tuple[str, bool], Callable[[], float]]:
    twin = load_filter(checkpoint_path(FILTERS["recurrent"]))[0].setting.load()
    return {(name, False): partial(_baseline_cycle, twin, *method) for name, method in CLASSICAL.items()}


def _baseline_cycle(twin: TwinExperiment, method: str, m: int) -> float:
    return run_baseline(stored_baseline(twin, method, m), twin, WARM_UP + CYCLES, progress=False).ms_per_cycle


def _learned(compiled: bool) -> dict[tuple[str, bool], Callable[[], float]]:
    runs: dict[tuple[str, bool], Callable[[], float]] = {}
    for name, file in FILTERS.items():
        experiment, model = load_filter(checkpoint_path(file))
        runs[name, False] = _Filter(experiment, model)
        if compiled and not experiment.test_dropout:
            runs[name, True] = _Filter(experiment, model.compiled(whole=True))
    return runs


class _Filter:
    """A filter that has found the truth; calling it gives milliseconds a cycle."""

    def __init__(self, experiment: Experiment, model: AmortizedFilter):
        self.model, self.observations = model, torch.from_numpy(experiment.setting.load().observations).float()
        self.generator = torch.Generator().manual_seed(experiment.seed)
        self.dropout = self.generator if experiment.test_dropout else None
        self.start = model.spinup + WARM_UP
        with torch.no_grad():
            carry = model.cold_start(generator=self.generator)
            self.carry = self._along(carry, 0, self.start)

    def _along(self, carry: Carry, first: int, last: int) -> Carry:
        for k in range(first, last):
            carry, _ = self.model.cycle(carry, self.observations[k], k, self.dropout, age=k)
        return carry

    @torch.no_grad()
    def __call__(self) -> float:
        started = time.process_time()
        self._along(self.carry, self.start, self.start + CYCLES)
        return 1000 * (time.process_time() - started) / CYCLES

"""What a cycle costs: stored filters, eager and compiled, beside classical methods."""

from collections.abc import Callable
from functools import partial

import torch

from assim_lib.classical.methods import run_baseline
from assim_lib.filter import AmortizedFilter, Carry
from assim_lib.study.benchmark import stored_baseline
from assim_lib.study.cost.measuring import Value, in_turns, milliseconds
from assim_lib.training.checkpoints import load_filter
from assim_lib.training.experiment import Experiment
from assim_lib.twin import TwinExperiment

FULL = "l96_conv-full_obs-dt0.1-s1"
QUARTER = "l96_conv-every_4th_dim_partial_obs-dt0.1-s1"
UPSTREAM = "l96_conv-every_4th_dim_partial_obs_upstream-dt0.1-s1"
FILTERS = {
    "recurrent": f"{FULL}-recurrent-m1-seed4",
    "recurrent lag 3": f"{FULL}-recurrent-lag3-m1-seed5-further",
    "recurrent lag 5, gradient": f"{QUARTER}-recurrent-conv_glu-lag5-gradient-window-m1-seed9-further",
    "original m=5": f"{UPSTREAM}-original-m5-seed0",
    "gated m=10": f"{FULL}-gated-m10-seed4",
    "hybrid lag 3": f"{FULL}-hybrid-lag3-m10-seed0",
    "covariant lag 5": f"{FULL}-covariant-lag5-m10-seed0",
    "extended lag 10": f"{FULL}-extended-lag10-m1-seed0",
}
CLASSICAL_CYCLES = {
    "LETKF m=10": ("LETKF", 10, {}),
    "EnKF-N m=30": ("EnKF-N", 30, {}),
    "iEnKS m=30 Lag 3": ("iEnKS", 30, {"Lag": 3}),
    "iEnKS m=30 Lag 10": ("iEnKS", 30, {"Lag": 10}),
}
BATCHES = {1: 30, 64: 4}  # cycles that are measured at once
WARM_UP = 20
PRODUCTS = "matrix products alone"
HOW = (
    "one thread; milliseconds a cycle and sequence; a batch of 1 by 30 cycles, of 64 by 4, in turns; processor time on "
    "a machine that others may use too: compare within this file only"
)

Method = tuple[str, int, bool]  # name, batch, compiled


def measure(compiled: bool, repeats: int) -> list[dict[str, Value]]:
    """Measure every method in turn, so many times.

    Args:
        compiled: measure the filters compiled as well at a batch of 1, which takes some minutes first. Dropout keeps a
            filter from it.
    """
    times = in_turns(_classical() | _learned(compiled), repeats, "cycles")
    return [{"name": name, "batch": batch, "compiled": whole, **ms} for (name, batch, whole), ms in times.items()]


def _classical() -> dict[Method, Callable[[], float]]:
    twin = load_filter(FILTERS["recurrent"], device="cpu")[0].setting.load()
    return {(name, 1, False): partial(_baseline_cycle, twin, *method) for name, method in CLASSICAL_CYCLES.items()}


def _baseline_cycle(twin: TwinExperiment, method: str, m: int, changed: dict[str, int]) -> float:
    baseline = stored_baseline(twin, method, m)
    baseline = baseline.tuned(baseline.hyperparameters | changed)
    return run_baseline(baseline, twin, WARM_UP + BATCHES[1], progress=False).ms_per_cycle


def _learned(compiled: bool) -> dict[Method, Callable[[], float]]:
    runs: dict[Method, Callable[[], float]] = {}
    for name, file in FILTERS.items():
        experiment, model = load_filter(file, device="cpu")
        for batch in BATCHES:
            runs[name, batch, False] = Running(experiment, model, batch)
        runs[f"{name}, {PRODUCTS}", 1, False] = _products(model)
        if compiled and not experiment.test_dropout:
            runs[name, 1, True] = Running(experiment, model.compiled(whole=True), 1)
    return runs


def _products(model: AmortizedFilter) -> Callable[[], float]:
    """Nothing but the matrix products of a cycle."""
    members = model.analysis.members if model.analysis.memory_per_member else 1
    layers = [layer for layer in model.analysis.trunk.modules() if isinstance(layer, torch.nn.Linear)]
    inputs = [torch.randn(members * model.dynamics.sites, layer.in_features) for layer in layers]

    @torch.no_grad()
    def products() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)

    return partial(milliseconds, products, BATCHES[1])


class Running:
    """Filters that have found the truth; calling them gives milliseconds a cycle and filter."""

    def __init__(self, experiment: Experiment, model: AmortizedFilter, batch: int):
        self.model, self.batch, self.cycles = model, batch, BATCHES[batch]
        self.observations = torch.from_numpy(experiment.setting.load().observations).float()
        generator = torch.Generator().manual_seed(experiment.seed)
        self.dropout = generator if experiment.test_dropout else None
        self.start = model.warmup + WARM_UP
        with torch.no_grad():
            shape = () if batch == 1 else (batch,)
            self.carry = self._along(model.cold_start(*shape, generator=generator), 0, self.start)

    def _along(self, carry: Carry, first: int, last: int) -> Carry:
        for k in range(first, last):
            received = self.observations[k].expand(*carry.base.shape[:-3], -1, -1)
            carry, _ = self.model.cycle(carry, received, k, self.dropout, age=k)
        return carry

    @torch.no_grad()
    def __call__(self) -> float:
        whole = milliseconds(lambda: self._along(self.carry, self.start, self.start + self.cycles))
        return whole / self.cycles / self.batch

"""What a simulation costs: our steppers beside those of torchdiffeq and DAPPER."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from assim_lib.classical.dapper_bridge import import_dapper
from assim_lib.study.cost.measuring import Value, in_turns, milliseconds
from assim_lib.systems import Dynamics, KuramotoSivashinsky, Lorenz96
from assim_lib.systems.integrators import integrate

STEPS, TRAJECTORIES = 20, (1, 1000)
HOW = (
    f"one thread, double precision; milliseconds of processor time for {STEPS} steps, in turns; adaptive: dopri5 with "
    "its standard tolerance of 1e-7 over the same time"
)


def measure(repeats: int) -> list[dict[str, Value]]:
    """Measure every stepper in turn, so many times."""
    import_dapper()
    runs: dict[tuple[str, str, int], Callable[[], float]] = {}
    for system in (Lorenz96(), KuramotoSivashinsky()):
        start = system.on_attractor(max(TRAJECTORIES), torch.Generator().manual_seed(0), spinup=5.0)
        for number in TRAJECTORIES:
            x, times = start[:number], 20 if number == 1 else 1
            for name, run in _steppers(system, x).items():
                runs[system.name, name, number] = partial(milliseconds, run, times)
    times = in_turns(runs, repeats, "simulation")
    return [{"system": system, "name": name, "trajectories": n, **ms} for (system, name, n), ms in times.items()]


def _steppers(system: Dynamics, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    states, step = x.flatten(1).numpy(), _dapper_step(system)

    def dapper() -> np.ndarray:
        moved = states
        for k in range(STEPS):
            moved = step(moved, k * system.dt, system.dt)
        return moved

    steppers: dict[str, Callable[[], object]] = {"assim_lib": lambda: system.flow(x, STEPS), "DAPPER": dapper}
    if system.method == "rk4":  # a stiff system takes them too many steps
        for name, method in (("torchdiffeq fixed", "rk4_38"), ("torchdiffeq adaptive", "dopri5")):
            steppers[name] = partial(integrate, system.tendency, x, system.dt, STEPS, method)
    return steppers


def _dapper_step(system: Dynamics) -> Callable[[np.ndarray, float, float], np.ndarray]:
    if isinstance(system, KuramotoSivashinsky):
        from dapper.mods.KS import Model

        return Model(dt=system.dt, DL=32, Nx=system.sites)["step"]
    from dapper.mods.Lorenz96 import step

    return step

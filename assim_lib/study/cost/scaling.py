"""What a larger ring costs, with weights that were trained on a small one, and what it costs in accuracy.

A state of Lorenz-96 that is repeated along a larger ring stays so: the stored truth serves rings of every multiple of
its size. Only the errors of the observations differ from site to site.
"""

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

from assim_lib.classical import dapper_bridge
from assim_lib.classical.methods import run_baseline
from assim_lib.evaluation import SETTLING
from assim_lib.filter import AmortizedFilter
from assim_lib.observations import observation_model
from assim_lib.study.benchmark import stored_baseline
from assim_lib.study.cost.cycles import FILTERS, FULL
from assim_lib.study.cost.measuring import Value, alone, milliseconds, peak_memory
from assim_lib.training.checkpoints import load_filter
from assim_lib.training.experiment import Experiment
from assim_lib.twin import TwinExperiment

SITES = (40, 400, 4000, 40_000, 400_000)
NAMES = ("recurrent", "gated m=10", "original m=5", "hybrid lag 3", "extended lag 10")
LETKF, LETKF_SITES = "LETKF m=10", (40, 400, 4000)
STATES = 40  # of the climatology
LONGEST, LARGEST = 60_000, 20_000  # milliseconds of a cycle, and megabytes
SCORED_SITES, CYCLES = 400, 150
HOW = (
    "one thread, each filter and ring in a process of its own; milliseconds of processor time a cycle after a first "
    "one; memory: by how many megabytes the peak of the process rose; rmse: of the same observations on a ring of "
    f"{SCORED_SITES} sites, and as rings of 40, over {CYCLES} cycles"
)


def measure(largest: int) -> list[dict[str, Value]]:
    """Cost and memory of a cycle by number of sites, and RMSE on two of the rings."""
    rings = [sites for sites in SITES if sites <= largest]
    rows: list[dict[str, Value]] = []
    with tqdm(total=len(NAMES) * (len(rings) + 1), desc="scaling", unit="filter") as bar:
        for name in NAMES:
            ms = memory = 0.0
            for previous, sites in zip([rings[0], *rings], rings, strict=False):
                if reason := too_much(ms * sites / previous, memory * sites / previous):
                    rows.append({"name": name, "sites": sites, "skipped": reason})
                else:
                    ms, memory = alone(cost_of_cycle, FILTERS[name], sites)
                    rows.append({"name": name, "sites": sites, "ms": ms, "memory": memory})
                bar.update()
            for sites, rmse in zip((40, SCORED_SITES), alone(errors, FILTERS[name]), strict=True):
                rows.append({"name": name, "sites": sites, "rmse": rmse})
            bar.update()
    rings = [sites for sites in LETKF_SITES if sites <= largest]
    return rows + [{"name": LETKF, "sites": sites, "ms": alone(cost_of_letkf, sites)} for sites in rings]


def too_much(ms: float, memory: float) -> str:
    """Why a ring is left out, whose cycle would take so many milliseconds and megabytes; "" if it is not."""
    if ms > LONGEST:
        return f"a cycle would take {ms / 1000:,.0f} s"
    return f"a cycle would take {memory / 1000:,.0f} GB of memory" if memory > LARGEST else ""


def widened(model: AmortizedFilter, experiment: Experiment, sites: int) -> AmortizedFilter:
    """A filter of Lorenz-96 on a ring so many times as large, with its weights; its climatology repeats itself."""
    old = model.dynamics.sites
    if sites % old:
        raise ValueError(f"sites = {sites} must be a multiple of {old}.")
    return AmortizedFilter(
        replace(model.dynamics, sites=sites),
        observation_model(experiment.obs_conf, model.dynamics.channels, sites, experiment.noise),
        model.analysis,
        model.step_size,
        model.climatology[:STATES].repeat(1, 1, sites // old),
        model.lag_warmup,
        model.clamp,
    )


@torch.no_grad()
def started_on(file: str, sites: int) -> Callable[[], object]:
    """A cycle of a filter on a ring of so many sites, which is after its first one."""
    experiment, model = load_filter(file, device="cpu")
    large, generator = widened(model, experiment, sites), torch.Generator().manual_seed(0)
    dropout = generator if experiment.test_dropout else None
    carry, observation = large.cold_start(generator=generator), large.climatology[0]
    carry, _ = large.cycle(carry, observation, 0, dropout)
    return torch.no_grad()(lambda: large.cycle(carry, observation, 1, dropout))


def cost_of_cycle(file: str, sites: int) -> tuple[float, float]:
    """Milliseconds and megabytes that a cycle on a ring of so many sites takes."""
    load_filter(file, device="cpu")  # what it takes to load any counts for none
    before = peak_memory()
    ms = milliseconds(started_on(file, sites), max(1, min(20, 4000 // sites)))
    return ms, peak_memory() - before


@torch.no_grad()
def errors(file: str) -> tuple[float, float]:
    """RMSE on rings of 40 sites, and on one of as many sites as all of them have; with the same observations."""
    experiment, model = load_filter(file, device="cpu")
    large, number = widened(model, experiment, SCORED_SITES), SCORED_SITES // model.dynamics.sites
    truth = torch.from_numpy(experiment.setting.load().truth).float()[: model.warmup + SETTLING + CYCLES]
    noise = torch.randn((*truth.shape[:-1], SCORED_SITES), generator=torch.Generator().manual_seed(1))
    observations = truth.repeat(1, 1, number) + experiment.noise * noise

    def error(model: AmortizedFilter, observations: torch.Tensor, *batch: int) -> float:
        generator = torch.Generator().manual_seed(2)
        dropout = generator if experiment.test_dropout else None
        carry, errors = model.cold_start(*batch, generator=generator), []
        for k, received in enumerate(observations):
            carry, analysis = model.cycle(carry, received, k, dropout, age=k)
            repeats = analysis.shape[-1] // truth.shape[-1]
            errors.append((analysis.mean(-3) - truth[k].repeat(1, repeats)).square().mean().item())
        return float(np.sqrt(errors)[-CYCLES:].mean())

    # (cycle, channel, ring · site) as a batch of rings
    rings = observations.unflatten(-1, (number, -1)).movedim(-2, 1)
    return error(model, rings, number), error(large, observations)


def cost_of_letkf(sites: int) -> float:
    """Milliseconds that a cycle of DAPPER's LETKF takes, with one local analysis a site as at 40 sites."""
    experiment, model = load_filter(f"{FULL}-recurrent-m1-seed4", device="cpu")
    twin, times = experiment.setting.load(), sites // model.dynamics.sites
    cycles = 5 if sites > 400 else 20

    def tiled(x: np.ndarray) -> np.ndarray:
        return np.tile(x, times)

    part = twin.part(0, cycles)
    large = TwinExperiment(
        part.name, part.setting, tiled(part.initial), tiled(part.truth), tiled(part.observations),
        climate=tiled(part.climatology[:STATES]),
    )  # fmt: skip
    with mock.patch.object(dapper_bridge, "LOCAL_ANALYSES", sites):
        dynamics = replace(model.dynamics, sites=sites)
        return run_baseline(stored_baseline(twin, "LETKF", 10), large, progress=False, dynamics=dynamics).ms_per_cycle

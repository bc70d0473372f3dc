"""Small trainings, for tests: on a ring of twelve sites, or of the book's systems with tiny networks and short runs."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from small import PARTIAL, SITES, STEP_SIZE, Quick, climatology, shaken, small_analysis, small_filter, write_result
from torch import Tensor

from assim_lib.filter import AmortizedFilter
from assim_lib.losses import NEEDS_TRUTH
from assim_lib.observations import observation_model
from assim_lib.storage import provenance, write_json
from assim_lib.training.data import TrainingData
from assim_lib.training.experiment import Experiment, configure
from assim_lib.training.many_settings import training_settings
from assim_lib.training.pool import FilterPool
from assim_lib.training.trainer import Trainer
from assim_lib.trajectories import observed, simulate

NETWORK = {"hidden_size": 6, "blocks": 1, "kernel": 3, "memory": 3}
SIZES = {**NETWORK, "window": 3, "batch": 2, "pool": 4, "segments": 2, "cycles": 40}
QUIET: dict[str, Any] = {"progress": False, "curve_points": 0}


def tiny(analysis: str = "recurrent", m: int = 2, /, experiment: str = "l96_conv", **options: Any) -> Experiment:
    """An experiment that is trained in a moment, of a system of the book."""
    return configure(experiment, **{"analysis": analysis, "m": m, "lag": 0, "updates": 8, **SIZES, **options})


class Stopped(BaseException):
    """Like KeyboardInterrupt."""


def stop_after(update: int) -> Callable[[Mapping[str, Any]], None]:
    """What stops a run at that update."""

    def on_metrics(metrics: Mapping[str, Any]) -> None:
        if metrics["update"] == update:
            raise Stopped

    return on_metrics


def write_learned(
    own: Path,
    name: str,
    validation: float = 0.3,
    label: str = "hybrid",
    options: dict[str, Any] | None = None,
    **changed,
) -> list[dict[str, Any]]:
    """A result file of a learned filter, and the log of its training, which has one point: that of validation."""
    history = [{"update": 1, "validation_rmse": validation}]
    analysis = label.split(",")[0]
    log = {
        "experiment": tiny().model_dump() | {"analysis": analysis} | (options or {}),
        "provenance": provenance(),
        "seconds": 1.0,
        "core_seconds": 90.0,
    }
    write_json(own.parent / "checkpoints" / f"{name}.json", log | {"history": history, "sha256": "0"})
    write_result(own, name, validation, **{"method": "amortized", "checkpoint": f"{name}.safetensors", **changed})
    path = own / f"{name}.json"
    path.write_text(path.read_text().replace(f'"label": "{name}"', f'"label": "{label}"'))
    return [point | {"cycles": math.prod(log["experiment"][k] for k in ("batch", "window"))} for point in history]


# ---- on the ring


@cache
def ring(cycles: int = 200, segments: int = 16, seed: int = 4, step_size: float = STEP_SIZE) -> xr.Dataset:
    """Truth and unit errors; never changed."""
    return simulate(Quick(sites=SITES), step_size, cycles, segments, seed)


def ring_truth() -> Tensor:
    """What each of the observations sees."""
    return torch.from_numpy(ring().truth.values)[:, 1:]


def ring_experiment(name: str = "recurrent", m: int = 4, lag: int = 0, **options: Any) -> Experiment:
    """A few updates, at a rate at which they matter although it still warms up."""
    sizes = {"window": 3, "batch": 4, "pool": 6, "updates": 6, "cycles": 200, "segments": 16}
    plain = {"dropout": 0.0, "test_dropout": False, "order": "schedule", "training_m": m, "lag_warmup": 0}
    rates = {"lr": 0.1, "adamw_lr": 0.1}
    return configure(
        "l96_conv", **{"analysis": name, "m": m, "lag": lag, "obs_conf": PARTIAL, **sizes, **plain, **rates, **options}
    )


def ring_filter(chosen: Experiment) -> AmortizedFilter:
    """The filter of an experiment, its weights small random numbers."""
    sizes = {"network": chosen.network, "dropout": chosen.dropout}
    sizes |= {name: True for name in ("sees_gradient", "sees_window") if getattr(chosen, name)}
    model = small_filter(chosen.analysis, chosen.m, chosen.lag, chosen.obs_conf, noise=chosen.noise, **sizes)
    model.lag_warmup = chosen.lag_warmup
    return shaken(model, size=0.05).float()


def ring_data(chosen: Experiment, phase: Tensor | None = None, near: Tensor | None = None) -> TrainingData:
    """What an experiment is trained on."""
    truth, observations = observed(ring(), observation_model(chosen.obs_conf, 1, SITES, chosen.noise), phase)
    if chosen.noise_draws == "each":
        observations = truth
    return TrainingData(observations, near, truth if chosen.loss in NEEDS_TRUTH else None, phase)


def ring_trainer(
    name: str = "recurrent",
    m: int = 4,
    lag: int = 0,
    *,
    phase: Tensor | None = None,
    near: Tensor | None = None,
    **options: Any,
) -> Trainer:
    """A run that has not begun."""
    chosen = ring_experiment(name, m, lag, **options)
    return Trainer(chosen, ring_filter(chosen), ring_data(chosen, phase, near))


def ring_pool(*case: Any, **options: Any) -> FilterPool:
    """The pool of such a run."""
    (pool,) = ring_trainer(*case, **options).pools
    return pool


def many_settings_trainer(**options: Any) -> Trainer:
    """A run in three settings that has not begun."""
    sizes = {"pool": 5, "updates": 8, "cycles": 40, "segments": 2, "seed": 16}
    chosen = ring_experiment("hybrid", 4, 1, **{**sizes, **options}).changed(n_settings=3)
    model, data = ring_filter(chosen), []
    for setting in training_settings(chosen):
        truth = ring(40, 2, setting.seed % 10, setting.step_size)
        instruments = observation_model(setting.obs_conf, 1, SITES, setting.noise)
        data.append(TrainingData(observed(truth, instruments)[1]))
    return Trainer(chosen, model, *data)


def built_in(setting: Experiment, model: AmortizedFilter) -> AmortizedFilter:
    """A hybrid filter with the weights of another, built for a setting from the beginning."""
    instruments = observation_model(setting.obs_conf, 1, SITES, setting.noise)
    parts = (small_analysis("hybrid", 4, lag=1), setting.step_size, climatology().clone())
    built = AmortizedFilter(Quick(sites=SITES), instruments, *parts)
    built.load_state_dict(model.state_dict())
    return built


def advance(trainer: Trainer, updates: int) -> list[dict[str, int | float]]:
    """Metrics of the next updates."""
    return [metrics for _, metrics in zip(range(updates), trainer.fit(), strict=False)]


def states(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that a run is, by name."""
    parts = {**trainer.model.state_dict(), **{f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}}
    for name, optimizer in trainer.optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            parts |= {f"{name}.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
    for number, pool in enumerate(trainer.pools):
        parts |= {f"pool{number}.{name}": value for name, value in pool.state_dict().items()}
    progress = torch.tensor([trainer.update, trainer.skipped])
    return parts | {"generator": trainer.generator.get_state(), "progress": progress}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The same names, and the same bits."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_same_run(one: Trainer, other: Trainer) -> None:
    assert_same(states(one), states(other))

"""What training costs: cycles of members a second, and memory, for the presets and for the paper's sizes."""

import time
from typing import Any

import torch
from tqdm import tqdm

from assim_lib.study.cost.measuring import Value, alone, peak_memory
from assim_lib.training.build import build_filter
from assim_lib.training.data import TrainingData
from assim_lib.training.experiment import configure
from assim_lib.training.trainer import Trainer

UPDATES = 2
RECOMPUTED: dict[str, Any] = {"analysis": "recurrent", "m": 1, "recompute": True}
RUNS: dict[str, dict[str, Any]] = {
    "recurrent, cpu": {"preset": "cpu", "analysis": "recurrent", "m": 1},
    "hybrid, cpu": {"preset": "cpu", "analysis": "hybrid"},
    "extended, cpu": {"preset": "cpu", "analysis": "extended"},
    "original, cpu": {"preset": "cpu", "analysis": "original"},
    "original, the paper's sizes": {"preset": "paper", "analysis": "original"},
    "original, the paper's sizes, recomputed": {"preset": "paper", "analysis": "original", "recompute": True},
    "recurrent, window 40": {"analysis": "recurrent", "m": 1, "window": 40},
    "recurrent, window 400": {"analysis": "recurrent", "m": 1, "window": 400},
    "recurrent, window 40, recomputed": {**RECOMPUTED, "window": 40},
    "recurrent, window 400, recomputed": {**RECOMPUTED, "window": 400},
}
HOW = (
    f"one thread, each in a process of its own; seconds of processor time an update, the mean of {UPDATES} after a "
    "first one; rate: cycles of members a second; memory: by how many megabytes the peak of the process rose"
)


def measure() -> list[dict[str, Value]]:
    """Measure every run."""
    runs = tqdm(RUNS.items(), desc="training", unit="run")
    return [{"name": name, **alone(cost_of_updates, options)} for name, options in runs]


def trainer_of(options: dict[str, Any]) -> Trainer:
    """A trainer with these options on the observations of the test set: nothing is simulated."""
    sizes = {name: value for name, value in options.items() if name != "recompute"}
    experiment = configure("l96_conv", **sizes).changed(device="cpu")
    observations = torch.from_numpy(experiment.setting.load().observations).float()
    segments = max(1, len(observations) // (experiment.window + 100))
    data = observations[: len(observations) // segments * segments].unflatten(0, (segments, -1))
    experiment = experiment.changed(segments=segments, cycles=data.shape[1], pool=experiment.batch)
    recompute = options.get("recompute", False)
    return Trainer(experiment, build_filter(experiment), TrainingData(data), recompute=recompute)


def cost_of_updates(options: dict[str, Any]) -> dict[str, Value]:
    """Seconds an update, cycles of members a second, and megabytes."""
    trainer = trainer_of(options)
    experiment = trainer.experiment
    before, updates = peak_memory(), trainer.fit()
    next(updates)
    started = time.process_time()
    for _ in range(UPDATES):
        next(updates)
    seconds = (time.process_time() - started) / UPDATES
    work = experiment.batch * experiment.window * (experiment.training_m or experiment.m)
    return {"seconds": seconds, "rate": work / seconds, "memory": peak_memory() - before}

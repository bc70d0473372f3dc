"""Training on a record of one's own observations: there is no truth, neither for the loss nor for the scores.

The last fifth of the record is held out; innovations on it are what a learning curve and a checkpoint report.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from assim_lib.evaluation import SETTLING
from assim_lib.filter import AmortizedFilter
from assim_lib.observations import observation_model
from assim_lib.own.conventions import RecordError
from assim_lib.own.cycling import cold_state, known_at_first, run_along
from assim_lib.own.innovations import InnovationScores, innovation_scores
from assim_lib.own.record import OwnRecord, read_record
from assim_lib.own.remarks import SAME, remark_on_mask
from assim_lib.seeds import SHORT_RUNS
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import save_checkpoint
from assim_lib.training.data import TrainingData
from assim_lib.training.experiment import Experiment
from assim_lib.training.validation import SEGMENT

HELD_OUT = 5  # the last fifth


class OwnData(NamedTuple):
    """A record as a training uses it.

    Attributes:
        record: the whole of it.
        first: number of its first cycle in the observation schedule.
        trained: number of its cycles that are trained on; the others are held out.
    """

    record: OwnRecord
    first: int
    trained: int

    @property
    def held_out(self) -> Float[np.ndarray, "cycle channel site"]:
        """The observations that nobody trains on, NaN where nothing was received."""
        return self.record.values[self.trained :]

    def training_data(self, experiment: Experiment) -> TrainingData:
        """The others, as one trajectory."""
        observations = torch.from_numpy(self.record.values[None, : self.trained])
        number = (self.first + torch.arange(self.trained))[None]
        channels, sites = observations.shape[-2:]
        instruments = observation_model(experiment.obs_conf, channels, sites)
        near = instruments.usable(observations, number) if experiment.start == "first_observation" else None
        phase = number % instruments.period
        data = TrainingData(observations, near=near, phase=phase, first=torch.tensor(self.first))
        return data.to(experiment.torch_device)


def on_record(experiment: Experiment, observations: Any, **options: Any) -> tuple[Experiment, OwnData]:
    """The experiment as it is trained on a record, and the record.

    Args:
        observations: a path, or numbers in memory; or a record that is read already.
        options: ``variable``, ``error``, ``fill_value`` and ``interval`` of :func:`~assim_lib.own.record.read_record`.
            An error takes the place of the experiment's ``noise``; it may not change in time.

    Raises:
        RecordError, ParameterError, FileNotFoundError: one sentence about what cannot be.
    """
    dynamics = experiment.forecast_model
    shape = (dynamics.channels, dynamics.sites)
    if isinstance(observations, OwnRecord):
        record = observations
        if record.values.shape[1:] != shape:
            raise RecordError(f"{record.label} was read for {record.values.shape[1:]} channels and sites, not {shape}.")
    else:
        record = read_record(observations, shape, experiment.step_size, **options)
    held_out = -(-len(record.values) // HELD_OUT)
    trained = len(record.values) - held_out
    needed = experiment.window + experiment.leads - 1 + experiment.lag_warmup * experiment.lag
    if trained <= needed:
        raise RecordError(
            f"{record.label} has {len(record.values)} cycles, {trained} of them to train on; more than window + leads "
            f"- 1 + lag_warmup · lag = {needed} are needed."
        )
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", record.label.split(".")[0])
    changed: dict[str, Any] = {"record": f"{stem}-{record.checksum[:8]}", "segments": 1, "cycles": trained}
    # Masks come as they were received.
    experiment = experiment.changed(**changed, order="schedule", noise=_noise(experiment, record, shape))
    data = OwnData(record, record.begins(dynamics.depends_on_time), trained)
    _check(data, experiment, remark=record is not observations)  # else they are made already
    return experiment, data


def _noise(experiment: Experiment, record: OwnRecord, shape: tuple[int, int]) -> float:
    if record.error is None:
        return experiment.noise
    unit = observation_model(experiment.obs_conf, *shape).standard_deviation.numpy()
    factors = (record.error / unit)[np.isfinite(record.error)]
    if not len(factors) or np.ptp(factors) > SAME * factors.max():
        raise RecordError(
            f"{record.label} has errors that are not those of obs_conf = {experiment.obs_conf!r} times one number; "
            "register an obs_conf with these errors, and give no error (--error): the record's are then its own."
        )
    return float(f"{factors.mean():.6g}")


def _check(data: OwnData, experiment: Experiment, remark: bool) -> None:
    """Warn of numbers that are not expected; refuse a record without any to learn from."""
    channels, sites = data.record.values.shape[1:]
    instruments = observation_model(experiment.obs_conf, channels, sites)
    if remark:
        remark_on_mask(data.record, instruments.schedule.numpy(), experiment.obs_conf, data.first)
    known = instruments.known(data.first + torch.arange(data.trained)).numpy()
    if not (known & np.isfinite(data.record.values[: data.trained])).any():
        raise RecordError(f"{data.record.label} holds no number that obs_conf = {experiment.obs_conf!r} lets be used.")


@torch.no_grad()
def innovation_rmse(experiment: Experiment, model: AmortizedFilter, data: OwnData) -> float:
    """RMSE of innovations on what is held out, run as a batch of short segments from cold starts."""
    held_out = torch.from_numpy(data.held_out).to(model.climatology)
    length = min(SEGMENT + model.warmup, len(held_out))
    segments = len(held_out) // length
    observations = held_out[: segments * length].unflatten(0, (segments, length))
    number = data.first + data.trained + length * torch.arange(segments, device=held_out.device)
    source = torch.Generator().manual_seed(SHORT_RUNS)
    near = known_at_first(experiment.start, model, observations[:, 0].cpu().numpy(), number.cpu())
    carry = model.cold_start(segments, generator=source, near=near, number=number)
    dropout = source if experiment.test_dropout else None
    squares, count = 0.0, 0
    for k in range(length):
        y = observations[:, k]
        seen = (model.known[(number + k) % len(model.known)] > 0) & y.isfinite()
        if k >= min(SETTLING + model.warmup, length // 2):
            missed = (y - model.observation_model.operator(carry.forecast.mean(-3)))[seen]
            squares, count = squares + float(missed.square().sum()), count + missed.numel()
        carry, _ = model.cycle(carry, y, number + k, dropout, age=k)
    return (squares / count) ** 0.5 if count else float("nan")


def held_out_scores(experiment: Experiment, model: AmortizedFilter, data: OwnData) -> InnovationScores:
    """Scores of a filter along what is held out, from a cold start."""
    number = data.first + data.trained
    near = known_at_first(experiment.start, model, data.held_out[0], number)
    start = cold_state(model, experiment.seed, number, near)
    cycled = run_along(model, data.held_out, start, dropout=experiment.test_dropout)
    settled = min(SETTLING + model.warmup, len(data.held_out) // 2)
    return innovation_scores(cycled.innovation[settled:], cycled.expected[settled:])


def save_on_record(
    path: Path, experiment: Experiment, model: AmortizedFilter, log: dict[str, Any], data: OwnData
) -> InnovationScores:
    """Store a filter that was trained on a record, with its scores there; the same filter untrained, for comparison.

    Raises:
        FloatingPointError: if its forecasts are not finite: it is not stored.
    """
    scores = held_out_scores(experiment, model, data)
    if scores.numbers and not np.isfinite(scores.rmse):
        raise FloatingPointError(f"{experiment.name} forecasts what is not finite, and is not stored; take a lower lr.")
    untrained = held_out_scores(experiment, build_filter(experiment, model.climatology), data)
    said = {"held_out": scores.as_dict(), "untrained": untrained.as_dict()}
    origin = {"source": data.record.label, "sha256": data.record.checksum, "cycles": len(data.record.values)}
    save_checkpoint(model, path, {**log, "innovations": said, "record": origin})
    return scores

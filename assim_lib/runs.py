"""A run, from its :class:`~assim_lib.experiments.Experiment` to a checkpoint and its scores.

This is where the parts meet: data, filter, training, validation while training, the score on the frozen test
set, and the record that says how each number came about.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from assim_lib.analyses import ANALYSES, Scales
from assim_lib.evaluation import BLOCK, Scores, evaluate, rmse
from assim_lib.experiments import Experiment, ParameterError
from assim_lib.filters import AmortizedFilter, assimilate
from assim_lib.losses import NEEDS_TRUTH
from assim_lib.networks import NETWORKS, Sizes
from assim_lib.observations import observation_model
from assim_lib.results import load_scores, store_result
from assim_lib.storage import data_dir, provenance, sha256
from assim_lib.systems import system_of
from assim_lib.training import Record, Trainer, in_settings, load_checkpoint, read_state, save_checkpoint
from assim_lib.trajectories import SEEDS, TestSet, load_test_set, training_trajectories
from assim_lib.variety import VALIDATED, scored_in, variations

CLIMATOLOGY_STATES = 512
VALIDATION_SEGMENT = 200
VALIDATION_BURN_IN = 60
DRAWS = 20  # members that are drawn, for spread and CRPS, from the covariance that a filter carries in place of members


def build_filter(experiment: Experiment, climate: Tensor | None = None) -> AmortizedFilter:
    """An untrained filter for an experiment, on the experiment's device.

    Parameters
    ----------
    climate : states of the free-running model, (state, channel, site); simulated from the experiment's seed by
        default. The units of the network's features are taken from them: a trained filter must be given its own,
        since chaos makes others of the same seed on another machine.
    """
    dynamics = experiment.forecast_model
    seen = observation_model(experiment.obs_conf, dynamics.channels, dynamics.sites)
    if climate is None:
        # The frozen truths begin where their seeds do; no filter may know that place.
        frozen = (SEEDS["validation"], SEEDS["test"])
        source = torch.Generator().manual_seed(experiment.seed + (10**6 if experiment.seed in frozen else 0))
        climate = dynamics.on_attractor(CLIMATOLOGY_STATES, source).float()
    sizes = Sizes(
        sites=dynamics.sites,
        operators=seen.period,
        hidden=experiment.hidden_size,
        blocks=experiment.blocks,
        kernel=experiment.kernel,
        dropout=experiment.dropout,
    )
    with torch.random.fork_rng():
        # torch initializes layers from its global generator: seed it here, and put it back.
        torch.manual_seed(experiment.seed)
        analysis = ANALYSES[experiment.analysis](
            channels=dynamics.channels,
            members=experiment.m,
            scales=Scales.of(climate, experiment.noise),
            network=NETWORKS[experiment.network],
            sizes=sizes,
            memory=experiment.memory,
            lagged=experiment.lag > 0,
            band=experiment.band,
            inflation=experiment.inflation,
            taper_length=experiment.taper_length,
            drift=experiment.drift * experiment.lag,
            tendency=experiment.tendency,
            # A site is seen in all its channels or in none, most often: one channel says it.
            mask_features=0 if seen.schedule.all() and not experiment.settings else _distinct_channels(seen.schedule),
            other_member=experiment.other_member,
        )
    model = AmortizedFilter(
        dynamics,
        seen,
        analysis,
        experiment.step_size,
        experiment.lag,
        climate,
        growth=experiment.growth,
        clamp=experiment.clamp,
    )
    return model.to(experiment.torch_device)


def _distinct_channels(schedule: Tensor) -> int:
    return 1 if bool((schedule == schedule[:, :1]).all()) else schedule.shape[1]


def starting_points(experiment: Experiment, observations: Tensor, masks: Tensor, truth: Tensor) -> Tensor | None:
    """What members start around, NaN where that is the climatology; see :meth:`AmortizedFilter.cold_start`."""
    match experiment.start:
        case "first_observation":
            return torch.where(masks, observations, torch.nan)
        case "truth":
            return truth
        case _:
            return None


def training_record(experiment: Experiment, progress: bool = False) -> Record:
    """The record a filter is trained on, its noise drawn once.

    The truth stays behind in this function, unless the experiment asks for what cannot be had without it.
    """
    dynamics = system_of(experiment.system)
    data = training_trajectories(
        dynamics, experiment.step_size, experiment.cycles, experiment.segments, experiment.seed, progress
    )
    truth, unit_noise = (torch.from_numpy(data[name].values) for name in ("truth", "unit_noise"))
    truth = truth[:, 1:]
    seen = observation_model(experiment.obs_conf, *truth.shape[-2:])
    phase, masks = None, seen.mask(torch.arange(truth.shape[1]))
    if experiment.noise_draws == "each":
        observations = seen.operator(truth)
    elif experiment.order == "random":
        phase = torch.randint(seen.period, truth.shape[:2], generator=torch.Generator().manual_seed(experiment.seed))
        masks = seen.mask(phase)
        observations = torch.where(masks, seen.operator(truth) + experiment.noise * unit_noise, 0.0)
    else:
        observations = seen.observe(truth, unit_noise, experiment.noise)
    return Record(
        observations,
        near=starting_points(experiment, observations, masks, truth),
        truth=truth if experiment.loss in NEEDS_TRUTH else None,
        phase=phase,
    ).to(experiment.torch_device)


def validation_rmse(experiment: Experiment, model: AmortizedFilter) -> float:
    """RMSE on the validation data, run as a batch of short segments from cold starts (quick enough for a curve).

    Of a filter of many settings: the geometric mean over some of them, in which a per cent counts the same in each,
    and not what is hard to see the most.
    """
    settings = in_settings(experiment, model, scored_in(experiment, VALIDATED))
    errors = [_short_runs_rmse(*setting) for setting in settings]
    return math.prod(errors) ** (1 / len(errors))


def _short_runs_rmse(experiment: Experiment, model: AmortizedFilter) -> float:
    data = test_set_of(experiment, "validation")
    # A filter whose lag grows first is scored as long after that as the others after their start.
    length, burn_in = VALIDATION_SEGMENT + model.spinup, VALIDATION_BURN_IN + model.spinup
    segments = len(data.observations) // length
    starts = length * torch.arange(segments)
    observations, masks, truth = (
        torch.from_numpy(part[: segments * length]).unflatten(0, (segments, length))
        for part in (data.observations, data.masks, data.truth[1:])
    )
    near = starting_points(experiment, observations[:, 0], masks[:, 0], truth[:, 0])
    ensemble = assimilate(
        model,
        observations,
        torch.Generator().manual_seed(0),
        first_cycle=starts,
        dropout=experiment.test_dropout,
        near=near,
    )
    return float(rmse(ensemble.numpy(), truth.numpy())[:, burn_in:].mean())


def test_set_of(experiment: Experiment, split: str = "test") -> TestSet:
    """The frozen data of an experiment's setting."""
    return load_test_set(experiment.system, experiment.obs_conf, experiment.step_size, experiment.noise, split)


class _Clock:
    """Adds the time between start and stop to a record; stopped while validating and saving."""

    def __init__(self, record: dict[str, Any]):
        self.record = record
        self.start()

    def start(self) -> None:
        self.since: tuple[float, float] | None = (time.monotonic(), time.process_time())

    def stop(self) -> None:
        if self.since:
            self.record["seconds"] += time.monotonic() - self.since[0]
            self.record["core_seconds"] += time.process_time() - self.since[1]
        self.since = None


def train(
    experiment: Experiment,
    folder: Path | None = None,
    curve_points: int = 40,
    save_every: float = 60.0,
    progress: bool = True,
    on_metrics: Callable[[dict[str, int | float]], None] | None = None,
) -> tuple[AmortizedFilter, dict[str, Any]]:
    """Train a filter; resume if ``folder`` holds an unfinished run of the same experiment.

    Parameters
    ----------
    folder : where the state of the run is kept, every ``save_every`` seconds and at the end; a run that was stopped
        goes on from there as if nothing had happened. None: nowhere.
    curve_points : how many times the averaged weights are scored on validation data (0: never).
    on_metrics : called after every update.

    Returns
    -------
    The filter with the averaged weights, and the record of the run: its ``experiment``, its ``provenance``, the
    time spent on updates alone (``seconds`` of wall time, ``core_seconds`` of processor time) and its ``history``.

    Raises
    ------
    ValueError : if ``folder`` holds a run with other settings.
    """
    state = folder / "state.safetensors" if folder else None
    # The units of the features come from the climate; on another machine the same seed makes another one.
    climate = read_state(state, experiment)[1]["model.climatology"] if state and state.exists() else None
    torch.set_num_threads(experiment.threads)
    model = build_filter(experiment, climate)
    trainer = Trainer(experiment, model, *(training_record(setting, progress) for setting in variations(experiment)))
    note: dict[str, Any] = {
        "experiment": experiment.model_dump(),
        "provenance": provenance(str(experiment.torch_device)),
        "seconds": 0.0,
        "core_seconds": 0.0,
        "history": [],
    }
    losses: list[float] = []  # since the last point of the history
    if state and state.exists():
        now, note = note["provenance"], trainer.load(state)
        losses = note.pop("losses", losses)
        if now not in (note["provenance"], *note.get("resumed", [])):
            note.setdefault("resumed", []).append(now)
    every = max(1, experiment.updates // curve_points) if curve_points else experiment.updates + 1
    clock, saved = _Clock(note), time.monotonic()
    bar = tqdm(
        total=experiment.updates,
        initial=trainer.update,
        desc=f"train {experiment.name}",
        unit="update",
        disable=not progress,
    )
    try:
        for metrics in trainer.fit():
            if math.isfinite(metrics["loss"]):  # an update that is skipped has no loss to speak of
                losses.append(metrics["loss"])
            bar.update()
            if on_metrics:
                on_metrics(metrics)
            if trainer.update % every == 0 or (curve_points and trainer.update == experiment.updates):
                clock.stop()
                point = {
                    "update": trainer.update,
                    "seconds": round(note["seconds"], 1),
                    "core_seconds": round(note["core_seconds"], 1),
                    "loss": sum(losses) / len(losses) if losses else math.nan,
                    "validation_rmse": validation_rmse(experiment, trainer.averaged),
                    "skipped": trainer.skipped,
                }
                note["history"].append(point)
                bar.set_postfix(loss=f"{point['loss']:.3f}", validation_rmse=f"{point['validation_rmse']:.3f}")
                losses = []
                clock.start()
            if state and time.monotonic() - saved > save_every:
                clock.stop()
                trainer.save(state, {**note, "losses": losses})
                saved = time.monotonic()
                clock.start()
    finally:  # not the place to save: a run is stopped in the middle of an update, most often
        bar.close()
        clock.stop()
    if state:
        trainer.save(state, {**note, "losses": losses})
    return trainer.averaged, note


def run_filter(
    experiment: Experiment, model: AmortizedFilter, data: TestSet, cycles: int | None = None, progress: bool = False
) -> tuple[np.ndarray, float]:
    """Analysis ensembles of a filter along a test set (its first ``cycles``), and milliseconds per cycle.

    Of a filter that carries a covariance, they are :data:`DRAWS` members drawn from it around its analysis.

    The time is the processor's, so that whatever else the machine does does not count; on a GPU it is wall time. It
    holds the drawing of those members and their forecast over the lag, a quarter to a third of it.

    Raises
    ------
    ValueError : if the test set has not so many cycles.
    """
    if cycles is not None and not 1 <= cycles <= len(data.observations):
        raise ValueError(f"cycles = {cycles} must be between 1 and the {len(data.observations)} cycles of {data.name}.")
    observations, masks, truth = (
        torch.from_numpy(part[:cycles]) for part in (data.observations, data.masks, data.truth[1:])
    )
    near = starting_points(experiment, observations[0], masks[0], truth[0])
    torch.set_num_threads(experiment.threads)
    clock = time.process_time if experiment.torch_device.type == "cpu" else time.monotonic
    started = clock()
    ensemble = assimilate(
        model,
        observations,
        torch.Generator().manual_seed(experiment.seed),
        first_cycle=data.first_cycle,
        dropout=experiment.test_dropout,
        near=near,
        draws=DRAWS,
        progress=progress,
    )
    return ensemble.numpy(), 1000 * (clock() - started) / len(observations)


def score(
    experiment: Experiment,
    model: AmortizedFilter,
    split: str = "test",
    cycles: int | None = None,
    progress: bool = False,
) -> tuple[Scores, float]:
    """Scores over a whole frozen set, or its first ``cycles``, burn-in included; and milliseconds per cycle.

    Raises
    ------
    ValueError : if ``cycles`` are too few for an interval, or more than there are.
    """
    data = test_set_of(experiment, split)
    if cycles is not None and cycles < data.burn_in + 2 * BLOCK:
        raise ValueError(f"cycles = {cycles} must be at least {data.burn_in + 2 * BLOCK}, burn-in included.")
    ensemble, milliseconds = run_filter(experiment, model, data, cycles, progress)
    return evaluate(ensemble, data.truth[1:][:cycles], data.burn_in), milliseconds


def may_publish(experiment: Experiment, again: bool = False) -> None:
    """Ask, before a filter is trained, whether it can be published afterwards.

    Parameters
    ----------
    again : a filter of the same name that was trained in another way may be replaced.

    Raises
    ------
    LookupError : if the test set of a setting is not one of the project's frozen ones.
    FileExistsError : if there is another filter of that name.
    """
    for setting in scored_in(experiment):
        if not test_set_of(setting).frozen:
            raise LookupError(
                f"system = {setting.system!r} with step_size = {setting.step_size:g} has no frozen test set; make one "
                "with `python -m assim_lib test-sets` before publishing."
            )
    if not again and published(experiment.name).exists():
        stored = load_checkpoint(published(experiment.name))[1]["experiment"]
        there = Experiment.model_validate({**stored, "device": experiment.device}).model_dump()
        differ = [f"{k} = {there[k]!r}" for k, v in experiment.model_dump().items() if there[k] != v]
        if differ:
            raise FileExistsError(
                f"{experiment.name} is published already, from a training with {', '.join(differ)}; take another "
                "seed, or replace it with --again."
            )


def publish(experiment: Experiment, model: AmortizedFilter, record: dict[str, Any]) -> Path:
    """Store a trained filter under ``data/checkpoints`` and its scores, test and validation, under ``data/results``.

    A filter of many settings has one checkpoint, and a result in each of those that it is scored in.

    Raises
    ------
    LookupError : if the test set of a setting is not one of the project's frozen ones.
    """
    may_publish(experiment, again=True)
    checkpoint = published(experiment.name)
    scored = []
    for setting, there in in_settings(experiment, model, scored_in(experiment)):
        # What the same filter does before any training: the share of its classical part.
        untrained, _ = score(setting, build_filter(setting, model.climatology), "test")
        validation, _ = score(setting, there, "validation")
        scored.append((setting, untrained, validation, *score(setting, there, "test", progress=True)))
    # Not before all is known: an interrupted scoring leaves the old weights beside the old scores.
    save_checkpoint(model, checkpoint, record)
    for setting, untrained, validation, test, milliseconds in scored:
        store_result(
            f"{experiment.name}-{setting.setting}" if experiment.settings else experiment.name,
            test_set_of(setting),
            method=experiment.method,
            m=experiment.m,
            label=experiment.label,
            test=test,
            validation=validation,
            ms_per_cycle=milliseconds,
            seed=experiment.seed,
            checkpoint=checkpoint.name,
            details={
                **record,
                "untrained": untrained.as_dict(),
                "weights": sha256(checkpoint),
                "scored": provenance(str(experiment.torch_device)),
            },
        )
    return checkpoint


def publish_again(name: str) -> Path:
    """Score a published filter as the library is now, and store that; its weights stay as they are.

    Raises
    ------
    FileNotFoundError : if there is no checkpoint of that name.
    """
    experiment, model = load_filter(published(name))
    _, record = load_checkpoint(published(name))
    del record["sha256"]
    return publish(experiment, model, record)


def load_filter(path: Path, **changed: Any) -> tuple[Experiment, AmortizedFilter]:
    """A trained filter and its experiment, from a checkpoint, on the CPU or the GPU that is there.

    Parameters
    ----------
    changed : options that differ from those it was trained with, e.g. ``noise=2.0``.

    Raises
    ------
    ParameterError : if the filter cannot have them.
    """
    weights, record = load_checkpoint(path)
    experiment = Experiment.model_validate_json(json.dumps({**record["experiment"], "device": "auto"}))
    experiment = experiment.changed(**changed)
    model = build_filter(experiment, weights["climatology"])
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        if not changed:
            raise
        asked = ", ".join(f"{name} = {value!r}" for name, value in changed.items())
        raise ParameterError(
            f"{asked}: the weights of {path.stem} are of another shape; train a filter for it."
        ) from None
    return experiment, model.eval()


def published(name: str) -> Path:
    """The path of a committed checkpoint."""
    return data_dir() / "checkpoints" / f"{name}.safetensors"


def best_filter(**setting: Any) -> tuple[Experiment, AmortizedFilter, pd.Series]:
    """The published filter that is best on validation data in a setting, and its row of the table of scores.

    A filter that was trained in many settings comes in that of the row.

    Parameters
    ----------
    setting : columns of the table and their values, e.g. ``method="amortized", obs_conf="full_obs"``.

    Raises
    ------
    LookupError : if no filter is published for the setting.
    """
    rows = load_scores(**setting)
    rows = rows[rows.checkpoint.notna()]
    if rows.empty:
        raise LookupError(f"no published filter has {', '.join(f'{k} = {v!r}' for k, v in setting.items())}.")
    row = rows.loc[rows.validation_rmse.idxmin()]
    scored = {"obs_conf": row.obs_conf, "step_size": float(row.step_size), "noise": float(row.noise)}
    return *load_filter(data_dir() / "checkpoints" / row.checkpoint, **scored), row

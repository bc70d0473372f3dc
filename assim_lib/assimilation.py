"""Observations of one's own, assimilated by a trained filter: :func:`assimilate_record`."""

import json
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from assim_lib.filter import AmortizedFilter
from assim_lib.observations import identity
from assim_lib.own.cycling import cold_state, members_of, run_along
from assim_lib.own.innovations import SETTLING, InnovationScores, InnovationSums
from assim_lib.own.output import check_destination, layout, opened, read_back, refuse_same_files, written
from assim_lib.own.record import OwnRecord, read_record
from assim_lib.own.remarks import INSTEAD, Outliers, remark_on_innovations, remark_on_mask, usable_error
from assim_lib.own.sources import PART
from assim_lib.own.state import FilterState, load_state, save_state
from assim_lib.tracking import DRAWS
from assim_lib.training.checkpoints import (
    checkpoint_record,
    known_filter,
    load_filter,
    refuse_renamed,
    stored_experiment,
)
from assim_lib.training.experiment import Experiment, ParameterError, refuse_unknown

MOST = 2**32 - 1  # of seeds, and of numbers of cycles
CHANGED = ("obs_conf", "step_size", "noise")  # options of a filter that may be other than in training


class Assimilated(NamedTuple):
    """What comes of a record: ``analysis``, a dataset with mean, spread and innovations (of a file, read when
    it is looked at); ``scores`` of the innovations
    (without the first cycles after a cold start); ``state``, where the filter stands at the end."""

    analysis: xr.Dataset
    scores: InnovationScores
    state: FilterState


def assimilate_record(
    name: str | Path, observations: Any, output: str | Path | None = None, progress: bool = False, **options: Any
) -> Assimilated:
    """Run a trained filter along observations of one's own.

    Args:
        name: of a filter in ``data/checkpoints``, or the path of its weights.
        observations: a path (netCDF, .zarr, .csv) or numbers in memory, (time, site) or (time, channel, site); see
            :func:`assim_lib.own.record.read_record`.
        output: file for the analysis, netCDF or, where it ends in ``.zarr``, Zarr; None: it is only returned.
        options: those of :func:`prepare_record`.

    Raises:
        ParameterError, RecordError, FileNotFoundError: before anything is computed, one sentence about what cannot be.
        IntegrityError: if the filter or its state is damaged.
    """
    return prepare_record(name, observations, output, **options)(progress)


def prepare_record(
    name: str | Path,
    observations: Any,
    output: str | Path | None = None,
    *,
    state: str | Path | None = None,
    members: bool = False,
    any_mask: bool = False,
    drop_outliers: bool = False,
    compiled: bool = False,
    variable: str | None = None,
    error: Any = None,
    fill_value: Any = None,
    interval: Any = None,
    first_cycle: int | None = None,
    seed: int | None = None,
    checkpoints: str | Path | None = None,
    chunk: int | None = None,
    **changed: Any,
) -> Callable[[bool], Assimilated]:
    """Check everything that can be checked; what is returned (of ``progress``) then does it.

    Args:
        state: a file from which the filter goes on, if there is one, and where it is kept at the end.
        members: return the members too; of a filter that carries a covariance, draws from it.
        any_mask: use all numbers, also those where the filter's schedule expects none.
        drop_outliers: do not use numbers more than ten expected deviations off their forecast.
        compiled: compile the filter, which takes a minute: for long records.
        variable, error, fill_value, interval: see :func:`assim_lib.own.record.read_record`.
        first_cycle: number of the record's first cycle in the observation schedule, and in time, 0 by default.
        seed: of the cold start and of what is drawn; the filter's own by default.
        checkpoints: folder of the filter, if not ``data/checkpoints``.
        chunk: so many cycles are in memory at a time, of a record that is a netCDF or Zarr file (1000 by default); the
            numbers are the same.
        changed: options of the filter that differ from those it was trained with: ``obs_conf``, ``step_size``,
            ``noise``.
    """
    own = [
        option.name for option in signature(prepare_record).parameters.values() if option.kind is option.KEYWORD_ONLY
    ]
    refuse_unknown(changed, [*own, *CHANGED])
    for option, value, least, most in (
        ("first_cycle", first_cycle, 0, MOST),
        ("seed", seed, 0, MOST),
        ("chunk", chunk, 1, 10**6),
    ):
        _refuse_out_of_bounds(option, value, least, most)
    read = {"observations": observations} if isinstance(observations, str | Path) else {}
    refuse_same_files({**read, "state": state, "output": output})
    path = known_filter(name, checkpoints)
    stored = checkpoint_record(path)
    trained = stored_experiment(stored)
    refuse_renamed(path, trained)
    changed = {option: value for option, value in changed.items() if value is not None}
    several = {"n_settings": 0} if trained.n_settings else {}
    experiment, model = load_filter(path, **several, **changed)
    if experiment.noise != trained.noise and not several and not model.analysis.weighs_errors:
        raise ParameterError(
            f"noise = {experiment.noise:g} cannot be weighed by analysis = {experiment.analysis!r}, which was trained "
            f"with {trained.noise:g}; {INSTEAD}"
        )
    if any_mask:
        model = _of_any_mask(model, experiment)
    for where, destination in {"output": output, "state": state}.items():
        if destination is not None:
            check_destination(Path(destination).expanduser(), where)
    asked = json.dumps({**changed, "any_mask": any_mask}, sort_keys=True)
    kept = _kept_state(state, path.stem, stored["sha256"], asked)
    if kept and first_cycle is not None:
        raise ParameterError(f"first_cycle = {first_cycle} would be ignored: {state} says which cycle is the next.")
    if kept and seed is not None:
        raise ParameterError(f"seed = {seed} would be ignored: {state} holds the members that go on.")
    shape = model.climatology.shape[-2:]
    record = read_record(
        observations,
        tuple(shape),
        experiment.step_size,
        variable=variable,
        error=error,
        fill_value=fill_value,
        interval=interval,
        since=kept.clock if kept else None,
    )
    weighed = usable_error(record, model, experiment.analysis)
    first = record.begins(model.dynamics.depends_on_time) if first_cycle is None else first_cycle
    number = kept.number if kept else first
    remark_on_mask(record, model.observation_model.schedule.cpu().numpy(), experiment.obs_conf, number)

    if compiled:
        model = model.compiled(whole=not experiment.test_dropout)

    def run(progress: bool = False) -> Assimilated:
        at = kept or cold_state(
            model, experiment.seed if seed is None else seed, number, _near(experiment, model, record, number)
        )
        about = {"filter": path.stem, "filter_sha256": stored["sha256"], "ensemble": _ensemble(model)}
        about["observation_error"] = _assumed(model, record)
        planned = layout(record, number, tuple(shape), members_of(at.carry) if members else 0, about)
        destination = None if output is None else Path(output).expanduser()
        if destination is None:
            planned = planned.copy(deep=True)
        sums, outliers = InnovationSums(), Outliers()
        with (
            opened(planned, destination) as sink,
            tqdm(total=record.cycles, desc="assimilate", unit="cycle", disable=not progress) as bar,
        ):
            for first, values, own_error in record.parts(chunk or PART):
                counted = slice(max(0, SETTLING + model.warmup - at.age), None)
                cycled = run_along(
                    model,
                    values,
                    at,
                    own_error if weighed else None,
                    experiment.test_dropout,
                    members,
                    drop_outliers,
                    bar.update,
                )
                at = cycled.state
                sums.add(cycled.innovation[counted], cycled.expected[counted])
                outliers.add(first, cycled.outlier)
                sink.write(first, written(cycled))
            sink.finish(sums.scores)
        remark_on_innovations(outliers, sums.scores, model, drop_outliers)
        end = replace(at, clock=record.clock, filter=path.stem, weights=stored["sha256"], options=asked)
        if state is not None:  # last: a run that is stopped before it begins again where it began
            save_state(end, Path(state).expanduser())
        return Assimilated(planned if destination is None else read_back(destination), sums.scores, end)

    return run


def _refuse_out_of_bounds(name: str, value: Any, least: int, most: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if value is not None and not (whole and least <= value <= most):
        raise ParameterError(
            f"{name} = {value!r} (of type {type(value).__name__}) must be a whole number from {least} to {most}."
        )


def _of_any_mask(model: AmortizedFilter, experiment: Experiment) -> AmortizedFilter:
    instruments = model.observation_model
    if instruments.unknown:
        raise ParameterError(
            f"any_mask = True needs instruments that are known, and some of obs_conf = {experiment.obs_conf!r} are not."
        )
    everywhere = replace(instruments, schedule=torch.ones_like(instruments.schedule))
    return model.with_observations(everywhere, experiment.step_size).eval()


def _kept_state(state: str | Path | None, name: str, weights: str, asked: str) -> FilterState | None:
    if state is None or not Path(state).expanduser().exists():
        return None
    kept = load_state(Path(state).expanduser())
    other = (kept.filter, kept.weights) != (name, weights)
    if other or kept.options != asked:
        what = f"another filter, {kept.filter}" if other else f"other options, {kept.options}"
        raise ParameterError(
            f"state = {str(state)!r} belongs to {what}; take another file, or remove it to begin again."
        )
    return kept


def _near(experiment: Experiment, model: AmortizedFilter, record: OwnRecord, number: int) -> torch.Tensor | None:
    """Filters that start around the truth know the first observation at best; ``number`` is that of its cycle."""
    instruments = model.observation_model
    if experiment.start == "climatology" or instruments.operator is not identity:
        return None
    return instruments.usable(torch.from_numpy(record.part(0, 1).values[0]), number)


def _assumed(model: AmortizedFilter, record: OwnRecord) -> str:
    """What the errors of the observations are taken for."""
    if record.part(0, 1).error is not None:
        return "that of the record"
    sizes = sorted({f"{float(size):.4g}" for size in (model.error.min(), model.error.max())}, key=float)
    return f"{' … '.join(sizes)}, the filter's own; the record has none"


def _ensemble(model: AmortizedFilter) -> str:
    if model.analysis.maximum_members == 1:
        return f"{DRAWS} members drawn from a covariance"
    return f"{model.analysis.members} members"

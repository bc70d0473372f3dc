"""Observations of one's own, assimilated by a trained filter: :func:`assimilate_record`."""

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch

from assim_lib.filter import AmortizedFilter
from assim_lib.mistakes import is_whole
from assim_lib.own.cycling import cold_state, known_at_first
from assim_lib.own.output import check_destination, refuse_same_files
from assim_lib.own.record import read_record
from assim_lib.own.remarks import INSTEAD, remark_on_mask, usable_error
from assim_lib.own.run import Assimilated, AssimilationRun
from assim_lib.own.sources import PART
from assim_lib.own.state import FilterState, load_state
from assim_lib.training.checkpoints import known_filter, load_filter, stored_experiment, stored_log
from assim_lib.training.experiment import Experiment, ParameterError, refuse_unknown

MOST = 2**32 - 1  # of seeds, and of numbers of cycles
CHANGED = ("obs_conf", "step_size", "noise")  # options of a filter that may be other than in training


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
) -> AssimilationRun:
    """Check everything that can be checked; what is returned then does it.

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
    own = [one.name for one in signature(prepare_record).parameters.values() if one.kind is one.KEYWORD_ONLY]
    refuse_unknown(changed, [*own, *CHANGED])
    _refuse_out_of_bounds("first_cycle", first_cycle, 0, MOST)
    _refuse_out_of_bounds("seed", seed, 0, MOST)
    _refuse_out_of_bounds("chunk", chunk, 1, 10**6)
    read = {"observations": observations} if isinstance(observations, str | Path) else {}
    refuse_same_files({**read, "state": state, "output": output})
    changed = {option: value for option, value in changed.items() if value is not None}
    chosen = _chosen_filter(name, checkpoints, any_mask, changed)
    for where, destination in {"output": output, "state": state}.items():
        if destination is not None:
            check_destination(_path(destination), where)
    asked = json.dumps({**changed, "any_mask": any_mask}, sort_keys=True)
    kept = _kept_state(state, chosen, asked, {"first_cycle": first_cycle, "seed": seed})
    experiment, model = chosen.experiment, chosen.model
    record = read_record(
        observations,
        tuple(model.climatology.shape[-2:]),
        experiment.step_size,
        variable=variable,
        error=error,
        fill_value=fill_value,
        interval=interval,
        since=kept.clock if kept else None,
    )
    weighs = usable_error(record, model, experiment.analysis)
    number = record.begins(model.dynamics.depends_on_time) if first_cycle is None else first_cycle
    number = kept.number if kept else number
    remark_on_mask(record, model.observation_model.schedule.cpu().numpy(), experiment.obs_conf, number)
    start = kept
    if start is None:
        near = known_at_first(experiment.start, model, record.part(0, 1).values[0], number)
        start = cold_state(model, experiment.seed if seed is None else seed, number, near)
    return AssimilationRun(
        model.compiled(whole=not experiment.test_dropout) if compiled else model,
        record,
        replace(start, filter=chosen.name, weights=chosen.sha256, options=asked),
        weighs=weighs,
        dropout=experiment.test_dropout,
        members=members,
        drop_outliers=drop_outliers,
        output=None if output is None else _path(output),
        state=None if state is None else _path(state),
        chunk=chunk or PART,
    )


class _Chosen(NamedTuple):
    """A stored filter, as it is used."""

    name: str
    sha256: str
    experiment: Experiment
    model: AmortizedFilter


def _chosen_filter(
    name: str | Path, checkpoints: str | Path | None, any_mask: bool, changed: dict[str, Any]
) -> _Chosen:
    path = known_filter(name, checkpoints)
    stored = stored_log(path)
    trained = stored_experiment(stored)
    experiment, model = load_filter(path, n_settings=0, **changed)
    if experiment.noise != trained.noise and not trained.n_settings and not model.analysis.weighs_errors:
        raise ParameterError(
            f"noise = {experiment.noise:g} cannot be weighed by analysis = {experiment.analysis!r}, which was trained "
            f"with {trained.noise:g}; {INSTEAD}"
        )
    if any_mask:
        model = _of_any_mask(model, experiment)
    return _Chosen(path.stem, stored["sha256"], experiment, model)


def _path(name: str | Path) -> Path:
    return Path(name).expanduser()


def _refuse_out_of_bounds(name: str, value: Any, least: int, most: int) -> None:
    if value is not None and not is_whole(value, least, most):
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


def _kept_state(
    state: str | Path | None, chosen: _Chosen, asked: str, ignored: dict[str, int | None]
) -> FilterState | None:
    """Where the filter goes on, if it does; then it knows by itself what would be ``ignored``."""
    if state is None or not _path(state).exists():
        return None
    kept = load_state(_path(state))
    other = (kept.filter, kept.weights) != (chosen.name, chosen.sha256)
    if other or kept.options != asked:
        what = f"another filter, {kept.filter}" if other else f"other options, {kept.options}"
        raise ParameterError(
            f"state = {str(state)!r} belongs to {what}; take another file, or remove it to begin again."
        )
    knows = {"first_cycle": "says which cycle is the next", "seed": "holds the members that go on"}
    for option, value in ignored.items():
        if value is not None:
            raise ParameterError(f"{option} = {value} would be ignored: {state} {knows[option]}.")
    return kept

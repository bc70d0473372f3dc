"""A run, from its experiment to a trained filter and the record of how it came about."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from assim_lib.filter import AmortizedFilter
from assim_lib.storage import provenance
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import pretrained_filter, read_state
from assim_lib.training.data import training_data
from assim_lib.training.experiment import Experiment, ParameterError
from assim_lib.training.graphs import check_ways
from assim_lib.training.many_settings import training_settings
from assim_lib.training.own_record import innovation_rmse, on_record
from assim_lib.training.processes import Processes
from assim_lib.training.trainer import Trainer
from assim_lib.training.validation import validation_rmse


class _Clock:
    """Adds the time between start and stop to a record, that of the processor times the number of processes; stopped
    while validating and saving.
    """

    def __init__(self, record: dict[str, Any], processes: int):
        self.record, self.processes = record, processes
        self.start()

    def start(self) -> None:
        self.since: tuple[float, float] | None = (time.monotonic(), time.process_time())

    def stop(self) -> None:
        if self.since:
            self.record["seconds"] += time.monotonic() - self.since[0]
            self.record["core_seconds"] += self.processes * (time.process_time() - self.since[1])
        self.since = None


def train(
    experiment: Experiment,
    folder: Path | str | None = None,
    curve_points: int = 40,
    save_every: float = 60.0,
    progress: bool = True,
    compiled: bool = False,
    graphed: bool = False,
    recompute: bool = False,
    on_metrics: Callable[[dict[str, int | float]], None] | None = None,
    observations: Any = None,
) -> tuple[AmortizedFilter, dict[str, Any]]:
    """Train a filter; resume if ``folder`` holds an unfinished run of the same experiment.

    In a process group of :mod:`torch.distributed` all processes train it together, see
    :mod:`~assim_lib.training.processes`. The first of them validates, writes and shows progress; all return the filter.

    Args:
        folder: where the state of the run is kept, every ``save_every`` seconds and at the end; a run that was stopped
            goes on from there as if nothing had happened. None: nowhere.
        curve_points: how many times the averaged weights are scored on validation data (0: never).
        compiled: whether to compile the filter: updates of a small network take two thirds of the time, after a minute.
        graphed: whether to launch an update as one, on a GPU: a quarter of the time for filters without Kalman algebra.
        recompute: whether to hold one cycle at a time in memory, a fraction of it, for up to twice the time.
        on_metrics: called after every update.
        observations: a record of one's own to train on in place of simulated ones: a path, numbers in memory, or what
            :func:`~assim_lib.own.record.read_record` returns. Its last fifth is held out; the ``history`` then has
            ``innovation_rmse`` there in place of ``validation_rmse``.

    Returns:
        The filter with the averaged weights, and the record of the run with its ``experiment``, its ``provenance``, the
        time spent on updates alone (``seconds`` of wall time, ``core_seconds`` of processor time) and its ``history``,
        which the first process alone has; and ``compiled``, ``graphed`` or ``recompute``, where some of it was done so:
        the numbers are the same but for rounding.

    Raises:
        ValueError: if ``folder`` holds a run with other options, :func:`~assim_lib.training.graphs.check_ways` refuses
            how it is to be computed, or the batch is no multiple of the number of processes.
        FileNotFoundError, ParameterError: if ``experiment.pretrained`` names no filter, or one of another shape.
        RecordError: if ``observations`` cannot be used.
    """
    if not isinstance(experiment, Experiment):
        raise ParameterError(
            f"experiment = {experiment!r} of type {type(experiment).__name__} must be one that configure(…) returns."
        )
    check_ways(experiment, graphed, recompute)
    processes = Processes.met()
    processes.check(experiment)
    first = processes.rank == 0
    progress = progress and first
    own = None
    if observations is not None:
        experiment, own = on_record(experiment, observations)
    elif experiment.record:
        raise ParameterError(
            f"record = {experiment.record!r} is trained on again with its observations, none are given."
        )
    state = Path(folder) / "state.safetensors" if folder else None
    # The units of the features come from the climatology; on another machine the same seed makes another one.
    climatology = read_state(state, experiment)[1]["model.climatology"] if state and state.exists() else None
    model = pretrained_filter(experiment) if experiment.pretrained else build_filter(experiment, climatology)
    if own:
        data = [own.training_data(experiment)]
    else:
        data = [training_data(setting, progress) for setting in training_settings(experiment)]
    judged, judge = "validation_rmse", partial(validation_rmse, experiment)
    if own:
        judged, judge = "innovation_rmse", partial(innovation_rmse, experiment, data=own)
    trainer = Trainer(experiment, model, *data, compiled=compiled, graphed=graphed, recompute=recompute)
    several = {"processes": processes.world} if processes.world > 1 else {}
    note: dict[str, Any] = {
        "experiment": experiment.model_dump(),
        "provenance": provenance(str(experiment.torch_device)) | several,
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
    how = {"compiled": compiled, "graphed": graphed, "recompute": recompute}
    note |= {name: True for name, chosen in how.items() if chosen}
    processes.agree(trainer.update)
    if not first:
        state, curve_points = None, 0
    every = max(1, experiment.updates // curve_points) if curve_points else experiment.updates + 1
    clock, saved = _Clock(note, processes.world), time.monotonic()
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
                    judged: judge(trainer.averaged),
                    "skipped": trainer.skipped,
                }
                note["history"].append(point)
                bar.set_postfix({name: f"{point[name]:.3f}" for name in ("loss", judged)})
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
    processes.wait()  # for what the first has written
    return trainer.averaged, note

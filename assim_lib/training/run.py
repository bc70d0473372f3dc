"""A run, from its experiment to a trained filter and the log of how it came about."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass
class _Run:
    """A training while it goes on, with its log.

    Attributes:
        trainer: what is trained.
        judged: what the learning curve shows beside the loss, and what finds it.
        log: of the training; its ``seconds`` and ``core_seconds`` are those between start and stop.
        state: file where trainer and log are kept; None: nowhere.
        processes: number of those that train it together.
        losses: since the last point of the learning curve.
    """

    trainer: Trainer
    judged: tuple[str, Callable[[AmortizedFilter], float]]
    log: dict[str, Any]
    state: Path | None
    processes: int
    losses: list[float] = field(default_factory=list)
    since: tuple[float, float] | None = None

    def start(self) -> None:
        self.since = (time.monotonic(), time.process_time())

    def stop(self) -> None:
        if self.since:
            self.log["seconds"] += time.monotonic() - self.since[0]
            self.log["core_seconds"] += self.processes * (time.process_time() - self.since[1])
        self.since = None

    def resume(self) -> None:
        """Go on from the file of an unfinished run, if there is one."""
        if not (self.state and self.state.exists()):
            return
        now, self.log = self.log["provenance"], self.trainer.load(self.state)
        self.losses = self.log.pop("losses", [])
        if now not in (self.log["provenance"], *self.log.get("resumed", [])):
            self.log.setdefault("resumed", []).append(now)

    def save(self) -> None:
        if self.state:
            self.trainer.save(self.state, {**self.log, "losses": self.losses})

    def look(self) -> dict[str, str]:
        """Add a point to the learning curve; its last numbers, in words."""
        name, judge = self.judged
        point = {
            "update": self.trainer.update,
            "seconds": round(self.log["seconds"], 1),
            "core_seconds": round(self.log["core_seconds"], 1),
            "loss": sum(self.losses) / len(self.losses) if self.losses else math.nan,
            name: judge(self.trainer.averaged),
            "skipped": self.trainer.skipped,
        }
        self.log["history"].append(point)
        self.losses = []
        return {number: f"{point[number]:.3f}" for number in ("loss", name)}


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
        The filter with the averaged weights, and the training log, with its ``experiment``, its ``provenance``, the
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
        judged = "innovation_rmse", partial(innovation_rmse, experiment, data=own)
    else:
        data = [training_data(setting, progress and first) for setting in training_settings(experiment)]
        judged = "validation_rmse", partial(validation_rmse, experiment)
    how = {"compiled": compiled, "graphed": graphed, "recompute": recompute}
    trainer = Trainer(experiment, model, *data, **how)
    several = {"processes": processes.world} if processes.world > 1 else {}
    log: dict[str, Any] = {
        "experiment": experiment.model_dump(),
        "provenance": provenance(str(experiment.torch_device)) | several,
        "seconds": 0.0,
        "core_seconds": 0.0,
        "history": [],
    }
    run = _Run(trainer, judged, log, state, processes.world)
    run.resume()
    run.log |= {name: True for name, chosen in how.items() if chosen}
    processes.agree(trainer.update)
    if not first:
        run.state, curve_points = None, 0
    bar = tqdm(
        total=experiment.updates,
        initial=trainer.update,
        desc=f"train {experiment.name}",
        unit="update",
        disable=not (progress and first),
    )
    _go_on(run, bar, curve_points, save_every, on_metrics)
    run.save()
    processes.wait()  # for what the first has written
    return trainer.averaged, run.log


def _go_on(
    run: _Run,
    bar: tqdm,
    curve_points: int,
    save_every: float,
    on_metrics: Callable[[dict[str, int | float]], None] | None,
) -> None:
    """Train to the last update; the clock stands still while a run is validated and saved."""
    updates = run.trainer.experiment.updates
    saved = time.monotonic()
    run.start()
    try:
        for metrics in run.trainer.fit():
            if math.isfinite(metrics["loss"]):  # an update that is skipped has no loss to speak of
                run.losses.append(metrics["loss"])
            bar.update()
            if on_metrics:
                on_metrics(metrics)
            update = run.trainer.update
            if update * curve_points // updates > (update - 1) * curve_points // updates:
                run.stop()
                bar.set_postfix(run.look())
                run.start()
            if run.state and time.monotonic() - saved > save_every:
                run.stop()
                run.save()
                saved = time.monotonic()
                run.start()
    finally:  # not the place to save: a run is stopped in the middle of an update, most often
        bar.close()
        run.stop()

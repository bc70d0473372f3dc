"""What a trained filter stands: very long runs from cold starts, and settings that it was not trained on.

Truth and errors are simulated here, as many as it takes, and are none of those that filters are trained, tuned or
scored on.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor
from tqdm import tqdm

from assim_lib.dynamics import Dynamics
from assim_lib.evaluation import rmse
from assim_lib.experiments import Experiment
from assim_lib.filters import AmortizedFilter, Carry, assimilate
from assim_lib.runs import load_filter, published
from assim_lib.storage import atomic_path, data_dir, provenance, write_json
from assim_lib.systems import system_of
from assim_lib.training import load_checkpoint
from assim_lib.trajectories import simulate

SEED = 4000
STARTS, LONG, BLOCK = 20, 100_000, 1000  # cold starts, cycles, and cycles between two savings
LOST_AFTER = 100  # worse than climatology on average over so many cycles: the truth is lost
SEGMENTS, SHORT, SPINUP = 32, 300, 100  # of the short runs in other settings; the first cycles do not count


def robustness_path(name: str) -> Path:
    """Where the results of a filter are stored."""
    return data_dir() / "robustness" / f"{name}.json"


def examined() -> dict[str, dict[str, Any]]:
    """The stored results by the name of the filter: ``long``, ``transfer`` and ``provenance`` of each."""
    folder = robustness_path("").parent
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def long_runs_table() -> pd.DataFrame:
    """What the stored long runs say, one row a filter.

    Returns
    -------
    ``cycles`` and ``starts``; the mean ``rmse`` without the block of the cold start; the ``worst`` mean over
    :data:`LOST_AFTER` cycles after it, and ``climatology`` to compare it with; ``recovery``, the first cycle at which the last start
    had an error below half of the climatology's; and the number of starts that were ``lost`` at any time after the first block.
    """
    rows = {}
    for name, result in examined().items():
        run = result["long"]
        error, worst, first = (np.array(run[key]) for key in ("rmse", "worst", "first"))
        found = first < run["climatology"] / 2
        rows[name] = {
            "cycles": run["cycles"],
            "starts": error.shape[1],
            "rmse": error[1:].mean(),
            "worst": worst[1:].max(),
            "climatology": run["climatology"],
            "recovery": found.argmax(1).max() + 1 if found.any(1).all() else np.nan,
            "lost": int((worst[1:] > run["climatology"]).any(0).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("filter")


def transfer_table() -> pd.DataFrame:
    """What filters do in settings that they were not trained in, one row a filter and setting, see :func:`transfer`."""
    rows = [{"filter": name, **row} for name, result in examined().items() for row in result["transfer"]]
    return pd.DataFrame(sorted(rows, key=lambda row: _order(row["setting"])))


def _order(setting: str) -> tuple[int, float]:
    """Where a setting stands among those of several filters: as trained, errors, places, intervals, forcings."""
    kind, number = setting.rsplit(" ", 1) if " " in setting else (setting, "")
    kinds = ["as", "σ =", "places", "interval", "true forcing"]
    known = kind in kinds
    return kinds.index(kind if known else "places"), float(number) if known and kind != "as" else 0.0


def examine(name: str, folder: Path, cycles: int = LONG, progress: bool = True) -> Path:
    """Long run and other settings of a published filter; store both.

    Parameters
    ----------
    folder : for the state of the long run, which goes on from there after an interruption.
    cycles : of the long run, a multiple of :data:`BLOCK`; at least two blocks, since the first does not count.

    Raises
    ------
    ValueError : if ``cycles`` cannot be, or the state in ``folder`` is that of another run.
    """
    if cycles < 2 * BLOCK:
        raise ValueError(f"cycles = {cycles} must be at least {2 * BLOCK}.")
    experiment, model = load_filter(published(name))
    origin, state = provenance(str(experiment.torch_device)), folder / "long.safetensors"
    long = long_run(experiment, model, cycles, state, progress)
    results = {
        "transfer": transfer(published(name), progress),
        "long": long,
        "weights": load_checkpoint(published(name))[1]["sha256"],
        "provenance": origin,
    }
    write_json(robustness_path(name), results)
    # Asked again, after a change of the library, the run begins again.
    state.unlink()
    return robustness_path(name)


class _LongRun:
    """Truths and the filters that follow them, block by block."""

    def __init__(self, experiment: Experiment, model: AmortizedFilter, starts: int):
        self.experiment, self.model, self.device = experiment, model, experiment.torch_device
        self.dynamics = system_of(experiment.system)
        source = torch.Generator().manual_seed(SEED)
        self.truth = self.dynamics.on_attractor(starts, source)
        self.carry = model.cold_start(starts, generator=source)
        self.blocks: list[dict[str, Any]] = []
        weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
        self.owner = hashlib.sha256(save(weights) + experiment.model_dump_json().encode()).hexdigest()

    @torch.no_grad()
    def advance(self, on_cycle: Callable[[], Any]) -> None:
        steps, starts = self.dynamics.steps_per_cycle(self.experiment.step_size), len(self.truth)
        states = []
        for _ in range(BLOCK):
            self.truth = self.dynamics.flow(self.truth, steps)
            states.append(self.dynamics.resolved(self.truth).float())
        truth = torch.stack(states, 1)
        random = np.random.default_rng([SEED, len(self.blocks)])
        errors = torch.from_numpy(random.standard_normal(truth.shape, dtype=np.float32))
        # A block is a whole number of periods of every schedule: its first cycle has the number 0.
        seen = self.model.observation_model.observe(truth, errors, self.experiment.noise)
        # Of its own for each block, so that a run that was interrupted goes on as it would have.
        dropout = torch.Generator().manual_seed(SEED + len(self.blocks)) if self.experiment.test_dropout else None
        series = np.empty((starts, BLOCK))
        for k in range(BLOCK):
            age = len(self.blocks) * BLOCK + k
            self.carry, analysis = self.model.cycle(self.carry, seen[:, k].to(self.device), k, dropout, age=age)
            series[:, k] = rmse(analysis.cpu().numpy(), truth[:, k].numpy())
            on_cycle()
        running = np.lib.stride_tricks.sliding_window_view(series, LOST_AFTER, axis=1).mean(-1)
        block: dict[str, Any] = {"rmse": series.mean(1), "worst": running.max(1)}
        if not self.blocks:
            block |= {"first": series[:, : 2 * LOST_AFTER], "climatology": _climatology(truth)}
        self.blocks.append({key: np.round(value, 4).tolist() for key, value in block.items()})

    def save(self, path: Path) -> None:
        tensors = {"truth": self.truth, **self.carry._asdict()}
        with atomic_path(path) as temporary:
            # Without a lag base and forecast are one tensor; a file has no two names for one.
            copies = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
            save_file(copies, temporary, {"blocks": json.dumps(self.blocks), "owner": self.owner})

    def load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if header.get("owner") != self.owner or len(tensors["truth"]) != len(self.truth):
            raise ValueError(
                f"{path} belongs to a run of another filter, or of other starts; remove it to begin again."
            )
        self.blocks = json.loads(header["blocks"])
        self.truth = tensors.pop("truth")
        self.carry = Carry(**{name: tensor.to(self.device) for name, tensor in tensors.items()})


def long_run(
    experiment: Experiment,
    model: AmortizedFilter,
    cycles: int = LONG,
    state: Path | None = None,
    progress: bool = True,
    starts: int = STARTS,
) -> dict[str, Any]:
    """Follow independent truths for many cycles, each filter from a cold start of its own.

    Parameters
    ----------
    cycles : a multiple of :data:`BLOCK`.
    state : file that the run goes on from after an interruption, saved after each block.

    Returns
    -------
    By block and start: mean RMSE (``rmse``) and the largest mean over :data:`LOST_AFTER` cycles in it (``worst``); the RMSE
    of each of the first cycles (``first``); the RMSE of the climatological mean (``climatology``); and by start the
    number of blocks in which the truth was ``lost``, that of the cold start included.

    Raises
    ------
    ValueError : if ``cycles`` cannot be, or ``state`` is that of another run.
    """
    if cycles < BLOCK or cycles % BLOCK:
        raise ValueError(f"cycles = {cycles} must be a positive multiple of {BLOCK}.")
    run = _LongRun(experiment, model, starts)
    if state and state.exists():
        run.load(state)
    done = BLOCK * len(run.blocks)
    with tqdm(total=cycles, initial=done, desc="long run", unit="cycle", disable=not progress) as bar:
        while len(run.blocks) * BLOCK < cycles:
            run.advance(bar.update)
            if state:
                run.save(state)
    blocks = run.blocks[: cycles // BLOCK]
    climatology = blocks[0]["climatology"]
    worst = np.array([block["worst"] for block in blocks])
    return {
        "cycles": cycles,
        "block": BLOCK,
        "climatology": climatology,
        "rmse": [block["rmse"] for block in blocks],
        "worst": worst.tolist(),
        "first": blocks[0]["first"],
        "lost": (worst > climatology).sum(0).tolist(),
    }


def changes(experiment: Experiment) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Other settings by name: options of the experiment that differ, and attributes of the true system.

    The filter is told what an observer knows (error, places and interval of the observations), and not what nobody
    tells it: that the true system has another forcing than its model.
    """
    dt, noise = experiment.step_size, experiment.noise
    settings: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"as trained": ({}, {})}
    settings |= {f"σ = {scale * noise:g}": ({"noise": scale * noise}, {}) for scale in (0.3, 0.5, 2.0, 3.0)}
    confs = ("full_obs", "partial_obs", "every_4th_dim_partial_obs", "every_4th_fixed")
    settings |= {conf: ({"obs_conf": conf}, {}) for conf in confs if conf != experiment.obs_conf}
    intervals = [round(scale * dt, 6) for scale in (0.5, 1.5, 2.0)]
    settings |= {f"interval {interval:g}": ({"step_size": interval}, {}) for interval in intervals}
    own = getattr(system_of(experiment.system), "forcing", None)
    if own is not None:
        forcings = [own * share for share in (0.75, 0.875, 1.125, 1.25)]
        settings |= {f"true forcing {forcing:g}": ({}, {"forcing": forcing}) for forcing in forcings}
    return settings


def transfer(checkpoint: Path, progress: bool = True) -> list[dict[str, Any]]:
    """A trained filter in other settings, from cold starts.

    Returns
    -------
    By setting: mean RMSE after :data:`SPINUP` cycles with its standard error over independent runs, the RMSE
    of climatology, and the share of runs that end worse than that. A setting in which the filter cannot work has a
    ``reason`` in their place.
    """
    experiment, _ = load_filter(checkpoint)
    rows = []
    for name, (changed, true) in tqdm(changes(experiment).items(), desc="other settings", disable=not progress):
        try:
            other, model = load_filter(checkpoint, **changed)
            dynamics = replace(system_of(other.system), **true)
            rows.append({"setting": name, **_short_runs(other, model, dynamics)})
        except ValueError as error:
            rows.append({"setting": name, "reason": str(error).splitlines()[0]})
    return rows


def _short_runs(experiment: Experiment, model: AmortizedFilter, dynamics: Dynamics) -> dict[str, float]:
    spinup = SPINUP + model.spinup  # while its lag grows, a filter is not yet what it will be
    data = simulate(dynamics, experiment.step_size, SHORT + model.spinup, SEGMENTS, SEED)
    truth, unit_noise = (torch.from_numpy(data[name].values) for name in ("truth", "unit_noise"))
    seen = model.observation_model.observe(truth[:, 1:], unit_noise, experiment.noise)
    ensemble = assimilate(model, seen, torch.Generator().manual_seed(SEED), dropout=experiment.test_dropout)
    error = rmse(ensemble.numpy(), truth[:, 1:].numpy())[:, spinup:]
    climatology = _climatology(truth)
    return {
        "rmse": float(error.mean()),
        "standard_error": float(error.mean(1).std(ddof=1) / SEGMENTS**0.5),
        "climatology": climatology,
        "lost": float((error[:, -LOST_AFTER:].mean(1) > climatology).mean()),
    }


def _climatology(truth: Float[Tensor, "segment time channel site"]) -> float:
    return float((truth - truth.mean((0, 1, 3), keepdim=True)).square().mean().sqrt())

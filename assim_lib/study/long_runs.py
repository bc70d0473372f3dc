"""What a trained filter stands: very long runs from cold starts, stored beside what it does in other settings.

Truth and errors are simulated here, as many as it takes, and are none of those that filters are trained, tuned or
scored on.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from tqdm import tqdm

from assim_lib.evaluation import LOST_AFTER, is_lost, rmse
from assim_lib.filter import AmortizedFilter, Carry
from assim_lib.seeds import STRESS
from assim_lib.setting import places
from assim_lib.storage import OtherRunError, data_dir, provenance, refuse_uncommitted
from assim_lib.stored import Number, Stored
from assim_lib.study.results import Provenance
from assim_lib.study.transfer import Transferred, place_of, transfer
from assim_lib.systems import system_of
from assim_lib.tensor_files import load_tensors, save_tensors
from assim_lib.training.checkpoints import checkpoint_path, load_filter, stored_log
from assim_lib.training.experiment import Experiment

STARTS, LONG, SAVED_CYCLES = 20, 100_000, 1000  # cold starts, cycles, and cycles between two savings


class LongRun(Stored):
    """Many filters of one kind, each from a cold start of its own, after truths of their own.

    Attributes:
        cycles: length of the run.
        block: length of the blocks that it is told in.
        climatology: RMSE of the climatological mean.
        rmse: mean RMSE, by block and start.
        worst: the largest mean over :data:`~assim_lib.evaluation.LOST_AFTER` cycles that end in a block, by block and
            start. In files from before, these lie within the block as well.
        first: RMSE of each of the first cycles, by start.
        lost: number of blocks in which the truth was lost, that of the cold start included, by start. An error that is
            no number loses it as well.
    """

    cycles: int
    block: int
    climatology: float
    rmse: list[list[Number]]
    worst: list[list[Number]]
    first: list[list[Number]]
    lost: list[int]

    @property
    def starts(self) -> int:
        """Number of cold starts."""
        return len(self.lost)


class StressTest(Stored):
    """What is stored of a filter: its long run, and the rows of :func:`~assim_lib.study.transfer.transfer`."""

    transfer: list[Transferred]
    long: LongRun
    weights: str
    provenance: Provenance


def stress_path(name: str) -> Path:
    """Where the results of a filter are stored."""
    return data_dir() / "robustness" / f"{name}.json"


def stress_tests() -> dict[str, StressTest]:
    """The stored results by the name of the filter."""
    return {path.stem: StressTest.read(path) for path in sorted(stress_path("").parent.glob("*.json"))}


def long_runs_table() -> pd.DataFrame:
    """What the stored long runs say, one row a filter.

    Returns:
        ``cycles`` and ``starts``; the mean ``rmse`` without the block of the cold start; the ``worst`` mean over
        :data:`~assim_lib.evaluation.LOST_AFTER` cycles after it, and ``climatology`` to compare it with; ``recovery``,
        the first cycle at which the last start had an error below half of the climatology's; and the number of starts
        that were ``lost`` at any time after the first block.
    """
    rows = {}
    for name, result in stress_tests().items():
        run = result.long
        error, worst, first = (np.array(series) for series in (run.rmse, run.worst, run.first))
        tracked = first < run.climatology / 2
        rows[name] = {
            "cycles": run.cycles,
            "starts": run.starts,
            "rmse": error[1:].mean(),
            "worst": worst[1:].max(),
            "climatology": run.climatology,
            "recovery": tracked.argmax(1).max() + 1 if tracked.any(1).all() else np.nan,
            "lost": int(is_lost(worst[1:], run.climatology).any(0).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("filter")


def transfer_table() -> pd.DataFrame:
    """What filters do in settings that they were not trained in, one row a filter and change."""
    stored = [(name, row) for name, result in stress_tests().items() for row in result.transfer]
    rows = [{"filter": name, **row.model_dump(exclude_unset=True)} for name, row in stored]
    table = pd.DataFrame(sorted(rows, key=lambda row: place_of(row["change"])))
    return table.assign(change=table.change.map(places))


def stress_test(name: str, folder: Path, cycles: int = LONG, progress: bool = True) -> Path:
    """Long run and other settings of a stored filter; store both.

    Args:
        folder: for the state of the long run, which goes on from there after an interruption.
        cycles: of the long run, a multiple of :data:`SAVED_CYCLES`, at least twice; the first block does not count.

    Raises:
        ValueError: if ``cycles`` cannot be, or the state in ``folder`` is that of another run.
        PermissionError: if the library has changes that are not committed.
    """
    refuse_uncommitted()
    if cycles < 2 * SAVED_CYCLES:
        raise ValueError(f"cycles = {cycles} must be at least {2 * SAVED_CYCLES}.")
    experiment, model = load_filter(checkpoint_path(name))
    origin, state = provenance(str(experiment.torch_device)), folder / "long.safetensors"
    long = long_run(experiment, model, cycles, state, progress)
    result = StressTest(
        transfer=transfer(checkpoint_path(name), progress),
        long=long,
        weights=stored_log(checkpoint_path(name))["sha256"],
        provenance=Provenance(**origin),
    )
    result.write(stress_path(name), exclude_unset=True)
    # Asked again, after a change of the library, the run begins again.
    state.unlink()
    return stress_path(name)


class _Runs:
    """Truths and the filters that follow them, block by block."""

    def __init__(self, experiment: Experiment, model: AmortizedFilter, starts: int):
        self.experiment, self.model, self.device = experiment, model, experiment.torch_device
        self.dynamics = system_of(experiment.system)
        source = torch.Generator().manual_seed(STRESS)
        # A cycle before the first observation.
        self.truth = self.dynamics.states_at(starts, source, until=-experiment.step_size)
        self.carry = model.cold_start(starts, generator=source)
        self.blocks: list[dict[str, Any]] = []
        self.latest = np.empty((starts, 0))  # RMSE of the last cycles, for means that begin before a block
        weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
        self.owner = hashlib.sha256(save(weights) + experiment.model_dump_json().encode()).hexdigest()

    @torch.no_grad()
    def advance(self, on_cycle: Callable[[], Any]) -> None:
        steps, starts = self.dynamics.steps_per_cycle(self.experiment.step_size), len(self.truth)
        states, begun = [], len(self.blocks) * SAVED_CYCLES
        for number in range(begun, begun + SAVED_CYCLES):
            time = self.dynamics.cycle_time(number - 1, self.experiment.step_size)
            self.truth = self.dynamics.flow_at(self.truth, steps, time)
            states.append(self.dynamics.resolved(self.truth).float())
        truth = torch.stack(states, 1)
        random = np.random.default_rng([STRESS, len(self.blocks)])
        errors = torch.from_numpy(random.standard_normal(truth.shape, dtype=np.float32))
        numbers = begun + torch.arange(SAVED_CYCLES)
        observations = self.model.observation_model.observe(truth, errors, numbers).to(self.device)
        # Of its own for each block, so that a run that was interrupted goes on as it would have.
        dropout = torch.Generator().manual_seed(STRESS + len(self.blocks)) if self.experiment.test_dropout else None
        series = np.empty((starts, SAVED_CYCLES))
        for k in range(SAVED_CYCLES):
            age = begun + k
            self.carry, analysis = self.model.cycle(self.carry, observations[:, k], age, dropout, age=age)
            series[:, k] = rmse(analysis.cpu().numpy(), truth[:, k].numpy())
            on_cycle()
        joined = np.concatenate([self.latest, series], 1)
        self.latest = joined[:, 1 - LOST_AFTER :]
        running = np.lib.stride_tricks.sliding_window_view(joined, LOST_AFTER, axis=1).mean(-1)
        block: dict[str, Any] = {"rmse": series.mean(1), "worst": running.max(1)}
        if not self.blocks:
            spread = (truth - truth.mean((0, 1, 3), keepdim=True)).square().mean().sqrt()
            block |= {"first": series[:, : 2 * LOST_AFTER], "climatology": float(spread)}
        self.blocks.append({key: np.round(value, 4).tolist() for key, value in block.items()})

    def save(self, path: Path) -> None:
        header = {"blocks": json.dumps(self.blocks), "owner": self.owner}
        latest = torch.from_numpy(self.latest)
        save_tensors(path, {"truth": self.truth, "latest": latest, **self.carry.tensors()}, header)

    def load(self, path: Path) -> None:
        header, tensors = load_tensors(path, "state of a long run")
        if header.get("owner") != self.owner or len(tensors["truth"]) != len(self.truth) or "latest" not in tensors:
            raise OtherRunError(
                f"{path} belongs to a run of another filter, or of other starts; remove it to begin again."
            )
        self.blocks = json.loads(header["blocks"])
        self.truth, self.latest = tensors.pop("truth"), tensors.pop("latest").numpy()
        self.carry = Carry(**{name: tensor.to(self.device) for name, tensor in tensors.items()})


def long_run(
    experiment: Experiment,
    model: AmortizedFilter,
    cycles: int = LONG,
    state: Path | None = None,
    progress: bool = True,
    starts: int = STARTS,
) -> LongRun:
    """Follow independent truths for many cycles, each filter from a cold start of its own.

    Args:
        cycles: a multiple of :data:`SAVED_CYCLES`.
        state: file that the run goes on from after an interruption, saved after each block.

    Raises:
        ValueError: if ``cycles`` cannot be, or ``state`` is that of another run.
    """
    if cycles < SAVED_CYCLES or cycles % SAVED_CYCLES:
        raise ValueError(f"cycles = {cycles} must be a positive multiple of {SAVED_CYCLES}.")
    runs = _Runs(experiment, model, starts)
    if state and state.exists():
        runs.load(state)
    done = SAVED_CYCLES * len(runs.blocks)
    with tqdm(total=cycles, initial=done, desc="long run", unit="cycle", disable=not progress) as bar:
        while len(runs.blocks) * SAVED_CYCLES < cycles:
            runs.advance(bar.update)
            if state:
                runs.save(state)
    blocks = runs.blocks[: cycles // SAVED_CYCLES]
    climatology = blocks[0]["climatology"]
    worst = np.array([block["worst"] for block in blocks])
    return LongRun(
        cycles=cycles,
        block=SAVED_CYCLES,
        climatology=climatology,
        rmse=[block["rmse"] for block in blocks],
        worst=worst.tolist(),
        first=blocks[0]["first"],
        lost=is_lost(worst, climatology).sum(0).tolist(),
    )

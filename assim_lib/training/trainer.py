r"""Training: from noisy observations alone, end to end through the dynamics.

An update takes a few filters of a :class:`~assim_lib.training.pool.FilterPool` a window further and applies one
gradient. One loop, a generator, does all of it; several processes may share each update (see
:mod:`~assim_lib.training.processes`). One network may also be trained in many settings at once: each then
has a pool of its own, and each update is made in one of them.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from assim_lib.filter import AmortizedFilter, Carry
from assim_lib.seeds import Purpose, generator_for, seed_for
from assim_lib.tensor_files import save_tensors
from assim_lib.training.checkpoints import read_state
from assim_lib.training.data import TrainingData
from assim_lib.training.experiment import Experiment
from assim_lib.training.graphs import GraphedUnroll, check_ways
from assim_lib.training.many_settings import in_settings, training_settings
from assim_lib.training.muon import Muon
from assim_lib.training.pool import FilterPool, Window
from assim_lib.training.processes import Processes

WARMUP = 100
# Gradients through chaos are sometimes astronomically large; such an update says nothing, and is skipped.
LARGEST_GRADIENT = 1e3
# So many in a row are no accident: nothing is learned, and nothing will be.
MOST_SKIPPED = 300


class NothingLearnedError(FloatingPointError):
    """A training in which one update after the other is skipped."""


class Trainer:
    """A filter, its optimizers, and the pools it is trained in.

    Args:
        experiment: sizes, rates and the seed of the run.
        model: the filter to train, on its device.
        data: one for each of the settings that :func:`~assim_lib.training.many_settings.training_settings` names.
        compiled: whether to compile the filter (see :meth:`~assim_lib.filter.AmortizedFilter.compiled`).
        graphed: whether to launch all of an update's operations as one, on a GPU.
        recompute: whether to hold one cycle at a time in memory, see :mod:`~assim_lib.training.recompute`.

    Raises:
        ValueError: if there are too few or too many, or a :class:`~assim_lib.training.pool.FilterPool` refuses one; if
            :func:`~assim_lib.training.graphs.check_ways` refuses how it is to be computed; if a batch is no multiple
            of the number of processes.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: AmortizedFilter,
        *data: TrainingData,
        compiled: bool = False,
        graphed: bool = False,
        recompute: bool = False,
    ):
        check_ways(experiment, graphed, recompute)
        self.experiment, self.model, self.graphed = experiment, model, graphed
        self.processes = Processes.met()
        self.processes.check(experiment)
        self.processes.share(model)
        self.generator = self.processes.drawing(generator_for(Purpose.TRAINING, experiment.seed))
        trained = model.with_members(experiment.training_m or experiment.m).with_lag(experiment.training_lag(0))
        settings = in_settings(experiment, trained, training_settings(experiment))
        self.pools = [
            FilterPool(*setting, observed, self.generator, compiled, recompute)
            for setting, observed in zip(settings, data, strict=True)
        ]
        self.ema = AveragedModel(model, avg_fn=_moving_average(experiment.averaging))
        hidden = model.analysis.trunk.named_parameters()
        # What is read out is no hidden matrix: of the library's networks it is called head, or heads.
        matrices = [p for name, p in hidden if p.ndim == 2 and not {"head", "heads"} & set(name.split("."))]
        others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        hidden_group, other_group = [{"params": matrices}], [{"params": others}]  # either may be empty
        decay = experiment.weight_decay
        hidden_optimizer = (
            Muon(hidden_group, lr=experiment.lr, weight_decay=decay)
            if experiment.optimizer == "muon"
            else torch.optim.AdamW(hidden_group, lr=experiment.lr, weight_decay=decay, betas=(0.9, 0.99))
        )
        self.optimizers = {
            "hidden": hidden_optimizer,
            "others": torch.optim.AdamW(other_group, lr=experiment.adamw_lr, weight_decay=0.0, betas=(0.9, 0.99)),
        }
        self.update = self.skipped = 0
        self.weights = list(model.parameters())
        self._graphs: dict[FilterPool, GraphedUnroll] = {}
        if graphed:
            self.device_generator = self.processes.drawing(torch.Generator(experiment.torch_device))
            self.device_generator.manual_seed(seed_for(Purpose.TRAINING, experiment.seed))

    @property
    def averaged(self) -> AmortizedFilter:
        """The filter with the moving average of the weights, which is smoother than the last weights."""
        return cast(AmortizedFilter, self.ema.module).with_lag(self.lag)

    @property
    def lag(self) -> int:
        """The lag that the filters of the pools have."""
        return self.pools[0].model.lag

    def fit(self) -> Iterator[dict[str, int | float]]:
        """Train up to ``experiment.updates`` updates, yielding the metrics of each; may be left and entered again.

        Raises:
            NothingLearnedError: after :data:`MOST_SKIPPED` updates in a row whose gradients are of no use.
        """
        in_a_row = 0
        while self.update < self.experiment.updates:
            skipped = self.skipped
            metrics = self._step()
            in_a_row = in_a_row + 1 if self.skipped > skipped else 0
            if in_a_row == MOST_SKIPPED:
                options = self.experiment
                raise NothingLearnedError(
                    f"{options.name}: {in_a_row} updates in a row were skipped, their gradients above "
                    f"{LARGEST_GRADIENT:g} or not finite (the last loss is {metrics['loss']:.3g}); take a smaller lr, "
                    f"lag or window than {options.lr:g}, {options.lag} and {options.window}, and see that all "
                    "observations are numbers."
                )
            yield metrics

    def _step(self) -> dict[str, int | float]:
        rate = self._set_learning_rate()
        self._set_lag(self.update)
        pool = self._choose_pool()
        slots = pool.choose()
        loss, carry = self._unroll(pool, self.processes.part(pool.window(slots)))
        loss, carry = self.processes.average(loss, self.weights), self.processes.whole(carry)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.experiment.clip_norm)
        usable = bool(norm < max(LARGEST_GRADIENT, self.experiment.clip_norm))  # False for a NaN as well
        if usable:
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.ema.update_parameters(self.model)
        self.skipped += not usable
        self.update += 1
        pool.advance(slots, carry)
        return {
            "update": self.update,
            "loss": float(loss.detach()),
            "gradient": float(norm),
            "rate": rate,
            "skipped": self.skipped,
        }

    def _unroll(self, pool: FilterPool, window: Window) -> tuple[Tensor, Carry]:
        """The loss of a window and where its filters end; the gradients are where optimizers look for them."""
        if self.graphed:
            if pool not in self._graphs:
                drawing = partial(pool.unroll, generator=self.device_generator)
                self._graphs[pool] = GraphedUnroll(drawing, self.weights, window, self.device_generator)
            return self._graphs[pool](window)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss, carry = pool.unroll(window)
        loss.backward()
        return loss, carry

    def gradients(self, batches: int) -> Float[Tensor, "batch weight"]:
        """The gradient of the loss of each of some batches, not clipped, while the weights stay; the pool moves on."""
        weights, rows = [p for p in self.model.parameters() if p.requires_grad], []
        for _ in range(batches):
            pool = self._choose_pool()
            slots = pool.choose()
            loss, carry = pool.unroll(pool.window(slots))
            parts = torch.autograd.grad(loss, weights, materialize_grads=True)
            rows.append(torch.cat([part.flatten() for part in parts]))
            pool.advance(slots, carry)
        return torch.stack(rows)

    def _choose_pool(self) -> FilterPool:
        if len(self.pools) == 1:
            return self.pools[0]
        return self.pools[int(torch.randint(len(self.pools), (), generator=self.generator))]

    def _set_lag(self, update: int) -> None:
        lag = self.experiment.training_lag(update)
        if lag == self.lag:
            return
        for pool in self.pools:
            pool.fill(pool.model.with_lag(lag))
        self._graphs.clear()

    def _set_learning_rate(self) -> float:
        done = self.update / self.experiment.updates
        if self.experiment.rates == "steps":
            scale = min(1.0, 0.37 ** (1 - 10 * done)) * 0.5 ** ((done >= 0.4) + (done >= 0.8))
        else:
            scale = min(1.0, (self.update + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        for optimizer, rate in zip(
            self.optimizers.values(), (self.experiment.lr, self.experiment.adamw_lr), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        return self.experiment.lr * scale

    def save(self, path: Path, note: dict[str, Any] | None = None) -> None:
        """Write everything needed to go on, in one file, atomically. ``note`` is kept with it."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        for number, pool in enumerate(self.pools):
            tensors |= {f"pool{number}.{k}": v for k, v in pool.state_dict().items()}
        tensors["generator"] = self.generator.get_state()
        if self.graphed:
            tensors["device_generator"] = self.device_generator.get_state()
        header = {
            "experiment": self.experiment.model_dump_json(),
            "progress": json.dumps({"update": self.update, "skipped": self.skipped}),
            "note": json.dumps(note or {}),
        }
        save_tensors(path, tensors, header)

    def load(self, path: Path) -> dict[str, Any]:
        """Take up a run where :meth:`save` left it; returns the note.

        Raises:
            ValueError: if the file belongs to a run with other options.
            IntegrityError: if it is damaged.
        """
        header, tensors = read_state(path, self.experiment)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.ema.load_state_dict(part("ema."))
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in part(f"{name}.").items():
                index, field = key.split(".", 1)
                state.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        progress = json.loads(header["progress"])
        self.update, self.skipped = progress["update"], progress["skipped"]
        self._set_lag(max(self.update - 1, 0))
        for number, pool in enumerate(self.pools):
            pool.load_state_dict(part(f"pool{number}."))
        self.generator.set_state(tensors["generator"])
        if self.graphed and "device_generator" in tensors:
            self.device_generator.set_state(tensors["device_generator"])
        return json.loads(header["note"])


def _moving_average(largest: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        # Its memory grows with the run: early weights are soon forgotten, late ones averaged over many updates.
        return averaged.lerp(current, 1 - min(largest, (1 + int(count)) / (10 + int(count))))

    return average

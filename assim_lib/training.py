r"""Training: from noisy observations alone, end to end through the dynamics.

:class:`Trainer` keeps a pool of filters, each somewhere along one of the training trajectories. An update takes a few
of them a window further and applies one gradient; ensemble and memory are carried, detached, to the next window,
so that the filters of the pool are as warm as at test time. One loop, a generator, does all of it.

One network may also be trained in many settings at once. Each is then a :class:`Course` with a record and a pool of its
own, and each update is made in one of them.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from assim_lib.experiments import Experiment
from assim_lib.filters import AmortizedFilter, Carry
from assim_lib.integrators import rollout
from assim_lib.losses import LOSSES, NEEDS_TRUTH, Step, trajectory_weight
from assim_lib.observations import observation_model
from assim_lib.storage import IntegrityError, atomic_path, sha256, verify, write_json
from assim_lib.variety import variations

WARMUP = 100
# Gradients through chaos are sometimes astronomically large; such an update says nothing, and is skipped.
LARGEST_GRADIENT = 1e3


class Record(NamedTuple):
    """What a filter is trained on, each (segment, cycle, channel, site).

    observations : zero where nothing is seen; without errors, and everywhere, where these are drawn afresh at each pass.
    near : what filters start from, NaN where that is the climatology; None if it is everywhere.
    truth : only for the losses in :data:`~assim_lib.losses.NEEDS_TRUTH`; None for the others.
    phase : (segment, cycle), entries of the observation schedule; None if they come in turn.
    """

    observations: Float[Tensor, "segment cycle channel site"]
    near: Float[Tensor, "segment cycle channel site"] | None = None
    truth: Float[Tensor, "segment cycle channel site"] | None = None
    phase: Int[Tensor, "segment cycle"] | None = None

    def to(self, device: torch.device) -> "Record":
        """The same numbers on a device."""
        return Record(*(x if x is None else x.to(device) for x in self))


def _moving_average(largest: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        # Its memory grows with the run: early weights are soon forgotten, late ones averaged over many updates.
        return averaged.lerp(current, 1 - min(largest, (1 + int(count)) / (10 + int(count))))

    return average


def in_settings(
    experiment: Experiment, model: AmortizedFilter, settings: list[Experiment]
) -> list[tuple[Experiment, AmortizedFilter]]:
    """Each of the settings with the filter in it, weights shared; the model itself if the experiment has no others."""
    if not experiment.settings:
        return [(setting, model) for setting in settings]
    grid = model.climatology.shape[-2:]
    return [(s, model.elsewhere(observation_model(s.obs_conf, *grid), s.noise, s.step_size)) for s in settings]


class Course:
    """A pool of filters that are trained in one setting, each somewhere along one of its trajectories.

    Parameters
    ----------
    experiment : the setting, with the sizes of window and pool.
    model : the filter to train, in that setting and on its device.
    record : observations; the truth only for the losses in :data:`~assim_lib.losses.NEEDS_TRUTH`.
    generator : of the run, from which everything is drawn.

    Raises
    ------
    ValueError : if the record holds a truth that the loss has no use for, or lacks one that it needs.
    """

    def __init__(self, experiment: Experiment, model: AmortizedFilter, record: Record, generator: torch.Generator):
        if (record.truth is not None) != (experiment.loss in NEEDS_TRUTH):
            raise ValueError(
                f"loss = {experiment.loss!r} and a record {'without' if record.truth is None else 'with'} the truth."
            )
        self.experiment, self.model, self.record, self.generator = experiment, model, record, generator
        self.observations = record.observations
        self.segment, self.position = self._enter(experiment.pool)
        # Without a lag base and forecast are one tensor; the pool is written in place, and wants two.
        self.pool = Carry(*(part.clone() for part in self._cold_start(self.segment, self.position)))

    def _enter(self, filters: int) -> tuple[Tensor, Tensor]:
        """Random trajectories, and random cycles in them at which a window fits: phases of a schedule stay mixed."""
        segments, cycles = self.observations.shape[:2]
        segment = torch.randint(segments, (filters,), generator=self.generator)
        last = cycles - self.reach
        return segment, torch.randint(self.model.spinup, last, (filters,), generator=self.generator)

    @property
    def reach(self) -> int:
        """Number of cycles from the first of a window to the last that is compared with its forecasts."""
        return self.experiment.window + self.experiment.leads - 1

    def _received(self, segment: Tensor, cycles: Tensor) -> tuple[Tensor, Tensor]:
        """Observations of some cycles, and the entries of the schedule that they are of."""
        device = self.observations.device
        segment, cycles = segment.to(device)[:, None], cycles.to(device)
        values, period = self.observations[segment, cycles], len(self.model.schedule)
        if self.experiment.noise_draws == "once":
            return values, cycles % period if self.record.phase is None else self.record.phase[segment, cycles]
        phase = cycles % period
        if self.experiment.order == "random":
            phase = torch.randint(period, cycles.shape, generator=self.generator).to(device)
        errors = self.experiment.noise * torch.randn(values.shape, generator=self.generator).to(device)
        return (values + errors) * self.model.schedule[phase], phase

    def _cold_start(self, segment: Tensor, position: Tensor) -> Carry:
        near = None if self.record.near is None else self.record.near[segment, position]
        carry = self.model.cold_start(len(segment), generator=self.generator, near=near)
        if not self.model.spinup:
            return carry
        return self.model.spun_up(
            carry, *self._received(segment, position[:, None] + torch.arange(-self.model.spinup, 0))
        )

    def choose(self) -> Tensor:
        """A random batch of the pool."""
        return torch.randperm(len(self.position), generator=self.generator)[: self.experiment.batch]

    def unroll(self, slots: Tensor) -> tuple[Tensor, Carry]:
        """The loss of some filters of the pool over their next window, and where they end."""
        device, loss_of = self.observations.device, LOSSES[self.experiment.loss]
        carry = Carry(*(part[slots.to(device)] for part in self.pool))
        cycles, leads = self.position[slots, None] + torch.arange(self.reach + 1), self.experiment.leads
        seen, phase = self._received(self.segment[slots], cycles)
        known, operator, noise = self.model.known[phase], self.model.observation_model.operator, self.experiment.noise
        segment = self.segment[slots, None].to(device)
        truth = None if self.record.truth is None else self.record.truth[segment, cycles.to(device)]
        losses = []
        for k in range(self.experiment.window):
            innovation = operator(carry.forecast.mean(-3)) - seen[:, k]
            carry, analysis = self.model.cycle(carry, seen[:, k], phase[:, k], self.generator)
            forecasts = rollout(lambda x: self.model.dynamics.flow(x, self.model.steps), carry.forecast, leads - 1)
            step = Step(
                analysis=analysis,
                forecasts=forecasts.movedim(0, 1),
                observation=seen[:, k],
                mask=known[:, k],
                next_observations=seen[:, k + 1 : k + 1 + leads],
                next_masks=known[:, k + 1 : k + 1 + leads],
                truth=None if truth is None else truth[:, k],
                operator=operator,
                noise=noise,
                weight=trajectory_weight(innovation, known[:, k], noise),
            )
            losses.append(loss_of(step))
        return torch.stack(losses).mean(), carry.detach()

    def advance(self, slots: Tensor, carry: Carry) -> None:
        """Put filters back into the pool a window later; some start anew, as all do at the end of their record."""
        position = self.position[slots] + self.experiment.window
        finite = torch.stack([part.flatten(1).isfinite().all(1) for part in carry]).all(0).cpu()
        restart = (position + self.reach >= self.observations.shape[1]) | ~finite
        restart |= torch.rand(len(slots), generator=self.generator) < self.experiment.restart
        self.position[slots] = position
        for pooled, old in zip(self.pool, carry, strict=True):
            pooled[slots.to(old.device)] = old
        again = slots[restart]
        if len(again):
            self.segment[again], self.position[again] = self._enter(len(again))
            with torch.no_grad():
                fresh = self._cold_start(self.segment[again], self.position[again])
            for pooled, new in zip(self.pool, fresh, strict=True):
                pooled[again.to(new.device)] = new

    def state_dict(self) -> dict[str, Tensor]:
        """Where the filters of the pool are."""
        pool = {f"pool.{k}": v for k, v in self.pool._asdict().items()}
        return {**pool, "segment": self.segment, "position": self.position}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the filters of the pool where they were."""
        self.pool = Carry(**{k: state[f"pool.{k}"].to(self.observations.device) for k in Carry._fields})
        self.segment, self.position = state["segment"], state["position"]


class Trainer:
    """A filter, its optimizers, and the courses it is trained in.

    Parameters
    ----------
    experiment : sizes, rates and the seed of the run.
    model : the filter to train, on its device.
    records : one for each of the settings that :func:`~assim_lib.variety.variations` names.

    Raises
    ------
    ValueError : if there are too few or too many records, or a :class:`Course` refuses one.
    """

    def __init__(self, experiment: Experiment, model: AmortizedFilter, *records: Record):
        self.experiment, self.model = experiment, model
        self.generator = torch.Generator().manual_seed(experiment.seed)
        trained = model.with_members(experiment.training_m or experiment.m)
        settings = in_settings(experiment, trained, variations(experiment))
        self.courses = [
            Course(*setting, record, self.generator) for setting, record in zip(settings, records, strict=True)
        ]
        self.ema = AveragedModel(model, avg_fn=_moving_average(experiment.averaging))
        hidden = model.analysis.trunk.named_parameters()
        matrices = [p for name, p in hidden if p.ndim == 2 and "head" not in name.split(".")]
        others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        hidden_optimizer = (
            torch.optim.Muon(matrices, lr=experiment.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            if experiment.optimizer == "muon"
            else torch.optim.AdamW(matrices, lr=experiment.lr, weight_decay=0.01, betas=(0.9, 0.99))
        )
        self.optimizers = {
            "hidden": hidden_optimizer,
            "others": torch.optim.AdamW(others, lr=experiment.adamw_lr, weight_decay=0.0, betas=(0.9, 0.99)),
        }
        self.update = self.skipped = 0

    @property
    def averaged(self) -> AmortizedFilter:
        """The filter with the moving average of the weights, which is smoother than the last weights."""
        return cast(AmortizedFilter, self.ema.module)

    def fit(self) -> Iterator[dict[str, int | float]]:
        """Train up to ``experiment.updates`` updates, yielding the metrics of each; may be left and entered again."""
        while self.update < self.experiment.updates:
            yield self._step()

    def _step(self) -> dict[str, int | float]:
        rate = self._set_learning_rate()
        course = self._course()
        slots = course.choose()
        loss, carry = course.unroll(slots)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.experiment.clip_norm)
        usable = bool(norm < max(LARGEST_GRADIENT, self.experiment.clip_norm))  # False for a NaN as well
        if usable:
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.ema.update_parameters(self.model)
        self.skipped += not usable
        self.update += 1
        course.advance(slots, carry)
        return {
            "update": self.update,
            "loss": float(loss.detach()),
            "gradient": float(norm),
            "rate": rate,
            "skipped": self.skipped,
        }

    def gradients(self, batches: int) -> Float[Tensor, "batch weight"]:
        """The gradient of the loss of each of so many batches, not clipped, while the weights stay; the pool moves on."""
        weights, found = [p for p in self.model.parameters() if p.requires_grad], []
        for _ in range(batches):
            course = self._course()
            slots = course.choose()
            loss, carry = course.unroll(slots)
            parts = torch.autograd.grad(loss, weights, materialize_grads=True)
            found.append(torch.cat([part.flatten() for part in parts]))
            course.advance(slots, carry)
        return torch.stack(found)

    def _course(self) -> Course:
        if len(self.courses) == 1:
            return self.courses[0]
        return self.courses[int(torch.randint(len(self.courses), (), generator=self.generator))]

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

    def _prefixed(self) -> dict[str, Course]:
        # A single course has none: unfinished runs of before there were several go on.
        several = len(self.courses) > 1
        return {f"course{i}." if several else "": course for i, course in enumerate(self.courses)}

    def save(self, path: Path, note: dict[str, Any] | None = None) -> None:
        """Write everything needed to go on, in one file, atomically. ``note`` is kept with it."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        for prefix, course in self._prefixed().items():
            tensors |= {f"{prefix}{k}": v for k, v in course.state_dict().items()}
        tensors["generator"] = self.generator.get_state()
        header = {
            "experiment": self.experiment.model_dump_json(),
            "progress": json.dumps({"update": self.update, "skipped": self.skipped}),
            "note": json.dumps(note or {}),
        }
        with atomic_path(path) as temporary:
            save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary, header)

    def load(self, path: Path) -> dict[str, Any]:
        """Take up a run where :meth:`save` left it; returns the note.

        Raises
        ------
        ValueError : if the file belongs to a run with other settings.
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
        for prefix, course in self._prefixed().items():
            course.load_state_dict(part(prefix))
        self.generator.set_state(tensors["generator"])
        progress = json.loads(header["progress"])
        self.update, self.skipped = progress["update"], progress["skipped"]
        return json.loads(header["note"])


def read_state(path: Path, experiment: Experiment) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of what :meth:`Trainer.save` wrote.

    Raises
    ------
    ValueError : if the file belongs to a run with other settings.
    """
    with safe_open(path, "pt") as file:
        header = file.metadata()
        if Experiment.model_validate_json(header["experiment"]) != experiment:
            raise ValueError(f"{path} belongs to a run with other settings; choose another folder, or remove it.")
        return header, {name: file.get_tensor(name) for name in file.keys()}


def save_checkpoint(model: AmortizedFilter, path: Path, record: dict[str, Any]) -> None:
    """Write a trained filter: weights as safetensors, and a JSON record with their SHA-256 beside them.

    The record is renamed into place last: a reader who finds a new one finds its weights.
    """
    with atomic_path(path) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, temporary)
        checksum = sha256(temporary)
    write_json(path.with_suffix(".json"), {"sha256": checksum, **record})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the record of a checkpoint, its checksum verified.

    Raises
    ------
    FileNotFoundError : if the weights or their record are missing.
    IntegrityError : if the weights are not those of the record.
    """
    sidecar = path.with_suffix(".json")
    if not (path.exists() and sidecar.exists()):
        raise FileNotFoundError(
            f"no checkpoint {path.stem} in {path.parent.name}: both its weights and its JSON record are needed."
        )
    record = json.loads(sidecar.read_text())
    if "sha256" not in record:
        raise IntegrityError(f"{sidecar.name} has no sha256; the checkpoint cannot be verified.")
    verify(path, record["sha256"])
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, record

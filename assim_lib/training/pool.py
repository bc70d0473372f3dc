"""Filters that are trained in turn, each somewhere along one of the training trajectories."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assim_lib.filter import AmortizedFilter, Carry
from assim_lib.losses import LOSSES, NEEDS_TRUTH, LossInputs, displacement_loss, trajectory_weight
from assim_lib.training.data import TrainingData
from assim_lib.training.experiment import Experiment
from assim_lib.training.recompute import recomputed


class Window(NamedTuple):
    """Some filters of a pool, and what they will meet in their next window.

    Attributes:
        carry: where they stand.
        received: NaN where nothing was received; of one cycle more than the forecasts reach.
        number: of the cycles.
        phase: entries of the observation schedule, which in a random order are not those of the numbers.
        truth: only for the losses in :data:`~assim_lib.losses.NEEDS_TRUTH`.
    """

    carry: Carry
    received: Float[Tensor, "batch cycle channel site"]
    number: Int[Tensor, "batch cycle"]
    phase: Int[Tensor, "batch cycle"]
    truth: Float[Tensor, "batch cycle channel site"] | None = None

    def tensors(self) -> list[Tensor]:
        """All of its numbers, in an order that does not change."""
        others = [self.received, self.number, self.phase, self.truth]
        return [*self.carry.tensors().values(), *(part for part in others if part is not None)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Window":
        """A window of other numbers, in that order."""
        names, rest = self.carry.tensors(), iter(tensors)
        carry = Carry(**{name: next(rest) for name in names})
        return Window(carry, *rest)


class FilterPool:
    """A pool of filters that are trained in one setting.

    An update takes a few of them a window further. Ensemble and memory are carried, detached, to the next window, so
    that the filters of the pool are as warm as at test time.

    Args:
        experiment: the setting, with the sizes of window and pool.
        model: the filter to train, in that setting and on its device.
        data: observations; the truth only for the losses in :data:`~assim_lib.losses.NEEDS_TRUTH`.
        generator: of the run, from which everything is drawn.
        compiled: whether to compile the filter for its windows (see
            :meth:`~assim_lib.filter.AmortizedFilter.compiled`).
        recompute: whether to keep nothing of a cycle for its gradient, and to compute it again; see
            :mod:`assim_lib.training.recompute`.

    Raises:
        ValueError: if the data hold a truth that the loss has no use for, or lack one that it needs.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: AmortizedFilter,
        data: TrainingData,
        generator: torch.Generator,
        compiled: bool = False,
        recompute: bool = False,
    ):
        if (data.truth is not None) != (experiment.loss in NEEDS_TRUTH):
            raise ValueError(
                f"loss = {experiment.loss!r} and training data {'without' if data.truth is None else 'with'} the truth."
            )
        self.experiment, self.data, self.generator = experiment, data, generator
        self.compiled, self.recompute = compiled, recompute
        self.fill(model)

    def fill(self, model: AmortizedFilter) -> None:
        """Start all filters anew, as copies of this one."""
        self.model = model
        # What starts anew comes in batches of any shape, each of which would have to be compiled.
        # A cycle that differentiates its model is not faster for faster parts.
        self.unrolled = model.compiled(whole=model.analysis.sees_gradient) if self.compiled else model
        self.segment, self.position = self._enter(self.experiment.pool)
        # Without a lag base and forecast are one tensor; the pool is written in place, and wants two.
        self.carry = self._cold_start(self.segment, self.position).each(torch.clone)

    @property
    def reach(self) -> int:
        """Number of cycles from the first of a window to the last that is compared with its forecasts."""
        return self.experiment.window + self.experiment.leads - 1

    def _enter(self, filters: int) -> tuple[Tensor, Tensor]:
        """Random trajectories, and random cycles in them at which a window fits: phases of a schedule stay mixed."""
        segments, cycles = self.data.observations.shape[:2]
        segment = torch.randint(segments, (filters,), generator=self.generator)
        last = cycles - self.reach
        return segment, torch.randint(self.model.warmup, last, (filters,), generator=self.generator)

    def _cold_start(self, segment: Tensor, position: Tensor) -> Carry:
        near = None if self.data.near is None else self.data.near[segment, position]
        first = self._number(position - self.model.warmup)
        carry = self.model.cold_start(len(segment), generator=self.generator, near=near, number=first)
        if not self.model.warmup:
            return carry
        before = position[:, None] + torch.arange(-self.model.warmup, 0)
        received, phase = self._received(segment, before)
        return self.model.warmed_up(carry, received, self._number(before), phase)

    def _number(self, cycles: Tensor) -> Tensor:
        """Numbers of the cycles of a trajectory, which need not have begun at the first."""
        first = 0 if self.data.first is None else self.data.first
        return cycles.to(self.data.observations.device) + first

    def _received(self, segment: Tensor, cycles: Tensor) -> tuple[Tensor, Tensor]:
        """Observations of some cycles, and the entries of the schedule that they are of."""
        device = self.data.observations.device
        segment, cycles = segment.to(device)[:, None], cycles.to(device)
        values, phase = self.data.observations[segment, cycles], cycles % len(self.model.schedule)
        if self.experiment.noise_draws == "once":
            return values, phase if self.data.phase is None else self.data.phase[segment, cycles]
        if self.experiment.order == "random":
            phase = torch.randint(len(self.model.schedule), cycles.shape, generator=self.generator).to(device)
        errors = self.model.error * torch.randn(values.shape, generator=self.generator).to(device)
        return torch.where(self.model.schedule[phase] > 0, values + errors, torch.nan), phase

    def choose(self) -> Tensor:
        """A random batch of the pool."""
        return torch.randperm(len(self.position), generator=self.generator)[: self.experiment.batch]

    def window(self, slots: Tensor) -> Window:
        """Some filters of the pool, with the observations of their next window."""
        device = self.data.observations.device
        cycles = self.position[slots, None] + torch.arange(self.reach + 1)
        received, phase = self._received(self.segment[slots], cycles)
        truth = None
        if self.data.truth is not None:
            truth = self.data.truth[self.segment[slots, None].to(device), cycles.to(device)]
        carry = self.carry.each(lambda part: part[slots.to(device)])
        return Window(carry, received, self._number(cycles), phase, truth)

    def unroll(self, window: Window, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        """The loss of some filters over their next window, and where they end.

        Args:
            generator: of dropout, where the analysis has any; the pool's by default.
        """
        carry, losses, generator = window.carry, [], generator or self.generator
        for k in range(self.experiment.window):
            if self.recompute:
                loss, carry = recomputed(self._cycle, generator, window, carry, k, generator)
            else:
                loss, carry = self._cycle(window, carry, k, generator)
            losses.append(loss)
        return torch.stack(losses).mean(), carry.each(torch.detach)

    def _cycle(self, window: Window, carry: Carry, k: int, generator: torch.Generator) -> tuple[Tensor, Carry]:
        """The loss of a window's cycle ``k``, and what is carried to the next."""
        loss_of, leads = LOSSES[self.experiment.loss], self.experiment.leads
        needed = slice(k, k + 1 + leads)
        received, phase = window.received[:, needed], window.phase[:, needed]
        # What a loss may look at: what was received, of instruments that a filter may know.
        comparable, values = self.model.known[phase] * received.isfinite(), received.nan_to_num(0.0, 0.0, 0.0)
        operator, sigma = self.model.observation_model.operator, self.model.error
        innovation = operator(carry.forecast.mean(-3)) - values[:, 0]
        before, number = carry, window.number[:, k]
        carry, analysis = self.unrolled.cycle(carry, received[:, 0], number, generator, phase=phase[:, 0])
        forecasts = [carry.forecast]
        for lead in range(1, leads):
            forecasts.append(self.unrolled.flow(forecasts[-1], 1, number + lead))
        inputs = LossInputs(
            analysis=analysis,
            forecasts=torch.stack(forecasts, 1),
            observation=values[:, 0],
            mask=comparable[:, 0],
            next_observations=values[:, 1:],
            next_masks=comparable[:, 1:],
            truth=None if window.truth is None else window.truth[:, k],
            operator=operator,
            sigma=sigma,
            weight=trajectory_weight(innovation, comparable[:, 0], sigma),
        )
        if self.model.displacement is None:
            return loss_of(inputs), carry
        return loss_of(inputs) + displacement_loss(inputs, self.model.displaced(before)), carry

    def advance(self, slots: Tensor, carry: Carry) -> None:
        """Put filters back into the pool a window later; some start anew, as all do at the end of their record."""
        position = self.position[slots] + self.experiment.window
        parts = carry.tensors().values()
        finite = torch.stack([part.flatten(1).isfinite().all(1) for part in parts]).all(0).cpu()
        restart = (position + self.reach >= self.data.observations.shape[1]) | ~finite
        restart |= torch.rand(len(slots), generator=self.generator) < self.experiment.restart
        self.position[slots] = position
        self._store(slots, carry)
        again = slots[restart]
        if len(again):
            self.segment[again], self.position[again] = self._enter(len(again))
            with torch.no_grad():
                self._store(again, self._cold_start(self.segment[again], self.position[again]))

    def _store(self, slots: Tensor, carry: Carry) -> None:
        pooled = self.carry.tensors()
        for name, part in carry.tensors().items():
            pooled[name][slots.to(part.device)] = part

    def state_dict(self) -> dict[str, Tensor]:
        """Where the filters of the pool are."""
        pool = {f"pool.{name}": part for name, part in self.carry.tensors().items()}
        return {**pool, "segment": self.segment, "position": self.position}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the filters of the pool where they were."""
        device = self.data.observations.device
        self.carry = Carry(**{name: state[f"pool.{name}"].to(device) for name in self.carry.tensors()})
        self.segment, self.position = state["segment"], state["position"]

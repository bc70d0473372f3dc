r"""The assimilation cycle: one code for training and for testing.

A filter carries its ensemble (and the analysis's memory) from one observation to the next. One cycle, with
lag :math:`L`:

1. the carried ``base``, the ensemble at :math:`t-L`, is corrected by what its ``forecast`` to :math:`t` missed
   in the observation :math:`y_t`;
2. the corrected base is forecast :math:`L+1` cycles: after :math:`L` of them it is the **analysis** at
   :math:`t`, after one more the **forecast** for :math:`t+1`;
3. the window moves by one: the base of the next cycle is the state one cycle after this one's.

After a cold start there may be a **lag warm-up**: the base stays where it is, until the observation is :math:`L` cycles
away. A forecast from a state that is hardly known would say nothing about an observation far ahead.

With :math:`L=0` this is the textbook forecast–analysis cycle. With :math:`L>0` the analysis is always the end
of a model trajectory, and an observation corrects the past through the dynamics, as in the iEnKS.
"""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assim_lib.analyses import Analysis, AnalysisInput
from assim_lib.compiled import Compiled, can_compile
from assim_lib.displacement import Displacement
from assim_lib.observations import ObservationModel
from assim_lib.systems import Dynamics


class Carry(NamedTuple):
    """What a filter knows before an observation.

    Args:
        base: states at t − L.
        forecast: their forecast at t.
        memory: of the analysis.
        covariance: of the error of the base in units of the climatology, where the analysis carries one.
        recent: what the last L cycles received, zero elsewhere, and where something was; if the analysis asks for it.
    """

    base: Float[Tensor, "*batch member channel site"]
    forecast: Float[Tensor, "*batch member channel site"]
    memory: Float[Tensor, "*batch memories site features"]
    covariance: Float[Tensor, "*windows state state"] | None = None
    recent: Float[Tensor, "*batch cycle 2 channel site"] | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Carry":
        """The same with a change made to each of its parts."""
        return Carry(**{name: change(part) for name, part in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Its parts by name, without one that is not carried."""
        return {name: part for name, part in self._asdict().items() if part is not None}


class Received(NamedTuple):
    """What arrives at a cycle; see :class:`~assim_lib.analyses.AnalysisInput`.

    Args:
        known: which entries come from an instrument whose operator may be used.
        number: of the cycle in time.
    """

    observation: Float[Tensor, "*batch channel site"]
    mask: Float[Tensor, "*batch channel site"]
    known: Float[Tensor, "*batch channel site"]
    error: Float[Tensor, "channel site"]
    error_variance: Float[Tensor, "channel site"]
    phase: Int[Tensor, "*batch"]
    number: Int[Tensor, "*batch"]


class AmortizedFilter(nn.Module):
    """A learned recurrent ensemble filter.

    Args:
        dynamics: the differentiable forecast model.
        observation_model: what is seen at each cycle, and with what error.
        analysis: one of :data:`assim_lib.analyses.ANALYSES`.
        step_size: observation interval, a multiple of the dynamics' step.
        climatology: (state, channel, site) states of the free-running model; cold starts are drawn from them, and so
            know nothing of the truth unless they are given something to start near (see :meth:`cold_start`).
        lag_warmup: cycles after which the lag of a new filter grows by one, from none; 0: it is L at once.
        clamp: states are kept within this many climatological standard deviations of the mean.
        displacement: what is added to each analysis before it is returned, see :mod:`assim_lib.displacement`. Nothing
            is forecast from that.
    """

    climatology: Tensor
    schedule: Tensor
    known: Tensor
    error: Tensor
    error_variance: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        dynamics: Dynamics,
        observation_model: ObservationModel,
        analysis: Analysis,
        step_size: float,
        climatology: Float[Tensor, "state channel site"],
        lag_warmup: int = 0,
        clamp: float = 4.0,
        displacement: Displacement | None = None,
    ):
        super().__init__()
        self.dynamics, self.observation_model, self.analysis = dynamics, observation_model, analysis
        self.displacement = displacement
        self.step_size, self.steps = step_size, dynamics.steps_per_cycle(step_size)
        self._model = dynamics.flow_at
        self._compiled: Callable[..., Any] | None = None
        self.lag, self.lag_warmup, self.clamp = analysis.lag, lag_warmup, clamp
        self.register_buffer("climatology", climatology)
        entries, error = torch.arange(observation_model.period), observation_model.standard_deviation
        derived = {
            "schedule": observation_model.mask(entries).to(climatology),
            "known": observation_model.known(entries).to(climatology),
            "error": error.to(climatology),
            "error_variance": error.square().to(climatology),
            "lowest": analysis.mean - clamp * analysis.std,
            "highest": analysis.mean + clamp * analysis.std,
        }
        for name, tensor in derived.items():
            self.register_buffer(name, tensor, persistent=False)

    def with_observations(self, observation_model: ObservationModel, step_size: float) -> "AmortizedFilter":
        """The same filter, not compiled, of other observations. Its weights are shared: training one trains both.

        Args:
            step_size: observation interval; the lag stays the same number of cycles.

        Raises:
            ValueError: if ``step_size`` is not a multiple of the dynamics' step.
        """
        return AmortizedFilter(
            self.dynamics,
            observation_model,
            self.analysis,
            step_size,
            self.climatology,
            self.lag_warmup,
            self.clamp,
            self.displacement,
        )

    def with_members(self, members: int) -> "AmortizedFilter":
        """The same filter with another ensemble size. Its weights are shared: what trains one trains the other."""
        other = self._sharing()
        other.analysis.members = members
        return other

    def with_lag(self, lag: int) -> "AmortizedFilter":
        """The same filter with another lag. Its weights are shared: what trains one trains the other."""
        other = self._sharing()
        other.lag = other.analysis.lag = lag
        return other

    def undisplaced(self) -> "AmortizedFilter":
        """The same filter, whose analyses are what it forecasts from. Its weights are shared."""
        other = self._sharing()
        other.displacement = None
        return other

    def compiled(self, whole: bool = False) -> "AmortizedFilter":
        """The same filter with its network and its model steps compiled: the same numbers, but for rounding, sooner.

        Its weights are shared: what trains one trains the other. The first cycles of every new shape of a batch take
        up to a minute. Without a C++ compiler it is as fast as before, and a warning says so. A network with dropout
        stays as it is: its random draws would break it into many small pieces.

        Args:
            whole: compile a cycle as one program, for runs without dropout.
        """
        other = self._sharing()
        if not can_compile():
            return other
        if whole:
            other._compiled = Compiled(other._advance)
            return other
        other._model = torch.compile(self.dynamics.flow_at)
        # A network of a reader's own need not know of dropout.
        if not getattr(self.analysis.trunk, "dropout", 0.0):
            other.analysis._modules = dict(self.analysis._modules)
            other.analysis.trunk = cast(nn.Module, torch.compile(self.analysis.trunk))
        return other

    def _sharing(self) -> "AmortizedFilter":
        # Only what is set anew is a shallow copy's own: parameters, buffers and modules stay those of the original.
        other = copy(self)
        other._modules, other._compiled = dict(self._modules), None
        other.analysis = copy(self.analysis)
        return other

    def lag_at(self, age: int | None) -> int:
        """The lag so many cycles after a cold start; None: long after."""
        return self.lag if age is None or not self.lag_warmup else min(self.lag, age // self.lag_warmup)

    @property
    def warmup(self) -> int:
        """Number of cycles in which the lag of a new filter grows."""
        return self.lag_warmup * self.lag

    def flow(self, states: Tensor, cycles: int = 1, number: Int[Tensor, "*batch"] | int | None = None) -> Tensor:
        """The model over so many cycles, its states kept within bounds: none it leads to may end in infinity.

        Args:
            number: of the cycle that the states (…, member, channel, site) are of, for a model that depends on time.

        Raises:
            ValueError: if it does, and no number is given.
        """
        for cycle in range(cycles):
            time = self._time(None if number is None else number + cycle)
            states = self._bounded(self._model(states, self.steps, time))
        return states

    def _time(self, number: Int[Tensor, "*batch"] | int | None) -> Tensor | None:
        if number is None or not self.dynamics.depends_on_time:
            return None
        time = self.dynamics.cycle_time(number, self.step_size)
        return None if time is None else time[..., None, :, :]  # of all members

    def _bounded(self, states: Tensor) -> Tensor:
        return states.clamp(self.lowest, self.highest)

    def cold_start(
        self,
        *batch: int,
        generator: torch.Generator,
        near: Float[Tensor, "*batch channel site"] | None = None,
        number: Int[Tensor, "*batch"] | int = 0,
    ) -> Carry:
        """Ensembles of random climatological states, and an empty memory.

        Args:
            batch: shape of the batch; none for a single filter.
            generator: a CPU generator, from which the members are drawn.
            near: where this is a number and not NaN, members start from it instead, each with an error of its own.
            number: of the first cycle.
        """
        shape, device = (*batch, self.analysis.members), self.climatology.device
        chosen = torch.randint(len(self.climatology), shape, generator=generator)
        base = self.climatology[chosen.to(device)]
        if near is not None:
            error = torch.randn(base.shape, generator=generator).to(base)
            around = near.to(base).unsqueeze(-3) + self.error * error
            base = torch.where(around.isnan(), base, around)
        return Carry(
            base,
            self.flow(base, self.lag_at(0), number - self.lag_at(0)),
            self.analysis.initial_memory(*batch, climatology=self.climatology),
            self.analysis.initial_covariance(*batch, climatology=self.climatology),
            base.new_zeros(*batch, self.lag, 2, *base.shape[-2:]) if self.analysis.sees_window else None,
        )

    def cycle(
        self,
        carry: Carry,
        observation: Float[Tensor, "*batch channel site"],
        number: Int[Tensor, "*batch"] | int,
        generator: torch.Generator | None = None,
        age: int | None = None,
        sample: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        error: Float[Tensor, "channel site"] | None = None,
        phase: Int[Tensor, "*batch"] | int | None = None,
    ) -> tuple[Carry, Float[Tensor, "*batch member channel site"]]:
        """Use one observation; return what is carried to the next, and the analysis ensemble.

        Args:
            observation: what was received, NaN elsewhere. A number where the schedule expects none is not used.
            number: of the cycle.
            generator: turns dropout on, where the analysis has any.
            age: number of cycles since the cold start, while the lag grows.
            sample: makes an ensemble of the corrected base and its covariance, which takes the place of the analysis;
                its mean is moved to that of the analysis.
            error: standard deviation of the errors of this observation, where they are not those of the model.
            phase: entry of the observation schedule, where these do not come in turn.
        """
        number, phase = (
            torch.as_tensor(index, device=carry.base.device) for index in (number, number if phase is None else phase)
        )
        lag = self.lag_at(age)
        grows = age is not None and self.lag_at(age + 1) > lag
        phase = (phase % len(self.schedule)).expand(carry.base.shape[:-3])
        mask = self.schedule[phase] * observation.isfinite()
        received = Received(
            observation=torch.where(mask > 0, observation, 0.0),
            mask=mask,
            known=self.known[phase],
            error=self.error if error is None else error,
            error_variance=self.error_variance if error is None else error.square(),
            phase=phase,
            number=number,
        )
        # While the lag grows every few cycles are another program: not worth compiling.
        advance = self._advance if self._compiled is None or lag < self.lag or grows else self._compiled
        following, analysis, base, covariance = advance(carry, received, lag, grows, generator)
        if self.displacement is not None:
            analysis = analysis + self.displaced(carry)
        if sample is not None:
            ensemble = self.flow(self._bounded(sample(base, covariance)), lag, number - lag)
            analysis = ensemble + (analysis.mean(-3, keepdim=True) - ensemble.mean(-3, keepdim=True))
        return following, analysis

    def displaced(self, carry: Carry) -> Float[Tensor, "*batch 1 channel site"]:
        """What is added to the analysis after a forecast, where the filter has learned that."""
        if self.displacement is None:
            return torch.zeros_like(carry.forecast[..., :1, :, :])
        return self.analysis.std * self.displacement(self.analysis.normal(carry.forecast).detach())

    def _advance(
        self, carry: Carry, received: Received, lag: int, grows: bool, generator: torch.Generator | None
    ) -> tuple[Carry, Tensor, Tensor, Tensor | None]:
        """A cycle: what is carried on, the analysis, and the corrected base with its covariance."""
        number = received.number - lag  # of the base
        predicted = self.observation_model.operator(carry.forecast)
        if self.observation_model.unknown:
            predicted = predicted * received.known.unsqueeze(-3)
        given = AnalysisInput(
            base=carry.base,
            forecast=carry.forecast,
            predicted=predicted,
            observation=received.observation,
            mask=received.mask,
            error=received.error,
            error_variance=received.error_variance,
            phase=received.phase,
            tendency=self.dynamics.tendency_at(carry.base, self._time(number)),
            memory=carry.memory,
            covariance=carry.covariance,
            predict=lambda states: self.observation_model.operator(self.flow(states, lag, number)),
            recent=None if carry.recent is None else carry.recent[..., self.lag - lag :, :, :, :],
            predict_each=lambda states: tuple(map(self.observation_model.operator, self._path(states, lag, number))),
        )
        corrected, memory, covariance = self.analysis(given, generator)
        base = self._bounded(corrected)
        if grows:
            following, later = self.flow(base, 1, number), covariance
        else:
            following, later = self.analysis.forecast(base, covariance, partial(self.flow, number=number))
            following = self._bounded(following)
        ahead = self._path(following, lag, number + 1)  # from a cycle after the base to one after the observation
        analysis = ahead[-2] if lag else base
        recent = carry.recent
        if recent is not None:
            newest = torch.stack([received.observation, received.mask], -3).unsqueeze(-4)
            recent = torch.cat([recent[..., 1:, :, :, :], newest], -4)
        return Carry(base if grows else following, ahead[-1], memory, later, recent), analysis, base, covariance

    def _path(self, states: Tensor, cycles: int, number: Tensor) -> list[Tensor]:
        """States, and what the model makes of them after each of so many cycles."""
        path = [states]
        for cycle in range(cycles):
            path.append(self.flow(path[-1], 1, number + cycle))
        return path

    @torch.no_grad()
    def warmed_up(
        self,
        carry: Carry,
        observations: Float[Tensor, "*batch cycle channel site"],
        number: Int[Tensor, "*batch cycle"],
        phase: Int[Tensor, "*batch cycle"],
    ) -> Carry:
        """A cold start after the first :attr:`warmup` observations, its lag full-grown.

        Args:
            observations: NaN where nothing was received.
            number: of their cycles.
            phase: entries of the observation schedule that they are of.
        """
        for age in range(self.warmup):
            at = {"age": age, "phase": phase[..., age]}
            carry, _ = self.cycle(carry, observations[..., age, :, :], number[..., age], **at)
        return carry

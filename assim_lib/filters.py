r"""The assimilation cycle: one code for training and for testing.

A filter carries its ensemble (and the analysis's memory) from one observation to the next. One cycle, with
lag :math:`L`:

1. the carried ``base``, the ensemble at :math:`t-L`, is corrected by what its ``forecast`` to :math:`t` missed
   in the observation :math:`y_t`;
2. the corrected base is forecast :math:`L+1` cycles: after :math:`L` of them it is the **analysis** at
   :math:`t`, after one more the **forecast** for :math:`t+1`;
3. the window moves by one: the base of the next cycle is the state one cycle after this one's.

After a cold start the window may **grow** instead: the base stays where it is, until the observation is :math:`L` cycles
away. A forecast from a state that is hardly known would say nothing about an observation far ahead.

With :math:`L=0` this is the textbook forecast–analysis cycle. With :math:`L>0` the analysis is always the end
of a model trajectory, and an observation corrects the past through the dynamics, as in the iEnKS.
"""

from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from assim_lib.analyses import Analysis, AnalysisInput
from assim_lib.dynamics import Dynamics
from assim_lib.observations import ObservationModel


class Carry(NamedTuple):
    """What a filter knows before an observation: states at t − L, their forecast at t, and the memory."""

    base: Float[Tensor, "*batch member channel site"]
    forecast: Float[Tensor, "*batch member channel site"]
    memory: Float[Tensor, "*batch memories site features"]

    def detach(self) -> "Carry":
        """The same values, cut from the graph."""
        return Carry(*(part.detach() for part in self))


class AmortizedFilter(nn.Module):
    """A learned recurrent ensemble filter.

    Parameters
    ----------
    dynamics : the differentiable forecast model.
    observation_model : what is seen at each cycle.
    analysis : one of :data:`assim_lib.analyses.ANALYSES`.
    step_size : observation interval, a multiple of the dynamics' step.
    lag : L, in cycles.
    growth : cycles after which the lag of a new filter grows by one, from none; 0: it is L at once.
    climatology : (state, channel, site) states of the free-running model; cold starts are drawn from them,
        so that no filter ever starts from the truth.
    clamp : states are kept within this many climatological standard deviations of the mean.
    """

    climatology: Tensor
    schedule: Tensor
    known: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        dynamics: Dynamics,
        observation_model: ObservationModel,
        analysis: Analysis,
        step_size: float,
        lag: int,
        climatology: Float[Tensor, "state channel site"],
        growth: int = 0,
        clamp: float = 4.0,
    ):
        super().__init__()
        self.dynamics, self.observation_model, self.analysis = dynamics, observation_model, analysis
        self.steps, self.lag, self.growth, self.clamp = dynamics.steps_per_cycle(step_size), lag, growth, clamp
        self.register_buffer("climatology", climatology)
        derived = {
            "schedule": observation_model.mask(torch.arange(observation_model.period)).to(climatology),
            "known": observation_model.known(torch.arange(observation_model.period)).to(climatology),
            "lowest": analysis.mean - clamp * analysis.std,
            "highest": analysis.mean + clamp * analysis.std,
        }
        for name, tensor in derived.items():
            self.register_buffer(name, tensor, persistent=False)

    def elsewhere(self, observation_model: ObservationModel, noise: float, step_size: float) -> "AmortizedFilter":
        """The same filter in another setting. Its weights are shared: what trains one trains the other.

        Parameters
        ----------
        noise : standard deviation of the observation error.
        step_size : observation interval; the lag stays the same number of cycles.

        Raises
        ------
        ValueError : if ``step_size`` is not a multiple of the dynamics' step.
        """
        # Only what is set anew is a shallow copy's own: parameters, buffers and modules stay those of the original.
        analysis = copy(self.analysis)
        analysis.noise = noise
        return self._with(analysis, observation_model, step_size)

    def with_members(self, members: int) -> "AmortizedFilter":
        """The same filter with another ensemble size. Its weights are shared: what trains one trains the other."""
        if members == self.analysis.members:
            return self
        analysis = copy(self.analysis)
        analysis.members = members
        return self._with(analysis, self.observation_model, self.steps * self.dynamics.dt)

    def _with(self, analysis: Analysis, observation_model: ObservationModel, step_size: float) -> "AmortizedFilter":
        return AmortizedFilter(
            self.dynamics, observation_model, analysis, step_size, self.lag, self.climatology, self.growth, self.clamp
        )

    def lag_at(self, age: int | None) -> int:
        """The lag so many cycles after a cold start; None: long after."""
        return self.lag if age is None or not self.growth else min(self.lag, age // self.growth)

    def cold_start(
        self, *batch: int, generator: torch.Generator, near: Float[Tensor, "*batch channel site"] | None = None
    ) -> Carry:
        """Ensembles of random climatological states, and an empty memory.

        Parameters
        ----------
        batch : shape of the batch; none for a single filter.
        generator : a CPU generator, from which the members are drawn.
        near : where this is a number and not NaN, members start from it instead, each with an error of its own.
        """
        shape, device = (*batch, self.analysis.members), self.climatology.device
        chosen = torch.randint(len(self.climatology), shape, generator=generator)
        base = self.climatology[chosen.to(device)]
        if near is not None:
            error = torch.randn(base.shape, generator=generator).to(base)
            around = near.to(base).unsqueeze(-3) + self.analysis.noise * error
            base = torch.where(around.isnan(), base, around)
        forecast = self.dynamics.flow(base, self.lag_at(0) * self.steps)
        memory = self.analysis.initial_memory(*batch, climatology=self.climatology)
        return Carry(base, forecast, memory)

    def cycle(
        self,
        carry: Carry,
        observation: Float[Tensor, "*batch channel site"],
        number: Int[Tensor, "*batch"] | int,
        generator: torch.Generator | None = None,
        age: int | None = None,
        draw: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Carry, Float[Tensor, "*batch member channel site"]]:
        """Use one observation; return what is carried to the next, and the analysis ensemble.

        Parameters
        ----------
        observation : what was received, zero where nothing is seen.
        number : of the cycle, in the observation schedule.
        generator : turns dropout on, where the analysis has any.
        age : number of cycles since the cold start, while the lag grows.
        draw : makes an ensemble of corrected base and memory, which takes the place of the analysis; its mean is moved to that of
            the analysis.
        """
        lag = self.lag_at(age)
        grows = age is not None and self.lag_at(age + 1) > lag
        base, forecast, memory = carry
        phase = (torch.as_tensor(number, device=base.device) % len(self.schedule)).expand(base.shape[:-3])
        predicted = self.observation_model.operator(forecast)
        if self.observation_model.unknown:
            predicted = predicted * self.known[phase].unsqueeze(-3)
        given = AnalysisInput(
            base=base,
            forecast=forecast,
            predicted=predicted,
            observation=observation,
            mask=self.schedule[phase],
            phase=phase,
            tendency=self.dynamics.tendency(base),
            memory=memory,
            sensitivity=self.sensitivity(base, memory, lag)[0] if self.analysis.needs_sensitivity else None,
        )
        corrected, memory = self.analysis(given, generator)
        path = [corrected.clamp(self.lowest, self.highest)]
        ensemble = draw(path[0], memory) if draw else None
        after = self.dynamics.flow(path[0], self.steps)
        if self.analysis.carries_covariance and not grows:
            derivative, shift = self.sensitivity(path[0], memory, 1, observed=False)
            memory = self.analysis.propagated(memory, derivative)
            after = (after + shift).clamp(self.lowest, self.highest)
        path.append(after)
        for _ in range(lag):
            path.append(self.dynamics.flow(path[-1], self.steps))
        analysis = path[-2]
        if ensemble is not None:
            ensemble = self.dynamics.flow(ensemble.clamp(self.lowest, self.highest), lag * self.steps)
            analysis = ensemble + (analysis.mean(-3, keepdim=True) - ensemble.mean(-3, keepdim=True))
        return Carry(path[0 if grows else 1], path[-1], memory), analysis

    @torch.no_grad()
    def spun_up(
        self,
        carry: Carry,
        observations: Float[Tensor, "*batch cycle channel site"],
        phase: Int[Tensor, "*batch cycle"],
    ) -> Carry:
        """A cold start after the first :attr:`spinup` observations, its lag full-grown.

        Parameters
        ----------
        observations : zero where nothing was seen.
        phase : entries of the observation schedule that they are of.
        """
        for age in range(self.spinup):
            carry, _ = self.cycle(carry, observations[..., age, :, :], phase[..., age], age=age)
        return carry

    @property
    def spinup(self) -> int:
        """Number of cycles in which the lag of a new filter grows."""
        return self.growth * self.lag

    @torch.no_grad()
    def sensitivity(
        self,
        base: Float[Tensor, "*batch member channel site"],
        memory: Float[Tensor, "*batch memories site features"],
        cycles: int,
        observed: bool = True,
    ) -> tuple[Float[Tensor, "*batch later state"], Float[Tensor, "*batch 1 channel site"]]:
        """How the state some cycles later, or what is observed of it, answers to each entry of the mean base.

        By central differences along the columns of a square root of the base's covariance, as far as the base is uncertain: where
        little is known they are gentler than the derivative, which chaos makes huge and of no use there. No gradient
        goes through them, which would double the time of training.

        Returns
        -------
        The derivative, channels and sites flattened; and by how much the mean over the base's distribution lies off what becomes
        of its mean, to second order (Nørgaard et al. 2000).
        """
        mean = base.mean(-3, keepdim=True)
        columns, share = self.analysis.columns(base, memory)
        moved = share[..., None, None, None] * columns
        later = self.dynamics.flow(torch.cat([mean + moved, mean - moved, mean], -3), cycles * self.steps)
        if observed:
            later = self.observation_model.operator(later)
        above, below, centre = later.split([columns.shape[-3], columns.shape[-3], 1], -3)
        differences = ((above - below) / (2 * share[..., None, None, None])).flatten(-2).mT
        derivative = torch.linalg.solve_triangular(columns.flatten(-2).mT, differences, upper=False, left=False)
        # Not scaled up where columns were shortened: a parabola through near points is no guide to far ones.
        return derivative, (above + below - 2 * centre).sum(-3, keepdim=True) / 2


@torch.no_grad()
def assimilate(
    model: AmortizedFilter,
    observations: Float[Tensor, "*batch cycle channel site"],
    generator: torch.Generator,
    first_cycle: Int[Tensor, "*batch"] | int = 0,
    dropout: bool = False,
    near: Float[Tensor, "*batch channel site"] | None = None,
    draws: int = 0,
    progress: bool = False,
) -> Float[Tensor, "*batch cycle member channel site"]:
    """Run a filter from a cold start along a record of observations; return the analysis ensembles.

    Parameters
    ----------
    observations : zero or NaN where nothing was seen.
    generator : a CPU generator, for the cold start (and for dropout, if kept on).
    first_cycle : number of the first cycle in the observation schedule.
    dropout : keep dropout on at test time, as the original code does; it then serves to spread the ensemble.
    near : what the members start from, see :meth:`AmortizedFilter.cold_start`.
    draws : of a filter that carries a covariance in place of members, return so many members that are drawn from it, with
        the filter's analysis for their mean (0: that analysis alone). Others return the members they have.
    """
    batch, device = observations.shape[:-3], model.climatology.device
    carry = model.cold_start(*batch, generator=generator, near=near)
    observations = torch.nan_to_num(observations).to(device)
    first_cycle = torch.as_tensor(first_cycle, device=device).expand(batch)

    def draw(base: Tensor, memory: Tensor) -> Tensor:
        return model.analysis.drawn(base, memory, draws, generator)

    drawing = draw if draws and model.analysis.carries_covariance else None
    analyses = []
    for k in tqdm(range(observations.shape[-3]), desc="assimilate", unit="cycle", disable=not progress):
        carry, analysis = model.cycle(
            carry, observations[..., k, :, :], first_cycle + k, generator if dropout else None, age=k, draw=drawing
        )
        analyses.append(analysis.cpu())
    return torch.stack(analyses, -4)


def mean_gain(
    model: AmortizedFilter,
    observations: Float[np.ndarray, "cycle channel site"],
    spinup: int = 100,
    cycles: int = 20,
    seed: int = 0,
) -> Float[np.ndarray, "state state"]:
    """Derivative of the mean analysis with respect to the observation, averaged over some cycles.

    Parameters
    ----------
    observations : NaN where nothing was seen; at least ``spinup + cycles`` of them.
    spinup : cycles that the filter is given to find the truth.

    Returns
    -------
    Entry (i, j) says how the analysis at i answers to the observation at j, channels and sites flattened.
    """
    seen = torch.from_numpy(observations[: spinup + cycles]).nan_to_num(0.0).to(model.climatology.device)
    carry = model.cold_start(generator=torch.Generator().manual_seed(seed))
    jacobians = []
    for k, y in enumerate(seen):
        if k >= spinup:
            of_observation = torch.func.jacrev(
                lambda y, k=k, carry=carry: model.cycle(carry, y, k, age=k)[1].mean(-3).flatten()
            )
            jacobians.append(of_observation(y).flatten(1).detach())
        with torch.no_grad():
            carry, _ = model.cycle(carry, y, k, age=k)
    return torch.stack(jacobians).mean(0).cpu().numpy()

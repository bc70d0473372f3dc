"""The Lorenz systems of the book: one level, two levels, and one level with a temperature."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.systems.base import Dynamics, register_system


@register_system
@dataclass(frozen=True)
class Lorenz96(Dynamics):
    r"""The Lorenz-96 model: a latitude circle of :math:`D` sites with advection, damping and forcing,

    .. math:: \dot x_i = (x_{i+1} - x_{i-2})\,x_{i-1} - x_i + F .

    With :math:`F = 8` it is chaotic: errors double in about 0.4 time units. Indices as in DAPPER.
    Source: Lorenz (1996), *Predictability: a problem partly solved*.
    """

    sites: int = 40
    dt: float = 0.05
    forcing: float = 8.0
    name: ClassVar[str] = "l96"
    homogeneous: ClassVar[bool] = True

    def tendency(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch channel site"]:
        return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + self.forcing

    def rest(self) -> Float[Tensor, "channel site"]:
        return torch.full((1, self.sites), self.forcing, dtype=torch.float64)


@register_system
@dataclass(frozen=True)
class TwoLevelLorenz96(Dynamics):
    r"""The two-level Lorenz-96 model: :math:`J` fast variables beside each slow one,

    .. math::
        \dot X_i &= (X_{i+1} - X_{i-2})\,X_{i-1} - X_i + F - \tfrac{hc}{b} \textstyle\sum_j Y_{j,i}, \\
        \dot Y_{j,i} &= cb\,(Y_{j-1,i} - Y_{j+2,i})\,Y_{j+1,i} - c\,Y_{j,i} + \tfrac{hc}{b} X_i .

    The fast variables lie on one ring of their own, through all sites in turn: :math:`Y_{J+1,i} = Y_{1,i+1}`.
    Channel 0 is :math:`X`, channel :math:`j` is :math:`Y_j`. What is observed and forecast is :math:`X` alone.
    Indices as in DAPPER. Source: Lorenz (1996), *Predictability: a problem partly solved*.

    Attributes:
        fast: number of fast variables per site, at least 2.
        coupling: h.
        b: amplitude of the slow variables relative to the fast ones.
        c: how much faster the fast variables are.
        forcing: F.

    Raises:
        ValueError: if ``fast`` is less than 2.
    """

    sites: int = 40
    dt: float = 0.005
    fast: int = 10
    coupling: float = 1.0
    b: float = 10.0
    c: float = 10.0
    forcing: float = 10.0
    name: ClassVar[str] = "two_level"
    homogeneous: ClassVar[bool] = True
    forecast_model: ClassVar[str] = "l96"
    spinup: ClassVar[float] = 20.0
    # Far off the attractor the steps are too long for the fast variables.
    perturbation: ClassVar[float] = 0.1

    def __post_init__(self):
        if self.fast < 2:
            raise ValueError(f"fast = {self.fast} must be at least 2, for the equations to reach one site on.")

    def tendency(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch channel site"]:
        slow, fast = x[..., :1, :], x[..., 1:, :]
        exchange = self.coupling * self.c / self.b
        # The fast ring, cut between sites: each site's neighbours are the last of the site before it and the first two
        # of the site after it.
        ring = torch.cat([fast[..., -1:, :].roll(1, -1), fast, fast[..., :2, :].roll(-1, -1)], -2)
        before, after, second = ring[..., :-3, :], ring[..., 2:-1, :], ring[..., 3:, :]
        d_slow = (slow.roll(-1, -1) - slow.roll(2, -1)) * slow.roll(1, -1) - slow + self.forcing
        d_slow = d_slow - exchange * fast.sum(-2, keepdim=True)
        d_fast = (self.c * self.b) * (before - second) * after - self.c * fast + exchange * slow
        return torch.cat([d_slow, d_fast], -2)

    def resolved(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch resolved site"]:
        """The slow variables."""
        return x[..., :1, :]

    def rest(self) -> Float[Tensor, "channel site"]:
        slow = self.forcing / (1 + self.fast * self.c * (self.coupling / self.b) ** 2)
        levels = torch.tensor([slow] + [self.coupling / self.b * slow] * self.fast, dtype=torch.float64)
        return levels[:, None].repeat(1, self.sites)


@register_system
@dataclass(frozen=True)
class VissioLucarini20(Dynamics):
    r"""Lorenz-96 with a temperature :math:`\theta` beside the momentum :math:`X`,

    .. math::
        \dot X_i &= (X_{i+1} - X_{i-2})\,X_{i-1} - \gamma X_i - \alpha \theta_i + F, \\
        \dot\theta_i &= X_{i+1} \theta_{i+2} - X_{i-1} \theta_{i-2} - \gamma \theta_i + \alpha X_i + G .

    Channel 0 is :math:`X`, channel 1 is :math:`\theta`; :math:`\alpha` exchanges kinetic and potential energy.
    Source: Vissio & Lucarini (2020), *Mechanics and thermodynamics of a new minimal model of the atmosphere*.

    Attributes:
        momentum_forcing: F.
        heating: G.
        conversion: α, of one energy into the other.
        dissipation: γ.
    """

    sites: int = 36
    dt: float = 0.05
    momentum_forcing: float = 10.0
    heating: float = 10.0
    conversion: float = 1.0
    dissipation: float = 1.0
    name: ClassVar[str] = "vl20"
    homogeneous: ClassVar[bool] = True

    def tendency(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch channel site"]:
        momentum, heat = x.unbind(-2)
        after, before = momentum.roll(-1, -1), momentum.roll(1, -1)
        d_momentum = (after - momentum.roll(2, -1)) * before - self.conversion * heat + self.momentum_forcing
        d_heat = after * heat.roll(-2, -1) - before * heat.roll(2, -1) + self.conversion * momentum + self.heating
        return torch.stack([d_momentum, d_heat], -2) - self.dissipation * x

    def rest(self) -> Float[Tensor, "channel site"]:
        alpha, gamma, f, g = self.conversion, self.dissipation, self.momentum_forcing, self.heating
        levels = torch.tensor([gamma * f - alpha * g, gamma * g + alpha * f], dtype=torch.float64)
        return (levels / (alpha**2 + gamma**2))[:, None].repeat(1, self.sites)

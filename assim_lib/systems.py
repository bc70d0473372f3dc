"""The dynamical systems of the book, and how they are found by name."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from assim_lib.dynamics import SYSTEMS, Dynamics, register_system
from assim_lib.integrators import ETDRK4, Tendency


def system_of(name: str, dt: float | None = None) -> Dynamics:
    """The registered system of that name, with its standard settings.

    Parameters
    ----------
    dt : another integration step, in the system's time unit.

    Raises
    ------
    ValueError : if there is no such system, or ``dt`` is not positive.
    """
    system = SYSTEMS.find(name)()  # pyright: ignore[reportCallIssue] -- every registered system has standard settings
    if dt is None:
        return system
    if not dt > 0:
        raise ValueError(f"dt = {dt} must be greater than 0.")
    return replace(system, dt=dt)


def forecast_model_of(name: str, dt: float | None = None) -> Dynamics:
    """The model that filters forecast a registered system with: the system itself, or a simpler one.

    Parameters
    ----------
    dt : another integration step of the model.
    """
    return system_of(SYSTEMS.find(name).forecast_model or name, dt)


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

    Attributes
    ----------
    fast : number of fast variables per site, at least 2.
    coupling : h.
    b : amplitude of the slow variables relative to the fast ones.
    c : how much faster the fast variables are.
    forcing : F.

    Raises
    ------
    ValueError : if ``fast`` is less than 2.
    """

    sites: int = 40
    dt: float = 0.005
    fast: int = 10
    coupling: float = 1.0
    b: float = 10.0
    c: float = 10.0
    forcing: float = 10.0
    name: ClassVar[str] = "two_level"
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

    Attributes
    ----------
    momentum_forcing, heating : F, G.
    conversion : α, of one energy into the other.
    dissipation : γ.
    """

    sites: int = 36
    dt: float = 0.05
    momentum_forcing: float = 10.0
    heating: float = 10.0
    conversion: float = 1.0
    dissipation: float = 1.0
    name: ClassVar[str] = "vl20"

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


@register_system
@dataclass(frozen=True)
class KuramotoSivashinsky(Dynamics):
    r"""The Kuramoto–Sivashinsky equation on a periodic interval: long waves grow, short ones decay,

    .. math:: u_t = -u\,u_x - u_{xx} - u_{xxxx} .

    In Fourier space, with wavenumbers :math:`k`, :math:`\dot{\hat u} = (k^2 - k^4)\,\hat u - \tfrac12 ik\,
    \widehat{u^2}`: the linear part is diagonal and stiff, and :class:`~assim_lib.integrators.ETDRK4` advances it.
    The spatial mean is conserved. Discretization as in DAPPER. Sources: Kassam & Trefethen (2005);
    Bocquet & Farchi (2019) for the settings of the twin experiment.

    Attributes
    ----------
    length : of the interval.
    """

    sites: int = 128
    dt: float = 0.5
    length: float = 32 * np.pi
    name: ClassVar[str] = "ks"
    integrator: ClassVar[str] = "ETDRK4"
    spinup: ClassVar[float] = 150.0

    @cached_property
    def _wavenumbers(self) -> Float[np.ndarray, " mode"]:
        return 2 * np.pi / self.length * np.arange(self.sites // 2 + 1)

    @cached_property
    def _growth(self) -> Float[np.ndarray, " mode"]:
        # Of every mode, also of the shortest wave (two sites long), which DAPPER neither damps nor advects: what an
        # analysis puts there, no forecast would ever take away.
        return self._wavenumbers**2 - self._wavenumbers**4

    @cached_property
    def _etdrk4(self) -> ETDRK4:
        return ETDRK4(self._growth, self.dt)

    def _advection(self, like: Complex[Tensor, "*batch mode"]) -> Tendency:
        # The derivative of the shortest wave vanishes at all sites; FFT libraries differ in what they make of the
        # imaginary amplitude that it would have.
        k = np.where(2 * np.arange(self.sites // 2 + 1) < self.sites, self._wavenumbers, 0.0)
        factor = torch.tensor(-0.5j * k, dtype=like.dtype, device=like.device)
        return lambda v: factor * torch.fft.rfft(torch.fft.irfft(v, self.sites).square())

    def tendency(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch channel site"]:
        v = torch.fft.rfft(x)
        growth = torch.tensor(self._growth, dtype=x.dtype, device=x.device)
        return torch.fft.irfft(growth * v + self._advection(v)(v), self.sites)

    def flow(self, x: Float[Tensor, "*batch channel site"], steps: int = 1) -> Float[Tensor, "*batch channel site"]:
        v = torch.fft.rfft(x)
        return torch.fft.irfft(self._etdrk4(self._advection(v), v, steps), self.sites)

    def on_attractor(
        self, batch: int, generator: torch.Generator, spinup: float | None = None
    ) -> Float[Tensor, "batch channel site"]:
        x = super().on_attractor(batch, generator, spinup)
        # The equation looks the same to a moving observer: with the mean goes no more than a constant velocity.
        return x - x.mean(-1, keepdim=True)

    def rest(self) -> Float[Tensor, "channel site"]:
        return torch.zeros(1, self.sites, dtype=torch.float64)

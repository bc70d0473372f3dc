"""The Kuramoto–Sivashinsky equation, in Fourier space."""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from assim_lib.systems.base import Dynamics, register_system
from assim_lib.systems.integrators import ETDRK4, Constant, Tendency


@register_system
@dataclass(frozen=True)
class KuramotoSivashinsky(Dynamics):
    r"""The Kuramoto–Sivashinsky equation on a periodic interval: long waves grow, short ones decay,

    .. math:: u_t = -u\,u_x - u_{xx} - u_{xxxx} .

    In Fourier space, with wavenumbers :math:`k`, :math:`\dot{\hat u} = (k^2 - k^4)\,\hat u - \tfrac12 ik\,
    \widehat{u^2}`: the linear part is diagonal and stiff, and :class:`~assim_lib.systems.integrators.ETDRK4` advances
    it. The spatial mean is conserved. Discretization as in DAPPER. Sources: Kassam & Trefethen (2005);
    Bocquet & Farchi (2019) for the settings of the twin experiment.

    Attributes:
        length: of the interval.
    """

    sites: int = 128
    dt: float = 0.5
    length: float = 32 * np.pi
    name: ClassVar[str] = "ks"
    homogeneous: ClassVar[bool] = True
    method: ClassVar[str] = "etdrk4"
    spinup: ClassVar[float] = 150.0

    @cached_property
    def _wavenumbers(self) -> Float[np.ndarray, " mode"]:
        return 2 * np.pi / self.length * np.arange(self.sites // 2 + 1)

    @cached_property
    def _growth(self) -> Constant:
        # Of every mode, also of the shortest wave (two sites long), which DAPPER neither damps nor advects: what an
        # analysis puts there, no forecast would ever take away.
        return Constant(self._wavenumbers**2 - self._wavenumbers**4)

    @cached_property
    def _derivative(self) -> Constant:
        # Of half the square. The derivative of the shortest wave vanishes at all sites; FFT libraries differ in what
        # they make of the imaginary amplitude that it would have.
        return Constant(-0.5j * np.where(2 * np.arange(self.sites // 2 + 1) < self.sites, self._wavenumbers, 0.0))

    @cached_property
    def _etdrk4(self) -> ETDRK4:
        return ETDRK4(self._growth.values, self.dt)

    @cache  # noqa: B019  (a few small rings, that live as long as the module)
    def _with_sites(self, sites: int) -> "KuramotoSivashinsky":
        return replace(self, sites=sites, length=self.length * sites / self.sites)

    def _advection(self, like: Complex[Tensor, "*batch mode"]) -> Tendency:
        factor = self._derivative.like(like)
        return lambda v: factor * torch.fft.rfft(torch.fft.irfft(v, self.sites).square())

    def tendency(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch channel site"]:
        v = torch.fft.rfft(x)
        return torch.fft.irfft(self._growth.like(x) * v + self._advection(v)(v), self.sites)

    def flow(
        self, x: Float[Tensor, "*batch channel site"], steps: int = 1, time: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch channel site"]:
        if x.shape[-1] != self.sites:  # some of the sites, closed to a ring
            return self._with_sites(x.shape[-1]).flow(x, steps)
        v = torch.fft.rfft(x)
        return torch.fft.irfft(self._etdrk4(self._advection(v), v, steps), self.sites)

    def on_attractor(
        self,
        batch: int,
        generator: torch.Generator,
        spinup: float | None = None,
        until: float | Float[Tensor, " batch"] = 0.0,
    ) -> Float[Tensor, "batch channel site"]:
        x = super().on_attractor(batch, generator, spinup, until)
        # The equation looks the same to a moving observer: with the mean goes no more than a constant velocity.
        return x - x.mean(-1, keepdim=True)

    def rest(self) -> Float[Tensor, "channel site"]:
        return torch.zeros(1, self.sites, dtype=torch.float64)

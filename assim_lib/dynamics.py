r"""A dynamical system: a tendency, and where its attractor is.

State tensors end in ``(channel, site)``; whatever stands before these two axes is a batch, ``()`` included.
Sites lie on a ring. Equation and time stepper are separate things: a system says what :math:`\dot x` is,
:mod:`assim_lib.integrators` says how to advance it.

To add a system, subclass :class:`Dynamics`, write ``tendency`` and ``rest`` (a state near which trajectories
may start), and register it in :data:`SYSTEMS`.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.integrators import integrate


@dataclass(frozen=True)
class Dynamics(ABC):
    """A system of ordinary differential equations on a ring of sites.

    Attributes
    ----------
    sites : number of sites on the ring.
    dt : integration step, in the system's time unit.
    """

    sites: int
    dt: float
    name: ClassVar[str]
    channels: ClassVar[int] = 1

    @abstractmethod
    def tendency(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch channel site"]:
        """The time derivative of ``x``."""

    @abstractmethod
    def rest(self) -> Float[Tensor, "channel site"]:
        """A state (float64) near which trajectories start before they are spun up onto the attractor."""

    def flow(self, x: Float[Tensor, "*batch channel site"], steps: int = 1) -> Float[Tensor, "*batch channel site"]:
        """Advance ``x`` by ``steps`` whole integration steps."""
        return integrate(self.tendency, x, self.dt, steps)

    def steps_per_cycle(self, step_size: float) -> int:
        """How many integration steps make one observation interval.

        Raises
        ------
        ValueError : if ``step_size`` is not a whole, positive multiple of ``dt``.
        """
        steps = round(step_size / self.dt)
        if steps < 1 or abs(steps * self.dt - step_size) > 1e-9:
            raise ValueError(f"step_size = {step_size} must be a positive multiple of the integration step {self.dt}.")
        return steps

    def on_attractor(
        self, batch: int, generator: torch.Generator, spinup: float = 50.0
    ) -> Float[Tensor, "batch channel site"]:
        """Independent states of the free-running system, float64: its climatology.

        Parameters
        ----------
        batch : how many states.
        generator : source of the initial perturbations.
        spinup : time for which each perturbed rest state is run, in the system's unit.
        """
        start = self.rest()
        noise = torch.randn((batch, *start.shape), generator=generator, dtype=torch.float64)
        return self.flow(start + noise, round(spinup / self.dt))

    def describe(self) -> dict[str, Any]:
        """The system's name and settings, for records and cache keys."""
        return {"system": self.name, **asdict(self)}


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


SYSTEMS: dict[str, type[Dynamics]] = {Lorenz96.name: Lorenz96}


def system_of(name: str) -> Dynamics:
    """The registered system of that name, with its standard settings.

    Raises
    ------
    ValueError : if there is none.
    """
    if name not in SYSTEMS:
        raise ValueError(f"system = {name!r} is not known; known: {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]()  # pyright: ignore[reportCallIssue] -- every registered system has standard settings

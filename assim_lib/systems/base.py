r"""A dynamical system: a tendency, and where its attractor is.

State tensors end in ``(channel, site)``; whatever stands before these two axes is a batch, ``()`` included.
Sites lie on a ring. Equation and time stepper are separate things: a system says what :math:`\dot x` is,
:mod:`assim_lib.systems.integrators` says how to advance it.

To add a system, also from a notebook, subclass :class:`Dynamics` with a ``name`` and standard settings, write
``tendency`` and ``rest`` (a state near which trajectories may start), and decorate the class with
:func:`register_system`: experiments then know it by its name. Its ``method`` is one of
:data:`~assim_lib.systems.integrators.METHODS`; one that none of them suits has its own ``flow``, as
:class:`~assim_lib.systems.kuramoto_sivashinsky.KuramotoSivashinsky` does.

The tendency may **depend on time**, as under seasons or tides: ``tendency(self, x, t)``. Time is that of
:meth:`Dynamics.cycle_time`, :math:`k` intervals at cycle :math:`k`; filters count their cycles, and so know it.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assim_lib.mistakes import Mistake, refuse_other, tried
from assim_lib.registry import Registry
from assim_lib.systems.integrators import at_time, integrate


@dataclass(frozen=True)
class Dynamics(ABC):
    """A system of ordinary differential equations on a ring of sites.

    Attributes:
        sites: number of sites on the ring.
        dt: integration step, in the system's time unit.
        name: what experiments call the system.
        method: of :meth:`flow`, see :func:`~assim_lib.systems.integrators.integrate`. An adaptive solver takes steps
            of its own; ``dt`` then only counts the time.
        adjoint: of :meth:`flow`, likewise.
        forecast_model: name of the system that filters forecast with, if not this one.
        spinup: time after which a perturbed rest state is on the attractor. The climatology of a system that depends on
            time is that of as long a time, which should hold a whole season.
        perturbation: standard deviation of the perturbations of the rest state.
        depends_on_time: whether the tendency does. It is told by its signature: any parameter beside ``self`` and the
            state, also one with a default value, makes a system depend on time.
        homogeneous: whether the equation is the same at every site and on a ring of any number of sites; :meth:`flow`
            then advances states on other rings than its own. Not so where a forcing, say, has a value for each site.
    """

    sites: int
    dt: float
    name: ClassVar[str]
    method: ClassVar[str] = "rk4"
    adjoint: ClassVar[bool] = False
    forecast_model: ClassVar[str] = ""
    spinup: ClassVar[float] = 50.0
    perturbation: ClassVar[float] = 1.0
    depends_on_time: ClassVar[bool] = False
    homogeneous: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.depends_on_time = len(inspect.signature(cls.tendency).parameters) > 2  # self, x, t

    @property
    def channels(self) -> int:
        """Number of variables per site."""
        return len(self.rest())

    @abstractmethod
    def tendency(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch channel site"]:
        """The time derivative of ``x``; of a system that depends on time, of ``x`` and ``t``, which is float64 and
        broadcasts to ``x``."""

    def tendency_at(
        self, x: Float[Tensor, "*batch channel site"], time: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch channel site"]:
        """The time derivative of states of a time, see :meth:`flow`."""
        start = self._start(time)
        return self.tendency(x) if start is None else at_time(self.tendency, start)(x)

    def cycle_time(self, number: Int[Tensor, "*batch"] | int, step_size: float) -> Float[Tensor, "*batch 1 1"] | None:
        """The time of cycles, which broadcasts to their states; None if the system does not depend on it.

        Args:
            number: of the cycle; in a trajectory the first observation is of cycle 0.
        """
        if not self.depends_on_time:
            return None
        return (torch.as_tensor(number, dtype=torch.float64) * step_size)[..., None, None]

    @abstractmethod
    def rest(self) -> Float[Tensor, "channel site"]:
        """A state (float64) near which trajectories start before they are spun up onto the attractor."""

    def resolved(self, x: Float[Tensor, "*batch channel site"]) -> Float[Tensor, "*batch resolved site"]:
        """The part of a state that the forecast model has, and that is observed: all of it, if not said otherwise."""
        return x

    def flow(
        self, x: Float[Tensor, "*batch channel site"], steps: int = 1, time: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch channel site"]:
        """Advance ``x`` by ``steps`` whole integration steps.

        Args:
            time: of ``x``, in float64, broadcasts to it; for a system that depends on time.

        Raises:
            ValueError: if it does, and no time is given.
        """
        return integrate(self.tendency, x, self.dt, steps, self.method, self.adjoint, start=self._start(time))

    def flow_at(
        self, x: Float[Tensor, "*batch channel site"], steps: int, time: Float[Tensor, "..."] | None
    ) -> Float[Tensor, "*batch channel site"]:
        """:meth:`flow`, whose own version in a system that does not depend on time need not take a time."""
        return self.flow(x, steps) if time is None else self.flow(x, steps, time)

    def states_at(
        self, batch: int, generator: torch.Generator, until: float | Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel site"]:
        """:meth:`on_attractor`, whose own version in such a system need not take the time of its states either."""
        if not self.depends_on_time:
            return self.on_attractor(batch, generator)
        return self.on_attractor(batch, generator, until=until)

    def _start(self, time: Tensor | None) -> Tensor | None:
        if not self.depends_on_time:
            return None
        if time is None:
            raise ValueError(f"system = {self.name!r} depends on time, and the time of its states is not given.")
        return time

    @property
    def integrator(self) -> str:
        """What :meth:`flow` integrates with, for files."""
        return {"rk4": "RK4", "etdrk4": "ETDRK4"}.get(self.method, f"torchdiffeq {self.method}")

    def steps_per_cycle(self, step_size: float) -> int:
        """How many integration steps make one observation interval.

        Raises:
            ValueError: if ``step_size`` is not a whole, positive multiple of ``dt``.
        """
        steps = round(step_size / self.dt) if math.isfinite(step_size / self.dt) else 0
        if steps < 1 or abs(steps * self.dt - step_size) > 1e-9:
            raise ValueError(f"step_size = {step_size} must be a positive multiple of the integration step {self.dt}.")
        return steps

    def on_attractor(
        self,
        batch: int,
        generator: torch.Generator,
        spinup: float | None = None,
        until: float | Float[Tensor, " batch"] = 0.0,
    ) -> Float[Tensor, "batch channel site"]:
        """Independent states of the free-running system, float64: its climatology.

        Args:
            batch: how many states.
            generator: source of the initial perturbations.
            spinup: time for which each perturbed rest state is run, in the system's unit; by default the system's own.
            until: the time of the states, or of each, where the system depends on it.

        Raises:
            ValueError: if states do not stay finite.
        """
        self.refuse_unfit()
        start = self.rest()
        noise = torch.randn((batch, *start.shape), generator=generator, dtype=torch.float64)
        steps = round((self.spinup if spinup is None else spinup) / self.dt)
        first = start + self.perturbation * noise
        end = torch.as_tensor(until, dtype=torch.float64)[..., None, None]
        states = self.flow_at(first, steps, end - steps * self.dt if self.depends_on_time else None)
        self.refuse_unbounded(states)
        return states

    @torch.no_grad()
    def refuse_unfit(self, dtype: torch.dtype = torch.float64) -> None:
        """Raise :class:`~assim_lib.mistakes.Mistake` if the rest state is none, or its tendency none of that type."""
        rest, whose = self.rest(), f"of system = {self.name!r}"
        refuse_other(f"rest() {whose}", rest, (len(rest), self.sites), torch.float64)
        x = rest.to(dtype).repeat(2, 1, 1)
        time = torch.zeros(1, 1, 1, dtype=torch.float64)
        what = f"the tendency {whose}, of its rest state,"
        came = tried(what, lambda: self.tendency_at(x, time if self.depends_on_time else None))
        refuse_other(what, came, x.shape, dtype)

    def refuse_unbounded(self, states: Float[Tensor, "*batch channel site"]) -> None:
        """Raise :class:`~assim_lib.mistakes.Mistake` if some states of the system are not finite."""
        if not states.isfinite().all():
            raise Mistake(
                f"dt = {self.dt} lets states of system = {self.name!r} grow without bounds; take a shorter "
                "integration step."
            )

    def describe(self) -> dict[str, Any]:
        """The system's name and settings, for files and cache keys."""
        return {"system": self.name, **asdict(self)}


SYSTEMS: Registry[type[Dynamics]] = Registry("system")
System = TypeVar("System", bound=type[Dynamics])


def register_system(system: System) -> System:
    """Class decorator: make a system known under its ``name``.

    Running a notebook's cell again replaces what it registered before.

    Raises:
        ValueError: if it has no name, or one of the library's own.
    """
    if not (isinstance(system, type) and issubclass(system, Dynamics)):
        raise ValueError(f"what is registered as a system is {system!r}; it must be a class derived from Dynamics.")
    if not hasattr(system, "name"):
        raise ValueError(f"{system.__name__} needs a class attribute `name` that experiments can call it by.")
    return SYSTEMS.register(system.name)(system)


def system_of(name: str, dt: float | None = None) -> Dynamics:
    """The registered system of that name, with its standard settings.

    Args:
        dt: another integration step, in the system's time unit.

    Raises:
        ValueError: if there is no such system, or ``dt`` is not positive.
    """
    make = cast(Callable[[], Dynamics], SYSTEMS.find(name))
    system = tried(f"system = {name!r}, a @dataclass(frozen=True) with all methods and defaults,", make, "to be made")
    if dt is None:
        return system
    if not 0 < dt < math.inf:
        raise ValueError(f"dt = {dt} must be greater than 0.")
    return replace(system, dt=dt)


def forecast_model_of(name: str, dt: float | None = None) -> Dynamics:
    """The model that filters forecast a registered system with: the system itself, or a simpler one.

    Args:
        dt: another integration step of the model.
    """
    return system_of(SYSTEMS.find(name).forecast_model or name, dt)

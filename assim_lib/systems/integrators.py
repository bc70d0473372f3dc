r"""Advance a state by whole steps.

A dynamical system is a tendency, :math:`\dot x = f(x)`; an integrator turns it into a map from one time to
the next. The classical fourth-order Runge–Kutta step combines four evaluations of the tendency,

.. math:: x_{n+1} = x_n + \tfrac{\Delta t}{6}\,(k_1 + 2 k_2 + 2 k_3 + k_4),

and has a global error of order :math:`\Delta t^4`. A stiff system, :math:`\dot v = L v + N(v)` with a linear
part that decays on much shorter times than those of interest, would force it to tiny steps. *Exponential time
differencing* integrates the linear part exactly and only the rest by a Runge–Kutta rule: from

.. math:: v(t + \Delta t) = e^{L \Delta t}\, v(t) + \int_0^{\Delta t} e^{L (\Delta t - s)}\, N(v(t + s))\, ds

come the four stages of :class:`ETDRK4`, which cost as much as those of Runge–Kutta. Time is counted in whole steps
everywhere in this library: sums of floating-point times drift over tens of thousands of cycles.

All other schemes are torchdiffeq's (Chen et al., 2018), the integrator of the original implementation: through
:func:`integrate` a system may be advanced by its adaptive solvers, and differentiated by its adjoint equations.

Every operation here is differentiable, so that the gradient of a loss can flow through a forecast.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Inexact
from torch import Tensor

Tendency = Callable[..., Tensor]  # of a state, and of a time where it depends on it
_FIXED_STEP = ("euler", "midpoint", "heun2", "rk4_38")
ADAPTIVE = ("bosh3", "fehlberg2", "adaptive_heun", "dopri5", "dopri8")
METHODS = ("rk4", *_FIXED_STEP, *ADAPTIVE)


def _check(steps: int) -> None:
    if steps < 0:
        raise ValueError(f"steps = {steps}: the number of steps must be at least 0.")


def at_time(tendency: Tendency, time: Float[Tensor, "..."]) -> Tendency:
    """A tendency that depends on time, as one of a state and of how much later it is; in the state's precision."""
    return lambda x, later=0.0: tendency(x, time + later).to(x.dtype)


def rk4_step(tendency: Tendency, x: Float[Tensor, "*shape"], dt: float, timed: bool = False) -> Float[Tensor, "*shape"]:
    """One step of the classical fourth-order Runge–Kutta method (the "1/6, 2/6, 2/6, 1/6" rule).

    Args:
        tendency: maps a state to its time derivative, same shape.
        x: the state, any shape.
        dt: the step, in the time unit of the tendency.
        timed: whether it depends on time, and is told how much later than the step's beginning a state is.
    """
    at = tendency if timed else lambda x, later: tendency(x)
    k1 = at(x, 0.0)
    k2 = at(x + (0.5 * dt) * k1, 0.5 * dt)
    k3 = at(x + (0.5 * dt) * k2, 0.5 * dt)
    k4 = at(x + dt * k3, dt)
    return x + (dt / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)


class Constant:
    """Numbers that go where they are needed, in the precision that is needed there, once.

    What waits for a copy from the processor in every step cannot be part of a CUDA graph.
    """

    def __init__(self, values: Inexact[np.ndarray, "*shape"]):
        self.values = values
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, other: Tensor) -> Tensor:
        """The numbers in the precision of another tensor, beside it."""
        where = (other.dtype, other.device)
        if where not in self._copies:
            self._copies[where] = torch.tensor(self.values, dtype=other.dtype, device=other.device)
        return self._copies[where]


class ETDRK4:
    r"""Fourth-order exponential time differencing of :math:`\dot v = L v + N(v)`, with diagonal :math:`L`.

    Its coefficients are functions of :math:`z = L \Delta t` such as :math:`(e^z - 1)/z`, in which all digits cancel
    near :math:`z = 0`. They are analytic there, so that the mean over a circle around :math:`z` gives the value at
    :math:`z` without cancellation, in double precision. The error has order four once the steps resolve all of
    :math:`L`, and about three with the long steps that are the point of the method.
    Sources: Cox & Matthews (2002) for the stages; Kassam & Trefethen (2005) for the circle.

    Args:
        linear: the diagonal of :math:`L`; complex only where the state is.
        dt: the step, in the time unit of :math:`L` and :math:`N`.
        points: number of points on the circle of radius 1.
    """

    def __init__(self, linear: Inexact[np.ndarray, " mode"], dt: float, points: int = 32):
        z = dt * linear
        # No point of the circle around a real z is real: none can hit the cancellation at 0.
        around = z[:, None] + np.exp(2j * np.pi * (np.arange(points) + 0.5) / points)
        exp = np.exp(around)
        means = [
            dt * values.mean(-1)
            for values in (
                (np.exp(around / 2) - 1) / around,
                (-4 - around + exp * (4 - 3 * around + around**2)) / around**3,
                2 * (2 + around + exp * (around - 2)) / around**3,
                (-4 - 3 * around - around**2 + exp * (4 - around)) / around**3,
            )
        ]
        coefficients = np.stack([np.exp(z), np.exp(z / 2), *means])
        self.coefficients = Constant(coefficients if np.iscomplexobj(linear) else np.real(coefficients))

    def __call__(
        self, nonlinear: Tendency, v: Inexact[Tensor, "*batch mode"], steps: int = 1
    ) -> Inexact[Tensor, "*batch mode"]:
        """Advance ``v`` by ``steps`` steps.

        Args:
            nonlinear: maps a state to N(v), same shape.
            v: the state in the coordinates in which L is diagonal, real or complex.

        Raises:
            ValueError: if ``steps`` is negative.
        """
        _check(steps)
        whole, half, q, f1, f2, f3 = self.coefficients.like(v)
        for _ in range(steps):
            n1 = nonlinear(v)
            decayed = half * v
            a = decayed + q * n1
            n2 = nonlinear(a)
            b = decayed + q * n2
            n3 = nonlinear(b)
            c = half * a + q * (2 * n3 - n1)
            v = whole * v + f1 * n1 + f2 * (n2 + n3) + f3 * nonlinear(c)
        return v


class _AsModule(torch.nn.Module):
    # The adjoint solver looks for parameters, and therefore insists on a module.
    def __init__(self, tendency: Tendency, unit: float, start: Tensor | None):
        super().__init__()
        self.tendency, self.unit, self.start = tendency, unit, start

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.start is None:
            return self.unit * self.tendency(x)
        return self.unit * at_time(self.tendency, self.start)(x, self.unit * t.double())


def integrate(
    tendency: Tendency,
    x: Float[Tensor, "*shape"],
    dt: float,
    steps: int,
    method: str = "rk4",
    adjoint: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    start: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*shape"]:
    """Advance ``x`` by ``steps`` steps of length ``dt``.

    Args:
        method: ``"rk4"`` is :func:`rk4_step`; any other name is a method of ``torchdiffeq.odeint`` (``"dopri5"`` is
            adaptive). torchdiffeq's own ``"rk4"`` is the 3/8 rule, another scheme, and is offered as ``"rk4_38"``.
        adjoint: compute gradients by torchdiffeq's adjoint equations, in constant memory (not with ``"rk4"``).
        rtol, atol: relative and absolute error that an adaptive method allows itself in a step; by default 1e-7 and
            1e-9, in single precision 1e-5 and 1e-6.
        start: time of ``x`` (float64, broadcasts to it), of a tendency that depends on time and is called with a state
            and its time; None: it does not.

    Raises:
        ValueError: if ``steps`` is negative, ``method`` is unknown, or ``adjoint`` is asked of ``"rk4"``.
    """
    _check(steps)
    if method not in METHODS:
        raise ValueError(f"method = {method!r} is not known; known: {', '.join(METHODS)}.")
    if method == "rk4":
        if adjoint:
            raise ValueError(
                "adjoint = True is not available for method = 'rk4'; choose an odeint method such as 'dopri5'."
            )
        for step in range(steps):
            if start is None:
                x = rk4_step(tendency, x, dt)
            else:
                x = rk4_step(at_time(tendency, start + step * dt), x, dt, timed=True)
        return x
    if steps == 0:
        return x
    # Late: with it comes much of SciPy, whose import takes a third as long as that of PyTorch.
    from torchdiffeq import odeint, odeint_adjoint

    solver, fixed, double = odeint_adjoint if adjoint else odeint, method in _FIXED_STEP, x.dtype == torch.float64
    # Fixed steps are counted: torchdiffeq takes one more where the sum of their times is rounded up.
    unit, end = (dt, steps) if fixed else (1.0, steps * dt)
    times = torch.tensor([0.0, end], dtype=x.dtype, device=x.device)
    name = "rk4" if method == "rk4_38" else method
    path: Tensor = solver(  # pyright: ignore[reportAssignmentType]
        _AsModule(tendency, unit, start),
        x,
        times,
        rtol=rtol or (1e-7 if double else 1e-5),
        atol=atol or (1e-9 if double else 1e-6),
        method=name,
        options={"step_size": 1.0} if fixed else None,
    )
    return path[-1]


def rollout(step: Callable[[Tensor], Tensor], x: Float[Tensor, "*shape"], steps: int) -> Float[Tensor, "time *shape"]:
    """The states ``x, step(x), step(step(x)), …``: ``steps + 1`` of them, stacked along a new first axis."""
    path = [x]
    for _ in range(steps):
        path.append(step(path[-1]))
    return torch.stack(path)

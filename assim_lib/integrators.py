r"""Advance a state by whole steps.

A dynamical system is a tendency, :math:`\dot x = f(x)`; an integrator turns it into a map from one time to
the next. The classical fourth-order Runge–Kutta step combines four evaluations of the tendency,

.. math:: x_{n+1} = x_n + \tfrac{\Delta t}{6}\,(k_1 + 2 k_2 + 2 k_3 + k_4),

and has a global error of order :math:`\Delta t^4`. Time is counted in whole steps everywhere in this
library: sums of floating-point times drift over tens of thousands of cycles.

Every operation here is differentiable, so that the gradient of a loss can flow through a forecast.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

Tendency = Callable[[Tensor], Tensor]


def rk4_step(tendency: Tendency, x: Float[Tensor, "*shape"], dt: float) -> Float[Tensor, "*shape"]:
    """One step of the classical fourth-order Runge–Kutta method (the "1/6, 2/6, 2/6, 1/6" rule).

    Parameters
    ----------
    tendency : maps a state to its time derivative, same shape.
    x : the state, any shape.
    dt : the step, in the time unit of the tendency.
    """
    k1 = tendency(x)
    k2 = tendency(x + (0.5 * dt) * k1)
    k3 = tendency(x + (0.5 * dt) * k2)
    k4 = tendency(x + dt * k3)
    return x + (dt / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)


class _AsModule(torch.nn.Module):
    # The adjoint solver looks for parameters, and therefore insists on a module.
    def __init__(self, tendency: Tendency):
        super().__init__()
        self.tendency = tendency

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.tendency(x)


def integrate(
    tendency: Tendency,
    x: Float[Tensor, "*shape"],
    dt: float,
    steps: int,
    method: str = "rk4",
    adjoint: bool = False,
) -> Float[Tensor, "*shape"]:
    """Advance ``x`` by ``steps`` steps of length ``dt``.

    Parameters
    ----------
    method : ``"rk4"`` is :func:`rk4_step`; any other name is a method of ``torchdiffeq.odeint``
        (``"dopri5"`` is adaptive). torchdiffeq's own ``"rk4"`` is the 3/8 rule, another scheme,
        and is therefore not offered under that name.
    adjoint : compute gradients by torchdiffeq's adjoint equations, in constant memory (not with ``"rk4"``).

    Raises
    ------
    ValueError : if ``steps`` is negative, or ``adjoint`` is asked of ``"rk4"``.
    """
    if steps < 0:
        raise ValueError(f"steps = {steps}: the number of steps must be at least 0.")
    if method == "rk4":
        if adjoint:
            raise ValueError(
                "adjoint = True is not available for method = 'rk4'; choose an odeint method such as 'dopri5'."
            )
        for _ in range(steps):
            x = rk4_step(tendency, x, dt)
        return x
    if steps == 0:
        return x
    times = torch.tensor([0.0, steps * dt], dtype=x.dtype, device=x.device)
    solver = odeint_adjoint if adjoint else odeint
    path: Tensor = solver(_AsModule(tendency), x, times, method=method)  # pyright: ignore[reportAssignmentType]
    return path[-1]


def rollout(step: Callable[[Tensor], Tensor], x: Float[Tensor, "*shape"], steps: int) -> Float[Tensor, "time *shape"]:
    """The states ``x, step(x), step(step(x)), …``: ``steps + 1`` of them, stacked along a new first axis."""
    path = [x]
    for _ in range(steps):
        path.append(step(path[-1]))
    return torch.stack(path)

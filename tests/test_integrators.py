"""Steps have the order they claim, and are those of the other implementations."""

import math

import numpy as np
import pytest
import torch
from small import climatology, generator
from torchdiffeq import odeint_adjoint

from assim_lib import integrators
from assim_lib.dynamics import Lorenz96
from assim_lib.integrators import integrate, rk4_step, rollout

BATCHES = [(), (64,)]


def logistic(x):
    return x * (1 - x)


def logistic_exact(x, time):
    return 1 / (1 + (1 / x - 1) * math.exp(-time))


def swing(x):
    """A pendulum: position and velocity on the last axis."""
    return torch.stack([x[..., 1], -torch.sin(x[..., 0])], -1)


@pytest.mark.parametrize("batch", BATCHES)
def test_rk4_has_order_four(batch):
    x = 0.1 + 0.3 * torch.rand((*batch, 3), generator=generator(), dtype=torch.float64)
    errors = [
        float((integrate(logistic, x, 2.0 / steps, steps) - logistic_exact(x, 2.0)).abs().max())
        for steps in (10, 20, 40, 80)
    ]
    orders = np.log2(errors[:-1]) - np.log2(errors[1:])
    np.testing.assert_allclose(orders, 4.0, atol=0.25)
    assert errors[-1] < 1e-8


def test_rk4_of_a_linear_system_is_the_taylor_polynomial():
    rate, dt = -1.7, 0.3
    z = rate * dt
    factor = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    x = torch.tensor([1.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(rk4_step(lambda x: rate * x, x, dt), factor * x, rtol=1e-15, atol=0)


@pytest.mark.parametrize("batch", BATCHES)
def test_rk4_is_dappers(batch):
    pytest.importorskip("dapper", reason="needs the extra `baselines`")
    from dapper.mods.integration import rk4

    x = torch.randn((*batch, 5, 2), generator=generator(), dtype=torch.float64)
    expected = rk4(lambda x, t: swing(torch.from_numpy(x)).numpy(), x.numpy(), 0.0, 0.2)
    np.testing.assert_allclose(rk4_step(swing, x, 0.2), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_integrate_takes_that_many_steps(steps):
    x = expected = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    for _ in range(steps):
        expected = rk4_step(swing, expected, 0.1)
    assert torch.equal(integrate(swing, x, 0.1, steps), expected)
    if steps == 0:
        assert torch.equal(integrate(swing, x, 0.1, 0, method="dopri5"), x)


@pytest.mark.parametrize("batch", BATCHES)
def test_adaptive_steps_agree_with_short_ones(batch):
    system = Lorenz96(sites=12)
    x = climatology()[0].expand(*batch, 1, 12)
    fine = integrate(system.tendency, x, 0.0005, 1000)
    adaptive = integrate(system.tendency, x, 0.05, 10, method="dopri5")
    torch.testing.assert_close(adaptive, fine, rtol=0, atol=1e-5)
    coarse = integrate(system.tendency, x, 0.05, 10)
    assert (coarse - fine).abs().max() > 1e-4  # so that the agreement above means something


class Forced(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.forcing = torch.nn.Parameter(torch.tensor(8.0, dtype=torch.float64))

    def forward(self, x):
        return Lorenz96(sites=12, forcing=0.0).tendency(x) + self.forcing


def test_the_adjoint_gradient_is_the_direct_one(monkeypatch):
    gradients, solved = {}, []
    monkeypatch.setattr(integrators, "odeint_adjoint", lambda *a, **k: solved.append(a) or odeint_adjoint(*a, **k))
    for adjoint in (False, True):
        tendency, x = Forced(), climatology()[1].clone().requires_grad_()
        integrate(tendency, x, 0.05, 6, method="dopri5", adjoint=adjoint).square().sum().backward()
        gradients[adjoint] = [x.grad, tendency.forcing.grad]
        assert len(solved) == adjoint
        assert all(gradient.abs().max() > 1 for gradient in gradients[adjoint])
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": -1}, r"steps = -1: the number of steps must be at least 0\."),
        ({"steps": 2, "adjoint": True}, r"adjoint = True is not available for method = 'rk4'; .*'dopri5'\."),
    ],
)
def test_wrong_arguments_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=rf"^{sentence}$"):
        integrate(swing, torch.zeros(2), 0.1, **arguments)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("steps", [0, 4])
def test_rollout_starts_with_the_start(batch, steps):
    x = torch.randn((*batch, 1, 6), generator=generator())
    path = rollout(lambda x: 2 * x, x, steps)
    assert path.shape == (steps + 1, *batch, 1, 6)
    for k, state in enumerate(path):
        assert torch.equal(state, 2**k * x)

"""Steps have the order they claim, and are those of the other implementations."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from small import climatology, generator

from assim_lib.systems import KuramotoSivashinsky, Lorenz96
from assim_lib.systems.integrators import ETDRK4, METHODS, integrate, rk4_step, rollout

BATCHES = [(), (64,)]
ORDERS = {"rk4": 4, "euler": 1, "midpoint": 2, "heun2": 2, "rk4_38": 4}
ADAPTIVE = [method for method in METHODS if method not in ORDERS]


def logistic(x):
    return x * (1 - x)


def logistic_exact(x, time):
    return 1 / (1 + (1 / x - 1) * math.exp(-time))


def swing(x):
    """A pendulum: position and velocity on the last axis."""
    return torch.stack([x[..., 1], -torch.sin(x[..., 0])], -1)


def orders(errors):
    """The orders observed between steps of which each is half the one before."""
    return np.log2(errors[:-1]) - np.log2(errors[1:])


# ---- Runge–Kutta


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("method", "order"), ORDERS.items())
def test_fixed_steps_have_their_order(method, order, batch):
    x = 0.1 + 0.3 * torch.rand((*batch, 3), generator=generator(), dtype=torch.float64)
    errors = [
        float((integrate(logistic, x, 2.0 / steps, steps, method) - logistic_exact(x, 2.0)).abs().max())
        for steps in (10, 20, 40, 80)
    ]
    np.testing.assert_allclose(orders(errors), order, atol=0.25)
    assert errors[-1] < {1: 1e-2, 2: 1e-4, 4: 1e-8}[order]


def test_rk4_of_a_linear_system_is_the_taylor_polynomial():
    rate, dt = -1.7, 0.3
    z = rate * dt
    factor = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    x = torch.tensor([1.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(rk4_step(lambda x: rate * x, x, dt), factor * x, rtol=1e-15, atol=0)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_integrate_takes_that_many_steps(steps):
    x = expected = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    for _ in range(steps):
        expected = rk4_step(swing, expected, 0.1)
    assert torch.equal(integrate(swing, x, 0.1, steps), expected)
    if steps == 0:
        assert torch.equal(integrate(swing, x, 0.1, 0, method="dopri5"), x)


# ---- torchdiffeq's solvers


def test_they_are_imported_with_the_first_call_and_not_with_a_filter():
    command = "import sys; from assim_lib import AmortizedFilter; sys.exit('torchdiffeq' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "evaluations"), [("euler", 1), ("midpoint", 2), ("rk4_38", 4)])
def test_a_fixed_step_is_dt_whatever_its_sum_rounds_to(method, evaluations, dtype):
    for dt, steps in ((0.05, 1), (0.05, 6), (0.1, 6), (0.03, 5), (0.03, 13), (0.005, 200)):
        calls = []
        integrate(lambda x, calls=calls: calls.append(x) or -x, torch.ones(2, dtype=dtype), dt, steps, method)
        assert len(calls) == evaluations * steps


def test_the_rule_of_three_eighths_agrees_with_ours_to_its_order():
    system, x = Lorenz96(sites=12), climatology()
    differences = [
        float(
            (integrate(system.tendency, x, dt, steps, "rk4_38") - integrate(system.tendency, x, dt, steps)).abs().max()
        )
        for dt, steps in ((0.02, 5), (0.01, 10), (0.005, 20))
    ]
    np.testing.assert_allclose(orders(differences), 4.0, atol=0.3)
    assert 1e-12 < differences[-1] < 1e-5  # another scheme, and as good


@pytest.mark.parametrize(("method", "batch"), [*((method, ()) for method in ADAPTIVE), ("dopri5", (64,))])
def test_adaptive_steps_agree_with_short_ones(method, batch):
    system = Lorenz96(sites=12)
    x = climatology()[0].expand(*batch, 1, 12)
    fine, coarse = (integrate(system.tendency, x, 0.2 / steps, steps) for steps in (200, 2))
    for dt, steps in ((0.05, 4), (0.2, 1)):  # dt counts the time, and no more
        adaptive = integrate(system.tendency, x, dt, steps, method, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(adaptive, fine, rtol=0, atol=1e-3)
    assert (coarse - fine).abs().max() > 4e-3  # so that the agreement above means something


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_adaptive_solver_errs_as_much_as_it_may(dtype):
    x = torch.tensor([0.2, 0.3], dtype=dtype)
    errors = {}
    for rtol in (1e-2, 1e-4, None):
        calls = []
        after = integrate(
            lambda x, calls=calls: calls.append(x) or logistic(x), x, 0.5, 8, "dopri5", rtol=rtol, atol=rtol
        )
        assert after.dtype == dtype
        errors[rtol] = float((after - logistic_exact(x, 4.0)).abs().max()), len(calls)
    (rough, few), (good, some), (best, many) = errors.values()
    assert rough > 10 * good > 100 * best * (dtype == torch.float64)
    assert few < some < many


class Forced(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.forcing = torch.nn.Parameter(torch.tensor(8.0, dtype=torch.float64))

    def forward(self, x):
        return Lorenz96(sites=12, forcing=0.0).tendency(x) + self.forcing


@pytest.mark.parametrize("method", ["dopri5", "rk4_38"])
def test_the_adjoint_gradient_is_the_direct_one(method):
    gradients = {}
    for adjoint in (False, True):
        tendency, x = Forced(), climatology()[1].clone().requires_grad_()
        after = integrate(tendency, x, 0.01, 30, method, adjoint)
        assert ("Adjoint" in after.grad_fn.next_functions[0][0].name()) == adjoint
        after.square().sum().backward()
        gradients[adjoint] = [x.grad, tendency.forcing.grad]
        assert all(gradient.abs().max() > 1 for gradient in gradients[adjoint])
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("adjoint", "grows"), [(False, True), (True, False)])
def test_the_adjoint_keeps_no_steps_in_memory(adjoint, grows):
    kept = []
    for steps in (5, 50):
        count = [0]

        def keep(tensor, count=count):
            count[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            integrate(Forced(), climatology()[1].clone().requires_grad_(), 0.01, steps, "rk4_38", adjoint)
        kept.append(count[0])
    assert (kept[1] > 5 * kept[0]) == grows
    assert grows or kept[0] == kept[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": -1}, r"steps = -1: the number of steps must be at least 0\."),
        ({"steps": -1, "method": "euler"}, r"steps = -1: the number of steps must be at least 0\."),
        ({"steps": 2, "adjoint": True}, r"adjoint = True is not available for method = 'rk4'; .*'dopri5'\."),
        ({"steps": 2, "method": "rk5"}, r"method = 'rk5' is not known; known: rk4, euler, [^\n]+, dopri5, dopri8\."),
    ],
)
def test_wrong_arguments_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=rf"^{sentence}$"):
        integrate(swing, torch.zeros(2), 0.1, **arguments)
    with pytest.raises(ValueError, match=r"^steps = -1: the number of steps must be at least 0\.$"):
        ETDRK4(np.zeros(2), 0.1)(swing, torch.zeros(2), -1)


# ---- exponential time differencing


def phi(order, z):
    """Σ zⁿ/(n + order)!, in exact arithmetic."""
    term = total = Fraction(1, math.factorial(order))
    n = 0
    while abs(term) > Fraction(1, 10**40):
        n += 1
        term *= Fraction(z) / (n + order)
        total += term
    return total


@pytest.mark.parametrize("points", [32, 64])
def test_the_coefficients_are_exact_to_rounding(points):
    # The mode of the mean (0), modes next to it, where the formulas cancel, a growing one and strongly damped ones.
    growth, dt = np.array([0.0, 1e-9, -1e-5, 1e-2, 0.25, -0.5, -3.0, -40.0, -240.0]), 0.5
    exact = []
    for z in (Fraction(dt) * Fraction(rate) for rate in growth):
        one, two, three = (phi(order, z) for order in (1, 2, 3))
        means = phi(1, z / 2) / 2, one - 3 * two + 4 * three, 2 * two - 4 * three, 4 * three - two
        exact.append([math.exp(z), math.exp(z / 2), *(dt * float(mean) for mean in means)])
    coefficients = ETDRK4(growth, dt, points).coefficients.values
    assert coefficients.dtype == np.float64
    np.testing.assert_allclose(coefficients.T, exact, rtol=2e-12, atol=0)


def test_etdrk4_without_a_linear_part_is_rk4():
    x = torch.randn((64, 5, 2), generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(ETDRK4(np.zeros(2), 0.2)(swing, x), rk4_step(swing, x, 0.2), rtol=1e-13, atol=1e-13)


def test_etdrk4_is_exact_for_a_linear_system_with_a_constant_source():
    rates = np.array([0.0, 0.3, -2.0, -500.0])
    source = torch.tensor([1.0, 2.0, -1.0, 4.0], dtype=torch.float64)
    x, time = torch.ones(4, dtype=torch.float64), 1.5
    growth = torch.from_numpy(np.exp(rates * time))
    gain = torch.from_numpy(np.concatenate([[time], np.expm1(rates[1:] * time) / rates[1:]]))
    after = ETDRK4(rates, 0.5)(lambda x: source, x, 3)
    torch.testing.assert_close(after, growth * x + gain * source, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("batch", BATCHES)
def test_etdrk4_has_order_four(batch):
    x = 0.1 + 0.3 * torch.rand((*batch, 3), generator=generator(), dtype=torch.float64)

    def error(steps):
        return (ETDRK4(np.ones(3), 2.0 / steps)(lambda x: -x * x, x, steps) - logistic_exact(x, 2.0)).abs().max()

    errors = [float(error(steps)) for steps in (10, 20, 40, 80)]
    np.testing.assert_allclose(orders(errors), 4.0, atol=0.25)
    assert errors[-1] < 1e-8


def test_etdrk4_with_a_complex_spectrum():
    """The Stuart–Landau oscillator, v' = (a + iω)v − |v|²v, of which radius and phase are known."""
    a, omega, time = 0.6, 7.0, 2.0
    v = torch.randn(16, 1, dtype=torch.complex128, generator=generator())
    radius = (a / (1 + (a / v.abs().square() - 1) * math.exp(-2 * a * time))).sqrt()
    exact = torch.polar(radius, v.angle() + omega * time)
    errors = []
    for steps in (80, 160, 320):
        step = ETDRK4(np.array([a + 1j * omega]), time / steps)
        errors.append(float((step(lambda v: -v.abs().square() * v, v, steps) - exact).abs().max()))
    np.testing.assert_allclose(orders(errors), 4.0, atol=0.2)
    assert errors[-1] < 1e-6


def test_order_four_for_the_kuramoto_sivashinsky_equation():
    # Sites so far apart that Runge–Kutta steps, too, resolve the fastest wave: their solution is the reference.
    def system(dt):
        return KuramotoSivashinsky(sites=64, dt=dt)

    x = system(0.5).on_attractor(8, generator(3))
    fine = integrate(system(0.5).tendency, x, 1 / 256, 256)
    errors = [float((system(1 / n).flow(x, n) - fine).square().mean().sqrt()) for n in (2, 8, 16, 32, 64)]
    np.testing.assert_allclose(orders(errors[1:]), 4.0, atol=0.35)
    assert errors[-1] < 1e-8
    assert errors[0] < 2e-3  # the step that experiments take


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_etdrk4_keeps_type_and_device(dtype):
    step = ETDRK4(-np.arange(4.0), 0.1)
    for device in ("cpu", "meta"):
        after = step(lambda x: -x * x, torch.ones(2, 4, dtype=dtype, device=device), 2)
        assert (after.dtype, after.device.type) == (dtype, device)


def test_gradients_of_etdrk4():
    system = KuramotoSivashinsky(sites=10, length=20.0)
    x = torch.randn(2, 1, 10, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: system.flow(x, 2), x)
    assert torch.autograd.gradcheck(system.tendency, x)


# ---- paths


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("steps", [0, 4])
def test_rollout_starts_with_the_start(batch, steps):
    x = torch.randn((*batch, 1, 6), generator=generator())
    path = rollout(lambda x: 2 * x, x, steps)
    assert path.shape == (steps + 1, *batch, 1, 6)
    assert all(torch.equal(state, 2**k * x) for k, state in enumerate(path))

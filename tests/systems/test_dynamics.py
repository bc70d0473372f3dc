"""A system's tendency is that of the literature, and its states are those of its attractor."""

import json
import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import ClassVar

import jaxtyping
import numpy as np
import pytest
import torch
from small import generator

from assim_lib.classical.dapper_bridge import import_dapper
from assim_lib.systems import (
    SYSTEMS,
    Dynamics,
    KuramotoSivashinsky,
    Lorenz96,
    TwoLevelLorenz96,
    VissioLucarini20,
    forecast_model_of,
    register_system,
    system_of,
)

ALTERNATING = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(64)


@pytest.fixture(params=SYSTEMS.values(), ids=SYSTEMS)
def system(request) -> Dynamics:
    return request.param()


def states(system, batch=(), seed=0):
    noise = torch.randn((*batch, *system.rest().shape), generator=generator(seed), dtype=torch.float64)
    return system.rest() + system.perturbation * noise


# ---- what holds for every system


@pytest.mark.parametrize("batch", [(), (64,), (2, 3)])
def test_any_batch_prefix_is_the_same_computation(system, batch):
    x = states(system, batch)
    assert x.shape == (*batch, system.channels, system.sites)
    for of in (system.tendency, lambda x: system.flow(x, 3)):
        one_by_one = torch.stack([of(state) for state in x.reshape(-1, *x.shape[-2:])]).reshape(x.shape)
        torch.testing.assert_close(of(x), one_by_one, rtol=1e-13, atol=1e-12)
        assert of(x.float()).dtype == torch.float32
        assert of(x.float().to("meta")).device.type == "meta"


def test_a_flow_is_made_of_flows_and_turns_with_the_ring(system):
    x = states(system, (4,))
    for of in (system.tendency, lambda x: system.flow(x, 3)):
        torch.testing.assert_close(of(x.roll(5, -1)), of(x).roll(5, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(system.flow(system.flow(x, 2), 3), system.flow(x, 5), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(system.flow(x, 0), x, rtol=1e-14, atol=1e-14)


def test_the_attractor_depends_on_its_generator_alone(system):
    torch.manual_seed(0)
    first = system.on_attractor(3, generator(4), spinup=2.0)
    torch.manual_seed(1)
    again, other = (system.on_attractor(3, generator(seed), spinup=2.0) for seed in (4, 5))
    assert first.shape == (3, system.channels, system.sites)
    assert first.dtype == torch.float64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[0] - first[1]).abs().max() > 0.1


def test_the_spinup_is_the_systems_own_unless_given(system):
    class Shorter(type(system)):
        spinup = 4 * system.dt

    shorter, start = Shorter(), states(system, (2,), seed=1)
    for spinup, steps in ((None, 4), (2 * system.dt, 2)):
        expected = system.flow(start, steps)
        if system.name == "ks":
            expected -= expected.mean(-1, keepdim=True)
        assert torch.equal(shorter.on_attractor(2, generator(1), spinup), expected)


def test_a_cycle_is_a_whole_number_of_steps(system):
    for cycle in (1, 2, 3, 7, 10, 400):
        assert system.steps_per_cycle(cycle * system.dt) == cycle
        assert system.steps_per_cycle(round(cycle * system.dt, 6)) == cycle
    for factor in (0.0, 0.5, 1.5, 2.01, -1.0):
        with pytest.raises(ValueError, match=r"^step_size = \S+ must be a positive multiple of the .* step \S+$"):
            system.steps_per_cycle(factor * system.dt)


def test_a_system_describes_itself_and_rests(system):
    description = system.describe()
    assert json.loads(json.dumps(description)) == description
    assert description.pop("system") == system.name
    assert type(system)(**description) == system
    assert system.integrator == ("ETDRK4" if system.name == "ks" else "RK4")
    assert system.rest().dtype == torch.float64
    assert system.tendency(system.rest()).abs().max() < 1e-14


def test_the_forecast_model_resolves_what_is_slow(system):
    x = states(system, (3,))
    assert torch.equal(system.resolved(x), x[..., :1, :] if system.name == "two_level" else x)
    model = forecast_model_of(system.name)
    assert model.name == {"two_level": "l96"}.get(system.name, system.name)
    assert (model.channels, model.sites) == system.resolved(x).shape[1:]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, from jvp
def test_forward_and_backward_derivatives_of_the_flow_agree(system):
    x, towards = states(system), states(system, seed=1) - system.rest()
    _, forward = torch.func.jvp(lambda x: system.flow(x, 2), (x,), (towards,))
    step = 1e-6
    difference = (system.flow(x + step * towards, 2) - system.flow(x - step * towards, 2)) / (2 * step)
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-7)
    with torch.inference_mode():
        system.flow(x)  # must leave nothing behind that gradients cannot pass
    x.requires_grad_()
    weights = torch.randn(x.shape, generator=generator(2), dtype=torch.float64)
    (backward,) = torch.autograd.grad((weights * system.flow(x, 2)).sum(), x)
    torch.testing.assert_close((backward * towards).sum(), (weights * forward).sum(), rtol=1e-11, atol=1e-11)


# Mean and standard deviation of each kind of variable, and the largest value that a million of them may reach.
CLIMATOLOGY = {
    "l96": [(2.34, 3.64, 18)],
    "two_level": [(2.58, 3.54, 18), (0.099, 0.237, 2.5)],
    "vl20": [(2.32, 3.53, 19), (1.80, 4.48, 23)],
    "ks": [(0.0, 1.31, 4)],
}


@pytest.mark.parametrize("name", CLIMATOLOGY)
def test_climatology(name):
    system = system_of(name)
    spinup = 4.0 if name == "two_level" else system.spinup
    assert spinup <= system.spinup
    x = system.on_attractor(48 if name == "two_level" else 256, generator(2), spinup)
    slow, other = x[:, 0], x[:, 1:]
    for variable, (mean, std, most) in zip((slow, other), CLIMATOLOGY[name], strict=False):
        assert float(variable.mean()) == pytest.approx(mean, abs=0.05 * std)
        assert float(variable.std()) == pytest.approx(std, rel=0.05)
        assert variable.abs().max() < most
    # The spin-up was long enough: later states have the same statistics.
    later = system.flow(x, round(0.4 / system.dt) or 2)
    assert float(later.mean()) == pytest.approx(float(x.mean()), abs=0.05 * float(x.std()))
    assert float(later.std()) == pytest.approx(float(x.std()), rel=0.03)


# ---- the same equations and steps as DAPPER's


def flat(x):
    """A state as DAPPER's vector; the fast variables of the two-level model are grouped by site."""
    x = torch.cat([x[..., 0, :], x[..., 1:, :].mT.flatten(-2)], -1) if x.shape[-2] > 2 else x.flatten(-2)
    return x.numpy()


def dappers(name):
    """DAPPER's tendency and step."""
    if find_spec("dapper") is None:
        pytest.skip("needs the extra `baselines`")
    import_dapper()
    from dapper.mods import KS, VL20, Lorenz96, LorenzUV
    from dapper.mods.integration import with_rk4

    match name:
        case "l96":
            return Lorenz96.dxdt, Lorenz96.step
        case "ks":
            model = KS.Model(dt=0.5, DL=32, Nx=128)
            return model.dxdt, model.step
        case "vl20":
            dxdt = VL20.model_instance(nX=36).dxdt
        case _:
            dxdt = LorenzUV.model_instance(nU=40, J=10, F=10, h=1, b=10, c=10).dxdt
    return dxdt, with_rk4(dxdt, autonom=True)


def without_shortest_wave(x):
    return x - (x * ALTERNATING).mean(-1, keepdim=True) * ALTERNATING


@pytest.mark.parametrize("batch", [(), (8,)])
@pytest.mark.parametrize("name", ["l96", "two_level", "vl20", "ks"])
def test_equation_and_steps_are_dappers(name, batch):
    system, (tendency, step) = system_of(name), dappers(name)
    x = states(system, batch)
    if name == "ks":  # DAPPER neither damps nor advects this wave
        x = without_shortest_wave(x)
    np.testing.assert_allclose(flat(system.tendency(x)), tendency(flat(x)), rtol=1e-12, atol=1e-11)
    expected = flat(x)
    for k in range(20):
        expected = step(expected, k * system.dt, system.dt)
    assert np.abs(expected - flat(x)).max() > 0.1
    np.testing.assert_allclose(flat(system.flow(x, 20)), expected, rtol=1e-12, atol=1e-12)


# ---- the Lorenz systems


def test_lorenz_96_by_its_indices():
    x, forcing, sites = np.random.RandomState(1).standard_normal(7), 5.0, 7
    expected = [(x[(i + 1) % sites] - x[(i - 2) % sites]) * x[(i - 1) % sites] - x[i] + forcing for i in range(sites)]
    ours = Lorenz96(sites=sites, forcing=forcing).tendency(torch.from_numpy(x)[None])
    np.testing.assert_allclose(ours[0], expected, rtol=1e-14)


def test_the_two_level_model_by_its_indices():
    sites, fast, h, b, c, forcing = 5, 3, 0.7, 4.0, 6.0, 9.0
    system = TwoLevelLorenz96(sites=sites, fast=fast, coupling=h, b=b, c=c, forcing=forcing)
    assert system.channels == 4
    state = np.random.RandomState(1).standard_normal((1 + fast, sites))
    x, y, ring = state[0], state[1:].T.flatten(), sites * fast
    slow = [
        (x[(i + 1) % sites] - x[i - 2]) * x[i - 1] - x[i] + forcing - h * c / b * y[fast * i : fast * (i + 1)].sum()
        for i in range(sites)
    ]
    quick = [
        c * b * y[(k + 1) % ring] * (y[k - 1] - y[(k + 2) % ring]) - c * y[k] + h * c / b * x[k // fast]
        for k in range(ring)
    ]
    expected = np.vstack([slow, np.reshape(quick, (sites, fast)).T])
    np.testing.assert_allclose(system.tendency(torch.from_numpy(state)), expected, rtol=1e-12, atol=1e-12)
    assert system.tendency(system.rest()).abs().max() < 1e-13


def test_vl20_by_its_indices():
    alpha, gamma, f, g, sites = 0.8, 1.3, 5.0, 3.0, 7
    system = VissioLucarini20(sites=sites, momentum_forcing=f, heating=g, conversion=alpha, dissipation=gamma)
    state = np.random.RandomState(1).standard_normal((2, sites))
    x, theta = state
    ring = [((i + 1) % sites, (i + 2) % sites, i, i - 1, i - 2) for i in range(sites)]
    expected = [
        [(x[a] - x[e]) * x[d] - gamma * x[i] - alpha * theta[i] + f for a, b, i, d, e in ring],
        [x[a] * theta[b] - x[d] * theta[e] - gamma * theta[i] + alpha * x[i] + g for a, b, i, d, e in ring],
    ]
    np.testing.assert_allclose(system.tendency(torch.from_numpy(state)), expected, rtol=1e-13, atol=1e-13)
    assert system.tendency(system.rest()).abs().max() < 1e-14


@pytest.mark.parametrize(
    "unforced",
    [Lorenz96(forcing=0.0), TwoLevelLorenz96(forcing=0.0), VissioLucarini20(momentum_forcing=0.0, heating=0.0)],
    ids=lambda system: system.name,
)
def test_advection_and_exchange_conserve_energy(unforced):
    """What is left without forcing and damping only moves energy: between sites, levels, or kinds."""
    x, damping = states(system_of(unforced.name), (64,)), torch.ones(unforced.channels, 1, dtype=torch.float64)
    if isinstance(unforced, TwoLevelLorenz96):
        damping[1:] = unforced.c
    power = x * (unforced.tendency(x) + damping * x)
    assert power.sum((-2, -1)).abs().max() < 1e-10
    assert power.abs().sum((-2, -1)).min() > 1e2  # terms that cancel, not zeros


def test_the_uncoupled_slow_level_is_lorenz_96():
    system = TwoLevelLorenz96(coupling=0.0, forcing=8.0)
    x = states(system, (8,))
    after = system.flow(x, 40)
    torch.testing.assert_close(system.resolved(after), Lorenz96(dt=system.dt).flow(system.resolved(x), 40))
    # The fast level is then damped at the rate c, whatever its advection does.
    energy = [float(state[:, 1:].square().sum()) for state in (x, after)]
    assert energy[1] / energy[0] == pytest.approx(math.exp(-2 * system.c * 40 * system.dt), rel=1e-4)
    with pytest.raises(ValueError, match=r"^fast = 1 must be at least 2, for the equations to reach one site on\.$"):
        TwoLevelLorenz96(fast=1)


# ---- Kuramoto–Sivashinsky


@pytest.mark.parametrize("sites", [32, 33])
def test_small_waves_grow_or_decay_by_their_length(sites):
    system = KuramotoSivashinsky(sites=sites, length=30.0)
    place = torch.arange(sites, dtype=torch.float64) / sites
    for waves in (1, 3, 5, 7):
        k = 2 * np.pi * waves / system.length
        wave = 1e-9 * torch.cos(2 * np.pi * waves * place)[None]
        growth = math.exp((k**2 - k**4) * 2 * system.dt)
        torch.testing.assert_close(system.flow(wave, 2), growth * wave, rtol=1e-6, atol=1e-16)
        torch.testing.assert_close(system.tendency(wave), (k**2 - k**4) * wave, rtol=1e-6, atol=1e-16)


@pytest.mark.parametrize("sites", [128, 127])
def test_a_moving_observer_sees_the_same_equation(sites):
    system = KuramotoSivashinsky(sites=sites, dt=0.05)
    x = KuramotoSivashinsky(sites=sites).on_attractor(4, generator(1))
    speed = 2 * (system.length / sites) / (20 * system.dt)  # two sites in twenty steps
    expected = system.flow(x, 20).roll(2, -1) + speed
    torch.testing.assert_close(system.flow(x + speed, 20), expected, rtol=0, atol=1e-4)


def test_the_mean_is_conserved():
    system = system_of("ks")
    x = states(system, (8,)) + 0.3
    torch.testing.assert_close(system.flow(x, 50).mean(-1), x.mean(-1), rtol=0, atol=1e-13)
    assert system.on_attractor(8, generator(0), 5.0).mean(-1).abs().max() < 1e-14


def test_the_shortest_wave_decays():
    system = system_of("ks")
    x = without_shortest_wave(system.on_attractor(4, generator(1), 20.0))
    shortest = 0.5 * ALTERNATING
    assert system.flow(shortest[None]).abs().max() < 1e-14
    assert (system.flow(x + shortest) * ALTERNATING).mean(-1).abs().max() < 1e-14
    assert system._advection(torch.fft.rfft(x))(torch.fft.rfft(x + shortest))[..., -1].abs().max() == 0
    k = np.pi * system.sites / system.length
    torch.testing.assert_close(system.tendency(shortest[None]), (k**2 - k**4) * shortest[None], rtol=1e-12, atol=1e-10)


# ---- systems by name


@pytest.mark.usefixtures("readers_cell")
def test_a_readers_system_is_known_by_its_name():
    for value in (5.0, 6.0):  # its cell is run again

        @register_system
        @dataclass(frozen=True)
        class Mine(Lorenz96):
            forcing: float = value
            name: ClassVar[str] = "mine"

        assert Mine() == system_of("mine")
    assert system_of("mine", 0.01).describe() == {"system": "mine", "sites": 40, "dt": 0.01, "forcing": 6.0}
    with pytest.raises(ValueError, match=r"^Mine needs a class attribute `name` that experiments can call it by\.$"):
        register_system(type("Mine", (Dynamics,), {}))
    with pytest.raises(
        ValueError, match=r"^system = 'l95' is not registered .*'l96'.*; known: ks, l96, two_level, vl20"
    ):
        system_of("l95")


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_system_may_be_advanced_by_a_solver_of_torchdiffeq(adjoint):
    class Adaptive(Lorenz96):
        method = "dopri5"

    Adaptive.adjoint = adjoint
    system, x = Adaptive(sites=12), states(Lorenz96(sites=12)).requires_grad_()
    after = system.flow(x, 2)
    torch.testing.assert_close(after, Lorenz96(sites=12, dt=0.001).flow(x, 100), rtol=0, atol=1e-5)
    assert ("Adjoint" in after.grad_fn.next_functions[0][0].name()) == adjoint
    assert system.integrator == "torchdiffeq dopri5"


def test_a_system_with_another_step():
    x = states(system_of("ks"))
    for name in SYSTEMS:
        assert replace(system_of(name, 0.01), dt=system_of(name).dt) == system_of(name)
    assert system_of("ks", 0.25).dt == 0.25
    torch.testing.assert_close(system_of("ks", 0.25).flow(x, 2), system_of("ks").flow(x), rtol=0, atol=0.05)
    assert not torch.equal(system_of("ks", 0.25).flow(x, 2), system_of("ks").flow(x))
    for dt in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=rf"^dt = {dt} must be greater than 0\.$"):
            system_of("l96", dt)


def test_shapes_are_checked_under_pytest():
    with pytest.raises(jaxtyping.TypeCheckError):
        Lorenz96().tendency(torch.zeros(40))

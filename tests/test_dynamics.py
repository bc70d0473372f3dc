"""A system's tendency is that of the literature, and its states are those of its attractor."""

import json
from importlib.util import find_spec

import jaxtyping
import numpy as np
import pytest
import torch
from small import generator

from assim_lib.dapper_bridge import import_dapper
from assim_lib.dynamics import SYSTEMS, Dynamics, Lorenz96, system_of

BATCHES = [(), (64,), (2, 3)]
ALTERNATING = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(64)


@pytest.fixture(params=SYSTEMS.values(), ids=SYSTEMS)
def system(request) -> Dynamics:
    return request.param()


def states(system, batch=(), seed=0):
    noise = torch.randn((*batch, *system.rest().shape), generator=generator(seed), dtype=torch.float64)
    return system.rest() + system.perturbation * noise


# ---- what holds for every system


@pytest.mark.parametrize("batch", BATCHES)
def test_any_batch_prefix_is_the_same_computation(system, batch):
    x = states(system, batch)
    assert x.shape == (*batch, system.channels, system.sites)
    for of in (system.tendency, lambda x: system.flow(x, 3)):
        one_by_one = torch.stack([of(state) for state in x.reshape(-1, *x.shape[-2:])]).reshape(x.shape)
        torch.testing.assert_close(of(x), one_by_one, rtol=1e-13, atol=1e-12)
        assert of(x.float()).dtype == torch.float32


def test_turning_the_ring_turns_the_tendency(system):
    x = states(system)
    torch.testing.assert_close(system.tendency(x.roll(5, -1)), system.tendency(x).roll(5, -1), rtol=0, atol=1e-12)


def test_a_flow_is_made_of_flows(system):
    x = states(system, (4,))
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


@pytest.mark.parametrize("cycle", [1, 2, 3, 7, 10, 400])
def test_a_cycle_is_a_whole_number_of_steps(system, cycle):
    assert system.steps_per_cycle(cycle * system.dt) == cycle
    assert system.steps_per_cycle(round(cycle * system.dt, 6)) == cycle


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5, 2.01, -1.0])
def test_other_intervals_are_refused(system, factor):
    with pytest.raises(ValueError, match=r"^step_size = \S+ must be a positive multiple of the integration step \S+$"):
        system.steps_per_cycle(factor * system.dt)


def test_the_description_says_everything(system):
    description = system.describe()
    assert json.loads(json.dumps(description)) == description
    assert description.pop("system") == system.name
    assert type(system)(**description) == system


@pytest.mark.parametrize("name", SYSTEMS)
def test_rest_is_a_fixed_point(name):
    system = system_of(name)
    assert system.tendency(system.rest()).abs().max() < 1e-14


# ---- the same equations and steps as DAPPER's


@pytest.fixture
def dapper_mods():
    if find_spec("dapper") is None:
        pytest.skip("needs the extra `baselines`")
    import_dapper()


def flat(x):
    """A state as DAPPER's vector; the fast variables of the two-level model are grouped by site."""
    x = torch.cat([x[..., 0, :], x[..., 1:, :].mT.flatten(-2)], -1) if x.shape[-2] > 2 else x.flatten(-2)
    return x.numpy()


def dappers(name):
    """DAPPER's tendency and step."""
    if name == "l96":
        from dapper.mods.Lorenz96 import dxdt, step

        return dxdt, step
    if name == "ks":
        from dapper.mods.KS import Model

        model = Model(dt=0.5, DL=32, Nx=128)
        return model.dxdt, model.step
    from dapper.mods.integration import with_rk4

    if name == "vl20":
        from dapper.mods.VL20 import model_instance

        dxdt = model_instance(nX=36).dxdt
    else:
        from dapper.mods.LorenzUV import model_instance

        dxdt = model_instance(nU=40, J=10, F=10, h=1, b=10, c=10).dxdt
    return dxdt, with_rk4(dxdt, autonom=True)


def without_shortest_wave(x):
    return x - (x * ALTERNATING).mean(-1, keepdim=True) * ALTERNATING


@pytest.mark.parametrize("batch", [(), (8,)])
@pytest.mark.parametrize("name", ["l96", "two_level", "vl20", "ks"])
def test_equation_and_steps_are_dappers(dapper_mods, name, batch):
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


# ---- Lorenz-96


def test_lorenz_96_by_its_indices():
    x, forcing, sites = np.random.RandomState(1).standard_normal(7), 5.0, 7
    expected = [(x[(i + 1) % sites] - x[(i - 2) % sites]) * x[(i - 1) % sites] - x[i] + forcing for i in range(sites)]
    ours = Lorenz96(sites=sites, forcing=forcing).tendency(torch.from_numpy(x)[None])
    np.testing.assert_allclose(ours[0], expected, rtol=1e-14)


def test_advection_conserves_energy():
    system = Lorenz96()
    x = states(system, (64,))
    advection = system.tendency(x) + x - system.forcing
    assert (x * advection).sum(-1).abs().max() < 1e-11
    assert (x * advection).abs().sum(-1).min() > 1e2  # terms that cancel, not zeros


def test_climatology_of_lorenz_96():
    x = Lorenz96().on_attractor(512, generator(2))
    assert float(x.mean()) == pytest.approx(2.34, abs=0.06)
    assert float(x.std()) == pytest.approx(3.64, abs=0.05)
    # The spin-up was long enough: later states have the same statistics.
    later = Lorenz96().flow(x, 40)
    assert float(later.mean()) == pytest.approx(float(x.mean()), abs=0.08)
    assert float(later.std()) == pytest.approx(float(x.std()), abs=0.06)


def test_shapes_are_checked_under_pytest():
    with pytest.raises(jaxtyping.TypeCheckError):
        Lorenz96().tendency(torch.zeros(40))

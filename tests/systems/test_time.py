"""Tendencies that depend on time: integrated as they should be, and at the right time wherever a filter forecasts."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from small import SITES, climatology, generator, small_analysis
from small_runs import QUIET, tiny

from assim_lib.classical.methods import run_baseline
from assim_lib.filter import AmortizedFilter
from assim_lib.observations import observation_model
from assim_lib.own.record import read_record
from assim_lib.systems import Dynamics, register_system
from assim_lib.systems.integrators import METHODS, integrate
from assim_lib.tracking import assimilate
from assim_lib.training.data import TrainingData
from assim_lib.training.pool import FilterPool
from assim_lib.training.run import train
from assim_lib.trajectories import cached, simulate

STEP = 0.4


@dataclass(frozen=True)
class Tide(Dynamics):
    """Its states go up and down together: x(t) − x(s) = sin t − sin s."""

    sites: int = SITES
    dt: float = 0.1
    name: ClassVar[str] = "tide"
    spinup: ClassVar[float] = 2.0

    def tendency(self, x, t):
        return torch.cos(t) + 0 * x

    def rest(self):
        return torch.zeros(1, self.sites, dtype=torch.float64)


@dataclass(frozen=True)
class Drawn(Tide):
    """Drawn to a place that moves: x = (x₀ − y₀) e^(s − t) + y, with y(t) = (cos t + sin t) / 2."""

    name: ClassVar[str] = "drawn"
    spinup: ClassVar[float] = 7.0

    def tendency(self, x, t):
        return torch.cos(t) - x


def exact(x, start, end):
    def place(t):
        return (np.cos(t) + np.sin(t)) / 2

    return (x - place(start)) * np.exp(start - end) + place(end)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "euler"])
def test_it_is_the_exact_solution(method):
    x = torch.randn((5, 1, SITES), generator=generator(), dtype=torch.float64)
    start = torch.tensor([0.0, 1, 2, 30, 1e4], dtype=torch.float64)[:, None, None]
    found = integrate(Drawn().tendency, x, 0.02, 100, method, start=start)
    tolerance = 1e-8 if method.startswith("rk4") else 1e-4
    np.testing.assert_allclose(found, exact(x.numpy(), start.numpy(), start.numpy() + 2.0), atol=tolerance)


def test_the_error_is_of_fourth_order():
    x, start = torch.zeros(1, 1, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    errors = [
        abs(float(integrate(Drawn().tendency, x, 2 / steps, steps, start=start)) - exact(0.0, 0.7, 2.7))
        for steps in (40, 80)
    ]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.15)


def test_in_single_precision_late_times_are_as_exact_as_early_ones():
    x, late = torch.zeros(1, SITES), torch.tensor(1e6, dtype=torch.float64)
    found = Drawn().flow(x, 10, late)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, exact(0.0, 1e6, 1e6 + 1), atol=1e-5)


def test_a_simulated_truth_has_the_times_of_its_cycles():
    """Its first observation is of cycle 0, at the time 0."""
    truth = simulate(Tide(), STEP, 20, 2, 0).truth.values[:, 1:, 0]
    heights = np.sin(STEP * np.arange(20))
    np.testing.assert_allclose(truth - truth[:, :1], np.broadcast_to(heights[:, None], truth.shape), atol=1e-5)
    again = cached(Tide(), STEP, 20, 2, 0)
    np.testing.assert_array_equal(again.truth.values[:, 1:, 0], truth)


def tidal_filter(kind, members, lag, warmup=0):
    """Untrained and without inflation, in single precision as filters run."""
    analysis = small_analysis(kind, members, lag=lag, inflation=1.0)
    with torch.no_grad():
        for parameter in analysis.trunk.parameters():
            parameter.zero_()
    states = climatology().clone()
    return AmortizedFilter(Tide(), observation_model("full_obs", 1, SITES), analysis, STEP, states, warmup, 100.0)


@pytest.mark.parametrize(("lag", "warmup"), [(0, 0), (2, 0), (2, 3)])
@pytest.mark.parametrize(("kind", "members"), [("recurrent", 1), ("hybrid", 4), ("covariant", 4), ("extended", 1)])
def test_forecasts_in_cycles_carry_the_time(kind, members, lag, warmup, unchecked_shapes):
    """Where nothing is received, the analysis is the forecast: it follows the tide, from whatever cycle on."""
    model = tidal_filter(kind, members, lag, warmup)
    nothing, first = torch.full((3, 12, 1, SITES), torch.nan), torch.tensor([0, 5, 1000])
    mean = assimilate(model, nothing, generator(), first_cycle=first, draws=4).mean(2)[..., 0, :].double()
    heights = torch.sin(STEP * (first[:, None] + torch.arange(12)).double())[..., None]
    torch.testing.assert_close(mean - mean[:, :1], (heights - heights[:, :1]).expand_as(mean), atol=1e-4, rtol=0)


def test_training_knows_the_time(unchecked_shapes):
    """Also where the masks come in a random order, which is then no clock."""
    chosen = tiny("recurrent", 1, order="random", leads=2, window=4).changed(cycles=40)
    model = tidal_filter("recurrent", 1, 0)
    observations = torch.full((2, 40, 1, SITES), torch.nan)
    data = TrainingData(observations, phase=torch.zeros(2, 40, dtype=torch.long), first=torch.tensor(7))
    pool = FilterPool(chosen, model, data, generator())
    slots = pool.choose()
    before, window = pool.position[slots] + 7, pool.window(slots)
    heights = torch.sin(STEP * torch.stack([before, before + 4]).double())[..., None, None, None]
    _, carry = pool.unroll(window)
    risen = (carry.forecast - window.carry.forecast).double()
    torch.testing.assert_close(risen, (heights[1] - heights[0]).expand_as(risen), atol=1e-5, rtol=0)


def test_a_filter_of_such_a_system_is_trained_and_finds_it(readers_cell, own_cache, unchecked_shapes):
    register_system(Drawn)
    chosen = tiny("hybrid", 3, system="drawn", step_size=STEP, updates=2)
    model, _ = train(chosen, **QUIET)
    truth = simulate(Drawn(), STEP, 30, 1, 5).truth.values[0, 1:]
    mean = assimilate(model, torch.from_numpy(truth), generator()).mean(1)
    assert float((mean - torch.from_numpy(truth))[20:].abs().max()) < 0.2


def test_states_without_a_time_are_refused():
    assert Tide.depends_on_time
    with pytest.raises(ValueError, match=r"^system = 'tide' depends on time, and the time of its states is not given"):
        Tide().flow(torch.zeros(1, SITES), 1)


def test_classical_methods_know_no_time(home, unchecked_shapes):
    twin = tiny().setting.load()
    with pytest.raises(ValueError, match=r"^dynamics = tide depends on time, of which the baselines here know nothing"):
        run_baseline(None, twin, dynamics=Tide(sites=40))


def test_times_of_a_record_are_those_of_the_model():
    array = xr.DataArray(np.zeros((3, SITES)), dims=("time", "site"), coords={"time": [4.0, 4.4, 5.2]})
    record = read_record(array, (1, SITES), STEP)
    assert (record.begins(timed=True), record.begins(timed=False)) == (10, 0)

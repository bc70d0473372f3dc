"""What a filter is trained on: observations, and of the truth only what an experiment asks for."""

import numpy as np
import pytest
import torch
from small import PARTIAL
from small_runs import tiny

from assim_lib.observations import OBS_CONFS
from assim_lib.seeds import Purpose, seed_for
from assim_lib.systems import Lorenz96
from assim_lib.training.data import TrainingData, training_data
from assim_lib.training.many_settings import training_settings
from assim_lib.trajectories import cached

pytestmark = pytest.mark.usefixtures("home")

MOVING = (np.arange(40) % 4 == np.arange(40)[:, None, None] % 4)[None]  # what PARTIAL sees: cycle, channel, site


def simulated(step_size=0.1, cycles=40, segments=2, seed=0):
    """What stays behind: truth of the observations, and their unit errors."""
    seed = seed_for(Purpose.TRAINING_TRUTH, seed)
    dataset = cached(Lorenz96(), step_size, cycles, segments, seed)
    return dataset.truth.values[:, 1:], dataset.unit_noise.values


def test_only_observations_leave_the_simulation():
    data = training_data(tiny(noise=2.0, obs_conf=PARTIAL))
    assert data.near is data.truth is data.phase is None
    truth, errors = simulated()
    assert data.observations.shape == (2, 40, 1, 40)
    np.testing.assert_allclose(data.observations, np.where(MOVING, truth + 2 * errors, np.nan), atol=1e-5)


def test_supervision_gets_the_truth_that_the_observations_see():
    data = training_data(tiny(loss="clean_analysis", obs_conf=PARTIAL))
    assert data.near is None
    np.testing.assert_array_equal(data.truth, simulated()[0])


@pytest.mark.parametrize("loss", ["ss_forecast", "clean_analysis"])
def test_what_members_start_around_is_a_choice(loss):
    data = training_data(tiny(start="truth", loss=loss, obs_conf=PARTIAL))
    np.testing.assert_array_equal(data.near, simulated()[0])
    assert (data.truth is None) == (loss == "ss_forecast")
    data = training_data(tiny(start="first_observation", loss=loss, obs_conf=PARTIAL))
    np.testing.assert_array_equal(data.near, data.observations)


@pytest.mark.parametrize(
    ("order", "obs_conf", "ever"),
    [("schedule", PARTIAL, MOVING), ("random", PARTIAL, True), ("random", "every_4th_fixed", np.arange(40) % 4 == 0)],
)
def test_errors_that_are_drawn_anew_are_not_in_the_data(order, obs_conf, ever):
    """And nothing of the truth but what an instrument may see."""
    data = training_data(tiny(noise_draws="each", order=order, obs_conf=obs_conf))
    assert data.near is data.truth is data.phase is None
    np.testing.assert_array_equal(data.observations, np.where(ever, simulated()[0], np.nan))


def test_a_random_order_is_drawn_once_for_each_segment_and_cycle():
    data, again = (training_data(tiny(order="random", obs_conf=PARTIAL)) for _ in range(2))
    assert data.phase.shape == (2, 40)
    assert torch.equal(data.phase, again.phase)
    assert not torch.equal(data.phase[0], data.phase[1])
    assert np.bincount(data.phase.flatten()).min() > 10  # of 80 in four
    seen = OBS_CONFS[PARTIAL](1, 40).mask(data.phase).numpy()
    truth, errors = simulated()
    np.testing.assert_allclose(data.observations, np.where(seen, truth + errors, np.nan), atol=1e-5)
    assert not torch.equal(training_data(tiny(order="random", obs_conf=PARTIAL, seed=1)).phase, data.phase)


def test_truth_keeps_its_own_step():
    """An integration step of the forecast model's alone is a model error, not another truth."""
    one, other = (training_data(tiny(**options)).observations for options in ({"dt": 0.1}, {}))
    assert torch.equal(one, other)


def test_every_setting_has_data_of_its_own():
    """Observed in its own way, of a truth of its own."""
    many = tiny(experiment="l96_any", n_settings=4, segments=1, cycles=12)
    for setting in training_settings(many):
        truth, errors = simulated(setting.step_size, 12, 1, setting.seed)
        mask = OBS_CONFS[setting.obs_conf](1, 40).mask(torch.arange(12)).numpy()
        expected = np.where(mask, truth + setting.noise * errors, np.nan)
        np.testing.assert_allclose(training_data(setting).observations, expected, atol=1e-5)


def test_data_on_a_device_are_the_same_parts():
    data = TrainingData(torch.zeros(1, 2, 1, 3), phase=torch.zeros(1, 2, dtype=torch.long)).to(torch.device("cpu"))
    assert [part is None for part in data] == [False, True, True, False, True]

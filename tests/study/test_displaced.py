"""A displacement by least squares: found from observations alone, and of no use where there is none."""

import numpy as np
import pytest
import torch

from assim_lib.setting import Setting
from assim_lib.study.displaced import displaced, fitted, quadratic
from assim_lib.study.forecasts import model_flow

SETTING = Setting("two_level")
FLOW = model_flow(SETTING)


@pytest.fixture(scope="module")
def twins():
    return SETTING.load("validation"), SETTING.load().part(0, 1200)


def analyses(twin, slope):
    """Half-way from the forecast to the observations, and displaced by a function of the forecast."""
    forecast = FLOW(torch.from_numpy(twin.states[:-1]).double()).numpy()
    mean = forecast.mean()
    return (0.9 * twin.truth + 0.1 * twin.observations + slope * (forecast - mean) * (1 - 0.1 * forecast)).astype(
        np.float32
    )


def test_features_are_the_products_of_two_sites_at_most():
    x = np.arange(7.0)[None]
    first = quadratic(x)[0, 0].tolist()
    assert first == [1, 5, 6, 0, 1, 2, 25, 30, 0, 5, 10, 36, 0, 6, 12, 0, 0, 0, 1, 2, 4]


@pytest.mark.parametrize("slope", [0.0, 0.05])
def test_what_the_forecast_tells_is_taken_away_and_no_more(twins, slope):
    learned_on, scored_on = ((analyses(twin, slope), twin) for twin in twins)
    told = displaced("filter", "filter.json", learned_on, scored_on, FLOW)
    assert told.displaced_lo < told.displaced < told.displaced_hi
    if slope:
        assert told.displaced < 0.7 * told.rmse
    assert told.displaced == pytest.approx(0.1, abs=0.02)  # a tenth of the errors of observations of σ = 1


def test_states_of_several_channels_are_refused(twins):
    two = np.zeros((300, 2, 40), np.float32)
    with pytest.raises(ValueError, match=r"^analyses of 2 channels; the rule is one for states of one\.$"):
        fitted(two, twins[0], FLOW)

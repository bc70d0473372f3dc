"""The table of classical methods is whole, and each search can start."""

import numpy as np
import pytest
import torch

from assim_lib.classical.contenders import CORRECTION_GRID, CORRECTION_START, GRID, SETTINGS, choose, contenders
from assim_lib.setting import Setting
from assim_lib.systems import forecast_model_of


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.slug)
def test_every_setting_has_its_contenders_and_a_frozen_set(setting):
    assert setting.load("test").frozen
    assert setting.load("validation").frozen
    chosen = contenders(setting)
    assert len({contender.name for contender in chosen}) == len(chosen)
    plain = [contender for contender in chosen if not contender.start.corrections]
    sizes = {method: [c.start.m for c in plain if c.start.method == method] for method in GRID}
    assert (len(plain) < len(chosen)) == (setting.system == "two_level")
    few = setting == Setting("two_level", "every_4th_dim_partial_obs")  # fewer are tuned there
    assert sizes["LETKF"] == ([10, 30] if few else [5, 10, 20, 30])
    if few or setting.obs_conf.endswith("upstream"):  # beside the paper's best score only
        assert sizes["iEnKS"] == [30]
    else:
        assert set(sizes["iEnKS"]) == {5, 10, 20, 30, 100}
        assert all(sizes.values())
    for contender in chosen:
        # A search can start only on its grid, and DAPPER must be told nothing that is not there.
        for name, values in contender.grid.items():
            assert contender.start.hyperparameters[name] in values
        assert (contender.role == "reference") == (contender.start.m > 30)


def test_contenders_are_chosen_by_setting_method_and_size():
    assert len(choose()) == sum(len(contenders(setting)) for setting in SETTINGS)
    chosen = choose(system=["ks"], noise=[1.0], method=["LETKF", "4D-Var"], m=[10, 1])
    assert {contender.setting.system for contender in chosen} == {"ks"}
    assert {contender.start.label for contender in chosen} == {"LETKF m=10", "4D-Var"}
    with pytest.raises(ValueError, match=r"^m = 7 has no classical methods; take one of \[5, 10, 20, 30\]\.$"):
        choose(method=["LETKF"], m=[7])


def test_the_correction_of_a_wrong_model_starts_near_what_least_squares_finds():
    """Within a step of the grid: the linear function of a forecast that is closest to what it missed."""
    twin = Setting("two_level").load("validation")
    model = forecast_model_of("two_level")
    truth = torch.from_numpy(twin.truth[:2000]).double()
    forecast = model.flow(truth[:-1], model.steps_per_cycle(0.1))
    missed, forecast = (part.flatten().numpy() for part in (truth[1:] - forecast, forecast))
    slope, constant = np.polyfit(forecast, missed, 1)
    left = (missed - slope * forecast - constant).std()
    found = {"bias": constant, "damping": -slope, "model_noise": left}
    for name, value in found.items():
        grid = CORRECTION_GRID[name]
        nearest = min(grid, key=lambda each, value=value: abs(each - value))
        assert abs(grid.index(CORRECTION_START[name]) - grid.index(nearest)) <= 1

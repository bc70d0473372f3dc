"""A stand-in for DAPPER, for tests of what is done with its runs."""

import numpy as np

from assim_lib.classical.contenders import GRID, Contender
from assim_lib.classical.methods import Baseline, BaselineRun
from assim_lib.setting import Setting

SETTING = Setting("l96", "full_obs", 0.1, 1.0)
START = Baseline(method="LETKF", m=10, hyperparameters={"loc_rad": 4, "infl": 1.04, "rot": False})
CONTENDER = Contender(SETTING, START)
LOWEST = {"loc_rad": 7, "infl": 1.02, "rot": True}


def point(infl, loc_rad=7, rot=True):
    """A place on the grid."""
    return {"loc_rad": loc_rad, "infl": infl, "rot": rot}


class Valley:
    """An error that falls toward :data:`LOWEST`, and a filter that is lost with little inflation.

    calls : what was run, as (hyperparameters, data, cycles).
    lost : called with hyperparameters, data and cycles: whether the filter is lost for another reason.
    excursion : an error that some hyperparameters have now and then.
    """

    def __init__(self, lost=lambda hyperparameters, name, cycles: False, excursion=0.0):
        self.calls, self.lost, self.excursion = [], lost, excursion

    def __call__(self, baseline, data, cycles=None, seed=0, progress=False):
        place, cycles = baseline.hyperparameters, cycles or len(data.observations)
        self.calls.append((place, data.name, cycles))
        grid = GRID["LETKF"].items()
        away = sum(abs(values.index(place[name]) - values.index(LOWEST[name])) for name, values in grid)
        lost = place["infl"] < 1.01 or self.lost(place, data.name, cycles)
        series, survived = np.full(cycles, 0.2 + 0.01 * away), 300 if lost else cycles
        series[:survived] += 3 * lost
        series[survived:] = np.nan
        series[10::70] += self.excursion * (place["infl"] == 1.02)
        outcome = "stopped" if lost else "completed"
        return BaselineRun(baseline, data.truth[:cycles], series, series, series, 1.0, lost, survived, outcome)

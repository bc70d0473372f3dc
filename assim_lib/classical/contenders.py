"""Which classical methods are compared in which setting, what of them is tuned, and where each search starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from assim_lib.classical.baseline import Baseline, Hyperparameters
from assim_lib.setting import SETTING_COLUMNS, Setting

_INFLATIONS = (1.0, 1.005, 1.01, 1.02, 1.03, 1.04, 1.05, 1.07, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0)
_SCALES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.14, 0.2, 0.3, 0.4, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0)

# What may be tuned, under DAPPER's names: `loc_rad` is in sites (Gaspari–Cohn taper), `infl` multiplies the
# perturbations, `rot` rotates them at random, `Lag` is in cycles, `xB` multiplies the background covariance (`B`: the
# identity or that of the climatology).
GRID: dict[str, dict[str, tuple[Any, ...]]] = {
    "Climatology": {},
    "3D-Var": {"xB": _SCALES, "B": ("clim", "eye")},
    "4D-Var": {"xB": _SCALES, "Lag": (1, 2, 3, 4, 6, 8, 10), "B": ("clim", "eye")},
    "LETKF": {"infl": _INFLATIONS, "loc_rad": (1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 45, 64), "rot": (False, True)},
    "EnKF-N": {"infl": _INFLATIONS, "rot": (False, True)},
    "iEnKS": {"infl": _INFLATIONS, "Lag": (1, 2, 3, 4, 6, 8, 10, 12, 15)},
}
# Of a forecast model that is known to be wrong, see :func:`~assim_lib.classical.dapper_bridge.hidden_markov_model`.
# Variational methods and iEnKS know no model noise.
CORRECTION_GRID: dict[str, tuple[float, ...]] = {
    "bias": tuple(round(0.02 * step, 2) for step in range(-5, 21)),
    "damping": tuple(round(0.004 * step, 3) for step in range(-5, 21)),
    "model_noise": (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.14, 0.2, 0.3),
}
# Least squares of what forecasts from the truth of the validation set miss: .18, .028 and .06. One step further along
# the valley forecasts from analyses are better, and a search that turns into a valley slowly starts in it.
CORRECTION_START: Hyperparameters = {"bias": 0.2, "damping": 0.032, "model_noise": 0.06}
_FIXED: dict[str, Hyperparameters] = {
    "4D-Var": {"nIter": 10, "wtol": 1e-4},
    "iEnKS": {"upd_a": "Sqrt", "nIter": 10, "wtol": 1e-4, "rot": True},
}

# By ensemble size: reach of the localization in sites (KS has finer sites than the others) and inflation.
_RADII = {"ks": {5: 7, 10: 10, 20: 20, 30: 20}}
_RADII_ELSEWHERE = {5: 2, 10: 4, 20: 7, 30: 10}

_QUARTER = "every_4th_dim_partial_obs"
_L96, _L96_QUARTER, _KS = Setting("l96"), Setting("l96", _QUARTER), Setting("ks", step_size=1.0)
# The direction of the paper's own mask, where its best published score was made; only what is set beside it there.
_UPSTREAM = Setting("l96", f"{_QUARTER}_upstream")
_WRONG_QUARTER = Setting("two_level", _QUARTER)
SETTINGS = (
    _L96,
    _L96_QUARTER,
    _KS,
    Setting("two_level"),
    Setting("l96", noise=2.5),
    Setting("l96", _QUARTER, noise=2.5),
    Setting("l96", "every_4th_fixed", step_size=0.15),
    Setting("l96", "every_4th_fixed", step_size=0.15, noise=0.7),
    Setting("ks", step_size=1.0, noise=2.5),
    Setting("ks", "partial_obs", step_size=1.0),
    Setting("two_level", noise=2.5),
    _WRONG_QUARTER,
    Setting("vl20", _QUARTER),
    _UPSTREAM,
)

# The best hyperparameters that are published, from the tables of the grid search in the repository of the original
# implementation. The grid of the search holds all of their values.
_PUBLISHED: dict[tuple[Setting, str, int], Hyperparameters] = {
    (_L96, "LETKF", 20): {"loc_rad": 10, "infl": 1.04, "rot": True},
    (_L96, "LETKF", 30): {"loc_rad": 20, "infl": 1.04, "rot": True},
    (_L96, "4D-Var", 1): {"B": "eye", "xB": 0.2, "Lag": 1},
    (_L96, "iEnKS", 30): {"Lag": 1, "infl": 1.02},
    (_L96_QUARTER, "LETKF", 5): {"loc_rad": 2, "infl": 1.2, "rot": True},
    (_L96_QUARTER, "LETKF", 10): {"loc_rad": 4, "infl": 1.07, "rot": False},
    (_L96_QUARTER, "LETKF", 20): {"loc_rad": 4, "infl": 1.04, "rot": True},
    (_L96_QUARTER, "LETKF", 30): {"loc_rad": 7, "infl": 1.04, "rot": True},
    (_L96_QUARTER, "4D-Var", 1): {"B": "eye", "xB": 1.0, "Lag": 1},
    (_KS, "LETKF", 5): {"loc_rad": 7, "infl": 1.07, "rot": False},
    (_KS, "LETKF", 10): {"loc_rad": 10, "infl": 1.02, "rot": True},
    (_KS, "LETKF", 20): {"loc_rad": 20, "infl": 1.04, "rot": True},
    (_KS, "LETKF", 30): {"loc_rad": 20, "infl": 1.01, "rot": True},
    (_KS, "4D-Var", 1): {"B": "eye", "xB": 0.1, "Lag": 1},
    (_KS, "iEnKS", 30): {"Lag": 1, "infl": 1.02},
}


@dataclass(frozen=True)
class Contender:
    """A cell of the table of classical methods.

    Attributes:
        setting: what is observed, how often, how well.
        start: the method, its size, and the hyperparameters that the search starts from.
        pinned: hyperparameters that are not searched.
        role: ``"N ≤ 30"`` competes with the learned filters; a ``"reference"`` is as large as it takes.
    """

    setting: Setting
    start: Baseline
    pinned: tuple[str, ...] = ()
    role: str = "N ≤ 30"

    @property
    def name(self) -> str:
        """The name of the files of its trials and of its score."""
        corrected = "-corrected" if self.start.corrections else ""
        size = f"-N{self.start.m}" if self.start.m > 1 else ""
        pinned = "".join(f"-{key}{self.start.hyperparameters[key]}" for key in self.pinned)
        return f"{self.setting.slug}-{self.start.method}{size}{pinned}{corrected}"

    @property
    def grid(self) -> dict[str, tuple[Any, ...]]:
        """What is searched, and the values it may have."""
        values = GRID[self.start.method] | {name: CORRECTION_GRID[name] for name in self.start.corrections}
        return {name: grid for name, grid in values.items() if name not in self.pinned}


def contenders(setting: Setting) -> tuple[Contender, ...]:
    """All methods and sizes that are tuned and scored in a setting."""

    def contender(
        method: str, m: int, hyperparameters: Mapping[str, Any], *pinned: str, role: str = "N ≤ 30"
    ) -> Contender:
        start = {**_FIXED.get(method, {}), **hyperparameters}
        start |= {k: v for k, v in _PUBLISHED.get((setting, method, m), {}).items() if k not in pinned}
        baseline = Baseline.model_validate({"method": method, "m": m, "hyperparameters": start})
        return Contender(setting, baseline, pinned, role)

    def scale(wanted: float) -> float:
        # Background errors grow with those of the observations.
        return min(_SCALES, key=lambda value: abs(log(value / (wanted * setting.noise**2))))

    all_seen = setting.obs_conf == "full_obs"
    # Inflation stands in for model error, which is large where the truth has fast variables that the model lacks.
    wrong_model = setting.system == "two_level"
    lag = {"Lag": 1 if wrong_model else 3}
    little, usual, much = ({"infl": 1.3 if wrong_model else value} for value in (1.01, 1.04, 1.1))
    ensembles = (
        *(
            contender("LETKF", m, {"loc_rad": radius, "rot": m != 10} | (much if m == 5 else usual))
            for m, radius in _RADII.get(setting.system, _RADII_ELSEWHERE).items()
        ),
        *(contender("iEnKS", m, lag | usual) for m in (5, 10, 20, 30)),
    )
    if wrong_model:
        ensembles += (contender("LETKF", 30, {"loc_rad": 4, "rot": True, "infl": 1.04} | CORRECTION_START),)
    if setting == _UPSTREAM:
        return tuple(one for one in ensembles if one.start.method == "LETKF" or one.start.m == 30)
    if setting == _WRONG_QUARTER:
        return tuple(one for one in ensembles if one.start.m in ((10, 30) if one.start.method == "LETKF" else (30,)))
    return (
        contender("Climatology", 1, {}),
        contender("3D-Var", 1, {"B": "clim", "xB": scale(0.04 if all_seen else 0.14)}),
        contender("4D-Var", 1, {"B": "eye", "xB": scale(0.07 if all_seen else 0.3), "Lag": 3}),
        *ensembles,
        contender("iEnKS", 30, {"Lag": 1} | usual, "Lag"),
        *(contender("EnKF-N", m, {"rot": True} | little) for m in (20, 30)),
        contender("iEnKS", 100, lag | little, role="reference"),
        contender("EnKF-N", 100, {"rot": True} | little, role="reference"),
    )


def choose(**wanted: list[Any]) -> list[Contender]:
    """Contenders of the settings, methods and sizes in the lists given; of all, where none is.

    Args:
        wanted: values by name: ``system``, ``obs_conf``, ``step_size``, ``noise``, ``method`` or ``m``.

    Raises:
        ValueError: if a value leaves none.
    """
    chosen = [contender for setting in SETTINGS for contender in contenders(setting)]
    for name, values in wanted.items():

        def value(contender: Contender, name: str = name) -> Any:
            return getattr(contender.setting if name in SETTING_COLUMNS else contender.start, name)

        known = sorted({value(contender) for contender in chosen})
        chosen = [contender for contender in chosen if value(contender) in values]
        if not chosen:
            raise ValueError(f"{name} = {', '.join(map(str, values))} has no classical methods; take one of {known}.")
    return chosen

"""The settings of classical methods, searched on validation data; every trial is kept.

A comparison with a badly tuned filter proves nothing. Each :class:`Contender` (a method and an ensemble size, in one
setting) therefore starts from the best settings that are published for it, or from a plausible guess, and
descends from there on a grid: one step up or down in one setting, or in two at once, for as long as the error over
the first :data:`SEARCH_CYCLES` cycles of the validation set falls. That error is the median over cycles: now and then a filter
strays from the truth for a while, and one such excursion in a short run would decide against settings that are good. The
best few are then compared by their mean RMSE over the whole validation set, excursions included. The test set has no part in
it.

Where the start loses the truth there is no slope to descend. The search then first walks toward what is safer, more inflation
and a shorter reach, until something keeps it.

A search knows its trials by their settings and stores each as soon as it is done: to repeat a search is to read
it, an interrupted one goes on where it stopped, and a new value in the grid costs its own trials only.
"""

import json
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from assim_lib.baselines import Baseline, BaselineRun, Setting, run_baseline, scores_of
from assim_lib.storage import data_dir, provenance, write_json
from assim_lib.trajectories import TestSet, load_test_set

SEARCH_CYCLES = 600
SEARCH_TRIALS = 30
FINALISTS = 4
SEED = 2000

_INFLATIONS = (1.0, 1.005, 1.01, 1.02, 1.03, 1.04, 1.05, 1.07, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0)
_SCALES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.14, 0.2, 0.3, 0.4, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0)

# Steps on the grid toward what seldom loses the truth.
_SAFER = {"infl": 2, "loc_rad": -1, "xB": 1}

# What may be tuned, under DAPPER's names: `loc_rad` is in sites (Gaspari–Cohn taper), `infl` multiplies the perturbations,
# `rot` rotates them at random, `Lag` is in cycles, `xB` multiplies the background covariance (`B`: the identity or
# that of the climatology).
GRID: dict[str, dict[str, tuple[Any, ...]]] = {
    "Climatology": {},
    "3D-Var": {"xB": _SCALES, "B": ("clim", "eye")},
    "4D-Var": {"xB": _SCALES, "Lag": (1, 2, 3, 4, 6, 8, 10), "B": ("clim", "eye")},
    "LETKF": {"infl": _INFLATIONS, "loc_rad": (1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 45, 64), "rot": (False, True)},
    "EnKF-N": {"infl": _INFLATIONS, "rot": (False, True)},
    "iEnKS": {"infl": _INFLATIONS, "Lag": (1, 2, 3, 4, 6, 8, 10, 12, 15)},
}
_FIXED: dict[str, dict[str, Any]] = {
    "4D-Var": {"nIter": 10, "wtol": 1e-4},
    "iEnKS": {"upd_a": "Sqrt", "nIter": 10, "wtol": 1e-4, "rot": True},
}


@dataclass(frozen=True)
class Contender:
    """A cell of the table of classical methods.

    Attributes
    ----------
    setting : system, obs_conf, step_size, noise.
    start : the method, its size, and the settings that the search starts from.
    pinned : settings that are not searched.
    role : ``"N ≤ 30"`` competes with the learned filters; a ``"reference"`` is as large as it takes.
    """

    setting: Setting
    start: Baseline
    pinned: tuple[str, ...] = ()
    role: str = "N ≤ 30"

    @property
    def name(self) -> str:
        """The name of the files of its trials and of its score."""
        system, obs_conf, step_size, noise = self.setting
        size = f"-N{self.start.m}" if self.start.m > 1 else ""
        pinned = "".join(f"-{key}{self.start.settings[key]}" for key in self.pinned)
        return f"{system}-{obs_conf}-dt{step_size:g}-s{noise:g}-{self.start.method}{size}{pinned}"

    @property
    def grid(self) -> dict[str, tuple[Any, ...]]:
        """What is searched, and the values it may have."""
        return {name: values for name, values in GRID[self.start.method].items() if name not in self.pinned}

    def data(self, split: str) -> TestSet:
        """The frozen truth and observations of its setting."""
        return load_test_set(*self.setting, split=split)


def trials_path(contender: Contender) -> Path:
    """Where the trials of a search are stored."""
    return data_dir() / "tuning" / f"{contender.name}.json"


def load_trials(contender: Contender) -> list[dict[str, Any]]:
    """All trials of a search so far, in the order in which they were made."""
    path = trials_path(contender)
    return json.loads(path.read_text())["trials"] if path.exists() else []


@dataclass
class Search:
    """A search that remembers: asks for a trial run the method only if no such trial is stored."""

    contender: Contender
    validation_set: TestSet
    progress: bool = False
    trials: list[dict[str, Any]] = field(init=False)

    def __post_init__(self):
        self.trials = load_trials(self.contender)

    def trial(self, settings: dict[str, Any], cycles: int) -> dict[str, Any]:
        """The trial with these settings, made and stored if it is new."""
        for known in self.trials:
            if known["settings"] == settings and known["cycles"] == cycles:
                return known
        baseline = self.contender.start.model_copy(update={"settings": settings})
        run = run_baseline(baseline, self.validation_set, cycles, SEED, self.progress)
        trial = _record(run, settings, self.validation_set.burn_in)
        self.trials.append(trial)
        start = self.contender.start.settings
        write_json(trials_path(self.contender), {"start": start, "seed": SEED, "trials": self.trials})
        return trial

    def best(self) -> dict[str, Any]:
        """Search, and return the trial over the whole validation set that did best."""
        return self.finalists()[0]

    def finalists(self) -> list[dict[str, Any]]:
        """Search, and return the trials over the whole validation set, the best first."""
        cycles = min(SEARCH_CYCLES, len(self.validation_set.observations))
        best = self.trial(self.contender.start.settings, cycles)
        moves, tried = self._moves(), {str(best["settings"])}
        settings = best["settings"]
        while best["diverged"] and (settings := self._safer(settings)) is not None:
            tried.add(str(settings))
            best = min(best, self.trial(settings, cycles), key=typical_error)
        while len(tried) < SEARCH_TRIALS:
            for move in moves:
                moved = False
                while (settings := self._moved(best["settings"], move)) is not None:
                    tried.add(str(settings))
                    there = self.trial(settings, cycles)
                    if typical_error(there) >= typical_error(best):
                        break
                    best, moved = there, True
                if moved:
                    break  # the first moves again: along a coordinate valleys are followed fastest
            else:
                break
        whole = len(self.validation_set.observations)
        candidates = sorted((t for t in self.trials if t["cycles"] == cycles), key=typical_error)
        # Of settings that are all lost, the whole validation set need not be asked.
        candidates = [c for c in candidates if not c["diverged"]][: 2 * FINALISTS] or candidates[:1]
        finalists: list[dict[str, Any]] = []
        for candidate in candidates:
            finalists.append(self.trial(candidate["settings"], whole))
            # Who loses the truth on the way makes room for another.
            if sum(not trial["diverged"] for trial in finalists) == FINALISTS:
                break
        return sorted(finalists, key=mean_error)

    def _moves(self) -> list[dict[str, int]]:
        """Steps along one coordinate of the grid, then along two at once: a valley may lie across both."""
        names = list(self.contender.grid)
        single = [{name: step} for name in names for step in (1, -1)]
        ordered = [name for name in names if not isinstance(self.contender.grid[name][0], bool | str)]
        double = [{a: i, b: j} for a, b in combinations(ordered, 2) for i in (1, -1) for j in (1, -1)]
        return single + double

    def _safer(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The settings one step further from losing the truth; None where the grid ends."""
        moved = dict(settings)
        for name, step in _SAFER.items():
            if name in self.contender.grid:
                values = self.contender.grid[name]
                moved[name] = values[min(max(values.index(settings[name]) + step, 0), len(values) - 1)]
        return None if moved == settings else moved

    def _moved(self, settings: dict[str, Any], move: dict[str, int]) -> dict[str, Any] | None:
        """The settings after a move; None beyond the edge of the grid."""
        moved = dict(settings)
        for name, step in move.items():
            values = self.contender.grid[name]
            index = values.index(settings[name]) + step
            if not 0 <= index < len(values):
                return None
            moved[name] = values[index]
        return moved


def _record(run: BaselineRun, settings: dict[str, Any], burn_in: int) -> dict[str, Any]:
    reached = run.rmse[: run.survived]
    return {
        "settings": settings,
        "cycles": len(run.rmse),
        "typical_rmse": float(np.median(reached[burn_in:] if run.survived > burn_in else reached)),
        "validation": scores_of(run, burn_in).as_dict(),
        "diverged": run.diverged,
        "outcome": run.outcome,
        "ms_per_cycle": run.ms_per_cycle,
        "commit": provenance()["commit"],
    }


def typical_error(trial: dict[str, Any]) -> tuple[bool, float]:
    """What a search descends: the median RMSE; what lost the truth comes last, and stands in order of it as well."""
    # A run that failed before its first analysis has no error.
    error = float("inf") if trial["typical_rmse"] is None else trial["typical_rmse"]
    return trial["diverged"], float("inf") if np.isnan(error) else error


def mean_error(trial: dict[str, Any]) -> tuple[bool, float]:
    """What the last choice is made by: the mean RMSE."""
    return trial["diverged"], float("inf") if trial["diverged"] else trial["validation"]["rmse"]


def trial_table(contenders: list[Contender]) -> pd.DataFrame:
    """All stored trials of some searches, one tidy row each; median RMSE on validation data, NaN where it diverged."""
    return pd.DataFrame(
        {
            "contender": contender.name,
            "method": contender.start.method,
            "m": contender.start.m,
            **{key: trial[key] for key in ("cycles", "diverged", "ms_per_cycle")},
            "rmse": float("nan") if trial["diverged"] else trial["typical_rmse"],
            **trial["settings"],
        }
        for contender in contenders
        for trial in load_trials(contender)
    )


# ---- the table of contenders

# By ensemble size: reach of the localization in sites (KS has finer sites than the others) and inflation.
_RADII = {"ks": {5: 7, 10: 10, 20: 20, 30: 20}}
_RADII_ELSEWHERE = {5: 2, 10: 4, 20: 7, 30: 10}
_FULL, _QUARTER, _FIXED_QUARTER = "full_obs", "every_4th_dim_partial_obs", "every_4th_fixed"

# The best settings that are published, from the tables of the grid search in the repository of the original
# implementation. The grid of the search holds all of their values.
_PUBLISHED: dict[tuple[Setting, str, int], dict[str, Any]] = {
    (("l96", _FULL, 0.1, 1.0), "LETKF", 20): {"loc_rad": 10, "infl": 1.04, "rot": True},
    (("l96", _FULL, 0.1, 1.0), "LETKF", 30): {"loc_rad": 20, "infl": 1.04, "rot": True},
    (("l96", _FULL, 0.1, 1.0), "4D-Var", 1): {"B": "eye", "xB": 0.2, "Lag": 1},
    (("l96", _FULL, 0.1, 1.0), "iEnKS", 30): {"Lag": 1, "infl": 1.02},
    (("l96", _QUARTER, 0.1, 1.0), "LETKF", 5): {"loc_rad": 2, "infl": 1.2, "rot": True},
    (("l96", _QUARTER, 0.1, 1.0), "LETKF", 10): {"loc_rad": 4, "infl": 1.07, "rot": False},
    (("l96", _QUARTER, 0.1, 1.0), "LETKF", 20): {"loc_rad": 4, "infl": 1.04, "rot": True},
    (("l96", _QUARTER, 0.1, 1.0), "LETKF", 30): {"loc_rad": 7, "infl": 1.04, "rot": True},
    (("l96", _QUARTER, 0.1, 1.0), "4D-Var", 1): {"B": "eye", "xB": 1.0, "Lag": 1},
    (("ks", _FULL, 1.0, 1.0), "LETKF", 5): {"loc_rad": 7, "infl": 1.07, "rot": False},
    (("ks", _FULL, 1.0, 1.0), "LETKF", 10): {"loc_rad": 10, "infl": 1.02, "rot": True},
    (("ks", _FULL, 1.0, 1.0), "LETKF", 20): {"loc_rad": 20, "infl": 1.04, "rot": True},
    (("ks", _FULL, 1.0, 1.0), "LETKF", 30): {"loc_rad": 20, "infl": 1.01, "rot": True},
    (("ks", _FULL, 1.0, 1.0), "4D-Var", 1): {"B": "eye", "xB": 0.1, "Lag": 1},
    (("ks", _FULL, 1.0, 1.0), "iEnKS", 30): {"Lag": 1, "infl": 1.02},
}

SETTINGS: tuple[Setting, ...] = (
    ("l96", _FULL, 0.1, 1.0),
    ("l96", _QUARTER, 0.1, 1.0),
    ("ks", _FULL, 1.0, 1.0),
    ("two_level", _FULL, 0.1, 1.0),
    ("l96", _FULL, 0.1, 2.5),
    ("l96", _QUARTER, 0.1, 2.5),
    ("l96", _FIXED_QUARTER, 0.15, 1.0),
    ("l96", _FIXED_QUARTER, 0.15, 0.7),
    ("ks", _FULL, 1.0, 2.5),
    ("ks", "partial_obs", 1.0, 1.0),
    ("two_level", _FULL, 0.1, 2.5),
    ("vl20", _QUARTER, 0.1, 1.0),
)


def contenders(setting: Setting) -> tuple[Contender, ...]:
    """All methods and sizes that are tuned and scored in a setting."""

    def contender(method: str, m: int, settings: dict[str, Any], *pinned: str, role: str = "N ≤ 30") -> Contender:
        start = _FIXED.get(method, {}) | settings
        start |= {k: v for k, v in _PUBLISHED.get((setting, method, m), {}).items() if k not in pinned}
        return Contender(setting, Baseline.model_validate({"method": method, "m": m, "settings": start}), pinned, role)

    def scale(wanted: float) -> float:
        # Background errors grow with those of the observations.
        return min(_SCALES, key=lambda value: abs(np.log(value / (wanted * noise**2))))

    system, obs_conf, _, noise = setting
    all_seen = obs_conf == _FULL
    # Inflation stands in for model error, which is large where the truth has fast variables that the model lacks.
    wrong_model = system == "two_level"
    lag = {"Lag": 1 if wrong_model else 3}
    little, usual, much = ({"infl": 1.3 if wrong_model else value} for value in (1.01, 1.04, 1.1))
    return (
        contender("Climatology", 1, {}),
        contender("3D-Var", 1, {"B": "clim", "xB": scale(0.04 if all_seen else 0.14)}),
        contender("4D-Var", 1, {"B": "eye", "xB": scale(0.07 if all_seen else 0.3), "Lag": 3}),
        *(
            contender("LETKF", m, {"loc_rad": radius, "rot": m != 10} | (much if m == 5 else usual))
            for m, radius in _RADII.get(system, _RADII_ELSEWHERE).items()
        ),
        *(contender("iEnKS", m, lag | usual) for m in (5, 10, 20, 30)),
        contender("iEnKS", 30, {"Lag": 1} | usual, "Lag"),
        *(contender("EnKF-N", m, {"rot": True} | little) for m in (20, 30)),
        contender("iEnKS", 100, lag | little, role="reference"),
        contender("EnKF-N", 100, {"rot": True} | little, role="reference"),
    )


def choose(**wanted: list[Any]) -> list[Contender]:
    """Contenders of the settings, methods and sizes in the lists given; of all, where none is.

    Raises
    ------
    ValueError : if a value leaves none.
    """
    chosen = [contender for setting in SETTINGS for contender in contenders(setting)]
    names = dict(zip(("system", "obs_conf", "step_size", "noise"), range(4), strict=True))
    for name, values in wanted.items():

        def value(contender: Contender, name: str = name) -> Any:
            return contender.setting[names[name]] if name in names else getattr(contender.start, name)

        known = sorted({value(contender) for contender in chosen})
        chosen = [contender for contender in chosen if value(contender) in values]
        if not chosen:
            raise ValueError(f"{name} = {', '.join(map(str, values))} has no classical methods; take one of {known}.")
    return chosen

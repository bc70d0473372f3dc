"""The hyperparameters of classical methods, searched on validation data; every trial is kept.

A comparison with a badly tuned filter proves nothing. Each :class:`~assim_lib.classical.contenders.Contender` (a
method and an ensemble size, in one setting) therefore starts from the best hyperparameters that are published for it,
or from a plausible guess, and descends from there on a grid: one step up or down in one hyperparameter, or in two at
once, for as long as the error over the first :data:`SEARCH_CYCLES` cycles of the validation set falls. That error is
the median over cycles: now and then a filter strays from the truth for a while, and one such excursion in a short run
would decide against hyperparameters that are good. The best few are then compared by their mean RMSE over the whole
validation set, excursions included. The test set has no part in it.

Where the start loses the truth there is no slope to descend. The search then first walks toward what is safer, more
inflation and a shorter reach, until something keeps it.

A search knows its trials by their hyperparameters and stores each as soon as it is done: to repeat a search is to read
it, an interrupted one goes on where it stopped, and a new value in the grid costs its own trials only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from assim_lib.classical.baseline import Hyperparameters
from assim_lib.classical.contenders import Contender
from assim_lib.classical.methods import BaselineRun, run_baseline, scores_of
from assim_lib.seeds import SEARCH
from assim_lib.storage import OtherRunError, data_dir, provenance
from assim_lib.stored import Number, Stored, StoredScores
from assim_lib.twin import TwinExperiment

SEARCH_CYCLES = 600
SEARCH_TRIALS = 30
FINALISTS = 4

# Steps on the grid toward what seldom loses the truth.
_SAFER = {"infl": 2, "loc_rad": -1, "xB": 1}


class Trial(Stored):
    """A run of a method on validation data.

    Attributes:
        cycles: number of first cycles of the validation set that were run.
        typical_rmse: median RMSE after the burn-in, of the cycles until the truth was lost; NaN if there are none.
        validation: scores after the burn-in, NaN if the truth was lost.
        diverged: as in :class:`~assim_lib.classical.methods.BaselineRun`.
        outcome: likewise.
        ms_per_cycle: likewise.
        commit: of the code that ran.
    """

    hyperparameters: Hyperparameters
    cycles: int
    typical_rmse: Number
    validation: StoredScores
    diverged: bool
    outcome: str
    ms_per_cycle: Number
    commit: str


class TrialFile(Stored):
    """All trials of a search, in the order in which they were made; ``start`` is where it began."""

    start: Hyperparameters
    seed: int
    trials: list[Trial]


def trials_path(contender: Contender) -> Path:
    """Where the trials of a search are stored."""
    return data_dir() / "tuning" / f"{contender.name}.json"


def load_trials(contender: Contender) -> list[Trial]:
    """All trials of a search so far, in the order in which they were made.

    Raises:
        IntegrityError: if something in the file is wrong; the sentence names file and field.
    """
    path = trials_path(contender)
    return TrialFile.read(path).trials if path.exists() else []


def typical_error(trial: Trial) -> tuple[bool, float]:
    """What a search descends: the median RMSE; what lost the truth comes last, and stands in order of it as well."""
    # A run that failed before its first analysis has no error.
    return trial.diverged, float("inf") if np.isnan(trial.typical_rmse) else trial.typical_rmse


def mean_error(trial: Trial) -> tuple[bool, float]:
    """What the last choice is made by: the mean RMSE."""
    return trial.diverged, float("inf") if trial.diverged else trial.validation.rmse


def trial_table(contenders: list[Contender]) -> pd.DataFrame:
    """All stored trials of some searches, one tidy row each; median RMSE on validation data, NaN where it diverged."""
    return pd.DataFrame(
        {
            "contender": contender.name,
            "method": contender.start.scored_method,
            "m": contender.start.m,
            "cycles": trial.cycles,
            "diverged": trial.diverged,
            "ms_per_cycle": trial.ms_per_cycle,
            "rmse": float("nan") if trial.diverged else trial.typical_rmse,
            **trial.hyperparameters,
        }
        for contender in contenders
        for trial in load_trials(contender)
    )


@dataclass
class Search:
    """A search that remembers: asks for a trial run the method only if no such trial is stored.

    Attributes:
        seed: of all runs.
        run: what runs a method, as :func:`~assim_lib.classical.methods.run_baseline` does.
    """

    contender: Contender
    validation_set: TwinExperiment
    progress: bool = False
    seed: int = SEARCH
    run: Callable[..., BaselineRun] = run_baseline
    trials: list[Trial] = field(init=False)

    def __post_init__(self):
        path = trials_path(self.contender)
        stored = TrialFile.read(path) if path.exists() else None
        if stored is not None and stored.seed != self.seed:
            raise OtherRunError(
                f"{path} holds trials of seed {stored.seed}, not {self.seed}; remove it to begin again."
            )
        self.trials = stored.trials if stored else []

    def trial(self, hyperparameters: Hyperparameters, cycles: int) -> Trial:
        """The trial with these hyperparameters, made and stored if it is new."""
        for known in self.trials:
            if known.hyperparameters == hyperparameters and known.cycles == cycles:
                return known
        start = self.contender.start
        run = self.run(
            start.tuned(hyperparameters), self.validation_set, cycles, seed=self.seed, progress=self.progress
        )
        self.trials.append(trial := _trial(run, self.validation_set.burn_in))
        stored = TrialFile(start=start.hyperparameters, seed=self.seed, trials=self.trials)
        stored.write(trials_path(self.contender))
        return trial

    def finalists(self) -> list[Trial]:
        """Search, and return the trials over the whole validation set, the best first."""
        whole = len(self.validation_set.observations)
        cycles = min(SEARCH_CYCLES, whole)
        self._descend(cycles)
        candidates = sorted((trial for trial in self.trials if trial.cycles == cycles), key=typical_error)
        # Of what is lost all over, the whole validation set need not be asked.
        candidates = [trial for trial in candidates if not trial.diverged][: 2 * FINALISTS] or candidates[:1]
        finalists: list[Trial] = []
        for candidate in candidates:
            finalists.append(self.trial(candidate.hyperparameters, whole))
            # Who loses the truth on the way makes room for another.
            if sum(not trial.diverged for trial in finalists) == FINALISTS:
                break
        return sorted(finalists, key=mean_error)

    def _descend(self, cycles: int) -> None:
        """Make the trials on the way from the start to the lowest point, over so many cycles."""
        best = self.trial(self.contender.start.hyperparameters, cycles)
        moves, tried = self._moves(), {frozenset(best.hyperparameters.items())}
        point = best.hyperparameters
        while best.diverged and (point := self._safer(point)) is not None:
            tried.add(frozenset(point.items()))
            best = min(best, self.trial(point, cycles), key=typical_error)
        while len(tried) < SEARCH_TRIALS:
            for move in moves:
                moved = False
                while (point := self._moved(best.hyperparameters, move)) is not None:
                    tried.add(frozenset(point.items()))
                    neighbour = self.trial(point, cycles)
                    if typical_error(neighbour) >= typical_error(best):
                        break
                    best, moved = neighbour, True
                if moved:
                    break  # the first moves again: along a coordinate valleys are followed fastest
            else:
                break

    def _moves(self) -> list[dict[str, int]]:
        """Steps along one coordinate of the grid, then along two at once: a valley may lie across both."""
        names = list(self.contender.grid)
        single = [{name: step} for name in names for step in (1, -1)]
        ordered = [name for name in names if not isinstance(self.contender.grid[name][0], bool | str)]
        double = [{a: i, b: j} for a, b in combinations(ordered, 2) for i in (1, -1) for j in (1, -1)]
        return single + double

    def _safer(self, point: Hyperparameters) -> Hyperparameters | None:
        """The point of the grid one step further from losing the truth; None where the grid ends."""
        moved = dict(point)
        for name, step in _SAFER.items():
            if name in self.contender.grid:
                values = self.contender.grid[name]
                moved[name] = values[min(max(values.index(point[name]) + step, 0), len(values) - 1)]
        return None if moved == point else moved

    def _moved(self, point: Hyperparameters, move: dict[str, int]) -> Hyperparameters | None:
        """The point of the grid after a move; None beyond its edge."""
        moved = dict(point)
        for name, step in move.items():
            values = self.contender.grid[name]
            index = values.index(point[name]) + step
            if not 0 <= index < len(values):
                return None
            moved[name] = values[index]
        return moved


def _trial(run: BaselineRun, burn_in: int) -> Trial:
    reached = run.rmse[: run.survived]
    return Trial(
        hyperparameters=run.baseline.hyperparameters,
        cycles=len(run.rmse),
        typical_rmse=float(np.median(reached[burn_in:] if run.survived > burn_in else reached)),
        validation=scores_of(run, burn_in),
        diverged=run.diverged,
        outcome=run.outcome,
        ms_per_cycle=run.ms_per_cycle,
        commit=provenance()["commit"],
    )

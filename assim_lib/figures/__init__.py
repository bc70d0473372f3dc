"""The book's figures: one function a figure, one style for all.

:mod:`~assim_lib.figures.fields` draws arrays: states, fields, matrices, moving pictures.
:mod:`~assim_lib.figures.curves` draws one quantity against another: by step, value, distance, age, and cycle by cycle.
:mod:`~assim_lib.figures.scores` draws tables of scores: methods and settings beside one another.
:mod:`~assim_lib.figures.trials` draws what was tried on validation data: trainings, variants, hyperparameters.
:mod:`~assim_lib.figures.costs` draws what things cost.
:mod:`~assim_lib.figures.style` holds what they share. None of them imports anything else of this library.
"""

from assim_lib.figures.costs import cost, growth
from assim_lib.figures.curves import (
    by_distance,
    by_value,
    convergence,
    error_and_spread,
    error_by_age,
    error_growth,
    rank_histogram,
    work_precision,
)
from assim_lib.figures.fields import climatology, hovmoller, matrices, phase_plane, tracking
from assim_lib.figures.scores import (
    by_size,
    forecast_skill,
    headline,
    long_run,
    scoreboard,
    spread_and_error,
    transfer,
)
from assim_lib.figures.trials import LiveCurve, grid_scores, learning_curves, scaling, sensitivity, variants

__all__ = [
    "LiveCurve",
    "by_distance",
    "by_size",
    "by_value",
    "climatology",
    "convergence",
    "cost",
    "error_and_spread",
    "error_by_age",
    "error_growth",
    "forecast_skill",
    "grid_scores",
    "growth",
    "headline",
    "hovmoller",
    "learning_curves",
    "long_run",
    "matrices",
    "phase_plane",
    "rank_histogram",
    "scaling",
    "scoreboard",
    "sensitivity",
    "spread_and_error",
    "tracking",
    "transfer",
    "variants",
    "work_precision",
]

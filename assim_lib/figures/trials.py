"""Figures of what was tried: trainings, variants of a recipe, sweeps, a search for hyperparameters."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure

from assim_lib.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    LINES,
    ORANGE,
    PURPLE,
    RED,
    WIDTH,
    legend_of_all,
    new_figure,
    plain_numbers,
    told_apart,
)


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, int | float]]],
    references: Mapping[str, float],
    against: str = "core_seconds",
) -> Figure:
    """Validation RMSE while training, with the scores of other methods as horizontal lines.

    A thick line is the median of seven evaluations in a row, a thin one behind it each of them: now and then a filter
    loses the truth of the few runs that it is validated on.

    Parameters
    ----------
    histories : label → points of a training, each with ``validation_rmse`` and what it is drawn against.
    references : label → RMSE.
    against : ``"core_seconds"``, ``"seconds"`` or ``"update"``.
    """
    figure, axis = new_figure(figsize=(WIDTH, 3.6))
    for pen, (label, history) in told_apart(histories.items(), (RED, ORANGE, PURPLE, BLACK, GREEN)):
        x = np.array([point[against] for point in history]) / (60 if "seconds" in against else 1)
        errors = pd.Series([point["validation_rmse"] for point in history])
        axis.loglog(x, errors, color=pen.color, linewidth=0.6, alpha=0.4)
        axis.loglog(
            x,
            errors.rolling(7, center=True, min_periods=1).median() if len(errors) > 20 else errors,
            color=pen.color,
            marker=pen.marker,
            markersize=5,
            markevery=0.08,  # of the diagonal: a mark for every evaluation would hide the curve
            label=label,
        )
    for pen, (label, value) in told_apart(references.items(), (BLUE,), LINES[1:]):
        axis.axhline(value, color=pen.color, linestyle=pen.line, linewidth=1, label=label)
    unit = {"core_seconds": "minutes of one core", "seconds": "minutes", "update": "updates"}[against]
    axis.set(xlabel=unit, ylabel="validation RMSE")
    plain_numbers(axis.xaxis, axis.yaxis)
    figure.legend(loc="outside right upper")
    return figure


class LiveCurve:
    """Validation RMSE while a filter trains: one picture in the page, drawn anew in its place at every point.

    Parameters
    ----------
    updates : how many there will be.
    references : label → RMSE, as horizontal lines.

    Attributes
    ----------
    points : pairs of update and RMSE, so far.
    figure : the picture as it is now.
    """

    def __init__(self, updates: int, references: Mapping[str, float]):
        self.points: list[tuple[int, float]] = []
        self.figure, self._axis = new_figure(figsize=(7, 3.2))
        plt.close(self.figure)  # or a notebook would show it a second time, after the cell
        (self._line,) = self._axis.semilogy([], [], "o-", color=RED, markersize=4, label="this filter")
        for pen, (label, value) in told_apart(references.items(), (BLUE, ORANGE), LINES[1:]):
            self._axis.axhline(value, color=pen.color, linestyle=pen.line, linewidth=1, label=label)
        self._axis.set(xlabel="updates", ylabel="validation RMSE", xlim=(-0.02 * updates, 1.02 * updates))
        self.figure.legend(loc="outside right upper")
        self._shown: DisplayHandle | None = None

    def add(self, update: int, error: float) -> None:
        """Draw one more point."""
        self.points.append((update, error))
        self._line.set_data(*zip(*self.points, strict=True))
        self._axis.relim()
        self._axis.autoscale_view(scalex=False)
        plain_numbers(self._axis.yaxis)
        if self._shown is None:
            self._shown = display(self.figure, display_id=True)
        else:
            self._shown.update(self.figure)


def variants(table: pd.DataFrame, reference: float) -> Figure:
    """RMSE of each variant with its 95 % interval, one point a seed, beside a dashed line at the reference.

    Parameters
    ----------
    table : columns ``variant``, ``seed``, ``rmse``, ``rmse_lo`` and ``rmse_hi``; variants stand in the order of the
        rows.
    """
    names = list(dict.fromkeys(table.variant))
    figure, axis = new_figure(figsize=(7, 0.9 + 0.25 * len(names)))
    for beside, (pen, (seed, rows)) in enumerate(told_apart(table.groupby("seed"), (BLUE, ORANGE, GREEN))):
        axis.errorbar(
            rows.rmse,
            [names.index(name) + 0.2 * beside for name in rows.variant],
            xerr=[rows.rmse - rows.rmse_lo, rows.rmse_hi - rows.rmse],
            fmt=pen.marker,
            color=pen.color,
            markersize=5,
            elinewidth=1,
            label=f"seed {seed}",
        )
    axis.axvline(reference, color=BLACK, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="RMSE on validation data")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def grid_scores(table: pd.DataFrame, x: str, series: str, labels: Mapping[str, str]) -> Figure:
    """RMSE on a grid of two parameters: a line a series through the means over seeds, each seed with its 95 % interval.

    Parameters
    ----------
    table : columns ``x``, ``series``, ``seed``, ``rmse``, ``rmse_lo`` and ``rmse_hi``.
    labels : what the two parameters are called.
    """
    figure, axis = new_figure(figsize=(7, 3.6))
    apart = 0.008 * np.ptp(table[x].to_numpy())
    for number, (pen, (value, rows)) in enumerate(
        told_apart(table.groupby(series), (BLUE, ORANGE, GREEN, PURPLE, RED))
    ):
        means = rows.groupby(x).rmse.mean()
        axis.plot(means.index, means, color=pen.color, linestyle=pen.line, label=f"{labels[series]} = {value}")
        place = rows.seed.rank(method="dense") + (1 + table.seed.nunique()) * (number - table[series].nunique() / 2)
        axis.errorbar(
            rows[x] + apart * place,
            rows.rmse,
            yerr=[rows.rmse - rows.rmse_lo, rows.rmse_hi - rows.rmse],
            fmt=pen.marker,
            color=pen.color,
            markersize=4,
            elinewidth=1,
        )
    axis.set(xlabel=labels[x], ylabel="RMSE", xticks=sorted(table[x].unique()), yscale="log")
    plain_numbers(axis.yaxis)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def scaling(speedups: Mapping[str, Mapping[int, float]]) -> Figure:
    """How many times faster than one worker so many are, beside a thin line for as many times as there are workers.

    Parameters
    ----------
    speedups : label → number of workers → speedup.
    """
    figure, axis = new_figure(figsize=(7, 3.6))
    for pen, (label, speedup) in told_apart(speedups.items(), (BLUE, ORANGE, GREEN, PURPLE)):
        axis.loglog(*zip(*speedup.items(), strict=True), color=pen.color, linestyle=pen.line, label=label)
    ends = [min(map(min, speedups.values())), max(map(max, speedups.values()))]
    axis.plot(ends, ends, color=BLACK, linewidth=0.6, zorder=0)
    axis.set(xlabel="workers", ylabel="speedup")
    plain_numbers(axis.xaxis, axis.yaxis)
    figure.legend(loc="outside right upper")
    return figure


# What a trial is and what it gave; every other column of a table of trials is a hyperparameter.
_OF_A_TRIAL = {"contender", "method", "m", "cycles", "diverged", "ms_per_cycle", "rmse"}


def sensitivity(trials: pd.DataFrame, parameters: Mapping[str, str], logarithmic: Collection[str] = ()) -> Figure:
    """What a wrong value of one hyperparameter costs, all others being the best: RMSE over that of the best trial.

    Parameters
    ----------
    trials : one row a trial, all over the same cycles: ``contender``, ``method``, ``m``, ``rmse`` (NaN where the trial
        diverged: a cross above the others), and a column for each hyperparameter.
    parameters : column of a hyperparameter → what it is called; a panel each.
    logarithmic : those of them that are drawn on a logarithmic axis.
    """
    hyperparameters = [column for column in trials if column not in _OF_A_TRIAL]
    columns = min(3, len(parameters))
    rows = -(-len(parameters) // columns)
    size = WIDTH, 3.0 * rows + 0.7
    figure, axes = new_figure(rows, columns, figsize=size, sharey=True, squeeze=False)
    lost = 2.15  # where a diverged trial is marked: above every other
    pens = dict(
        (name, pen) for pen, name in told_apart(trials.contender.unique(), (BLUE, GREEN, ORANGE, PURPLE, RED, BLACK))
    )
    for axis, (name, text) in zip(axes.flat, parameters.items(), strict=False):
        for contender, group in trials.dropna(subset=name).groupby("contender", sort=False):
            if group.rmse.isna().all():
                continue
            best = group.loc[group.rmse.idxmin()]
            others = [key for key in hyperparameters if key != name]
            same: pd.DataFrame = group.loc[(group[others].isna() | (group[others] == best[others])).all(axis=1)]
            same = same.sort_values(by=name)
            if len(same) < 2:
                continue
            height = (same.rmse / best.rmse).clip(upper=2.0).fillna(lost)
            finished, pen = same.rmse.notna().to_numpy(), pens[contender]
            label = f"{best.method} m={best.m}" if best.m > 1 else best.method
            style = {"color": pen.color, "linestyle": pen.line, "marker": pen.marker, "markersize": 6}
            axis.plot(same[name], height, **style, markevery=finished, label=label)
            axis.plot(same[name][~finished], height[~finished], "x", color=pen.color, markersize=9, markeredgewidth=2)
        axis.set(xlabel=text, ylim=(0.95, 2.25))
        axis.axhline(1.0, color=BLACK, linewidth=0.6, zorder=0)
        axis.axhline(2.08, color=BLACK, linewidth=0.6, linestyle=":", zorder=0)
        if name in logarithmic:
            axis.set_xscale("log")
            plain_numbers(axis.xaxis)
    for axis in axes.flat[len(parameters) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("RMSE / best RMSE")
        axis.set_yticks([1.0, 1.25, 1.5, 1.75, 2.0, lost], ["1", "1.25", "1.5", "1.75", "2", "lost"])
    legend_of_all(figure, loc="outside upper center", ncols=4)
    return figure

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
    GRAY,
    GREEN,
    LINES,
    ORANGE,
    PURPLE,
    RED,
    WIDTH,
    legend_of_all,
    name_lines,
    new_figure,
    pens_of,
    plain_numbers,
    told_apart,
)


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, int | float]]],
    references: Mapping[str, float],
    against: str = "cycles",
) -> Figure:
    """Validation RMSE while training, with the scores of other methods as horizontal lines, named at their ends.

    A long curve is the median of seven evaluations in a row, in a band from the lowest to the highest of them: now and
    then a filter loses the truth of the few runs that it is validated on. What is far above all else is cut off: there,
    a curve comes in from above.

    Args:
        histories: label → points of a training, each with ``validation_rmse`` and what it is drawn against.
        references: label → RMSE.
        against: ``"cycles"``, those of all trajectories, or ``"update"``.
    """
    figure, axis = new_figure(figsize=(WIDTH, 3.4 + 0.13 * len(histories)))
    pens, long, kept = pens_of(histories), False, [*references.values()]
    for label, history in histories.items():
        pen = pens[label]
        x = np.array([point[against] for point in history]) / (1e6 if against == "cycles" else 1)
        curve = errors = pd.Series([point["validation_rmse"] for point in history])
        if len(errors) > 20:
            window, long = errors.rolling(7, center=True, min_periods=1), True
            curve = window.median()
            axis.fill_between(x, window.min(), window.max(), color=pen.color, alpha=0.15, linewidth=0)
        kept += [curve.iloc[-1], curve.median()]
        marks = {"marker": pen.marker, "markersize": 5, "markevery": 0.08}  # of the diagonal: all would hide the curve
        axis.loglog(x, curve, color=pen.color, linestyle=pen.line, linewidth=1.6, label=label, **marks)
    for value in references.values():
        axis.axhline(value, color=BLUE, linestyle="--", linewidth=1)
    top = 1.2 * max(kept)
    if axis.get_ylim()[1] > top:
        axis.set_ylim(top=top)
    unit = {"cycles": "cycles trained on, in millions", "update": "updates"}[against]
    axis.set(xlabel=unit, ylabel="validation RMSE")
    plain_numbers(axis.xaxis, axis.yaxis)
    if long:
        axis.fill_between(
            [], [], color=GRAY, alpha=0.25, linewidth=0, label="band: lowest to highest of seven evaluations in a row"
        )
    figure.legend(loc="outside lower center", ncols=2)
    figure.draw_without_rendering()  # so that the axes are where they will be
    name_lines(axis, references, BLUE)
    return figure


class LiveCurve:
    """Validation RMSE while a filter trains: one picture in the page, drawn anew in its place at every point.

    Args:
        updates: how many there will be.
        references: label → RMSE, as horizontal lines.

    Attributes:
        points: pairs of update and RMSE, so far.
        figure: the picture as it is now.
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

    Args:
        table: columns ``variant``, ``seed``, ``rmse``, ``rmse_lo`` and ``rmse_hi``; variants stand in the order of the
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
    """RMSE on a grid of two parameters: groups side by side, each seed a mark with its 95 % interval, a bar their mean.

    Args:
        table: columns ``x``, ``series``, ``seed``, ``rmse``, ``rmse_lo`` and ``rmse_hi``.
        labels: what the two parameters are called.
    """
    figure, axis = new_figure(figsize=(7, 3.6))
    places, groups = sorted(table[x].unique()), list(table.groupby(series))
    wide = 0.8 / len(groups)  # of a group, where the values of x are one apart
    for number, (pen, (value, rows)) in enumerate(told_apart(groups, (BLUE, ORANGE, GREEN, PURPLE, RED))):
        middle = np.array([places.index(one) for one in rows[x]]) + wide * (number - (len(groups) - 1) / 2)
        rank = rows.seed.rank(method="dense").to_numpy()
        axis.errorbar(
            middle + 0.7 * wide * (rank / (table.seed.nunique() + 1) - 0.5),
            rows.rmse,
            yerr=[rows.rmse - rows.rmse_lo, rows.rmse_hi - rows.rmse],
            fmt=pen.marker,
            color=pen.color,
            markersize=5,
            elinewidth=1,
            label=f"{labels[series]} = {value}",
        )
        means = rows.rmse.groupby(middle).mean()
        axis.hlines(means, means.index - 0.4 * wide, means.index + 0.4 * wide, color=pen.color, linewidth=1.5)
    axis.set(xlabel=labels[x], ylabel="RMSE", yscale="log")
    axis.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    plain_numbers(axis.yaxis)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def scaling(speedups: Mapping[str, Mapping[int, float]]) -> Figure:
    """Which share of their time so many workers are at work: their speedup over their number.

    Lines that coincide are told apart by their widths: the earlier ones are the wider, and lie below.

    Args:
        speedups: label → number of workers → how many times faster than one worker they are.
    """
    figure, axis = new_figure(figsize=(7, 3.6))
    for number, (pen, (label, speedup)) in enumerate(told_apart(speedups.items(), (BLUE, ORANGE, GREEN, PURPLE))):
        workers = np.array(list(speedup))
        share = 100 * np.array(list(speedup.values())) / workers
        style = {"color": pen.color, "linestyle": pen.line, "marker": pen.marker, "markersize": 5}
        axis.semilogx(workers, share, **style, linewidth=max(4.0 - number, 1.2), label=label)
    axis.axhline(50, color="#bbbbbb", linewidth=0.8, zorder=0)
    axis.set(xlabel="workers", ylabel="of their time at work (%)", ylim=(0, 105))
    plain_numbers(axis.xaxis)
    figure.legend(loc="outside right upper")
    return figure


# What a trial is and what it gave; every other column of a table of trials is a hyperparameter.
_OF_A_TRIAL = {"contender", "method", "m", "cycles", "diverged", "ms_per_cycle", "rmse"}


def sensitivity(trials: pd.DataFrame, parameters: Mapping[str, str], logarithmic: Collection[str] = ()) -> Figure:
    """What a wrong value of a hyperparameter costs: RMSE over that of the best trial.

    Small marks are all trials, whatever the others were; a line joins those in which all others are the best ones.

    Args:
        trials: one row a trial, all over the same cycles: ``contender``, ``method``, ``m``, ``rmse`` (NaN where the
            trial diverged: a cross above the others), and a column for each hyperparameter.
        parameters: column of a hyperparameter → what it is called; a panel each.
        logarithmic: those of them that are drawn on a logarithmic axis.
    """
    hyperparameters = [column for column in trials if column not in _OF_A_TRIAL]
    columns = min(3, len(parameters))
    rows = -(-len(parameters) // columns)
    size = WIDTH, 3.0 * rows + 0.7
    figure, axes = new_figure(rows, columns, figsize=size, sharey=True, squeeze=False)
    lost = 2.15  # where a diverged trial is marked: above every other
    methods = trials.groupby("contender", sort=False).method.first()
    names = {contender: f"{method} {contender}" for contender, method in methods.items()}
    pens = pens_of(names.values())
    for axis, (name, text) in zip(axes.flat, parameters.items(), strict=False):
        for contender, group in trials.dropna(subset=name).groupby("contender", sort=False):
            if group.rmse.isna().all():
                continue
            best, pen = group.loc[group.rmse.idxmin()], pens[names[contender]]
            everywhere = (group.rmse / best.rmse).clip(upper=2.0)
            axis.plot(group[name], everywhere, ".", color=pen.color, markersize=4, alpha=0.5)
            gone = group[name][group.rmse.isna()]
            axis.plot(gone, [lost] * len(gone), "x", color=pen.color, markersize=6, alpha=0.7)
            others = [key for key in hyperparameters if key != name]
            same: pd.DataFrame = group.loc[(group[others].isna() | (group[others] == best[others])).all(axis=1)]
            same = same.sort_values(by=name)
            if len(same) < 2:
                continue
            height = (same.rmse / best.rmse).clip(upper=2.0).fillna(lost)
            finished = same.rmse.notna().to_numpy()
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
        axis.set_yticks([1.0, 1.25, 1.5, 1.75, 2.0, lost], ["1", "1.25", "1.5", "1.75", "2 or more", "lost"])
    legend_of_all(figure, loc="outside upper center", ncols=4)
    return figure

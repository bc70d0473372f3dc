"""Figures of one quantity against another: by step, cost, value, distance, age, and cycle by cycle."""

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from assim_lib.figures.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    legend_of_all,
    new_figure,
    pens_of,
    plain_numbers,
    told_apart,
)


def convergence(steps: Float[np.ndarray, " step"], errors: Float[np.ndarray, " step"], order: int) -> Figure:
    """Error of an integration against its step, beside the slope that its order promises."""
    figure, axis = new_figure(figsize=(5.2, 3.2))
    axis.loglog(steps, errors, "o-", color=BLUE, label="measured")
    axis.loglog(steps, errors[-1] * (steps / steps[-1]) ** order, "--", color=ORANGE, label=f"order {order}")
    axis.set(xlabel="step (time units)", ylabel="RMS error")
    axis.set_xticks(steps, [f"1/{1 / step:g}" for step in steps])
    axis.minorticks_off()
    axis.legend()
    return figure


def work_precision(series: dict[str, list[tuple[float | int, float]]], x_label: str, y_label: str) -> Figure:
    """Error of several methods against what it costs, on logarithmic axes: the lower and the more to the left, the
    better.

    Args:
        series: method → pairs of cost and error.
    """
    figure, axis = new_figure(figsize=(6, 3.4))
    for pen, (label, pairs) in told_apart(series.items(), (BLUE, SKY, GREEN, RED, PURPLE)):
        axis.loglog(*zip(*pairs, strict=True), color=pen.color, marker=pen.marker, linestyle=pen.line, label=label)
    axis.set(xlabel=x_label, ylabel=y_label)
    plain_numbers(axis.xaxis)
    figure.legend(loc="outside right upper")
    return figure


def by_value(
    series: dict[str, tuple[Float[np.ndarray, " sample"], Float[np.ndarray, " sample"]]],
    x_label: str,
    y_label: str,
    bins: int = 24,
) -> Figure:
    """Mean of one quantity given another, with the standard deviation of the first series as a band.

    Args:
        series: label → (given, quantity), each (sample,).
        bins: with as many samples each, the outermost 0.1 % left out.
    """
    figure, axis = new_figure(figsize=(6, 3.4))
    axis.axhline(0, color="#bbbbbb", linewidth=0.8)
    for number, (pen, (label, (given, quantity))) in enumerate(told_apart(series.items(), (BLACK, RED, BLUE))):
        edges = np.quantile(given, np.linspace(0.001, 0.999, bins + 1))
        place = np.digitize(given, edges) - 1
        kept = [place == b for b in range(bins)]
        middle, mean = (np.array([values[k].mean() for k in kept]) for values in (given, quantity))
        axis.plot(middle, mean, color=pen.color, linestyle=pen.line, linewidth=2, label=label)
        if number == 0:
            width = np.array([quantity[k].std() for k in kept])
            band = {"color": pen.color, "alpha": 0.12, "linewidth": 0, "label": "± its standard deviation"}
            axis.fill_between(middle, mean - width, mean + width, **band)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.legend()
    return figure


def by_distance(sizes: dict[str, Float[np.ndarray, " distance"]], x_label: str, y_label: str) -> Figure:
    """A quantity by distance along the ring, one line each.

    Args:
        sizes: label → values at the distances from -r to r, in sites toward larger indices.
    """
    figure, axis = new_figure(figsize=(7, 3.2))
    axis.axhline(0, color="#bbbbbb", linewidth=0.8)
    pens = pens_of(sizes)
    for number, (label, size) in enumerate(sizes.items()):
        pen = pens[label]
        place = np.arange(len(size)) - len(size) // 2
        width = max(3.0 - 0.8 * number, 1.2)  # lines that coincide are seen by their widths
        style = {"color": pen.color, "marker": pen.marker, "linestyle": pen.line, "markersize": 5, "linewidth": width}
        axis.plot(place, size, label=label, **style)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.legend()
    return figure


def error_growth(times: Float[np.ndarray, " time"], errors: Float[np.ndarray, "pair time"], noise: float) -> Figure:
    """Distance of trajectories that started almost alike, on a logarithmic scale."""
    figure, axis = new_figure(figsize=(6, 3))
    axis.semilogy(times, errors.T, color=SKY, linewidth=0.8)
    axis.semilogy(times, np.exp(np.log(errors).mean(0)), color=BLUE, linewidth=2, label="geometric mean")
    axis.axhline(noise, color=ORANGE, linestyle="--", label="observation error σ")
    axis.set(xlabel="time (model units)", ylabel="RMS distance")
    axis.legend()
    return figure


def error_and_spread(
    rmse: dict[str, Float[np.ndarray, " cycle"]], spread: dict[str, Float[np.ndarray, " cycle"]], noise: float
) -> Figure:
    """RMSE of each method, cycle by cycle from a cold start, and the ensemble spread of those that have one."""
    figure, axis = new_figure(figsize=(8, 3.2))
    # Dotted is the spread, dashed the observation error.
    for pen, (label, series) in told_apart(rmse.items(), (RED, BLUE, GREEN), lines=("-", "-.", (0, (10, 2)))):
        axis.semilogy(series, color=pen.color, linestyle=pen.line, linewidth=1.2, label=f"RMSE, {label}")
        if label in spread:
            axis.semilogy(spread[label], color=pen.color, linestyle=":", linewidth=1.2, label=f"spread, {label}")
    axis.axhline(noise, color=ORANGE, linestyle="--", linewidth=1, label="observation error σ")
    axis.set(xlabel="cycle", ylabel="RMSE, spread")
    plain_numbers(axis.yaxis)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def error_by_age(table: pd.DataFrame, of: str = "analysis") -> Figure:
    """RMSE, left, and bias, right, by the number of cycles since a site was last observed.

    The band is 5 % of the largest RMSE. A filter that was trained on a moving mask may have learned to be right only
    where it will be looked at next: then its bias leaves the band.

    Args:
        table: columns ``age``, ``rmse`` and ``bias``, and ``filter`` where it holds several.
        of: whose error it is, ``"analysis"`` or ``"forecast"``.
    """
    figure, (left, right) = new_figure(ncols=2, figsize=(WIDTH, 3.4))
    groups = list(table.groupby("filter", sort=False)) if "filter" in table else [(of, table)]
    band = 0.05 * table.rmse.max()
    right.axhspan(-band, band, color=GRAY, alpha=0.2, linewidth=0, label="5 % of the RMSE")
    pens = pens_of(str(name) for name, _ in groups)
    for number, (pen, (name, rows)) in enumerate(zip(pens.values(), groups, strict=True)):
        rows = rows.sort_values("age")
        beside = 0.06 * (number - (len(groups) - 1) / 2)  # or equal errors would hide each other
        style = {"color": pen.color, "marker": pen.marker, "linestyle": pen.line, "markersize": 6, "label": name}
        left.plot(rows.age + beside, rows.rmse, **style)
        right.plot(rows.age + beside, rows.bias, **style)
    left.set(ylabel=f"RMSE of the {of}")
    right.set(ylabel=f"bias of the {of}")
    for axis in (left, right):
        axis.set(xlabel="cycles since a site was observed", xticks=sorted(table.age.unique()))
    legend_of_all(figure, loc="outside upper center", ncols=4)
    return figure


def rank_histogram(frequencies: dict[str, Float[np.ndarray, " rank"]]) -> Figure:
    """Rank histograms side by side; a reliable ensemble follows the dashed line."""
    size = min(3.6 * len(frequencies), WIDTH), 2.8
    figure, axes = new_figure(1, len(frequencies), figsize=size, sharey=True, squeeze=False)
    for axis, (label, values) in zip(axes[0], frequencies.items(), strict=True):
        axis.bar(np.arange(len(values)), values, width=1.0, color=SKY, edgecolor="white")
        axis.axhline(1 / len(values), color=BLACK, linestyle="--", linewidth=1)
        axis.set(title=label, xlabel="rank of the truth", xticks=np.arange(0, len(values), 2))
    axes[0, 0].set_ylabel("frequency")
    return figure

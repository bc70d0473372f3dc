"""Figures of scores: methods and settings beside one another.

``method`` in a table is a name of :data:`~assim_lib.figures.style.METHOD_PENS`, ``m`` the size of an ensemble, ``rmse``
that of the analysis, ``rmse_lo`` and ``rmse_hi`` the bounds of its 95 % interval.
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from assim_lib.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    legend_of_all,
    marked,
    new_figure,
    pen_of,
    pens_of,
    plain_numbers,
)

TAUGHT = pen_of("amortized_clean_analysis").color
KINDS = {
    "classical, tuned": (BLUE, "s", "white"),
    "ours, with a Kalman part": (RED, "o", RED),
    "ours, learned from nothing": (PURPLE, "P", PURPLE),
    "ours, taught by the truth": (TAUGHT, ">", TAUGHT),
}


def scoreboard(table: pd.DataFrame, noise: float) -> Figure:
    """RMSE of every row, with its confidence interval, best at the top.

    Args:
        table: columns ``kind``, of :data:`KINDS`, ``m``, ``label``, ``rmse``, ``rmse_lo``, ``rmse_hi`` and
            ``untrained_rmse``, which is drawn, hollow, for filters with a Kalman part; a run that broke down has no
            RMSE, and is left out.
    """
    table = table.dropna(subset="rmse").sort_values("rmse", ascending=False)
    figure, axis = new_figure(figsize=(WIDTH, 0.3 * len(table) + 1.4))
    rows: list[Any] = list(table.itertuples())
    names = []
    for y, row in enumerate(rows):
        color, marker, face = KINDS[row.kind]
        axis.axhline(y, color="#e4e4e4", linewidth=0.8, zorder=0)
        axis.plot([row.rmse_lo, row.rmse_hi], [y, y], color=color, linewidth=2)
        if face == RED:
            axis.plot(row.untrained_rmse, y, "o", color=color, markerfacecolor="white", label="… before its training")
        axis.plot(row.rmse, y, marker, color=color, markerfacecolor=face, label=row.kind)
        names.append(row.label if face == "white" else f"{row.label}, m = {row.m}")
    axis.set_yticks(range(len(table)), names)
    axis.axvline(noise, color=BLACK, linestyle="--", linewidth=1, label="observation error σ")
    axis.set(xlabel="analysis RMSE", xscale="log")
    plain_numbers(axis.xaxis)
    legend_of_all(figure, loc="outside upper center", ncols=3)
    return figure


def headline(table: pd.DataFrame) -> Figure:
    """Who did what, one row a setting: a Kalman part, its training, learning from nothing; everything by classical.

    An arrow leads from the best Kalman part before any training, hollow, to the best one after it, filled; it is dotted
    where the gain is undecided.

    Args:
        table: one row a setting, its title in the index; columns ``letkf10``, ``reference``, ``untrained``, ``trained``
            and ``scratch``, all RMSE, NaN where there is none; ``classical``, by which they are divided; and
            ``helped``, whether training gained something.
    """
    figure, axis = new_figure(figsize=(WIDTH, 0.5 * len(table) + 1.8))
    series = {
        "letkf10": ("LETKF, 10 members", "s", BLUE, "white"),
        "reference": ("reference, 100 members", "^", GREEN, GREEN),
        "untrained": ("best Kalman part, untrained", "o", RED, "white"),
        "trained": ("best Kalman part, trained", "o", RED, RED),
        "scratch": ("learned from nothing", "P", PURPLE, PURPLE),
    }
    for y, (_, row) in enumerate(table.iloc[::-1].iterrows()):
        axis.axhline(y, color="#dddddd", linewidth=1, zorder=0)
        for column, (label, marker, color, face) in series.items():
            share = row[column] / row.classical
            axis.plot(share, y, marker, color=color, markersize=7, markerfacecolor=face, label=label)
        ends = [(row[column] / row.classical, y) for column in ("untrained", "trained")]
        if abs(ends[1][0] / ends[0][0] - 1) > 0.05:  # a shorter arrow would not be seen
            line = "-" if row.helped else ":"
            axis.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "->", "color": RED, "linestyle": line})
    axis.axvline(1.0, color=BLACK, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(table)), table.index[::-1])
    axis.set_xscale("log")
    axis.set_xlabel("analysis RMSE / that of the best tuned classical filter\nof at most 30 members (dashed)")
    plain_numbers(axis.xaxis)
    legend_of_all(figure, loc="outside upper center", ncols=3)
    return figure


def spread_and_error(table: pd.DataFrame) -> Figure:
    """Spread against RMSE of everything with an ensemble; what knows its own error lies on the dashed line.

    Args:
        table: columns ``method``, ``rmse`` and ``spread``.
    """
    figure, axis = new_figure(figsize=(7, 4.2))
    kept: pd.DataFrame = table.loc[table.spread > 0]
    for method, group in kept.groupby("method"):
        axis.plot(group.rmse, group.spread, linestyle="none", alpha=0.8, **marked(method))
    ends = np.array([kept[["rmse", "spread"]].min().min(), kept[["rmse", "spread"]].max().max()])
    axis.plot(ends, ends, color=BLACK, linestyle="--", linewidth=1)
    axis.fill_between(ends, 0.8 * ends, 1.25 * ends, color=BLACK, alpha=0.08, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="analysis RMSE", ylabel="spread")
    plain_numbers(axis.xaxis, axis.yaxis)
    figure.legend(loc="outside right upper")
    return figure


def long_run(
    first: Float[np.ndarray, "start cycle"], blocks: Float[np.ndarray, "block start"], cycles: int, climatology: float
) -> Figure:
    """RMSE of filters that started cold, each in a run of its own: its first cycles, and block by block ever after.

    Args:
        first: RMSE of the first cycles.
        blocks: mean RMSE over each block.
        cycles: of one block.
        climatology: RMSE of the climatological mean, dashed.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(WIDTH, 3.2), sharey=True)
    thousands = cycles * (1 + np.arange(len(blocks))) / 1000
    for axis, x, series in ((left, np.arange(first.shape[1]), first.T), (right, thousands, blocks)):
        axis.plot(x, series[:, :1], color=SKY, linewidth=0.6, label="one run")
        axis.plot(x, series[:, 1:], color=SKY, linewidth=0.6)
        axis.plot(x, series.mean(1), color=RED, linewidth=1.8, linestyle="-.", label="mean of all runs")
        axis.axhline(climatology, color=BLACK, linestyle="--", linewidth=1, label="climatology")
    left.set(xlabel="cycle after a cold start", ylabel="analysis RMSE", yscale="log", title="the first cycles")
    right.set(xlabel="thousand cycles", title=f"means over {cycles} cycles")
    plain_numbers(left.yaxis)
    legend_of_all(figure, loc="outside lower center", ncols=3)
    return figure


def transfer(table: pd.DataFrame) -> Figure:
    """RMSE after each change as a share of the climatology's there; below 1 something is known of the truth.

    Args:
        table: columns ``filter``, ``change``, ``rmse``, ``standard_error`` and ``climatology``; changes
            stand in the order of the rows.
    """
    changes = list(dict.fromkeys(table.change))
    groups = table.groupby("filter", sort=False)
    figure, axis = new_figure(figsize=(8, 1.0 + 0.27 * len(changes) + 0.2 * len(groups)))
    pens = pens_of(str(name) for name, _ in groups)
    for pen, (name, rows) in zip(pens.values(), groups, strict=True):
        axis.errorbar(
            rows.rmse / rows.climatology,
            [changes.index(change) for change in rows.change],
            xerr=2 * rows.standard_error / rows.climatology,
            fmt=pen.marker,
            color=pen.color,
            markersize=5,
            elinewidth=1,
            alpha=0.85,
            label=name,
        )
    axis.axvline(1, color=BLACK, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(changes)), changes)
    axis.invert_yaxis()
    axis.set(xlabel="RMSE / that of the climatology", xscale="log")
    plain_numbers(axis.xaxis)
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def by_size(tables: dict[str, pd.DataFrame], highest: float = 4.0) -> Figure:
    """RMSE against ensemble size, a panel a setting; the best of ours of each kind, of whatever size, is a line across.

    Args:
        tables: title → columns ``kind``, of :data:`KINDS`, ``method``, ``m`` and ``rmse``, a row for each method and
            size.
        highest: multiple of the lowest RMSE of a panel at which it ends; what lies above stands at its edge, hollow.
    """
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    figure, axes = new_figure(rows, columns, figsize=(WIDTH / 3 * columns, 2.6 * rows + 0.6), squeeze=False)
    for axis, (title, table) in zip(axes.flat, tables.items(), strict=False):
        kept: pd.DataFrame = table.dropna(subset="rmse")
        top = highest * kept.rmse.min()
        classical = kept.kind == "classical, tuned"
        for kind, group in kept.loc[~classical].groupby("kind"):
            axis.axhline(group.rmse.min(), color=KINDS[kind][0], linewidth=2, label=kind)
        for method, group in kept.loc[classical].sort_values(by="m").groupby("method"):
            line, style = pen_of(method).line, marked(method)
            if (group.m == 1).all():
                style = {"color": style["color"], "label": style["label"]}
                axis.axhline(min(group.rmse.iloc[0], top), linestyle=line, linewidth=1.4, **style)
                continue
            inside = group.rmse <= top
            axis.plot(group.m, group.rmse.clip(upper=top), linestyle=line, **style, markevery=inside.to_numpy())
            if above := list(group.m[~inside]):
                style |= {"markerfacecolor": "white", "label": "", "clip_on": False, "zorder": 3}
                axis.plot(above, [top] * len(above), linestyle="none", **style)
        axis.set(title=title, xscale="log", yscale="log", ylim=(0.9 * kept.rmse.min(), top), xlim=(4, 125))
        axis.set_xticks([5, 10, 30, 100], ["5", "10", "30", "100"])
        axis.xaxis.minorticks_off()
        plain_numbers(axis.yaxis)
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    figure.supxlabel("ensemble size m (hollow, at the upper edge: a larger error)")
    figure.supylabel("analysis RMSE")
    legend_of_all(figure, loc="outside upper center", ncols=4)
    return figure


def forecast_skill(table: pd.DataFrame) -> Figure:
    """Errors of forecasts by their lead, from several kinds of states, relative to those from the first.

    Every other line is broad and lies below, so that two that coincide are both seen.

    Args:
        table: columns ``label``, ``lead``, ``rmse``, ``rmse_lo`` and ``rmse_hi``. The label that comes first is what
            the others are divided by: the truth.
    """
    figure, axis = new_figure(figsize=(WIDTH, 4.4))
    groups = list(table[table.lead > 0].groupby("label", sort=False))
    reference = groups[0][1].set_index("lead").rmse
    pens = pens_of(str(label) for label, _ in groups)
    for number, (pen, (label, rows)) in enumerate(zip(pens.values(), groups, strict=True)):
        row = rows.set_index("lead")
        style = {"linewidth": 1.2, "zorder": 3} if number % 2 else {"linewidth": 4.5, "alpha": 0.6, "zorder": 2}
        marks = {"marker": pen.marker, "markersize": 6, "markevery": (number % 3, 3)}
        axis.plot(row.rmse / reference, color=pen.color, label=label, **style, **marks)
    axis.set(xlabel="lead (cycles)", ylabel=f"error of the forecast / from {groups[0][0]}", yscale="log")
    axis.set_xticks([1, *range(5, int(table.lead.max()) + 1, 5)])
    plain_numbers(axis.yaxis)
    figure.legend(loc="outside lower center", ncols=2)
    return figure

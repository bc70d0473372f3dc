"""Figures of what things cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from assim_lib.figures.style import WIDTH, marked, new_figure, pen_of, pens_of, plain_numbers


def growth(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float], float | None]]]) -> Figure:
    """Cost against the number of sites, both logarithmic, one panel a kind of cost.

    Args:
        panels: label of the cost → name of the method → sites, costs, and the exponent, None where there is none.
    """
    figure, axes = new_figure(1, len(panels), figsize=(WIDTH, 4.4), squeeze=False)
    names = list(dict.fromkeys(name for costs in panels.values() for name in costs))
    pens = pens_of(names)
    for axis, (label, costs) in zip(axes[0], panels.items(), strict=True):
        for name, (sites, values, exponent) in costs.items():
            pen, text = pens[name], name if exponent is None else f"{name}: {exponent:.2f}"
            axis.loglog(sites, values, color=pen.color, marker=pen.marker, linestyle=pen.line, label=text)
        axis.set(xlabel="sites", ylabel=label)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def cost(table: pd.DataFrame) -> Figure:
    """RMSE against the time a cycle takes; a line joins the ensemble sizes of a method, numbers stand at its ends.

    Args:
        table: columns ``method``, ``m``, ``rmse`` and ``ms_per_cycle``.
    """
    figure, axis = new_figure(figsize=(WIDTH, 4.6))
    for method, group in table.groupby("method"):
        group = group.sort_values("m")
        joined = pen_of(method).line != "none"
        axis.loglog(
            group.ms_per_cycle, group.rmse, linestyle="-" if joined else "none", linewidth=0.8, **marked(method)
        )
        rows: list[Any] = list(group.itertuples())
        for row in (rows[0], rows[-1]) if joined and len(rows) > 1 else ():
            # The smaller ensemble has the larger error, as a rule: its number stands above, the other below.
            place = (0, 7) if row is rows[0] else (0, -16)
            point = (row.ms_per_cycle, row.rmse)
            axis.annotate(row.m, point, place, textcoords="offset points", ha="center", color=pen_of(method).color)
    axis.margins(y=0.12)
    axis.set(xlabel="milliseconds per cycle, as scored", ylabel="analysis RMSE")
    plain_numbers(axis.xaxis, axis.yaxis)
    figure.legend(title="number: ensemble size", loc="outside right upper")
    return figure

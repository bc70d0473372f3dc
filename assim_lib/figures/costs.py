"""Figures of what things cost."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from assim_lib.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    LINES,
    MARKERS,
    ORANGE,
    PURPLE,
    RED,
    WIDTH,
    legend_of_all,
    new_figure,
    plain_numbers,
    told_apart,
)

COLORS = (RED, ORANGE, GREEN, PURPLE, BLACK, BLUE)


def growth(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float], float | None]]]) -> Figure:
    """Cost against the number of sites, both logarithmic, one panel a kind of cost.

    Parameters
    ----------
    panels : label of the cost → name of the method → sites, costs, and the exponent, None where there is none.
    """
    figure, axes = new_figure(1, len(panels), figsize=(WIDTH, 3.8), squeeze=False)
    names = list(dict.fromkeys(name for costs in panels.values() for name in costs))
    pens = {name: pen for pen, name in told_apart(names, COLORS, LINES, MARKERS)}
    for axis, (label, costs) in zip(axes[0], panels.items(), strict=True):
        for name, (sites, values, _) in costs.items():
            pen = pens[name]
            axis.loglog(sites, values, color=pen.color, marker=pen.marker, linestyle=pen.line, label=name)
        axis.set(xlabel="sites", ylabel=label)
        axis.margins(x=0.16)
        lowest, highest = axis.get_ylim()
        below: dict[float, float] = {}
        # Upward, each label at the end of its line, or as far above the one below it as it is high.
        for name, (sites, values, exponent) in sorted(costs.items(), key=lambda cost: cost[1][1][-1]):
            if exponent is not None:
                end = sites[-1]
                below[end] = max(values[-1], below.get(end, 0.0) * (highest / lowest) ** 0.06)
                axis.annotate(f" {exponent:.2f}", (end, below[end]), color=pens[name].color, va="center")
        plain_numbers(axis.yaxis)
    legend_of_all(figure, loc="outside lower center", ncols=3)
    return figure

"""Figures of arrays: states and fields, matrices, moving pictures."""

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from assim_lib.figures.player import player
from assim_lib.figures.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    RED,
    SKY,
    WIDTH,
    legend_of_all,
    new_figure,
    told_apart,
)

Field = Float[np.ndarray, "cycle site"]
FRAME = 125  # milliseconds that each frame of a moving picture stays


def hovmoller(fields: dict[str, Field], step_size: float, limit: float | None = None) -> Figure:
    """Space–time diagrams side by side, on one colour scale; fields named "error" or "error, …" share one of their own.

    Args:
        fields: title → (cycle, site); NaN is left blank.
        step_size: time between cycles.
        limit: largest error of the error's scale; by default the largest that occurs.
    """
    figure, axes = new_figure(1, len(fields), figsize=(min(2.6 * len(fields), WIDTH), 3.4), sharey=True, squeeze=False)
    errors = [field for title, field in fields.items() if title.startswith("error")]
    values = [field for title, field in fields.items() if not title.startswith("error")]
    low = min((np.nanmin(field) for field in values), default=0.0)
    high = max((np.nanmax(field) for field in values), default=0.0)
    bound = limit or max((float(np.nanmax(np.abs(f))) for f in errors), default=1.0)
    for axis, (title, field) in zip(axes[0], fields.items(), strict=True):
        scale = (
            {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
            if title.startswith("error")
            else {"cmap": "viridis", "vmin": low, "vmax": high}
        )
        extent = (-0.5, field.shape[1] - 0.5, 0.0, len(field) * step_size)
        image = axis.imshow(field, origin="lower", extent=extent, **scale)
        axis.set(title=title, xlabel="site")
        figure.colorbar(image, ax=axis, location="bottom", shrink=0.9)
    axes[0, 0].set_ylabel("time (model units)")
    return figure


def climatology(truths: dict[str, Field], reach: int = 10) -> Figure:
    """How the values at a site are distributed over time, and how a state is correlated with its neighbours.

    Args:
        truths: label → (cycle, site).
        reach: largest distance of the correlations, in sites.
    """
    figure, (left, right) = new_figure(1, 2, figsize=(8, 3))
    right.axhline(0, color="#bbbbbb", linewidth=0.8)
    for pen, (label, truth) in told_apart(truths.items(), (BLUE, RED, GREEN)):
        left.hist(
            truth.ravel(), bins=60, density=True, color=pen.color, histtype="step", linewidth=1.5, linestyle=pen.line
        )
        left.axvline(truth.mean(), color=pen.color, linestyle=":")
        anomaly = truth - truth.mean()
        lags = np.arange(-reach, reach + 1)
        correlation = [(anomaly * np.roll(anomaly, -k, 1)).mean() / anomaly.var() for k in lags]
        mean = round(float(truth.mean()), 2) + 0.0  # no "-0"
        label = f"{label}: mean {mean:g}"
        right.plot(lags, correlation, color=pen.color, marker=pen.marker, linestyle=pen.line, markersize=4, label=label)
    left.set(xlabel="value at a site", ylabel="density")
    right.set(xlabel="distance in sites", ylabel="correlation")
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=len(truths))
    return figure


def matrices(
    named: dict[str, Float[np.ndarray, "row column"]], columns: str, rows: str | list[str], together: bool = False
) -> Figure:
    """Matrices side by side, each on a colour scale that is symmetric about zero; one of −1, 0 and 1 alone shows none.

    Args:
        named: title → (row, column).
        columns: what a column stands for.
        rows: what a row stands for, one text for all or one for each.
        together: whether all have one scale.
    """
    square = all(values.shape[0] == values.shape[1] for values in named.values())
    width = min(4.0, WIDTH / len(named))
    height = 0.9 * width if square else 2.4
    figure, axes = new_figure(1, len(named), figsize=(width * len(named), height), squeeze=False)
    texts = [rows] * len(named) if isinstance(rows, str) else rows
    for axis, (title, values), text in zip(axes[0], named.items(), texts, strict=True):
        bound = max(float(np.abs(one).max()) for one in (named.values() if together else [values]))
        image = axis.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="equal" if square else "auto")
        if not np.isin(values, (-1, 0, 1)).all():  # kinds, and no quantity
            figure.colorbar(image, ax=axis, shrink=0.8)
        axis.set(title=title, xlabel=columns, ylabel=text)
    return figure


def phase_plane(
    truth: Float[np.ndarray, "time 2"],
    observations: Float[np.ndarray, "cycle 2"],
    analysis: Float[np.ndarray, "cycle 2"],
    x_label: str,
    y_label: str,
) -> Figure:
    """Two variables against each other: the true path, what was observed of it, and the mean analysis.

    Args:
        truth: at as many times as make a smooth path; the others have one point a cycle.
    """
    figure, axis = new_figure(figsize=(WIDTH, 4.2))
    axis.plot(*truth.T, "-", color=GRAY, linewidth=0.9, label="truth")
    for seen, estimate in zip(observations, analysis, strict=True):
        axis.plot(*zip(seen, estimate, strict=True), "-", color=BLUE, linewidth=0.7, alpha=0.7)
    axis.plot(*observations.T, "o", color=BLUE, markersize=5, markerfacecolor="none", label="observations")
    axis.plot(*analysis.T, "s", color=RED, markersize=4, label="analysis")
    axis.set(xlabel=x_label, ylabel=y_label)
    figure.legend(loc="outside right upper")
    return figure


def tracking(
    truth: Field,
    observations: Field,
    ensembles: dict[str, Float[np.ndarray, "cycle member site"]],
    step_size: float,
    alt: str,
) -> HTML:
    """A moving picture of filters beside the truth, a panel each, with a button that stops it.

    Args:
        truth: (cycle, site), at the times of the observations.
        observations: NaN where nothing was observed.
        ensembles: title → (cycle, member, site).
        alt: the picture in words, for readers who do not see it.
    """
    # One layout for all frames: a constrained one would be solved anew for each.
    size = min(6.4 * len(ensembles), WIDTH), 3.2
    figure, axes = new_figure(1, len(ensembles), figsize=size, sharey=True, squeeze=False, layout="none")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.83, bottom=0.31, wspace=0.06)
    site, margin = np.arange(truth.shape[1]), 0.15 * np.ptp(truth)
    span = truth.min() - margin, truth.max() + margin
    moved: list[tuple[Line2D, Field]] = []
    for axis, ensemble in zip(axes[0], ensembles.values(), strict=True):
        several = ensemble.shape[1] > 1
        name = "mean of the members (thin)" if several else "estimate"
        for member in range(ensemble.shape[1] if several else 0):
            moved += [(line, ensemble[:, member]) for line in axis.plot(site, ensemble[0, member], color=SKY, lw=0.8)]
        for label, field, style in (
            (name, ensemble.mean(1), {"color": RED, "linewidth": 2}),
            ("truth, never shown", truth, {"color": BLACK, "linewidth": 2, "linestyle": "--"}),
            ("observations", observations, {"color": BLUE, "marker": "o", "markersize": 5, "linestyle": "none"}),
        ):
            moved += [(line, field) for line in axis.plot(site, field[0], label=label, **style)]
        axis.set(xlabel="site", ylim=span)
    axes[0, 0].set_ylabel("value")
    legend_of_all(figure, loc="lower center", ncols=3 if len(ensembles) > 1 else 2)

    frames = []
    for k in range(len(truth)):
        for line, field in moved:
            line.set_ydata(field[k])
        for axis, (title, ensemble) in zip(axes[0], ensembles.items(), strict=True):
            error = np.sqrt(np.mean((ensemble[k].mean(0) - truth[k]) ** 2))
            state = f"time {k * step_size:4.1f}    RMSE {error:.2f}"
            axis.set_title(f"{title}\n{state}" if title else state, loc="left", family="monospace")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    plt.close(figure)
    return player(frames, alt, FRAME)

"""The book's figures: one function a figure, one style for all.

Colours are those of Okabe & Ito, and two darker ones, which most colour-blind readers can tell apart; every figure has a white
background of its own, so that it survives a dark page.
"""

import base64
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from jaxtyping import Float
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
METHOD_COLORS = {
    "amortized": RED, "amortized_any": BLACK, "amortized_original": ORANGE, "amortized_ff": "#5b5b8c", "LETKF": BLUE,
    "iEnKS": GREEN, "EnKF-N": "#8a6d00", "4D-Var": PURPLE, "3D-Var": SKY, "Climatology": "#777777",
}  # fmt: skip
METHOD_NAMES = {
    "amortized": "learned", "amortized_any": "learned, for many settings", "amortized_original": "original",
    "amortized_ff": "learned, feed-forward",
}  # fmt: skip
STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "legend.frameon": False,
    "image.aspect": "auto",
    "image.interpolation": "nearest",
}
Field = Float[np.ndarray, "cycle site"]


def _named(method: Any) -> dict[str, Any]:
    """Colour and label of a method, the same in every figure."""
    return {"color": METHOD_COLORS.get(method, BLACK), "label": METHOD_NAMES.get(method, method)}


def _figure(*args: Any, **kwargs: Any) -> tuple[Figure, Any]:
    plt.rcParams.update(STYLE)
    return plt.subplots(*args, **kwargs)


def _plain_numbers(*axes: Any) -> None:
    """Write 0.3 on a logarithmic axis, not 3 · 10⁻¹."""
    for axis in axes:
        low, high = axis.get_view_interval()
        axis.set_minor_locator(LogLocator(subs=(2, 5) if high > 30 * low else (1.5, 2, 3, 4, 6)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")


def hovmoller(fields: dict[str, Field], step_size: float, limit: float | None = None) -> Figure:
    """Space–time diagrams side by side, on one colour scale; a field named "error" gets a scale of its own.

    Parameters
    ----------
    fields : title → (cycle, site); NaN is left blank.
    step_size : time between cycles.
    limit : largest error of the error's scale; by default the largest that occurs.
    """
    figure, axes = _figure(1, len(fields), figsize=(2.6 * len(fields), 3.4), sharey=True)
    values = [field for title, field in fields.items() if title != "error"]
    low, high = min(np.nanmin(f) for f in values), max(np.nanmax(f) for f in values)
    for axis, (title, field) in zip(np.atleast_1d(axes), fields.items(), strict=True):
        bound = limit or float(np.nanmax(np.abs(field)))
        scale = (
            {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
            if title == "error"
            else {"cmap": "viridis", "vmin": low, "vmax": high}
        )
        extent = (-0.5, field.shape[1] - 0.5, 0.0, len(field) * step_size)
        image = axis.imshow(field, origin="lower", extent=extent, **scale)
        axis.set(title=title, xlabel="site")
        figure.colorbar(image, ax=axis, location="bottom", shrink=0.9)
    np.atleast_1d(axes)[0].set_ylabel("time (model units)")
    return figure


def climatology(truths: dict[str, Field], reach: int = 10) -> Figure:
    """How the values at a site are distributed over time, and how a state is correlated with its neighbours.

    Parameters
    ----------
    truths : label → (cycle, site).
    reach : largest distance of the correlations, in sites.
    """
    figure, (left, right) = _figure(1, 2, figsize=(8, 3))
    right.axhline(0, color="#bbbbbb", linewidth=0.8)
    for color, (label, truth) in zip((BLUE, RED, GREEN), truths.items(), strict=False):
        left.hist(truth.ravel(), bins=60, density=True, color=color, histtype="step", linewidth=1.5)
        left.axvline(
            truth.mean(), color=color, linestyle=":", label=f"{label}: mean {round(float(truth.mean()), 2) + 0.0:g}"
        )
        anomaly = truth - truth.mean()
        lags = np.arange(-reach, reach + 1)
        correlation = [(anomaly * np.roll(anomaly, -k, 1)).mean() / anomaly.var() for k in lags]
        right.plot(lags, correlation, "o-", color=color, markersize=4, label=label)
    left.set(xlabel="value at a site", ylabel="density")
    right.set(xlabel="distance in sites", ylabel="correlation")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(truths), fontsize="small")
    return figure


def matrices(named: dict[str, Float[np.ndarray, "row column"]], columns: str, rows: str | list[str]) -> Figure:
    """Matrices side by side, each on a colour scale of its own that is symmetric about zero.

    Parameters
    ----------
    columns : what a column stands for.
    rows : what a row stands for, one text for all or one for each.
    """
    square = all(values.shape[0] == values.shape[1] for values in named.values())
    figure, axes = _figure(1, len(named), figsize=(4.0 * len(named), 3.6 if square else 2.4), squeeze=False)
    texts = [rows] * len(named) if isinstance(rows, str) else rows
    for axis, (title, values), text in zip(axes[0], named.items(), texts, strict=True):
        bound = float(np.abs(values).max())
        image = axis.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="equal" if square else "auto")
        figure.colorbar(image, ax=axis, shrink=0.8)
        axis.set(title=title, xlabel=columns, ylabel=text)
    return figure


def convergence(steps: Float[np.ndarray, " step"], errors: Float[np.ndarray, " step"], order: int) -> Figure:
    """Error of an integration against its step, beside the slope that its order promises."""
    figure, axis = _figure(figsize=(5.2, 3.2))
    axis.loglog(steps, errors, "o-", color=BLUE, label="measured")
    axis.loglog(steps, errors[-1] * (steps / steps[-1]) ** order, "--", color=ORANGE, label=f"order {order}")
    axis.set(xlabel="step (time units)", ylabel="RMS error")
    axis.set_xticks(steps, [f"1/{1 / step:g}" for step in steps])
    axis.minorticks_off()
    axis.legend()
    return figure


def by_value(
    series: dict[str, tuple[Float[np.ndarray, " sample"], Float[np.ndarray, " sample"]]],
    x_label: str,
    y_label: str,
    bins: int = 24,
) -> Figure:
    """Mean of one quantity given another, with the standard deviation of the first series as a band.

    Parameters
    ----------
    series : label → (given, quantity).
    """
    figure, axis = _figure(figsize=(6, 3.4))
    axis.axhline(0, color="#bbbbbb", linewidth=0.8)
    for number, (color, (label, (given, quantity))) in enumerate(zip((BLACK, RED, BLUE), series.items(), strict=False)):
        edges = np.quantile(given, np.linspace(0.001, 0.999, bins + 1))
        place = np.digitize(given, edges) - 1
        kept = [place == b for b in range(bins)]
        middle, mean = (np.array([values[k].mean() for k in kept]) for values in (given, quantity))
        axis.plot(middle, mean, color=color, linewidth=2, label=label)
        if number == 0:
            width = np.array([quantity[k].std() for k in kept])
            axis.fill_between(middle, mean - width, mean + width, color=color, alpha=0.12, linewidth=0)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.legend(fontsize="small")
    return figure


def influence(sizes: dict[str, Float[np.ndarray, " distance"]]) -> Figure:
    """Size of the model's derivative by distance, for several times.

    Parameters
    ----------
    sizes : label → sizes at the distances from -r to r, downstream positive.
    """
    figure, axis = _figure(figsize=(6, 3))
    for color, (label, size) in zip((SKY, BLUE, BLACK), sizes.items(), strict=False):
        reach = len(size) // 2
        axis.plot(np.arange(-reach, reach + 1), size, "o-", color=color, markersize=4, label=label)
    axis.set(xlabel="distance in sites, toward larger indices", ylabel="RMS derivative")
    axis.legend(fontsize="small")
    return figure


def error_growth(times: Float[np.ndarray, " time"], errors: Float[np.ndarray, "pair time"], noise: float) -> Figure:
    """Distance of trajectories that started almost alike, on a logarithmic scale."""
    figure, axis = _figure(figsize=(6, 3))
    axis.semilogy(times, errors.T, color=SKY, linewidth=0.8)
    axis.semilogy(times, np.exp(np.log(errors).mean(0)), color=BLUE, linewidth=2, label="geometric mean")
    axis.axhline(noise, color=ORANGE, linestyle="--", label="observation error σ")
    axis.set(xlabel="time (model units)", ylabel="RMS distance")
    axis.legend()
    return figure


def learning_curves(
    histories: dict[str, list[dict[str, float]]], references: dict[str, float], against: str = "core_seconds"
) -> Figure:
    """Validation RMSE while training, with the scores of other methods as horizontal lines.

    Parameters
    ----------
    histories : label → history of a run.
    references : label → RMSE.
    against : ``"core_seconds"``, ``"seconds"`` or ``"update"``.
    """
    figure, axis = _figure(figsize=(7, 3.6))
    for color, (label, history) in zip(cycle([RED, ORANGE, PURPLE, BLACK, GREEN]), histories.items(), strict=False):
        x = np.array([point[against] for point in history])
        axis.loglog(
            x / 60 if "seconds" in against else x, [p["validation_rmse"] for p in history], color=color, label=label
        )
    for style, (label, value) in zip(
        cycle(["--", ":", "-.", (0, (6, 1, 1, 1, 1, 1))]), references.items(), strict=False
    ):
        axis.axhline(value, color=BLUE, linestyle=style, linewidth=1, label=label)
    unit = {"core_seconds": "minutes of one core", "seconds": "minutes", "update": "updates"}[against]
    axis.set(xlabel=unit, ylabel="validation RMSE")
    _plain_numbers(axis.xaxis, axis.yaxis)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def error_and_spread(
    rmse: dict[str, Float[np.ndarray, " cycle"]], spread: Float[np.ndarray, " cycle"], noise: float
) -> Figure:
    """RMSE of each method, cycle by cycle from a cold start, and the first one's ensemble spread."""
    figure, axis = _figure(figsize=(8, 3.2))
    for color, (label, series) in zip([RED, BLUE, GREEN], rmse.items(), strict=False):
        axis.semilogy(series, color=color, linewidth=1.2, label=f"RMSE, {label}")
    axis.semilogy(spread, color=RED, linestyle=":", linewidth=1.2, label=f"spread, {next(iter(rmse))}")
    axis.axhline(noise, color=ORANGE, linestyle="--", linewidth=1, label="observation error σ")
    axis.set(xlabel="cycle", ylabel="RMSE, spread")
    _plain_numbers(axis.yaxis)
    axis.legend(fontsize="small", ncols=2)
    return figure


def phase_plane(
    truth: Float[np.ndarray, "cycle 2"],
    observations: Float[np.ndarray, "cycle 2"],
    analysis: Float[np.ndarray, "cycle 2"],
    x_label: str,
    y_label: str,
) -> Figure:
    """Two variables against each other: the true path, what was seen of it, and the mean analysis."""
    figure, axis = _figure(figsize=(6.2, 3.8))
    axis.plot(*truth.T, "-", color=BLACK, linewidth=0.6, label="truth")
    axis.plot(*observations.T, "o", color=ORANGE, markersize=3, label="observations")
    axis.plot(*analysis.T, "o", color=RED, markersize=3, label="analysis")
    axis.set(xlabel=x_label, ylabel=y_label)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def rank_histogram(frequencies: dict[str, Float[np.ndarray, " rank"]]) -> Figure:
    """Rank histograms side by side; a reliable ensemble follows the dashed line."""
    figure, axes = _figure(1, len(frequencies), figsize=(3.6 * len(frequencies), 2.8), sharey=True, squeeze=False)
    for axis, (label, values) in zip(axes[0], frequencies.items(), strict=True):
        axis.bar(np.arange(len(values)), values, width=1.0, color=SKY, edgecolor="white")
        axis.axhline(1 / len(values), color=BLACK, linestyle="--", linewidth=1)
        axis.set(title=label, xlabel="rank of the truth", xticks=np.arange(0, len(values), 2))
    axes[0, 0].set_ylabel("frequency")
    return figure


def scores(table: pd.DataFrame, noise: float) -> Figure:
    """RMSE of every row of the table of scores, with its confidence interval, best at the top.

    Parameters
    ----------
    table : rows of :func:`assim_lib.results.load_scores` in one setting, without the climatology. A run that broke down has no
        RMSE, and is left out.
    """
    table = table.dropna(subset="rmse").sort_values("rmse", ascending=False)
    figure, axis = _figure(figsize=(7, 0.34 * len(table) + 1.1))
    rows: list[Any] = list(table.itertuples())
    for y, row in enumerate(rows):
        color = METHOD_COLORS.get(str(row.method), BLACK)
        axis.plot([row.rmse_lo, row.rmse_hi], [y, y], color=color, linewidth=3, alpha=0.5)
        axis.plot(row.rmse, y, "o", color=color)
    names = [f"{r.label}, m = {r.m}" if str(r.method).startswith("amortized") else r.label for r in rows]
    axis.set_yticks(range(len(table)), names)
    axis.axvline(noise, color=ORANGE, linestyle="--", linewidth=1)
    axis.set(xlabel="analysis RMSE (dashed: observation error σ)", xscale="log")
    _plain_numbers(axis.xaxis)
    return figure


def headline(table: pd.DataFrame) -> Figure:
    """Where the learned filters stand between a small classical ensemble and the best that is known, one row a setting.

    Parameters
    ----------
    table : rows of :func:`assim_lib.tables.headline`, by the names of their settings.
    """
    figure, axis = _figure(figsize=(8.2, 0.5 * len(table) + 1.4))
    series = {
        "letkf10": ("LETKF, 10 members", "s", BLUE),
        "published": ("published, at most 30 members", "D", "#777777"),
        "reference": ("reference, 100 members", "^", GREEN),
        "learned": ("learned, at most 10 members", "o", RED),
    }
    for y, (_, row) in enumerate(table.iloc[::-1].iterrows()):
        axis.axhline(y, color="#dddddd", linewidth=1, zorder=0)
        for column, (label, marker, color) in series.items():
            axis.plot(
                row[column] / row.classical,
                y,
                marker,
                color=color,
                markersize=9 if column == "learned" else 6,
                markerfacecolor="white" if column in ("published", "letkf10") else color,
                label=label,
                linestyle="none",
            )
        axis.plot(
            [row.learned_lo / row.classical, row.learned_hi / row.classical], [y, y], color=RED, linewidth=3, alpha=0.5
        )
    axis.axvline(1.0, color=BLACK, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(table)), table.index[::-1])
    axis.set(
        xscale="log", xlabel="analysis RMSE / that of the best tuned classical filter of at most 30 members (dashed)"
    )
    _plain_numbers(axis.xaxis)
    entries = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4, fontsize="small")
    return figure


def spread_and_error(table: pd.DataFrame) -> Figure:
    """Spread against RMSE of everything with an ensemble; what knows its own error lies on the dashed line."""
    figure, axis = _figure(figsize=(5.2, 4.2))
    kept: pd.DataFrame = table.loc[table.spread > 0]
    for method, group in kept.groupby("method"):
        axis.plot(group.rmse, group.spread, "o", alpha=0.8, **_named(method))
    ends = np.array([kept[["rmse", "spread"]].min().min(), kept[["rmse", "spread"]].max().max()])
    axis.plot(ends, ends, color=BLACK, linestyle="--", linewidth=1)
    axis.fill_between(ends, 0.8 * ends, 1.25 * ends, color=BLACK, alpha=0.08, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="analysis RMSE", ylabel="spread")
    _plain_numbers(axis.xaxis, axis.yaxis)
    axis.legend(fontsize="small")
    return figure


def long_run(results: dict[str, Any]) -> Figure:
    """RMSE of filters that started cold, each in a run of its own: its first cycles, and block by block ever after."""
    figure, axes = _figure(1, 2, figsize=(9, 3.2), sharey=True)
    first, blocks = np.array(results["first"]), np.array(results["rmse"])
    axes[0].plot(first.T, color=SKY, linewidth=0.6)
    axes[0].plot(first.mean(0), color=RED, linewidth=1.8)
    axes[0].set(xlabel="cycle after a cold start", ylabel="analysis RMSE", yscale="log", title="the first cycles")
    axes[1].plot(results["block"] * (1 + np.arange(len(blocks))) / 1000, blocks, color=SKY, linewidth=0.6)
    axes[1].plot(results["block"] * (1 + np.arange(len(blocks))) / 1000, blocks.mean(1), color=RED, linewidth=1.8)
    axes[1].set(xlabel="thousand cycles", title=f"means over {results['block']} cycles")
    for axis in axes:
        axis.axhline(results["climatology"], color=BLACK, linestyle="--", linewidth=1)
    _plain_numbers(axes[0].yaxis)
    return figure


def transfer(table: pd.DataFrame) -> Figure:
    """RMSE in each setting as a share of the climatology's there, for each filter; below 1 something is known of the truth."""
    settings = list(dict.fromkeys(table.setting))
    figure, axis = _figure(figsize=(8, 0.8 + 0.27 * len(settings)))
    colors = cycle((RED, BLUE, GREEN, ORANGE, PURPLE, BLACK, SKY))
    for color, marker, (name, rows) in zip(colors, cycle("osD^vP*"), table.groupby("filter", sort=False), strict=False):
        places, share = [settings.index(setting) for setting in rows.setting], rows.rmse / rows.climatology
        error = 2 * rows.standard_error / rows.climatology
        axis.errorbar(
            share, places, xerr=error, fmt=marker, color=color, markersize=5, elinewidth=1, alpha=0.85, label=name
        )
    axis.axvline(1, color=BLACK, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(settings)), settings)
    axis.invert_yaxis()
    axis.set(xlabel="RMSE / that of the climatology", xscale="log")
    _plain_numbers(axis.xaxis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=1, fontsize="small")
    return figure


def variants(table: pd.DataFrame, reference: float) -> Figure:
    """RMSE of each variant with its 95 % interval, one point a seed, beside a dashed line at the reference.

    Parameters
    ----------
    table : rows of :func:`assim_lib.ablation.ablation_table`; variants stand in the order of the rows.
    """
    names = list(dict.fromkeys(table.variant))
    figure, axis = _figure(figsize=(7, 0.8 + 0.25 * len(names)))
    for beside, (color, marker, (seed, rows)) in enumerate(
        zip((BLUE, ORANGE, GREEN), "osD", table.groupby("seed"), strict=False)
    ):
        error = [rows.rmse - rows.rmse_lo, rows.rmse_hi - rows.rmse]
        places = [names.index(name) + 0.2 * beside for name in rows.variant]
        axis.errorbar(
            rows.rmse, places, xerr=error, fmt=marker, color=color, markersize=5, elinewidth=1, label=f"seed {seed}"
        )
    axis.axvline(reference, color=BLACK, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="RMSE on validation data")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def by_size(tables: dict[str, pd.DataFrame]) -> Figure:
    """RMSE against ensemble size, one panel a setting; learned filters are stars, 3D-Var and 4D-Var horizontal lines.

    Parameters
    ----------
    tables : title → rows of the table of scores, one for each method and size.
    """
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    figure, axes = _figure(rows, columns, figsize=(3.0 * columns, 2.7 * rows), squeeze=False)
    for axis, (title, table) in zip(axes.flat, tables.items(), strict=False):
        kept: pd.DataFrame = table.dropna(subset="rmse")
        for method, group in kept.sort_values(by="m").groupby("method"):
            if str(method).startswith("amortized"):
                axis.plot(group.m, group.rmse, "*", markersize=9, **_named(method))
            elif (group.m == 1).all():
                axis.axhline(group.rmse.iloc[0], linestyle="--", linewidth=1.2, **_named(method))
            else:
                axis.plot(group.m, group.rmse, "o-", markersize=4, **_named(method))
        axis.set(title=title, xscale="log", yscale="log")
        axis.set_xticks([1, 5, 10, 30, 100], ["1", "5", "10", "30", "100"])
        axis.minorticks_off()
        _plain_numbers(axis.yaxis)
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    figure.supxlabel("ensemble size", fontsize="medium")
    figure.supylabel("analysis RMSE", fontsize="medium")
    entries = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=6, fontsize="small")
    return figure


def sensitivity(trials: pd.DataFrame, parameters: dict[str, str]) -> Figure:
    """What a wrong value of one setting costs, all others being the best: RMSE over that of the best trial.

    Parameters
    ----------
    trials : rows of :func:`assim_lib.tuning.trial_table`, all over the same cycles. One that diverged is a cross at the
        upper edge.
    parameters : name of a setting → what it is called.
    """
    figure, axes = _figure(1, len(parameters), figsize=(3.1 * len(parameters), 3.2), sharey=True, squeeze=False)
    highest = 2.0
    styles = dict(zip(sorted(trials.m.unique()), ("-", "--", "-.", ":", "-", "--"), strict=False))
    for axis, (name, text) in zip(axes[0], parameters.items(), strict=True):
        for _, group in trials.dropna(subset=name).groupby("contender"):
            best = group.loc[group.rmse.idxmin()] if group.rmse.notna().any() else None
            if best is None:
                continue
            others = [key for key in ("infl", "loc_rad", "rot", "Lag", "xB", "B") if key in group and key != name]
            same: pd.DataFrame = group.loc[(group[others].isna() | (group[others] == best[others])).all(axis=1)]
            same = same.sort_values(by=name)
            if len(same) < 2:
                continue
            height = (same.rmse / best.rmse).clip(upper=highest).fillna(highest)
            color, method, m = METHOD_COLORS.get(best.method, BLACK), best.method, best.m
            axis.plot(same[name], height, styles[m], color=color, label=f"{method} N={m}" if m > 1 else method)
            kept = same.rmse.notna()
            axis.plot(same[name][kept], height[kept], "o", color=color, markersize=4)
            axis.plot(same[name][~kept], height[~kept], "x", color=color, markersize=7)
        axis.set(xlabel=text)
        if name in ("xB", "loc_rad"):
            axis.set_xscale("log")
            _plain_numbers(axis.xaxis)
    axes[0, 0].set_ylabel("RMSE / best RMSE")
    entries = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=5, fontsize="small")
    return figure


def cost(table: pd.DataFrame) -> Figure:
    """RMSE against the time a cycle takes, every method with its ensemble size."""
    figure, axis = _figure(figsize=(7, 3.6))
    for method, group in table.groupby("method"):
        rows: Any = group.itertuples()
        axis.loglog(group.ms_per_cycle, group.rmse, "o", **_named(method))
        for row in rows:
            axis.annotate(f" {row.m}", (row.ms_per_cycle, row.rmse), fontsize="small")
    axis.set(xlabel="milliseconds per cycle", ylabel="analysis RMSE")
    _plain_numbers(axis.xaxis, axis.yaxis)
    figure.legend(title="number: ensemble size", title_fontsize="small", fontsize="small", loc="outside right upper")
    return figure


def tracking(
    truth: Field, observations: Field, ensemble: Float[np.ndarray, "cycle member site"], step_size: float, alt: str
) -> HTML:
    """A moving picture of a filter that finds the truth, as an image to show in a notebook.

    Parameters
    ----------
    observations : NaN where nothing was seen.
    alt : the picture in words, for readers who do not see it.
    """
    # One layout for all frames: a constrained one would be solved anew for each.
    figure, axis = _figure(figsize=(7.2, 3.2), dpi=72, layout="none")
    figure.subplots_adjust(left=0.08, right=0.98, top=0.9, bottom=0.16)
    site = np.arange(truth.shape[1])
    members = axis.plot(site, ensemble[0].T, color=SKY, linewidth=0.8)
    (mean,) = axis.plot(site, ensemble[0].mean(0), color=RED, linewidth=2, label="filter: mean of the members (thin)")
    (true,) = axis.plot(
        site, truth[0], color=BLACK, linewidth=2, linestyle="--", label="truth, never shown to the filter"
    )
    (seen,) = axis.plot(site, observations[0], "o", color=ORANGE, markersize=4, label="observations")
    axis.set(xlabel="site", ylabel="value", ylim=(-12, 18))
    axis.legend(loc="upper right", ncols=3, fontsize="small", handlelength=1.2, columnspacing=1)

    def draw(k: int):
        for line, member in zip(members, ensemble[k], strict=True):
            line.set_ydata(member)
        for line, values in ((mean, ensemble[k].mean(0)), (true, truth[k]), (seen, observations[k])):
            line.set_ydata(values)
        error = np.sqrt(np.mean((ensemble[k].mean(0) - truth[k]) ** 2))
        axis.set_title(f"time {k * step_size:4.1f}    RMSE {error:.2f}", loc="left", family="monospace")

    with TemporaryDirectory() as folder:
        path = Path(folder) / "tracking.gif"
        FuncAnimation(figure, draw, frames=len(truth)).save(path, PillowWriter(fps=8))
        picture = base64.b64encode(path.read_bytes()).decode()
    plt.close(figure)
    return HTML(f'<img alt="{alt}" style="background: white; max-width: 100%" src="data:image/gif;base64,{picture}">')

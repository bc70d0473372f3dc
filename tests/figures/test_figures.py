"""Every figure can be drawn and read: labels, lines that differ without their colours, text that is large enough."""

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from assim_lib import figures
from assim_lib.figures import fields
from assim_lib.figures import trials as figures_of_trials
from assim_lib.figures.style import ANALYSIS_COLORS, METHOD_NAMES, METHOD_PENS, WIDTH, pens_of

random = np.random.default_rng(0)
CYCLES, SITES, MEMBERS = 30, 12, 5
truth = 5.0 * random.standard_normal((CYCLES, SITES))
analysis = truth + 0.3
observations = np.where(random.random(truth.shape) < 0.5, truth, np.nan)
ensemble = analysis[:, None] + random.standard_normal((CYCLES, MEMBERS, SITES))
error = np.geomspace(3.0, 0.3, CYCLES)

methods = [(method, m) for method in METHOD_PENS for m in ((1,) if method in ("3D-Var", "4D-Var") else (5, 10))]
scores = pd.DataFrame(methods, columns=["method", "m"]).assign(label=lambda t: t.method)
scores["rmse"] = np.linspace(0.2, 1.5, len(scores))
scores["spread"] = 0.9 * scores.rmse
scores["ms_per_cycle"] = np.geomspace(0.1, 30, len(scores))
scores["rmse_lo"], scores["rmse_hi"] = 0.95 * scores.rmse, 1.05 * scores.rmse
ours = scores.method.str.startswith("amortized")
scores["kind"] = ours.map({True: "ours, with a Kalman part", False: "classical, tuned"})
scores["untrained_rmse"] = 1.1 * scores.rmse
headline = pd.DataFrame(1.0, ["L96, σ = 1", "KS, σ = 1"], ["classical", "letkf10", "reference", "untrained"])
headline[["trained", "scratch"]] = 0.8, float("nan")
headline["helped"] = [True, False]
history = [{"update": k, "seconds": 9.0 * k, "validation_rmse": 1 / k} for k in range(1, 50)]
transfer = pd.DataFrame(product("abc", ["as trained", "σ = 2"]), columns=["filter", "change"])
transfer = transfer.assign(rmse=0.5, standard_error=0.02, climatology=3.6)
variants = pd.DataFrame(product(["recipe", "lag 0"], range(4)), columns=["variant", "seed"])
on_grid = pd.DataFrame(product([5, 10], [0.5, 1.0], range(2)), columns=["m", "noise", "seed"])
on_grid = on_grid.assign(rmse=0.9, rmse_lo=0.8, rmse_hi=1.0)
variants = variants.assign(rmse=0.9, rmse_lo=0.8, rmse_hi=1.0)
ages = pd.DataFrame(product(["mask in order", "random order"], range(4)), columns=["filter", "age"])
ages = ages.assign(rmse=1.2, bias=-0.3)
forecasts = pd.DataFrame(product(["the truth", "LETKF m=30", "hybrid, lag 0"], range(5)), columns=["label", "lead"])
forecasts = forecasts.assign(rmse=0.2 + forecasts.lead, rmse_lo=0.1, rmse_hi=forecasts.lead + 0.3)
trials = pd.DataFrame(product(["LETKF", "EnKF-N"], [10, 20], [1.0, 1.1, 1.3], [2.0, 40.0]))
trials = trials.set_axis(["method", "m", "infl", "loc_rad"], axis=1).assign(rmse=lambda t: t.infl + t.loc_rad)
trials["contender"] = trials.method + trials.m.astype(str)
trials.loc[(trials.infl == 1.3) & (trials.m == 20), "rmse"] = np.nan

DRAWN: dict[str, Callable[[], Figure]] = {
    "LiveCurve": lambda: live_curve([]).figure,
    "by_distance": lambda: figures.by_distance({k: np.ones(7) for k in "abc"}, "distance", "size"),
    "by_size": lambda: figures.by_size({"L96": scores, "KS": scores, "VL20": scores, "two-level": scores}),
    "by_value": lambda: figures.by_value({k: (truth[0], analysis[0]) for k in "abc"}, "X", "error", bins=4),
    "climatology": lambda: figures.climatology({k: truth for k in "abc"}, reach=3),
    "convergence": lambda: figures.convergence(0.5 ** np.arange(1, 4), 0.1 ** np.arange(1, 4), 4),
    "cost": lambda: figures.cost(scores),
    "error_and_spread": lambda: figures.error_and_spread({"a": error, "b": error, "c": error}, {"a": 2 * error}, 1.0),
    "forecast_skill": lambda: figures.forecast_skill(forecasts),
    "error_by_age": lambda: figures.error_by_age(ages),
    "error_growth": lambda: figures.error_growth(np.arange(CYCLES) / 2, np.stack([error, 2 * error]), 1.0),
    "headline": lambda: figures.headline(headline),
    "hovmoller": lambda: figures.hovmoller(
        {"truth": truth, "observations": observations, "analysis": analysis, "error": analysis - truth}, 0.1, limit=2.0
    ),
    "learning_curves": lambda: figures.learning_curves(
        {f"filter {k}": history for k in range(8)}, {f"LETKF {k}": k / 10 for k in range(1, 5)}, "update"
    ),
    "long_run": lambda: figures.long_run(np.tile(error, (3, 1)), np.full((9, 3), 0.3), 1000, 3.6),
    "matrices": lambda: figures.matrices({k: truth for k in "ab"}, "site", ["cycle", "number"]),
    "phase_plane": lambda: figures.phase_plane(truth[:, :2], observations[:, :2], analysis[:, :2], "x", "z"),
    "rank_histogram": lambda: figures.rank_histogram({"a": np.full(11, 1 / 11), "b": np.full(6, 1 / 6)}),
    "scoreboard": lambda: figures.scoreboard(scores, 1.0),
    "growth": lambda: figures.growth({"ms": {"a": ([40.0, 400.0], [1.0, 2.0], 0.3), "b": ([40.0], [1.0], None)}}),
    "sensitivity": lambda: figures.sensitivity(trials, {"infl": "inflation", "loc_rad": "radius"}, ["loc_rad"]),
    "spread_and_error": lambda: figures.spread_and_error(scores),
    "tracking": lambda: frame(),
    "transfer": lambda: figures.transfer(transfer),
    "grid_scores": lambda: figures.grid_scores(on_grid, "noise", "m", {"noise": "σ", "m": "members"}),
    "scaling": lambda: figures.scaling({label: {1: 1.0, 10: 8.0, 100: 20.0} for label in ("10", "100")}),
    "variants": lambda: figures.variants(variants, 0.9),
    "work_precision": lambda: figures.work_precision({k: [(40, 1.0), (80, 0.1)] for k in "abcd"}, "cost", "error"),
}


def frame() -> Figure:
    """The figure of the moving picture, at its last frame."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields.plt, "close", lambda figure: None)
        figures.tracking(truth[:2], observations[:2], {"a": ensemble[:2], "b": ensemble[:2, :1]}, 0.1, alt="")
    return plt.gcf()


def live_curve(shown: list[tuple[str, Figure]]) -> figures.LiveCurve:
    """A curve of three points; what a notebook would be told to show is appended to the list."""

    class Handle:
        def update(self, figure: Figure) -> None:
            shown.append(("update", figure))

    def display(figure: Figure, display_id: bool) -> Handle:
        shown.append(("display", figure))
        return Handle()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_of_trials, "display", display)
        curve = figures.LiveCurve(100, {"climate": 3.6, "observation error σ": 1.0})
        for update, rmse in ((0, 5.1), (50, 0.5), (100, 0.4)):
            curve.add(update, rmse)
    return curve


@pytest.fixture(scope="module", params=DRAWN)
def figure(request: pytest.FixtureRequest) -> Iterator[Figure]:
    plt.switch_backend("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = DRAWN[request.param]()
        drawn.canvas.draw()
    yield drawn
    plt.close("all")


def panels(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]


def look(line: Line2D) -> tuple[object, ...]:
    """What tells a line apart without its colour."""
    hollow = line.get_markerfacecolor() in ("none", "white")
    dashes = str(line._unscaled_dash_pattern)  # matplotlib has no public name for them
    return line.get_marker(), hollow, line.get_linestyle(), dashes


def test_every_figure_is_drawn_here():
    assert sorted(DRAWN) == sorted(figures.__all__)


def test_axes_say_what_they_show(figure: Figure):
    """Those on the left also what is upward, by a label or by the name of each row."""
    for axis in panels(figure):
        assert axis.get_xlabel() or figure.get_supxlabel()
    left = panels(figure)[0]
    rows = [text.get_text() for text in left.get_yticklabels()]
    assert left.get_ylabel() or figure.get_supylabel() or all(re.search(r"[^\W\d]", row) for row in rows)


def test_lines_differ_without_their_colours(figure: Figure):
    """All that a legend names; a bundle of thin lines has no names."""
    for axis in panels(figure):
        handles, labels = axis.get_legend_handles_labels()
        lines = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
        named = {label: look(line) for label, line in zip(labels, lines, strict=True) if isinstance(line, Line2D)}
        assert len(set(named.values())) == len(named), named


def test_text_can_be_read_on_a_page(figure: Figure):
    """Nine points at 96 dots an inch, which is what a browser shows; and no browser has to shrink the picture."""
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert min(text.get_fontsize() * figure.dpi / 96 for text in texts) >= 9
    assert figure.get_tightbbox().width <= WIDTH + 0.2


def test_every_method_has_a_mark_of_its_own():
    assert len({pen.marker for pen in METHOD_PENS.values()}) == len({pen.color for pen in METHOD_PENS.values()})
    assert METHOD_NAMES.keys() <= METHOD_PENS.keys()


def test_a_moving_picture_stands_in_the_page_itself():
    filters = {"untrained": ensemble[:3], "trained": analysis[:3, None]}
    html = figures.tracking(truth[:3], observations[:3], filters, 0.1, alt='a "bundle" <of members>').data
    assert 'alt="a &quot;bundle&quot; &lt;of members&gt;"' in html
    assert "Pause" in html
    assert 'max="2"' in html
    strip = Image.open(io.BytesIO(base64.b64decode(html.split("base64,")[1].split('"')[0])))
    width, height = map(int, re.search(r"aspect-ratio: (\d+) / (\d+)", html).groups())
    assert strip.size == (width, 3 * height)


def test_a_live_curve_is_one_picture_that_changes():
    shown: list[tuple[str, Figure]] = []
    curve = live_curve(shown)
    assert shown == [("display", curve.figure), ("update", curve.figure), ("update", curve.figure)]
    assert curve.figure.axes[0].lines[0].get_xydata().tolist() == [[0, 5.1], [50, 0.5], [100, 0.4]]
    assert not plt.fignum_exists(curve.figure.number)  # a notebook shows what is open once more


def test_one_hyperparameter_varies_and_the_others_are_the_best():
    """Whatever the other columns are called."""
    figure = figures.sensitivity(trials.rename(columns={"loc_rad": "reach"}), {"infl": "inflation"})
    line = next(line for line in figure.axes[0].lines if line.get_label() == "LETKF m=10")
    np.testing.assert_allclose(line.get_xydata(), [[1.0, 1.0], [1.1, 3.1 / 3.0], [1.3, 3.3 / 3.0]])


def test_a_bias_has_its_sign_and_a_panel_of_its_own():
    figure = figures.error_by_age(pd.DataFrame({"age": [1, 0], "rmse": [2.0, 1.0], "bias": [-0.2, 0.1]}))
    error, bias = (next(iter(axis.lines)).get_ydata().tolist() for axis in figure.axes)
    assert [error, bias] == [[1.0, 2.0], [0.1, -0.2]]


def test_what_is_far_above_all_else_is_cut_off():
    """A filter that begins knowing nothing would press the others into a line."""
    begun = [{"update": k, "validation_rmse": error} for k, error in ((1, 9.0), (2, 0.6), (3, 0.5))]
    axis = figures.learning_curves({"yours": begun}, {"LETKF m=10": 0.3}, "update").axes[0]
    assert axis.get_ylim()[0] < 0.3
    assert 0.6 < axis.get_ylim()[1] < 1.0


def test_names_of_lines_that_coincide_stand_one_above_the_other():
    lines = {f"LETKF m={m}": 0.3 + m / 1e4 for m in (10, 20, 30)}
    texts = figures.learning_curves({"yours": history}, lines, "update").axes[0].texts
    heights = sorted(text.get_position()[1] for text in texts)
    assert len(heights) == 3
    assert min(np.diff(heights)) > 0.03  # of the height of the axes


def test_a_filter_has_one_color_in_all_figures():
    labels = [
        "yours",
        "hybrid, lag 0",
        "LETKF m=30",
        "LETKF m=30, corrected model",
        "hybrid, lag 3",
        "recurrent, lag 3",
    ]
    pens = pens_of([*labels, "recurrent, lag 3, clean_analysis"])
    assert len({pen.color for pen in pens.values()}) == len(pens)
    for label, color in (
        ("hybrid, lag 0", ANALYSIS_COLORS["hybrid"]),
        ("LETKF m=30", METHOD_PENS["LETKF"].color),
        ("LETKF m=30, corrected model", METHOD_PENS["LETKF corrected"].color),
        ("recurrent, lag 3, clean_analysis", METHOD_PENS["amortized_clean_analysis"].color),
    ):
        assert pens[label].color == color
    history = [{"cycles": 1e6, "validation_rmse": 1.0}, {"cycles": 2e6, "validation_rmse": 0.5}]
    (axis,) = figures.learning_curves({label: history for label in labels[:2]}, {}).axes
    assert {line.get_label(): line.get_color() for line in axis.lines} == {n: pens[n].color for n in labels[:2]}


def test_matrices_have_a_scale_unless_they_hold_kinds_alone():
    kinds, quantities = np.array([[-1.0, 0.0], [1.0, 0.0]]), np.array([[0.5, 0.0], [1.0, 2.0]])
    assert len(figures.matrices({"kinds": kinds, "quantities": quantities}, "column", "row").axes) == 2 + 1
    own, shared = (
        [axis.images[0].get_clim()[1] for axis in figures.matrices(named, "column", "row", together).axes[:2]]
        for named, together in (({"a": quantities, "b": 3 * quantities}, one) for one in (False, True))
    )
    assert (own, shared) == ([2.0, 6.0], [6.0, 6.0])


def test_an_error_above_a_panel_stands_at_its_edge():
    table = pd.DataFrame({"kind": "classical, tuned", "method": "iEnKS", "m": [10, 20], "rmse": [3.0, 0.2]})
    axis = figures.by_size({"L96": table}, highest=4.0).axes[0]
    assert axis.get_ylim()[1] == pytest.approx(0.8)
    assert [line.get_ydata().tolist() for line in axis.lines if line.get_markerfacecolor() == "white"] == [[0.8]]

"""What the figures share: colours, markers, line styles, names of methods, and numbers on axes.

Colours are those of Okabe & Ito, and some darker ones, which most colour-blind readers can tell apart. Lines that a
legend names differ in marker or style as well. Every figure has a white background of its own, so that it survives a
dark page.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

T = TypeVar("T")

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GRAY = "#0072B2", "#D55E00", "#CC79A7", "#777777"

# Dashes in units of the line's width.
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (10, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

WIDTH = 8.2  # inches: the text of a page; a browser would shrink what is wider, and its text with it

# Text has matplotlib's 10 points in every place: at 90 dots an inch, 9.4 points of a page.
STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "figure.labelsize": "medium",
    "legend.fontsize": "medium",
    "legend.frameon": False,
    "legend.title_fontsize": "medium",
    "image.aspect": "auto",
    "image.interpolation": "nearest",
}


class Pen(NamedTuple):
    """What one line is drawn with."""

    color: str
    marker: str
    line: Any


# Where the axis is the size of the ensemble, learned filters are marks without a line.
METHOD_PENS = {
    "amortized": Pen(RED, "*", "none"),
    "amortized_any": Pen(BLACK, "P", "none"),
    "amortized_original": Pen(ORANGE, "X", "none"),
    "amortized_ff": Pen("#5b5b8c", "p", "none"),
    "amortized_clean_analysis": Pen("#c71585", ">", "none"),
    "LETKF": Pen(BLUE, "o", "-"),
    "LETKF corrected": Pen("#2f4b7c", "h", "--"),
    "iEnKS": Pen(GREEN, "s", "-"),
    "EnKF-N": Pen("#8a6d00", "^", "-"),
    "4D-Var": Pen("#5e3c99", "D", ":"),
    "3D-Var": Pen(SKY, "v", "--"),
    "Climatology": Pen(GRAY, "d", "-."),
}
# A curve that a label names has the colour of its analysis wherever it is drawn; in scores, kinds have one each.
ANALYSIS_COLORS = {
    "extended": RED,
    "covariant": ORANGE,
    "hybrid": PURPLE,
    "recurrent": GREEN,
    "gated": SKY,
    "original": "#8a6d00",
}
OTHER_COLORS = (BLACK, RED, GREEN, PURPLE)  # and one of another name has one of these
METHOD_NAMES = {
    "amortized": "learned",
    "amortized_any": "learned, for many settings",
    "amortized_original": "the paper's update",
    "amortized_ff": "learned, feed-forward",
    "amortized_clean_analysis": "learned from the truth",
}


def pen_of(method: Any) -> Pen:
    """The pen of a method, the same in every figure; black circles for one that has none."""
    return METHOD_PENS.get(method, Pen(BLACK, "o", "-"))


def marked(method: Any) -> dict[str, Any]:
    """Colour, marker and label of a method, as keyword arguments of ``plot``."""
    pen = pen_of(method)
    size = 9 if pen.marker == "*" else 6  # a star fills little of its square
    return {"color": pen.color, "marker": pen.marker, "markersize": size, "label": METHOD_NAMES.get(method, method)}


def told_apart(
    items: Iterable[T], colors: Sequence[str], lines: Sequence[Any] = LINES, markers: Sequence[str] = MARKERS
) -> Iterator[tuple[Pen, T]]:
    """Each item with a pen of its own; colours, line styles and markers start again where they end."""
    for color, marker, line, item in zip(cycle(colors), cycle(markers), cycle(lines), items, strict=False):
        yield Pen(color, marker, line), item


def color_of(label: str) -> str | None:
    """The colour of the analysis or the method that a label begins with; None where it begins with another word."""
    if "clean_analysis" in label:
        return METHOD_PENS["amortized_clean_analysis"].color
    name = label.split(" ")[0].rstrip(",")
    method = METHOD_PENS.get("LETKF corrected" if "corrected" in label else name)
    return ANALYSIS_COLORS.get(name) or (method and method.color)


def pens_of(labels: Iterable[str]) -> dict[str, Pen]:
    """A pen for each label: its own colour, see :func:`color_of`, in another shade each time; else one of the others.

    Markers, and then lines, are as none before.
    """
    others, used, pens = cycle(OTHER_COLORS), Counter[str](), {}
    for number, label in enumerate(labels):
        color = color_of(label) or next(others)
        line = LINES[number // len(MARKERS) % len(LINES)]
        pens[label] = Pen(_shade(color, used[color]), MARKERS[number % len(MARKERS)], line)
        used[color] += 1
    return pens


def _shade(color: str, number: int) -> str:
    """A colour, then darker, then lighter, and again."""
    if number % 3 == 0:
        return color
    share, toward = (0.45, 0.0) if number % 3 == 1 else (0.5, 1.0)
    red, green, blue = ((1 - share) * part + share * toward for part in to_rgb(color))
    return to_hex((red, green, blue))


def name_lines(axis: Axes, values: Mapping[str, float], color: str) -> None:
    """Write the names of horizontal lines at their right ends, one above the other where lines are close.

    Call it when the limits of the axes are settled.
    """
    to_axes = axis.transData + axis.transAxes.inverted()
    apart = 13 * axis.figure.dpi / 72 / axis.get_window_extent().height  # 13 points: a line of text
    ends = {label: float(to_axes.transform((1.0, value))[1]) for label, value in values.items()}
    inside = sorted((end, label) for label, end in ends.items() if 0 <= end <= 1)
    places = [end for end, _ in inside]
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + apart)
    highest = 1.0
    for k in reversed(range(len(places))):
        places[k] = min(places[k], highest)
        highest = places[k] - apart
    line = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
    for (end, label), place in zip(inside, places, strict=True):
        ends_at, stands_at = (1.0, end), (1.03, place)
        parts = "axes fraction"
        axis.annotate(label, ends_at, stands_at, parts, parts, arrowprops=line, va="center", color=color)


def new_figure(*args: Any, **kwargs: Any) -> tuple[Figure, Any]:
    """``plt.subplots`` in the book's style, which stays set: notebooks draw a figure after the cell has run."""
    plt.rcParams.update(STYLE)
    return plt.subplots(*args, **kwargs)


def legend_of_all(figure: Figure, **kwargs: Any) -> None:
    """One legend for all panels of a figure, each label once."""
    entries: dict[Any, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), **kwargs)


def plain_numbers(*axes: Any) -> None:
    """Write 0.3 on a logarithmic axis, not 3 · 10⁻¹."""
    for axis in axes:
        low, high = axis.get_view_interval()
        subs = (2, 5) if high > 30 * low else (1.5, 2, 3, 4, 6) if high > 4 * low else (1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
        axis.set_minor_locator(LogLocator(subs=subs))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")

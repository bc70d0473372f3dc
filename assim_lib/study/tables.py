"""Numbers and tables as a reader wants them: few digits, intervals in brackets, the best in bold, words for gaps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from assim_lib.study.results import TAUGHT, best_of

if TYPE_CHECKING:
    from IPython.display import Markdown

NUMBER = r"[*+\-–.]*\d|–$"  # what a column of numbers has, on the right
CLASSICAL_MEMBERS = 30  # of a rival; what has more is a reference


def short(error: float) -> str:
    """An error with three digits behind the point and none before it, where that is zero; a dash for NaN."""
    return "–" if pd.isna(error) else f"{error:.3f}".removeprefix("0")


def with_interval(error: float, low: float = math.nan, high: float = math.nan) -> str:
    """An error with its interval where that is given, ``.210 [.206, .213]``; a dash for NaN."""
    return short(error) if pd.isna(error) or pd.isna(low) else f"{short(error)} [{short(low)}, {short(high)}]"


def intervals(table: pd.DataFrame, name: str = "rmse") -> list[str]:
    """A column of errors with the bounds beside it, ``…_lo`` and ``…_hi``, as text."""
    return [with_interval(*row) for row in table[[name, f"{name}_lo", f"{name}_hi"]].itertuples(index=False)]


def markdown(table: pd.DataFrame, caption: str, best: Sequence[str] | None = None) -> Markdown:
    """A table with its caption; the first column is the index.

    Args:
        table: numbers, rounded here, or text that is ready.
        best: columns that compete in each row: the smallest number among them is bold, and what reads the same.
    """
    rows = table.astype(object)
    for place in range(len(rows)):
        cells: dict[Any, Any] = table.iloc[place].to_dict()
        numbers = [cells[name] for name in best or () if not pd.isna(cells[name])]
        for column, (name, value) in enumerate(cells.items()):
            text = short(value) if isinstance(value, float) else str(value)
            winner = len(numbers) > 1 and name in (best or ()) and text == short(min(numbers))
            rows.iat[place, column] = f"**{text}**" if winner else text
    right = [all(re.match(NUMBER, cell) for cell in rows.iloc[:, column]) for column in range(rows.shape[1])]
    lines = [["", *map(str, rows.columns)], [":---", *("---:" if number else ":---" for number in right)]]
    lines += [[str(row[0]), *map(str, row[1:])] for row in rows.itertuples()]
    from IPython.display import Markdown  # late: commands read scores where there is no notebook

    return Markdown("\n".join([f"*{caption}*", "", *(f"| {' | '.join(line)} |" for line in lines)]))


def each_kind(scores: pd.DataFrame) -> pd.DataFrame:
    """Of scores in one setting the row of the best run of each analysis or method, on validation data.

    Runs with a hundred members, a reference, are a kind of their own, and so is a filter that the truth has taught.

    Args:
        scores: rows of the table of scores.
    """
    kinds = scores.analysis.where(scores.method != TAUGHT).fillna(scores.method)
    each = best_of(scores.assign(kind=kinds, large=scores.m > CLASSICAL_MEMBERS), ["kind", "large"])
    return each.dropna(subset="rmse").sort_values("rmse").drop(columns=["kind", "large"])


def best_of_each(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`each_kind` as a reader's table. A single state has no spread."""
    rows = each_kind(scores)
    shown = rows.assign(RMSE=intervals(rows), CRPS=rows.crps, m=rows.m.astype(str))
    shown["spread"] = rows.spread.where(rows.spread > 0)
    shown["before training"] = rows.untrained_rmse
    return pd.DataFrame(shown.set_index("label")[["m", "RMSE", "before training", "spread", "CRPS"]])

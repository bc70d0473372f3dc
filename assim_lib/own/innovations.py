r"""Scores without a truth: what a forecast missed in the observations, before they were used.

An innovation is :math:`d = y - H(\bar x^f)`. Were the forecast's error and the observation's as the filter believes,
its square would have the expectation :math:`s^2 = H P H^\top + R`; and innovations of an optimal filter do not depend
on one another. Neither says how large the error of the analysis is: that, only a truth or withheld observations tell.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from assim_lib.evaluation import SETTLING


@dataclass(frozen=True)
class InnovationScores:
    """What innovations say of a filter.

    Attributes:
        rmse: root-mean-square innovation, in the observation's unit.
        expected: what it should be, from the spread of the forecast and the error of the observations. NaN of a filter
            that does not know how uncertain it is.
        chi2: mean squared innovation, each in units of its own expectation; 1 if uncertainty is as large as believed,
            more if it is larger.
        autocorrelation: of successive normalized innovations at the same place; 0 of an optimal filter.
        numbers: how many numbers were scored.
        cycles: in how many cycles.
    """

    rmse: float
    expected: float
    chi2: float
    autocorrelation: float
    numbers: int
    cycles: int

    def as_dict(self) -> dict[str, Any]:
        """Its numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.numbers:
            return (
                f"no scores: {SETTLING} cycles after a cold start do not count, nor those in which the lag grows, "
                "and no number is left"
            )
        counted = f"{self.numbers} numbers in {self.cycles} cycles"
        white = f"autocorrelation {self.autocorrelation:+.3f} (0)"
        if np.isinf(self.rmse):
            return f"no scores: a forecast of {counted} is not finite"
        if np.isnan(self.expected):
            return f"innovation RMSE {self.rmse:.3f} (a single member expects nothing), {white}; {counted}"
        size = f"innovation RMSE {self.rmse:.3f} (expected {self.expected:.3f}), χ² {self.chi2:.3f} (1)"
        return f"{size}, {white}; {counted}"


class InnovationSums:
    """What the scores of innovations are made of, added up part by part of a record."""

    def __init__(self) -> None:
        self.numbers = self.cycles = 0
        self.squared = self.expected = self.normalized = 0.0
        self.plain, self.white = _Products(), _Products()

    def add(
        self, innovation: Float[np.ndarray, "cycle channel site"], expected: Float[np.ndarray, "cycle channel site"]
    ) -> None:
        """Add the next cycles.

        Args:
            innovation: NaN where nothing was seen.
            expected: its expected standard deviation; NaN where that is not known.
        """
        d, s = (part.astype(np.float64).reshape(len(part), np.prod(part.shape[1:])) for part in (innovation, expected))
        seen = ~np.isnan(d)
        self.numbers += int(seen.sum())
        self.cycles += int(seen.any(1).sum())
        with np.errstate(invalid="ignore"):  # a forecast may be no number
            self.squared += float(np.sum(d[seen] ** 2))
            self.expected += float(np.sum(s[seen] ** 2))
            self.normalized += float(np.sum((d / s)[seen] ** 2))
            self.plain.add(d, seen)
            self.white.add(d / s, seen)

    @property
    def scores(self) -> InnovationScores:
        """Of all that was added."""
        n, nan = self.numbers, float("nan")
        if not n:
            return InnovationScores(nan, nan, nan, nan, 0, 0)
        if not np.isfinite(self.squared):  # a forecast was no number
            return InnovationScores(np.inf, nan, np.inf, nan, n, self.cycles)
        known = np.isfinite(self.expected)
        return InnovationScores(
            rmse=(self.squared / n) ** 0.5,
            expected=(self.expected / n) ** 0.5 if known else nan,
            chi2=self.normalized / n if known else nan,
            autocorrelation=(self.white if known else self.plain).correlation(n),
            numbers=n,
            cycles=self.cycles,
        )


class _Products:
    """Of each number and the next one of the same place, however many cycles later that came."""

    def __init__(self) -> None:
        self.products = self.squares = 0.0
        self.pairs = 0
        self.last: dict[int, float] = {}

    def add(self, values: np.ndarray, seen: np.ndarray) -> None:
        for place in np.flatnonzero(seen.any(0)).tolist():
            series = values[seen[:, place], place]
            self.squares += float(series @ series)
            if place in self.last:
                series = np.concatenate([[self.last[place]], series])
            self.products += float(series[1:] @ series[:-1])
            self.pairs += len(series) - 1
            self.last[place] = series[-1]

    def correlation(self, count: int) -> float:
        if not self.pairs or not self.squares:
            return float("nan")
        return self.products / self.pairs / (self.squares / count)


def innovation_scores(
    innovation: Float[np.ndarray, "cycle channel site"], expected: Float[np.ndarray, "cycle channel site"]
) -> InnovationScores:
    """Scores of the innovations of some cycles, see :meth:`InnovationSums.add`."""
    sums = InnovationSums()
    sums.add(innovation, expected)
    return sums.scores

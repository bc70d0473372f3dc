r"""Scores without a truth: what a forecast missed in the observations, before they were used.

An innovation is :math:`d = y - H(\bar x^f)`. Were the forecast's error and the observation's as the filter believes,
its square would have the expectation :math:`s^2 = H P H^\top + R`; and innovations of an optimal filter do not depend
on one another. Neither says how large the error of the analysis is: that, only a truth or withheld observations tell.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

SETTLING = 60  # cycles after a cold start that are not scored


@dataclass(frozen=True)
class InnovationScores:
    """What innovations say of a filter.

    Attributes
    ----------
    rmse : root-mean-square innovation, in the observation's unit.
    expected : what it should be, from the spread of the forecast and the error of the observations. NaN of a filter
        that does not know how uncertain it is.
    chi2 : mean squared innovation, each in units of its own expectation; 1 if uncertainty is as large as believed, more
        if it is larger.
    autocorrelation : of successive normalized innovations at the same place; 0 of an optimal filter.
    numbers : how many numbers were scored.
    cycles : in how many cycles.
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
            return f"no scores: the first {SETTLING} cycles after a cold start do not count, and no number is left"
        counted = f"{self.numbers} numbers in {self.cycles} cycles"
        white = f"autocorrelation {self.autocorrelation:+.3f} (0)"
        if np.isnan(self.expected):
            return f"innovation RMSE {self.rmse:.3f} (a single member expects nothing), {white}; {counted}"
        size = f"innovation RMSE {self.rmse:.3f} (expected {self.expected:.3f}), χ² {self.chi2:.3f} (1)"
        return f"{size}, {white}; {counted}"


def innovation_scores(
    innovation: Float[np.ndarray, "cycle channel site"], expected: Float[np.ndarray, "cycle channel site"]
) -> InnovationScores:
    """Scores of the innovations of some cycles.

    Parameters
    ----------
    innovation : NaN where nothing was seen.
    expected : its expected standard deviation; NaN where that is not known.
    """
    d, s = (part.astype(np.float64).reshape(len(part), np.prod(part.shape[1:])) for part in (innovation, expected))
    seen = ~np.isnan(d)
    if not seen.any():
        return InnovationScores(np.nan, np.nan, np.nan, np.nan, 0, 0)
    known = bool(np.isfinite(s[seen]).all())
    normalized = d / s if known else d
    if not np.isfinite(d[seen]).all():  # a forecast was no number
        return InnovationScores(np.inf, np.nan, np.inf, np.nan, int(seen.sum()), int(seen.any(1).sum()))
    return InnovationScores(
        rmse=float(np.sqrt(np.mean(d[seen] ** 2))),
        expected=float(np.sqrt(np.mean(s[seen] ** 2))) if known else float("nan"),
        chi2=float(np.mean(normalized[seen] ** 2)) if known else float("nan"),
        autocorrelation=_autocorrelation(normalized, seen),
        numbers=int(seen.sum()),
        cycles=int(seen.any(1).sum()),
    )


def _autocorrelation(values: np.ndarray, seen: np.ndarray) -> float:
    """Between each number and the next one of the same place, however many cycles later that came."""
    products, squares, pairs = 0.0, 0.0, 0
    for place in range(values.shape[1]):
        series = values[seen[:, place], place]
        products += float(series[1:] @ series[:-1])
        pairs += max(len(series) - 1, 0)
        squares += float(series @ series)
    if not pairs or not squares:
        return float("nan")
    return float(products / pairs / (squares / seen.sum()))

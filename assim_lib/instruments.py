r"""Instruments that measure combinations of the state, with errors that may depend on one another.

Such instruments give numbers :math:`y = G x + e`, :math:`e \sim N(0, R)`, as many as they like: stations between sites,
several at one site, more numbers than sites. Filters want one number at an entry of the grid, each with an error of its
own. Nothing about the state is lost on the way there.

**Whitening.** :math:`R^{-1/2} y = R^{-1/2} G x + \varepsilon` with independent standard normal :math:`\varepsilon`. Of
all square roots the symmetric one changes the numbers least: each stays nearly what it was, and stands at the entry
that it measures most of.

**Combining.** Where two would stand at one entry, what all of them say of the state is combined: with the information
:math:`J = G^\top R^{-1} G`,

.. math:: J^{-1/2}\, G^\top R^{-1} y = J^{1/2} x + \varepsilon ,

one number at each entry; the roots are taken in units of each number's error and of what is known of each entry, so
that temperatures in kelvin may stand beside humidities in kg/kg. Of two thermometers at one place that is their mean,
weighted by precision. Kalman analyses of these numbers are those of :math:`y`, since :math:`J` and
:math:`G^\top R^{-1} y` are all that they depend on.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.observations import ObservationModel
from assim_lib.systems.integrators import Constant

NOTHING = 1e-9  # of the largest: what is smaller is rounding


class _Reduced(NamedTuple):
    """What stands on the grid: ``operator`` of the state, ``weights`` of the numbers."""

    operator: Float[np.ndarray, "entry state"]
    weights: Float[np.ndarray, "entry number"]


@dataclass(frozen=True, eq=False)
class LinearInstruments:
    """Numbers that are linear in the state, with errors of any covariance.

    Attributes:
        matrix: (number, channel, site), what each number measures, G.
        covariance: (number, number), of their errors, R; or (number,), the variances of independent ones.

    Raises:
        ValueError: if one of them is of another shape, or no covariance is one.
    """

    matrix: Any
    covariance: Any

    def __post_init__(self) -> None:
        for name in ("matrix", "covariance"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if self.matrix.ndim != 3 or not np.isfinite(self.matrix).all():
            raise ValueError(f"matrix of shape {self.matrix.shape} must be finite, of shape (number, channel, site).")
        count = len(self.matrix)
        if self.covariance.shape == (count,):
            object.__setattr__(self, "covariance", np.diag(self.covariance))
        covariance = self.covariance
        if covariance.shape != (count, count):
            raise ValueError(f"covariance of shape {covariance.shape} must be ({count}, {count}), or ({count},).")
        sound = np.isfinite(covariance).all() and (np.diag(covariance) > 0).all()
        if sound:  # of numbers in other units the variances may differ by any factor: the correlation tells
            sound = np.allclose(self._correlation, self._correlation.T, atol=1e-6)
        if not sound or np.linalg.eigvalsh(self._correlation).min() <= NOTHING:
            raise ValueError("covariance must be finite, symmetric and positive definite.")
        if (np.abs(self.matrix).max((1, 2)) == 0).any():
            raise ValueError("matrix must measure something by every number, and has a row of zeros.")

    def model(self) -> ObservationModel:
        """What a filter knows of them: an ``obs_conf`` may return it. Errors are standard normal."""
        operator, shape = self._reduced.operator, self.matrix.shape[1:]
        matrix = Constant(operator.T.copy())

        def observed(x: Tensor) -> Tensor:
            return (x.flatten(-2) @ matrix.like(x)).unflatten(-1, shape)

        seen = torch.from_numpy(np.abs(operator).max(1) > 0).view(1, *shape)
        return ObservationModel(seen, observed)

    def on_grid(self, numbers: Float[np.ndarray, "*batch number"]) -> Float[np.ndarray, "*batch channel site"]:
        """The observations that :meth:`model` is of.

        Args:
            numbers: not finite where nothing was received; whatever depends on one of them is NaN.

        Raises:
            ValueError: if there are not as many as the instruments report.
        """
        weights, numbers = self._reduced.weights, np.asarray(numbers, np.float64)
        if numbers.shape[-1:] != weights.shape[1:]:
            raise ValueError(f"numbers of shape {numbers.shape} must end in the {weights.shape[1]} of the instruments.")
        missing = (~np.isfinite(numbers)).astype(float) @ (weights != 0).T > 0
        combined = np.where(np.isfinite(numbers), numbers, 0.0) @ weights.T
        combined[missing | (weights == 0).all(1)] = np.nan
        return combined.reshape(*numbers.shape[:-1], *self.matrix.shape[1:])

    @property
    def _deviation(self) -> np.ndarray:
        return np.sqrt(np.diag(self.covariance))

    @property
    def _correlation(self) -> np.ndarray:
        return self.covariance / np.outer(self._deviation, self._deviation)

    @cached_property
    def _reduced(self) -> _Reduced:
        # In units of each number's own error: what is small beside others is not lost for its unit.
        scaled = self.matrix.reshape(len(self.matrix), -1) / self._deviation[:, None]
        place = np.abs(scaled).argmax(1)
        if len(set(place.tolist())) == len(place):
            whitening = _without_rounding(_power(self._correlation, -0.5))
            operator, weights = np.zeros((scaled.shape[1],) * 2), np.zeros(scaled.T.shape)
            operator[place], weights[place] = whitening @ scaled, whitening
        else:
            precise = np.linalg.solve(self._correlation, scaled).T  # Gᵀ R⁻¹
            information = precise @ scaled
            known = np.sqrt(np.diag(information))  # of each entry of the state, in its own unit
            unit = np.divide(1.0, known, out=np.zeros_like(known), where=known > 0)
            each = unit[:, None] * information * unit
            operator = _without_rounding(_power(each, 0.5)) * known
            weights = _without_rounding(_power(each, -0.5) @ (unit[:, None] * precise))
        return _Reduced(operator, weights / self._deviation)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """Of a covariance; of what it has none of, none."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > NOTHING * values.max()
    return (vectors[:, kept] * values[kept] ** exponent) @ vectors[:, kept].T


def _without_rounding(matrix: np.ndarray) -> np.ndarray:
    return np.where(np.abs(matrix) > NOTHING * np.abs(matrix).max(), matrix, 0.0)

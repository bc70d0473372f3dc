"""What is said of a record beside a filter: what does not fit is refused, what looks odd is a warning."""

import warnings

import numpy as np
from jaxtyping import Bool

from assim_lib.filter import AmortizedFilter
from assim_lib.own.conventions import RecordError
from assim_lib.own.innovations import InnovationScores
from assim_lib.own.record import OwnRecord
from assim_lib.tracking import OUTLIER

USUAL = (0.7, 1.4)  # χ² of a filter that is about as uncertain as it should be
ENOUGH = 200  # numbers, of which χ² is known to a tenth
INSTEAD = (
    "take a filter that weighs errors ('hybrid', 'covariant', 'extended', or 'recurrent' with sees_error), or train "
    "one for them."
)
SAME = 1e-6  # up to which relative difference two errors are one


def usable_error(record: OwnRecord, model: AmortizedFilter, analysis: str) -> bool:
    """Whether the errors of a record are used: where they are other than those of the filter.

    Raises:
        RecordError: if the filter has learned its own.
    """
    trained = model.error.cpu().numpy()
    errors = (part.error for part in record.parts())
    other = next((error for error in errors if error is not None and not _close(error, trained)), None)
    if other is not None and not model.analysis.weighs_errors:
        values = np.unique(other[np.isfinite(other)])
        raise RecordError(
            f"error = {values[0]:g} … {values[-1]:g} cannot be weighed by analysis = {analysis!r}, which "
            f"has learned errors of {trained.min():g} … {trained.max():g}; {INSTEAD}"
        )
    return other is not None


def _close(given: np.ndarray, trained: np.ndarray) -> bool:
    return np.allclose(np.where(np.isfinite(given), given, trained), trained, rtol=SAME)


def remark_on_mask(
    record: OwnRecord, schedule: Bool[np.ndarray, "period channel site"], obs_conf: str, number: int
) -> None:
    """Warn of numbers that a filter does not expect, and of a record without any.

    Args:
        number: of the record's first cycle in the schedule.
    """
    ignored = total = 0
    for part in record.parts():
        received = np.isfinite(part.values)
        expected = schedule[(number + part.first + np.arange(len(received))) % len(schedule)]
        ignored, total = ignored + int((received & ~expected).sum()), total + int(received.sum())
    if not total:
        warnings.warn(f"{record.label} holds no number: its analysis is a forecast.", stacklevel=4)
    if ignored:
        warnings.warn(
            f"{ignored} of {total} numbers are where obs_conf = {obs_conf!r} expects none, and are not "
            "used; any_mask (--any-mask) uses them, another first_cycle moves the schedule.",
            stacklevel=4,
        )


class Outliers:
    """How many there are, and the (cycle, channel, site) of the first."""

    count, first = 0, (0, 0, 0)

    def add(self, cycle: int, outlier: Bool[np.ndarray, "cycle channel site"]) -> None:
        """Count those of the cycles from a number on."""
        if not self.count and outlier.any():
            k, *place = np.argwhere(outlier)[0].tolist()
            self.first = (cycle + k, *place)
        self.count += int(outlier.sum())


def remark_on_innovations(outliers: Outliers, scores: InnovationScores, model: AmortizedFilter, dropped: bool) -> None:
    """Warn of outliers, and of a filter that has lost the truth, or believes in other errors."""
    far, where = outliers.count, outliers.first
    if far:
        done = "were not used" if dropped else "were used all the same; drop_outliers (--drop-outliers) leaves them out"
        if far > 1 and not dropped:
            done += "; the later ones may be good, and their forecast spoiled by the first"
        warnings.warn(
            f"{far} numbers are more than {OUTLIER:g} expected deviations off their forecast, the first at (cycle, "
            f"channel, site) = {where} of this record, and {done}.",
            stacklevel=4,
        )
    climatology = model.observation_model.operator(model.climatology).var(0) + model.error.square()
    if scores.rmse > float(climatology.mean().sqrt()):
        warnings.warn(
            f"innovations of {scores.rmse:.2f} are no smaller than those of the climatology: the filter has lost the "
            "truth, or the record is of another system.",
            stacklevel=4,
        )
    elif scores.numbers >= ENOUGH and not USUAL[0] <= (1.0 if np.isnan(scores.chi2) else scores.chi2) <= USUAL[1]:
        warnings.warn(
            f"χ² = {scores.chi2:.2f} is far from 1: innovations are {'larger' if scores.chi2 > 1 else 'smaller'} than "
            "the filter expects; see that error is the standard deviation of the observations' errors (--error).",
            stacklevel=4,
        )

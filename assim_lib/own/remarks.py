"""What is said of a record beside a filter: what does not fit is refused, what looks odd is a warning."""

import warnings

import numpy as np
from jaxtyping import Bool

from assim_lib.filter import AmortizedFilter
from assim_lib.own.cycling import OUTLIER, Cycled
from assim_lib.own.innovations import InnovationScores
from assim_lib.own.record import OwnRecord
from assim_lib.own.sources import RecordError

SAME = 1e-6  # up to which relative difference two errors are one


def usable_error(record: OwnRecord, model: AmortizedFilter, analysis: str) -> np.ndarray | None:
    """The errors of a record, where they are other than those of the filter.

    Raises
    ------
    RecordError : if the filter has learned its own.
    """
    if record.error is None:
        return None
    trained = model.error.cpu().numpy()
    given = np.where(np.isfinite(record.error), record.error, trained)
    if np.allclose(given, trained, rtol=SAME):
        return None
    if not model.analysis.weighs_errors:
        values = np.unique(record.error[np.isfinite(record.error)])
        raise RecordError(
            f"error = {values[0]:g} … {values[-1]:g} cannot be weighed by analysis = {analysis!r}, which "
            f"has learned errors of {trained.min():g} … {trained.max():g}; take a filter that is 'hybrid', 'covariant' "
            "or 'extended', or train one for them."
        )
    return record.error


def remark_on_mask(
    record: OwnRecord, schedule: Bool[np.ndarray, "period channel site"], obs_conf: str, number: int
) -> None:
    """Warn of numbers that a filter does not expect, and of a record without any.

    Parameters
    ----------
    number : of the record's first cycle in the schedule.
    """
    received = np.isfinite(record.values)
    expected = schedule[(number + np.arange(len(received))) % len(schedule)]
    ignored, total = int((received & ~expected).sum()), int(received.sum())
    if not total:
        warnings.warn(f"{record.label} holds no number: its analysis is a forecast.", stacklevel=4)
    if ignored:
        warnings.warn(
            f"{ignored} of {total} numbers are where obs_conf = {obs_conf!r} expects none, and are not "
            "used; any_mask (--any-mask) uses them, another first_cycle moves the schedule.",
            stacklevel=4,
        )


def remark_on_innovations(cycled: Cycled, scores: InnovationScores, model: AmortizedFilter, dropped: bool) -> None:
    """Warn of outliers, and of a filter that has lost the truth."""
    far = int(cycled.outlier.sum())
    if far:
        where = tuple(int(i) for i in np.argwhere(cycled.outlier)[0])
        done = "were not used" if dropped else "were used all the same; drop_outliers (--drop-outliers) leaves them out"
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

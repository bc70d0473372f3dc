"""What is looked at before a filter runs along a record: whether its numbers can be of this system."""

import warnings
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from assim_lib.filter import AmortizedFilter

FAR = 10.0  # expected deviations from the climatology's mean beyond which a number is no observation


def remark_on_what_is_far(model: "AmortizedFilter", observations: Tensor) -> None:
    """Warn of numbers more than :data:`FAR` expected deviations off the climatology: fill values, most often.

    Parameters
    ----------
    observations : (…, cycle, channel, site); NaN where nothing was received.
    """
    if model.observation_model.unknown:  # what such an instrument shows may be of any size
        return
    expected = model.observation_model.operator(model.climatology)
    width = (expected.var(0) + model.error.square()).sqrt()
    far = observations.isfinite() & ((observations - expected.mean(0)).abs() > FAR * width)
    if far.any():
        where = tuple(far.nonzero()[0].tolist())
        warnings.warn(
            f"{int(far.sum())} observations are more than {FAR:g} expected deviations off the climatology, the first, "
            f"{float(observations[where]):g}, at {where}; give what was not received as NaN, or use "
            "assimilate_record(…, fill_value=…, drop_outliers=True).",
            stacklevel=4,
        )

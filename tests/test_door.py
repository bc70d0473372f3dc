"""What cannot be an observation is spoken of before a filter runs."""

import warnings

import numpy as np
import pytest
from small import SITES, generator, small_filter

from assim_lib.filter import assimilate
from assim_lib.observations import ObservationModel

MODEL = small_filter("recurrent", 2).float()
NUMBERS = 2 + 3 * np.random.RandomState(0).standard_normal((5, 1, SITES))


def run(observations):
    return assimilate(MODEL, observations, generator())


def test_a_fill_value_is_spoken_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(NUMBERS)
    filled = NUMBERS.copy()
    filled[2, 0, 3] = -9999
    with pytest.warns(UserWarning, match=r"^1 observations are more than 10 expected .* -9999, at \(2, 0, 3\); give"):
        run(filled)


def test_a_mask_may_be_an_array(unchecked_shapes):
    mask = np.arange(SITES).reshape(1, 1, -1) % 2 == 0
    assert ObservationModel(mask).mask(0).sum() == SITES // 2
    for wrong in (mask.astype(int), mask.tolist()):
        with pytest.raises(ValueError, match=r"^schedule of type .* must be a boolean"):
            ObservationModel(wrong)

"""Whatever form a record comes in: it is taken, or refused in one sentence, before a filter runs."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from small import SITES, generator, small_filter

from assim_lib.filter import assimilate
from assim_lib.observations import ObservationModel

MODEL = small_filter("recurrent", 2).float()
NUMBERS = 2 + 3 * np.random.RandomState(0).standard_normal((5, 1, SITES))


def run(observations):
    return assimilate(MODEL, observations, generator())


@pytest.mark.parametrize(
    "form",
    [
        torch.from_numpy,
        lambda x: x,
        lambda x: x.astype(np.float32),
        lambda x: x[:, 0],
        lambda x: x.tolist(),
        lambda x: xr.DataArray(x[:, 0], dims=("time", "site")),
        lambda x: np.asfortranarray(x)[:, :, ::-1][:, :, ::-1],
    ],
    ids=["float64", "numpy", "float32", "without channel", "lists", "DataArray", "strides"],
)
def test_all_forms_are_one_record(form):
    expected = run(torch.from_numpy(NUMBERS).float())
    assert expected.dtype == torch.float32
    assert torch.allclose(run(form(NUMBERS)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (NUMBERS[:, :, :1], "observations of shape (5, 1, 1) and type float64 must be"),
        (NUMBERS[:, 0, 1:], f"observations of shape (5, {SITES - 1}) and type float64 must be"),
        (NUMBERS[0, 0], f"observations of shape ({SITES},) and type float64 must be"),
        (NUMBERS[:0], "observations of shape (0, 1, 12) have no cycle"),
        (NUMBERS > 0, "observations of type ndarray must be an array of real numbers."),
        (NUMBERS * 1j, "observations of type ndarray must be"),
        (torch.from_numpy(NUMBERS) * 1j, "observations of shape (5, 1, 12) and type complex128 must be"),
        ([[1.0], [1.0, 2.0]], "observations of type list must be"),
        ("numbers", "observations of type str must be"),
        (None, "observations of type NoneType must be"),
    ],
    ids=str,
)
def test_another_form_is_one_sentence(wrong, said):
    with pytest.raises(ValueError, match=r"^observations of") as caught:
        run(wrong)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_what_is_infinite_was_not_received():
    missing, infinite = NUMBERS.copy(), NUMBERS.copy()
    missing[2, 0, 3], infinite[2, 0, 3] = np.nan, np.inf
    assert torch.equal(run(missing), run(infinite))


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

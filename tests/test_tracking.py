"""A filter along a record is a loop of its cycles; and how its analyses answer to observations."""

import math
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from small import CASES, PARTIAL, SITES, generator, record, shaken, small_filter

from assim_lib.tracking import assimilate, far_off, mean_gain

BATCHES = [(), (64,)]
EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(
    params=[(case, lag) for case in CASES for lag in (0, 2)], ids=lambda p: f"{p[0][0]}-m{p[0][1]}-lag{p[1]}"
)
def model(request):
    case, lag = request.param
    return shaken(small_filter(*case, lag, PARTIAL), size=0.1)


@pytest.mark.parametrize("batch", BATCHES)
def test_assimilation_is_a_loop_of_cycles(model, batch):
    observations = record(model, batch)
    ensembles = assimilate(model, observations, generator(5))
    assert ensembles.shape == (*batch, 7, model.analysis.members, 1, SITES)
    assert not ensembles.requires_grad
    carry, by_hand = model.cold_start(*batch, generator=generator(5)), []
    for k in range(7):
        carry, analysis = model.cycle(carry, observations[..., k, :, :], k)
        by_hand.append(analysis)
    torch.testing.assert_close(ensembles, torch.stack(by_hand, -4), **EXACT)
    # A number that nobody expects is not used.
    assert torch.equal(assimilate(model, observations.nan_to_num(99.0), generator(5)), ensembles)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "extended"])  # whose derivatives need numbers
@pytest.mark.parametrize("lag", [0, 2])
def test_a_filter_on_another_device_computes_there(case, lag):
    """On that of tensors without numbers: as on a GPU, nothing may meet what was left on the processor."""
    model = small_filter(*case, lag, PARTIAL)
    observations, first = record(model, (64,)).to("meta"), torch.zeros(64, dtype=torch.long, device="meta")
    model = model.to("meta")
    assert far_off(model, observations, first).device.type == "meta"
    carry = model.cold_start(64, generator=generator(5), number=first)
    for k in range(4):
        carry, analysis = model.cycle(carry, observations[..., k, :, :], first + k, age=k)
        assert analysis.device.type == "meta"


def test_each_trajectory_may_stand_elsewhere_in_the_schedule():
    model = shaken(small_filter("hybrid", obs_conf=PARTIAL))
    observations = record(model, (64,), cycles=8)
    first = torch.arange(64) % 4
    # Trajectory i is given its own record, from cycle first[i] on.
    later = torch.stack([observations[i, f : f + 4] for i, f in enumerate(first.tolist())])
    ensembles = assimilate(model, later, generator(), first_cycle=first)
    carry = model.cold_start(64, generator=generator()).each(lambda part: part[6])
    for k in range(4):
        carry, analysis = model.cycle(carry, later[6, k], 2 + k)
        torch.testing.assert_close(ensembles[6, k], analysis, **EXACT)
    assert not torch.allclose(ensembles, assimilate(model, later, generator()))


def test_an_assimilation_may_start_near_numbers():
    model = shaken(small_filter("recurrent", obs_conf=PARTIAL))
    observations = record(model, (64,))
    near = observations[:, 0]  # NaN where nothing is seen
    ensembles = assimilate(model, observations, generator(5), near=near)
    carry = model.cold_start(64, generator=generator(5), near=near)
    _, analysis = model.cycle(carry, near, 0)
    torch.testing.assert_close(ensembles[:, 0], analysis, **EXACT)
    assert not torch.allclose(ensembles, assimilate(model, observations, generator(5)))


def test_dropout_is_off_unless_asked_for_and_a_seed_is_a_run():
    with_, without = (shaken(small_filter("original", dropout=p)) for p in (0.3, 0.0))
    observations = record(with_)
    assert torch.equal(assimilate(with_, observations, generator()), assimilate(without, observations, generator()))
    runs = [
        [assimilate(with_, observations, generator(1), dropout=dropout) for _ in range(2)] for dropout in (False, True)
    ]
    for first, again in runs:
        assert torch.equal(first, again)
    assert not torch.equal(runs[0][0], runs[1][0])


def test_a_filter_in_single_precision_stays_there(model):
    observations = record(model).float()
    model.float()
    ensembles = assimilate(model, observations, generator())
    assert ensembles.dtype == torch.float32
    assert ensembles.isfinite().all()


def test_progress_is_shown_when_asked_for(capsys):
    model = small_filter()
    assimilate(model, record(model), generator())
    assert capsys.readouterr().err == ""
    assimilate(model, record(model), generator(), progress=True)
    assert "assimilate" in capsys.readouterr().err


# ---- how an analysis answers to an observation


@pytest.mark.parametrize("lag", [0, 1])
def test_the_mean_gain_is_that_of_finite_differences(lag):
    model = shaken(small_filter("hybrid", lag=lag, obs_conf=PARTIAL))
    observations = record(model)
    found = mean_gain(model, observations.numpy(), burn_in=3, cycles=2, seed=6)
    assert found.shape == (SITES, SITES)
    expected, eps = np.zeros((SITES, SITES)), 1e-5
    carry = model.cold_start(generator=generator(6))
    for k in range(5):
        if k >= 3:
            for j in range(SITES):
                step = eps * torch.eye(SITES, dtype=torch.float64)[j][None]
                with torch.no_grad():
                    above, below = (
                        model.cycle(carry, observations[k] + sign * step, k)[1].mean(-3)[0] for sign in (1, -1)
                    )
                expected[:, j] += (above - below).numpy() / (2 * eps) / 2
        carry = model.cycle(carry, observations[k], k)[0].each(torch.detach)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    seen = np.isin(np.arange(SITES) % 4, (3, 0))  # by the cycles 3 and 4
    assert (found[:, ~seen] == 0).all()
    assert (abs(found).max(0)[seen] > 0.01).all()


# ---- what may be a record


@pytest.mark.parametrize(
    "brought",
    [
        lambda seen: seen.float(),
        lambda seen: seen.numpy(),
        lambda seen: seen.tolist(),
        lambda seen: xr.DataArray(seen.numpy(), dims=["time", "channel", "site"]),
        lambda seen: seen.nan_to_num(math.inf),  # what is not finite was not received
    ],
    ids=["float", "numpy", "list", "xarray", "inf"],
)
def test_a_record_may_come_as_any_array_of_numbers(brought):
    model = small_filter(obs_conf=PARTIAL)
    seen = record(model)
    expected = assimilate(model, seen, generator())
    torch.testing.assert_close(assimilate(model, brought(seen), generator()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "brought",
    [
        lambda seen: seen[:, 0],
        lambda seen: seen[..., :1],
        lambda seen: seen[..., 1:],
        lambda seen: seen.expand(-1, 2, -1),
        lambda seen: seen[:0],
        lambda seen: seen.to(torch.complex64),
        lambda seen: None,
        lambda seen: ["a", "b"],
    ],
    ids=["no channel", "one site", "a site less", "two channels", "no cycle", "complex", "nothing", "words"],
)
def test_a_record_of_anything_else_is_refused_in_one_sentence(brought):
    model = small_filter()
    with pytest.raises(ValueError, match=r"^observations of type \w+.* must be .*numbers[^\n]*\.$"):
        assimilate(model, brought(record(model)), generator())


def test_too_short_a_record_has_no_gain():
    with pytest.raises(ValueError, match=r"^observations of 7 cycles are fewer than burn_in \+ cycles = 120\.$"):
        mean_gain(small_filter(), np.zeros((7, 1, SITES)))


def test_a_fill_value_is_spoken_of():
    model = small_filter("recurrent", 2).float()
    numbers = 2 + 3 * np.random.RandomState(0).standard_normal((5, 1, SITES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assimilate(model, numbers, generator())
    filled = numbers.copy()
    filled[2, 0, 3] = -9999
    with pytest.warns(UserWarning, match=r"^1 observations are more than 10 expected .* -9999, at \(2, 0, 3\); give"):
        assimilate(model, filled, generator())

"""Who is seen when is as announced, and an observation is the truth plus an error of the size asked for."""

import math

import numpy as np
import pytest
import torch
from small import generator

from assim_lib.observations import (
    OBS_CONFS,
    RANDOM_PERIOD,
    RANDOM_SHARES,
    ObservationModel,
    identity,
    observation_model,
    register_obs_conf,
)

BATCHES = [(), (64,)]
ALL_OF_THREE = torch.ones(1, 1, 3, dtype=torch.bool)


@pytest.fixture(params=OBS_CONFS)
def model(request) -> ObservationModel:
    return observation_model(request.param, 2, 40)


def places(mask) -> list[int]:
    return mask.flatten().nonzero().flatten().tolist()


@pytest.fixture
def global_generators():
    """What is drawn once and for all neither depends on the global generators nor moves them."""
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


# ---- schedules


@pytest.mark.parametrize(
    ("name", "period", "seen"),
    [
        ("full_obs", 1, lambda k: range(40)),
        ("every_4th_fixed", 1, lambda k: range(0, 40, 4)),
        ("every_4th_dim_partial_obs", 4, lambda k: range(k % 4, 40, 4)),
        ("every_4th_dim_partial_obs_upstream", 4, lambda k: range(3 - k % 4, 40, 4)),
        ("partial_obs", 2, lambda k: range(k % 2, 40, 2)),
    ],
)
def test_regular_schedules_see_these_sites(name, period, seen):
    model = observation_model(name, 1, 40)
    assert model.period == period
    masks = model.mask(torch.arange(3 * period + 1))
    assert masks.dtype == torch.bool
    for k, mask in enumerate(masks):
        assert places(mask) == list(seen(k))
    for start in range(len(masks) - period + 1):  # so many successive cycles see every site as often
        assert len(masks[start : start + period].sum(0)[0, :1].unique()) == 1
        if period > 1:
            assert (masks[start : start + period].sum(0) == 1).all()


@pytest.mark.parametrize("name", OBS_CONFS)
@pytest.mark.parametrize(("channels", "sites"), [(1, 40), (1, 128), (2, 36), (2, 5)])
def test_every_configuration_fits_every_grid(name, channels, sites):
    model = observation_model(name, channels, sites)
    assert model.schedule.shape == (model.period, channels, sites)
    assert (model.known(torch.arange(model.period)).sum(0) > 0).any()
    truth = torch.randn(2 * model.period, channels, sites, generator=generator())
    received = model.observe(truth, torch.zeros_like(truth))
    assert torch.equal(received.isfinite(), model.mask(torch.arange(2 * model.period)))


@pytest.mark.parametrize("kind", ["fixed", "moving"])
@pytest.mark.parametrize("percent", RANDOM_SHARES)
@pytest.mark.parametrize(("channels", "sites"), [(1, 40), (2, 36), (1, 3)])
def test_random_masks_see_their_share_of_the_entries(percent, kind, channels, sites):
    model = observation_model(f"random_{percent}_{kind}", channels, sites)
    assert model.period == {"fixed": 1, "moving": RANDOM_PERIOD}[kind]
    assert (model.schedule.sum((-2, -1)) == max(1, round(percent * channels * sites / 100))).all()
    if sites > 3:
        assert len({tuple(places(mask)) for mask in model.schedule}) == model.period
        assert len(set(np.diff(places(model.schedule[0])))) > 1  # neither a regular grid nor a cluster


@pytest.mark.usefixtures("global_generators")
def test_what_is_random_is_the_same_each_time():
    for kind in ("fixed", "moving"):
        first, again = (observation_model(f"random_25_{kind}", 1, 40).schedule for _ in range(2))
        assert torch.equal(first, again)
        # Also on other machines, and in other versions.
        assert places(first[0]) == [2, 3, 5, 11, 14, 16, 18, 26, 30, 34]
    first, again = (observation_model("unstructured_partial_obs", 1, 40).unknown for _ in range(2))
    assert first.keys() == {1, 3, 5, 7}
    assert all(torch.equal(first[k], again[k]) for k in first)


@pytest.mark.parametrize("batch", BATCHES)
def test_masks_follow_the_shape_of_the_cycle_numbers(model, batch):
    cycle = torch.randint(1000, batch, generator=generator())
    mask, known = model.mask(cycle), model.known(cycle)
    assert mask.shape == known.shape == (*batch, 2, 40)
    assert not (known & ~mask).any()
    rows = zip(cycle.flatten().tolist(), mask.reshape(-1, 2, 40), known.reshape(-1, 2, 40), strict=True)
    for number, seen, told in rows:
        assert torch.equal(seen, model.schedule[number % model.period])
        assert torch.equal(seen, model.mask(number))
        assert torch.equal(told, model.known(number))


# ---- observations


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_an_observation_is_truth_plus_error_where_something_is_seen(model, batch, noise):
    truth = 5 + torch.randn((*batch, 50, 2, 40), generator=generator(1))
    unit = torch.randn(truth.shape, generator=generator(2))
    received = model.scaled(noise).observe(truth, unit)
    mask, known = (which(torch.arange(50)).expand(truth.shape) for which in (model.mask, model.known))
    assert torch.equal(received.isnan(), ~mask)
    error = (received - truth)[known]
    torch.testing.assert_close(error, noise * unit[known], rtol=0, atol=1e-5)
    exact = model.observe(truth, torch.zeros_like(truth))
    torch.testing.assert_close((received - exact)[mask], noise * unit[mask], rtol=0, atol=1e-5)
    assert abs(float(error.mean())) < 4 * noise / len(error) ** 0.5
    assert float(error.std()) == pytest.approx(noise, rel=4 / len(error) ** 0.5)


def test_the_operator_acts_before_the_error():
    assert ObservationModel(ALL_OF_THREE).operator is identity
    model = ObservationModel(ALL_OF_THREE, operator=torch.square, error=0.5)
    truth, unit = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 0.0, -1.0]]])
    assert model.observe(truth, unit).flatten().tolist() == [1.5, 4.0, 8.5]


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_phase_says_which_entry_each_cycle_has(model, batch):
    truth, unit = (torch.randn((*batch, 9, 2, 40), generator=generator(seed)) for seed in (1, 2))
    phase = torch.randint(3 * model.period, (*batch, 9), generator=generator(3))
    received = model.observe(truth, unit, phase)
    for k in range(9):
        for i in np.ndindex(batch):
            entry = int(phase[(*i, k)]) % model.period
            before = torch.zeros(entry, 2, 40)
            alone = model.observe(*(torch.cat([before, x[(*i, [k])]]) for x in (truth, unit)))
            torch.testing.assert_close(received[(*i, k)], alone[-1], equal_nan=True)
    shared = torch.arange(9).flip(0)
    broadcast = model.observe(truth, unit, shared)
    assert torch.equal(broadcast.isfinite(), model.mask(shared).expand(truth.shape))


# ---- errors


ERRORS = {
    "a number": 0.7,
    "one a channel": torch.tensor([[0.5], [2.0]]),
    "one a site": torch.tensor([0.1, 0.2, 0.4, 0.8]),
    "one an entry": torch.arange(1, 9).view(2, 4) / 8.0,
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_of_any_shape_is_the_standard_deviation_of_each_entry(error):
    model = ObservationModel(torch.ones(1, 2, 4, dtype=torch.bool), error=error)
    assert model.standard_deviation.shape == (2, 4)
    assert model.standard_deviation.dtype == torch.float64
    truth, unit = (torch.randn(3, 2, 4, generator=generator(seed)) for seed in (1, 2))
    received = model.observe(truth, unit)
    assert received.dtype == torch.float32
    torch.testing.assert_close(received, truth + torch.as_tensor(error) * unit)
    # Scaled, everything but the error is what it was.
    threefold = model.scaled(3.0)
    assert torch.equal(threefold.standard_deviation, torch.as_tensor(3.0 * error, dtype=torch.float64).expand(2, 4))
    assert threefold.schedule is model.schedule
    torch.testing.assert_close(threefold.observe(truth, unit), truth + 3 * torch.as_tensor(error) * unit)


def test_equal_errors_give_the_numbers_of_one():
    truth, unit = (torch.randn(50, 2, 4, generator=generator(seed)) for seed in (1, 2))
    number, entries = (
        ObservationModel(torch.ones(1, 2, 4, dtype=torch.bool), error=error).observe(truth, unit)
        for error in (0.7, torch.full((2, 4), 0.7, dtype=torch.float64))
    )
    assert torch.equal(number, entries)
    assert torch.equal(number, truth + 0.7 * unit)


@pytest.mark.usefixtures("readers_cell")
def test_the_noise_of_a_setting_is_a_factor_on_errors_of_a_configurations_own():
    @register_obs_conf("two_instruments")
    def two_instruments(channels: int, sites: int) -> ObservationModel:
        error = 1.0 + (torch.arange(sites) % 2)
        return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool), error=error)

    model = observation_model("two_instruments", 2, 4, noise=0.5)
    assert model.standard_deviation.tolist() == [[0.5, 1.0, 0.5, 1.0]] * 2
    assert two_instruments(1, 3).error.tolist() == [1, 2, 1]  # the decorator leaves the function as it was


# ---- unknown instruments


def with_unknown(*entries, period=3, channels=2, sites=4, error=1.0):
    """A schedule whose given entries are random maps of the whole state."""
    size = channels * sites
    schedule = torch.rand((period, channels, sites), generator=generator(1)) < 0.6
    matrices = torch.randn((period, size, size), generator=generator(2), dtype=torch.float64)
    return ObservationModel(schedule, torch.square, {entry: matrices[entry] for entry in entries}, error)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unknown_instrument_measures_its_map_of_the_whole_state(batch, dtype):
    model = with_unknown(0, 2, error=0.5)
    truth, unit = (torch.randn((*batch, 7, 2, 4), generator=generator(seed), dtype=dtype) for seed in (3, 4))
    received = model.observe(truth, unit)
    assert received.dtype == dtype
    for k in range(7):
        state = truth[..., k, :, :]
        clean = state.square()
        if k % 3 != 1:
            clean = torch.einsum("ij,...j->...i", model.unknown[k % 3].to(dtype), state.flatten(-2)).view_as(state)
        expected = torch.where(model.schedule[k % 3], clean + 0.5 * unit[..., k, :, :], math.nan)
        torch.testing.assert_close(received[..., k, :, :], expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert torch.equal(model.known(k), model.mask(k) & torch.tensor(k % 3 == 1))


@pytest.mark.parametrize(("channels", "sites"), [(1, 40), (2, 36)])
def test_unstructured_observations_alternate_with_random_projections(channels, sites):
    model, size = observation_model("unstructured_partial_obs", channels, sites), channels * sites
    regular = observation_model("every_4th_dim_partial_obs", channels, sites)
    random = np.random.RandomState(0)
    for turn in range(4):
        assert torch.equal(model.mask(2 * turn), regular.mask(turn))
        assert torch.equal(model.known(2 * turn), regular.mask(turn))
        assert not model.known(2 * turn + 1).any()
        received = model.mask(2 * turn + 1).flatten()
        assert received.sum() == size // 4
        matrix = model.unknown[2 * turn + 1]
        assert (matrix[~received] == 0).all()
        weights = matrix[received].numpy()
        np.testing.assert_allclose(weights @ weights.T, np.eye(size // 4), atol=1e-12)
        # What they span was drawn once and for all; no site is left out, none stands for itself.
        drawn = random.standard_normal((size, size // 4))
        np.testing.assert_allclose(weights.T @ weights @ drawn, drawn, atol=1e-10)
        assert (np.abs(weights).sum(0) > 0.1).all()
        assert np.abs(weights).max() < 0.9


def test_without_its_unknown_instruments_every_other_cycle_sees_nothing():
    whole, part = (observation_model(f"unstructured_{name}", 1, 40, 0.7) for name in ("partial_obs", "known_part"))
    assert torch.equal(part.schedule, whole.known(torch.arange(8)))
    assert not part.unknown
    truth, unit = (torch.randn(16, 1, 40, generator=generator(seed)) for seed in (1, 2))
    ours, theirs = (model.observe(truth, unit) for model in (part, whole))
    assert torch.equal(ours[::2].nan_to_num(), theirs[::2].nan_to_num())
    assert ours[1::2].isnan().all()


# ---- what cannot be

ERROR = r"^error = (?s:.+) must be positive, and broadcast to \(channel, site\) = \(1, 3\)\.$"
UNKNOWN = r"^unknown = \[.*\] must be some of the 1 entries of the schedule, not all\.$"
TWICE = torch.ones(2, 1, 3, dtype=torch.bool)
SCHEDULE = r"^schedule of shape .* must be boolean, .* and observe something\.$"


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        *(({"error": error}, ERROR) for error in (0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0, 1.0]))),
        *(({"error": error}, ERROR) for error in (torch.ones(4), torch.ones(2, 1, 3), "0.5", [0.5, None, 1.0])),
        (
            {"unknown": {0: torch.eye(2)}, "schedule": TWICE},
            r"^unknown\[0\] of shape \(2, 2\) must be of shape \(3, 3\)",
        ),
        ({"unknown": {0: "eye"}, "schedule": TWICE}, r"^unknown\[0\] of type str must be a matrix of numbers\.$"),
        *(({"unknown": dict.fromkeys(entries, torch.eye(3))}, UNKNOWN) for entries in ((0,), (1,), (-1,))),
        *(({"schedule": of}, SCHEDULE) for of in (ALL_OF_THREE[0], ALL_OF_THREE.float(), ~ALL_OF_THREE)),
    ],
    ids=str,
)
def test_senseless_observations_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        ObservationModel(**{"schedule": ALL_OF_THREE, **wrong})


def test_errors_and_matrices_may_be_what_numpy_and_lists_are(unchecked_shapes):
    model = ObservationModel(TWICE, unknown={1: np.eye(3)}, error=[0.5, 1.0, 2.0])
    assert model.scaled(2.0).standard_deviation.tolist() == [[1.0, 2.0, 4.0]]
    truth = torch.ones(2, 1, 3)
    assert model.observe(truth, torch.zeros_like(truth)).tolist() == truth.tolist()


@pytest.mark.usefixtures("readers_cell")
def test_a_schedule_of_other_states_is_refused():
    register_obs_conf("short")(lambda channels, sites: ObservationModel(ALL_OF_THREE))
    sentence = r"obs_conf = 'short' has a schedule of shape \(1, 1, 3\); here it must be \(period, 1, 40\)"
    with pytest.raises(ValueError, match=sentence):
        observation_model("short", 1, 40)


def test_a_mask_may_be_an_array(unchecked_shapes):
    mask = np.arange(12).reshape(1, 1, -1) % 2 == 0
    assert ObservationModel(mask).mask(0).sum() == 6
    for wrong in (mask.astype(int), mask.tolist()):
        with pytest.raises(ValueError, match=r"^schedule of type .* must be a boolean"):
            ObservationModel(wrong)

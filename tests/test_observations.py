"""Who is seen when is as announced, and an observation is the truth plus noise of the size asked for."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small import generator

from assim_lib import observations
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


@pytest.fixture(params=OBS_CONFS)
def model(request) -> ObservationModel:
    return observation_model(request.param, 2, 40)


@pytest.fixture
def registry() -> Iterator[dict]:
    """The registered configurations; what a test adds is gone after it."""
    before = dict(OBS_CONFS)
    yield OBS_CONFS
    OBS_CONFS.clear()
    OBS_CONFS.update(before)


# ---- schedules


@pytest.mark.parametrize(
    ("name", "seen", "period"),
    [
        ("full_obs", 40, 1),
        ("every_4th_dim_partial_obs", 10, 4),
        ("every_4th_fixed", 10, 1),
        ("partial_obs", 20, 2),
        ("unstructured_partial_obs", 10, 8),
    ],
)
def test_how_many_numbers_are_received(name, seen, period):
    model = observation_model(name, 1, 40)
    assert model.schedule.shape == (period, 1, 40)
    assert model.period == period
    masks = model.mask(torch.arange(12))
    assert (masks.sum((-2, -1)) == seen).all()
    assert masks.dtype == torch.bool


def test_partial_observations_rotate_by_one_site_each_cycle():
    masks = observation_model("every_4th_dim_partial_obs", 1, 40).mask(torch.arange(8))
    for k in range(8):
        assert masks[k, 0].nonzero().flatten().tolist() == list(range(k % 4, 40, 4))
    for start in range(5):  # any four successive cycles see every site exactly once
        assert (masks[start : start + 4].sum(0) == 1).all()


def test_every_second_site_alternates():
    masks = observation_model("partial_obs", 1, 128).mask(torch.arange(6))
    for k in range(6):
        assert masks[k, 0].nonzero().flatten().tolist() == list(range(k % 2, 128, 2))


@pytest.mark.parametrize("name", OBS_CONFS)
@pytest.mark.parametrize(("channels", "sites"), [(1, 40), (1, 128), (2, 36), (2, 5)])
def test_every_configuration_fits_every_grid(name, channels, sites):
    model = observation_model(name, channels, sites)
    assert model.schedule.shape == (model.period, channels, sites)
    assert (model.known(torch.arange(model.period)).sum(0) > 0).any()
    truth = torch.randn(2 * model.period, channels, sites, generator=generator())
    assert model.observe(truth, torch.zeros_like(truth), 1.0).isfinite().all()


def test_fixed_partial_observations_stay():
    masks = observation_model("every_4th_fixed", 1, 40).mask(torch.arange(5))
    assert (masks == (torch.arange(40) % 4 == 0)).all()


@pytest.mark.parametrize("kind", ["fixed", "moving"])
@pytest.mark.parametrize("percent", RANDOM_SHARES)
@pytest.mark.parametrize(("channels", "sites"), [(1, 40), (2, 36), (1, 3)])
def test_random_masks_see_their_share_of_the_entries(percent, kind, channels, sites):
    model = observation_model(f"random_{percent}_{kind}", channels, sites)
    assert model.period == {"fixed": 1, "moving": RANDOM_PERIOD}[kind]
    counts = model.schedule.sum((-2, -1))
    assert (counts == max(1, round(percent * channels * sites / 100))).all()
    if sites > 3:
        assert len({tuple(mask.flatten().tolist()) for mask in model.schedule}) == model.period
        # Neither a regular grid nor a cluster.
        places = model.schedule[0].flatten().nonzero().flatten()
        assert len(set(places.diff().tolist())) > 1


@pytest.mark.parametrize("kind", ["fixed", "moving"])
def test_random_masks_are_the_same_each_time(kind):
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again = (observation_model(f"random_25_{kind}", 1, 40).schedule for _ in range(2))
    assert torch.equal(first, again)
    # Also on other machines, and in other versions.
    assert first[0, 0].nonzero().flatten().tolist() == [2, 3, 5, 11, 14, 16, 18, 26, 30, 34]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("batch", BATCHES)
def test_masks_follow_the_shape_of_the_cycle_numbers(model, batch):
    cycle = torch.randint(1000, batch, generator=generator())
    mask = model.mask(cycle)
    assert mask.shape == (*batch, 2, 40)
    for number, row in zip(cycle.flatten().tolist(), mask.reshape(-1, 2, 40), strict=True):
        assert torch.equal(row, model.mask(number))
        assert torch.equal(row, model.schedule[number % len(model.schedule)])
    known = model.known(cycle)
    assert known.shape == (*batch, 2, 40)
    assert not (known & ~mask).any()
    for number, row in zip(cycle.flatten().tolist(), known.reshape(-1, 2, 40), strict=True):
        assert torch.equal(row, model.known(number))


# ---- observations


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_an_observation_is_truth_plus_noise_where_something_is_seen(model, batch, noise):
    truth = 5 + torch.randn((*batch, 50, 2, 40), generator=generator(1))
    unit = torch.randn(truth.shape, generator=generator(2))
    observations = model.observe(truth, unit, noise)
    assert observations.shape == truth.shape
    mask, known = (which(torch.arange(50)).expand(truth.shape) for which in (model.mask, model.known))
    assert (observations[~mask] == 0).all()
    error = (observations - truth)[known]
    torch.testing.assert_close(error, noise * unit[known], rtol=0, atol=1e-5)
    exact = model.observe(truth, torch.zeros_like(truth), noise)
    torch.testing.assert_close((observations - exact)[mask], noise * unit[mask], rtol=0, atol=1e-5)
    assert abs(float(error.mean())) < 4 * noise / len(error) ** 0.5
    assert float(error.std()) == pytest.approx(noise, rel=4 / len(error) ** 0.5)


def test_the_first_state_is_seen_at_cycle_zero():
    model = observation_model("every_4th_dim_partial_obs", 1, 8)
    observations = model.observe(torch.ones(4, 1, 8), torch.zeros(4, 1, 8), 1.0)
    assert torch.equal(observations[0, 0], torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0]))
    assert torch.equal(observations[3, 0], torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1]))


def test_the_operator_acts_before_the_noise():
    assert ObservationModel(torch.ones(1, 1, 3, dtype=torch.bool)).operator is identity
    model = ObservationModel(torch.ones(1, 1, 3, dtype=torch.bool), operator=torch.square)
    truth, unit = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 0.0, -1.0]]])
    assert model.observe(truth, unit, 0.5).flatten().tolist() == [1.5, 4.0, 8.5]


# ---- unknown instruments


def with_unknown(*entries, period=3, channels=2, sites=4):
    """A schedule whose given entries are random maps of the whole state."""
    size = channels * sites
    schedule = torch.rand((period, channels, sites), generator=generator(1)) < 0.6
    matrices = torch.randn((period, size, size), generator=generator(2), dtype=torch.float64)
    return ObservationModel(schedule, torch.square, {entry: matrices[entry] for entry in entries})


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unknown_instrument_measures_its_map_of_the_whole_state(batch, dtype):
    model = with_unknown(0, 2)
    truth, unit = (torch.randn((*batch, 7, 2, 4), generator=generator(seed), dtype=dtype) for seed in (3, 4))
    observations = model.observe(truth, unit, 0.5)
    assert observations.dtype == dtype
    for k in range(7):
        state = truth[..., k, :, :]
        seen = state.square()
        if k % 3 != 1:
            seen = torch.einsum("ij,...j->...i", model.unknown[k % 3].to(dtype), state.flatten(-2)).view_as(state)
        expected = (seen + 0.5 * unit[..., k, :, :]) * model.schedule[k % 3]
        torch.testing.assert_close(observations[..., k, :, :], expected, rtol=1e-5, atol=1e-5)


def test_what_an_unknown_instrument_receives_is_not_known():
    model = with_unknown(0, 2)
    for k in range(7):
        assert torch.equal(model.known(k), model.mask(k) & torch.tensor(k % 3 == 1))
    assert torch.equal(model.known(torch.arange(7)), torch.stack([model.known(k) for k in range(7)]))
    every = with_unknown()
    assert torch.equal(every.known(torch.arange(7)), every.mask(torch.arange(7)))


@pytest.mark.parametrize("entries", [(0, 1, 2), (3,), (-1,)], ids=str)
def test_something_has_to_be_known(entries):
    schedule = torch.ones(3, 1, 4, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"^unknown = \[.*\] must be entries of a schedule of period 3, not all of them\.$"
    ):
        ObservationModel(schedule, unknown=dict.fromkeys(entries, torch.eye(4)))


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


def test_unstructured_weights_are_the_same_each_time():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again = (observation_model("unstructured_partial_obs", 1, 40).unknown for _ in range(2))
    assert first.keys() == {1, 3, 5, 7}
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_without_its_unknown_instruments_every_other_cycle_sees_nothing():
    whole, part = (observation_model(f"unstructured_{name}", 1, 40) for name in ("partial_obs", "known_part"))
    assert torch.equal(part.schedule, whole.known(torch.arange(8)))
    assert not part.unknown
    truth, unit = (torch.randn(16, 1, 40, generator=generator(seed)) for seed in (1, 2))
    ours, theirs = (model.observe(truth, unit, 0.7) for model in (part, whole))
    assert torch.equal(ours[::2], theirs[::2])
    assert (ours[1::2] == 0).all()


# ---- the registry


def test_a_new_configuration_is_one_function(registry):
    @register_obs_conf("first_half")
    def first_half(channels: int, sites: int) -> ObservationModel:
        return ObservationModel((torch.arange(sites) < sites // 2).expand(1, channels, sites).clone())

    assert observation_model("first_half", 1, 10).mask(3).sum() == 5
    assert "first_half" in registry
    assert first_half(1, 10).schedule.shape == (1, 1, 10)  # the decorator leaves the function as it was


def test_a_cell_may_be_run_again(registry):
    for seen in (3, 5):

        @register_obs_conf("first")
        def first(channels: int, sites: int, seen=seen) -> ObservationModel:
            return ObservationModel((torch.arange(sites) < seen).expand(1, channels, sites).clone())

        assert observation_model("first", 1, 10).mask(0).sum() == seen


@pytest.mark.parametrize("name", OBS_CONFS)
def test_the_librarys_names_are_taken(registry, name):
    with pytest.raises(ValueError, match=rf"^obs_conf = '{name}' is the library's own already; choose another name\.$"):
        register_obs_conf(name)(lambda channels, sites: None)
    assert registry[name].__module__ == observations.__name__


def test_tests_leave_no_configuration_behind():
    assert {function.__module__ for function in OBS_CONFS.values()} == {observations.__name__}


def test_an_unknown_name_is_answered_by_one_sentence():
    with pytest.raises(ValueError, match=r"^obs_conf = 'ful_obs' is not registered \(did you mean 'full_obs'\?\)") as e:
        observation_model("ful_obs", 1, 40)
    assert all(name in str(e.value) for name in OBS_CONFS)
    assert str(e.value).endswith(".")
    with pytest.raises(ValueError, match=r"^obs_conf = 'xyz' is not registered; known: "):
        observation_model("xyz", 1, 40)


@pytest.mark.parametrize(
    "schedule",
    [torch.ones(1, 40, dtype=torch.bool), torch.ones(1, 1, 40), torch.zeros(4, 1, 40, dtype=torch.bool)],
    ids=["no period", "no booleans", "sees nothing"],
)
def test_senseless_schedules_are_refused(schedule, unchecked_shapes):
    with pytest.raises(ValueError, match=r"^schedule of shape .* must be boolean, .* and observe something\.$"):
        ObservationModel(schedule)


def test_a_schedule_of_other_states_is_refused(monkeypatch):
    def short(channels, sites):
        return ObservationModel(torch.ones(1, channels, sites // 4, dtype=torch.bool))

    monkeypatch.setitem(OBS_CONFS, "short", short)
    with pytest.raises(
        ValueError, match=r"obs_conf = 'short' has a schedule of shape \(1, 1, 10\); here it must be \(period, 1, 40\)"
    ):
        observation_model("short", 1, 40)

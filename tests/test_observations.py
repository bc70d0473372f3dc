"""Who is seen when is as announced, and an observation is the truth plus noise of the size asked for."""

from collections.abc import Iterator

import pytest
import torch
from small import generator

from assim_lib.observations import OBS_CONFS, ObservationModel, observation_model, register_obs_conf

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
    [("full_obs", 40, 1), ("every_4th_dim_partial_obs", 10, 4), ("every_4th_fixed", 10, 1)],
)
def test_how_many_sites_are_seen(name, seen, period):
    model = observation_model(name, 1, 40)
    assert model.schedule.shape == (period, 1, 40)
    masks = model.mask(torch.arange(12))
    assert (masks.sum((-2, -1)) == seen).all()
    assert masks.dtype == torch.bool


def test_partial_observations_rotate_by_one_site_each_cycle():
    masks = observation_model("every_4th_dim_partial_obs", 1, 40).mask(torch.arange(8))
    for k in range(8):
        assert masks[k, 0].nonzero().flatten().tolist() == list(range(k % 4, 40, 4))
    for start in range(5):  # any four successive cycles see every site exactly once
        assert (masks[start : start + 4].sum(0) == 1).all()


def test_fixed_partial_observations_stay():
    masks = observation_model("every_4th_fixed", 1, 40).mask(torch.arange(5))
    assert (masks == (torch.arange(40) % 4 == 0)).all()


@pytest.mark.parametrize("batch", BATCHES)
def test_masks_follow_the_shape_of_the_cycle_numbers(model, batch):
    cycle = torch.randint(1000, batch, generator=generator())
    mask = model.mask(cycle)
    assert mask.shape == (*batch, 2, 40)
    for number, row in zip(cycle.flatten().tolist(), mask.reshape(-1, 2, 40), strict=True):
        assert torch.equal(row, model.mask(number))
        assert torch.equal(row, model.schedule[number % len(model.schedule)])


# ---- observations


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_an_observation_is_truth_plus_noise_where_something_is_seen(model, batch, noise):
    truth = 5 + torch.randn((*batch, 50, 2, 40), generator=generator(1))
    unit = torch.randn(truth.shape, generator=generator(2))
    observations = model.observe(truth, unit, noise)
    assert observations.shape == truth.shape
    mask = model.mask(torch.arange(50)).expand(truth.shape)
    assert (observations[~mask] == 0).all()
    error = (observations - truth)[mask]
    torch.testing.assert_close(error, noise * unit[mask], rtol=0, atol=1e-5)
    assert abs(float(error.mean())) < 4 * noise / len(error) ** 0.5
    assert float(error.std()) == pytest.approx(noise, rel=4 / len(error) ** 0.5)


def test_the_first_state_is_seen_at_cycle_zero():
    model = observation_model("every_4th_dim_partial_obs", 1, 8)
    observations = model.observe(torch.ones(4, 1, 8), torch.zeros(4, 1, 8), 1.0)
    assert torch.equal(observations[0, 0], torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0]))
    assert torch.equal(observations[3, 0], torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1]))


def test_the_operator_acts_before_the_noise():
    model = ObservationModel(torch.ones(1, 1, 3, dtype=torch.bool), operator=torch.square)
    truth, unit = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 0.0, -1.0]]])
    assert model.observe(truth, unit, 0.5).flatten().tolist() == [1.5, 4.0, 8.5]


# ---- the registry


def test_a_new_configuration_is_one_function(registry):
    @register_obs_conf("first_half")
    def first_half(channels: int, sites: int) -> ObservationModel:
        return ObservationModel((torch.arange(sites) < sites // 2).expand(1, channels, sites).clone())

    assert observation_model("first_half", 1, 10).mask(3).sum() == 5
    assert "first_half" in registry
    assert first_half(1, 10).schedule.shape == (1, 1, 10)  # the decorator leaves the function as it was


def test_a_name_is_given_once(registry):
    with pytest.raises(ValueError, match=r"^obs_conf 'full_obs' is registered already; choose another name\.$"):
        register_obs_conf("full_obs")


def test_tests_leave_no_configuration_behind():
    assert list(OBS_CONFS) == ["full_obs", "every_4th_dim_partial_obs", "every_4th_fixed"]


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

"""The truth is a trajectory of the model, the noise is noise, and nobody is ever handed a damaged file."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from small import Quick, soon_on_attractor

from assim_lib import trajectories
from assim_lib.dynamics import SYSTEMS, Dynamics, register_system
from assim_lib.observations import OBS_CONFS, observation_model
from assim_lib.storage import IntegrityError, data_dir, verify
from assim_lib.systems import Lorenz96, TwoLevelLorenz96, forecast_model_of, system_of
from assim_lib.trajectories import (
    BURN_IN,
    CYCLES,
    MANIFEST,
    SEEDS,
    freeze,
    load_test_set,
    load_trajectories,
    read_manifest,
    save_trajectories,
    simulate,
    training_trajectories,
)

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = Quick(sites=8)
SPLITS = list(CYCLES)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# ---- simulation


@pytest.fixture(scope="module")
def small():
    return simulate(SMALL, 0.1, cycles=20, segments=3, seed=5)


def test_shapes(small):
    assert small.truth.shape == (3, 21, 1, 8)
    assert small.unit_noise.shape == (3, 20, 1, 8)
    assert small.truth.dtype == small.unit_noise.dtype == np.float32


def test_a_seed_is_a_data_set(small):
    xr.testing.assert_identical(small, simulate(SMALL, 0.1, cycles=20, segments=3, seed=5))
    other = simulate(SMALL, 0.1, cycles=20, segments=3, seed=6)
    assert (other.truth != small.truth).mean() > 0.99
    assert (other.unit_noise != small.unit_noise).mean() > 0.99
    assert (small.truth[0] != small.truth[1]).mean() > 0.99


def test_errors_are_the_legacy_stream_of_the_seed(small):
    expected = np.random.RandomState(5).standard_normal((3, 20, 1, 8)).astype(np.float32)
    np.testing.assert_array_equal(small.unit_noise, expected)


@dataclasses.dataclass(frozen=True)
class SmallTwoLevel(TwoLevelLorenz96):
    """Its fast variables, two a site, are neither observed nor forecast."""

    sites: int = 6
    fast: int = 2
    spinup: ClassVar[float] = 1.0


def test_of_a_state_what_the_forecast_model_resolves_is_stored():
    system = SmallTwoLevel()
    data = simulate(system, 0.1, cycles=3, segments=2, seed=5)
    assert data.truth.shape == (2, 4, 1, 6)
    assert data.unit_noise.shape == (2, 3, 1, 6)
    x = system.on_attractor(2, torch.Generator().manual_seed(5))
    assert x.shape == (2, 3, 6)
    for k in range(4):  # the whole state goes on, its slow part is kept
        np.testing.assert_array_equal(data.truth.values[:, k], x[:, :1].float().numpy())
        x = system.flow(x, 20)


@pytest.mark.parametrize("step_size", [0.05, 0.2])
def test_truth_is_a_trajectory_of_the_model(step_size):
    data = simulate(SMALL, step_size, cycles=20, segments=3, seed=5)
    truth = torch.from_numpy(data.truth.values).double()
    forecast = SMALL.flow(truth[:, :-1], round(step_size / 0.05))
    torch.testing.assert_close(forecast, truth[:, 1:], rtol=0, atol=1e-5)


# ---- files


def test_a_stored_file_comes_back(small, tmp_path):
    save_trajectories(small, tmp_path / "a.nc")
    save_trajectories(small.isel(segment=[0]), tmp_path / "b.nc")
    xr.testing.assert_identical(load_trajectories(tmp_path / "a.nc"), small)
    assert sorted(read_manifest(tmp_path)) == ["a.nc", "b.nc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, "a.nc", "b.nc"]


def test_a_damaged_file_is_refused(small, tmp_path):
    save_trajectories(small, tmp_path / "a.nc")
    flip_a_byte(tmp_path / "a.nc")
    with pytest.raises(IntegrityError, match=r"^a\.nc is corrupt: [^\n]+\.$"):
        load_trajectories(tmp_path / "a.nc")


@pytest.mark.parametrize("missing", ["a.nc", MANIFEST])
def test_a_missing_file_is_one_sentence(small, tmp_path, missing):
    save_trajectories(small, tmp_path / "a.nc")
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=r"^a\.nc is not among the trajectory files of [^\n]+\.$"):
        load_trajectories(tmp_path / "a.nc")


# ---- the cache


def cached(**changed):
    settings = {"dynamics": SMALL, "step_size": 0.1, "cycles": 12, "segments": 2, "seed": 0, **changed}
    return training_trajectories(**settings)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSIM_CACHE", str(tmp_path))
    return tmp_path


def test_the_second_time_nothing_is_simulated(cache, monkeypatch):
    first = cached()
    monkeypatch.setattr(trajectories, "simulate", None)
    xr.testing.assert_identical(cached(), first)


def test_another_configuration_is_another_file(cache):
    changes = [
        {},
        {"dynamics": Quick(sites=12)},
        {"dynamics": Quick(sites=8, forcing=9.0)},
        {"dynamics": Quick(sites=8, dt=0.025)},
        {"step_size": 0.2},
        {"cycles": 13},
        {"segments": 3},
        {"seed": 1},
    ]
    starts = [cached(**change).truth.values[0, 1, 0, :8] for change in changes]
    assert len(list(cache.glob("*.nc"))) == len(changes)
    for changed in starts[1:4]:
        assert (changed != starts[0]).all()
    assert (starts[-1] != starts[0]).all()


def test_a_changed_equation_is_another_file(cache):
    """Under the same name, with the same settings, as when a cell is changed and run again."""

    class Damped(Quick):
        def tendency(self, x):
            return super().tendency(x) - 0.5 * x

    truths = [cached(dynamics=kind(sites=8)).truth.values for kind in (Quick, Damped, Quick)]
    assert Damped(sites=8).describe() == SMALL.describe()
    assert len(list(cache.glob("*.nc"))) == 2
    assert (truths[0] != truths[1]).mean() > 0.9
    np.testing.assert_array_equal(truths[0], truths[2])


def test_another_start_is_another_file(cache):
    class Sooner(Quick):
        spinup = Quick.spinup / 2

    for kind in (Quick, Sooner, Quick):
        cached(dynamics=kind(sites=8))
    assert len(list(cache.glob("*.nc"))) == 2


def test_a_damaged_cache_is_reported_and_can_be_made_again(cache):
    first = cached()
    (path,) = cache.glob("*.nc")
    flip_a_byte(path)
    with pytest.raises(IntegrityError, match=r"is corrupt: [^\n]+ delete it to have it made again, [^\n]+\.$"):
        cached()
    path.unlink()
    xr.testing.assert_identical(cached(), first)


def test_an_interrupted_write_leaves_no_file_to_be_found(cache, monkeypatch):
    def interrupted(self, path):
        path.write_bytes(b"half of")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_netcdf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached()
    assert list(cache.iterdir()) == []
    assert cached().truth.shape == (2, 13, 1, 8)


def test_training_never_sees_a_scored_trajectory(cache):
    for seed in (0, 2, 3):
        assert cached(seed=seed).attrs["seed"] not in (SEEDS["validation"], SEEDS["test"])


# ---- the frozen sets

SETS = (("l96", 0.1), ("l96", 0.15), ("ks", 1.0), ("two_level", 0.1), ("vl20", 0.1))  # with their intervals
# Mean and standard deviation of each channel; of the first two as published.
CLIMATOLOGIES = {
    "l96": [(2.34, 3.64)],
    "ks": [(0.0, 1.318)],
    "two_level": [(2.6, 3.55)],
    "vl20": [(2.32, 3.54), (1.81, 4.48)],
}


@pytest.fixture(scope="module", params=[(*which, split) for which in SETS for split in SPLITS], ids=str)
def whole(request) -> tuple[str, float, str, xr.Dataset]:
    name, step_size, split = request.param
    return name, step_size, split, frozen_file(name, step_size, split)


def frozen_file(name, step_size, split):
    return load_trajectories(data_dir() / "test_sets" / f"{name}-dt{step_size:g}-{split}.nc")


def test_the_frozen_files_are_those_of_the_manifest():
    folder = data_dir() / "test_sets"
    manifest = read_manifest(folder)
    assert sorted(manifest) == sorted(path.name for path in folder.glob("*.nc"))
    assert sorted(manifest) == sorted(f"{name}-dt{dt:g}-{split}.nc" for name, dt in SETS for split in SPLITS)
    for name, checksum in manifest.items():
        verify(folder / name, checksum)


def test_a_frozen_file_says_what_it_is(whole):
    name, step_size, split, frozen = whole
    system = system_of(name)
    assert {key: frozen.attrs[key] for key in system.describe()} == system.describe()
    assert frozen.attrs["step_size"] == step_size
    assert frozen.attrs["seed"] == SEEDS[split]
    assert frozen.attrs["split"] == split
    assert frozen.attrs["burn_in"] == BURN_IN
    assert "torch" in frozen.attrs["software"]


def test_a_frozen_file_is_as_long_and_as_large_as_announced(whole):
    name, _, split, frozen = whole
    model, cycles = forecast_model_of(name), BURN_IN + {"test": 5000, "validation": 2000}[split]
    assert CYCLES[split] + BURN_IN == cycles
    assert frozen.truth.shape == (1, cycles + 1, model.channels, model.sites)
    assert frozen.unit_noise.shape == (1, cycles, model.channels, model.sites)
    assert frozen.truth.dtype == frozen.unit_noise.dtype == np.float32


def test_frozen_truth_has_the_climatology_of_its_system(whole):
    name, _, _, frozen = whole
    truth = frozen.truth.values[0]
    assert np.isfinite(truth).all()
    for channel, (mean, std) in enumerate(CLIMATOLOGIES[name]):
        assert truth[:, channel].mean() == pytest.approx(mean, abs=0.07)
        assert truth[:, channel].std() == pytest.approx(std, rel=0.02)
        at_sites = truth[:, channel].std(0)  # every site is as alive as the others
        assert at_sites.min() > 0.85 * std
        assert at_sites.max() < 1.15 * std
    assert len(CLIMATOLOGIES[name]) == truth.shape[1]


@pytest.mark.parametrize(("name", "forcing"), [("l96", 8), ("vl20", 10)])
def test_in_the_frozen_truth_forcing_and_damping_balance(name, forcing):
    """Energy is neither made nor lost in between: its source is F times the mean, its sink the mean square."""
    truth = load_test_set(name, "full_obs", 0.1, 1.0).truth.astype(float)
    source, sink = forcing * truth.sum(1).mean(), np.square(truth).sum(1).mean()
    assert source == pytest.approx(sink, rel=1e-3)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("name", "step_size"), [which for which in SETS if which[0] != "two_level"])
def test_frozen_truth_is_a_trajectory_of_the_model(name, step_size, split):
    truth = torch.from_numpy(frozen_file(name, step_size, split).truth.values[0]).double()
    system, some = system_of(name), slice(None, None, 5)
    forecast = system.flow(truth[:-1][some], system.steps_per_cycle(step_size))
    torch.testing.assert_close(forecast, truth[1:][some], rtol=0, atol=2e-5)


@pytest.mark.parametrize("split", SPLITS)
def test_the_truth_of_two_levels_is_no_trajectory_of_its_forecast_model(split):
    """In a cycle that model misses by more than rounding and by less than an observation: a model error."""
    truth = torch.from_numpy(frozen_file("two_level", 0.1, split).truth.values[0]).double()
    error = (forecast_model_of("two_level").flow(truth[:-1], 2) - truth[1:]).square().mean().sqrt()
    assert 0.1 < float(error) < 0.3


def test_frozen_noise_is_the_legacy_stream_of_the_seed(whole):
    *_, frozen = whole
    noise = frozen.unit_noise.values[0]
    expected = np.random.RandomState(frozen.attrs["seed"]).standard_normal(noise.shape)
    np.testing.assert_array_equal(noise, expected.astype(np.float32))
    assert abs(noise.mean()) < 4 / noise.size**0.5
    assert noise.std() == pytest.approx(1, abs=4 / (2 * noise.size) ** 0.5)
    lagged = [(noise[1:] * noise[:-1]).mean(), (noise[..., 1:] * noise[..., :-1]).mean()]
    assert np.abs(lagged).max() < 4 / noise.size**0.5


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("noise", [1.0, 2.5])
@pytest.mark.parametrize("obs_conf", OBS_CONFS)
def test_observation_k_sees_truth_k_plus_one(split, obs_conf, noise):
    frozen = frozen_file("l96", 0.1, split)
    data = load_test_set("l96", obs_conf, 0.1, noise, split)
    assert data.frozen
    cycles = data.burn_in + CYCLES[split]
    assert data.truth.shape == (cycles + 1, 1, 40)
    assert data.observations.shape == data.masks.shape == (cycles, 1, 40)
    np.testing.assert_array_equal(np.isnan(data.observations), ~data.masks)
    model = observation_model(obs_conf, 1, 40)
    for k in range(9):
        np.testing.assert_array_equal(data.masks[k], model.mask(k))
    known = model.known(torch.arange(cycles)).numpy()
    expected = (frozen.truth.values[0, 1:] + noise * frozen.unit_noise.values[0])[known]
    np.testing.assert_allclose(data.observations[known], expected, atol=1e-5)
    error = (data.observations - data.truth[1:])[known]
    assert error.std() == pytest.approx(noise, rel=0.02)
    assert abs(error.mean()) < 0.02 * noise
    assert (data.observations - data.truth[:-1])[known].var() > noise**2 + 1  # another cycle's truth is far


@pytest.mark.parametrize(
    ("name", "step_size", "obs_conf"),
    [
        ("l96", 0.15, "every_4th_fixed"),
        ("ks", 1.0, "partial_obs"),
        ("two_level", 0.1, "full_obs"),
        ("vl20", 0.1, "every_4th_fixed"),
    ],
)
def test_every_system_has_its_test_set(name, step_size, obs_conf):
    data = load_test_set(name, obs_conf, step_size, 0.5, "validation")
    assert data.frozen
    assert data.name == f"{name}-dt{step_size:g}-validation"
    model = forecast_model_of(name)
    np.testing.assert_array_equal(
        data.masks[:4], observation_model(obs_conf, model.channels, model.sites).mask(torch.arange(4))
    )
    error = (data.observations - data.truth[1:])[data.masks]
    assert error.std() == pytest.approx(0.5, rel=0.02)


def test_every_setting_sees_the_same_truth_and_errors():
    full = load_test_set("l96", "full_obs", 0.1, 1.0)
    partial = load_test_set("l96", "every_4th_dim_partial_obs", 0.1, 2.0)
    np.testing.assert_array_equal(partial.truth, full.truth)
    error, twice = full.observations - full.truth[1:], partial.observations - partial.truth[1:]
    np.testing.assert_allclose(twice[partial.masks], 2 * error[partial.masks], atol=1e-5)


@pytest.mark.parametrize(("name", "step_size"), SETS)
def test_what_tunes_is_not_what_scores(name, step_size):
    test, validation = (load_test_set(name, "full_obs", step_size, 1.0, split) for split in ("test", "validation"))
    start = validation.truth[0]
    assert np.sqrt(np.square(test.truth - start).mean((1, 2))).min() > 0.25 * test.truth.std()
    first, second = (data.observations[:200] - data.truth[1:201] for data in (test, validation))
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


# ---- systems without a frozen set


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(trajectories, "CYCLES", {"test": 6, "validation": 5})
    monkeypatch.setattr(trajectories, "BURN_IN", 2)


@pytest.fixture
def own_system() -> Iterator[type[Dynamics]]:
    """A system that a reader registers; it is gone after the test."""

    class Own(Quick):
        name: ClassVar[str] = "own"

        def __init__(self):
            super().__init__(sites=8)

    yield register_system(Own)
    del SYSTEMS["own"]


def test_without_a_frozen_set_truth_is_simulated_once_and_kept(own_system, short, cache, monkeypatch):
    sets = {split: load_test_set("own", "every_4th_fixed", 0.15, 0.5, split) for split in SPLITS}
    assert len(list(cache.glob("*.nc"))) == 2
    monkeypatch.setattr(trajectories, "simulate", None)
    for split, cycles in (("test", 8), ("validation", 7)):
        data = sets[split]
        assert not data.frozen
        assert data.name == f"own-dt0.15-{split}"
        assert data.burn_in == 2
        assert data.truth.shape == (cycles + 1, 1, 8)
        expected = SMALL.on_attractor(1, torch.Generator().manual_seed(SEEDS[split]))
        torch.testing.assert_close(torch.from_numpy(data.truth[0]), expected[0].float())
        np.testing.assert_array_equal(load_test_set("own", "full_obs", 0.15, 1.0, split).truth, data.truth)
    assert (sets["test"].truth[:8] != sets["validation"].truth).all()


def test_another_interval_has_another_truth(short, cache, monkeypatch):
    monkeypatch.setattr(Lorenz96, "on_attractor", soon_on_attractor)
    assert load_test_set("l96", "full_obs", 0.1, 1.0).frozen
    data = load_test_set("l96", "full_obs", 0.05, 1.0)
    assert not data.frozen
    truth = torch.from_numpy(data.truth).double()
    torch.testing.assert_close(Lorenz96().flow(truth[:-1], 1), truth[1:], rtol=0, atol=1e-4)


def test_an_unknown_system_is_one_sentence():
    with pytest.raises(
        ValueError, match=r"^system = 'l95' is not registered \(did you mean 'l96'\?\); known: [^\n]+\.$"
    ):
        load_test_set("l95", "full_obs", 0.1, 1.0)


def test_freezing_is_repeatable(tmp_path, short):
    paths = [freeze(SMALL, 0.1, "test", tmp_path / name) for name in ("one", "two")]
    first, second = (load_trajectories(path) for path in paths)
    xr.testing.assert_identical(first, second)
    assert first.truth.shape == (1, 9, 1, 8)
    assert first.attrs["burn_in"] == 2


def test_a_test_set_cannot_be_changed():
    data = load_test_set("l96", "full_obs", 0.1, 1.0, "validation")
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.noise = 0.0


def test_parts_know_where_they_are():
    whole = load_test_set("l96", "every_4th_dim_partial_obs", 0.1, 1.0, "validation")
    part = whole.part(5, 20).part(2, 10)
    assert part.first_cycle == 7
    assert np.array_equal(part.truth, whole.truth[7:18])
    assert np.array_equal(part.masks, whole.masks[7:17])


def test_a_system_that_blows_up_makes_no_truth():
    with pytest.raises(
        ValueError, match=r"^dt = 0.2 lets states of system = 'l96' grow without bounds; take a shorter"
    ):
        simulate(Lorenz96(dt=0.2), 0.2, 5, 2, 0)


def test_a_truth_that_blows_up_later_is_no_truth_either(monkeypatch):
    monkeypatch.setattr(Lorenz96, "on_attractor", lambda *_: 1e200 * torch.randn(2, 1, 40, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"^dt = 0.05 lets states of system = 'l96' grow without bounds; take a shorter"
    ):
        simulate(Lorenz96(), 0.1, 5, 2, 0)

"""The truth is a trajectory of the model, the noise is noise, and nobody is ever handed a damaged file."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from small import Quick

from assim_lib import trajectories
from assim_lib.dynamics import Lorenz96, system_of
from assim_lib.observations import OBS_CONFS, observation_model
from assim_lib.storage import IntegrityError, data_dir, verify
from assim_lib.trajectories import (
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


@pytest.fixture(scope="module", params=SPLITS)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def frozen(split) -> xr.Dataset:
    return load_trajectories(data_dir() / "test_sets" / f"l96-dt0.1-{split}.nc")


def test_the_frozen_files_are_those_of_the_manifest():
    folder = data_dir() / "test_sets"
    manifest = read_manifest(folder)
    assert sorted(manifest) == sorted(path.name for path in folder.glob("*.nc"))
    for name, checksum in manifest.items():
        verify(folder / name, checksum)


def test_a_frozen_file_says_what_it_is(split, frozen):
    assert {name: frozen.attrs[name] for name in Lorenz96().describe()} == Lorenz96().describe()
    assert frozen.attrs["step_size"] == 0.1
    assert frozen.attrs["seed"] == SEEDS[split]
    assert frozen.attrs["split"] == split
    assert "torch" in frozen.attrs["software"]
    assert frozen.truth.shape == (1, frozen.attrs["burn_in"] + CYCLES[split] + 1, 1, 40)
    assert CYCLES["test"] == 5000


def test_frozen_truth_is_a_trajectory_of_the_model(frozen):
    truth = torch.from_numpy(frozen.truth.values[0]).double()
    torch.testing.assert_close(Lorenz96().flow(truth[:-1], 2), truth[1:], rtol=0, atol=2e-5)
    assert float(truth.std()) == pytest.approx(3.64, abs=0.05)


def test_frozen_noise_is_the_legacy_stream_of_the_seed(frozen):
    noise = frozen.unit_noise.values[0]
    expected = np.random.RandomState(frozen.attrs["seed"]).standard_normal(noise.shape)
    np.testing.assert_array_equal(noise, expected.astype(np.float32))
    assert abs(noise.mean()) < 4 / noise.size**0.5
    assert noise.std() == pytest.approx(1, abs=4 / (2 * noise.size) ** 0.5)
    lagged = [(noise[1:] * noise[:-1]).mean(), (noise[..., 1:] * noise[..., :-1]).mean()]
    assert np.abs(lagged).max() < 4 / noise.size**0.5


@pytest.mark.parametrize("noise", [1.0, 2.5])
@pytest.mark.parametrize("obs_conf", OBS_CONFS)
def test_observation_k_sees_truth_k_plus_one(frozen, split, obs_conf, noise):
    data = load_test_set("l96", obs_conf, 0.1, noise, split)
    cycles = data.burn_in + CYCLES[split]
    assert data.truth.shape == (cycles + 1, 1, 40)
    assert data.observations.shape == data.masks.shape == (cycles, 1, 40)
    np.testing.assert_array_equal(np.isnan(data.observations), ~data.masks)
    model = observation_model(obs_conf, 1, 40)
    for k in range(9):
        np.testing.assert_array_equal(data.masks[k], model.mask(k))
    expected = (frozen.truth.values[0, 1:] + noise * frozen.unit_noise.values[0])[data.masks]
    np.testing.assert_allclose(data.observations[data.masks], expected, atol=1e-5)
    error = (data.observations - data.truth[1:])[data.masks]
    assert error.std() == pytest.approx(noise, rel=0.02)
    assert abs(error.mean()) < 0.02 * noise
    assert (data.observations - data.truth[:-1])[data.masks].var() > noise**2 + 1  # another cycle's truth is far


def test_every_setting_sees_the_same_truth_and_errors():
    full = load_test_set("l96", "full_obs", 0.1, 1.0)
    partial = load_test_set("l96", "every_4th_dim_partial_obs", 0.1, 2.0)
    np.testing.assert_array_equal(partial.truth, full.truth)
    error, twice = full.observations - full.truth[1:], partial.observations - partial.truth[1:]
    np.testing.assert_allclose(twice[partial.masks], 2 * error[partial.masks], atol=1e-5)


def test_what_tunes_is_not_what_scores():
    test, validation = (load_test_set("l96", "full_obs", 0.1, 1.0, split) for split in ("test", "validation"))
    start = validation.truth[0]
    assert np.sqrt(np.square(test.truth - start).mean((1, 2))).min() > 1.0
    first, second = (data.observations[:200] - data.truth[1:201] for data in (test, validation))
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_an_interval_without_a_frozen_set_is_one_sentence():
    with pytest.raises(FileNotFoundError, match=r"^l96-dt0\.3-test\.nc is not among [^\n]+\.$"):
        load_test_set("l96", "full_obs", 0.3, 1.0)


def test_freezing_is_repeatable(tmp_path, monkeypatch):
    monkeypatch.setattr(trajectories, "CYCLES", {"test": 4, "validation": 3})
    monkeypatch.setattr(trajectories, "BURN_IN", 2)
    paths = [freeze(SMALL, 0.1, "test", tmp_path / name) for name in ("one", "two")]
    first, second = (load_trajectories(path) for path in paths)
    xr.testing.assert_identical(first, second)
    assert first.truth.shape == (1, 7, 1, 8)
    assert first.attrs["burn_in"] == 2


# ---- systems by name


def test_systems_by_name():
    assert system_of("l96") == Lorenz96()
    with pytest.raises(ValueError, match=r"^system = 'l95' is not known; known: l96\.$"):
        system_of("l95")


def test_a_test_set_cannot_be_changed():
    data = load_test_set("l96", "full_obs", 0.1, 1.0, "validation")
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.noise = 0.0

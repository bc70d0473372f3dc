"""The truth is a trajectory of the model, the errors are errors, and nobody is ever handed a damaged file."""

import hashlib
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from small import SETTING, Quick, generator

from assim_lib import storage
from assim_lib.evaluation import LOST_AFTER, evaluate
from assim_lib.observations import OBS_CONFS, ObservationModel, observation_model
from assim_lib.seeds import FROZEN
from assim_lib.setting import Setting
from assim_lib.storage import IntegrityError, data_dir, verify
from assim_lib.systems import Lorenz96, TwoLevelLorenz96, forecast_model_of, register_system, system_of
from assim_lib.trajectories import (
    MANIFEST,
    cached,
    load_trajectories,
    observed,
    read_manifest,
    save_trajectories,
    simulate,
)
from assim_lib.twin import BURN_IN, CYCLES, freeze, load_twin, trajectory_path

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


def test_a_seed_is_a_data_set(small):
    assert small.truth.shape == (3, 21, 1, 8)
    assert small.unit_noise.shape == (3, 20, 1, 8)
    assert small.truth.dtype == small.unit_noise.dtype == np.float32
    xr.testing.assert_identical(small, simulate(SMALL, 0.1, cycles=20, segments=3, seed=5))
    other = simulate(SMALL, 0.1, cycles=20, segments=3, seed=6)
    assert (other.truth != small.truth).mean() > 0.99
    assert (other.unit_noise != small.unit_noise).mean() > 0.99
    assert (small.truth[0] != small.truth[1]).mean() > 0.99


@pytest.mark.parametrize(("seed", "legacy"), [(5, 5), ((3 << 32) + 5, [3, 5])])
def test_errors_are_the_legacy_stream_of_the_seed(seed, legacy):
    expected = np.random.RandomState(legacy).standard_normal((1, 4, 1, 8)).astype(np.float32)
    np.testing.assert_array_equal(simulate(SMALL, 0.1, cycles=4, segments=1, seed=seed).unit_noise, expected)


@dataclass(frozen=True)
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
    x = system.on_attractor(2, generator(5))
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


class Unbounded(Quick):
    """On its attractor at first, and far away soon."""

    def on_attractor(self, batch, generator, spinup=4.0):
        return 1e30 * torch.randn(batch, 1, self.sites, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("system", "dt"), [(Lorenz96(dt=0.2), 0.2), (Unbounded(), 0.05)])
def test_a_system_that_blows_up_makes_no_truth(system, dt):
    sentence = rf"^dt = {dt} lets states of system = 'l96' grow without bounds; take a shorter integration step\.$"
    with pytest.raises(ValueError, match=sentence):
        simulate(system, 0.2, 5, 2, 0)


def test_what_is_observed_of_a_truth_is_the_state_after_each_interval(small):
    schedule = torch.rand(3, 1, 8, generator=generator()) < 0.5
    model = ObservationModel(schedule, error=torch.linspace(0.1, 2, 8))
    source = torch.from_numpy(small.truth.values), torch.from_numpy(small.unit_noise.values)
    for phase in (None, torch.randint(3, (3, 20), generator=generator(1))):
        truth, observations = observed(small, model, phase)
        assert torch.equal(truth, source[0][:, 1:])
        entries = torch.arange(20).expand(3, 20) if phase is None else phase
        expected = truth + torch.linspace(0.1, 2, 8) * source[1]
        assert torch.equal(observations.isfinite(), schedule[entries % 3])
        torch.testing.assert_close(observations, expected.where(schedule[entries % 3], np.nan), equal_nan=True)


# ---- files


def test_a_stored_file_comes_back(small, tmp_path):
    save_trajectories(small, tmp_path / "a.nc")
    save_trajectories(small.isel(segment=[0]), tmp_path / "b.nc")
    xr.testing.assert_identical(load_trajectories(tmp_path / "a.nc"), small)
    assert sorted(read_manifest(tmp_path)) == ["a.nc", "b.nc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", MANIFEST, "a.nc", "b.nc"]


@pytest.mark.parametrize("missing", ["a.nc", MANIFEST])
def test_a_damaged_or_missing_file_is_one_sentence(small, tmp_path, missing):
    save_trajectories(small, tmp_path / "a.nc")
    flip_a_byte(tmp_path / "a.nc")
    with pytest.raises(IntegrityError, match=r"^a\.nc is corrupt: [^\n]+\.$"):
        load_trajectories(tmp_path / "a.nc")
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=r"^a\.nc is not among the trajectory files of [^\n]+\.$"):
        load_trajectories(tmp_path / "a.nc")


# ---- the cache


def kept(**changed):
    return cached(**{"dynamics": SMALL, "step_size": 0.1, "cycles": 12, "segments": 2, "seed": 0, **changed})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSIM_CACHE", str(tmp_path))
    return tmp_path


class Counted(Quick):
    """Knows how many truths were simulated with it."""

    simulated: ClassVar[list[int]] = []

    def on_attractor(self, batch, generator, spinup=4.0):
        self.simulated.append(batch)
        return super().on_attractor(batch, generator, spinup)


class Damped(Quick):
    """Another equation under the same name, with the same settings, as when a cell is changed and run again."""

    def tendency(self, x):
        return super().tendency(x) - 0.5 * x


class Sooner(Quick):
    spinup = Quick.spinup / 2


class Otherwise(Quick):
    method = "rk4_38"


def test_the_second_time_nothing_is_simulated_unless_it_is_another_configuration(cache):
    Counted.simulated.clear()
    xr.testing.assert_identical(*(kept(dynamics=Counted(sites=8)) for _ in range(2)))
    assert Counted.simulated == [2]
    changes = [
        {},
        {"dynamics": Quick(sites=12)},
        {"dynamics": Quick(sites=8, forcing=9.0)},
        {"dynamics": Quick(sites=8, dt=0.025)},
        {"dynamics": Damped(sites=8)},
        {"seed": 1},
        {"step_size": 0.2},
        {"cycles": 13},
        {"segments": 3},
        {"dynamics": Sooner(sites=8)},
        {"dynamics": Otherwise(sites=8)},
    ]
    assert Damped(sites=8).describe() == SMALL.describe()
    starts = [kept(**change).truth.values[0, 1, 0, :8] for change in changes]
    assert len(list(cache.glob("*.nc"))) == len(changes)
    for other in starts[1:6]:
        assert (other != starts[0]).all()
    np.testing.assert_array_equal(kept().truth.values[0, 1, 0], starts[0])


def test_a_damaged_cache_is_reported_and_an_interrupted_write_leaves_nothing(cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept()
    assert [path.name for path in cache.iterdir()] == [".lock"]
    first = kept()
    (path,) = cache.glob("*.nc")
    flip_a_byte(path)
    with pytest.raises(IntegrityError, match=r"is corrupt: [^\n]+ delete it to have it made again, [^\n]+\.$"):
        kept()
    path.unlink()
    xr.testing.assert_identical(kept(), first)


# ---- the frozen sets

SETS = (("l96", 0.1), ("l96", 0.15), ("ks", 1.0), ("two_level", 0.1), ("vl20", 0.1))  # with their intervals
FILES = [(*which, split) for which in SETS for split in SPLITS]
# Mean and standard deviation of each channel; of the first two as published.
CLIMATOLOGIES = {
    "l96": [(2.34, 3.64)],
    "ks": [(0.0, 1.318)],
    "two_level": [(2.6, 3.55)],
    "vl20": [(2.32, 3.54), (1.81, 4.48)],
}


@pytest.fixture(scope="module", params=FILES, ids=str)
def whole(request) -> tuple[str, float, str, xr.Dataset]:
    return *request.param, load_trajectories(trajectory_path(*request.param))


def test_the_frozen_files_are_those_of_the_manifest():
    folder = data_dir() / "test_sets"
    manifest = read_manifest(folder)
    assert sorted(manifest) == sorted(path.name for path in folder.glob("*.nc"))
    assert sorted(manifest) == sorted(trajectory_path(*file).name for file in FILES)
    for name, checksum in manifest.items():
        verify(folder / name, checksum)


def test_a_frozen_file_is_what_it_says(whole):
    name, step_size, split, frozen = whole
    system, model = system_of(name), forecast_model_of(name)
    said = {**system.describe(), "step_size": step_size, "seed": FROZEN[split], "split": split, "burn_in": BURN_IN}
    assert {key: frozen.attrs[key] for key in said} == said
    assert "torch" in frozen.attrs["software"]
    cycles = 200 + {"test": 5000, "validation": 2000}[split]
    assert BURN_IN + CYCLES[split] == cycles
    assert frozen.truth.shape == (1, cycles + 1, model.channels, model.sites)
    assert frozen.unit_noise.shape == (1, cycles, model.channels, model.sites)
    assert frozen.truth.dtype == frozen.unit_noise.dtype == np.float32


def test_frozen_truth_has_the_climatology_of_its_system(whole):
    name, _, _, frozen = whole
    truth = frozen.truth.values[0]
    assert np.isfinite(truth).all()
    for channel, (mean, std) in zip(truth.swapaxes(0, 1), CLIMATOLOGIES[name], strict=True):
        assert channel.mean() == pytest.approx(mean, abs=0.07)
        assert channel.std() == pytest.approx(std, rel=0.02)
        at_sites = channel.std(0)  # every site is as alive as the others
        assert at_sites.min() > 0.85 * std
        assert at_sites.max() < 1.15 * std


@pytest.mark.parametrize(("name", "forcing"), [("l96", 8), ("vl20", 10)])
def test_in_the_frozen_truth_forcing_and_damping_balance(name, forcing):
    """Energy is neither made nor lost in between: its source is F times the mean, its sink the mean square."""
    truth = Setting(name).load().states.astype(float)
    source, sink = forcing * truth.sum(1).mean(), np.square(truth).sum(1).mean()
    assert source == pytest.approx(sink, rel=1e-3)


def test_frozen_truth_is_a_trajectory_of_the_model(whole):
    """Of its own system; the model of two levels misses a cycle by more than rounding, and less than an observation."""
    name, step_size, _, frozen = whole
    truth, model = torch.from_numpy(frozen.truth.values[0]).double(), forecast_model_of(name)
    error = (model.flow(truth[:-1][::5], model.steps_per_cycle(step_size)) - truth[1:][::5]).abs()
    if name == "two_level":
        assert 0.1 < float(error.square().mean().sqrt()) < 0.3
    else:
        assert error.max() < 2e-5


def test_frozen_errors_are_the_legacy_stream_of_the_seed(whole):
    *_, frozen = whole
    noise = frozen.unit_noise.values[0]
    expected = np.random.RandomState(frozen.attrs["seed"]).standard_normal(noise.shape)
    np.testing.assert_array_equal(noise, expected.astype(np.float32))
    assert abs(noise.mean()) < 4 / noise.size**0.5
    assert noise.std() == pytest.approx(1, abs=4 / (2 * noise.size) ** 0.5)
    lagged = [(noise[1:] * noise[:-1]).mean(), (noise[..., 1:] * noise[..., :-1]).mean()]
    assert np.abs(lagged).max() < 4 / noise.size**0.5


@pytest.mark.parametrize(("split", "noise"), [("test", 1.0), ("validation", 2.5)])
@pytest.mark.parametrize("obs_conf", OBS_CONFS)
def test_observation_k_sees_truth_k(split, obs_conf, noise):
    frozen = load_trajectories(trajectory_path("l96", 0.1, split))
    twin = Setting("l96", obs_conf, 0.1, noise).load(split)
    assert twin.frozen
    cycles = twin.burn_in + CYCLES[split]
    assert twin.truth.shape == twin.observations.shape == (cycles, 1, 40)
    np.testing.assert_array_equal(twin.states, frozen.truth.values[0])
    model = observation_model(obs_conf, 1, 40)
    np.testing.assert_array_equal(twin.seen, model.mask(torch.arange(cycles)))
    np.testing.assert_array_equal(np.isfinite(twin.observations), twin.seen)
    assert (twin.observation_model.standard_deviation == noise).all()
    known = model.known(torch.arange(cycles)).numpy()
    expected = (twin.truth + noise * frozen.unit_noise.values[0])[known]
    np.testing.assert_allclose(twin.observations[known], expected, atol=1e-5)
    error = (twin.observations - twin.truth)[known]
    assert error.std() == pytest.approx(noise, rel=0.02)
    assert abs(error.mean()) < 0.02 * noise
    assert (twin.observations - twin.states[:-1])[known].var() > noise**2 + 1  # another cycle's truth is far


# SHA-256 (its first digits) of truth and observations, 0 where nothing is seen, as methods have always been scored on.
DIGESTS = [
    (Setting("l96", "full_obs", 0.1, 1.0), "test", "d6e6b84342be95a0", "8a18ebe4a0ad0b48"),
    (Setting("l96", "every_4th_dim_partial_obs", 0.1, 2.5), "test", "d6e6b84342be95a0", "3159646b2a641611"),
    (Setting("l96", "unstructured_partial_obs", 0.1, 1.0), "test", "d6e6b84342be95a0", "32181a063e1f3602"),
    (Setting("l96", "every_4th_fixed", 0.15, 0.7), "test", "7c7daa70e2c6b766", "b1af37f40e6798c4"),
    (Setting("ks", "partial_obs", 1.0, 1.0), "validation", "abf97d3f62c57302", "adbeebb0afbc082b"),
    (Setting("two_level", "random_25_moving", 0.1, 0.7), "validation", "e6eee47bc724b6a2", "af7cb6f9c93d4dac"),
    (Setting("vl20", "every_4th_dim_partial_obs", 0.1, 1.0), "test", "ba9811bb0e40d5b7", "40f874ee50b65336"),
]


@pytest.mark.parametrize(("setting", "split", "truth", "observations"), DIGESTS, ids=[str(d[0].slug) for d in DIGESTS])
def test_every_setting_has_the_numbers_that_it_always_had(setting, split, truth, observations):
    twin = setting.load(split)
    assert twin.frozen
    assert twin.setting == setting
    assert twin.name == f"{setting.system}-dt{setting.step_size:g}-{split}"
    digests = [hashlib.sha256(np.nan_to_num(x).tobytes()).hexdigest() for x in (twin.truth, twin.observations)]
    assert [digest[:16] for digest in digests] == [truth, observations]


@pytest.mark.parametrize(("name", "step_size"), SETS)
def test_what_tunes_is_not_what_scores(name, step_size):
    test, validation = (Setting(name, step_size=step_size).load(split) for split in ("test", "validation"))
    assert np.sqrt(np.square(test.states - validation.initial).mean((1, 2))).min() > 0.25 * test.truth.std()
    first, second = ((twin.observations - twin.truth)[:200].ravel() for twin in (test, validation))
    assert np.abs(np.corrcoef(first, second)[0, 1]) < 0.05


# ---- an experiment


@pytest.fixture(scope="module")
def twin():
    return Setting("l96", "every_4th_dim_partial_obs").load("validation")


def test_parts_know_where_they_are(twin):
    part = twin.part(5, 20).part(2, 10)
    assert part.first_cycle == 7
    with pytest.raises(FrozenInstanceError):
        part.first_cycle = 0
    for ours, expected in (
        (part.states, twin.states[7:18]),
        (part.truth, twin.truth[7:17]),
        (part.observations, twin.observations[7:17]),
        (part.seen, twin.seen[7:17]),
        (part.climatology, twin.states),
    ):
        np.testing.assert_array_equal(ours, expected)


def test_what_is_seen_is_scheduled_and_a_number(twin):
    observations = twin.observations.copy()
    observations[2] = np.nan  # a cycle that is lost
    observations[3, 0, 3] = np.inf
    observations[4, 0, 1] = 5.0  # nobody expects it
    seen = replace(twin, observations=observations).seen
    expected = twin.seen.copy()
    expected[2] = expected[3, 0, 3] = False
    np.testing.assert_array_equal(seen, expected)
    assert (seen != twin.seen).sum() == 11


def test_scores_are_those_of_its_first_cycles_without_the_burn_in(twin):
    ensemble = twin.truth[:500, None] + np.random.RandomState(0).standard_normal((500, 4, 1, 40))
    assert twin.score(ensemble) == evaluate(ensemble, twin.truth[:500], BURN_IN)
    assert twin.score(ensemble).cycles == 300
    with pytest.raises(ValueError, match=r"^300 cycles are too few: 200 of burn-in, and at least 200 that are scored"):
        twin.score(ensemble[:300])
    assert not twin.loses(ensemble[:300])
    with pytest.raises(ValueError, match=r"^200 cycles are too few: 200 of burn-in, and at least 1 that are scored"):
        twin.loses(ensemble[:200])


# ---- systems without a frozen set


@pytest.fixture
def short(monkeypatch):
    for split, cycles in (("test", 6), ("validation", 5)):
        monkeypatch.setitem(CYCLES, split, cycles)


def test_a_method_loses_the_truth_where_it_is_worse_than_the_climate_for_long(twin):
    ensemble = np.repeat(twin.truth[:, None], 2, 1)
    far = ensemble + 5 * twin.truth.std()
    assert not twin.loses(ensemble)
    assert twin.loses(far)
    assert not twin.loses(np.concatenate([far[: twin.burn_in], ensemble[twin.burn_in :]]))
    assert twin.loses(np.concatenate([ensemble[:-LOST_AFTER], far[-LOST_AFTER:]]))
    assert twin.climatology_rmse.mean() == pytest.approx(twin.truth.std(), rel=0.05)


def test_the_bias_of_what_was_just_seen_is_told_apart(twin):
    ensemble = (twin.truth + np.where(twin.seen, 0.5, 0.0).astype(np.float32))[:, None]
    ages = twin.by_age(ensemble)
    assert ages["bias"] == pytest.approx([0.5 * (age == 0) for age in ages["age"]], abs=1e-6)


@pytest.mark.usefixtures("readers_cell", "short")
def test_without_a_frozen_set_truth_is_simulated_once_and_kept(cache):
    @register_system
    class Own(Counted):
        name: ClassVar[str] = "own"

        def __init__(self):
            super().__init__(sites=8)

    Counted.simulated.clear()
    setting = Setting("own", "every_4th_fixed", 0.15, 0.5)
    twins = {split: setting.load(split) for split in SPLITS}
    for split, cycles in (("test", 206), ("validation", 205)):
        twin = twins[split]
        assert not twin.frozen
        assert twin.name == f"own-dt0.15-{split}"
        assert twin.truth.shape == (cycles, 1, 8)
        expected = SMALL.on_attractor(1, generator(FROZEN[split]))[0].float()
        torch.testing.assert_close(torch.from_numpy(twin.initial), expected)
        np.testing.assert_array_equal(replace(setting, obs_conf="full_obs").load(split).truth, twin.truth)
    assert (twins["test"].truth[:200] != twins["validation"].truth[:200]).mean() > 0.99
    assert len(Counted.simulated) == len(list(cache.glob("*.nc"))) == 2


@pytest.mark.usefixtures("short")
def test_another_interval_has_another_truth(cache):
    assert SETTING.load().frozen
    twin = load_twin(replace(SETTING, step_size=0.05))
    assert not twin.frozen
    truth = torch.from_numpy(twin.states).double()
    torch.testing.assert_close(Lorenz96().flow(truth[:-1], 1), truth[1:], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("short", "readers_cell")
def test_freezing_is_repeatable_and_done_in_the_data_folder(tmp_path, monkeypatch):
    register_system(type("Own", (Quick,), {"name": "own"}))
    assert not Setting("own").load().frozen
    frozen = []
    for name in ("one", "other"):
        monkeypatch.setenv("ASSIM_DATA", str(tmp_path / name))
        frozen.append(load_trajectories(freeze(system_of("own"), 0.1, "test")))
    xr.testing.assert_identical(*frozen)
    assert frozen[0].truth.shape == (1, 207, 1, 40)
    assert frozen[0].attrs["burn_in"] == BURN_IN
    assert Setting("own").load().frozen


@pytest.mark.usefixtures("short", "readers_cell")
def test_a_frozen_truth_is_that_of_the_system_as_it_is_registered(tmp_path, monkeypatch):
    register_system(type("Own", (Quick,), {"name": "own"}))
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    for split in ("test", "validation"):
        freeze(system_of("own"), 0.1, split)
    assert Setting("own").load().frozen
    register_system(type("Own", (Quick,), {"name": "own", "tendency": lambda self, x: Quick.tendency(self, x) - 0.1}))
    with pytest.raises(IntegrityError, match=r"^own-dt0\.1-test\.nc is no trajectory of system = 'own' as it is regis"):
        Setting("own").load()


def test_a_split_is_one_of_two():
    with pytest.raises(ValueError, match=r"^split = 'tst' must be 'test' or 'validation'\.$"):
        Setting().load("tst")

"""Classical methods see the test set's truth, observations and model, and nothing that they do is lost or leaks."""

import dataclasses
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from assim_lib import dapper_bridge
from assim_lib.baselines import Baseline, run_baseline, scores_of
from assim_lib.dapper_bridge import hidden_markov_model
from assim_lib.observations import OBS_CONFS, ObservationModel
from assim_lib.systems import Lorenz96
from assim_lib.trajectories import TestSet

# Not importorskip: importing DAPPER without the library's precautions has side effects.
if find_spec("dapper") is None:
    pytest.skip("the baselines need the extra `baselines`", allow_module_level=True)

FULL, PARTIAL = "full_obs", "every_4th_dim_partial_obs"
STEP_SIZE = 0.1


def tendency(x):
    return (np.roll(x, -1, -1) - np.roll(x, 2, -1)) * np.roll(x, 1, -1) - x + 8.0


def rk4(x, dt=0.05):
    k1 = tendency(x)
    k2 = tendency(x + dt / 2 * k1)
    k3 = tendency(x + dt / 2 * k2)
    k4 = tendency(x + dt * k3)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def make_test_set(obs_conf, cycles=300, noise=1.0, burn_in=100):
    random = np.random.RandomState(5)
    x = 8.0 + random.standard_normal((1, 40))
    truth = []
    for k in range(1000 + 2 * cycles + 1):
        if k >= 1000 and k % 2 == 0:
            truth.append(x)
        x = rk4(x)
    truth = np.array(truth)
    observations = truth[1:] + noise * random.standard_normal(truth[1:].shape)
    masks = np.ones(observations.shape, dtype=bool)
    if obs_conf == PARTIAL:
        masks[:] = (np.arange(40) % 4 == np.arange(cycles)[:, None] % 4)[:, None]
    return TestSet(
        name=f"toy-{obs_conf}",
        system="l96",
        obs_conf=obs_conf,
        step_size=STEP_SIZE,
        noise=noise,
        truth=truth.astype(np.float32),
        observations=np.where(masks, observations, np.nan).astype(np.float32),
        masks=masks,
        burn_in=burn_in,
    )


@pytest.fixture(scope="module", autouse=True)
def _dapper_with_precautions():
    dapper_bridge.import_dapper()


@pytest.fixture(scope="module")
def full():
    return make_test_set(FULL)


@pytest.fixture(scope="module")
def partial():
    return make_test_set(PARTIAL)


_IENKS = {"upd_a": "Sqrt", "nIter": 10, "wtol": 1e-4, "rot": True}
TUNED = {
    (FULL, "LETKF N=5"): {"loc_rad": 2, "infl": 1.1, "rot": True},
    (FULL, "LETKF N=10"): {"loc_rad": 4, "infl": 1.04, "rot": False},
    (PARTIAL, "LETKF N=10"): {"loc_rad": 4, "infl": 1.07, "rot": False},
    (FULL, "3D-Var"): {"B": "clim", "xB": 0.04},
    (FULL, "4D-Var"): {"B": "eye", "xB": 0.2, "Lag": 1, "wtol": 1e-4},
    (PARTIAL, "4D-Var"): {"B": "eye", "xB": 1.0, "Lag": 1, "wtol": 1e-4},
    (FULL, "iEnKS N=30 Lag=6"): {"Lag": 6, "infl": 1.02} | _IENKS,
    (PARTIAL, "iEnKS N=30 Lag=3"): {"Lag": 3, "infl": 1.04} | _IENKS,
    (PARTIAL, "Climatology"): {},
}


def tuned(obs_conf, label):
    method, _, size = label.partition(" N=")
    baseline = Baseline(method=method, m=int(size.split()[0]) if size else 1, settings=TUNED[obs_conf, label])
    assert baseline.label == label
    return baseline


def scored(run, test_set):
    return run.rmse[test_set.burn_in :].mean()


# ---- the model and the operators that DAPPER is given


def test_a_cycle_is_two_of_dappers_own_steps(full):
    from dapper.mods.Lorenz96 import dxdt
    from dapper.mods.Lorenz96 import step as dapper_step

    x = np.random.RandomState(0).standard_normal((7, 40)) + 4.0
    ours = Lorenz96().tendency(torch.from_numpy(x)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(ours, dxdt(x), rtol=1e-13, atol=1e-13)

    model = hidden_markov_model(full, 300, Lorenz96())
    expected = dapper_step(dapper_step(x, 0.0, 0.05), 0.05, 0.05)
    np.testing.assert_allclose(model.Dyn(x, 0.0, STEP_SIZE), expected, rtol=1e-12)
    np.testing.assert_allclose(model.Dyn(x[0], 0.0, STEP_SIZE), expected[0], rtol=1e-12)


def test_the_step_leads_from_each_row_of_the_truth_to_the_next(full):
    model = hidden_markov_model(full, 300, Lorenz96())
    truth = full.truth[:, 0].astype(float)
    np.testing.assert_allclose(model.Dyn(truth[:-1], 0.0, STEP_SIZE), truth[1:], atol=1e-5)


def test_the_tangent_linear_model_is_the_derivative(full):
    model = hidden_markov_model(full, 300, Lorenz96())
    x = full.truth[17, 0].astype(float)
    exact = torch.func.jacrev(lambda z: Lorenz96().flow(z[None], 2)[0])(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model.Dyn.linear(x, 0.0, STEP_SIZE), exact, atol=1e-8)


def test_each_cycle_sees_exactly_the_sites_of_its_mask(partial):
    model = hidden_markov_model(partial, 300, Lorenz96())
    assert model.tseq.kko[0] == 1
    assert model.tseq.K == 300
    assert model.tseq.Ko == 299
    sites = np.arange(40.0)
    for k in range(9):
        operator = model.Obs(k)
        seen = np.flatnonzero(partial.masks[k, 0])
        np.testing.assert_array_equal(operator(sites), seen)
        np.testing.assert_array_equal(operator(np.stack([sites, 2 * sites]))[1], 2 * seen)
        np.testing.assert_array_equal(operator.linear(sites) @ sites, seen)
        assert operator.M == 10
        np.testing.assert_array_equal(operator.noise.C.diag, 1.0)
        # A radius that reaches one site, across the ring's seam as well: site 39 is a neighbour of site 0.
        batches, taper = operator.localizer(1.0, "x2y", "Step")
        assert len(batches) == 40
        near = seen[taper(batches[0])[0]]
        np.testing.assert_array_equal(near, np.intersect1d(seen, [39, 0, 1]))


def test_the_observation_error_variance_is_the_square_of_noise():
    model = hidden_markov_model(make_test_set(FULL, cycles=2, noise=2.5), 2, Lorenz96())
    np.testing.assert_array_equal(model.Obs(0).noise.C.diag, 6.25)


def test_the_first_guess_comes_from_observations_and_not_from_the_truth(full, partial):
    errors = {}
    for test_set in (full, partial):
        mean, covariance = dapper_bridge.first_guess(test_set)
        assert np.linalg.eigvalsh(covariance).min() > -1e-10
        errors[test_set.obs_conf] = np.sqrt(np.mean((mean - test_set.truth[0, 0]) ** 2))
        # Another initial state under the same observations must not be noticed, beyond a little in the climatology.
        other = test_set.truth.copy()
        other[0] = other[250]
        moved, _ = dapper_bridge.first_guess(dataclasses.replace(test_set, truth=other))
        assert np.abs(moved - mean).max() < 0.5
    assert errors[FULL] < 2.2
    assert errors[FULL] < errors[PARTIAL] < 3.2


# ---- the scores


def test_letkf_has_its_known_accuracy(full):
    run = run_baseline(tuned(FULL, "LETKF N=10"), full, progress=False)
    assert run.outcome == "completed"
    assert not run.diverged
    assert 0.22 < scored(run, full) < 0.36
    assert 0.5 < run.spread[100:].mean() / scored(run, full) < 1.5
    assert run.mean.shape == (300, 1, 40)
    assert np.isfinite([run.rmse, run.spread, run.crps]).all()
    assert run.ms_per_cycle > 0
    error = run.mean - full.truth[1:]
    np.testing.assert_allclose(run.rmse, np.sqrt((error**2).mean((1, 2))), rtol=1e-10)


def test_partial_letkf_beats_climatology(partial):
    letkf = run_baseline(tuned(PARTIAL, "LETKF N=10"), partial, progress=False)
    climatology = run_baseline(tuned(PARTIAL, "Climatology"), partial, progress=False)
    assert scored(letkf, partial) < 1.2
    assert 3.0 < scored(climatology, partial) < 4.2
    assert not letkf.diverged
    assert not climatology.diverged


@pytest.mark.parametrize(
    ("obs_conf", "label", "cycles", "bound"),
    [
        (FULL, "3D-Var", 400, 0.8),
        (FULL, "4D-Var", 70, 0.6),
        (PARTIAL, "4D-Var", 70, 1.8),
        (FULL, "iEnKS N=30 Lag=6", 70, 0.3),
    ],
)
def test_variational_methods_have_plausible_errors(obs_conf, label, cycles, bound):
    test_set = make_test_set(obs_conf, cycles, burn_in=cycles // 2)
    run = run_baseline(tuned(obs_conf, label), test_set, progress=False)
    assert not run.diverged
    assert scored(run, test_set) < bound
    assert np.isfinite(run.crps).all()
    if run.baseline.m == 1:
        np.testing.assert_allclose(run.crps, np.abs(run.mean - test_set.truth[1:]).mean((1, 2)), rtol=1e-10)
        assert (run.spread == 0).all()


def test_scores_are_those_of_dappers_own_statistics(partial, monkeypatch):
    import dapper
    from dapper.da_methods import LETKF
    from dapper.tools import progressbar

    ours = run_baseline(tuned(PARTIAL, "LETKF N=10"), partial, cycles=40, progress=False)
    model = hidden_markov_model(partial, 40, Lorenz96())
    observations = np.array([partial.observations[k][partial.masks[k]].astype(float) for k in range(40)])
    method = LETKF(N=10, **ours.baseline.settings)  # pyright: ignore[reportCallIssue]
    monkeypatch.setattr(progressbar, "disable_user_interaction", True)
    dapper.set_seed(3000)  # pyright: ignore[reportArgumentType]
    method.assimilate(model, partial.truth[:41, 0].astype(float), observations)
    np.testing.assert_allclose(ours.rmse, method.stats.err.rms.a, rtol=1e-6)
    np.testing.assert_allclose(ours.spread, method.stats.spread.rms.a, rtol=1e-6)
    np.testing.assert_allclose(ours.crps, method.stats.crps.m.a, rtol=1e-6)


def test_crps_equals_the_direct_formula():
    random = np.random.RandomState(1)
    truth, ensemble = random.standard_normal((3, 6)), random.standard_normal((3, 4, 6))
    recorder = dapper_bridge.Recorder(truth, np.full(3, 9.0), 0, dapper_bridge.tqdm(disable=True))
    for k in range(3):
        recorder.assess(k + 1, k, "f", E=ensemble[k] + 100.0)  # a forecast is not scored
        recorder.assess(k + 1, k, "a", E=ensemble[k])
    pairs = np.abs(ensemble[:, :, None] - ensemble[:, None]).mean((1, 2))
    expected = (np.abs(ensemble - truth[:, None]).mean(1) - pairs / 2).mean(1)
    np.testing.assert_allclose(recorder.crps, expected, rtol=1e-12)
    np.testing.assert_allclose(recorder.spread, np.sqrt(ensemble.var(1, ddof=1).mean(1)), rtol=1e-12)
    assert recorder.done == 3


# ---- divergence is a result


def test_a_filter_that_loses_the_truth_is_recorded(partial):
    run = run_baseline(Baseline(method="EnKF", m=3, settings={"upd_a": "Sqrt"}), partial, progress=False)
    assert run.diverged
    assert run.outcome == f"stopped after {run.survived} cycles: worse than climatology for 100 cycles"
    assert 200 <= run.survived < 300
    assert np.isfinite(run.rmse[: run.survived]).all()
    assert np.isnan(run.rmse[run.survived :]).all()
    assert np.isnan(scores_of(run, partial.burn_in).rmse)


@pytest.mark.parametrize("error", [FloatingPointError("overflow"), np.linalg.LinAlgError("no convergence")])
def test_a_numerical_failure_is_recorded(full, monkeypatch, error):
    healthy = Lorenz96.flow

    def flow(self, x, steps=1):
        flow.calls += 1
        if flow.calls > 7:
            raise error
        return healthy(self, x, steps)

    flow.calls = 0
    monkeypatch.setattr(Lorenz96, "flow", flow)
    run = run_baseline(tuned(FULL, "LETKF N=5"), full, cycles=20, progress=False)
    assert run.diverged
    assert run.outcome == f"stopped after 7 cycles: {error}"
    assert np.isfinite(run.rmse[:7]).all()
    assert np.isnan(run.rmse[7:]).all()


def test_an_exploding_forecast_stops_the_run_without_a_warning(full, recwarn):
    @dataclasses.dataclass(frozen=True)
    class Unstable(Lorenz96):
        def tendency(self, x):
            return x**3

    run = run_baseline(tuned(FULL, "LETKF N=5"), full, cycles=20, progress=False, dynamics=Unstable())
    assert run.diverged
    assert "the forecast left every bound" in run.outcome
    assert not recwarn.list


def track(rmse, burn_in):
    """How many cycles a method with these errors is left to run."""
    truth, climatology = np.zeros((len(rmse), 2)), np.full(len(rmse), 3.6)
    recorder = dapper_bridge.Recorder(truth, climatology, burn_in, dapper_bridge.tqdm(disable=True))
    try:
        for k, error in enumerate(rmse):
            recorder.assess(k + 1, k, "a", mu=np.full(2, error))
    except FloatingPointError:
        pass
    return recorder.done


def test_a_late_loss_of_the_truth_is_a_divergence():
    rmse = np.full(1000, 0.5)
    rmse[:200] = 5.0  # in the burn-in nothing is held against a filter
    assert track(rmse, burn_in=200) == 1000
    assert track(rmse, burn_in=100) == 200
    rmse[500:520] = 60.0  # lost on average over 100 cycles, though not in most of them
    assert track(rmse, burn_in=200) == 506
    rmse[500:520] = 0.5
    rmse[-120:] = 3.7
    assert rmse[200:].mean() < 1.1
    assert track(rmse, burn_in=200) == 1000 - 120 + 100
    assert track(np.full(50, 3.7), burn_in=20) == 50
    assert track(np.full(50, 3.6), burn_in=20) == 50


# ---- repeatable, quiet, and clear about mistakes


def test_same_seed_same_result_and_dappers_generator_is_left_alone(full):
    from dapper.tools import seeding

    before = seeding.rng.bit_generator.state
    first, again, other = (run_baseline(tuned(FULL, "LETKF N=5"), full, 25, seed, False) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.mean, again.mean)
    assert not np.array_equal(first.mean, other.mean)
    assert seeding.rng.bit_generator.state == before


def test_a_first_slice_equals_the_start_of_the_whole(partial):
    whole = run_baseline(tuned(PARTIAL, "iEnKS N=30 Lag=3"), partial, cycles=30, progress=False)
    slice_ = run_baseline(tuned(PARTIAL, "iEnKS N=30 Lag=3"), partial, cycles=12, progress=False)
    np.testing.assert_array_equal(slice_.rmse, whole.rmse[:12])


QUIET = """
import os, warnings, numpy, matplotlib, matplotlib.pyplot, torch
torch.set_num_threads(2)
def state():
    backend = dict.__getitem__(matplotlib.rcParams, "backend")
    numerics = torch.get_num_threads(), numpy.geterr(), numpy.get_printoptions()
    return backend, numerics, list(warnings.filters), os.environ["HOME"]
from test_baselines import *
before = state()
run_baseline(tuned(FULL, "LETKF N=5"), make_test_set(FULL, cycles=4), progress=False)
assert state() == before, (state(), before)
assert not os.listdir(os.environ["HOME"]), os.listdir(os.environ["HOME"])
"""


def test_importing_and_running_dapper_changes_nothing_and_prints_nothing(tmp_path):
    here = Path(__file__).parent
    environment = {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path.parent), "PYTHONPATH": str(here.parent)}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, env=environment, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_progress_names_the_method(full, capsys):
    run_baseline(tuned(FULL, "LETKF N=5"), full, cycles=3)
    assert "LETKF N=5: 100%" in capsys.readouterr().err


def test_missing_dapper_is_one_clear_sentence(full, monkeypatch):
    monkeypatch.setitem(sys.modules, "dapper", None)
    with pytest.raises(ImportError, match=r"^The baselines need DAPPER.*install the extra `baselines`\.$"):
        run_baseline(tuned(FULL, "LETKF N=5"), full, progress=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"cycles": 0}, "cycles = 0 must be between 1 and the 300"),
        ({"cycles": 301}, "cycles = 301 must be between 1 and the 300"),
        ({"seed": -1}, "seed = -1 must not be negative"),
        ({"dynamics": Lorenz96(sites=36)}, r"states are \(1, 36\), those of toy-full_obs are \(1, 40\)"),
    ],
)
def test_wrong_arguments_are_refused(full, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_baseline(tuned(FULL, "LETKF N=5"), full, progress=False, **arguments)


@pytest.mark.parametrize("obs_conf", ["unstructured_partial_obs", "magnitudes"])
def test_what_is_no_observation_of_the_state_is_refused(full, obs_conf, monkeypatch):
    def magnitudes(channels, sites):
        return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool), operator=torch.abs)

    monkeypatch.setitem(OBS_CONFS, "magnitudes", magnitudes)
    with pytest.raises(ValueError, match=rf"^obs_conf = '{obs_conf}' does not observe the state itself;"):
        run_baseline(tuned(FULL, "LETKF N=5"), dataclasses.replace(full, obs_conf=obs_conf), progress=False)


def test_an_unknown_setting_is_refused(full):
    with pytest.raises(TypeError, match="inflation"):
        run_baseline(Baseline(method="LETKF", m=5, settings={"inflation": 1.1}), full, progress=False)


def test_a_baseline_is_validated():
    with pytest.raises(ValidationError, match="4D-Var carries one state"):
        Baseline(method="4D-Var", m=10)
    with pytest.raises(ValidationError, match="LETKF needs at least two"):
        Baseline(method="LETKF")
    with pytest.raises(ValidationError, match="method"):
        Baseline.model_validate({"method": "LETFK", "m": 10})

"""Classical methods see a twin experiment's truth, observations and model; nothing they do is lost or leaks."""

import dataclasses
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from assim_lib import evaluation
from assim_lib.classical import dapper_bridge
from assim_lib.classical.dapper_bridge import Recorder, first_guess, hidden_markov_model, observation_vectors
from assim_lib.classical.methods import Baseline, run_baseline, scores_of
from assim_lib.observations import OBS_CONFS, ObservationModel, observation_model
from assim_lib.setting import Setting
from assim_lib.systems import Lorenz96
from assim_lib.twin import TwinExperiment, observed, simulate

# Not importorskip: importing DAPPER without the library's precautions has side effects.
if find_spec("dapper") is None:
    pytest.skip("the baselines need the extra `baselines`", allow_module_level=True)

FULL, PARTIAL = "full_obs", "every_4th_dim_partial_obs"
STEP_SIZE = 0.1
SITES = np.arange(40.0)


def make_twin(obs_conf, cycles=300, noise=1.0, burn_in=100):
    dataset = simulate(Lorenz96(), STEP_SIZE, cycles, segments=1, seed=5)
    parts = (part[0].numpy() for part in observed(dataset, observation_model(obs_conf, 1, 40, noise)))
    setting = Setting("l96", obs_conf, STEP_SIZE, noise)
    return TwinExperiment(f"toy-{obs_conf}", setting, dataset.truth.values[0, 0], *parts, burn_in)


def with_gaps(twin, *gaps):
    """The same experiment without what was observed there."""
    observations = twin.observations.copy()
    for gap in gaps:
        observations[gap] = np.nan
    return dataclasses.replace(twin, observations=observations)


@pytest.fixture(scope="module", autouse=True)
def _dapper_with_precautions():
    dapper_bridge.import_dapper()


@pytest.fixture(scope="module")
def full():
    return make_twin(FULL)


@pytest.fixture(scope="module")
def partial():
    return make_twin(PARTIAL)


_IENKS = {"upd_a": "Sqrt", "nIter": 10, "wtol": 1e-4, "rot": True}


def baseline(method, m=1, **hyperparameters):
    return Baseline(method=method, m=m, hyperparameters=hyperparameters)


LETKF5, LETKF10 = baseline("LETKF", 5, loc_rad=2, infl=1.1, rot=True), baseline("LETKF", 10, loc_rad=4, infl=1.04)
LETKF_PARTIAL = baseline("LETKF", 10, loc_rad=4, infl=1.07, rot=False)
VAR3D, VAR4D = baseline("3D-Var", B="clim", xB=0.04), baseline("4D-Var", B="eye", xB=0.2, Lag=1, wtol=1e-4)
IENKS = baseline("iEnKS", 30, Lag=3, infl=1.04, **_IENKS)


# ---- the model and the operators that DAPPER is given


def test_a_cycle_is_two_of_dappers_own_steps(full):
    from dapper.mods.Lorenz96 import dxdt
    from dapper.mods.Lorenz96 import step as dapper_step

    x = np.random.RandomState(0).standard_normal((7, 40)) + 4.0
    ours = Lorenz96().tendency(torch.from_numpy(x)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(ours, dxdt(x), rtol=1e-13, atol=1e-13)

    model = hidden_markov_model(full, 300, Lorenz96())
    expected = dapper_step(dapper_step(x, 0.0, 0.05), 0.05, 0.05)
    for members in (slice(None), 0):
        np.testing.assert_allclose(model.Dyn(x[members], 0.0, STEP_SIZE), expected[members], rtol=1e-12)
    states = full.states[:, 0].astype(float)
    np.testing.assert_allclose(model.Dyn(states[:-1], 0.0, STEP_SIZE), states[1:], atol=1e-5)
    exact = torch.func.jacrev(lambda z: Lorenz96().flow(z[None], 2)[0])(torch.from_numpy(states[17])).numpy()
    np.testing.assert_allclose(model.Dyn.linear(states[17], 0.0, STEP_SIZE), exact, atol=1e-8)


def test_each_cycle_sees_exactly_what_was_received(partial):
    setting = dataclasses.replace(partial.setting, noise=2.5)
    partial = dataclasses.replace(with_gaps(partial, (2, 0, 6)), setting=setting)  # an expected value that never came
    model = hidden_markov_model(partial, 300, Lorenz96())
    assert (model.tseq.kko[0], model.tseq.K, model.tseq.Ko) == (1, 300, 299)
    vectors = observation_vectors(partial, 300)
    for k in range(9):
        operator = model.Obs(k)
        entries = np.array([site for site in range(k % 4, 40, 4) if (k, site) != (2, 6)])
        np.testing.assert_array_equal(vectors[k], partial.observations[k, 0, entries])
        np.testing.assert_array_equal(operator(SITES), entries)
        np.testing.assert_array_equal(operator(np.stack([SITES, 2 * SITES]))[1], 2 * entries)
        np.testing.assert_array_equal(operator.linear(SITES) @ SITES, entries)
        np.testing.assert_array_equal(operator.noise.C.diag, 6.25)
        # A radius that reaches one site, across the ring's seam as well: site 39 is a neighbour of site 0.
        batches, taper = operator.localizer(1.0, "x2y", "Step")
        assert len(batches) == 40
        np.testing.assert_array_equal(entries[taper(batches[0])[0]], np.intersect1d(entries, [39, 0, 1]))


def test_every_entry_may_have_an_error_of_its_own(full, monkeypatch):
    """In DAPPER's own diagonal covariances the smaller ones of these would count as zero, and be ignored."""
    error = torch.where(torch.arange(40) % 3 == 0, 1e-5, 2.0)

    def instruments(channels, sites):
        return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool), error=error)

    monkeypatch.setitem(OBS_CONFS, "instruments", instruments)
    twin = dataclasses.replace(full, setting=Setting("l96", "instruments", STEP_SIZE, 3.0))
    variance, background = (3 * error.double().numpy()) ** 2, 0.04 * np.cov(full.states.reshape(301, -1).T)
    model = hidden_markov_model(twin, 3, Lorenz96())
    operator, y = model.Obs(0), observation_vectors(twin, 3)[0]
    precision = operator.linear(SITES).T @ operator.noise.C.inv @ operator.linear(SITES)
    np.testing.assert_allclose(precision, np.diag(1 / variance))
    forecast = model.Dyn(first_guess(twin)[0], 0.0, STEP_SIZE)
    innovation = full.observations[0].ravel() - forecast
    np.testing.assert_allclose(operator.linear(SITES).T @ (y - operator(forecast)), innovation / variance)
    expected = forecast + background @ np.linalg.solve(background + np.diag(variance), innovation)
    run = run_baseline(VAR3D, twin, cycles=1, progress=False)
    np.testing.assert_allclose(run.mean[0, 0], expected, rtol=1e-8)


def test_the_first_guess_comes_from_observations_and_not_from_the_truth(full, partial):
    errors = {}
    for twin in (full, partial):
        mean, covariance = first_guess(twin)
        assert np.linalg.eigvalsh(covariance).min() > -1e-10
        errors[twin.setting.obs_conf] = np.sqrt(np.mean((mean - twin.initial[0]) ** 2))
        # Another initial state under the same observations must not be noticed, beyond a little in the climatology.
        moved, _ = first_guess(dataclasses.replace(twin, initial=twin.truth[250]))
        assert np.abs(moved - mean).max() < 0.5
    assert errors[FULL] < 2.2
    assert errors[FULL] < errors[PARTIAL] < 3.2
    mean, _ = first_guess(with_gaps(full, slice(0, 4)))
    np.testing.assert_array_equal(mean, full.states.astype(float).mean(0)[0])


SIX = [VAR3D, VAR4D, LETKF5, IENKS, baseline("EnKF-N", 20, infl=1.05, rot=True)]
SIX += [baseline("EnKF", 20, upd_a="PertObs", infl=1.1, rot=True)]


@pytest.mark.parametrize("method", SIX, ids=lambda method: method.label)
def test_a_cycle_in_which_nothing_was_received_is_a_forecast_only(full, method, monkeypatch):
    silent = (0, 1, 2, 3, 4, 7, 11)
    reported, assess = {}, Recorder.assess

    def listen(self, k, ko=None, faus=None, E=None, mu=None, Cov=None):
        for kind in set(faus or "au") & {"f", "a"}:
            reported[kind, ko] = np.copy(mu if E is None else E)
        assess(self, k, ko, faus, E, mu, Cov)

    monkeypatch.setattr(Recorder, "assess", listen)
    run = run_baseline(method, with_gaps(full, *silent), cycles=12, progress=False)
    assert run.outcome == "completed"
    for k in range(12):
        same = np.allclose(reported["f", k], reported["a", k], rtol=0, atol=1e-10)
        assert same == (k in silent), k


def test_a_schedule_may_have_empty_cycles(full):
    """What is there in spite of the schedule is not used."""
    twin = dataclasses.replace(full, setting=Setting("l96", "unstructured_known_part"))
    model = hidden_markov_model(twin, 8, Lorenz96())
    assert [model.Obs(k).M for k in range(8)] == [10, 1] * 4
    assert [vector.size for vector in observation_vectors(twin, 8)] == [10, 1] * 4
    assert [model.Obs(k).noise.C.diag[0] > 1e20 for k in range(8)] == [False, True] * 4


# ---- the scores


@pytest.mark.parametrize(
    ("obs_conf", "method", "cycles", "low", "high"),
    [
        (FULL, LETKF10, 150, 0.22, 0.36),
        (PARTIAL, LETKF_PARTIAL, 150, 0.3, 1.2),
        (PARTIAL, baseline("Climatology"), 150, 3.0, 4.2),
        (FULL, VAR3D, 400, 0.2, 0.8),
        (FULL, VAR4D, 70, 0.2, 0.6),
        (PARTIAL, baseline("4D-Var", B="eye", xB=1.0, Lag=1, wtol=1e-4), 70, 0.3, 1.8),
        (FULL, baseline("iEnKS", 30, Lag=6, infl=1.02, **_IENKS), 70, 0.1, 0.3),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_methods_have_their_known_accuracy(obs_conf, method, cycles, low, high):
    twin = make_twin(obs_conf, cycles, burn_in=cycles // 3)
    run = run_baseline(method, twin, progress=False)
    assert (run.outcome, run.diverged) == ("completed", False)
    assert low < run.rmse[twin.burn_in :].mean() < high
    assert run.mean.shape == (cycles, 1, 40)
    assert np.isfinite([run.rmse, run.spread, run.crps]).all()
    assert run.ms_per_cycle > 0
    np.testing.assert_allclose(run.rmse, np.sqrt(((run.mean - twin.truth) ** 2).mean((1, 2))), rtol=1e-10)
    if method.m == 1:
        np.testing.assert_allclose(run.crps, np.abs(run.mean - twin.truth).mean((1, 2)), rtol=1e-10)
        assert (run.spread == 0).all()
    elif method == LETKF10:
        assert 0.5 < run.spread[50:].mean() / run.rmse[50:].mean() < 1.5


def test_scores_are_those_of_dappers_own_statistics(partial, monkeypatch):
    import dapper
    from dapper.da_methods import LETKF
    from dapper.tools import progressbar

    ours = run_baseline(LETKF_PARTIAL, partial, cycles=40, progress=False)
    model = hidden_markov_model(partial, 40, Lorenz96())
    method = LETKF(N=10, **ours.baseline.hyperparameters)  # pyright: ignore[reportCallIssue]
    monkeypatch.setattr(progressbar, "disable_user_interaction", True)
    dapper.set_seed(3000)  # pyright: ignore[reportArgumentType]
    observations = np.array(observation_vectors(partial, 40))
    method.assimilate(model, partial.states[:41, 0].astype(float), observations)
    np.testing.assert_allclose(ours.rmse, method.stats.err.rms.a, rtol=1e-6)
    np.testing.assert_allclose(ours.spread, method.stats.spread.rms.a, rtol=1e-6)
    np.testing.assert_allclose(ours.crps, method.stats.crps.m.a, rtol=1e-6)


def recorder(truth, burn_in=0):
    return Recorder(truth, np.full(len(truth), 3.6), burn_in, dapper_bridge.tqdm(disable=True))


def test_classical_and_learned_methods_are_scored_alike():
    random = np.random.RandomState(1)
    truth, ensemble = random.standard_normal((3, 6)), random.standard_normal((3, 4, 6))
    kept = recorder(truth)
    for k in range(3):
        kept.assess(k + 1, k, "f", E=ensemble[k] + 100.0)  # a forecast is not scored
        kept.assess(k + 1, k, "a", E=ensemble[k])
    fields = ensemble[:, :, None], truth[:, None]
    np.testing.assert_allclose(kept.rmse, evaluation.rmse(*fields), rtol=1e-12)
    np.testing.assert_allclose(kept.spread, evaluation.spread(fields[0]), rtol=1e-12)
    np.testing.assert_allclose(kept.crps, evaluation.crps(*fields), rtol=1e-12)
    assert kept.done == 3


# ---- divergence is a result


def test_a_filter_that_loses_the_truth_is_recorded(partial):
    run = run_baseline(baseline("EnKF", 3, upd_a="Sqrt"), partial, progress=False)
    assert run.outcome == f"stopped after {run.survived} cycles: worse than climatology for 100 cycles"
    assert 200 <= run.survived < 300
    assert np.isfinite(run.rmse[: run.survived]).all()
    assert np.isnan(run.rmse[run.survived :]).all()
    assert np.isnan(scores_of(run, partial.burn_in).rmse)


class Failing(Lorenz96):
    """A model that raises an error at its eighth call."""

    def __init__(self, error):
        super().__init__()
        self.__dict__.update(error=error, calls=0)

    def flow(self, x, steps=1):
        self.__dict__["calls"] += 1
        if self.calls > 7:
            raise self.error
        return super().flow(x, steps)


@dataclasses.dataclass(frozen=True)
class Unstable(Lorenz96):
    def tendency(self, x):
        return x**3


@pytest.mark.parametrize(
    ("dynamics", "survived", "reason"),
    [
        (Failing(FloatingPointError("overflow")), 7, "overflow"),
        (Failing(np.linalg.LinAlgError("no convergence")), 7, "no convergence"),
        (Unstable(), 0, "the forecast left every bound"),
    ],
)
def test_a_numerical_failure_is_recorded_without_a_warning(full, recwarn, dynamics, survived, reason):
    run = run_baseline(LETKF5, full, cycles=20, progress=False, dynamics=dynamics)
    assert run.diverged
    assert run.outcome == f"stopped after {survived} cycles: {reason}"
    assert np.isfinite(run.rmse[:survived]).all()
    assert np.isnan(run.rmse[survived:]).all()
    assert not recwarn.list


def track(rmse, burn_in):
    """How many cycles a method with these errors is left to run."""
    kept = recorder(np.zeros((len(rmse), 2)), burn_in)
    with suppress(FloatingPointError):
        for k, error in enumerate(rmse):
            kept.assess(k + 1, k, "a", mu=np.full(2, error))
    return kept.done


def test_a_late_loss_of_the_truth_is_a_divergence():
    rmse = np.full(500, 0.5)
    rmse[:100] = 5.0  # in the burn-in nothing is held against a filter
    assert track(rmse, burn_in=100) == 500
    assert track(rmse, burn_in=0) == 100
    rmse[250:270] = 60.0  # lost on average over 100 cycles, though not in most of them
    assert track(rmse, burn_in=100) == 256
    rmse[250:270] = 0.5
    rmse[-120:] = 3.7
    assert track(rmse, burn_in=100) == 500 - 120 + 100
    assert track(np.full(50, 3.7), burn_in=20) == 50
    assert track(np.full(50, 3.6), burn_in=20) == 50


# ---- repeatable, quiet, and clear about mistakes


def test_same_seed_same_result_and_dapper_is_left_as_it_was(full):
    import dapper.stats
    from dapper.tools import seeding

    before = seeding.rng.bit_generator.state, dapper.stats.Stats
    first, again, other = (run_baseline(LETKF5, full, 25, seed, False) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.mean, again.mean)
    assert not np.array_equal(first.mean, other.mean)
    assert (seeding.rng.bit_generator.state, dapper.stats.Stats) == before


def test_a_first_slice_equals_the_start_of_the_whole(partial):
    whole, slice_ = (run_baseline(IENKS, partial, cycles=cycles, progress=False) for cycles in (30, 12))
    np.testing.assert_array_equal(slice_.rmse, whole.rmse[:12])


QUIET = """
import os, warnings, numpy, matplotlib, matplotlib.pyplot, torch
torch.set_num_threads(2)
def state():
    backend = dict.__getitem__(matplotlib.rcParams, "backend")
    numerics = torch.get_num_threads(), numpy.geterr(), numpy.get_printoptions()
    return backend, numerics, list(warnings.filters), os.environ["HOME"]
from test_methods import *
assert "dapper" not in sys.modules  # until a method runs
before = state()
run_baseline(LETKF5, make_twin(FULL, cycles=4), progress=False)
assert state() == before, (state(), before)
assert not os.listdir(os.environ["HOME"]), os.listdir(os.environ["HOME"])
"""


def test_importing_and_running_dapper_changes_nothing_and_prints_nothing(tmp_path):
    here = Path(__file__).parent
    paths = {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path.parent), "PYTHONPATH": str(here.parents[1])}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, env=paths, cwd=here)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_progress_names_the_method(full, capsys):
    run_baseline(LETKF5, full, cycles=3)
    assert "LETKF N=5: 100%" in capsys.readouterr().err


def test_missing_dapper_is_one_clear_sentence(full, monkeypatch):
    monkeypatch.setitem(sys.modules, "dapper", None)
    with pytest.raises(ImportError, match=r"^The baselines need DAPPER.*install the extra `baselines`\.$"):
        run_baseline(LETKF5, full, progress=False)


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
        run_baseline(LETKF5, full, progress=False, **arguments)


@pytest.mark.parametrize("obs_conf", ["unstructured_partial_obs", "magnitudes"])
def test_what_is_no_observation_of_the_state_is_refused(full, obs_conf, monkeypatch):
    def magnitudes(channels, sites):
        return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool), operator=torch.abs)

    monkeypatch.setitem(OBS_CONFS, "magnitudes", magnitudes)
    twin = dataclasses.replace(full, setting=Setting("l96", obs_conf))
    with pytest.raises(ValueError, match=rf"^obs_conf = '{obs_conf}' does not observe the state itself;"):
        run_baseline(LETKF5, twin, progress=False)


def test_an_unknown_hyperparameter_is_refused(full):
    with pytest.raises(TypeError, match="inflation"):
        run_baseline(baseline("LETKF", 5, inflation=1.1), full, progress=False)


def test_a_baseline_is_validated_and_has_a_label():
    with pytest.raises(ValidationError, match="4D-Var carries one state"):
        Baseline(method="4D-Var", m=10)
    with pytest.raises(ValidationError, match="LETKF needs at least two"):
        Baseline(method="LETKF")
    with pytest.raises(ValidationError, match="method"):
        Baseline.model_validate({"method": "LETFK", "m": 10})
    assert [one.label for one in (LETKF5, IENKS, VAR4D)] == ["LETKF N=5", "iEnKS N=30 Lag=3", "4D-Var"]
    assert baseline("iEnKS", 5).label == "iEnKS N=5 Lag=1"

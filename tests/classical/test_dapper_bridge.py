"""What DAPPER is given, what is kept of what it reports, and that nothing else changes."""

import dataclasses
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import FULL, IENKS, LETKF5, PARTIAL, STEP_SIZE, VAR3D, VAR4D, baseline, with_gaps

from assim_lib import evaluation
from assim_lib.classical import dapper_bridge
from assim_lib.classical.dapper_bridge import Recorder, first_guess, hidden_markov_model, observation_vectors
from assim_lib.classical.methods import run_baseline
from assim_lib.observations import OBS_CONFS, ObservationModel
from assim_lib.setting import Setting
from assim_lib.systems import Lorenz96

SITES = np.arange(40.0)

# ---- the model and the operators


def test_a_cycle_is_two_of_dappers_own_steps(full):
    from dapper.mods.Lorenz96 import step as dapper_step

    x, model = np.random.RandomState(0).standard_normal((7, 40)) + 4.0, hidden_markov_model(full, 300, Lorenz96())
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


# ---- what is kept


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


def track(rmse, burn_in):
    """How many cycles a method with these errors is left to run."""
    kept = recorder(np.zeros((len(rmse), 2)), burn_in)
    with suppress(FloatingPointError):
        for k, error in enumerate(rmse):
            kept.assess(k + 1, k, "a", mu=np.full(2, error))
    # The criterion is that of all methods: it is met in the cycle in which the run stops, and in none before.
    first = burn_in + min(evaluation.LOST_AFTER, len(rmse) - burn_in)
    lost = [bool(evaluation.lost_truth(rmse[burn_in:end], 3.6)) for end in range(first, len(rmse) + 1)]
    assert kept.done == (first + lost.index(True) if any(lost) else len(rmse))
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


# ---- no traces


QUIET = """
import os, sys, warnings, numpy, matplotlib, matplotlib.pyplot, torch
import scipy.stats  # with warning filters of its own; scores import it too
torch.set_num_threads(2)
def state():
    backend = dict.__getitem__(matplotlib.rcParams, "backend")
    numerics = torch.get_num_threads(), numpy.geterr(), numpy.get_printoptions()
    return backend, numerics, list(warnings.filters), os.environ["HOME"]
from toy import *
from assim_lib.classical.methods import run_baseline
assert "dapper" not in sys.modules  # until a method runs
before = state()
run_baseline(LETKF5, make_twin(FULL, cycles=4), progress=False)
assert state() == before, (state(), before)
assert not os.listdir(os.environ["HOME"]), os.listdir(os.environ["HOME"])
"""


def test_importing_and_running_dapper_changes_nothing_and_prints_nothing(tmp_path, dapper):
    here = Path(__file__).parent
    paths = {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path.parent), "PYTHONPATH": str(here.parents[1])}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, env=paths, cwd=here)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wrong_model_may_be_corrected(full, dapper):
    x = np.random.default_rng(1).normal(2.0, 3.0, (4000, 40))
    plain, corrected = (hidden_markov_model(full, 5, Lorenz96(), *own).Dyn for own in ((), (0.5, 0.1, 0.2)))
    np.testing.assert_allclose(corrected(x, 0, STEP_SIZE), 0.9 * plain(x, 0, STEP_SIZE) + 0.5)
    np.testing.assert_allclose(corrected.linear(x[0], 0, STEP_SIZE), 0.9 * plain.linear(x[0], 0, STEP_SIZE), atol=1e-6)
    # DAPPER adds noise of this covariance, times the length of a step.
    assert STEP_SIZE * corrected.noise.C.full == pytest.approx(0.04 * np.eye(40))
    assert plain.noise.C == 0


def test_a_method_knows_the_corrections_of_its_model(full, dapper):
    letkf = baseline("LETKF", 10, loc_rad=4, infl=1.04)
    wrong, right = Lorenz96(forcing=6.0), Lorenz96()
    rmse = [
        run_baseline(letkf.tuned(letkf.hyperparameters | own), full, progress=False, dynamics=model).rmse[100:].mean()
        for model, own in ((right, {}), (wrong, {}), (wrong, {"bias": 0.2, "model_noise": 0.05}))
    ]
    # A forcing that is two too small takes two a unit of time from each state: a fifth of that a cycle.
    assert rmse[0] < rmse[2] < 0.8 * rmse[1]
    assert letkf.tuned({"bias": 0.2}).label == "LETKF m=10, corrected model"

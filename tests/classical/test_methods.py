"""Classical methods have their known accuracy; losing the truth is a result, and mistakes are clear."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy import FULL, IENKS, LAGGED, LETKF5, LETKF10, LETKF_PARTIAL, PARTIAL, VAR3D, VAR4D, baseline, make_twin

from assim_lib.classical.dapper_bridge import hidden_markov_model, observation_vectors
from assim_lib.classical.methods import Baseline, run_baseline, scores_of
from assim_lib.observations import OBS_CONFS, ObservationModel
from assim_lib.setting import Setting
from assim_lib.systems import Lorenz96

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
        (FULL, baseline("iEnKS", 30, Lag=6, infl=1.02, **LAGGED), 70, 0.1, 0.3),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_methods_have_their_known_accuracy(dapper, obs_conf, method, cycles, low, high):
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


# ---- divergence is a result


def test_a_filter_that_loses_the_truth_is_recorded(partial):
    run = run_baseline(baseline("EnKF", 3, upd_a="Sqrt"), partial, progress=False)
    assert run.outcome == f"stopped after {run.survived} cycles: worse than climatology for 100 cycles"
    assert 200 <= run.survived < 300
    assert np.isfinite(run.rmse[: run.survived]).all()
    assert np.isnan(run.rmse[run.survived :]).all()
    assert np.isnan(scores_of(run, partial.burn_in).rmse)


def failing(error):
    """A model that raises the error at its eighth call."""
    countdown = iter(range(7))

    class Failing(Lorenz96):
        def flow(self, x, steps=1):
            if next(countdown, None) is None:
                raise error
            return super().flow(x, steps)

    return Failing()


@dataclasses.dataclass(frozen=True)
class Unstable(Lorenz96):
    def tendency(self, x):
        return x**3


@pytest.mark.parametrize(
    ("dynamics", "survived", "reason"),
    [
        (failing(FloatingPointError("overflow")), 7, "overflow"),
        (failing(np.linalg.LinAlgError("no convergence")), 7, "no convergence"),
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


# ---- repeatable, and clear about mistakes


def test_same_seed_same_result_and_dapper_is_left_as_it_was(full):
    import dapper.stats
    from dapper.tools import seeding

    before = seeding.rng.bit_generator.state, dapper.stats.Stats
    first, again, other = (run_baseline(LETKF5, full, 25, seed, False) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.mean, again.mean)
    assert not np.array_equal(first.mean, other.mean)
    assert (seeding.rng.bit_generator.state, dapper.stats.Stats) == before


def test_a_first_slice_equals_the_start_of_the_whole_and_progress_names_the_method(partial, capsys):
    whole, slice_ = (run_baseline(IENKS, partial, cycles=cycles, progress=cycles == 12) for cycles in (30, 12))
    np.testing.assert_array_equal(slice_.rmse, whole.rmse[:12])
    shown = capsys.readouterr().err
    assert "iEnKS m=30 Lag=3: 100%" in shown
    assert "12/12" in shown
    assert "30/30" not in shown


def test_missing_dapper_and_unknown_hyperparameters_are_clear(full, monkeypatch):
    with pytest.raises(TypeError, match="inflation"):
        run_baseline(baseline("LETKF", 5, inflation=1.1), full, progress=False)
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


def test_a_baseline_is_validated_and_has_a_label():
    with pytest.raises(ValidationError, match="4D-Var carries one state"):
        Baseline(method="4D-Var", m=10)
    with pytest.raises(ValidationError, match="LETKF needs at least two"):
        Baseline(method="LETKF")
    with pytest.raises(ValidationError, match="method"):
        Baseline.model_validate({"method": "LETFK", "m": 10})
    assert [one.label for one in (LETKF5, IENKS, VAR4D)] == ["LETKF m=5", "iEnKS m=30 Lag=3", "4D-Var"]
    assert baseline("iEnKS", 5).label == "iEnKS m=5 Lag=1"

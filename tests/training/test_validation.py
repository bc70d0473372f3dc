"""Scores of a filter: each cycle with its own truth, in its place in the schedule, over as much as is asked for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import PARTIAL
from small_runs import tiny

from assim_lib.evaluation import evaluate
from assim_lib.tracking import DRAWS
from assim_lib.training import validation
from assim_lib.training.build import build_filter
from assim_lib.training.many_settings import VALIDATED, scored_settings
from assim_lib.training.validation import run_filter, score, validation_rmse

pytestmark = pytest.mark.usefixtures("home", "unchecked_shapes")


@pytest.fixture
def asked(monkeypatch):
    """What a filter is asked for, one dictionary a run; it answers with the observations."""
    asked = []

    def repeat(model, observations, generator, **options):
        asked.append({"model": model, "observations": observations, **options})
        return observations.nan_to_num(0.0).unsqueeze(-3)

    monkeypatch.setattr(validation, "assimilate", repeat)
    return asked


@pytest.fixture(scope="module")
def filters(home):
    """An untrained filter that tracks, and its experiment."""
    experiment = tiny("hybrid", 3, lag=1, obs_conf=PARTIAL)
    return experiment, build_filter(experiment)


def test_validation_compares_each_cycle_with_its_truth(asked):
    """A filter that returns the observations has the RMSE of the observations."""
    chosen = tiny(obs_conf="full_obs")
    assert validation_rmse(chosen, build_filter(chosen)) == pytest.approx(1.0, abs=0.03)
    assert asked[0]["observations"].shape == (2, 200, 1, 40)
    assert asked[0]["first_cycle"].tolist() == [0, 200]


def test_validation_knows_the_phase_of_each_segment(asked, monkeypatch):
    monkeypatch.setattr(validation, "SEGMENT", 90)  # 90 = 2 modulo 4
    chosen = tiny(obs_conf=PARTIAL)
    validation_rmse(chosen, build_filter(chosen))
    (run,) = asked
    assert run["first_cycle"].tolist() == [0, 90, 180, 270]
    for segment, first in zip(run["observations"], run["first_cycle"], strict=True):
        assert torch.equal(run["model"].observation_model.mask(first + torch.arange(90)), segment.isfinite())


def test_a_lag_that_grows_has_grown_before_validation_counts(asked, monkeypatch):
    chosen = tiny("extended", 1, lag=2, lag_warmup=30, cycles=100)
    counted = []
    monkeypatch.setattr(validation, "rmse", lambda *_: counted.append(1) or np.arange(260.0)[None])
    assert validation_rmse(chosen, build_filter(chosen)) == np.arange(120, 260).mean()
    assert asked[0]["observations"].shape[:2] == (1, 260)


@pytest.mark.parametrize(("start", "dropout"), [("climatology", True), ("first_observation", False), ("truth", True)])
def test_how_members_start_and_spread_at_test_time(asked, start, dropout):
    """As asked for, in the curve and in the score: from the truth, or with dropout, only then."""
    chosen = tiny(start=start, dropout=0.1, test_dropout=dropout, obs_conf=PARTIAL)
    model = build_filter(chosen)
    validation_rmse(chosen, model)
    score(chosen, model)
    assert [run["dropout"] for run in asked] == [dropout] * 2
    segments, whole = (run["near"] for run in asked)
    if start == "climatology":
        assert segments is whole is None
        return
    for near, split in ((segments[0], "validation"), (whole, "test")):
        twin = chosen.setting.load(split)
        np.testing.assert_array_equal(near, (twin.truth if start == "truth" else twin.observations)[0])


def test_a_filter_of_many_settings_is_validated_in_the_mean(home):
    many = tiny("hybrid", 3, experiment="l96_any", n_settings=4, lag=1)
    model, errors = build_filter(many), []
    for setting in scored_settings(many, VALIDATED):
        other = build_filter(setting, model.climatology)
        other.load_state_dict(model.state_dict())
        errors.append(validation_rmse(setting, other))
    assert len(set(errors)) == len(VALIDATED)
    assert validation_rmse(many, model) == pytest.approx(math.prod(errors) ** 0.25)


def test_a_slice_is_the_start_of_the_whole_and_can_be_scored(filters):
    experiment, model = filters
    twin = experiment.setting.load()
    whole, milliseconds = run_filter(experiment, model, twin)
    assert whole.shape == (400, 3, 1, 40)
    assert 0 < milliseconds < math.inf
    np.testing.assert_array_equal(run_filter(experiment, model, twin, cycles=np.int64(12))[0], whole[:12])
    scores = evaluate(whole, twin.truth, 200)
    assert score(experiment, model, cycles=400)[0] == scores
    assert score(experiment, model, "validation")[0] != scores


@pytest.mark.parametrize("cycles", [0, 399])
def test_too_few_cycles_are_refused_before_anything_is_run(filters, asked, cycles):
    with pytest.raises(ValueError, match=rf"^cycles = {cycles} must be at least 400, burn-in included\.$"):
        score(*filters, cycles=cycles)
    for number in (0, 401, 30.0):
        with pytest.raises(ValueError, match=rf"^cycles = {number} must be a whole number from 1 to 400, the cyc"):
            run_filter(*filters, filters[0].setting.load(), cycles=number)
    assert asked == []


@pytest.mark.parametrize("changed", [{"noise": 2.0}, {"obs_conf": "every_4th_fixed"}, {"step_size": 0.2}])
def test_a_filter_runs_on_what_it_is_set_for_and_on_nothing_else(filters, asked, changed):
    experiment, model = filters
    twin = experiment.setting.load()
    other = replace(twin, setting=replace(twin.setting, **changed))
    with pytest.raises(ValueError, match=r"^the filter of L96, .* cannot run on L96, .*; load it for that setting"):
        run_filter(experiment, model, other)
    with pytest.raises(ValueError, match="cannot run on"):
        run_filter(experiment.changed(**changed), model, other)
    assert asked == []


def test_a_part_keeps_its_place_in_the_schedule(filters, asked):
    """Without it a filter would take observations for those of other sites."""
    part = filters[0].setting.load().part(3, 6)
    run_filter(*filters, part)
    (run,) = asked
    seen = filters[1].observation_model.mask(run["first_cycle"] + torch.arange(6))
    np.testing.assert_array_equal(seen, np.isfinite(part.observations))


def test_a_filter_that_carries_a_covariance_is_scored_by_members_drawn_from_it(home):
    chosen = tiny("extended", 1)
    ensemble, _ = run_filter(chosen, build_filter(chosen), chosen.setting.load(), cycles=3)
    assert ensemble.shape == (3, DRAWS, 1, 40)
    assert ensemble.std(1).min() > 0

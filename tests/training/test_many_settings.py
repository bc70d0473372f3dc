"""Settings for one filter: many kinds, none rare, the same ones each time."""

from collections import Counter

import numpy as np
import pytest
import torch
from small import SITES
from small_runs import ring_experiment, ring_filter

from assim_lib.analyses import ANALYSES
from assim_lib.observations import observation_model
from assim_lib.training.experiment import configure
from assim_lib.training.many_settings import (
    INTERVALS,
    MASKS,
    NOISES,
    SCORED,
    VALIDATED,
    in_settings,
    scored_settings,
    training_settings,
)

CHANGED = {"n_settings", "obs_conf", "step_size", "noise", "seed"}


def test_a_filter_of_one_setting_has_its_own():
    chosen = ring_experiment()
    model = ring_filter(chosen)
    assert training_settings(chosen) == scored_settings(chosen) == [chosen]
    assert in_settings(chosen, model, [chosen]) == [(chosen, model)]


@pytest.mark.parametrize("analysis", [name for name in ANALYSES if name != "original"])
@pytest.mark.parametrize("number", [1, 5, 48])
def test_settings_are_experiments_that_differ_in_what_is_observed_alone(analysis, number):
    chosen = configure("l96_any", analysis=analysis, n_settings=number, seed=2)
    drawn = training_settings(chosen)
    assert len(drawn) == number
    assert {one.n_settings for one in drawn} == {0}
    assert all(one.model_dump(exclude=CHANGED) == chosen.model_dump(exclude=CHANGED) for one in drawn)
    assert drawn == training_settings(chosen)
    others = training_settings(chosen.changed(seed=3))
    assert not {one.seed for one in drawn} & {one.seed for one in others}
    assert {one.noise for one in drawn} != {one.noise for one in others}


def test_no_kind_of_setting_is_rare():
    drawn = training_settings(configure("l96_any", n_settings=144))
    pairs = Counter((one.obs_conf, one.step_size) for one in drawn)
    assert pairs == {(mask, interval): 4 for mask in MASKS for interval in INTERVALS}
    noise = np.array([one.noise for one in drawn])
    assert NOISES[0] <= noise.min() < noise.max() <= NOISES[1]
    # As many below the geometric middle as above it.
    assert 0.4 < (noise < (NOISES[0] * NOISES[1]) ** 0.5).mean() < 0.6
    # No two share their truth or their errors, nor those of the very long runs.
    seeds = [one.seed for one in drawn]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 10_000


def test_many_settings_are_observed_no_longer_than_one():
    chosen, one = configure("l96_any", preset="cpu"), configure("l96_conv", preset="cpu")
    assert chosen.n_settings * chosen.segments * chosen.cycles <= one.segments * one.cycles == 240_000


def test_scores_are_of_frozen_sets_and_validation_of_some_of_them():
    chosen = configure("l96_any", seed=4)
    scored = scored_settings(chosen)
    assert [one.setting for one in scored] == list(SCORED)
    assert {(one.n_settings, one.seed, one.analysis) for one in scored} == {(0, 4, chosen.analysis)}
    assert all(one.setting.load().frozen for one in scored)
    assert set(VALIDATED) < set(SCORED)
    assert [one.setting for one in scored_settings(chosen, VALIDATED)] == list(VALIDATED)


def test_a_filter_is_put_in_each_setting_with_the_same_weights():
    chosen = ring_experiment("hybrid", 4, 1).changed(n_settings=3)
    model, settings = ring_filter(chosen), training_settings(chosen)
    for (setting, view), asked in zip(in_settings(chosen, model, settings), settings, strict=True):
        assert setting == asked
        assert [id(p) for p in view.parameters()] == [id(p) for p in model.parameters()]
        assert torch.equal(view.error, torch.full((1, SITES), setting.noise))
        assert view.step_size == setting.step_size
        assert torch.equal(view.schedule.bool(), observation_model(setting.obs_conf, 1, SITES).schedule)

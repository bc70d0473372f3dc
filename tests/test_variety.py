"""Settings for one filter: many kinds, none rare, the same ones each time."""

from collections import Counter

import numpy as np
import pytest

from assim_lib.experiments import configure
from assim_lib.runs import test_set_of as frozen_set_of
from assim_lib.variety import INTERVALS, MASKS, NOISES, SCORED, VALIDATED, scored_in, variations

CHANGED = {"settings", "obs_conf", "step_size", "noise", "seed"}


def test_a_filter_of_one_setting_has_its_own():
    chosen = configure()
    assert variations(chosen) == scored_in(chosen) == [chosen]


@pytest.mark.parametrize("analysis", ["original", "recurrent", "hybrid", "covariant", "extended"])
@pytest.mark.parametrize("settings", [1, 5, 48])
def test_settings_are_experiments_that_differ_in_what_is_observed_alone(analysis, settings):
    chosen = configure("l96_any", analysis=analysis, settings=settings, seed=2)
    drawn = variations(chosen)
    assert len(drawn) == settings
    for one in drawn:
        assert one.settings == 0
        assert one.model_dump(exclude=CHANGED) == chosen.model_dump(exclude=CHANGED)
    assert drawn == variations(chosen)
    others = variations(configure("l96_any", analysis=analysis, settings=settings, seed=3))
    assert not {one.seed for one in drawn} & {one.seed for one in others}
    assert {one.noise for one in drawn} != {one.noise for one in others}


def test_no_kind_of_setting_is_rare():
    drawn = variations(configure("l96_any", settings=144))
    pairs = Counter((one.obs_conf, one.step_size) for one in drawn)
    assert pairs == {(mask, interval): 4 for mask in MASKS for interval in INTERVALS}
    noise = np.array([one.noise for one in drawn])
    assert noise.min() >= NOISES[0]
    assert noise.max() <= NOISES[1]
    # As many below the geometric middle as above it.
    assert 0.4 < (noise < (NOISES[0] * NOISES[1]) ** 0.5).mean() < 0.6
    # No two share their truth or their errors, nor those of the robustness runs.
    seeds = [one.seed for one in drawn]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 10_000


def test_many_settings_are_observed_no_longer_than_one():
    chosen, one = configure("l96_any", preset="cpu"), configure("l96_conv", preset="cpu")
    assert chosen.settings * chosen.segments * chosen.cycles <= one.segments * one.cycles == 240_000


def test_scores_are_of_frozen_sets_and_validation_of_some_of_them():
    chosen = configure("l96_any", seed=4)
    scored = scored_in(chosen)
    assert [(one.obs_conf, one.step_size, one.noise) for one in scored] == list(SCORED)
    assert {(one.settings, one.seed, one.analysis) for one in scored} == {(0, 4, chosen.analysis)}
    assert all(frozen_set_of(one).frozen for one in scored)
    assert len({one.setting for one in scored}) == len(scored)
    validated = scored_in(chosen, VALIDATED)
    assert set(VALIDATED) < set(SCORED)
    assert [one.obs_conf for one in validated] == [setting[0] for setting in VALIDATED]

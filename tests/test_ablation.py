"""Variants of the recipe under one budget: here tiny ones, for a moment."""

import json

import pytest
from small import soon_on_attractor

from assim_lib import ablation, runs
from assim_lib.ablation import VARIANTS, ablate, ablation_path, ablation_table, variant
from assim_lib.evaluation import Scores
from assim_lib.experiments import ParameterError
from assim_lib.systems import Lorenz96

pytestmark = pytest.mark.usefixtures("own_cache")

TINY = {
    "obs_conf": "every_4th_dim_partial_obs",
    "analysis": "recurrent",
    "m": 1,
    "lag": 1,
    "hidden_size": 4,
    "blocks": 1,
}
TINY |= {"kernel": 3, "memory": 2, "window": 3, "batch": 2, "pool": 4, "segments": 2, "cycles": 40}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two tiny variants, and results in a folder of their own; the number of validations."""
    monkeypatch.setattr(Lorenz96, "on_attractor", soon_on_attractor)
    monkeypatch.setattr(ablation, "RECIPE", TINY)
    monkeypatch.setattr(ablation, "VARIANTS", {"recipe": {}, "lag 0": {"lag": 0}})
    monkeypatch.setattr(ablation, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(runs, "validation_rmse", lambda *_: 1.5)
    scored = []

    def score(experiment, model, split):
        scored.append((experiment, split))
        return Scores(rmse=1.0 + experiment.lag, rmse_lo=0.9, rmse_hi=1.1, spread=0.0, crps=0.5, cycles=7), 2.0

    monkeypatch.setattr(ablation, "score", score)
    return scored


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_is_valid_and_differs_in_what_it_says(name):
    recipe, other = variant("recipe", updates=5).model_dump(), variant(name, updates=5).model_dump()
    different = {key for key in other if other[key] != recipe[key]}
    said = set(VARIANTS[name])
    assert said <= different
    if "analysis" not in said:
        assert different == said


def test_each_variant_has_a_file_of_its_own():
    names = [ablation_path(name, seed).name for name in VARIANTS for seed in (0, 1)]
    assert len(set(names)) == len(names)
    assert all(name == name.encode("ascii").decode() and " " not in name for name in names)


def test_an_unknown_variant_is_one_sentence():
    with pytest.raises(ParameterError, match=r"^variant = 'lag 99' is not known; known: recipe, [^\n]+\.$"):
        variant("lag 99")


def test_a_budget_decides_about_the_updates_and_results_are_kept(small, tmp_path):
    short, long = (
        json.loads(ablate(name, 0, tmp_path / "runs", budget, progress=False).read_text())["experiment"]["updates"]
        for name, budget in (("recipe", 0.05), ("lag 0", 0.5))
    )
    assert 1 <= short < long
    before = len(small)
    assert ablate("lag 0", 0, tmp_path / "runs", 100.0) == tmp_path / "ablation" / "lag-0-seed0.json"
    assert len(small) == before
    table = ablation_table()
    assert list(table.variant) == ["recipe", "lag 0"]
    assert list(table.rmse) == [2.0, 1.0]
    assert {split for _, split in small} == {"validation"}, "a recipe is not chosen on the test set"


def test_an_interrupted_variant_goes_on_with_the_updates_it_began_with(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "seconds_per_update", lambda experiment: 1.0)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            ablate("recipe", 0, tmp_path / "runs", 6.0, progress=False)
    monkeypatch.setattr(ablation, "seconds_per_update", lambda experiment: 100.0)
    stored = json.loads(ablate("recipe", 0, tmp_path / "runs", 6.0, progress=False).read_text())
    assert stored["experiment"]["updates"] == 6


def test_a_run_that_began_with_other_options_does_not_go_on(small, tmp_path, monkeypatch):
    runs_folder, result = tmp_path / "runs", ablate("recipe", 0, tmp_path / "runs", 0.05, progress=False)
    result.unlink()
    monkeypatch.setattr(ablation, "RECIPE", TINY | {"hidden_size": 5})
    with pytest.raises(ValueError, match=r"recipe-seed0.* belongs to a run with other settings"):
        ablate("recipe", 0, runs_folder, 0.05, progress=False)
    assert not result.exists()


def test_a_result_of_other_options_is_not_kept_in_silence(small, tmp_path, monkeypatch):
    ablate("recipe", 0, tmp_path / "runs", 0.05, progress=False)
    monkeypatch.setattr(ablation, "RECIPE", TINY | {"hidden_size": 5})
    with pytest.raises(ValueError, match=r"recipe-seed0\.json is of other options than 'recipe' has now; [^\n]+\.$"):
        ablate("recipe", 0, tmp_path / "runs", 0.05, progress=False)


def test_the_stored_results_are_of_the_variants_as_they_are_now():
    compared = 0
    for name in VARIANTS:
        for path in ablation_path(name, 0).parent.glob(ablation_path(name, 0).name.replace("seed0", "seed*")):
            stored = json.loads(path.read_text())
            again = variant(name, stored["seed"], updates=stored["experiment"]["updates"])
            assert again.model_dump() == stored["experiment"]
            assert stored["changed"] == VARIANTS[name]
            compared += 1
    assert compared == len(list(ablation_path("recipe", 0).parent.glob("*.json"))) > 0

"""Variants of the recipe under one budget: here tiny ones, for a moment."""

import pytest
from small import PARTIAL
from small_runs import SIZES

from assim_lib.evaluation import Scores
from assim_lib.storage import IntegrityError
from assim_lib.study import ablation
from assim_lib.study.ablation import VARIANTS, Variant, ablate, ablation_path, ablation_table, variant
from assim_lib.training import run as run_module
from assim_lib.training.experiment import ParameterError

TINY = {**SIZES, "obs_conf": PARTIAL, "analysis": "recurrent", "m": 1, "lag": 1}
committed = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture
def small(home, monkeypatch, tmp_path):
    """Two tiny variants, and results in a folder of their own; what was scored."""
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    monkeypatch.setattr(ablation, "RECIPE", TINY)
    monkeypatch.setattr(ablation, "VARIANTS", {"recipe": {}, "lag 0": {"lag": 0}})
    monkeypatch.setattr(run_module, "validation_rmse", lambda *_: 1.5)
    scored = []

    def score(experiment, model, split):
        scored.append((experiment, split))
        return Scores(rmse=1.0 + experiment.lag, rmse_lo=0.9, rmse_hi=1.1, spread=0.0, crps=0.5, cycles=7), 2.0

    monkeypatch.setattr(ablation, "score", score)
    return scored


def ablated(name, folder, budget=0.05):
    return Variant.read(ablate(name, 0, folder / "runs", budget, progress=False))


@committed
def test_each_variant_is_valid_and_differs_in_what_it_says(name):
    recipe, other = variant("recipe", updates=5).model_dump(), variant(name, updates=5).model_dump()
    different, said = {key for key in other if other[key] != recipe[key]}, set(VARIANTS[name])
    assert said <= different
    assert "analysis" in said or different == said


def test_each_variant_has_a_file_of_its_own():
    names = [ablation_path(name, seed).name for name in VARIANTS for seed in (0, 1)]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and " " not in name for name in names)


def test_an_unknown_variant_is_one_sentence():
    with pytest.raises(ParameterError, match=r"^variant = 'lag 99' is not known; known: recipe, [^\n]+\.$"):
        variant("lag 99")


def test_a_budget_decides_about_the_updates_and_results_are_kept(small, tmp_path):
    short, long = ablated("recipe", tmp_path), ablated("lag 0", tmp_path, 0.5)
    assert 1 <= short.experiment["updates"] < long.experiment["updates"]
    assert (long.variant, long.changed, long.budget) == ("lag 0", {"lag": 0}, 0.5)
    assert long.history[-1]["validation_rmse"] == 1.5
    assert ablate("lag 0", 0, tmp_path / "runs", 100.0) == tmp_path / "ablation" / "lag-0-seed0.json"
    assert [(one.lag, split) for one, split in small] == [(1, "validation"), (0, "validation")]  # never the test set
    table = ablation_table()
    assert list(table.variant) == ["recipe", "lag 0"]
    assert list(table.rmse) == [2.0, 1.0]
    assert list(table.updates) == [short.experiment["updates"], long.experiment["updates"]]
    ablation_path("recipe", 0).write_text("{}")
    with pytest.raises(IntegrityError, match=r"^recipe-seed0\.json is no Variant: variant: Field required; "):
        ablation_table()


def test_an_interrupted_variant_goes_on_with_the_updates_it_began_with(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "seconds_per_update", lambda experiment: 1.0)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            ablated("recipe", tmp_path, 6.0)
    monkeypatch.setattr(ablation, "seconds_per_update", lambda experiment: 100.0)
    assert ablated("recipe", tmp_path, 6.0).experiment["updates"] == 6


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        (False, r"recipe-seed0.* belongs to a run with other options"),
        (True, r"recipe-seed0\.json is of other options than 'recipe' has now; [^\n]+\.$"),
    ],
)
def test_a_run_or_a_result_of_other_options_is_refused(small, tmp_path, monkeypatch, stored, sentence):
    result = ablate("recipe", 0, tmp_path / "runs", 0.05, progress=False)
    if not stored:
        result.unlink()
    monkeypatch.setattr(ablation, "RECIPE", TINY | {"hidden_size": 5})
    with pytest.raises(ValueError, match=sentence):
        ablated("recipe", tmp_path)
    assert result.exists() is stored


def test_the_stored_results_are_of_the_variants_as_they_are_now(tmp_path, monkeypatch):
    monkeypatch.delenv("ASSIM_DATA", raising=False)
    stored = [(name, seed) for name in VARIANTS for seed in range(10) if ablation_path(name, seed).exists()]
    for name, seed in stored:
        path = ablation_path(name, seed)
        assert ablate(name, seed, tmp_path) == path  # kept
        one = Variant.read(path)
        assert (one.variant, one.seed, one.changed) == (name, seed, VARIANTS[name])
    assert len(stored) == len(list(path.parent.glob("*.json"))) > 0
    assert list(tmp_path.iterdir()) == []

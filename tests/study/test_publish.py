"""A stored filter: its weights, its scores, and whoever asks for it."""

from functools import partial

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from small import PARTIAL
from small_runs import QUIET, assert_same, tiny

from assim_lib.setting import Setting
from assim_lib.storage import IntegrityError, sha256
from assim_lib.study import benchmark, forecasts, long_runs
from assim_lib.study import publish as publish_module
from assim_lib.study.notebook import stored_filter
from assim_lib.study.publish import best_filter, check_publishable, publish, publish_again
from assim_lib.study.results import collect, load_scores, read_result, training_log, write_scores
from assim_lib.study.trainings import histories, training_runs
from assim_lib.systems import Lorenz96
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, load_filter
from assim_lib.training.experiment import Experiment, ParameterError
from assim_lib.training.many_settings import scored_settings
from assim_lib.training.run import train
from assim_lib.training.validation import score
from assim_lib.twin import TwinExperiment, trajectory_path

LOSES = TwinExperiment.loses  # which `home` takes away
pytestmark = pytest.mark.usefixtures("home", "unchecked_shapes")

PLACES = (Setting("l96"), Setting("l96", PARTIAL, noise=2.5))


@pytest.fixture(scope="module")
def published(home):
    """A filter, where its weights are, its experiment, and how it was trained."""
    chosen = tiny("hybrid", 3, lag=1, dropout=0.2, test_dropout=True, obs_conf=PARTIAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        model, log = train(chosen, progress=False, curve_points=1)
        return publish(chosen, model, log), chosen, model, log


def result_of(home, name):
    return read_result(home / "results" / f"{name}.json")


def test_a_result_names_its_checkpoint_which_says_how_the_filter_was_trained(published, home):
    path, chosen, model, log = published
    assert path == home / "checkpoints" / f"{chosen.name}.safetensors"
    result = result_of(home, chosen.name)
    assert (result.setting, result.method, result.m) == (chosen.setting, "amortized", 3)
    assert (result.label, result.seed) == ("hybrid, lag 1", 0)
    assert not result.diverged
    assert (result.checkpoint, result.weights) == (path.name, sha256(path))
    assert result.test.cycles == result.validation.cycles == 200
    assert result.ms_per_cycle > 0
    assert len(result.test.blocks) == len(result.untrained.blocks) == 2
    assert (result.by_age["age"], result.by_age["share"]) == ([0, 1, 2, 3], [0.25] * 4)
    assert result.provenance.versions["torch"]
    untrained = build_filter(chosen, model.climatology)
    assert result.untrained == score(chosen, untrained)[0] != result.test
    assert result.untrained_validation == score(chosen, untrained, "validation")[0]
    training = training_log(result.checkpoint)
    assert Experiment(**training.experiment) == chosen
    assert training.history == log["history"]
    assert training.provenance.model_dump(exclude_defaults=True) == log["provenance"]
    (row,) = collect().itertuples()
    assert (row.checkpoint, row.commit) == (path.name, training.provenance.commit)
    assert (row.rmse, row.validation_rmse, row.best) == (result.test.rmse, result.validation.rmse, True)


def test_a_published_filter_reproduces_its_scores_to_the_bit(published, home, monkeypatch):
    """Also with other rounding: there the climatology of the same seed, and with it the units, would be others."""
    path, chosen, model, _ = published
    simulated = Lorenz96.on_attractor
    monkeypatch.setattr(Lorenz96, "on_attractor", lambda *args: 1.01 * simulated(*args))
    experiment, loaded = load_filter(path)
    assert experiment == chosen
    assert_same(loaded.state_dict(), model.state_dict())
    for split in ("test", "validation"):
        assert score(experiment, loaded, split)[0] == getattr(result_of(home, chosen.name), split)


def test_scoring_again_keeps_the_weights_and_what_is_known_of_the_training(published, home, monkeypatch):
    path, chosen, _, _ = published
    before, files = result_of(home, chosen.name), (path, path.with_suffix(".json"))
    contents = [file.read_bytes() for file in files]
    later = {**before.provenance.model_dump(), "commit": "later"}
    monkeypatch.setattr(publish_module, "provenance", lambda *_: later)
    assert publish_again(chosen.name) == path
    assert [file.read_bytes() for file in files] == contents
    after = result_of(home, chosen.name)
    assert after.provenance.commit == "later"
    assert before == after.model_copy(update={name: getattr(before, name) for name in ("provenance", "ms_per_cycle")})
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint nothing "):
        publish_again("nothing")


def test_the_record_of_another_filter_is_not_believed(published, home):
    path = published[0]
    for file in (path, path.with_suffix(".json")):
        (file.parent / f"another{file.suffix}").write_bytes(file.read_bytes())
    try:
        with pytest.raises(
            ParameterError, match=rf"^another\.safetensors holds the filter '{path.stem}'; a filter has"
        ):
            publish_again("another")
    finally:
        for suffix in (".safetensors", ".json"):
            (path.parent / f"another{suffix}").unlink()


def test_what_is_no_number_is_not_published(published, monkeypatch):
    path, chosen, model, log = published
    before = path.read_bytes()
    run = publish_module.run_filter
    monkeypatch.setattr(publish_module, "run_filter", lambda *args, **kwargs: (np.nan * run(*args, **kwargs)[0], 1.0))
    with pytest.raises(FloatingPointError, match="analyses that are no numbers are not published"):
        publish(chosen, model, log)
    assert path.read_bytes() == before


def test_a_filter_that_loses_the_truth_is_not_published(published, monkeypatch):
    path, chosen, model, log = published
    before = path.read_bytes()
    monkeypatch.setattr(TwinExperiment, "loses", LOSES)
    sentence = r"lost the truth of L96, moving.* \(RMSE [\d.]+, of the climatology 3\.\d+; \d+ updates were skipped"
    with pytest.raises(FloatingPointError, match=sentence):
        publish(chosen, model, log)
    assert path.read_bytes() == before


def test_the_test_set_does_not_choose_what_is_published(published, home, monkeypatch, capsys):
    """What loses the truth there alone is stored, and said to have lost it: as classical methods are."""
    _, chosen, model, log = published
    stored = home / "results" / f"{chosen.name}.json"
    before = stored.read_bytes()
    monkeypatch.setattr(TwinExperiment, "loses", lambda twin, ensemble: "validation" not in twin.name)
    publish(chosen, model, log)
    assert result_of(home, chosen.name).diverged
    assert "lost the truth on the test set" in capsys.readouterr().out
    stored.write_bytes(before)


def test_weights_that_a_kill_left_without_their_record_are_not_published(published):
    path, chosen, *_ = published
    content = path.with_suffix(".json").read_bytes()
    path.with_suffix(".json").unlink()
    try:
        check_publishable(chosen.changed(updates=9))
    finally:
        path.with_suffix(".json").write_bytes(content)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_both_truths_are_there_and_whole_before_a_training(home, split):
    """Its line lost, its file lost, a bit flipped: neither another truth nor a traceback."""
    path, chosen = trajectory_path("l96", 0.1, split), tiny(seed=5)
    manifest = path.with_name("SHA256SUMS")
    lines, content = manifest.read_text(), path.read_bytes()
    check_publishable(chosen)
    try:
        manifest.write_text("".join(line for line in lines.splitlines(True) if path.name not in line))
        for refused in (partial(check_publishable, chosen), partial(chosen.setting.load, split)):
            with pytest.raises(IntegrityError, match=rf"^{path.name} has no line in test_sets/SHA256SUMS; "):
                refused()
        manifest.unlink()
        with pytest.raises(IntegrityError, match="has no line in"):
            check_publishable(chosen)
        manifest.write_text("no checksum\n")
        with pytest.raises(IntegrityError, match=r"^SHA256SUMS, line 1: 'no checksum' is no checksum and name"):
            check_publishable(chosen)
        manifest.write_text(lines)
        path.write_bytes(content[:-1])
        with pytest.raises(IntegrityError, match="is corrupt"):
            check_publishable(chosen)
        path.unlink()
        for refused in (partial(check_publishable, chosen), partial(chosen.setting.load, split)):
            with pytest.raises(FileNotFoundError, match="is not among the trajectory files"):
                refused()
    finally:
        manifest.write_text(lines)
        path.write_bytes(content)


def test_where_nothing_can_be_stored_nothing_is_trained(home, monkeypatch):
    monkeypatch.setattr(publish_module, "why_not_writable", lambda path: "Read-only file system")
    with pytest.raises(PermissionError, match=r"Read-only file system\); copy .* by the .* ASSIM_DATA"):
        check_publishable(tiny(seed=5))


def test_what_names_no_commit_is_not_stored(monkeypatch):
    """Neither a filter nor the score of a classical method: asked before anything is computed."""

    def refuse():
        raise PermissionError("not committed")

    for module in (publish_module, benchmark, long_runs, forecasts):
        monkeypatch.setattr(module, "refuse_uncommitted", refuse)
    for asked in (
        partial(check_publishable, tiny(seed=5)),
        partial(benchmark.compare, None),
        partial(long_runs.stress_test, "none", None),
        partial(forecasts.forecast_skill, None),
    ):
        with pytest.raises(PermissionError, match="not committed"):
            asked()


def test_an_interrupted_scoring_leaves_the_old_weights_beside_the_old_scores(published, home, monkeypatch):
    path, chosen, _, log = published
    before, scored = path.read_bytes(), result_of(home, chosen.name)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish_module, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        publish(chosen, build_filter(chosen.changed(seed=2)), log)
    assert path.read_bytes() == before
    assert result_of(home, chosen.name) == scored


def test_a_published_filter_is_not_replaced_by_another_training_unasked(published, monkeypatch):
    chosen = published[1]
    check_publishable(chosen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_publishable(chosen.changed(device="cuda"))  # wherever it is trained, it is the same run
    other = chosen.changed(updates=9, batch=1)
    assert other.name == chosen.name
    with pytest.raises(FileExistsError) as caught:
        check_publishable(other)
    assert str(caught.value).startswith(
        f"{chosen.name} is published already, from a training with batch = 2, updates = 8; "
    )
    check_publishable(other, again=True)


@pytest.mark.parametrize("changed", [{"step_size": 0.2}, {"system": "ks", "step_size": 0.5}], ids=str)
def test_what_has_no_frozen_truth_is_refused_before_anything_is_simulated(home, own_cache, changed):
    chosen = tiny(**changed)
    before = sorted(own_cache.iterdir())
    sentence = rf"^system = '\w+' with step_size = {chosen.step_size} has no frozen test set; make one [^\n]+\.$"
    for refuse in (check_publishable, partial(publish, model=None, log={})):
        with pytest.raises(LookupError, match=sentence):
            refuse(chosen)
    assert not checkpoint_path(chosen.name).exists()
    assert sorted(own_cache.iterdir()) == before


def test_a_filter_of_many_settings_is_published_once_and_scored_in_each(home, monkeypatch):
    monkeypatch.setattr(publish_module, "scored_settings", partial(scored_settings, settings=PLACES))
    chosen = tiny("hybrid", 3, experiment="l96_any", n_settings=4, lag=1, updates=2, segments=1, cycles=12)
    model, log = train(chosen, **{**QUIET, "curve_points": 1})
    path = publish(chosen, model, log)
    assert path.stem == "l96_any-4settings-hybrid-lag1-m3-seed0"
    write_scores()
    table = load_scores(method="amortized_any")
    assert set(table.checkpoint) == {path.name}
    assert set(table.label) == {"hybrid, lag 1, 4 settings"}
    for setting in PLACES:
        result = result_of(home, f"{chosen.name}-{setting.observing}")
        assert result.setting == setting
        # Whoever asks for the filter in a setting gets it there.
        experiment, loaded, row = best_filter(**setting.as_dict(), method="amortized_any")
        assert experiment == chosen.changed(n_settings=0, **setting.as_dict())
        assert row.noise == setting.noise
        assert_same(loaded.state_dict(), model.state_dict())
        assert score(experiment, loaded, "validation")[0] == result.validation
    # One filter, one row, and the command that repeats it.
    (run,) = training_runs(method="amortized_any").itertuples()
    assert run.name == chosen.name
    assert "--n_settings 4" in run.command
    assert run.validation_rmse == pytest.approx(table.validation_rmse.prod() ** 0.5, rel=1e-3)
    assert len(histories(method="amortized_any")) == 1


def test_the_best_filter_of_a_setting_is_chosen_on_validation_data(published, home, capsys):
    """And there is none in any other."""
    path, chosen, model, _ = published
    row = collect().query("checkpoint == @path.name").iloc[0]
    better_by_chance = {**row, "validation_rmse": row.validation_rmse + 1, "rmse": 0.0, "checkpoint": "other"}
    pd.DataFrame([better_by_chance, row]).to_csv(home / "results" / "scores.csv", index=False)
    stored = stored_filter(chosen.setting, method="amortized")
    assert stored.row.checkpoint == path.name
    assert_same(stored.model.state_dict(), model.state_dict())
    assert stored.run(chosen.setting.load()).shape == (400, 3, 1, 40)
    said = capsys.readouterr().out
    assert f"stored for {chosen.setting.title}: hybrid, lag 1, m = 3" in said
    assert "intervals of both scores overlap: True" in said
    with pytest.raises(LookupError, match=r"^no stored filter has system = 'ks', noise = 3\.0\.$"):
        best_filter(system="ks", noise=3.0)
    assert stored_filter(Setting("ks", step_size=1.0)) is None
    with pytest.raises(KeyError, match="methd"):  # a column that is not there does not say that nothing is stored
        stored_filter(chosen.setting, methd="amortized")
    assert "No filter is stored for KS, all sites" in capsys.readouterr().out

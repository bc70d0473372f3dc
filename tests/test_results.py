"""The table of scores, and the files it is made of."""

import json
import shlex
import sys

import pandas as pd
import pytest
from small import SETTING, write_result

from assim_lib import __main__ as commands
from assim_lib import results, runs
from assim_lib.evaluation import rmse
from assim_lib.experiments import Experiment, configure
from assim_lib.robustness import examined
from assim_lib.storage import data_dir
from assim_lib.training import load_checkpoint
from assim_lib.trajectories import load_test_set


def test_the_committed_table_is_what_the_files_say():
    committed = pd.read_csv(results.results_dir() / "scores.csv")
    pd.testing.assert_frame_equal(committed, results.collect(), check_dtype=False, rtol=1e-4)


def test_every_learned_row_has_its_checkpoint_and_says_how_it_was_made():
    table = results.load_scores()
    learned = table[table.method.str.startswith("amortized")]
    assert set(learned.obs_conf) >= {"full_obs", "every_4th_dim_partial_obs"}
    for row in learned.itertuples():
        _, record = load_checkpoint(data_dir() / "checkpoints" / row.checkpoint)
        chosen = Experiment(**{**record["experiment"], "device": "auto"})
        setting = () if chosen.settings else ("obs_conf", "step_size", "noise")  # trained in many, scored in this
        for column in (*setting, "method", "m", "seed"):
            assert getattr(chosen, column) == getattr(row, column), column
        assert chosen.system == row.system
        assert load_test_set(row.system, row.obs_conf, row.step_size, row.noise).frozen
        assert record["history"][-1]["core_seconds"] > 0
        assert record["provenance"]["versions"]["torch"]


def test_scores_are_those_of_the_weights_that_are_there():
    table = results.load_scores().dropna(subset="checkpoint")
    stored = {
        row.file: (row.checkpoint, json.loads((results.results_dir() / row.file).read_text()))
        for row in table.itertuples()
    }
    stored |= {name: (f"{name}.safetensors", one) for name, one in examined().items()}
    for name, (checkpoint, result) in stored.items():
        _, record = load_checkpoint(data_dir() / "checkpoints" / checkpoint)
        assert result["weights"] == record["sha256"], name


def test_every_checkpoint_is_in_the_table():
    files = sorted(path.name for path in (data_dir() / "checkpoints").glob("*.safetensors"))
    assert files == sorted(results.collect().checkpoint.dropna().unique())


@pytest.mark.parametrize("checkpoint", sorted(path.name for path in (data_dir() / "checkpoints").glob("*.safetensors")))
def test_a_committed_filter_still_finds_the_truth(checkpoint):
    """From a cold start, with the library as it is now; a slice scatters about the score, and less the longer it is."""
    for row in results.collect().query("checkpoint == @checkpoint").itertuples():
        setting = {"obs_conf": row.obs_conf, "step_size": row.step_size, "noise": row.noise}
        experiment, model = runs.load_filter(data_dir() / "checkpoints" / checkpoint, **setting)
        data = runs.test_set_of(experiment)
        ensemble, _ = runs.run_filter(experiment, model, data, cycles=320)
        errors = rmse(ensemble, data.truth[1:321])
        assert errors[120:].mean() == pytest.approx(row.rmse, rel=0.4)
        assert errors[0] > errors[120:].mean()


def test_the_command_of_a_run_repeats_it(monkeypatch):
    table = results.training_runs()
    assert len(table) == results.collect().checkpoint.nunique()
    for run in table.itertuples():
        words = shlex.split(run.command)
        assert words[:4] == ["python", "-m", "assim_lib", "train"]
        monkeypatch.setattr(sys, "argv", words[2:])
        arguments = vars(commands._parser().parse_args())
        chosen = configure(
            arguments.pop("experiment"),
            **{k: arguments[k] for k in arguments.keys() - {"command", "runs", "curve_points", "again"}},
        )
        _, record = load_checkpoint(data_dir() / "checkpoints" / f"{run.name}.safetensors")
        # Options that came later are not in an early record.
        assert chosen.model_dump().items() >= record["experiment"].items(), run.name
        assert chosen.name == run.name


# What the committed filters must keep, by setting.
BARS = {
    ("l96", "full_obs", 1.0): 0.22,
    ("l96", "every_4th_dim_partial_obs", 1.0): 0.56,
    ("l96", "full_obs", 2.5): 0.69,
    ("l96", "every_4th_dim_partial_obs", 2.5): 1.65,
    ("ks", "full_obs", 1.0): 0.093,
    ("two_level", "full_obs", 1.0): 0.31,
    ("vl20", "every_4th_dim_partial_obs", 1.0): 0.59,
}


@pytest.mark.parametrize(("setting", "bar"), BARS.items(), ids=str)
def test_ten_members_stay_below_the_bar(setting, bar):
    chosen = dict(zip(("system", "obs_conf", "noise"), setting, strict=True))
    table = results.load_scores(**chosen, method="amortized")
    best = table.loc[table.validation_rmse.idxmin()]
    assert best.m <= 10
    assert best.cycles == 5000
    assert best.rmse <= bar


@pytest.mark.parametrize("obs_conf", ["full_obs", "every_4th_dim_partial_obs"])
def test_all_classical_rows_are_there(obs_conf):
    table = results.load_scores(**{**SETTING, "obs_conf": obs_conf})
    rows = set(zip(table.method, table.m, strict=True))
    wanted = {("LETKF", 5), ("LETKF", 10), ("LETKF", 20), ("iEnKS", 30), ("4D-Var", 1), ("Climatology", 1)}
    assert wanted <= rows
    scored = table[table.diverged == False]  # noqa: E712
    assert ((scored.rmse_lo <= scored.rmse) & (scored.rmse <= scored.rmse_hi)).all()


def test_best_is_chosen_on_validation_data(tmp_path):
    for label, validation, test in (("a", 0.3, 0.2), ("b", 0.2, 0.3)):
        write_result(tmp_path, label, validation, test)
    table = results.collect(tmp_path)
    assert table.set_index("label").best.to_dict() == {"a": False, "b": True}
    write_result(tmp_path, "c", float("nan"), 0.1)
    assert results.collect(tmp_path).set_index("label").best.to_dict() == {"a": False, "b": True, "c": False}
    write_result(tmp_path, "d", float("nan"), float("nan"), m=7)
    assert results.collect(tmp_path).set_index("label").best["d"]


def test_best_is_one_in_each_setting(tmp_path):
    """Another system, interval, noise or loss is another competition."""
    changes = [{}, {"system": "ks"}, {"step_size": 0.2}, {"noise": 2.5}, {"obs_conf": "partial_obs"}, {"m": 6}]
    changes += [{"method": "amortized_ss_analysis"}]
    for i, changed in enumerate(changes):
        write_result(tmp_path, f"good{i}", 0.3 + i / 10, **changed)
        write_result(tmp_path, f"bad{i}", 1.5 + i / 10, **changed)
    table = results.collect(tmp_path).set_index("label")
    assert table.best.to_dict() == {
        f"{word}{i}": word == "good" for i in range(len(changes)) for word in ("good", "bad")
    }


def test_rows_and_learning_curves_of_a_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "results_dir", lambda: tmp_path)
    for label, system in (("a", "l96"), ("b", "ks"), ("c", "vl20")):
        learned = {"history": [{"update": 1, "loss": 1.5}]} if label != "c" else {}
        write_result(tmp_path, label, system=system, **learned)
    results.write_scores()

    def labels(**setting):
        return results.load_scores(**setting).label.tolist()

    assert sorted(labels()) == ["a", "b", "c"]
    assert labels(system="ks") == ["b"]
    assert sorted(labels(system=["ks", "vl20"], m=5)) == ["b", "c"]
    assert labels(system="ks", m=6) == []
    assert results.histories(system=["ks", "vl20"]) == {"b, m = 5": [{"update": 1, "loss": 1.5}]}
    assert results.histories().keys() == {"a, m = 5", "b, m = 5"}


def test_of_runs_with_one_name_the_best_learning_curve_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "results_dir", lambda: tmp_path)
    for file, validation in (("a", 0.3), ("b", 0.2), ("c", 0.4)):
        write_result(tmp_path, file, validation, history=[{"update": 1, "validation_rmse": validation}])
        stored = json.loads((tmp_path / f"{file}.json").read_text())
        (tmp_path / f"{file}.json").write_text(json.dumps(stored | {"label": "hybrid"}))
    assert results.histories() == {"hybrid, m = 5": [{"update": 1, "validation_rmse": 0.2}]}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("test-sets --system l97", "test-sets: system = 'l97' is not registered"),
        ("test-sets --step-size 0.07", "test-sets: step_size = 0.07 must be a positive multiple"),
        ("test-sets --system ks --step-size 1", "test-sets: system = 'ks' with step_size = 1 is frozen already"),
        ("ablate recipe nothing", "ablate: variant = 'nothing' is not known"),
        ("examine nothing", "examine: no checkpoint nothing"),
        ("score nothing", "score: no checkpoint nothing"),
        ("train l97", "train: experiment = 'l97' is not known"),
        ("train l96_conv --noise -1", "train: noise = -1.0 (of type float) is not allowed"),
        ("train l96_conv --step_size 0.2", "train: system = 'l96' with step_size = 0.2 has no frozen test set"),
        (
            "train l96_conv --analysis hybrid",
            "train: l96_conv-full_obs-dt0.1-s1-hybrid-lag3-m10-seed0 is published already",
        ),
        ("baselines --method LETFK", "baselines: method = LETFK has no classical methods"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(monkeypatch, line, sentence):
    monkeypatch.setattr(sys, "argv", ["assim_lib", *shlex.split(line)])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    assert str(caught.value).startswith(f"assim_lib {sentence}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["baselines --processes 0", "train l96_conv --curve-points -3", "train l96_conv --curve-points two"]
)
def test_a_count_on_the_command_line_is_one(monkeypatch, capsys, line):
    monkeypatch.setattr(sys, "argv", ["assim_lib", *shlex.split(line)])
    with pytest.raises(SystemExit):
        commands.main()
    assert "must be a whole number ≥" in capsys.readouterr().err

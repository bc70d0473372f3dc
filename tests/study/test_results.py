"""The table of scores, and the files it is made of."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small import SETTING, write_result

from assim_lib.setting import SETTING_COLUMNS, Setting
from assim_lib.storage import IntegrityError, data_dir
from assim_lib.study.long_runs import stress_tests
from assim_lib.study.results import (
    Provenance,
    Result,
    collect,
    load_scores,
    read_result,
    results_dir,
    training_log,
    write_scores,
)
from assim_lib.study.results import write_result as store
from assim_lib.training.checkpoints import load_checkpoint, stored_experiment
from assim_lib.twin import is_frozen

# ---- what is committed


def test_the_committed_table_is_what_the_files_say():
    committed = pd.read_csv(results_dir() / "scores.csv")
    pd.testing.assert_frame_equal(committed, collect(), check_dtype=False, rtol=1e-4)


def test_every_learned_row_names_its_checkpoint_which_says_how_it_was_made():
    table = load_scores()
    learned = table[table.method.str.startswith("amortized")]
    assert set(learned.obs_conf) >= {"full_obs", "every_4th_dim_partial_obs"}
    for row in learned.itertuples():
        log = training_log(row.checkpoint)
        chosen = stored_experiment(log.model_dump())
        one = () if chosen.n_settings else ("obs_conf", "step_size", "noise")  # trained in many, scored in this
        for column in ("system", *one, "method", "m", "seed", "label"):
            assert getattr(chosen, column) == getattr(row, column), (row.file, column)
        assert is_frozen(Setting(*(getattr(row, column) for column in SETTING_COLUMNS)))
        assert log.history[-1]["core_seconds"] > 0
        assert log.provenance.versions["torch"]
        assert row.commit == log.provenance.commit


def test_scores_are_those_of_the_weights_that_are_there():
    files = [read_result(results_dir() / file) for file in load_scores().dropna(subset="checkpoint").file]
    weights = {(result.checkpoint, result.weights) for result in files}
    weights |= {(f"{name}.safetensors", stored.weights) for name, stored in stress_tests().items()}
    stored = {path.name for path in (data_dir() / "checkpoints").glob("*.safetensors")}
    assert {name for name, _ in weights} == stored
    for name, checksum in weights:
        assert load_checkpoint(data_dir() / "checkpoints" / name)[1]["sha256"] == checksum, name


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
    table = load_scores(**dict(zip(("system", "obs_conf", "noise"), setting, strict=True)), method="amortized")
    best = table.loc[table.validation_rmse.idxmin()]
    assert best.m <= 10
    assert best.cycles == 5000
    assert best.rmse <= bar


@pytest.mark.parametrize("obs_conf", ["full_obs", "every_4th_dim_partial_obs"])
def test_all_classical_rows_are_there(obs_conf):
    table = load_scores(**{**SETTING.as_dict(), "obs_conf": obs_conf})
    wanted = {("LETKF", 5), ("LETKF", 10), ("LETKF", 20), ("iEnKS", 30), ("4D-Var", 1), ("Climatology", 1)}
    assert wanted <= set(zip(table.method, table.m, strict=True))
    scored = table[~table.diverged.astype(bool)]
    assert ((scored.rmse_lo <= scored.rmse) & (scored.rmse <= scored.rmse_hi)).all()


# ---- how a table is made


def best():
    return collect().set_index("label").best.to_dict()


def test_best_is_chosen_on_validation_data(own):
    for label, validation, test in (("a", 0.3, 0.2), ("b", 0.2, 0.3)):
        write_result(own, label, validation, test)
    assert best() == {"a": False, "b": True}
    write_result(own, "c", float("nan"), 0.1)
    assert best() == {"a": False, "b": True, "c": False}
    write_result(own, "d", float("nan"), float("nan"), m=7)
    assert best()["d"]


def test_best_is_one_in_each_setting(own):
    """Another system, interval, noise or loss is another competition."""
    changes = [{}, {"system": "ks"}, {"step_size": 0.2}, {"noise": 2.5}, {"obs_conf": "partial_obs"}, {"m": 6}]
    changes += [{"method": "amortized_ss_analysis"}]
    for i, changed in enumerate(changes):
        write_result(own, f"good{i}", 0.3 + i / 10, **changed)
        write_result(own, f"equal{i}", 0.3 + i / 10, **changed)
        write_result(own, f"bad{i}", 1.5 + i / 10, **changed)
    table = collect()
    winners = table[table.best].label
    assert len(winners) == len(changes)
    assert not winners.str.startswith("bad").any()


def test_rows_of_a_choice(own):
    for label, system in (("a", "l96"), ("b", "ks"), ("c", "vl20")):
        write_result(own, label, system=system)
    assert write_scores() == own / "scores.csv"

    def labels(**wanted):
        return sorted(load_scores(**wanted).label)

    assert labels() == ["a", "b", "c"]
    assert labels(system="ks") == ["b"]
    assert labels(system=["ks", "vl20"], m=5) == ["b", "c"]
    assert labels(system="ks", m=6) == []


def test_a_row_is_found_by_the_whole_number_of_its_setting(own):
    write_result(own, "a", noise=1.2345678)
    write_scores()
    assert load_scores(noise=1.2345678).label.tolist() == ["a"]


# ---- a result


def test_a_result_comes_back_with_its_types(own):
    """What was not measured is missing, and what was not said is not stored."""
    write_result(own, "a", float("nan"), noise=2)
    result = read_result(own / "a.json")
    assert isinstance(result, Result)
    assert isinstance(result.provenance, Provenance)
    assert result.setting == Setting("l96", "full_obs", 0.1, 2.0)
    assert np.isnan(result.validation.rmse)
    assert result.test.cycles == 500
    path = store("b", result)
    assert path == own / "b.json"
    assert json.loads(path.read_text()) == json.loads((own / "a.json").read_text())
    assert "weights" not in path.read_text()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"m": "ten"}, "m: Input should be a valid integer"),
        ({"noize": 1.0}, "noize: Extra inputs are not permitted"),
        ({"test": "low"}, "test.rmse: Input should be a valid number"),
        ({"untrained": {"rmse": 0.2}}, "untrained.rmse_lo: "),
        ({"provenance": {"commit": 3}}, "provenance.commit: Input should be a valid string"),
        ({"baseline": {"method": "LETFK", "m": 5}}, "baseline.method: "),
        ({"failed": [{"hyperparameters": {}}]}, "failed.0.outcome: Field required"),
    ],
    ids=str,
)
def test_whoever_reads_a_result_is_told_which_file_and_field_is_wrong(own, change, field):
    write_result(own, "right")
    write_result(own, "wrong", **change)
    for read in (lambda: read_result(own / "wrong.json"), collect, write_scores):
        with pytest.raises(IntegrityError) as caught:
            read()
        assert str(caught.value).startswith(f"wrong.json is no Result: {field}")
        assert "\n" not in str(caught.value)


def test_what_is_no_json_is_told_as_well(own, tmp_path):
    own.mkdir()
    (own / "torn.json").write_text('{"system": "l9')
    with pytest.raises(IntegrityError, match=r"^torn\.json is no Result: content: Invalid JSON: [^\n]+\.$"):
        read_result(own / "torn.json")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"^a\.json is no TrainingLog: experiment: Field required; "):
        training_log("a.safetensors")


@pytest.mark.parametrize("module", ["assim_lib.study.results", "assim_lib.study.summaries", "assim_lib.figures"])
def test_tables_are_read_without_torch(module):
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in run.stderr.splitlines()}
    assert {module, "pandas" if "study" in module else "matplotlib"} <= imported
    assert not {name for name in imported if name.split(".")[0] in ("torch", "dapper", "torchdiffeq")}


def test_a_result_whose_run_broke_down_on_the_test_set_can_be_read_again(own):
    """JSON has no NaN, in a list neither."""
    write_result(own, "broken", test=(0.2, float("nan"), 0.4))
    assert np.isnan(read_result(own / "broken.json").test.blocks[1])
    assert len(collect()) == 1

"""The table of scores, and the files it is made of."""

import json

import numpy as np
import pandas as pd
import pytest

from assim_lib import comparison, results
from assim_lib.baselines import Baseline, BaselineRun
from assim_lib.storage import data_dir
from assim_lib.training import load_checkpoint
from assim_lib.trajectories import load_test_set

SETTING = {"system": "l96", "obs_conf": "full_obs", "step_size": 0.1, "noise": 1.0}


def test_the_committed_table_is_what_the_files_say():
    committed = pd.read_csv(results.results_dir() / "scores.csv")
    pd.testing.assert_frame_equal(committed, results.collect(), check_dtype=False, rtol=1e-4)


def test_every_learned_row_has_its_checkpoint_and_says_how_it_was_made():
    table = results.load_scores()
    learned = table[table.method.str.startswith("amortized")]
    assert set(learned.obs_conf) >= {"full_obs", "every_4th_dim_partial_obs"}
    for row in learned.itertuples():
        _, record = load_checkpoint(data_dir() / "checkpoints" / row.checkpoint)
        assert record["experiment"]["obs_conf"] == row.obs_conf
        assert record["history"][-1]["core_seconds"] > 0
        assert record["provenance"]["versions"]["torch"]


# The bars of the first edition: what the committed filters must keep.
@pytest.mark.parametrize(("obs_conf", "bar"), [("full_obs", 0.26), ("every_4th_dim_partial_obs", 0.61)])
def test_ten_members_stay_below_the_bar(obs_conf, bar):
    table = results.load_scores(**{**SETTING, "obs_conf": obs_conf}, method="amortized")
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
        scores = {"rmse": test, "rmse_lo": 0.1, "rmse_hi": 0.4, "spread": 0.2, "crps": 0.1, "cycles": 500}
        row = {**SETTING, "method": "LETKF", "m": 5, "label": label, "test": scores, "validation": {"rmse": validation}}
        row |= {"provenance": {"commit": "c"}, "seed": 0, "ms_per_cycle": 1.0, "diverged": False, "checkpoint": None}
        (tmp_path / f"{label}.json").write_text(json.dumps(row))
    table = results.collect(tmp_path)
    assert table.set_index("label").best.to_dict() == {"a": False, "b": True}


def test_a_comparison_resumes_and_repeats_what_changed(tmp_path, monkeypatch):
    ran = []

    def fake(baseline, test_set, seed, progress):
        ran.append((baseline.label, test_set.name))
        series = np.linspace(0.2, 0.3, len(test_set.observations))
        return BaselineRun(baseline, test_set.truth[1:], series, series, series, 1.0, False, "completed")

    monkeypatch.setattr(results, "results_dir", lambda: tmp_path)
    monkeypatch.setattr(comparison, "results_dir", lambda: tmp_path)
    monkeypatch.setattr(comparison, "run_baseline", fake)
    data = load_test_set(**SETTING)
    methods = [Baseline(method="Climatology"), Baseline(method="LETKF", m=5, settings={"infl": 1.1})]
    first = next(comparison.compare(data, methods))  # interrupted after one
    assert [label for label, _ in ran] == ["Climatology"] * 2
    assert {name for _, name in ran} == {"l96-dt0.1-test", "l96-dt0.1-validation"}
    assert len(list(comparison.compare(data, methods))) == 2
    assert [label for label, _ in ran] == ["Climatology"] * 2 + ["LETKF N=5"] * 2
    methods[1] = Baseline(method="LETKF", m=5, settings={"infl": 1.2})
    list(comparison.compare(data, methods))
    assert len(ran) == 6
    assert json.loads(first.read_text())["test"]["rmse"] == pytest.approx(0.25, abs=0.01)

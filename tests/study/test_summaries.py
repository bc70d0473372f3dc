"""The tables that pages show."""

import shutil

import pandas as pd
import pytest
from small import stored_scores, write_result
from small_runs import write_learned

from assim_lib.analyses import ANALYSES
from assim_lib.setting import SETTING_COLUMNS, Setting
from assim_lib.storage import PACKAGE
from assim_lib.study import facts, forecasts, summaries
from assim_lib.study.results import TAUGHT, load_scores, write_scores

# ---- what is committed


def test_our_rows_stand_beside_the_published_ones_of_the_same_kind():
    published, beside = summaries.load_published(), summaries.beside_published()
    assert published.source.notna().all()
    assert {"l96", "ks", "two_level"} <= set(beside.system)
    key = ["system", "obs_conf", "noise", "method", "m"]
    theirs = published.set_index(key).rmse.to_dict()
    for row in beside.to_dict("records"):
        assert theirs[tuple(row[name] for name in key)] == row["published"]
        assert row["diverged"] or row["ratio"] == pytest.approx(row["rmse"] / row["published"])


@pytest.mark.parametrize(
    ("obs_conf", "label"),
    [
        *((obs_conf, f"LETKF m={m}") for obs_conf in ("full_obs", "every_4th_dim_partial_obs") for m in (10, 20)),
        ("full_obs", "iEnKS m=30 Lag=1"),
    ],
)
def test_classical_rows_reproduce_the_published_ones(obs_conf, label):
    """Within 3 per cent of the longer one of the published runs, with the same ensemble and lag."""
    query = "system == 'l96' and noise == 1 and obs_conf == @obs_conf and label == @label"
    row = summaries.beside_published().query(query)
    assert row.rmse.item() < 1.03 * row[["published", "published_longer"]].max(axis=1).item()


def test_the_headline_chooses_on_validation_data_alone():
    """Each competitor of a setting again, row by row."""
    table, checked = summaries.headline(), 0
    assert len(table) == len(table.drop_duplicates(SETTING_COLUMNS))
    for row in table.dropna(subset=["learned", "letkf10"]).to_dict("records"):
        rows = load_scores(**{key: row[key] for key in SETTING_COLUMNS}).query(
            "not diverged and validation_rmse.notna() and method != 'Climatology'"
        )
        ours = rows.method.isin(["amortized", "amortized_original", "amortized_ff"]) & (rows.m <= 10)
        kalman = rows.analysis.isin(["hybrid", "covariant", "extended"])
        for role, fits in {
            "classical": rows.analysis.isna() & (rows.m <= 30),
            "reference": rows.analysis.isna() & (rows.m == 100),
            "trained": ours & kalman,
            "scratch": ours & ~kalman,
            "letkf10": (rows.method == "LETKF") & (rows.m == 10),
        }.items():
            if fits.any():
                assert row[role] == rows.rmse[rows.validation_rmse[fits].idxmin()]
            else:
                assert pd.isna(row[role])
        best = min((row[f"{role}_validation"], row[role]) for role in ("trained", "scratch") if row[role] > 0)
        kinds = ("untrained", "trained", "scratch")
        assert row["ours"] == min((row[f"{role}_validation"], row[role]) for role in kinds if row[role] > 0)[1]
        assert row["learned"] == (best[1] if row["helped"] else row["scratch"])
        nothing = [(row[f"{role}_validation"], row[role]) for role in ("classical", "untrained") if row[role] > 0]
        assert row["rival"] == min(nothing)[1]
        assert row["ratio"] == pytest.approx(row["learned"] / row["rival"])
        assert (row["verdict"] == "ahead") == (row["difference_hi"] < 0)
        assert (row["verdict"] == "behind") == (row["difference_lo"] > 0)
        assert row["difference"] == pytest.approx(row["learned"] - row["rival"], abs=2e-4)  # of five digits each
        checked += 1
    assert checked >= 5


def test_a_kalman_part_is_what_must_know_its_instruments():
    """The table of scores is read without PyTorch, and names these analyses."""
    assert set(summaries.KALMAN) == {name for name, kind in ANALYSES.items() if kind.needs_operator}


def test_settings_of_the_table_have_different_titles():
    settings = load_scores()[SETTING_COLUMNS].drop_duplicates()
    assert len(settings) == summaries.by_setting(settings).index.nunique()


# ---- how they are made


def test_rows_are_called_by_the_titles_of_their_settings():
    settings = [Setting("l96"), Setting("ks", "partial_obs", 1.0, 2.5)]
    table = pd.DataFrame([{**setting.as_dict(), "rmse": setting.noise} for setting in settings])
    assert summaries.settings_of(table) == settings
    assert summaries.by_setting(table).rmse.to_dict() == {setting.title: setting.noise for setting in settings}


def test_lines_to_beat_are_the_best_of_each_size(own):
    write_result(own, "a", 0.3, 0.25, method="LETKF", m=20)
    write_result(own, "b", 0.4, 0.15, method="LETKF", m=20)
    write_scores()
    assert summaries.lines_to_beat(Setting("l96")) == {"a": 0.3}
    assert summaries.lines_to_beat(Setting("l96", noise=2.0)) == {}


def before(validation, test):
    """What a result says of the filter before its training."""
    return {"untrained": stored_scores(test), "untrained_validation": stored_scores(validation)}


@pytest.fixture
def rivals(own):
    """A classical filter, one that training helped, one that it did not, one that starts from nothing; and figures."""
    shutil.copy(PACKAGE.parent / "data" / "published.csv", own.parent)
    write_result(own, "best", 0.3, (0.30, 0.50, 0.40), method="LETKF", m=20)
    helped = {"m": 10, "test": (0.28, 0.479, 0.381), **before(0.32, (0.32, 0.53, 0.42))}
    write_learned(own, "helped", 0.29, label="hybrid, lag 0", **helped)
    idle = {"m": 10, "system": "ks", "test": (0.2, 0.3, 0.2), **before(0.2, (0.2, 0.25, 0.25))}
    write_learned(own, "idle", 0.2, label="extended, lag 1", **idle)
    write_learned(own, "scratch", 0.31, label="recurrent, lag 0", m=1, test=(0.32, 0.50, 0.41))
    write_scores()
    return own


def test_a_trained_filter_counts_as_learned_where_training_helped(rivals):
    table = summaries.headline().set_index("system")
    l96, ks = table.loc["l96"], table.loc["ks"]
    assert (l96.learned_label, l96.helped, l96.verdict) == ("hybrid, lag 0", True, "ahead")
    assert l96.difference == pytest.approx(-0.02)
    assert l96.ours_verdict == "ahead"
    assert l96.untrained == pytest.approx(1.27 / 3, rel=1e-4)
    assert not ks.helped
    assert ks.trained > 0
    assert pd.isna(ks.learned)
    assert ks.verdict == ""


def test_training_gains_over_the_best_untrained_filter_of_the_setting(rivals):
    """On validation data, be it the same filter or another: whoever does not train takes that one."""
    better = {"m": 10, "test": (0.28, 0.48, 0.37), **before(0.30, (0.28, 0.48, 0.35))}
    write_learned(rivals, "better", 0.295, label="extended, lag 1", **better)
    write_scores()
    l96 = summaries.headline().set_index("system").loc["l96"]
    assert (l96.trained_label, l96.untrained_label) == ("hybrid, lag 0", "extended, lag 1")
    assert l96.untrained == pytest.approx(1.11 / 3, rel=1e-4)
    assert not l96.helped


def test_a_filter_from_nothing_is_the_learned_one_where_it_is_better_on_validation_data(rivals):
    write_learned(rivals, "scratch", 0.28, label="recurrent, lag 0", m=1, test=(0.32, 0.50, 0.41))
    write_scores()
    l96 = summaries.headline().set_index("system").loc["l96"]
    assert (l96.learned_label, l96.learned_m, l96.verdict) == ("recurrent, lag 0", 1, "level")
    assert l96.difference > 0


def test_a_learned_filter_is_shown_with_its_other_seeds(rivals):
    """Each beside what the chosen one has to beat."""
    seeded = {"label": "recurrent, lag 0", "m": 1}
    write_learned(rivals, "scratch", 0.28, **seeded, test=(0.32, 0.50, 0.41))
    for seed, test in ((1, (0.20, 0.30, 0.25)), (2, (0.62, 0.80, 0.71))):
        write_learned(rivals, f"seed{seed}", 0.29, **seeded, test=test, options={"seed": seed})
    write_learned(rivals, "other", 0.29, **seeded, options={"updates": 9})
    write_scores()
    again = summaries.repeated(summaries.headline())
    assert again.index.unique().tolist() == ["L96, all sites, σ\xa0=\xa01"]
    assert list(zip(again.file, again.verdict, strict=True)) == [("seed1.json", "ahead"), ("seed2.json", "behind")]


def test_an_untrained_kalman_part_is_a_classical_filter(rivals):
    """What learned must beat it where it is the better one on validation data; what is ours has DAPPER's to beat."""
    better = {"m": 10, "test": (0.28, 0.48, 0.37), **before(0.25, (0.26, 0.46, 0.36))}
    write_learned(rivals, "better", 0.295, label="extended, lag 1", **better)
    write_learned(rivals, "scratch", 0.28, label="recurrent, lag 0", m=1, test=(0.28, 0.48, 0.38))
    write_scores()
    l96 = summaries.headline().set_index("system").loc["l96"]
    assert (l96.classical_label, l96.rival_label) == ("best", "extended, lag 1, untrained")
    assert (l96.learned_label, l96.verdict, l96.ours_verdict) == ("recurrent, lag 0", "behind", "ahead")
    assert l96.difference == pytest.approx(0.02)


def test_a_filter_that_the_truth_has_taught_competes_with_no_other(rivals):
    """However good it is; it has a column, a kind and a colour of its own, and is found by its method alone."""
    write_learned(rivals, "scratch", 0.28, label="recurrent, lag 0", m=1, test=(0.32, 0.50, 0.41))
    write_scores()
    setting = Setting("l96")
    before, alone = summaries.headline(), facts.best(setting, analysis="recurrent").label
    kinds = forecasts.best_of_each_kind(setting)
    write_learned(rivals, "taught", 0.1, label="recurrent, lag 0, clean_analysis", m=1, method=TAUGHT)
    write_scores()
    after = summaries.headline()
    assert after.set_index("system").loc["l96"].taught_label == "recurrent, lag 0, clean_analysis"
    columns = [name for name in before if not name.startswith("taught")]
    pd.testing.assert_frame_equal(after[columns], before[columns])
    assert facts.best(setting, analysis="recurrent").label == alone
    assert facts.best(setting, method=TAUGHT).label == "recurrent, lag 0, clean_analysis"
    pd.testing.assert_frame_equal(forecasts.best_of_each_kind(setting), kinds)
    shown = summaries.board(setting).set_index("label").kind
    assert shown["recurrent, lag 0"] == "ours, learned from nothing"
    assert shown["recurrent, lag 0, clean_analysis"] == "ours, taught by the truth"


def test_scores_without_blocks_say_nothing_of_who_is_ahead(rivals):
    write_result(rivals, "best", 0.3, method="LETKF", m=20)
    write_scores()
    l96 = summaries.headline().set_index("system").loc["l96"]
    assert pd.isna(l96.difference)
    assert l96.verdict == ""


def test_the_climatology_is_no_classical_filter(own):
    shutil.copy(PACKAGE.parent / "data" / "published.csv", own.parent)
    write_result(own, "a", 3.6, 3.6, method="Climatology", m=1)
    write_learned(own, "b", m=10, label="recurrent, lag 0")
    write_scores()
    assert summaries.headline().classical.isna().all()
    assert summaries.headline().learned.item() == 0.2

"""The tables that pages show."""

import pandas as pd
import pytest
from small import write_result

from assim_lib import results, tables


def test_our_rows_stand_beside_the_published_ones_of_the_same_kind():
    published, beside = tables.load_published(), tables.beside_published()
    assert published.source.notna().all()
    assert {"l96", "ks", "two_level"} <= set(beside.system)
    for row in beside.itertuples():
        same = published[(published.system == row.system) & (published.obs_conf == row.obs_conf)]
        same = same[(same.noise == row.noise) & (same.method == row.method) & (same.m == row.m)]
        assert same.rmse.tolist() == [row.published]
        assert row.diverged or row.ratio == pytest.approx(row.rmse / row.published)


@pytest.mark.parametrize(
    ("obs_conf", "label"),
    [
        *((obs_conf, f"LETKF N={m}") for obs_conf in ("full_obs", "every_4th_dim_partial_obs") for m in (10, 20)),
        ("full_obs", "iEnKS N=30 Lag=1"),
    ],
)
def test_classical_rows_reproduce_the_published_ones(obs_conf, label):
    """Within 3 per cent of the longer one of the published runs, with the same ensemble and lag."""
    row = tables.beside_published().query(
        "system == 'l96' and noise == 1 and obs_conf == @obs_conf and label == @label"
    )
    assert row.rmse.item() < 1.03 * row[["published", "published_longer"]].max(axis=1).item()


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (("l96", "full_obs", 0.1, 1.0), "L96, all sites, σ = 1"),
        (("l96", "every_4th_fixed", 0.15, 0.7), "L96, every 4th, fixed, Δt = 0.15, σ = 0.7"),
        (("ks", "partial_obs", 1.0, 2.5), "KS, every 2nd, moving, σ = 2.5"),
        (("ks", "full_obs", 0.1, 1.0), "KS, all sites, Δt = 0.1, σ = 1"),
        (("mine", "my_sensors", 0.1, 1.0), "mine, my_sensors, σ = 1"),
    ],
)
def test_a_setting_has_a_name_to_be_read(setting, name):
    assert tables.setting_name(*setting).replace("\N{NBSP}", " ") == name
    table = pd.DataFrame([dict(zip(results.SETTING, setting, strict=True)) | {"rmse": 0.5}])
    named = tables.by_setting(table)
    assert named.index.tolist() == [tables.setting_name(*setting)]
    assert named.rmse.item() == 0.5


def test_settings_of_the_table_have_different_names():
    settings = results.load_scores()[results.SETTING].drop_duplicates()
    assert len(settings) == tables.by_setting(settings).index.nunique()


def test_the_table_of_classical_methods_says_what_was_lost_and_what_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "results_dir", lambda: tmp_path)
    write_result(tmp_path, "a", 0.3, 0.25, method="LETKF", m=20)
    write_result(tmp_path, "b", 0.4, 0.15, method="LETKF", m=20)
    write_result(tmp_path, "c", method="iEnKS", m=5, diverged=True)
    write_result(tmp_path, "d", 0.3, 3.6, method="Climatology", m=1, system="ks")
    write_result(tmp_path, "e", method="amortized", m=10)
    results.write_scores()
    table = tables.classical_table()
    assert table.index.tolist() == ["Climatology", "LETKF 20", "iEnKS 5"]
    assert table["KS"].iloc[:, 0].tolist() == ["3.600", "–", "–"]
    assert table["L96"].iloc[:, 0].tolist() == ["–", "0.250", "lost"]


def test_the_climatology_is_no_classical_filter(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "results_dir", lambda: tmp_path)
    write_result(tmp_path, "a", 3.6, 3.6, method="Climatology", m=1)
    write_result(tmp_path, "b", method="amortized", m=10)
    results.write_scores()
    assert tables.headline().classical.isna().all()


def test_the_headline_chooses_on_validation_data_alone():
    """Each competitor of a setting again, row by row."""
    table = tables.headline()
    assert len(table) == len(table.drop_duplicates(results.SETTING))
    checked = 0
    for row in table.dropna(subset=["learned", "letkf10"]).itertuples():
        best = {}
        for other in results.load_scores(**{key: getattr(row, key) for key in results.SETTING}).itertuples():
            if other.diverged or other.validation_rmse != other.validation_rmse:
                continue
            ours = other.method.startswith("amortized")
            roles = {
                "classical": not ours and other.method != "Climatology" and other.m <= 30,
                "reference": not ours and other.m == 100,
                "learned": other.method == "amortized" and other.m <= 10,
                "letkf10": other.method == "LETKF" and other.m == 10,
            }
            for role in (role for role, fits in roles.items() if fits):
                if role not in best or other.validation_rmse < best[role].validation_rmse:
                    best[role] = other
        for role, chosen in best.items():
            assert getattr(row, role) == chosen.rmse
        assert row.ratio == pytest.approx(row.learned / row.classical)
        checked += 1
    assert checked >= 5

"""Filters in settings that they were not trained in: here short runs, of filters that were never trained."""

import numpy as np
import pytest
from small import PARTIAL
from small_runs import NETWORK

from assim_lib.study import transfer as transfer_module
from assim_lib.study.transfer import changes, follow, place_of, transfer
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, save_checkpoint
from assim_lib.training.experiment import configure

pytestmark = pytest.mark.usefixtures("home", "unchecked_shapes")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for name, value in {"LOST_AFTER": 20, "SEGMENTS": 3, "CYCLES": 60, "BURN_IN": 30}.items():
        monkeypatch.setattr(transfer_module, name, value)


@pytest.fixture
def rows(tmp_path):
    """A function that runs an untrained filter in other settings: its rows by setting."""

    def run(analysis, **options):
        experiment = configure("l96_conv", analysis=analysis, **NETWORK, **options)
        path = checkpoint_path(experiment.name, tmp_path)
        save_checkpoint(build_filter(experiment), path, {"experiment": experiment.model_dump()})
        return {row.change: row for row in transfer(path, progress=False)}

    return run


@pytest.fixture
def as_trained(monkeypatch):
    """No other settings."""
    monkeypatch.setattr(transfer_module, "changes", lambda _: {"as trained": ({}, {})})


def test_each_setting_is_another_one():
    named = changes(configure("l96_conv", analysis="hybrid"))
    assert named["as trained"] == ({}, {})
    assert len(set(map(str, named.values()))) == len(named)
    assert "full_obs" not in named
    assert named["σ = 2"] == ({"noise": 2.0}, {})
    assert named["true forcing 9"] == ({}, {"forcing": 9.0})
    assert named["interval 0.15"] == ({"step_size": 0.15}, {})  # and not one and a half times 0.1 in floating point
    assert not any("forcing" in name for name in changes(configure("ks", analysis="hybrid")))
    assert sorted(named, key=place_of) == list(named)


def test_other_settings_never_crash(rows):
    rows = rows("hybrid", lag=0)
    assert rows.keys() == changes(configure("l96_conv")).keys()
    assert not any(row.reason for row in rows.values())
    assert rows["as trained"].rmse < 0.5 < rows[PARTIAL].rmse
    assert rows["σ = 0.3"].rmse < rows["σ = 3"].rmse
    # The spread of the climatology grows with the forcing.
    climatologies = [rows[f"true forcing {forcing}"].climatology for forcing in (6, 7, 9, 10)]
    assert climatologies == sorted(climatologies)


def test_a_setting_that_a_filter_cannot_have_says_why(rows):
    rows = rows("recurrent", m=1, network="ff_per_operator", obs_conf=PARTIAL)
    assert "ff_per_operator" in rows["full_obs"].reason
    assert "\n" not in rows["partial_obs"].reason


def test_what_fails_in_a_run_is_no_reason(rows, as_trained, monkeypatch):
    def fail(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(transfer_module, "follow", fail)
    with pytest.raises(ValueError, match="a bug"):
        rows("recurrent", m=1)


def test_a_growing_lag_has_grown_before_other_settings_count(rows, as_trained, monkeypatch):
    def as_old_as_the_filter(ensemble, _):
        assert ensemble.shape[1] == 60 + 10
        return np.broadcast_to(np.arange(70) >= 30 + 10, ensemble.shape[:2]).astype(float)

    monkeypatch.setattr(transfer_module, "rmse", as_old_as_the_filter)
    assert rows("hybrid", lag=2, lag_warmup=5)["as trained"].rmse == 1.0


def test_dropout_that_stays_on_stays_on_in_other_settings(rows, as_trained, monkeypatch):
    asked, assimilate = [], transfer_module.assimilate
    monkeypatch.setattr(
        transfer_module, "assimilate", lambda *given, **options: asked.append(options) or assimilate(*given, **options)
    )
    for test_dropout in (True, False):
        rows("original", m=2, dropout=0.3, test_dropout=test_dropout, network="conv")
    assert [options["dropout"] for options in asked] == [True, False]


def test_filters_that_start_cold_find_the_truth_or_lose_it():
    """Each a truth of its own, the same ones for the same seed."""
    tracks, free = (
        follow(experiment, build_filter(experiment), 4, 60, 5)
        for experiment in (
            configure("l96_conv", analysis="hybrid", lag=0, **NETWORK),
            configure("l96_conv", analysis="recurrent", m=1, **NETWORK),
        )
    )
    np.testing.assert_array_equal(tracks.truth, free.truth)
    assert tracks.rmse.shape == (4, 60)
    assert not np.array_equal(tracks.truth[0], tracks.truth[1])
    assert np.std(tracks.observations - tracks.truth) == pytest.approx(1.0, abs=0.02)
    assert tracks.rmse[:, 30:].max() < 0.8 < tracks.climatology < free.rmse[:, 30:].mean()
    assert not tracks.lost.any()
    assert free.lost.any()

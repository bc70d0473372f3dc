"""Very long runs and other settings: here short ones, of filters that were never trained."""

import numpy as np
import pytest
from small import soon_on_attractor

from assim_lib import robustness
from assim_lib.experiments import configure
from assim_lib.robustness import changes, examine, examined, long_run, long_runs_table, transfer, transfer_table
from assim_lib.runs import build_filter
from assim_lib.storage import sha256
from assim_lib.systems import Lorenz96
from assim_lib.training import save_checkpoint

SIZES = {"hidden_size": 4, "blocks": 1, "kernel": 3, "memory": 2}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(Lorenz96, "on_attractor", soon_on_attractor)
    for name, value in {"BLOCK": 120, "LOST_AFTER": 20, "SEGMENTS": 3, "SHORT": 60, "SPINUP": 30}.items():
        monkeypatch.setattr(robustness, name, value)


def untrained(analysis, **options):
    experiment = configure("l96_conv", analysis=analysis, **SIZES, **options)
    return experiment, build_filter(experiment)


def test_a_filter_that_tracks_is_told_from_one_that_does_not():
    kalman, free = (
        long_run(*untrained(analysis, **options), cycles=240, progress=False, starts=3)
        for analysis, options in (("hybrid", {"lag": 1}), ("recurrent", {"m": 1}))
    )
    assert max(kalman["lost"]) <= 1  # at the cold start, if ever
    assert np.mean(kalman["rmse"][1]) < 0.5
    assert np.shape(kalman["rmse"]) == np.shape(kalman["worst"]) == (2, 3)
    assert np.shape(kalman["first"])[0] == 3
    assert min(free["lost"]) >= 1
    assert np.mean(free["rmse"]) > free["climatology"] > 3
    assert (np.array(free["worst"]) >= np.array(free["rmse"])).all()


@pytest.mark.parametrize("lag", [0, 1])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, lag):
    filters = untrained("hybrid", lag=lag, obs_conf="every_4th_dim_partial_obs")
    whole = long_run(*filters, cycles=360, progress=False, starts=2)
    state = tmp_path / "long.safetensors"
    part = long_run(*filters, cycles=120, state=state, progress=False, starts=2)
    assert part["rmse"] == whole["rmse"][:1]
    assert long_run(*filters, cycles=360, state=state, progress=False, starts=2) == whole


@pytest.mark.parametrize("cycles", [0, 100, 180])
def test_a_part_of_a_block_is_refused(cycles):
    with pytest.raises(ValueError, match=rf"^cycles = {cycles} must be a positive multiple of 120\.$"):
        long_run(*untrained("recurrent", m=1), cycles=cycles)


def test_each_setting_is_another_one():
    experiment, _ = untrained("hybrid")
    named = changes(experiment)
    assert named["as trained"] == ({}, {})
    seen = [str(change) for change in named.values()]
    assert len(set(seen)) == len(seen)
    assert "full_obs" not in named
    assert named["σ = 2"] == ({"noise": 2.0}, {})
    assert named["true forcing 9"] == ({}, {"forcing": 9.0})
    assert named["interval 0.15"] == ({"step_size": 0.15}, {})  # and not one and a half times 0.1 in floating point
    assert not any("forcing" in name for name in changes(configure("ks", analysis="hybrid")))


def test_other_settings_never_crash(tmp_path):
    experiment, model = untrained("hybrid", lag=0, obs_conf="every_4th_dim_partial_obs")
    save_checkpoint(model, tmp_path / "kalman.safetensors", {"experiment": experiment.model_dump()})
    rows = {row["setting"]: row for row in transfer(tmp_path / "kalman.safetensors", progress=False)}
    assert rows.keys() == changes(experiment).keys()
    assert not any("reason" in row for row in rows.values())
    assert rows["full_obs"]["rmse"] < 0.5 < rows["as trained"]["rmse"]
    assert rows["σ = 0.3"]["rmse"] < rows["σ = 3"]["rmse"]
    # The spread of the climatology grows with the forcing.
    climatologies = [rows[f"true forcing {forcing}"]["climatology"] for forcing in (6, 7, 9, 10)]
    assert climatologies == sorted(climatologies)


def test_a_setting_that_a_filter_cannot_have_says_why(tmp_path):
    experiment, model = untrained(
        "recurrent", m=1, network="ff_per_operator", obs_conf="every_4th_dim_partial_obs", step_size=0.1
    )
    save_checkpoint(model, tmp_path / "ff.safetensors", {"experiment": experiment.model_dump()})
    rows = {row["setting"]: row for row in transfer(tmp_path / "ff.safetensors", progress=False)}
    assert "ff_per_operator" in rows["full_obs"]["reason"]
    assert "\n" not in rows["partial_obs"]["reason"]


def test_examined_filters_stand_in_the_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(robustness, "published", lambda name: tmp_path / f"{name}.safetensors")
    assert examined() == {}
    for name, analysis, options in (("kalman", "hybrid", {"lag": 0}), ("free", "recurrent", {"m": 1})):
        experiment, model = untrained(analysis, **options)
        save_checkpoint(model, robustness.published(name), {"experiment": experiment.model_dump()})
        path = examine(name, tmp_path / name, cycles=240, progress=False)
        assert path == tmp_path / "robustness" / f"{name}.json"
    runs = long_runs_table()
    assert list(runs.index) == list(examined()) == ["free", "kalman"]
    assert (runs.cycles == 240).all()
    assert (runs.starts == robustness.STARTS).all()
    assert runs.lost["kalman"] == 0 < runs.lost["free"] <= robustness.STARTS
    assert runs.rmse["kalman"] < runs.worst["kalman"] < 0.5 < runs.climatology["kalman"]
    assert runs.recovery["kalman"] <= 30
    # What counts is after the first block, in which every filter begins knowing nothing.
    stored = examined()["kalman"]["long"]
    assert runs.rmse["kalman"] == pytest.approx(np.mean(stored["rmse"][1]))
    assert runs.worst["kalman"] == max(stored["worst"][1])
    order = [robustness._order(setting) for setting in transfer_table().setting]
    assert order == sorted(order)
    settings = transfer_table().groupby("filter").setting.apply(list)
    assert settings["kalman"] == list(changes(untrained("hybrid", lag=0)[0]))
    assert examined()["kalman"]["weights"] == sha256(robustness.published("kalman"))


def test_a_filter_that_is_examined_again_is_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(robustness, "published", lambda name: tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(robustness, "transfer", lambda *_: [])
    experiment, model = untrained("recurrent", m=1)
    save_checkpoint(model, robustness.published("free"), {"experiment": experiment.model_dump()})
    blocks, advance = [], robustness._LongRun.advance

    def counted(self, on_cycle):
        blocks.append(len(self.blocks))
        advance(self, on_cycle)

    monkeypatch.setattr(robustness._LongRun, "advance", counted)
    for _ in range(2):
        examine("free", tmp_path / "runs", cycles=240, progress=False)
    assert blocks == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"^cycles = 120 must be at least 240\.$"):
        examine("free", tmp_path / "runs", cycles=120)


def test_a_growing_lag_has_grown_before_other_settings_count(tmp_path, monkeypatch):
    experiment, model = untrained("hybrid", lag=2, growth=5)
    save_checkpoint(model, tmp_path / "filter.safetensors", {"experiment": experiment.model_dump()})
    monkeypatch.setattr(robustness, "changes", lambda _: {"as trained": ({}, {})})
    grown = robustness.SPINUP + model.spinup
    assert grown == 40

    def as_old_as_the_filter(ensemble, _):
        assert ensemble.shape[1] == robustness.SHORT + model.spinup
        return np.broadcast_to(np.arange(ensemble.shape[1]) >= grown, ensemble.shape[:2]).astype(float)

    monkeypatch.setattr(robustness, "rmse", as_old_as_the_filter)
    assert transfer(tmp_path / "filter.safetensors", progress=False)[0]["rmse"] == 1.0


def test_dropout_that_stays_on_stays_on_in_other_settings(tmp_path, monkeypatch):
    experiment, model = untrained("original", m=2, dropout=0.3, test_dropout=True)
    save_checkpoint(model, tmp_path / "filter.safetensors", {"experiment": experiment.model_dump()})
    asked, assimilate = [], robustness.assimilate
    monkeypatch.setattr(robustness, "changes", lambda _: {"as trained": ({}, {})})
    monkeypatch.setattr(
        robustness, "assimilate", lambda *given, **options: asked.append(options) or assimilate(*given, **options)
    )
    transfer(tmp_path / "filter.safetensors", progress=False)
    assert asked == [{"dropout": True}]


def test_the_state_of_another_filter_is_refused(tmp_path):
    state, options = tmp_path / "long.safetensors", {"cycles": 120, "progress": False}
    long_run(*untrained("recurrent", m=1), state=state, starts=2, **options)
    for filter_, starts in ((untrained("recurrent", m=1, seed=1), 2), (untrained("recurrent", m=1), 3)):
        with pytest.raises(ValueError, match="another filter, or of other starts"):
            long_run(*filter_, state=state, starts=starts, **options)


def test_a_shorter_run_is_the_beginning_of_a_longer_one(tmp_path):
    state = tmp_path / "long.safetensors"
    long, short = (
        long_run(*untrained("recurrent", m=1), cycles=cycles, state=state, progress=False, starts=2)
        for cycles in (240, 120)
    )
    assert short["rmse"] == long["rmse"][:1]
    assert short["cycles"] == 120
    assert len(short["worst"]) == 1

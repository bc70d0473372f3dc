"""Very long runs: here short ones, of filters that were never trained."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from small import PARTIAL
from small_runs import NETWORK

from assim_lib.observations import ObservationModel, register_obs_conf
from assim_lib.setting import places
from assim_lib.storage import IntegrityError, provenance, sha256, write_json
from assim_lib.study import long_runs
from assim_lib.study.long_runs import (
    STARTS,
    LongRun,
    StressTest,
    long_run,
    long_runs_table,
    stress_path,
    stress_test,
    stress_tests,
    transfer_table,
)
from assim_lib.study.results import Provenance
from assim_lib.study.transfer import Transferred, place_of
from assim_lib.systems import Lorenz96, register_system
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, save_checkpoint
from assim_lib.training.experiment import configure

pytestmark = pytest.mark.usefixtures("home", "unchecked_shapes")

TRACKS = {"analysis": "hybrid", "lag": 0}
FREE = {"analysis": "recurrent", "m": 1, "lag": 0}


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    """Short blocks, and data of their own."""
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path / "data"))
    for name, value in {"SAVED_CYCLES": 120, "LOST_AFTER": 20}.items():
        monkeypatch.setattr(long_runs, name, value)


@pytest.fixture
def elsewhere(monkeypatch):
    """What is run in other settings: nothing, and the rows that are stored of it."""
    names = ["as trained", "σ = 0.3", "full_obs", "interval 0.2"]
    rows = [Transferred(change=name, rmse=0.5) for name in names]
    monkeypatch.setattr(long_runs, "transfer", lambda *_: rows)
    return rows


def untrained(**options):
    experiment = configure("l96_conv", **NETWORK, **options)
    return experiment, build_filter(experiment)


def run(options, cycles, **others):
    return long_run(*untrained(**options), cycles=cycles, progress=False, **{"starts": 2, **others})


def published(**options):
    """The name of an untrained filter with a checkpoint."""
    experiment, model = untrained(**options)
    save_checkpoint(model, checkpoint_path(experiment.name), {"experiment": experiment.model_dump()})
    return experiment.name


def test_a_filter_that_tracks_is_told_from_one_that_does_not():
    kalman, free = (run(options, 240, starts=3) for options in ({**TRACKS, "lag": 1}, FREE))
    assert max(kalman.lost) <= 1  # at the cold start, if ever
    assert np.mean(kalman.rmse[1]) < 0.5
    assert np.shape(kalman.rmse) == np.shape(kalman.worst) == (2, 3)
    assert np.shape(kalman.first) == (3, 40)
    assert kalman.starts == 3
    assert min(free.lost) >= 1
    assert np.mean(free.rmse) > free.climatology > 3
    assert (np.array(free.worst) >= np.array(free.rmse)).all()


@pytest.mark.parametrize(
    "options",
    [
        {**TRACKS, "obs_conf": PARTIAL},
        {"analysis": "original", "m": 2, "dropout": 0.3, "test_dropout": True, "network": "conv"},
        {"analysis": "extended", "lag": 1, "lag_warmup": 5},
    ],
    ids=lambda options: options["analysis"],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, options):
    whole, state = run(options, 240), tmp_path / "long.safetensors"
    part = run(options, 120, state=state)
    assert part.rmse == whole.rmse[:1]
    assert run(options, 240, state=state) == whole
    # A shorter one is its beginning.
    again = run(options, 120, state=state)
    assert (again.rmse, again.cycles, len(again.worst)) == (whole.rmse[:1], 120, 1)


@pytest.mark.usefixtures("readers_cell")
def test_a_long_run_of_a_system_and_a_schedule_that_depend_on_time(monkeypatch):
    """Blocks are no whole number of periods here: their first cycles are not cycle 0."""

    @register_system
    @dataclass(frozen=True)
    class Seasonal(Lorenz96):
        name: ClassVar[str] = "seasonal"
        spinup: ClassVar[float] = 5.0

        def tendency(self, x, t):
            return Lorenz96.tendency(self, x) + torch.sin(t)

    @register_obs_conf("every_7th")
    def every_7th(channels, sites):
        return ObservationModel(torch.eye(7, dtype=torch.bool).repeat(1, 6)[:, None, :sites])

    @register_system
    @dataclass(frozen=True)
    class Shortest(Lorenz96):
        """Its own flow and attractor know nothing of time, which it does not depend on."""

        name: ClassVar[str] = "shortest"

        def flow(self, x, steps=1):
            return Lorenz96.flow(self, x, steps)

        def on_attractor(self, batch, generator, spinup=5.0):
            return Lorenz96.on_attractor(self, batch, generator, spinup)

    monkeypatch.setattr(long_runs, "SAVED_CYCLES", 60)
    assert np.isfinite(run({**FREE, "system": "shortest"}, 60).rmse).all()
    found = run({**FREE, "system": "seasonal", "obs_conf": "every_7th"}, 240)
    assert np.isfinite(found.rmse).all()
    runs = long_runs._Runs(*untrained(**FREE, system="seasonal", obs_conf="every_7th"), 2)
    seen = []
    observe = type(runs.model.observation_model).observe
    monkeypatch.setattr(
        type(runs.model.observation_model), "observe", lambda *given: seen.append(observe(*given)) or seen[-1]
    )
    for _ in range(2):
        runs.advance(lambda: None)
    places = torch.cat(seen, 1)[0, :, 0].isfinite()
    assert all(places[k].nonzero()[0].item() == k % 7 for k in range(120))


def scripted(monkeypatch, errors):
    """Errors of each cycle, whatever the filter does."""
    told = iter(errors)
    monkeypatch.setattr(long_runs, "rmse", lambda *_: np.full(2, next(told)))


def test_an_error_that_is_no_number_loses_the_truth_and_can_be_stored(monkeypatch, tmp_path, elsewhere):
    scripted(monkeypatch, [0.1] * 120 + [np.nan] * 120)
    lost = run(FREE, 240)
    assert lost.lost == [1, 1]
    write_json(tmp_path / "long.json", lost.model_dump())
    assert np.isnan(LongRun.read(tmp_path / "long.json").rmse[1]).all()
    stored = StressTest(transfer=elsewhere, long=lost, weights="", provenance=Provenance(**provenance()))
    monkeypatch.setattr(long_runs, "stress_tests", lambda: {"it": stored})
    assert long_runs_table().lost["it"] == 2


def test_the_truth_may_be_lost_across_the_end_of_a_block(monkeypatch, tmp_path):
    # Of twenty cycles ten lie in either block: no mean within one of them is as large.
    scripted(monkeypatch, [0.0] * 110 + [6.0] * 20 + [0.0] * 110)
    run(FREE, 120, state=tmp_path / "long.safetensors")
    crossed = run(FREE, 240, state=tmp_path / "long.safetensors")
    assert crossed.worst == [[3.0, 3.0], [6.0, 6.0]]


@pytest.mark.parametrize("cycles", [0, 100, 180])
def test_a_part_of_a_block_is_refused(cycles):
    with pytest.raises(ValueError, match=rf"^cycles = {cycles} must be a positive multiple of 120\.$"):
        run(FREE, cycles)


def test_the_state_of_another_filter_is_refused(tmp_path):
    state = tmp_path / "long.safetensors"
    run(FREE, 120, state=state)
    for options, starts in (({**FREE, "seed": 1}, 2), ({**FREE, "noise": 2.0}, 2), (FREE, 3)):
        with pytest.raises(ValueError, match=r"another filter, or of other starts; remove it to begin again\.$"):
            run(options, 120, state=state, starts=starts)


def test_stressed_filters_stand_in_the_tables(tmp_path, elsewhere):
    assert stress_tests() == {}
    kalman, free = published(**TRACKS), published(**FREE)
    for name in (kalman, free):
        path = stress_test(name, tmp_path / name, cycles=240, progress=False)
        assert path == tmp_path / "data" / "robustness" / f"{name}.json"
    runs, stored = long_runs_table(), stress_tests()[kalman]
    assert list(runs.index) == list(stress_tests()) == sorted([free, kalman])
    assert isinstance(stored, StressTest)
    assert isinstance(stored.long, LongRun)
    assert stored.weights == sha256(checkpoint_path(kalman))
    assert set(runs.cycles) == {240}
    assert set(runs.starts) == {STARTS}
    assert runs.lost[kalman] == 0 < runs.lost[free] <= STARTS
    assert runs.rmse[kalman] < runs.worst[kalman] < 0.5 < runs.climatology[kalman]
    assert runs.recovery[kalman] <= 30
    # What counts is after the first block, in which every filter begins knowing nothing.
    assert runs.rmse[kalman] == pytest.approx(np.mean(stored.long.rmse[1]))
    assert runs.worst[kalman] == max(stored.long.worst[1])
    table = transfer_table()
    order = [place_of(change) for change in table.change]
    assert order == sorted(order)
    assert table[table["filter"] == kalman].change.tolist() == [places(row.change) for row in elsewhere]
    stress_path(kalman).write_text("{}")
    with pytest.raises(
        IntegrityError, match=rf"^{re.escape(kalman)}\.json is no StressTest: transfer: Field required; "
    ):
        stress_tests()


def test_a_filter_that_is_stressed_again_is_run_again(tmp_path, elsewhere, monkeypatch):
    free = published(**FREE)
    blocks, advance = [], long_runs._Runs.advance

    def counted(self, on_cycle):
        blocks.append(len(self.blocks))
        advance(self, on_cycle)

    monkeypatch.setattr(long_runs._Runs, "advance", counted)
    for _ in range(2):
        stress_test(free, tmp_path / "runs", cycles=240, progress=False)
    assert blocks == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"^cycles = 120 must be at least 240\.$"):
        stress_test(free, tmp_path / "runs", cycles=120)

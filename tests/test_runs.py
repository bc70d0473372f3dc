"""A run from its settings to its published scores: stopped at any moment, started again, and read by others."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import soon_on_attractor

from assim_lib import runs, storage, trajectories
from assim_lib.analyses import ANALYSES, RecurrentAnalysis, register_analysis
from assim_lib.dynamics import SYSTEMS, register_system
from assim_lib.evaluation import evaluate
from assim_lib.experiments import Experiment, ParameterError, configure
from assim_lib.networks import NETWORKS, FeedForwardTrunk, RingConvTrunk, register_network
from assim_lib.observations import OBS_CONFS, ObservationModel, register_obs_conf
from assim_lib.presets import EXPERIMENTS
from assim_lib.results import histories, load_scores, training_runs, write_scores
from assim_lib.runs import (
    best_filter,
    build_filter,
    load_filter,
    may_publish,
    publish,
    publish_again,
    run_filter,
    score,
    train,
    training_record,
    validation_rmse,
)
from assim_lib.systems import Lorenz96
from assim_lib.training import Course
from assim_lib.trajectories import freeze, training_trajectories
from assim_lib.variety import scored_in, variations

pytestmark = pytest.mark.usefixtures("own_cache", "home")

SIZES = {
    "hidden_size": 6, "blocks": 1, "kernel": 3, "memory": 3,
    "window": 3, "batch": 2, "pool": 4, "segments": 2, "cycles": 40,
}  # fmt: skip
TINY = {"obs_conf": "every_4th_dim_partial_obs", **SIZES}


def tiny(analysis="recurrent", m=2, **options) -> Experiment:
    return configure("l96_conv", analysis=analysis, m=m, **{**TINY, "updates": 8, "lag": 0, **options})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """A folder of data with short test sets, in place of the project's."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "PACKAGE", folder / "assim_lib")
        patch.setattr(Lorenz96, "on_attractor", soon_on_attractor)
        patch.setattr(trajectories, "CYCLES", {"test": 250, "validation": 210})
        patch.setattr(trajectories, "BURN_IN", 20)
        for split in ("test", "validation"):
            freeze(Lorenz96(), 0.1, split)
        yield folder


@pytest.fixture
def short_spinup(monkeypatch):
    """Enough to run, if not to score."""
    for system in SYSTEMS.values():
        monkeypatch.setattr(system, "spinup", min(system.spinup, 20.0 if system.name == "ks" else 4.0))


@pytest.fixture
def quiet():
    """How a test trains."""
    return {"progress": False, "curve_points": 2}


def weights(model):
    return model.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# ---- what a filter is built from


@pytest.mark.parametrize(("analysis", "m"), [("original", 2), ("recurrent", 1), ("hybrid", 3)])
def test_an_experiment_says_all_about_its_filter(analysis, m):
    chosen = tiny(analysis, m, lag=2, step_size=0.15, noise=0.5, seed=4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = build_filter(chosen)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert_same(weights(model), weights(build_filter(chosen)))
    assert (model.steps, model.lag, model.analysis.members, model.analysis.noise) == (3, 2, m, 0.5)
    assert model.analysis.mean.shape == model.analysis.std.shape == (1, 1)
    assert float(model.analysis.mean) == pytest.approx(2.34, abs=0.3)
    assert float(model.analysis.std) == pytest.approx(3.64, abs=0.3)
    assert all(value.dtype == torch.float32 for value in weights(model).values())
    assert not torch.equal(
        build_filter(chosen.model_copy(update={"seed": 5})).analysis.trunk.embed.linear.weight,
        model.analysis.trunk.embed.linear.weight,
    )


def test_only_observations_leave_the_simulation():
    chosen = tiny(noise=2.0)
    observations, near, truth = training_record(chosen)
    assert near is None
    assert truth is None
    assert observations.shape == (2, 40, 1, 40)
    data = training_trajectories(Lorenz96(), 0.1, 40, 2, chosen.seed)
    expected = data.truth.values[:, 1:] + 2 * data.unit_noise.values
    seen = np.arange(40) % 4 == np.arange(40)[:, None, None] % 4
    np.testing.assert_allclose(observations, np.where(seen, expected, 0.0), atol=1e-5)


def test_the_truth_is_forgotten_before_training_starts(quiet, monkeypatch):
    """With the default loss and start nothing changes if it is lost as soon as it has been observed."""
    losses = {}
    for loss, start in (("ss_forecast", "climatology"), ("clean_analysis", "climatology"), ("ss_forecast", "truth")):
        for forgetful in (False, True):
            metrics, loaded = [], []

            def load(*arguments, loaded=loaded):
                loaded.append(training_trajectories(*arguments))
                return loaded[-1]

            def record(*arguments, loaded=loaded, forgetful=forgetful):
                made = training_record(*arguments)
                if forgetful:
                    loaded[-1].truth.values[:] = math.nan
                return made

            with monkeypatch.context() as patch:
                patch.setattr(runs, "training_trajectories", load)
                patch.setattr(runs, "training_record", record)
                train(
                    tiny(loss=loss, start=start, updates=3), on_metrics=metrics.append, **{**quiet, "curve_points": 0}
                )
            losses[loss, start, forgetful] = [m["loss"] for m in metrics]
    assert losses["ss_forecast", "climatology", False] == losses["ss_forecast", "climatology", True]
    # What uses the truth shows that it would have been noticed.
    assert all(math.isnan(loss) for loss in losses["clean_analysis", "climatology", True])
    assert losses["ss_forecast", "truth", False] != losses["ss_forecast", "truth", True]


def test_supervision_gets_the_truth_that_the_observations_see():
    chosen = tiny(loss="clean_analysis", noise=1e-6)
    observations, near, truth = training_record(chosen)
    assert near is None
    seen = np.arange(40) % 4 == np.arange(40)[:, None, None] % 4
    np.testing.assert_allclose(observations, np.where(seen, truth, 0.0), atol=1e-4)
    assert (truth != 0).all()


@pytest.mark.parametrize("loss", ["ss_forecast", "clean_analysis"])
def test_what_members_start_around_is_a_choice(loss):
    observations, near, truth = training_record(tiny(start="truth", loss=loss))
    supervised = training_record(tiny(loss="clean_analysis")).truth
    assert torch.equal(near, supervised)
    assert (truth is None) == (loss == "ss_forecast")
    same, near, _ = training_record(tiny(start="first_observation", loss=loss))
    assert torch.equal(same, observations)
    unseen = torch.arange(40) % 4 != torch.arange(40)[:, None, None] % 4
    assert torch.equal(near.isnan(), unseen.expand(near.shape))
    assert torch.equal(near.nan_to_num(0.0), observations)


@pytest.mark.parametrize(
    ("analysis", "network"), [("original", "ff_per_operator"), ("recurrent", "ff"), ("hybrid", "conv")]
)
def test_every_option_of_an_experiment_reaches_its_filter(analysis, network):
    options = {"inflation": 1.15, "dt": 0.025, "clamp": 3.5, "blocks": 2, "hidden_size": 7}
    options |= {"taper_length": 2.5} if analysis == "hybrid" else {}
    band = {"band": 0 if analysis == "recurrent" else 3}
    model = build_filter(tiny(analysis, network=network, **options, **band, dropout=0.2, test_dropout=False))
    assert model.dynamics == Lorenz96(dt=0.025)
    assert model.steps == 4
    assert (model.analysis.memory, model.analysis.band) == (3, band["band"])
    torch.testing.assert_close(model.highest, model.analysis.mean + 3.5 * model.analysis.std)
    torch.testing.assert_close(model.lowest, model.analysis.mean - 3.5 * model.analysis.std)
    trunk = model.analysis.trunk
    if network == "ff_per_operator":
        assert len(trunk.trunks) == 4
        trunk = trunk.trunks[0]
    assert type(trunk) is (RingConvTrunk if network == "conv" else FeedForwardTrunk)
    assert (len(trunk.blocks), trunk.head.in_features, trunk.dropout) == (2, 7, 0.2)
    if analysis == "hybrid":
        assert model.analysis.drift == 0.0
        assert build_filter(tiny(analysis, **options, lag=3, drift=-0.5)).analysis.drift == -1.5
        assert float(model.analysis.log_inflation.detach().exp()) == pytest.approx(1.15)
        assert float(model.analysis.log_taper_length.detach().exp()) == pytest.approx(2.5)
    else:
        assert model.analysis.inflation == 1.15


def test_truth_keeps_its_own_step():
    """An integration step of the forecast model's alone is a model error, not another truth."""
    for one, other in zip(training_record(tiny(dt=0.1)), training_record(tiny()), strict=True):
        assert (one is other is None) or torch.equal(one, other)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment, short_spinup, quiet):
    """As it is, but small: two updates, and a score on validation data."""
    few = {"settings": min(3, configure(experiment).settings), "m": min(2, configure(experiment).m)}
    chosen = configure(experiment, **{**SIZES, **few, "segments": 1, "cycles": 12, "updates": 2, "lag": 0})
    model, record = train(chosen, **{**quiet, "curve_points": 1})
    assert 0 < record["history"][0]["loss"] < 10
    assert record["history"][0]["skipped"] == 0
    # Far from trained, but not off the attractor.
    assert record["history"][0]["validation_rmse"] < 2.5 * float(model.climatology.std())


# ---- what a reader adds


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = [(registry, dict(registry)) for registry in (SYSTEMS, OBS_CONFS, NETWORKS, ANALYSES)]
    yield
    for registry, names in before:
        registry.clear()
        registry.update(names)


def test_what_a_reader_registers_is_trained_and_scored_by_its_name(registries, quiet):
    @register_system
    class Ring(Lorenz96):
        name = "ring"

        def __init__(self):
            super().__init__(sites=10)

    @register_obs_conf("two_of_five")
    def two_of_five(channels, sites):
        return ObservationModel((torch.arange(sites) % 5 < 2).expand(1, channels, sites).clone())

    @register_network("shallow")
    class Shallow(RingConvTrunk):
        def __init__(self, inputs, outputs, sizes):
            super().__init__(inputs, outputs, sizes._replace(blocks=1))

    @register_analysis("plain")
    class Plain(RecurrentAnalysis):
        pass

    names = {"system": "ring", "obs_conf": "two_of_five", "network": "shallow"}
    chosen = tiny("plain", **names, blocks=3)
    assert "two_of_five" in chosen.name
    model, record = train(chosen, **quiet)
    assert len(model.analysis.trunk.blocks) == 1
    assert type(model.analysis) is Plain
    assert model.climatology.shape[1:] == (1, 10)
    assert record["history"][-1]["validation_rmse"] < 8
    assert score(chosen, model, "validation")[0].cycles == 210
    with pytest.raises(
        LookupError,
        match=r"^system = 'ring' with step_size = 0\.1 has no frozen test set; make one with `python -m assim_lib test-sets` "
        r"before publishing\.$",
    ):
        publish(chosen, model, record)
    assert not runs.published(chosen.name).exists()


def test_another_interval_cannot_be_published_either(quiet):
    chosen = tiny(step_size=0.15)
    model, record = train(chosen, **{**quiet, "curve_points": 0})
    with pytest.raises(LookupError, match=r"^system = 'l96' with step_size = 0\.15 has no frozen test set; "):
        publish(chosen, model, record)
    assert not runs.published(chosen.name).exists()


# ---- training, interrupted


def test_a_run_has_its_record(quiet, tmp_path):
    seen = []
    model, record = train(tiny(), tmp_path / "run", on_metrics=seen.append, **quiet)
    assert [metrics["update"] for metrics in seen] == list(range(1, 9))
    assert [point["update"] for point in record["history"]] == [4, 8]
    assert record["history"][0]["loss"] == pytest.approx(sum(m["loss"] for m in seen[:4]) / 4)
    assert record["history"][1]["validation_rmse"] == validation_rmse(tiny(), model)
    assert Experiment(**record["experiment"]) == tiny()
    assert record["core_seconds"] > 0
    assert json.loads(json.dumps(record)) == record
    # Asked for again, a finished run is read, not repeated.
    again, same = train(tiny(), tmp_path / "run", on_metrics=seen.append, **quiet)
    assert len(seen) == 8
    assert_same(weights(again), weights(model))
    assert same["history"] == record["history"]


def test_without_a_folder_nothing_is_kept(quiet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, record = train(tiny(), **{**quiet, "curve_points": 0})
    assert record["history"] == []
    assert list(tmp_path.iterdir()) == []


class Stopped(BaseException):
    """Like KeyboardInterrupt."""


@pytest.mark.parametrize(
    "where", ["between updates", "within an update", "between the two optimizers", "while scoring"]
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(quiet, tmp_path, monkeypatch, where):
    whole, record = train(tiny(), tmp_path / "whole", **quiet)

    def stop(metrics):
        if metrics["update"] == 5:
            raise Stopped

    with monkeypatch.context() as patch:
        if where == "while scoring":
            patch.setattr(runs, "validation_rmse", lambda *_: stop({"update": 5}))
        if where == "within an update":
            advance, calls = Course.advance, iter(range(1, 9))

            def stopped(self, *arguments):
                if next(calls) == 5:
                    raise Stopped
                return advance(self, *arguments)

            patch.setattr(Course, "advance", stopped)
        if where == "between the two optimizers":
            update = torch.optim.AdamW.step

            def stopped(self, *arguments):
                if self.calls == 5:
                    raise Stopped
                self.calls += 1
                return update(self, *arguments)

            patch.setattr(torch.optim.AdamW, "calls", 0, raising=False)
            patch.setattr(torch.optim.AdamW, "step", stopped)
        with pytest.raises(Stopped):
            train(tiny(), tmp_path / "run", save_every=0.0, on_metrics=stop, **quiet)
    resumed, continued = train(tiny(), tmp_path / "run", **quiet)
    assert_same(weights(resumed), weights(whole))
    state, expected = (load_file(tmp_path / name / "state.safetensors") for name in ("run", "whole"))
    assert_same(state, expected)
    for ours, theirs in zip(continued["history"], record["history"], strict=True):
        for name in ("update", "loss", "validation_rmse", "skipped"):
            assert ours[name] == theirs[name]


KILLED = """
import sys, time
from pathlib import Path
import torch
from small import soon_on_attractor
from assim_lib import storage
from assim_lib.systems import Lorenz96
from assim_lib.experiments import Experiment
from assim_lib.runs import train

torch.set_num_threads(1)
Lorenz96.on_attractor = soon_on_attractor
storage.PACKAGE = Path(sys.argv[1]) / "assim_lib"

def wait_for_the_end(metrics):
    if metrics["update"] == 5:
        print("in the middle", flush=True)
        time.sleep(600)

experiment = Experiment.model_validate_json(sys.argv[3])
train(experiment, Path(sys.argv[2]), curve_points=2, save_every=0.0, progress=False, on_metrics=wait_for_the_end)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(quiet, home, tmp_path):
    chosen = tiny("original", dropout=0.2)
    command = [sys.executable, "-c", KILLED, str(home), str(tmp_path / "run"), chosen.model_dump_json()]
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path(runs.__file__).parents[1], here)))}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = tmp_path / "run" / "state.safetensors"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]

    updates = []
    resumed, _ = train(chosen, tmp_path / "run", on_metrics=lambda m: updates.append(m["update"]), **quiet)
    assert updates == [5, 6, 7, 8]
    whole, _ = train(chosen, tmp_path / "whole", **quiet)
    assert_same(weights(resumed), weights(whole))
    assert_same(load_file(kept), load_file(tmp_path / "whole" / "state.safetensors"))


def test_another_experiments_folder_is_refused_and_left_alone(quiet, tmp_path):
    train(tiny(), tmp_path, **quiet)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"state\.safetensors belongs to a run with other settings; [^\n]+\.$"):
        train(tiny(seed=1), tmp_path, **quiet)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_run_goes_on_in_its_own_units(quiet, tmp_path, monkeypatch):
    """On another machine the same seed makes another climate."""
    before, _ = train(tiny(), tmp_path, **quiet)
    monkeypatch.setattr(Lorenz96, "on_attractor", lambda *args: 2 * soon_on_attractor(*args))
    assert not torch.equal(build_filter(tiny()).analysis.std, before.analysis.std)
    after, _ = train(tiny(), tmp_path, **quiet)
    assert torch.equal(after.analysis.std, before.analysis.std)
    assert torch.equal(after.highest, before.highest)


def test_a_run_has_the_threads_that_it_asks_for(quiet, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    chosen = tiny(threads=3, updates=1)
    model, _ = train(chosen, **quiet)
    assert asked == [3]
    run_filter(chosen, model, runs.test_set_of(chosen), cycles=2)
    assert asked == [3, 3], "what is timed, too"


# ---- scores


def test_validation_compares_each_cycle_with_its_truth(monkeypatch):
    """A filter that returns the observations has the RMSE of the observations."""
    monkeypatch.setattr(runs, "VALIDATION_SEGMENT", 100)

    def repeat(model, observations, generator, first_cycle, **_):
        assert observations.shape == (2, 100, 1, 40)
        assert first_cycle.tolist() == [0, 100]
        return observations.unsqueeze(-3)

    monkeypatch.setattr(runs, "assimilate", repeat)
    chosen = tiny(obs_conf="full_obs")
    assert validation_rmse(chosen, build_filter(chosen)) == pytest.approx(1.0, abs=0.03)


def test_validation_knows_the_phase_of_each_segment(monkeypatch):
    monkeypatch.setattr(runs, "VALIDATION_SEGMENT", 90)  # 90 = 2 modulo 4

    def check(model, observations, generator, first_cycle, **_):
        for i in range(2):
            for k in range(4):
                seen = model.observation_model.mask(first_cycle[i] + k)
                assert torch.equal(seen, ~observations[i, k].isnan())
        return observations.nan_to_num(0.0).unsqueeze(-3)

    monkeypatch.setattr(runs, "assimilate", check)
    validation_rmse(tiny(), build_filter(tiny()))


@pytest.mark.parametrize(("start", "dropout"), [("climatology", True), ("first_observation", False), ("truth", True)])
def test_how_members_start_and_spread_at_test_time(monkeypatch, start, dropout):
    """As asked for, in the curve and in the score: from the truth, or with dropout, only then."""
    asked = []

    def note(model, observations, generator, first_cycle=None, *, dropout, near, draws=0, progress=None):
        asked.append((dropout, near))
        return observations.nan_to_num(0.0).unsqueeze(-3)

    monkeypatch.setattr(runs, "assimilate", note)
    chosen = tiny(start=start, dropout=0.1, test_dropout=dropout)
    model = build_filter(chosen)
    validation_rmse(chosen, model)
    score(chosen, model)
    assert [spread for spread, _ in asked] == [dropout] * 2
    segments, whole = (near for _, near in asked)
    sets = [runs.test_set_of(chosen, split) for split in ("validation", "test")]
    if start == "climatology":
        assert segments is None
        assert whole is None
        return
    for near, data in zip((segments[0], whole), sets, strict=True):
        expected = data.truth[1] if start == "truth" else data.observations[0]
        np.testing.assert_array_equal(near, expected)


@pytest.fixture(scope="module")
def published(home):
    chosen = tiny("hybrid", 3, lag=1, dropout=0.2, test_dropout=True)
    model, record = train(chosen, progress=False, curve_points=0)
    return publish(chosen, model, record), chosen, model


def result_of(home, experiment):
    return json.loads((home / "data" / "results" / f"{experiment.name}.json").read_text())


def test_a_published_filter_reproduces_its_scores_to_the_bit(published, home):
    path, chosen, model = published
    assert path == home / "data" / "checkpoints" / f"{chosen.name}.safetensors"
    experiment, loaded = load_filter(path)
    assert experiment == chosen
    assert_same(weights(loaded), weights(model))
    for split in ("test", "validation"):
        assert score(experiment, loaded, split)[0].as_dict() == result_of(home, chosen)[split]


def test_a_published_filter_is_the_same_on_a_machine_with_other_rounding(published, home, monkeypatch):
    """Chaos: there the climatology of the same seed is another one, and with it the units of the features."""
    path, chosen, _ = published
    simulated = Lorenz96.on_attractor

    def elsewhere(self, batch, generator):
        return simulated(self, batch, generator) * 1.01

    monkeypatch.setattr(Lorenz96, "on_attractor", elsewhere)
    assert score(*load_filter(path), "validation")[0].as_dict() == result_of(home, chosen)["validation"]


def test_scoring_again_keeps_the_weights_and_what_is_known_of_the_training(published, home, monkeypatch):
    path, chosen, _ = published
    weights_before, before = path.read_bytes(), result_of(home, chosen)
    record_before = json.loads(path.with_suffix(".json").read_text())
    monkeypatch.setattr(runs, "provenance", lambda *_: {"commit": "later"})
    assert publish_again(chosen.name) == path
    after = result_of(home, chosen)
    assert path.read_bytes() == weights_before
    assert json.loads(path.with_suffix(".json").read_text()) == record_before
    assert after["scored"] == {"commit": "later"}
    same = set(before) - {"scored", "ms_per_cycle"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint nothing "):
        publish_again("nothing")


def test_an_interrupted_scoring_leaves_the_old_weights_beside_the_old_scores(published, home, monkeypatch):
    path, chosen, _ = published
    before, scored = path.read_bytes(), result_of(home, chosen)
    assert scored["weights"] == storage.sha256(path)
    other = build_filter(chosen.changed(noise=2.0))

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            publish(chosen, other, {"experiment": chosen.model_dump()})
    assert path.read_bytes() == before
    assert result_of(home, chosen) == scored


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_filter_starts_from_the_frozen_truth(short_spinup, split):
    seed = trajectories.SEEDS[split]
    system = SYSTEMS["ks"]()
    start = system.on_attractor(1, torch.Generator().manual_seed(seed)).float()[0]
    model = build_filter(configure("ks", analysis="recurrent", m=1, seed=seed, **SIZES))
    distance = (model.climatology - start).square().mean((-2, -1)).sqrt()
    assert distance.min() > 0.1


def test_a_run_that_goes_on_with_another_version_says_so(quiet, tmp_path, monkeypatch):
    def stop(metrics):
        if metrics["update"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(tiny(), tmp_path, **quiet, save_every=0.0, on_metrics=stop)
    monkeypatch.setattr(runs, "provenance", lambda *_: {"commit": "later"})
    _, record = train(tiny(), tmp_path, **quiet)
    assert record["provenance"]["commit"] != "later"
    assert record["resumed"] == [{"commit": "later"}]


def test_a_result_says_everything(published, home):
    _, chosen, _ = published
    result = result_of(home, chosen)
    assert result["method"] == "amortized"
    assert result["checkpoint"] == f"{chosen.name}.safetensors"
    assert Experiment(**result["experiment"]) == chosen
    assert result["test"]["cycles"] == 250
    assert result["validation"]["cycles"] == 210
    assert result["untrained"] == score(chosen, build_filter(chosen))[0].as_dict()
    assert result["untrained"] != result["test"]
    assert result["provenance"]["versions"]["torch"]
    assert result["ms_per_cycle"] > 0
    assert {"system", "obs_conf", "step_size", "noise", "m", "seed", "history", "diverged"} <= result.keys()


def test_a_slice_is_the_start_of_the_whole(published):
    experiment, model = load_filter(published[0])
    data = runs.test_set_of(experiment)
    whole, _ = run_filter(experiment, model, data, cycles=30)
    part, milliseconds = run_filter(experiment, model, data, cycles=12)
    assert whole.shape == (30, 3, 1, 40)
    np.testing.assert_array_equal(part, whole[:12])
    assert 0 < milliseconds < math.inf


def test_a_part_of_a_set_can_be_scored(published):
    experiment, model = load_filter(published[0])
    data = runs.test_set_of(experiment)
    ensemble, _ = run_filter(experiment, model, data, cycles=225)
    part, _ = score(experiment, model, cycles=225)
    assert part == evaluate(ensemble, data.truth[1:226], 20)
    assert part.cycles == 205


@pytest.mark.parametrize(("cycles", "least"), [(0, 220), (219, 220)])
def test_too_few_cycles_are_refused_before_anything_is_run(published, monkeypatch, cycles, least):
    experiment, model = load_filter(published[0])
    monkeypatch.setattr(runs, "assimilate", None)
    with pytest.raises(ValueError, match=rf"^cycles = {cycles} must be at least {least}, burn-in included\.$"):
        score(experiment, model, cycles=cycles)
    with pytest.raises(ValueError, match=r"^cycles = 5000 must be between 1 and the \d+ cycles of "):
        run_filter(experiment, model, runs.test_set_of(experiment), cycles=5000)


def test_a_part_keeps_its_place_in_the_schedule(published):
    """Without it a filter would take observations for those of other sites."""
    experiment, model = load_filter(published[0])
    data = runs.test_set_of(experiment)
    seen = []
    cycle = model.cycle

    def watched(carry, observation, number, *args, **kwargs):
        seen.append((model.schedule[int(number) % len(model.schedule)] > 0).numpy())
        return cycle(carry, observation, number, *args, **kwargs)

    model.cycle = watched
    part = data.part(3, 6)
    run_filter(experiment, model, part)
    np.testing.assert_array_equal(np.stack(seen), part.masks)


def test_weights_of_another_shape_are_refused_in_one_sentence(published):
    path, chosen, _ = published
    with pytest.raises(ParameterError, match=rf"^hidden_size = 7: the weights of {chosen.name} are of another shape; "):
        load_filter(path, hidden_size=7)


def test_a_published_filter_is_not_replaced_by_another_training_unasked(published):
    _, chosen, _ = published
    may_publish(chosen)
    other = chosen.changed(updates=chosen.updates + 1)
    assert other.name == chosen.name
    with pytest.raises(
        FileExistsError,
        match=rf"^{chosen.name} is published already, from a training with updates = {chosen.updates}; ",
    ):
        may_publish(other)
    may_publish(other, again=True)


def test_a_damaged_published_filter_is_refused(published, tmp_path):
    path, _, _ = published
    copy = tmp_path / path.name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    copy.with_suffix(".json").write_text(path.with_suffix(".json").read_text())
    with pytest.raises(storage.IntegrityError, match="is corrupt"):
        load_filter(copy)


# ---- one filter for many settings


@pytest.fixture(scope="module")
def scored():
    """Settings that have a frozen set here."""
    return (("full_obs", 0.1, 1.0), ("every_4th_dim_partial_obs", 0.1, 2.5))


@pytest.fixture
def of_many(scored, monkeypatch):
    """A small experiment, scored in few settings."""
    monkeypatch.setattr(runs, "VALIDATED", scored)
    monkeypatch.setattr(runs, "scored_in", lambda experiment, settings=scored: scored_in(experiment, settings))
    sizes = {**SIZES, "updates": 6, "segments": 1, "cycles": 12}
    return configure("l96_any", analysis="hybrid", m=3, lag=1, settings=4, **sizes)


def test_every_setting_has_its_record(of_many, quiet, monkeypatch):
    """Observed in its own way, of a truth of its own."""
    records = []

    class Noted(runs.Trainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            records.extend(course.record for course in self.courses)

    monkeypatch.setattr(runs, "Trainer", Noted)
    train(of_many, **{**quiet, "curve_points": 0})
    assert len(records) == 4
    for setting, record in zip(variations(of_many), records, strict=True):
        assert torch.equal(record.observations, training_record(setting).observations)
        assert record.truth is record.near is None
        data = training_trajectories(Lorenz96(), setting.step_size, 12, 1, setting.seed)
        mask = OBS_CONFS[setting.obs_conf](1, 40).mask(torch.arange(12)).numpy()
        expected = data.truth.values[:, 1:] + setting.noise * data.unit_noise.values
        np.testing.assert_allclose(record.observations, np.where(mask, expected, 0.0), atol=1e-5)


def test_a_run_in_many_settings_is_validated_in_the_mean(of_many, quiet, tmp_path):
    model, record = train(of_many, tmp_path / "whole", **quiet)
    errors = []
    for setting in scored_in(of_many, runs.VALIDATED):
        there = build_filter(setting, model.climatology)
        there.load_state_dict(model.state_dict())
        errors.append(validation_rmse(setting, there))
    assert errors[0] != errors[1]
    mean = math.exp(sum(map(math.log, errors)) / 2)
    assert record["history"][-1]["validation_rmse"] == validation_rmse(of_many, model) == pytest.approx(mean)

    def stop(metrics):
        if metrics["update"] == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train(of_many, tmp_path / "run", save_every=0.0, on_metrics=stop, **quiet)
    resumed, _ = train(of_many, tmp_path / "run", **quiet)
    assert_same(weights(resumed), weights(model))


def test_a_filter_of_many_settings_is_published_once_and_scored_in_each(of_many, quiet, home, scored):
    model, record = train(of_many, **{**quiet, "curve_points": 1})
    path = publish(of_many, model, record)
    assert path == home / "data" / "checkpoints" / "l96_any-4settings-hybrid-lag1-m3-seed0.safetensors"
    write_scores()
    table = load_scores(method="amortized_any")
    assert len(table) == 2
    assert set(table.checkpoint) == {path.name}
    for obs_conf, step_size, noise in scored:
        setting = {"obs_conf": obs_conf, "step_size": step_size, "noise": noise}
        name = f"{of_many.name}-{obs_conf}-dt{step_size:g}-s{noise:g}"
        result = json.loads((home / "data" / "results" / f"{name}.json").read_text())
        assert {key: result[key] for key in setting} == setting
        assert (result["method"], result["label"]) == ("amortized_any", "hybrid, lag 1, 4 settings")
        assert Experiment(**result["experiment"]) == of_many
        # Whoever asks for the filter in a setting gets it there.
        experiment, loaded, row = best_filter(**setting, method="amortized_any")
        assert experiment == of_many.changed(**setting)
        assert row.noise == noise
        assert_same(weights(loaded), weights(model))
        for split in ("test", "validation"):
            assert score(experiment, loaded, split)[0].as_dict() == result[split]
    # One filter, one row, and the command that repeats it.
    (run,) = training_runs(method="amortized_any").itertuples()
    assert run.name == of_many.name
    assert "--settings 4" in run.command
    assert run.validation_rmse == pytest.approx(table.validation_rmse.prod() ** 0.5, rel=1e-3)
    assert len(histories(method="amortized_any")) == 1


def test_a_setting_without_a_frozen_set_publishes_nothing(quiet):
    chosen = configure(
        "l96_any", analysis="hybrid", m=3, lag=1, settings=2, **{**SIZES, "segments": 1, "cycles": 12, "updates": 1}
    )
    with pytest.raises(LookupError, match=r"^system = 'l96' with step_size = 0\.15 has no frozen test set; "):
        publish(chosen, *train(chosen, **{**quiet, "curve_points": 0}))
    assert not runs.published(chosen.name).exists()

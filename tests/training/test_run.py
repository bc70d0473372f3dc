"""A run from its experiment to a trained filter: stopped at any moment, started again, elsewhere."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from small import PARTIAL
from small_runs import QUIET, SIZES, Stopped, assert_same, stop_after, tiny

from assim_lib.networks import register_network
from assim_lib.observations import ObservationModel, register_obs_conf
from assim_lib.storage import PACKAGE
from assim_lib.systems import Lorenz96, register_system
from assim_lib.tracking import assimilate
from assim_lib.training import run as run_module
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, load_filter, save_checkpoint
from assim_lib.training.experiment import Experiment, ParameterError, configure
from assim_lib.training.pool import FilterPool
from assim_lib.training.presets import EXPERIMENTS
from assim_lib.training.run import train
from assim_lib.training.validation import validation_rmse

pytestmark = pytest.mark.usefixtures("home", "unchecked_shapes")

SCORED = {**QUIET, "curve_points": 2}  # how most are trained here
CHOSEN = {"obs_conf": PARTIAL}


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    """A run that nobody interrupts: its filter, its log, its folder, and the metrics of its updates."""
    folder, metrics = tmp_path_factory.mktemp("whole"), []
    return *train(tiny(**CHOSEN), folder, on_metrics=metrics.append, **SCORED), folder, metrics


def assert_same_end(folder, model, log, whole):
    """Of a run and the uninterrupted one: weights, state, and what the history says but for its times."""
    assert_same(model.state_dict(), whole[0].state_dict())
    assert_same(*(load_file(path / "state.safetensors") for path in (folder, whole[2])))
    for ours, theirs in zip(log["history"], whole[1]["history"], strict=True):
        assert all(ours[name] == theirs[name] for name in ("update", "loss", "validation_rmse", "skipped"))


@pytest.mark.parametrize(("updates", "points", "expected"), [(7, 3, [3, 5, 7]), (2, 5, [1, 2]), (5, 0, [])])
def test_a_learning_curve_has_as_many_points_as_were_asked_for(updates, points, expected):
    _, log = train(tiny(updates=updates), progress=False, curve_points=points)
    assert [point["update"] for point in log["history"]] == expected


def test_a_run_has_its_log(whole):
    model, log, folder, metrics = whole
    assert [one["update"] for one in metrics] == list(range(1, 9))
    assert [point["update"] for point in log["history"]] == [4, 8]
    assert log["history"][0]["loss"] == pytest.approx(sum(one["loss"] for one in metrics[:4]) / 4)
    assert log["history"][1]["validation_rmse"] == validation_rmse(tiny(**CHOSEN), model)
    assert Experiment(**log["experiment"]) == tiny(**CHOSEN)
    assert log["core_seconds"] > 0
    assert json.loads(json.dumps(log)) == log
    # Asked for again, a finished run is read, not repeated.
    again, same = train(tiny(**CHOSEN), folder, on_metrics=metrics.append, **SCORED)
    assert len(metrics) == 8
    assert_same(again.state_dict(), model.state_dict())
    assert same["history"] == log["history"]


def test_a_record_says_how_its_updates_were_done(tmp_path):
    _, plain = train(tiny(updates=2), tmp_path, **QUIET)
    assert not {"compiled", "graphed", "recompute"} & plain.keys()
    with pytest.raises(Stopped):
        train(tiny(), tmp_path / "part", on_metrics=stop_after(2), save_every=0, recompute=True, **QUIET)
    _, resumed = train(tiny(), tmp_path / "part", **QUIET)
    assert (resumed["recompute"], "graphed" in resumed) == (True, False)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, log = train(tiny(updates=1), **QUIET)
    assert log["history"] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "where", ["between updates", "within an update", "between the two optimizers", "while scoring"]
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, whole, where):
    owner, name, call = {
        "between updates": (None, "", 0),
        "within an update": (FilterPool, "advance", 5),
        "between the two optimizers": (torch.optim.AdamW, "step", 6),
        "while scoring": (run_module, "validation_rmse", 1),
    }[where]
    with monkeypatch.context() as patch:
        if owner:
            original, calls = getattr(owner, name), []

            def stopped(*arguments):
                calls.append(1)
                if len(calls) == call:
                    raise Stopped
                return original(*arguments)

            patch.setattr(owner, name, stopped)
        with pytest.raises(Stopped):
            train(tiny(**CHOSEN), tmp_path, save_every=0.0, on_metrics=stop_after(5), **SCORED)
    assert_same_end(tmp_path, *train(tiny(**CHOSEN), tmp_path, **SCORED), whole)


KILLED = """
import sys, time
from pathlib import Path
import torch
from assim_lib.systems import Lorenz96
from assim_lib.training.experiment import Experiment
from assim_lib.training.run import train

torch.set_num_threads(1)
Lorenz96.spinup = 4.0

def wait_for_the_end(metrics):
    if metrics["update"] == 5:
        print("in the middle", flush=True)
        time.sleep(600)

experiment = Experiment.model_validate_json(sys.argv[2])
train(experiment, Path(sys.argv[1]), curve_points=2, save_every=0.0, progress=False, on_metrics=wait_for_the_end)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, whole):
    """With the numbers of another process, and dropout that draws from the run's generator."""
    chosen, folder, updates = tiny("original", dropout=0.2, **CHOSEN), tmp_path / "run", []
    command = [sys.executable, "-c", KILLED, str(folder), chosen.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in folder.iterdir()] == ["state.safetensors"]
    resumed = train(chosen, folder, on_metrics=lambda metrics: updates.append(metrics["update"]), **SCORED)
    assert updates == [5, 6, 7, 8]
    whole = (*train(chosen, tmp_path / "whole", **SCORED), tmp_path / "whole")
    assert_same_end(folder, *resumed, whole)


def test_another_experiments_folder_is_refused_and_left_alone(whole):
    state = whole[2] / "state.safetensors"
    before = state.read_bytes()
    with pytest.raises(ValueError, match=r"state\.safetensors belongs to a run with other options; [^\n]+\.$"):
        train(tiny(**CHOSEN, seed=1), whole[2], **SCORED)
    assert state.read_bytes() == before


def test_a_run_goes_on_in_its_own_units_and_says_that_the_version_is_another(tmp_path, monkeypatch, whole):
    """On another machine the same seed makes another climate."""
    with pytest.raises(Stopped):
        train(tiny(**CHOSEN), tmp_path, **SCORED, save_every=0.0, on_metrics=stop_after(5))
    monkeypatch.setattr(run_module, "provenance", lambda device: {"commit": "later", "device": device})
    simulated = Lorenz96.on_attractor
    monkeypatch.setattr(Lorenz96, "on_attractor", lambda *args: 2 * simulated(*args))
    assert not torch.equal(build_filter(tiny(**CHOSEN)).analysis.std, whole[0].analysis.std)
    model, log = train(tiny(**CHOSEN), tmp_path, **SCORED)
    assert_same_end(tmp_path, model, log, whole)
    assert torch.equal(model.analysis.std, whole[0].analysis.std)
    assert torch.equal(model.highest, whole[0].highest)
    assert log["provenance"] == whole[1]["provenance"]
    assert log["resumed"] == [{"commit": "later", "device": "cpu"}]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment):
    """As it is, but small: two updates, and a score on validation data."""
    usual = configure(experiment)
    few = {"n_settings": min(3, usual.n_settings), "m": min(2, usual.m)}
    sizes = {**SIZES, "segments": 1, "cycles": 12, "updates": 2, "lag": 0}
    model, log = train(configure(experiment, **sizes, **few), progress=False, curve_points=1)
    (point,) = log["history"]
    assert 0 < point["loss"] < 20
    assert point["skipped"] == 0
    # Far from trained, but not off the attractor.
    assert point["validation_rmse"] < 2.5 * float(model.climatology.std())


def test_a_run_in_many_settings_goes_on_as_well(tmp_path):
    chosen = tiny("hybrid", 3, experiment="l96_any", n_settings=4, lag=1, updates=6, segments=1, cycles=12)
    whole = (*train(chosen, tmp_path / "whole", **QUIET), tmp_path / "whole")
    with pytest.raises(Stopped):
        train(chosen, tmp_path / "run", save_every=0.0, on_metrics=stop_after(4), **QUIET)
    assert_same_end(tmp_path / "run", *train(chosen, tmp_path / "run", **QUIET), whole)


def test_what_a_reader_registers_is_trained_and_scored_by_its_name(readers_cell):
    @register_system
    class Ring(Lorenz96):
        name = "ring"
        spinup = 4.0

        def __init__(self):
            super().__init__(sites=10)

    @register_obs_conf("two_of_five")
    def two_of_five(channels, sites):
        return ObservationModel((torch.arange(sites) % 5 < 2).expand(1, channels, sites).clone(), error=0.7)

    chosen = tiny(system="ring", obs_conf="two_of_five", noise=2.0)
    assert "two_of_five" in chosen.name
    model, log = train(chosen, progress=False, curve_points=1)
    assert model.climatology.shape[1:] == (1, 10)
    assert float(model.error.unique()) == pytest.approx(1.4)
    assert log["history"][-1]["validation_rmse"] < 8


def test_a_published_filter_is_trained_further(whole, home):
    name = tiny(**CHOSEN).name
    save_checkpoint(whole[0], checkpoint_path(name), whole[1])
    further = tiny(**CHOSEN, pretrained=name, updates=2, lr=1e-12, adamw_lr=1e-12)
    model, log = train(further, **QUIET)
    assert further.name == f"{name}-further"
    assert log["experiment"]["pretrained"] == name
    for ours, theirs in zip(model.parameters(), whole[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_filter_that_was_trained_further_elsewhere_is_loaded_as_it_was(home):
    """On another ring, whose climatology is another; its features stay in the units that its weights know."""

    @register_system
    @dataclass(frozen=True)
    class Windier(Lorenz96):
        name: ClassVar[str] = "windier"
        sites: int = 30
        forcing: float = 16.0

    first = tiny(**CHOSEN)
    save_checkpoint(*of_run(first))
    further = first.changed(system="windier", pretrained=first.name)
    model, path, log = of_run(further)
    save_checkpoint(model, path, log)
    _, loaded = load_filter(path)
    ensembles = [
        assimilate(each, torch.full((9, 1, 30), 2.0), torch.Generator().manual_seed(0)) for each in (model, loaded)
    ]
    assert torch.equal(*ensembles)
    assert float(model.analysis.std) < 0.8 * float(model.climatology.std())


@pytest.mark.usefixtures("readers_cell")
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_network_without_matrices_whose_weights_are_tied_is_trained_and_kept(home, optimizer):
    @register_network("convolutions")
    class Convolutions(torch.nn.Module):
        def __init__(self, inputs, outputs, sizes):
            super().__init__()
            self.embed = torch.nn.Conv1d(inputs, 4, 1)
            self.first = torch.nn.Conv1d(4, 4, 3, padding="same", padding_mode="circular")
            self.second = torch.nn.Conv1d(4, 4, 3, padding="same", padding_mode="circular")
            self.second.weight = self.first.weight
            self.head = torch.nn.Conv1d(4, outputs, 1)

        def forward(self, features, phase=None, generator=None):
            h = self.embed(features.flatten(0, -3).transpose(-1, -2))
            out = self.head(self.second(torch.relu(self.first(h)))).transpose(-1, -2)
            return out.unflatten(0, features.shape[:-2])

    chosen = tiny(network="convolutions", optimizer=optimizer, updates=2)
    save_checkpoint(*of_run(chosen))
    _, loaded = load_filter(checkpoint_path(chosen.name))
    assert torch.equal(loaded.analysis.trunk.first.weight, loaded.analysis.trunk.second.weight)


def of_run(experiment):
    model, log = train(experiment, **QUIET)
    return model, checkpoint_path(experiment.name), log


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"pretrained": "nobody"}, "no checkpoint nobody in checkpoints"),
        (
            {"hidden_size": 7, "kernel": 5},
            "pretrained = '.*' with hidden_size = 6, kernel = 3: its weights are of another shape; train one from ",
        ),
    ],
)
def test_what_cannot_be_trained_further_is_refused_before_anything_is_computed(whole, home, changed, sentence):
    name = tiny(**CHOSEN).name
    save_checkpoint(whole[0], checkpoint_path(name), whole[1])
    with pytest.raises((ParameterError, FileNotFoundError), match=sentence):
        train(tiny(**{**CHOSEN, "pretrained": name, **changed}), **QUIET)


@pytest.mark.parametrize(("analysis", "m"), [("original", 2), ("recurrent", 1), ("hybrid", 3), ("extended", 1)])
def test_it_trains_and_runs_whatever_the_default_type_of_numbers(analysis, m):
    torch.set_default_dtype(torch.float64)
    try:
        model, _ = train(tiny(analysis, m, updates=2, obs_conf=PARTIAL), **QUIET)
        seen = torch.zeros(3, 1, 40, dtype=torch.float64)
        ensemble = assimilate(model, seen, torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert ensemble.dtype == torch.float32
    assert ensemble.isfinite().all()

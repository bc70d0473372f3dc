"""Training on a record of one's own: no truth anywhere, resumed, stored, assimilated with."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from small import PARTIAL
from small_runs import QUIET, Stopped, assert_same, stop_after, tiny

from assim_lib import assimilate_record, load_filter
from assim_lib import twin as twin_module
from assim_lib.observations import ObservationModel, observation_model, register_obs_conf
from assim_lib.own.record import RecordError, read_record
from assim_lib.training import run as run_module
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, load_checkpoint, save_checkpoint
from assim_lib.training.experiment import ParameterError
from assim_lib.training.own_record import held_out_scores, innovation_rmse, on_record, save_on_record
from assim_lib.training.run import train

pytestmark = pytest.mark.usefixtures("home", "unchecked_shapes")

CYCLES = 60
SMALL = {"updates": 4, "batch": 2, "pool": 4, "window": 3}


@pytest.fixture(scope="module")
def values(home):
    record = tiny().setting.load().observations[:CYCLES, 0].copy()
    record[np.random.RandomState(0).random_sample(record.shape) < 0.3] = np.nan
    record[20:26] = np.nan  # longer than a window
    return record


@pytest.fixture
def no_truth(monkeypatch):
    """Whoever asks for a simulated truth, to train or to score, fails."""

    def refuse(*_, **__):
        raise AssertionError("a truth was asked for")

    for name in ("simulate", "load_twin", "cached"):
        monkeypatch.setattr(twin_module, name, refuse)
    monkeypatch.setattr(run_module, "training_data", refuse)


@pytest.mark.parametrize("analysis", [("recurrent", 1), ("hybrid", 3), ("gated", 3)])
def test_a_filter_is_trained_on_what_was_observed_alone(values, no_truth, analysis):
    chosen, metrics = tiny(*analysis, **SMALL), []
    model, record = train(chosen, observations=values, progress=False, curve_points=2, on_metrics=metrics.append)
    assert [point["update"] for point in record["history"]] == [2, 4]
    assert all(point["innovation_rmse"] > 0 and "validation_rmse" not in point for point in record["history"])
    assert metrics[-1]["skipped"] == 0
    trained, data = on_record(chosen, values)
    assert record["experiment"] == trained.model_dump()
    assert trained.name == f"{chosen.name}-on-observations-{data.record.checksum[:8]}"
    assert (trained.cycles, trained.segments, trained.order) == (48, 1, "schedule")
    assert innovation_rmse(trained, model, data) == record["history"][-1]["innovation_rmse"]


def test_what_is_held_out_is_not_trained_on(values):
    changed = values.copy()
    changed[48:] = 100.0
    training = [on_record(tiny(**SMALL), each)[1].training_data(tiny()) for each in (values, changed)]
    assert_same(*({"observations": each.observations.nan_to_num(-1e3)} for each in training))
    assert training[0].truth is None
    np.testing.assert_array_equal(on_record(tiny(**SMALL), values)[1].held_out[:, 0], values[48:])


def test_masks_come_as_they_were_received(values):
    dated = xr.DataArray(values, dims=("time", "site"), coords={"time": np.arange(2, 2 + CYCLES)})
    _, data = on_record(tiny(obs_conf=PARTIAL, **SMALL), dated)
    np.testing.assert_array_equal(data.training_data(tiny(obs_conf=PARTIAL)).phase[0, :4], [2, 3, 0, 1])


@pytest.mark.filterwarnings("ignore:.*expects none:UserWarning")
def test_a_start_around_observations_is_around_those_that_the_schedule_expects(values):
    chosen = tiny("gated", 3, obs_conf=PARTIAL, start="first_observation", **SMALL)
    full = np.nan_to_num(values)
    seen = observation_model(PARTIAL, 1, 40).mask(torch.arange(CYCLES)).numpy()[:, 0]
    chosen, data = on_record(chosen, full)
    near = data.training_data(chosen).near.numpy()[0, :, 0]
    np.testing.assert_array_equal(near, np.where(seen, full, np.nan)[:48])
    model = build_filter(chosen)
    (scores, same) = (
        held_out_scores(chosen, model, on_record(chosen, each)[1]) for each in (full, np.where(seen, full, np.nan))
    )
    assert scores == same


def test_a_stopped_run_goes_on(values, tmp_path):
    chosen = tiny(**SMALL)
    run = partial(train, chosen, observations=values, save_every=0.0, **QUIET)
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "run", on_metrics=stop_after(3))
    assert_same(run(tmp_path / "run")[0].state_dict(), whole.state_dict())
    with pytest.raises(ValueError, match="belongs to a run with other options"):
        train(chosen, tmp_path / "run", observations=values + 1, **QUIET)


def test_errors_of_the_record_are_those_of_the_filter(values, readers_cell):
    assert on_record(tiny(**SMALL), values, error=0.7)[0].noise == pytest.approx(0.7)
    with pytest.raises(
        RecordError, match=r"^observations has errors that .* register an obs_conf with these errors, and give no error"
    ):
        on_record(tiny(**SMALL), values, error=np.linspace(1, 2, 40))
    # Which is followed:
    error = torch.linspace(1, 2, 40)
    register_obs_conf("uneven")(lambda *grid: ObservationModel(torch.ones(1, *grid, dtype=torch.bool), error=error))
    record = xr.Dataset({"observations": (("time", "site"), values), "error": ("site", error.numpy())})
    assert on_record(tiny(obs_conf="uneven", **SMALL), record)[0].noise == 1.0


@pytest.mark.parametrize(
    ("changed", "observations", "sentence"),
    [
        ({"loss": "clean_analysis"}, None, "loss = 'clean_analysis' needs a truth, and an own record has none"),
        ({"start": "truth"}, None, "start = 'truth' needs a truth"),
        ({"noise_draws": "each"}, None, "noise_draws = 'each' adds errors to a truth"),
        ({}, np.zeros((4, 40)), "observations has 4 cycles, 3 of them to train on; more than window"),
        ({}, np.full((60, 40), np.nan), "observations holds no number that obs_conf = 'full_obs' lets be used"),
        ({}, np.zeros((60, 39)), r"observations of shape \(60, 39\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*holds no number:UserWarning")
def test_what_cannot_be_trained_on_is_one_sentence(values, changed, observations, sentence):
    with pytest.raises((ParameterError, RecordError), match=f"^{sentence}"):
        train(tiny(**{**SMALL, **changed}), observations=values if observations is None else observations, **QUIET)


def test_what_is_not_finite_is_not_stored(values, tmp_path):
    experiment, data = on_record(tiny(**SMALL), values)
    model, note = train(experiment, observations=data.record, **QUIET)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"forecasts what is not finite, and is not stored; take a lower lr"):
        save_on_record(tmp_path / "a.safetensors", experiment, model, note, data)
    assert list(tmp_path.iterdir()) == []


def test_a_filter_of_a_record_is_not_trained_on_a_simulated_one(values):
    trained, _ = on_record(tiny(**SMALL), values)
    with pytest.raises(ParameterError, match=r"^record = 'observations-\w+' is trained on again with its observations"):
        train(trained, **QUIET)


def test_it_is_stored_with_its_scores_and_assimilates(command, values, tmp_path, monkeypatch, no_truth):
    monkeypatch.chdir(tmp_path)
    xr.Dataset({"observations": (("time", "site"), values)}).to_netcdf("my obs.nc")
    chosen = tiny(**SMALL)
    differ = {k: v for k, v in chosen.model_dump().items() if v != type(chosen).model_fields[k].default}
    options = " ".join(f"--{name} {value}" for name, value in differ.items())
    line = "train l96_conv --record 'my obs.nc' --checkpoints mine --curve-points 1"
    code, _, error = command(f"{line} {options}")
    assert (code, "would be ignored: a record has its own; leave it out." in error) == (2, True)
    options = " ".join(f"--{k} {v}" for k, v in differ.items() if k not in ("cycles", "segments", "order"))
    code, out, error = command(f"{line} {options}")
    assert code == 0, error
    (path,) = (tmp_path / "mine").glob("*.safetensors")
    assert out.startswith("held out: innovation RMSE ")
    assert out.endswith(f"wrote mine/{path.name}\n")
    _, record = load_checkpoint(path)
    experiment, _ = load_filter(path)
    assert experiment.name == path.stem
    assert experiment.record.startswith("my_obs-")
    assert record["record"]["source"] == "my obs.nc"
    assert record["innovations"]["held_out"]["rmse"] > 0
    assert record["innovations"]["untrained"]["numbers"] == record["innovations"]["held_out"]["numbers"]
    assert json.dumps(record["history"])
    code, out, error = command(f"assimilate {path.stem} 'my obs.nc' out.nc --checkpoints mine")
    assert code == 0, error
    made = assimilate_record(path, tmp_path / "my obs.nc").analysis
    np.testing.assert_array_equal(xr.load_dataset("out.nc")["mean"], made["mean"])
    code, _, error = command(f"{line} {options} --lr 0.5")
    assert code == 2
    assert "is published already, from a training with lr = " in error
    assert command(f"{line.replace('--record ', '--variable a --plugins ')} {options}")[0] == 2


def test_a_published_filter_is_trained_further_on_a_record(values):
    chosen = tiny("hybrid", 3, **SMALL)
    model, record = train(chosen, **QUIET)
    save_checkpoint(model, checkpoint_path(chosen.name), record)
    tuned, note = train(chosen.changed(pretrained=chosen.name, lr=1e-12, adamw_lr=1e-12), observations=values, **QUIET)
    assert "-further-on-observations-" in type(chosen)(**note["experiment"]).name
    for ours, theirs in zip(tuned.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_record_is_one_of_the_state_and_is_scored_on_itself(values, command, home, monkeypatch, tmp_path):
    chosen = tiny(**SMALL)
    with pytest.raises(RecordError, match=r"^observations was read for \(1, 20\) channels and sites, not \(1, 40\)\.$"):
        on_record(chosen, read_record(values[:, :20], (1, 20), chosen.step_size))
    with pytest.raises(RecordError, match="holds no number that obs_conf = "):
        on_record(chosen, read_record(np.full_like(values, np.nan), (1, 40), chosen.step_size))
    trained, note = train(chosen, observations=values, **QUIET)
    name = type(chosen)(**note["experiment"]).name
    save_checkpoint(trained, checkpoint_path(name), note)
    code, _, error = command(f"score {name}")
    assert code == 2
    assert error == f"assim_lib score: {name} was trained on a record of one's own, and has its scores there.\n"

"""Observations of one's own: assimilated from a file, day by day, scored, and refused where they cannot be meant."""

import gc
import json
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace

import h5netcdf
import numpy as np
import pytest
import torch
import xarray as xr
from small import PARTIAL
from small_runs import tiny

from assim_lib import assimilate, assimilate_record
from assim_lib.assimilation import prepare_record
from assim_lib.mistakes import Mistake
from assim_lib.own.clock import Clock
from assim_lib.own.innovations import InnovationScores
from assim_lib.own.record import OwnRecord, Part, RecordError
from assim_lib.own.remarks import Outliers, remark_on_innovations, usable_error
from assim_lib.own.state import load_state
from assim_lib.storage import IntegrityError, provenance, sha256
from assim_lib.training import checkpoints
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, load_filter, save_checkpoint
from assim_lib.training.experiment import ParameterError

pytestmark = [
    pytest.mark.usefixtures("home", "unchecked_shapes"),
    pytest.mark.filterwarnings("ignore:.*expected deviations off:UserWarning", "ignore:.*climatology:UserWarning"),
]

CASES = {
    "hybrid": tiny("hybrid", 3, lag=1, lag_warmup=2),
    "moving": tiny("hybrid", 3, lag=1, obs_conf=PARTIAL),
    "extended": tiny("extended", 1, lag=1),
    "recurrent": tiny("recurrent", 1, seed=1),
    "gated": tiny("gated", 3, dropout=0.2, test_dropout=True, start="first_observation", lag=0),
    "around": tiny("gated", 3, start="first_observation", obs_conf=PARTIAL, lag=0),
}
CYCLES = 12


@pytest.fixture(scope="module")
def names(home):
    """Filters that nobody has trained, by their analysis."""
    for chosen in CASES.values():
        record = {"experiment": chosen.model_dump(), "provenance": provenance(), "seconds": 0.0}
        save_checkpoint(build_filter(chosen), checkpoint_path(chosen.name), record)
    return {case: chosen.name for case, chosen in CASES.items()}


@pytest.fixture(scope="module")
def values(home):
    """A record of the system, (time, site), with holes."""
    record = tiny().setting.load().observations[:CYCLES, 0].astype(np.float64)
    record[np.random.RandomState(0).random_sample(record.shape) < 0.3] = np.nan
    return record


@pytest.mark.parametrize("case", ["hybrid", "gated"])
def test_it_is_what_the_filter_makes_of_the_record(names, values, case):
    experiment, model = load_filter(checkpoint_path(names[case]))
    observations = torch.from_numpy(values[:, None]).float()
    near = observations[0] if case == "gated" else None
    generator = torch.Generator().manual_seed(experiment.seed)
    ensemble = assimilate(model, observations, generator, dropout=experiment.test_dropout, near=near)
    made = assimilate_record(names[case], values, members=True).analysis
    np.testing.assert_array_equal(made.members, ensemble)
    np.testing.assert_array_equal(made["mean"], ensemble.mean(1))
    np.testing.assert_array_equal(made.spread, ensemble.std(1))
    assert np.isnan(made.innovation.values[np.isnan(values[:, None])]).all()


@pytest.mark.filterwarnings("ignore:.*expects none:UserWarning")
def test_a_start_around_the_first_observation_is_around_what_the_schedule_expects(names, values):
    _, model = load_filter(checkpoint_path(names["around"]))
    full = np.nan_to_num(values)[:, None]
    expected = np.where(model.observation_model.mask(1 + torch.arange(CYCLES)), full, np.nan)
    made, same = (assimilate_record(names["around"], each, first_cycle=1).analysis for each in (full, expected))
    np.testing.assert_array_equal(made["mean"], same["mean"])


def test_members_of_a_covariance_are_drawn(names, values):
    made = assimilate_record(names["extended"], values, members=True).analysis
    assert made.members.shape == (CYCLES, 20, 1, 40)
    np.testing.assert_allclose(made.members.mean("member"), made["mean"], atol=1e-4)
    assert (made.spread > 0).all()


@pytest.mark.parametrize("case", CASES)
def test_a_run_in_parts_is_the_run_in_one(names, values, case, tmp_path):
    dates = np.datetime64("2026-01-01") + np.delete(np.arange(CYCLES + 1), 7) * np.timedelta64(6, "h")
    record = xr.DataArray(values, dims=("time", "site"), coords={"time": dates})
    whole = assimilate_record(names[case], record, members=True).analysis
    assert whole.sizes["time"] == CYCLES + 1
    state, parts = tmp_path / "state.safetensors", []
    for chosen in (slice(0, 3), slice(3, 7), slice(7, None)):
        part = assimilate_record(names[case], record[chosen], members=True, state=state).analysis
        parts.append(part)
    assert parts[2].sizes["time"] == CYCLES - 7 + 1  # the gap belongs to the day after it
    joined = xr.concat(parts, "time", combine_attrs="drop")
    for name in (*whole.data_vars, "time", "cycle"):
        np.testing.assert_array_equal(joined[name], whole[name])
    with pytest.raises(
        RecordError, match=r"^the record begins at 2026-01-01T00:00:00, and the state has seen everything"
    ):
        assimilate_record(names[case], record, state=state)


def test_numbers_where_none_are_expected(names, values):
    full = np.where(np.isnan(values), 0.0, values)
    with pytest.warns(
        UserWarning, match=r"^360 of 480 numbers are where obs_conf = '\w+' expects none, and are not used"
    ):
        scheduled = assimilate_record(names["moving"], full)
    _, model = load_filter(checkpoint_path(names["moving"]))
    seen = model.observation_model.mask(torch.arange(CYCLES)).numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*expects none")
        same = assimilate_record(names["moving"], np.where(seen, full[:, None], np.nan))
        every = assimilate_record(names["moving"], full, any_mask=True)
    np.testing.assert_array_equal(scheduled.analysis["mean"], same.analysis["mean"])
    assert (np.isfinite(scheduled.analysis.innovation).values == seen).all()
    assert np.isfinite(every.analysis.innovation).all()
    # Whole-number times are numbers of cycles, by which the schedule goes.
    later = xr.DataArray(np.where(seen, full[:, None], np.nan)[1:], dims=("time", "channel", "site"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*expects none")
        first = assimilate_record(names["moving"], later.assign_coords(time=np.arange(1, CYCLES))).analysis
        second = assimilate_record(names["moving"], later, first_cycle=1).analysis
    np.testing.assert_array_equal(first["mean"], second["mean"])
    assert first.cycle.values[0] == 1


def test_outliers_are_said_and_left_out_when_asked(names, values):
    spoilt = values.copy()
    spoilt[5, 3] = -9999
    sound = np.where(spoilt == -9999, np.nan, spoilt)
    for case in ("hybrid", "extended", "recurrent"):
        with pytest.warns(
            UserWarning,
            match=r"^(1|\d+(?=.*spoiled by the first)) numbers .* \(5, 0, 3\) of .* all the same; drop_",
        ):
            used = assimilate_record(names[case], spoilt)
        with pytest.warns(UserWarning, match=r"^\d+ numbers .* and were not used\.$"):
            dropped = assimilate_record(names[case], spoilt, drop_outliers=True)
        same = assimilate_record(names[case], sound, drop_outliers=True)
        np.testing.assert_array_equal(dropped.analysis["mean"], same.analysis["mean"])
        # Before it is trained, the network of the last makes nothing of an observation.
        assert case == "recurrent" or not np.allclose(used.analysis["mean"], dropped.analysis["mean"])


@pytest.mark.parametrize("case", ["hybrid", "extended"])
def test_an_error_of_its_own_counts(names, values, case):
    """Huge errors are as good as nothing received; the same one as the filter's changes nothing."""
    plain = assimilate_record(names[case], values).analysis
    np.testing.assert_array_equal(assimilate_record(names[case], values, error=1.0).analysis["mean"], plain["mean"])
    _, doubled = load_filter(checkpoint_path(names[case]), noise=2.0)
    assert float(doubled.error[0, 0]) == 2.0
    by_option = assimilate_record(names[case], values, noise=2.0).analysis
    np.testing.assert_array_equal(assimilate_record(names[case], values, error=2.0).analysis["mean"], by_option["mean"])
    error = np.ones(values.shape)
    error[4:, 7] = 1e5
    without = np.where(error > 1, np.nan, values)
    np.testing.assert_allclose(
        assimilate_record(names[case], values, error=error).analysis["mean"],
        assimilate_record(names[case], without).analysis["mean"],
        atol=0.3,  # the network sees a mask
    )


def test_scores_say_whether_the_filter_believes_rightly(names):
    """The scores are those of what is written; a single member expects nothing."""
    twin = tiny().setting.load()
    made = assimilate_record(names["hybrid"], twin.observations[:, 0])
    counted = slice(60 + 2, None)
    d, s = (made.analysis[name].values[counted] for name in ("innovation", "innovation_spread"))
    assert made.scores.rmse == pytest.approx(np.sqrt(np.mean(d**2)), rel=1e-5)
    assert made.scores.expected == pytest.approx(np.sqrt(np.mean(s**2)), rel=1e-5)
    assert made.scores.chi2 == pytest.approx(np.mean((d / s) ** 2), rel=1e-5)
    assert made.scores.cycles == len(d)
    assert made.analysis.attrs["innovation_chi2"] == made.scores.chi2
    single = assimilate_record(names["recurrent"], twin.observations[:100, 0]).scores
    assert np.isnan(single.expected)
    assert "a single member expects nothing" in str(single)


def test_the_error_that_is_assumed_is_told_and_judged(command, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    observations = tiny().setting.load().observations[:100, 0]
    xr.Dataset({"observations": (("time", "site"), observations)}).to_netcdf("in.nc")
    code, out, _ = command(f"assimilate {names['hybrid']} in.nc out.nc")
    assert (code, out.splitlines()[0]) == (0, "error: 1, the filter's own; the record has none")
    told = assimilate_record(names["hybrid"], observations, error=0.5)
    assert told.analysis.attrs["observation_error"] == "that of the record"
    _, model = load_filter(checkpoint_path(names["hybrid"]))
    for chi2, word in ((1.8, "larger"), (0.4, "smaller")):
        scores = InnovationScores(rmse=0.1, expected=0.1, chi2=chi2, autocorrelation=0.0, numbers=500, cycles=50)
        with pytest.warns(
            UserWarning, match=rf"^χ² = {chi2:.2f} is far from 1: innovations are {word} than the filter"
        ):
            remark_on_innovations(Outliers(), scores, model, dropped=False)


def test_the_command_writes_what_the_function_returns(command, names, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dates = np.datetime64("2026-01-01", "ns") + np.arange(CYCLES) * np.timedelta64(6, "h")
    record = xr.Dataset({"wind": (("time", "site"), values, {"units": "m s-1"})}, {"time": dates})
    record.to_netcdf("in.nc", encoding={"wind": {"_FillValue": -9999.0}})
    code, out, error = command(f"assimilate {names['hybrid']} in.nc out.nc --members --state state --error 0.5")
    assert code == 0, error
    assert out.endswith("wrote out.nc\n")
    assert "\n".join(sorted(path.name for path in tmp_path.iterdir())) == "in.nc\nout.nc\nstate"
    with xr.open_dataset("out.nc") as dataset:
        written = dataset.load()
    made = assimilate_record(names["hybrid"], tmp_path / "in.nc", members=True, error=0.5)
    xr.testing.assert_identical(written.drop_attrs(), made.analysis.drop_attrs())
    assert written.attrs["filter"] == names["hybrid"]
    assert written.attrs["filter_sha256"] == sha256(checkpoint_path(names["hybrid"]))
    assert written.attrs["observations_sha256"] == sha256("in.nc")
    assert written.attrs["Conventions"].startswith("CF-1.")
    assert written["mean"].attrs["units"] == "m s-1"
    assert all(array.attrs["long_name"] for array in written.variables.values())
    assert load_state(tmp_path / "state").number == CYCLES


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("l96 in.csv out.nc", "name = 'l96' is no known filter"),
        ("../checkpoints/{hybrid} in.csv out.nc", "name = '../checkpoints/"),
        ("none.safetensors in.csv out.nc", "no checkpoint none in "),
        ("{hybrid} nothing.csv out.nc", "observations = 'nothing.csv': there is no such file."),
        (
            "{hybrid} in.csv nowhere/out.nc",
            "output = 'nowhere/out.nc' is in a folder that does not exist; make it first.",
        ),
        ("{hybrid} in.csv .", "output = '.' is a folder; it must be a file."),
        ("{hybrid} in.csv in.csv", "output = 'in.csv' is the file of observations too; take another."),
        ("{hybrid} in.csv o.nc --state ./o.nc", "output = 'o.nc' is the file of state too; take another."),
        ("{hybrid} in.csv o.nc --state in.csv", "state = 'in.csv' is the file of observations too; take another."),
        ("{hybrid} in.csv out.txt", "output = 'out.txt' ends in '.txt'; an analysis is netCDF (.nc, .nc4, "),
        ("{hybrid} in.csv out.nc --state nowhere/s", "state = 'nowhere/s' is in a folder that does not exist"),
        ("{hybrid} in.csv out.nc --variable wind", "variable = 'wind' is not in in.csv; it has observations."),
        ("{hybrid} in.csv out.nc --interval 2", "interval = '2' would be ignored: the record has no times."),
        ("{hybrid} in.csv out.nc --noise -1", "noise = -1.0 (of type float) is not allowed"),
        (
            "{hybrid} in.csv out.nc --obs_conf ful_obs",
            "obs_conf = 'ful_obs' is not registered (did you mean 'full_obs'?)",
        ),
        (
            "{recurrent} in.csv out.nc --error 2",
            "error = 2 … 2 cannot be weighed by analysis = 'recurrent', which has ",
        ),
        (
            "{hybrid} narrow.csv out.nc",
            "narrow.csv of shape (3, 2), dimensions ('time', 'site') and type int64 must be",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence_and_writes_nothing(
    command, names, values, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    np.savetxt("in.csv", values, delimiter=",", header=",".join(f"s{i}" for i in range(40)), comments="")
    (tmp_path / "narrow.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    monkeypatch.setattr("assim_lib.own.run.run_along", None)
    code, out, error = command("assimilate " + arguments.format(**names))
    assert (code, out) == (2, "")
    assert error.startswith(f"assim_lib assimilate: {sentence}")
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "narrow.csv"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"chunk": -5}, r"chunk = -5 \(of type int\) must be a whole number from 1 to 1000000"),
        ({"chunk": 1.5}, "chunk = 1.5 "),
        ({"seed": "a"}, r"seed = 'a' \(of type str\) must be a whole number from 0 to 4294967295"),
        ({"seed": -1}, "seed = -1 "),
        ({"first_cycle": -1}, "first_cycle = -1 "),
        ({"first_cycle": True}, "first_cycle = True "),
        ({"state": "."}, "state = '.' is a folder"),
        ({"drop_outlier": True}, r"Unknown parameter `drop_outlier`: did you mean `drop_outliers`\?"),
        ({"lag": 2}, "Unknown parameter `lag`: Known parameters: state, members, "),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_one_sentence(names, values, options, sentence):
    with pytest.raises(Mistake, match=f"^{sentence}"):
        prepare_record(names["hybrid"], values, **options)


def test_a_filter_that_weighs_no_errors_has_those_it_learned(names, values):
    with pytest.raises(ParameterError, match=r"^noise = 2\.5 cannot be weighed by analysis = 'recurrent', which was"):
        prepare_record(names["recurrent"], values, noise=2.5)
    prepare_record(names["hybrid"], values, noise=2.5)


def test_a_filter_is_found_by_its_path(names, values):
    path = checkpoint_path(names["hybrid"])
    made = [
        assimilate_record(name, values, **options).analysis
        for name, options in ((str(path), {}), (names["hybrid"], {"checkpoints": str(path.parent)}))
    ]
    xr.testing.assert_identical(*made)


def test_a_filter_has_the_name_of_its_file(names, values, home, tmp_path):
    for suffix in (".safetensors", ".json"):
        shutil.copy(checkpoint_path(names["hybrid"]).with_suffix(suffix), tmp_path / f"other{suffix}")
    with pytest.raises(
        ParameterError, match=r"^other.safetensors holds the filter 'l96_conv-.*; a filter has the name"
    ):
        assimilate_record(tmp_path / "other.safetensors", values)


def test_weights_are_read_once(names, values, monkeypatch):
    read, load = [], checkpoints.load_checkpoint
    monkeypatch.setattr(checkpoints, "load_checkpoint", lambda path: read.append(path) or load(path))
    prepare_record(names["recurrent"], values)
    assert len(read) == 1


def test_a_state_is_of_its_filter_its_options_and_whole(names, values, tmp_path):
    state = tmp_path / "state"
    assimilate_record(names["hybrid"], values, state=state)
    with pytest.raises(ParameterError, match=r"belongs to another filter, l96_conv-.*; take another file"):
        assimilate_record(names["moving"], values, state=state)
    with pytest.raises(ParameterError, match=r"belongs to other options, "):
        assimilate_record(names["hybrid"], values, state=state, noise=2.0)
    with pytest.raises(ParameterError, match=r"^first_cycle = 3 would be ignored"):
        assimilate_record(names["hybrid"], values, state=state, first_cycle=3)
    with pytest.raises(ParameterError, match=r"^seed = 9 would be ignored: .* holds the members that go on\.$"):
        assimilate_record(names["hybrid"], values, state=state, seed=9)
    content = bytearray(state.read_bytes())
    for at in (10, len(content) // 2, len(content) - 1):
        torn = bytearray(content)
        torn[at] ^= 1
        state.write_bytes(torn)
        with pytest.raises(
            IntegrityError, match=r"state is no state of a filter, or damaged; remove it to begin again"
        ):
            assimilate_record(names["hybrid"], values, state=state)
    state.write_bytes(content[:100])
    with pytest.raises(IntegrityError, match=r"state is no state"):
        assimilate_record(names["hybrid"], values, state=state)


def test_a_stopped_run_leaves_nothing_behind(names, values, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises((OSError, RecordError), match="No space left on device"):
        assimilate_record(names["hybrid"], values, tmp_path / "out.nc", state=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_states_know_where_they_are(names, values):
    end = assimilate_record(names["hybrid"], values).state
    assert (end.number, end.age) == (CYCLES, CYCLES)
    assert json.loads(end.options) == {"any_mask": False}
    assert replace(end, age=0).weights == sha256(checkpoint_path(names["hybrid"]))


@pytest.mark.parametrize("case", ["hybrid", "extended"])
@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_chunks_of_any_length_are_the_whole(names, values, tmp_path, monkeypatch, case, ending):
    """From file to file; with dates, a gap, errors and members."""
    monkeypatch.setattr("assim_lib.own.run.SETTLING", 2)
    dates = np.datetime64("2026-01-01", "ns") + np.delete(np.arange(CYCLES + 1), 7) * np.timedelta64(6, "h")
    error = ("time", np.linspace(0.5, 2, CYCLES))
    record = xr.Dataset({"wind": (("time", "site"), values), "error": error}, {"time": dates})
    record.to_zarr(tmp_path / "in.zarr", zarr_format=2) if ending == "zarr" else record.to_netcdf(tmp_path / "in.nc")
    whole = assimilate_record(names[case], record, members=True)
    for chunk in (1, 5, 100):
        path = tmp_path / f"out.{ending}"
        made = assimilate_record(names[case], tmp_path / f"in.{ending}", path, members=True, chunk=chunk)
        read = (xr.open_zarr if ending == "zarr" else xr.open_dataset)(path).load()
        xr.testing.assert_identical(read.drop_attrs(), whole.analysis.drop_attrs())
        xr.testing.assert_identical(read.drop_attrs(), made.analysis.load().drop_attrs())
        assert read["mean"].attrs == whole.analysis["mean"].attrs
        assert np.isfinite(made.scores.rmse)
        assert made.scores.as_dict() == pytest.approx(whole.scores.as_dict(), rel=1e-6, nan_ok=True)
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted([f"in.{ending}", path.name])
        made.analysis.close()


def test_memory_does_not_grow_with_the_record(names, tmp_path):
    """Of numbers that are read and written, a few chunks at a time; times are in memory."""
    peaks = []
    for cycles in (400, 1600):
        path = tmp_path / f"{cycles}.nc"
        with h5netcdf.File(path, "w") as file:
            file.dimensions = {"time": cycles, "site": 40}
            file.create_variable("wind", ("time", "site"), "f8")[:] = np.ones((cycles, 40))
        run = prepare_record(names["recurrent"], path, tmp_path / "out.nc", members=True, chunk=50)
        gc.collect()  # what other tests have left is no growth of this one
        tracemalloc.start()
        run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = (peaks[1] - peaks[0]) / (1600 - 400)
    assert grown < 300  # bytes a cycle, whose numbers are 40 × 8 that are read and 200 × 4 that are written


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np, xarray as xr
from assim_lib.own.clock import Clock
from assim_lib.own.output import layout, sink_of
from assim_lib.own.record import OwnRecord
record = OwnRecord(4000, None, Clock("cycle", 3999, 1), None, "a", "b")
planned = layout(record, 0, (1, 40), 0, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
part = np.ones((500, 1, 40), np.float32)
try:
    with sink_of(planned, Path(sys.argv[1])) as sink:
        for first in range(0, 4000, 500):
            sink.write(first, {name: part for name in planned.data_vars})
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def test_a_full_disk_in_the_middle_leaves_nothing_and_ends_in_a_sentence(tmp_path):
    """The netCDF library would end the program by a segmentation fault."""
    made = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "out.nc"], capture_output=True, text=True, check=True
    )
    assert made.stdout == "OSError 27\n"
    assert list(tmp_path.iterdir()) == []


def test_errors_are_looked_at_until_one_is_another():
    model = build_filter(CASES["hybrid"])
    shape = model.climatology.shape[1:]

    def part(first, last):
        assert first == 0, "all parts would be in memory at once"
        return Part(first, np.zeros((last, *shape)), np.full((1, *shape), 3.0))

    record = OwnRecord(5000, part, Clock("cycle", 0.0, 1.0), None, "a record", "")
    assert usable_error(record, model, "hybrid")

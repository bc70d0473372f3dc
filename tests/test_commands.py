"""``python -m assim_lib``: what it does is said, and what it cannot do is one sentence."""

import os
import shlex
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from small import write_result
from small_runs import tiny

from assim_lib import __main__ as commands
from assim_lib.commands.own import said_in_a_line
from assim_lib.commands.train import folder_of
from assim_lib.storage import OtherRunError, data_dir
from assim_lib.study import long_runs
from assim_lib.study.results import load_scores, read_result
from assim_lib.study.trainings import training_runs
from assim_lib.tensor_files import save_tensors
from assim_lib.training.checkpoints import load_checkpoint, stored_experiment
from assim_lib.training.experiment import ParameterError, configure
from assim_lib.training.trainer import NothingLearnedError


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("test-sets --system l97", "system = 'l97' is not registered (did you mean 'l96'?); known: "),
        ("test-sets --step-size inf", "step_size = inf must be a positive multiple"),
        ("test-sets --step-size nan", "step_size = nan must be a positive multiple"),
        ("test-sets --step-size 0.07", "step_size = 0.07 must be a positive multiple"),
        ("test-sets --system ks --step-size 1", "system = 'ks' with step_size = 1 is frozen already"),
        ("train l97", "experiment = 'l97' is not known"),
        ("train l96_conv --noise -1", "noise = -1.0 (of type float) is not allowed; noise is the observation error's"),
        ("train l96_conv --training_m 1", "training_m = 1 does not work with analysis = 'original'; "),
        ("train l96_conv --step_size 0.2", "system = 'l96' with step_size = 0.2 has no frozen test set"),
        ("test-sets --plugins no_such_module", "plugins = 'no_such_module' cannot be imported"),
        ("stress a --plugins no_such_module", "plugins = 'no_such_module' cannot be imported"),
        ("train l96_conv --plugins no_such_module", "plugins = 'no_such_module' cannot be imported: No module named"),
        ("train l96_conv --analysis hybrid", "l96_conv-full_obs-dt0.1-s1-hybrid-lag3-m10-seed0 is published already"),
        ("score nothing", "no checkpoint nothing in checkpoints: both its weights and its training log are needed."),
        ("stress nothing", "no checkpoint nothing in checkpoints"),
        ("ablate recipe nothing", "variant = 'nothing' is not known; known: recipe, "),
        ("ablate --seed 0 -1", "seed = -1 (of type int) is not allowed; seed is a whole number from 0 to 2³² − 1."),
        (
            "bench speed",
            "section 'speed' is not known; known: cycles, scaling, simulation, training, accuracy, profile.",
        ),
        ("baselines --method LETFK", "method = LETFK has no classical methods; take one of ["),
        ("baselines --system ks --m 7", "m = 7 has no classical methods; take one of ["),
    ],
)
def test_what_cannot_be_is_one_sentence(command, line, sentence):
    code, out, error = command(line)
    assert (code, out) == (2, "")
    assert error.startswith(f"assim_lib {line.split()[0]}: {sentence}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("mistake", [ParameterError, ImportError])
def test_what_is_found_while_a_command_works_is_one_sentence_as_well(command, monkeypatch, mistake):
    def refused(*_):
        raise mistake("this cannot be.")

    monkeypatch.setattr("assim_lib.study.results.write_scores", refused)
    assert command("scores") == (2, "", "assim_lib scores: this cannot be.\n")


@pytest.mark.parametrize("bug", [KeyError, IndexError])
def test_a_bug_shows_where_it_comes_from(command, monkeypatch, bug):
    def fail():
        raise bug("x")

    monkeypatch.setitem(commands.COMMANDS, "scores", (commands.COMMANDS["scores"][0], fail))
    with pytest.raises(bug):
        command("scores")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("bench scaling --largest 10", "'10' must be a whole number from 40 to 400000"),
        ("baselines --workers 0", "'0' must be a whole number from 1 to 1024"),
        ("train l96_conv --curve-points -3", "'-3' must be a whole number from 0 to 4294967295"),
        ("train l96_conv --curve-points two", "'two' must be a whole number from 0 to 4294967295"),
        ("stress a --threads 0", "'0' must be a whole number from 1 to 1024"),
        ("stress a --threads 99999", "'99999' must be a whole number from 1 to 1024"),
        ("assimilate a b.nc c.nc --seed 4294967296", "'4294967296' must be a whole number from 0 to 4294967295"),
        ("train", "the following arguments are required: experiment"),
        ("train l96_conv --noize 1", "unrecognized arguments: --noize 1 (did you mean --noise?)"),
        ("assimilate a b c --varable x", "unrecognized arguments: --varable x (did you mean --variable?)"),
        ("assimilate a b c --fill_value x --step-size 1", "argument --fill-value: invalid float value: 'x'"),
        ("train l96_conv --obs-conf x --hidden-size=y", "argument --hidden_size: invalid int value: 'y'"),
        ("train l96_conv --m ten", "argument --m: invalid int value: 'ten'"),
        ("ablate --seed one", "argument --seed: invalid int value: 'one'"),
        ("test-sets --step-size fast", "argument --step-size: invalid float value: 'fast'"),
        ("scores all", "unrecognized arguments: all"),
        ("score", "the following arguments are required: name"),
        ("examine", "argument COMMAND: invalid choice: 'examine'"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_no_argument_is_told_with_the_usage(command, line, sentence):
    code, out, error = command(line)
    assert (code, out) == (2, "")
    assert sentence in error.splitlines()[-1]


def test_a_finished_run_makes_room_when_asked(tmp_path):
    """One that is not finished stays, and another folder is named."""
    for updates, said in (
        (2, None),
        (3, "belongs to a run with other options; .* \\(another folder is --runs FOLDER\\)"),
    ):
        stored, wanted = configure(updates=updates), configure(updates=9)
        state = tmp_path / wanted.name / "state.safetensors"
        save_tensors(
            state, {"x": torch.zeros(1)}, {"experiment": stored.model_dump_json(), "progress": '{"update": 2}'}
        )
        for again in (False, True):
            with nullcontext() if again and not said else pytest.raises(OtherRunError, match=said):
                folder_of(wanted, tmp_path, again)
        assert state.exists() == bool(said)


def test_an_interrupted_command_is_one_sentence(command, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("assim_lib.study.results.write_scores", stop)
    assert command("scores") == (
        130,
        "",
        "assim_lib scores: interrupted; what is finished is kept, the same command goes on.\n",
    )


def test_warnings_are_lines_as_they_come(capsys):
    with said_in_a_line():
        warnings.warn("That is strange.", stacklevel=1)
        before = capsys.readouterr().err
    assert before == "assim_lib: That is strange.\n"
    with pytest.warns(RuntimeWarning, match="numbers"), said_in_a_line():
        warnings.warn("Strange numbers.", RuntimeWarning, stacklevel=1)


def test_what_was_there_before_was_not_written(command, monkeypatch, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (old, new):
        path.touch()
    os.utime(old, (1e9, 1e9))
    monkeypatch.setitem(
        commands.COMMANDS, "scores", (commands.COMMANDS["scores"][0], lambda: lambda: [old, new, "s3://x"])
    )
    assert command("scores")[1] == f"already there: {old}\nwrote {new}\nwrote s3://x\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("x = (\n", "SyntaxError in line 1 of own_plugin.py: '(' was never closed."),
        ("import math\nmath.no", "AttributeError in line 2 of own_plugin.py: module 'math' has no attribute 'no'."),
    ],
)
def test_a_mistake_in_a_plugin_is_one_sentence(command, monkeypatch, tmp_path, content, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_plugin.py").write_text(content)
    code, _, error = command("train l96_conv --plugins own_plugin")
    assert (code, error) == (2, f"assim_lib train: plugins = 'own_plugin' cannot be imported: {sentence}\n")


def test_every_command_says_what_it_does(command):
    for name in commands.COMMANDS:
        code, out, _ = command(f"{name} --help")
        assert code == 0
        assert out.startswith(f"usage: assim_lib {name}")
        assert f"\n{name} " in command("--help")[1]


def test_a_damaged_file_is_one_sentence(command, tmp_path, monkeypatch):
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a.safetensors").write_bytes(b"torn")
    (tmp_path / "checkpoints" / "a.json").write_text('{"sha256": "0"}')
    for line in ("score a", "stress a"):
        code, _, error = command(line)
        assert code == 2
        assert error.startswith(f"assim_lib {line.split()[0]}: a.safetensors is corrupt: ")
    write_result(tmp_path / "results", "b", m="ten")
    code, _, error = command("scores")
    assert code == 2
    assert error.startswith("assim_lib scores: b.json is no Result: m: ")


def test_a_filter_is_trained_published_scored_again_and_collected(
    command, home, unchecked_shapes, tmp_path, monkeypatch
):
    """And a run of that name with other options is not gone on with."""
    monkeypatch.chdir(tmp_path)
    chosen = tiny("recurrent", 1, updates=2)
    options = {"analysis": "recurrent", "m": 1, "updates": 2}
    options |= {k: v for k, v in chosen.model_dump().items() if v != configure(analysis="recurrent").model_dump()[k]}
    line = "train l96_conv --curve-points 1 " + " ".join(f"--{name} {value}" for name, value in options.items())
    path = home / "checkpoints" / f"{chosen.name}.safetensors"
    code, output, _ = command(line)
    assert code == 0
    assert output.startswith("cycles since seen   RMSE    bias\n")
    assert output.endswith(f"\nwrote {path}\n")
    result = read_result(home / "results" / f"{chosen.name}.json")
    assert stored_experiment(load_checkpoint(path)[1]) == chosen
    assert command(f"score {chosen.name}")[:2] == (0, output)
    assert read_result(home / "results" / f"{chosen.name}.json").test == result.test
    assert command("scores")[:2] == (0, f"wrote {home / 'results' / 'scores.csv'}\n")
    assert load_scores().checkpoint.item() == path.name
    assert command(f"{line} --batch 1 --again")[0] == 0  # the state of the finished run makes room
    stressed = []
    monkeypatch.setattr(long_runs, "stress_test", lambda name, folder: stressed.append((name, str(folder))) or path)
    assert command(f"stress {chosen.name} --runs elsewhere")[0] == 0
    assert stressed == [(chosen.name, f"elsewhere/{chosen.name}")]


def test_the_command_of_a_stored_training_repeats_it(monkeypatch):
    monkeypatch.delenv("ASSIM_DATA", raising=False)
    table = training_runs()
    assert len(table) == len(list((data_dir() / "checkpoints").glob("*.safetensors")))
    for run in table.itertuples():
        words = shlex.split(run.command)
        assert words[:4] == ["python", "-m", "assim_lib", "train"]
        arguments = commands._parsed(words[3:])
        others = ("command", "runs", "curve_points", "again", "threads", "plugins", "compiled", "graphed", "recompute")
        options = {name: value for name, value in arguments.items() if name not in others}
        chosen = configure(options.pop("experiment"), **options)
        stored = stored_experiment(load_checkpoint(data_dir() / "checkpoints" / f"{run.name}.safetensors")[1])
        assert chosen.training_m == stored.training_m or chosen.training_m == stored.m  # None: the same
        assert chosen.changed(training_m=stored.training_m) == stored, run.name


def test_a_training_that_learns_nothing_is_one_sentence(command, monkeypatch, tmp_path):
    def train(*_, **__):
        raise NothingLearnedError("no update was of use.")

    monkeypatch.setattr("assim_lib.training.run.train", train)
    monkeypatch.setattr("assim_lib.study.publish.refuse_uncommitted", lambda: None)  # of whoever is at work on it
    code, _, said = command(f"train l96_conv --seed 77 --runs {tmp_path}")
    assert (code, said) == (2, "assim_lib train: no update was of use.\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("most", "own = 'most' must be NAME=VALUE\n"),
        ("most=0.5", "own = 'most' is no option of analysis = 'hybrid', which has none of its own.\n"),
    ],
)
def test_an_option_of_an_analysis_of_ones_own_is_named_with_its_value(command, given, said):
    code, _, error = command(f"train l96_conv --analysis hybrid --own {given}")
    assert code == 2
    assert error.endswith(said)


def test_baselines_without_dapper_are_one_sentence(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "dapper.da_methods", None)
    code, _, said = command("baselines --system ks")
    assert code == 2
    assert said.startswith("assim_lib baselines: The baselines need DAPPER, which could not be imported (")
    assert said.endswith("install the extra `baselines`.\n")
    assert said.count("\n") == 1

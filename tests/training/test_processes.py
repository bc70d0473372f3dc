"""Two processes train as one does: the same weights, and a state that either goes on from."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from small import ROOT
from small_runs import QUIET, Stopped, advance, many_settings_trainer, ring_trainer, stop_after, tiny

from assim_lib.tensor_files import load_tensors
from assim_lib.training.run import train

RATES = {"lr": 1.5e-3, "adamw_lr": 1e-3, "updates": 20}
# What differs in how a batch is drawn, carried and stepped.
CASES = {
    "recurrent": (ring_trainer, ("recurrent", 4), {**RATES, "restart": 0.3, "noise_draws": "each"}),
    "dropout": (ring_trainer, ("original", 4), {**RATES, "dropout": 0.2, "optimizer": "adamw"}),
    "covariance": (ring_trainer, ("extended", 1, 1), RATES),
    "settings": (many_settings_trainer, (), RATES),
}
RUNS = ("one", "two", "begun by one", "begun by two")


def begin(folder):
    """A run that is stopped in its third update."""
    with suppress(Stopped):
        train(tiny(), folder, save_every=0.0, on_metrics=stop_after(3), **QUIET)


def train_cases(folder):
    for case, (make, arguments, options) in CASES.items():
        trainer = make(*arguments, **options)
        metrics = advance(trainer, 20)
        if trainer.processes.rank == 0:
            trainer.save(folder / f"{case}.safetensors", {"metrics": metrics})


def one_of_two(rank, folder):
    """What each of two processes does. In between they are a group, before and after it the first works alone."""
    torch.set_num_threads(1)
    one, two, begun_by_one, begun_by_two = (folder / name for name in RUNS)
    if rank == 0:
        train(tiny(), one, **QUIET)
        begin(begun_by_one)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    train_cases(two)
    train(tiny(), begun_by_one, **QUIET)
    begin(begun_by_two)
    own = folder / f"of {rank}"
    own.mkdir()
    os.chdir(own)
    _, note = train(tiny(), Path("run"), curve_points=1, save_every=0.0)
    assert len(note["history"]) == (rank == 0)
    with pytest.raises(FileNotFoundError, match=r"^the processes find the run after 8 and 0 updates; they need one"):
        train(tiny(), Path("run"), **QUIET)
    dist.destroy_process_group()
    if rank == 0:
        train_cases(one)
        train(tiny(), begun_by_two, **QUIET)


@pytest.fixture(scope="module")
def folder(home, tmp_path_factory):
    """The folder of what they did."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_of_two, (folder,), nprocs=2)
    return folder


def assert_same_weights(*paths):
    one, other = map(load_file, paths)
    assert one.keys() == other.keys()
    assert torch.equal(one["generator"], other["generator"])
    for name in (name for name in one if name.startswith("model.")):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(case, folder):
    paths = [folder / name / f"{case}.safetensors" for name in RUNS[:2]]
    assert_same_weights(*paths)
    # Neither Muon nor AdamW sees a factor on the gradient.
    one, two = (json.loads(load_tensors(path, "state")[0]["note"])["metrics"][:5] for path in paths)
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize("begun", RUNS[2:])
def test_a_run_goes_on_with_another_number_of_processes(begun, folder):
    assert_same_weights(folder / begun / "state.safetensors", folder / "one" / "state.safetensors")


def test_the_second_process_writes_nothing(folder):
    assert list((folder / "of 1").iterdir()) == []
    assert [path.name for path in (folder / "of 0").rglob("*") if path.is_file()] == ["state.safetensors"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--batch 16", "batch = 16 is not a multiple of 3, the number of processes; take 15 or 18."),
        ("--batch 2", "batch = 2 is not a multiple of 3, the number of processes; take 3."),
        (
            "--batch 3 --network ff_per_operator --dropout 0.1 --obs_conf partial_obs",
            "network = 'ff_per_operator' with dropout = 0.1 is trained by one process, and these are 3; set dropout "
            "to 0.",
        ),
    ],
)
def test_what_cannot_be_shared_is_one_sentence(command, options, sentence, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    code, _, said = command(f"train l96_conv --analysis original {options}")
    assert (code, said) == (2, f"assim_lib train: {sentence}\n")


def test_torchrun_stores_one_filter(home, tmp_path):
    """By the command, of an own record."""
    numbers = np.random.RandomState(0).normal(2, 3, (60, 40))
    pd.DataFrame(numbers, index=pd.RangeIndex(60, name="time") / 10).to_csv(tmp_path / "record.csv")
    options = "--analysis recurrent --m 2 --hidden_size 6 --blocks 1 --window 3 --batch 2 --pool 4 --updates 2 --seed 5"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"]
    train = ["assim_lib", "train", "l96_conv", "--record", "record.csv", "--checkpoints", "stored", *options.split()]
    ended = subprocess.run(
        [*torchrun, *train],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("held out:") == ended.stdout.count("wrote ") == 1
    assert len(list((tmp_path / "stored").iterdir())) == 2
    (record,) = (tmp_path / "stored").glob("*.json")
    assert json.loads(record.read_text())["provenance"]["processes"] == 2

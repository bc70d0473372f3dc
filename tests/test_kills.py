"""Killed at any moment and run again, everything comes to the same end: no half of a file is believed, nothing is lost.

A kill is SIGKILL, which nothing can catch. Some come at random moments, one at each boundary: right before a file takes
its name, and at the end. ``ASSIM_KILLS=60`` asks for so many random ones of each work, and for all boundaries, which
takes some minutes; otherwise there are a few, and the last boundaries.
"""

import json
import os
import random
import signal
import sys
import time

import jaxtyping
import numpy as np
import pytest
import xarray as xr
from small_runs import tiny

from assim_lib.assimilation import assimilate_record
from assim_lib.own.conventions import RecordError
from assim_lib.storage import sha256
from assim_lib.study.publish import publish
from assim_lib.study.results import collect
from assim_lib.tensor_files import load_tensors
from assim_lib.training.checkpoints import checkpoint_path
from assim_lib.training.run import train

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.usefixtures("home"),
    pytest.mark.filterwarnings("ignore"),
]
RANDOM_KILLS = int(os.environ.get("ASSIM_KILLS", "4"))
LAST = 3 if RANDOM_KILLS < 50 else 1000  # boundaries
IN_A_ROW = 4  # kills of one run, before it may end
TRAINED = tiny("recurrent", 1, updates=3)
DAYS, CYCLES = 3, 30


def train_and_publish(folder):
    """The state of the run is written after each update."""
    publish(TRAINED, *train(TRAINED, folder / "run", curve_points=1, save_every=0.0, progress=False))


def assimilate_day_by_day(folder):
    """From files to files, with a state; a day that the state has seen is over."""
    for day in range(DAYS):
        try:
            record, made = folder / f"{day}.nc", folder / f"made{day}.{'nc' if day % 2 else 'zarr'}"
            assimilate_record(folder / FILTER, record, made, state=folder / "state", chunk=7)
        except RecordError as error:
            if "has seen everything up to" not in str(error):
                raise


FILTER = f"{TRAINED.name}.safetensors"


@pytest.fixture(scope="module")
def started(home, tmp_path_factory):
    """What makes a new folder of data, with a record of some days and a filter for it."""
    first = tmp_path_factory.mktemp("trained")
    assert forked(train_and_publish, with_data(first, home))
    days = np.datetime64("2026-01-01", "ns") + np.arange(DAYS * CYCLES) * np.timedelta64(6, "h")
    observations = TRAINED.setting.load().observations[: len(days), 0]

    def start(name):
        folder = with_data(tmp_path_factory.mktemp(name), home)
        for suffix in (".safetensors", ".json"):
            path = (first / "checkpoints" / FILTER).with_suffix(suffix)
            (folder / path.name).write_bytes(path.read_bytes())
        for day in range(DAYS):
            rows = slice(day * CYCLES, (day + 1) * CYCLES)
            record = xr.Dataset({"wind": (("time", "site"), observations[rows])}, {"time": days[rows]})
            record.to_netcdf(folder / f"{day}.nc")
        return folder

    return start


def with_data(folder, home):
    (folder / "test_sets").symlink_to(home / "test_sets")
    return folder


def forked(work, folder, kill_after=None, kill_at=None, count=None):
    """Do some work in another process; whether it came to its end.

    Args:
        kill_after: so many seconds.
        kill_at: before the so-manieth file takes its name.
        count: a file for the number of files that took their names.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            with open(folder / "said", "w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout = sys.stderr = said
                os.environ |= {"ASSIM_DATA": str(folder), "ASSIM_CACHE": str(folder / "cache")}
                jaxtyping.config.update("jaxtyping_disable", True)
                names = killed_at(kill_at)
                work(folder)
                if count:
                    count.write_text(str(len(names)))
            code = 0
        except BaseException as error:
            (folder / "error").write_text(repr(error))
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), (folder / "error").read_text()
    return os.waitstatus_to_exitcode(status) == 0


def killed_at(boundary):
    """Count the files that take their names, and end at one of them."""
    replace, names = os.replace, []

    def counted(old, new, **options):
        if ".tmp" not in str(new):  # else inside a folder that has no name yet
            names.append(new)
            if boundary == len(names):
                os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new, **options)

    os.replace = counted
    return names


def end_of(work, folder):
    """What is there in the end, as far as it must be the same each time."""
    if work is train_and_publish:
        os.environ["ASSIM_DATA"] = str(folder)
        path = checkpoint_path(TRAINED.name)
        result = json.loads((folder / "results" / f"{TRAINED.name}.json").read_text())
        record = json.loads(path.with_suffix(".json").read_text())
        history = [(point["update"], point["loss"], point["validation_rmse"]) for point in record["history"]]
        return sha256(path), record["sha256"], result["weights"], result["test"], result["validation"], history
    made = [xr.open_dataset(folder / f"made{day}.nc" if day % 2 else folder / f"made{day}.zarr") for day in range(DAYS)]
    state = {name: part.tolist() for name, part in load_tensors(folder / "state", "state")[1].items()}
    return [one.load().to_dict() for one in made], state


def readable(folder, home):
    """After a kill, whoever looks finds whole results or none."""
    os.environ["ASSIM_DATA"] = str(folder)
    try:
        if (folder / "results").exists():
            collect()
        for day in range(DAYS):
            if (path := folder / f"made{day}.nc").exists():
                assert xr.open_dataset(path)["mean"].notnull().all()
    finally:
        os.environ["ASSIM_DATA"] = str(home)


@pytest.mark.parametrize("work", [train_and_publish, assimilate_day_by_day])
def test_killed_at_random_moments_it_comes_to_the_same_end(work, started, home, monkeypatch):
    monkeypatch.setenv("ASSIM_DATA", str(home))
    begun, whole = time.monotonic(), started("whole")
    assert forked(work, whole)
    seconds, moments = time.monotonic() - begun, random.Random(18)
    expected = end_of(work, whole)
    killed = 0
    while killed < RANDOM_KILLS:
        folder = started("killed")
        for _ in range(IN_A_ROW):
            killed += not forked(work, folder, kill_after=moments.uniform(0, seconds))
            readable(folder, home)
        assert forked(work, folder)
        np.testing.assert_equal(end_of(work, folder), expected)
    print(f"{killed} kills of {work.__name__}")


@pytest.mark.parametrize("work", [train_and_publish, assimilate_day_by_day])
def test_killed_at_each_boundary_it_comes_to_the_same_end(work, started, home, monkeypatch):
    monkeypatch.setenv("ASSIM_DATA", str(home))
    whole = started("whole")
    assert forked(work, whole, count=whole / "count")
    expected, boundaries = end_of(work, whole), int((whole / "count").read_text())
    assert boundaries > 5
    for boundary in range(max(1, boundaries - LAST + 1), boundaries + 1):
        folder = started("killed")
        assert not forked(work, folder, kill_at=boundary)
        readable(folder, home)
        assert forked(work, folder)
        np.testing.assert_equal(end_of(work, folder), expected)
    assert forked(work, folder)  # once more, when all is done
    np.testing.assert_equal(end_of(work, folder), expected)
    print(f"{boundaries} boundaries of {work.__name__}")

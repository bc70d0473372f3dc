"""What is killed, full, stale or set otherwise: nothing is lost, and nothing ends in a traceback."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import xarray as xr
from small import SETTING, Quick
from small_runs import tiny

from assim_lib import storage, trajectories
from assim_lib.storage import atomic_path, netcdf_bytes, why_not_writable, write_bytes, write_json
from assim_lib.study.results import load_scores
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import checkpoint_path, save_checkpoint
from assim_lib.trajectories import cached, load_trajectories, read_manifest, save_trajectories, simulate
from assim_lib.twin import trajectory_path


@pytest.fixture(scope="module")
def truth():
    return simulate(Quick(sites=6), 0.1, 3, 1, 0)


class KilledError(BaseException):
    """As a signal that nothing catches."""


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_killed_between_two_writes_a_truth_is_made_again(truth, tmp_path, monkeypatch, listed, again):
    path = tmp_path / "truth.nc"
    if again:
        save_trajectories(truth, path)

    def write(where, content):
        if listed:
            write_bytes(where, content)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(trajectories, "write_bytes", write)
        with pytest.raises(KilledError):
            save_trajectories(truth + 1, path)
    assert (path.name in read_manifest(tmp_path)) == (listed or again)
    with pytest.raises(FileNotFoundError):  # and not damage, which nobody may put right by making another
        load_trajectories(path)
    save_trajectories(truth, path)
    xr.testing.assert_identical(load_trajectories(path), truth)


def test_two_processes_lose_no_line_of_one_manifest(truth, tmp_path):
    threads = [threading.Thread(target=save_trajectories, args=(truth, tmp_path / f"{n}.nc")) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_manifest(tmp_path)) == sorted(f"{n}.nc" for n in range(12))


def test_what_killed_runs_left_is_swept_and_what_others_write_is_not(tmp_path):
    stale, fresh, other = (tmp_path / name for name in (".a-1.tmp", ".a-2.tmp", ".b-1.tmp"))
    for path in (stale, fresh, other):
        path.touch()
    for path in (stale, other):
        os.utime(path, (time.time() - 2 * storage.STALE,) * 2)
    with atomic_path(tmp_path / "a.json") as temporary:
        temporary.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a-2.tmp", ".b-1.tmp", "a.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_of_the_system_and_no_crash(truth):
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as disk:
        disk.write(netcdf_bytes(truth))


def test_where_nothing_can_be_written_is_known_before(tmp_path, monkeypatch):
    assert why_not_writable(tmp_path / "new" / "file.json") == ""
    with monkeypatch.context() as patch:  # another process has asked, and removed what both wrote
        patch.setattr(storage, "atomic_path", lambda _: nullcontext(tmp_path / "probe"))
        assert why_not_writable(tmp_path / "file.json") == ""
    assert list((tmp_path / "new").iterdir()) == []
    assert why_not_writable(tmp_path) == "it is a folder"
    (tmp_path / "file").touch()
    assert why_not_writable(tmp_path / "file" / "x") != ""


@pytest.mark.parametrize("line", ["train l96_conv --runs", "stress a --runs", "train l96_conv --checkpoints"])
def test_a_run_that_could_not_be_kept_does_not_begin(command, line):
    code, _, error = command(f"{line} /dev/null/x")
    assert code == 2
    option = line.split()[-1]
    assert f"argument {option}: '/dev/null/x' cannot be written to: /dev/null is no folder that can" in error


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"sha256": 3}', b'{"experiment": {}}'])
def test_a_record_that_is_none_is_named(command, tmp_path, monkeypatch, content):
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a.safetensors").write_bytes(b"torn")
    (tmp_path / "checkpoints" / "a.json").write_bytes(content)
    code, _, error = command("score a")
    assert code == 2
    assert error.startswith("assim_lib score: a.")
    assert error.count("\n") == 1


def test_a_name_that_leads_out_of_the_project_is_not_followed(home, command, unchecked_shapes):
    chosen = tiny(updates=2)
    path = checkpoint_path(chosen.name)
    save_checkpoint(build_filter(chosen), path, {"experiment": chosen.model_dump()})
    record = json.loads(path.with_suffix(".json").read_text())
    try:
        for name, said in [
            ("../../../x", "experiment = '../../../x' "),
            ("losses", f"{chosen.name}.safetensors holds the filter"),
        ]:
            write_json(
                path.with_suffix(".json"), {**record, "experiment": {**record["experiment"], "experiment": name}}
            )
            code, _, error = command(f"score {chosen.name}")
            assert code == 2
            assert error.startswith(f"assim_lib score: {said}")
            assert error.count("\n") == 1
    finally:
        path.unlink()
        path.with_suffix(".json").unlink()


def test_a_system_of_ones_own_may_have_settings_of_any_type(own_cache, readers_cell):
    @dataclass(frozen=True)
    class Odd(Quick):
        sites: int = 6
        wet: bool = True
        nothing: object = None
        several: dict = field(default_factory=lambda: {"a": [1, 2.5]}, hash=False)
        name = "odd"

    first = cached(Odd(), 0.1, 3, 1, 0)
    assert (first.wet, first.nothing, first.several) == ("true", "null", '{"a": [1, 2.5]}')
    xr.testing.assert_identical(cached(Odd(), 0.1, 3, 1, 0), first)
    assert cached(Odd(wet=False), 0.1, 3, 1, 0).wet == "false"


def test_a_console_of_few_letters_shows_the_help():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = subprocess.run(
        [sys.executable, "-m", "assim_lib", "train", "--help"], capture_output=True, env=environment, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert b"a whole number from 0 to" in b" ".join(shown.stdout.split())


def test_a_truth_that_is_lost_is_made_again_as_it_was_or_not_at_all(truth, tmp_path):
    """Chaos: on another machine it is another one, and the scores refer to that of the line."""
    path = tmp_path / "truth.nc"
    save_trajectories(truth, path)
    path.unlink()
    with pytest.raises(storage.IntegrityError, match=r"^truth\.nc is missing, and comes out otherwise on this machine"):
        save_trajectories(truth + 1, path, again=False)
    assert not path.exists()
    save_trajectories(truth, path, again=False)
    xr.testing.assert_identical(load_trajectories(path), truth)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied", "/x/.a-1.tmp")]
)
def test_what_cannot_be_written_is_named_and_in_one_sentence(command, tmp_path, monkeypatch, error):
    """By the command too; not by its temporary name, whatever the system says."""

    def write():
        with atomic_path(tmp_path / "a.json"):
            raise error

    monkeypatch.setattr("assim_lib.study.results.write_scores", write)
    code, _, said = command("scores")
    assert code == 2
    assert said == (
        f"assim_lib scores: {tmp_path}/a.json cannot be read or written: {error.strerror}; see that it may be and that "
        "there is room, then run the command again.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_run_of_another_and_a_damaged_plan_are_one_sentence(command, tmp_path, monkeypatch):
    def refused(*_):
        raise storage.OtherRunError("it belongs to another run.")

    plan = tmp_path / "ablation" / "recipe-seed7" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"{")
    assert command(f"ablate recipe --seed 7 --runs {tmp_path}")[2].startswith(
        "assim_lib ablate: plan.json is no Plan: "
    )
    monkeypatch.setattr("assim_lib.study.ablation.ablate", refused)
    assert command("ablate recipe --seed 7")[::2] == (2, "assim_lib ablate: it belongs to another run.\n")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"step_size,noise\nx,1\n"])
def test_a_damaged_table_of_scores_is_one_sentence(tmp_path, monkeypatch, content):
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "scores.csv").write_bytes(content)
    with pytest.raises(storage.IntegrityError, match=r"^scores\.csv is damaged \([^\n]+; make it again with [^\n]+$"):
        load_scores()


@pytest.mark.parametrize(("lost", "left"), [("test", "validation"), ("validation", "test")])
def test_beside_one_frozen_truth_no_other_is_simulated(truth, tmp_path, monkeypatch, lost, left):
    """File and line are lost; the other split says that they were there."""
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ASSIM_CACHE", str(tmp_path / "cache"))
    save_trajectories(truth, trajectory_path("l96", 0.1, left))
    with pytest.raises(
        storage.IntegrityError, match=rf"^l96-dt0\.1-{lost}\.nc is missing beside the other truth of its"
    ):
        SETTING.load(lost)
    assert not (tmp_path / "cache").exists()

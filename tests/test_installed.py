"""The package as it is installed from a wheel, in an empty folder: what a reader without a checkout can do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import ROOT

NAME = "l96_any-144settings-extended-lag2-m1-seed0"
SIZES = "--analysis recurrent --m 1 --hidden_size 6 --blocks 1 --memory 3 --updates 3 --window 4 --lag 0"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs a program of the installed package: what it prints."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheel", ROOT]
    subprocess.run([*pip, *built], check=True, capture_output=True)
    (wheel,) = (folder / "wheel").glob("*.whl")
    packages, empty = folder / "packages", folder / "empty"
    subprocess.run([*pip, "install", "--no-deps", "--target", packages, wheel], check=True, capture_output=True)
    wheel.unlink()
    empty.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASSIM", "PYTEST"))}
    home = {**kept, "PYTHONPATH": str(packages), "ASSIM_CACHE": str(folder / "cache")}

    def run(*command, code=0, **environment):
        ran = subprocess.run(command, cwd=empty, env={**home, **environment}, capture_output=True, text=True)
        assert ran.returncode == code, ran.stderr
        return ran.stdout if code == 0 else ran.stderr

    run.program, run.folder = str(packages / "bin" / "assim-lib"), empty
    return run


@pytest.fixture(scope="module")
def record(installed):
    """A file of observations in the empty folder."""
    where = installed(
        sys.executable,
        "-c",
        "import assim_lib, numpy\n"
        "observations = assim_lib.Setting('l96').load().observations[:300, 0]\n"
        "numpy.savetxt('mine.csv', observations, delimiter=',', header=','.join(map(str, range(40))), comments='')\n"
        "print(assim_lib.__file__)",
    )
    assert Path(where.strip()).is_relative_to(installed.folder.parent)
    return "mine.csv"


def test_a_record_is_assimilated(installed, record):
    said = installed(installed.program, "assimilate", NAME, record, "analysis.nc", "--state", "state")
    assert said.startswith("error: 1, the filter's own; the record has none\ninnovation RMSE ")
    assert said.endswith("wrote analysis.nc\n")


def test_a_filter_is_trained_on_it_and_used(installed, record):
    """It goes to a folder of the reader's own, where the package is not written to."""
    mine = {"ASSIM_DATA": str(installed.folder / "mine")}
    line = f"train l96_conv --record {record} --error 1 {SIZES}".split()
    path = Path(installed(installed.program, *line, **mine).splitlines()[-1].removeprefix("wrote "))
    assert path.parent == installed.folder / "mine" / "checkpoints"
    load = "import sys, assim_lib; print(assim_lib.load_filter(assim_lib.checkpoint_path(sys.argv[1]))[0].record)"
    assert installed(sys.executable, "-c", load, path.stem, **mine).startswith("mine-")
    assert installed(installed.program, "assimilate", path.stem, record, "own.zarr", **mine).endswith("own.zarr\n")


def test_where_nothing_can_be_stored_nothing_is_trained(installed, record):
    line = f"train l96_conv --record {record} --error 1 --seed 1 {SIZES}".split()
    said = installed(installed.program, *line, code=2, ASSIM_DATA="/dev/null/mine")
    assert said.startswith("assim_lib train: /dev/null/mine/checkpoints/l96_conv-")
    assert "name it by the environment variable ASSIM_DATA" in said
    assert said.count("\n") == 1
    assert not [path.name for path in installed.folder.glob("runs/*") if "seed1" in path.name]

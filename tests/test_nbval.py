"""nbval as a test that can fail: the committed outputs on another processor, and with a number changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# One that simulates, one that trains, one with Fourier transforms: nbval itself runs all of them, here as elsewhere.
SENSITIVE = ("01_data", "03_l96_conv", "04_ks")


def nbval(path: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", path]
    settings = {"cwd": NOTEBOOKS.parent, "env": os.environ | environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


@pytest.mark.parametrize("name", SENSITIVE)
def test_committed_outputs_hold_on_another_processor(name):
    other = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}
    run = nbval(NOTEBOOKS / f"{name}.ipynb", **other)
    assert run.returncode == 0, run.stdout[-3000:]


def test_nbval_notices_a_changed_number(tmp_path):
    copy = tmp_path / "01_data.ipynb"
    text = (NOTEBOOKS / "01_data.ipynb").read_text()
    assert "climatological mean 2.3" in text
    copy.write_text(text.replace("climatological mean 2.3", "climatological mean 2.4"))
    run = nbval(copy)
    assert run.returncode == 1
    assert "1 failed" in run.stdout

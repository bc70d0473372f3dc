"""nbval as a test that can fail: the committed outputs on another processor, and with a number changed."""

import os
import subprocess
import sys
from pathlib import Path

from small import ROOT

OTHER_PROCESSOR = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}


def nbval(name: str, folder: Path, old: str = "", new: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Compare a copy of a notebook with what it makes now; a line of it may be another."""
    copy = folder / f"{name}.ipynb"
    text = (ROOT / "notebooks" / copy.name).read_text()
    assert old in text
    copy.write_text(text.replace(old, new))
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", copy]
    settings = {"cwd": ROOT, "env": os.environ | environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def test_committed_outputs_hold_on_another_processor(tmp_path):
    """Those of runs of many chaotic filters; `.github/workflows/newest.yml` does it with all notebooks."""
    run = nbval("10_robustness", tmp_path, **OTHER_PROCESSOR)
    assert run.returncode == 0, run.stdout[-3000:]


def test_nbval_notices_a_changed_number(tmp_path):
    run = nbval("11_recipe", tmp_path, "10 minutes of one core", "11 minutes of one core")
    assert run.returncode == 1
    assert "1 failed" in run.stdout

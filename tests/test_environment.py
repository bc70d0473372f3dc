"""The three places that name versions (pyproject.toml, constraints.txt, environment.yml) agree."""

import re

import lock
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from small import ROOT

PINS = lock.read_constraints((ROOT / "constraints.txt").read_text())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def test_constraints_hold_public_pins_and_nothing_else():
    """No local suffix, hash, address or path of the machine that wrote them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) == len(PINS) > 0
    assert [line for line in pins if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line)] == []


@pytest.mark.parametrize("requirement", lock.direct_requirements(), ids=str)
def test_constraints_satisfy_what_the_project_asks_for(requirement: Requirement):
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(Version(pin), prereleases=True)


def test_conda_environment_has_the_same_versions():
    (pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    pins = dict(line.split("==") for line in pip if "==" in line)
    direct = {canonicalize_name(requirement.name) for requirement in lock.direct_requirements()}
    assert pins == {name: PINS[name] for name in direct}
    assert "-c constraints.txt" in pip
    assert "-e ." in pip


def test_conda_environment_is_what_make_lock_writes():
    (python,) = (entry.split("=")[1] for entry in CONDA["dependencies"] if str(entry).startswith("python="))
    assert (ROOT / "environment.yml").read_text() == lock.environment(PINS, python)


def test_pre_commit_runs_the_locked_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (revision,) = (repo["rev"] for repo in hooks["repos"] if "ruff" in repo["repo"])
    assert revision == f"v{PINS['ruff']}"

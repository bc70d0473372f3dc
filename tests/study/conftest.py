"""Fixtures of tests of what is stored."""

from pathlib import Path

import pytest


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results."""
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    return tmp_path / "results"

"""What the library's tests rely on: one thread, and a cache of their own."""

import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from browsing import started
from playwright.sync_api import Browser

from assim_lib.analyses import ANALYSES
from assim_lib.evaluation import BLOCK
from assim_lib.networks import NETWORKS
from assim_lib.observations import OBS_CONFS
from assim_lib.storage import PACKAGE
from assim_lib.systems import SYSTEMS
from assim_lib.trajectories import load_trajectories, save_trajectories
from assim_lib.twin import BURN_IN, TwinExperiment

# Sums in another order round differently: tests that compare bits need one thread.
torch.set_num_threads(1)

# A script's background job ignores Ctrl-C, and so would the processes that tests start to stop them by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def own_cache(cache_folder: Path) -> Iterator[Path]:
    """Nothing of a module that uses this comes from the reader's cache, and nothing goes there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSIM_CACHE", str(cache_folder))
        yield cache_folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with started() as chromium:
        yield chromium


@pytest.fixture
def readers_cell() -> Iterator[None]:
    """What a test registers, as a reader does in a notebook, is gone after it."""
    registries = (SYSTEMS, OBS_CONFS, NETWORKS, ANALYSES)
    before = [dict(registry) for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        registry.clear()
        registry.update(names)


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are checked under pytest alone: what a reader meets who passes a wrong one."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[[str], tuple[Any, str, str]]:
    """A function that runs a command: its exit code, and what it prints."""
    from assim_lib.__main__ import main

    def run(line: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["assim_lib", *shlex.split(line)])
        code: Any = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def short_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of each of the frozen truths, as long as scores and intervals need."""
    folder = tmp_path_factory.mktemp("short")
    cycles = BURN_IN + 2 * BLOCK
    for path in (PACKAGE.parent / "data" / "test_sets").glob("*.nc"):
        whole = load_trajectories(path)
        save_trajectories(whole.isel(time=slice(cycles + 1), cycle=slice(cycles)), folder / path.name)
    return folder


@pytest.fixture(scope="module")
def home(short_sets: Path, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A reader's folder of data that holds short test sets and nothing else, and systems that are soon on their
    attractors: enough to train and to score."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(short_sets, folder / "test_sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSIM_DATA", str(folder))
        for system in SYSTEMS.values():
            patch.setattr(system, "spinup", min(system.spinup, 20.0 if system.name == "ks" else 4.0))
        # A filter of a few updates never finds the truth, and is to be published all the same.
        patch.setattr(TwinExperiment, "loses", lambda *_: False)
        yield folder

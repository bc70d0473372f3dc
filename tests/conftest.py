"""What the library's tests rely on: one thread, and a cache of their own."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

# Sums in another order round differently: tests that compare bits need one thread.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def own_cache(cache_folder: Path) -> Iterator[Path]:
    """Nothing of a module that uses this comes from the reader's cache, and nothing goes there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASSIM_CACHE", str(cache_folder))
        yield cache_folder


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are checked under pytest alone: what a reader meets who passes a wrong one."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

"""A file is whole or not there, and is what its checksum says."""

import hashlib
import json
import shutil
import subprocess
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from assim_lib import storage
from assim_lib.storage import (
    IntegrityError,
    atomic_folder,
    atomic_path,
    cache_dir,
    content_key,
    data_dir,
    provenance,
    sha256,
    verify,
    write_json,
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "new" / "folder"


def copy_of_the_module(package):
    """As it is where it is installed elsewhere."""
    package.mkdir(parents=True, exist_ok=True)
    specification = spec_from_file_location("copied", shutil.copy(storage.__file__, package / "storage.py"))
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_complete_file_gets_its_name(folder):
    with atomic_path(folder / "a.txt") as temporary:
        assert temporary.parent == folder
        temporary.write_text("new")
        assert not list(folder.glob("*.txt"))  # who lists the folder meets nothing that is half there
    assert contents(folder) == {"a.txt": "new"}
    assert (folder / "a.txt").stat().st_mode & 0o777 == 0o644


def write_folder(path, text, broken=False):
    with atomic_folder(path) as temporary:
        (temporary / "part").write_text(text)
        if broken:
            raise ValueError


def test_a_folder_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    write_folder(path, "old")
    with pytest.raises(ValueError, match=r"^$"):
        write_folder(path, "torn", broken=True)
    assert (path / "part").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]
    # As it is after a kill between the two renames.
    path.rename(tmp_path / ".a.zarr.old")
    with pytest.raises(ValueError, match=r"^$"):
        write_folder(path, "torn", broken=True)
    assert (path / "part").read_text() == "old"
    write_folder(path, "new")
    assert (path / "part").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [{}, {"a.txt": "old"}])
def test_an_interrupted_write_changes_nothing(folder, before, error):
    folder.mkdir(parents=True)
    for name, text in before.items():
        (folder / name).write_text(text)

    def write_and_fail():
        with atomic_path(folder / "a.txt") as temporary:
            temporary.write_text("half of")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert contents(folder) == before


def test_what_json_cannot_hold_is_not_half_written(folder):
    write_json(folder / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(folder / "a.json", {"x": 2, "y": object()})
    assert json.loads((folder / "a.json").read_text()) == {"x": 1}
    assert len(contents(folder)) == 1


def test_checksums_are_sha_256(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    verify(tmp_path / "a", hashlib.sha256(content).hexdigest())


def test_one_changed_byte_is_one_clear_sentence(tmp_path):
    content = bytearray(5000)
    path = tmp_path / "numbers.nc"
    path.write_bytes(content)
    expected = sha256(path)
    content[4321] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"^numbers\.nc is corrupt: [^\n]+ restore it from the repository\.$") as e:
        verify(path, expected)
    assert expected[:12] in str(e.value)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs the tool sha256sum")
def test_manifests_can_be_verified_without_the_library():
    for manifest in data_dir().rglob("SHA256SUMS"):
        subprocess.run(["sha256sum", "--check", "--strict", manifest.name], cwd=manifest.parent, check=True)


def test_equal_configurations_share_a_key_and_only_they():
    base = {"system": "l96", "dt": 0.05, "seed": [1, 0], "cycles": 10}
    assert content_key(base) == content_key(dict(reversed(base.items())))
    changed = [{**base, "dt": 0.0500001}, {**base, "seed": [1, 1]}, {**base, "cycles": "10"}, {**base, "extra": None}]
    assert len({content_key(c) for c in (base, *changed)}) == 5


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_of_a_large_array_every_number_counts(kind):
    """Shown, they would look the same."""
    base = np.zeros(10_000)
    changed = [base.copy() for _ in range(2)]
    changed[0][5000] = 1e-9
    changed[1] = changed[1].reshape(100, 100)
    assert len({content_key({"field": kind(array)}) for array in (base, *changed)}) == 3
    assert content_key({"field": kind(base)}) == content_key({"field": kind(base.copy())})


def test_data_are_beside_the_package_in_a_checkout_and_inside_it_when_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("ASSIM_DATA", raising=False)
    package = tmp_path / "somewhere" / "assim_lib"
    copied = copy_of_the_module(package)
    assert copied.data_dir() == package / "_data"
    (tmp_path / "somewhere" / "data").mkdir()
    assert copied.data_dir() == tmp_path / "somewhere" / "data"
    assert data_dir() == Path(storage.__file__).parents[1] / "data"


def test_folders_are_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSIM_CACHE", str(tmp_path))
    monkeypatch.setenv("ASSIM_DATA", "~/assim")
    assert (cache_dir(), data_dir()) == (tmp_path, Path.home() / "assim")
    monkeypatch.delenv("ASSIM_CACHE")
    assert cache_dir().parts[-2:] == (".cache", "assim_lib")


def test_a_result_says_where_it_comes_from():
    origin = provenance("cuda")
    assert json.loads(json.dumps(origin)) == origin
    assert origin["device"] == "cuda"
    assert {"torch", "numpy"} <= {name for name, version in origin["versions"].items() if version}
    assert origin["commit"]


def test_without_git_or_a_checkout_of_its_own_there_is_no_commit(tmp_path, monkeypatch):
    installed = copy_of_the_module(tmp_path)
    assert installed.provenance()["commit"] == "not a checkout"
    run = partial(subprocess.run, check=True, cwd=tmp_path, capture_output=True)
    run(["git", "init"])
    run(["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "--allow-empty", "-m", "theirs"])
    in_another_repository = copy_of_the_module(tmp_path)
    assert in_another_repository.provenance()["commit"] == "not a checkout"
    run(["git", "add", "storage.py"])
    changed = copy_of_the_module(tmp_path)
    assert changed.provenance()["commit"].endswith("-dirty")  # not committed yet
    monkeypatch.delenv("ASSIM_DATA", raising=False)
    with pytest.raises(PermissionError, match=r"^assim_lib has changes that are not committed, .* ASSIM_DATA\.$"):
        changed.refuse_uncommitted()
    monkeypatch.setenv("ASSIM_DATA", str(tmp_path))
    changed.refuse_uncommitted()
    monkeypatch.setenv("PATH", "")
    assert copy_of_the_module(tmp_path).provenance()["commit"] == "not a checkout"


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1.5, float("nan"), {"b": float("inf")}], "c": "NaN", "d": True})
    strict = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert strict == {"a": [1.5, None, {"b": None}], "c": "NaN", "d": True}

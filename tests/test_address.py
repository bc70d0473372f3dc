"""The public address of the repository, and the first cell of every notebook, which installs the library on Colab."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import address
import pytest
import torch
import yaml
from small import ROOT

URL = "https://github.com/somebody/something"
OUTSIDE = re.compile(r"github\.com/|colab\.research|mybinder")
NOTEBOOKS = {path.stem: path.read_text() for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
Run = Callable[[str], dict[str, Any]]


def code(text: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """All that shows the address, in a folder of its own."""
    for path in address.files(ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in address.files(root)}


def texts(root: Path) -> dict[str, str]:
    """By name, without the address that the README gives as an example."""
    return {path.name: path.read_text().replace("https://github.com/owner/repo", "") for path in address.files(root)}


@pytest.mark.parametrize("path", address.files(ROOT), ids=lambda path: path.name)
def test_what_is_committed_shows_the_address_that_is_set(path: Path):
    text = path.read_text()
    assert address.files(ROOT)[path](text, address.current(ROOT)) == text, "run `make address`"


def test_where_one_file_cannot_be_written_none_is(copy: Path, monkeypatch: pytest.MonkeyPatch):
    address.stamp(copy, "")
    before, written = contents(copy), iter(range(9))

    def full(path: Path, text: str, **options: Any) -> int:
        if next(written) == 2:
            raise OSError(28, "No space left on device")
        return path.write_bytes(text.encode())

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        address.stamp(copy, URL)
    assert contents(copy) == before
    assert not list(copy.rglob("*.tmp"))


def test_setting_an_address_and_taking_it_out_again_leaves_nothing(copy: Path):
    address.stamp(copy, "")
    unset = contents(copy)
    assert address.stamp(copy, "") == 0
    assert address.stamp(copy, URL) == len(unset)
    assert address.current(copy) == URL
    assert address.stamp(copy, URL) == 0
    address.stamp(copy, "https://github.com/somebody/else")
    address.stamp(copy, "")
    assert contents(copy) == unset


def test_without_an_address_nothing_points_outside(copy: Path):
    address.stamp(copy, "")
    assert [name for name, text in texts(copy).items() if OUTSIDE.search(text)] == []


def test_with_an_address_everything_points_there(copy: Path):
    address.stamp(copy, URL)
    written = texts(copy)
    assert [name for name, text in written.items() if "/somebody/something" not in text] == []
    links = {
        link
        for text in written.values()
        for link in re.findall(r"(?:github\.com|\.com/github|v2/gh)/([\w-]+/[\w-]+)", text)
    }
    assert links == {"somebody/something"}
    config = yaml.safe_load(written["_config.yml"])
    assert config["repository"] == {"url": URL, "branch": "main"}
    assert config["launch_buttons"]["colab_url"] == "https://colab.research.google.com"
    assert yaml.safe_load(written["CITATION.cff"])["repository-code"] == URL


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_other_cells_stay_as_they_are(name: str):
    before = [cell for cell in json.loads(NOTEBOOKS[name])["cells"] if cell["id"] != "colab"]
    title, cell, *others = json.loads(address.notebook(NOTEBOOKS[name], URL))["cells"]
    assert [title, *others] == before
    assert title["cell_type"] == "markdown"
    assert len([line for line in cell["source"] if line.strip()]) <= 12


@pytest.mark.parametrize(
    "wrong", ["github.com/a/b", "http://github.com/a/b", "https://github.com/a", "https://example.org/a/b", "a b"]
)
def test_a_wrong_address_is_one_sentence(wrong: str):
    run = subprocess.run([sys.executable, ROOT / ".ci" / "address.py", wrong], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == f"{wrong} is no address of a repository: it should look like https://github.com/owner/repo.\n"


def test_an_address_is_taken_as_browsers_and_git_show_it():
    assert {address.checked(f"{URL}{end}") for end in ("", "/", ".git", ".git/")} == {URL}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be installed, where neither the library nor DAPPER is."""
    commands: list[list[str]] = []
    find_spec = importlib.util.find_spec

    def find(name: str) -> Any:
        return None if name in ("assim_lib", "dapper", "fastparquet") and not commands else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(subprocess, "check_call", commands.append)
    return commands


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the module that says that this is Colab."""
    (tmp_path / "colab" / "google" / "colab").mkdir(parents=True)
    (tmp_path / "colab" / "google" / "colab" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "colab")
    for name in [name for name in sys.modules if name.split(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "colab"


@pytest.mark.parametrize("url", ["", URL])
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_elsewhere_the_cell_does_nothing(name: str, url: str, installed, capfd):
    namespace: dict[str, Any] = {}
    exec(code(address.notebook(NOTEBOOKS[name], url))[0], namespace)
    assert installed == []
    assert capfd.readouterr() == ("", "")
    # Whatever else had a name would be taken for a parameter.
    values = [value for key, value in namespace.items() if not key.startswith("_")]
    assert [value for value in values if not isinstance(value, ModuleType) and not callable(value)] == []


@pytest.mark.parametrize(("cuda", "device"), [(True, "cuda"), (False, "cpu")])
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_on_colab_the_cell_installs_what_the_notebook_needs(
    name: str, cuda: bool, device: str, colab, installed, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    namespace: dict[str, Any] = {}
    first, *others = code(address.notebook(NOTEBOOKS[name], URL))
    exec(first, namespace)
    (command,) = installed
    assert command[:4] == [sys.executable, "-mpip", "install", "-q"]
    extra = next((f"[{extra}]" for name, (extra, _) in address.EXTRAS.items() if name in "".join(others)), "")
    kept = [f"{name}=={version(name)}" for name in ("numpy", "torch")]
    assert command[4:] == [*kept, f"amortized-assimilation{extra} @ git+{URL}"]
    assert capsys.readouterr().out == f"device: {device}\n"
    assert not [key for key in namespace if not key.startswith("_") and isinstance(namespace[key], str | list)]
    exec(first, {})
    assert len(installed) == 1, "what is installed already is not installed again"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_needs_no_file_that_lies_beside_it(name: str):
    """On Colab it is alone: what it names is in the package's data, or it has made it."""
    words = [
        node.value
        for source in code(NOTEBOOKS[name])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value
    ]
    beside = [folder / word for word in words for folder in (ROOT, ROOT / "notebooks", ROOT / "data")]
    made = ROOT / "notebooks" / "runs"  # what a run leaves
    assert [path for path in beside if path.suffix and path.is_file() and made not in path.parents] == []


def test_without_an_address_the_cell_says_so_on_colab(colab, installed):
    with pytest.raises(SystemExit, match=r"^No public address is set: run `make address URL=…` in the repository\.$"):
        exec(address.setup("", ""), {})
    assert installed == []


def test_only_notebooks_that_install_dapper_import_it():
    """All imports of the others, in an interpreter that has none."""
    imports = {
        ast.unparse(line)
        for text in NOTEBOOKS.values()
        if "[baselines]" not in code(address.notebook(text, URL))[0]
        for line in ast.walk(ast.parse("\n".join(code(text))))
        if isinstance(line, ast.ImportFrom | ast.Import) and "assim_lib" in ast.unparse(line)
    }
    program = "\n".join(["import sys", "sys.modules['dapper'] = None", *sorted(imports)])
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


def test_a_notebook_alone_in_an_empty_folder_installs_the_library_with_its_data(tmp_path: Path, colab: Path):
    """pip itself, from a local repository, into an environment that has all but the library."""
    pytest.importorskip("hatchling")
    repository, environment, folder = (tmp_path / name for name in ("repository", "environment", "alone"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        repository.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, repository)
    shutil.copytree(ROOT / "assim_lib", repository / "assim_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (repository / "data" / "test_sets").mkdir(parents=True)
    for path in (ROOT / "data" / "test_sets").iterdir():
        if path.suffix != ".nc" or path.name.startswith("l96-dt0.1"):
            shutil.copy(path, repository / "data" / "test_sets")
    (repository / "data" / "results").mkdir()
    shutil.copy(ROOT / "data" / "results" / "scores.csv", repository / "data" / "results")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "test"]):
        subprocess.run([*git, *command], cwd=repository, check=True)

    venv.create(environment, with_pip=False, symlinks=True)
    packages = next(environment.glob("lib/python3.*/site-packages"))
    for path in (entry for site in sys.path if site.endswith("site-packages") for entry in Path(site).iterdir()):
        if path.suffix != ".pth" and not path.name.startswith(("assim_lib", "amortized_assimilation")):
            (packages / path.name).symlink_to(path)
    python = str(environment / "bin" / "python")
    folder.mkdir()
    settings = {
        "PYTHONPATH": str(colab),
        # git finds the public address here.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": URL,
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip reads it, 0 means no isolation
        "OMP_NUM_THREADS": "1",
    }
    here = {"cwd": folder, "env": os.environ | settings, "capture_output": True, "text": True, "check": False}
    assert "No module named" in subprocess.run([python, "-c", "import assim_lib"], **here).stderr

    # Up to where the frozen data are loaded; the rest of the notebook knows nothing of where it runs.
    notebook = json.loads(address.notebook(NOTEBOOKS["01_data"], URL))
    loads = next(i for i, cell in enumerate(notebook["cells"]) if ".load()" in "".join(cell["source"]))
    (folder / "01_data.ipynb").write_text(json.dumps(notebook | {"cells": notebook["cells"][: loads + 1]}))
    run = subprocess.run([python, "-m", "papermill", "01_data.ipynb", "out.ipynb", "--no-progress-bar"], **here)
    assert run.returncode == 0, run.stderr[-2000:]
    executed = [cell for cell in json.loads((folder / "out.ipynb").read_text())["cells"] if "outputs" in cell]
    assert "".join(executed[0]["outputs"][-1]["text"]).startswith("device: ")
    assert (packages / "assim_lib" / "_data" / "test_sets").is_dir()

"""What the documents say of the code is true: names, commands, folders, and the order of the chapters."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from assim_lib.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "book").glob("*.md"))]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PYTHON = [
    pytest.param(block, id=f"{path.parent.name}/{path.name}:{number}")
    for path in DOCUMENTS
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", PYTHON)
def test_what_a_document_imports_is_there(block: str):
    tree = ast.parse(block)
    imports = [line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "document", "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_commands_that_are_there(path: Path):
    text = path.read_text()
    assert set(re.findall(r"python -m assim_lib ([a-z][a-z-]*)", text)) <= COMMANDS.keys()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_the_readme_names_every_command():
    assert set(re.findall(r"python -m assim_lib ([a-z][a-z-]*)", (ROOT / "README.md").read_text())) == COMMANDS.keys()


def test_what_is_where_names_what_is_there():
    table = (ROOT / "README.md").read_text().split("## What is where")[1].split("##")[0]
    paths = [path for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for path in re.findall(r"`(.+?)`", row)]
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_reference_lists_every_public_module():
    documented = set(re.findall(r"automodule:: ([\w.]+)", (ROOT / "book" / "api.md").read_text()))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "assim_lib").rglob("*.py")
        if not path.stem.startswith("_")
    }
    assert documented == modules


def test_file_numbers_show_the_order_of_the_chapters():
    """Where a page stands that does not run, its neighbours' numbers still go up by one."""
    files = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
    numbers = [int(match[1]) for file in files if (match := re.match(r"notebooks/(\d\d)_", file))]
    assert numbers == list(range(len(list((ROOT / "notebooks").glob("*.ipynb")))))

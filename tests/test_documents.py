"""What the documents say of the code is true: names, commands, folders, and the order of the chapters."""

import ast
import json
import re
from pathlib import Path

import pytest
from small import NOTEBOOKS, ROOT, TOC

from assim_lib.__main__ import COMMANDS
from assim_lib.setting import places
from assim_lib.study.facts import facts
from assim_lib.study.summaries import headline

DOCUMENTS = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "book").glob("*.md"))]
# Chapters whose findings are made on the page itself.
WITHOUT_SCORES = {"02", "12"}
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


@pytest.mark.parametrize("name", ["classical", "learning", "structure"])
def test_solutions_of_exercises_hold(name: str):
    """Their code runs, and what it asserts is so."""
    exercises = (ROOT / "book" / f"{name}.md").read_text().split("## Exercises")[1]
    blocks = re.findall(r"```python\n(.*?)```", exercises, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {})


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


def prose_of(page: str) -> str:
    """The Markdown of a page of the contents."""
    notebook = ROOT / f"{page}.ipynb"
    if not notebook.exists():
        return (ROOT / f"{page}.md").read_text()
    cells = json.loads(notebook.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


PAGES = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
# Those that are read one after the other; what comes after them is looked up.
READ = PAGES[: PAGES.index("book/promises")]


def pages_named(prose: str) -> list[str]:
    """Names of the pages that a text links to, in its order, without their folders."""
    return [link.rpartition("/")[2] for link in re.findall(r"\{doc\}`(?:[^`<]*<)?([\w/]+)>?`", prose)]


def test_each_page_leads_to_the_next():
    following = {page: pages_named(prose_of(page).split("## What's next")[1])[0] for page in READ}
    assert following == {page: Path(after).name for page, after in zip(READ, PAGES[1:], strict=False)}


@pytest.mark.parametrize("page", READ)
def test_what_a_page_asks_for_comes_before_it(page: str):
    for asked in re.findall(r"\*\*Prerequisites\*\*:(.*?)(?:\*\*|\n\n)", prose_of(page), re.DOTALL):
        before = {Path(name).name for name in PAGES[: PAGES.index(page)]} | {"glossary"}
        assert set(pages_named(asked)) <= before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_takes_as_long_as_it_says(path: Path):
    """Within a factor of two of what `.ci/refresh.py` measured; a few seconds are up to twenty."""
    (said,) = re.findall(r"\*\*Time to run\*\*: (.*?)[,;.\n]", prose_of(f"notebooks/{path.stem}"))
    measured = json.loads((ROOT / "data" / "run_times.json").read_text())[path.stem]
    if said == "a few seconds":
        assert measured <= 20
    else:
        number, unit = re.fullmatch(r"about (\d+) (second|minute)s? of one core", said).groups()
        assert 0.5 <= measured / (int(number) * {"second": 1, "minute": 60}[unit]) <= 2


def test_places_are_called_as_in_the_tables():
    named = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", prose_of("notebooks/01_data"), re.MULTILINE)[1:])
    assert len(named) > 4
    assert named == {obs_conf: places(obs_conf) for obs_conf in named}


def test_notebooks_are_numbered_as_the_book_has_them():
    numbers = [int(Path(page).name[:2]) for page in PAGES if page.startswith("notebooks/")]
    assert numbers == list(range(len(NOTEBOOKS)))


def test_every_page_is_short_enough_to_be_read():
    words = {path.name: len(path.read_text().split()) for path in (ROOT / "book").glob("*.md")}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        words[path.name] = len(" ".join(prose).split())
    assert {name: number for name, number in words.items() if number > 2000} == {}


def test_an_experiments_page_begins_with_what_it_found():
    """In a cell before the parameters, which computes it; and the cell shows a number."""
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        found = [cell for cell in cells if "facts.say(" in "".join(cell["source"])]
        for cell in found:
            assert cells.index(cell) == 2, path.name
            shown = "".join("".join(output["data"]["text/markdown"]) for output in cell["outputs"])
            assert re.match(r"\*\*Found:\*\* .*\d", shown), path.name
        assert found or path.stem[:2] in WITHOUT_SCORES, path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_of_a_notebook_have_solutions_that_were_executed(path: Path):
    """Summary, exercises, folded solutions, what comes next: nbval compares what solutions print."""
    cells = json.loads(path.read_text())["cells"]
    (asked,) = (i for i, cell in enumerate(cells) if "## Exercises" in "".join(cell["source"]))
    solutions = [cell for cell in cells if "solution" in cell["metadata"].get("tags", [])]
    assert len(re.findall(r"^\d\. ", "".join(cells[asked]["source"]).split("## Exercises")[1], re.MULTILINE)) >= 2
    assert solutions == cells[asked + 1 : asked + 1 + len(solutions)]
    assert solutions
    for cell in solutions:
        assert "hide-cell" in cell["metadata"]["tags"]
        assert cell["outputs"]


def test_the_readme_says_what_the_scores_say():
    found, readme = facts(), " ".join((ROOT / "README.md").read_text().split())
    counts = (
        "ahead of the best filter that has learned nothing, DAPPER's tuned ones of at most 30 members and our "
        "untrained Kalman parts, in {ahead} of {settings} settings, level in {level}, behind in {behind}: there "
        "training gained nothing measurable over an untrained Kalman part, and what is behind is a network from "
        "nothing. "
        "In {undecided} a gain is undecided."
    )
    noisy = (
        "from nothing has an RMSE of {noisy_scratch_short}, the best of DAPPER's tuned filters "
        "{noisy_classical_short}; by CRPS that one is ahead."
    )
    paper = "The RMSE of {paper_published} that the paper's authors state is {paper_here} here"
    wrong = "an RMSE of {wrong_model_short}, a LETKF whose model was corrected with a truth {corrected_model_short}."
    for sentence in (counts, noisy, wrong, paper):
        assert sentence.format(**found) in readme
    assert found["noisy_classical_crps"] < found["noisy_scratch_crps"]
    behind = headline().query("verdict == 'behind'")
    assert not behind.helped.any()
    assert behind.learned_file.equals(behind.scratch_file)

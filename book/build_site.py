"""Render the book: stage its sources beside a folder of executed notebooks, then run Jupyter Book.

Usage: ``python book/build_site.py NOTEBOOKS SITE``. The page is ``SITE/_build/html/index.html``. Nothing is executed
here, so the committed notebooks (in the tests) and freshly executed ones (``make book``) take the same way. Any warning
is an error.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import live_page
import yaml
from chapters import chapters, reading_minutes
from moving_picture import moving_picture
from security import protect

from assim_lib.classical.contenders import choose
from assim_lib.classical.search import FINALISTS, SEARCH_CYCLES, trial_table
from assim_lib.storage import data_dir
from assim_lib.study.facts import facts

ROOT = Path(__file__).resolve().parent.parent
# Of MathJax what a page loads: its one script, fonts, rarer macros, and what its menu offers in English.
MATHJAX = (
    *("tex-chtml.js", "output/chtml/", "input/tex/extensions/", "ui/", "a11y/"),
    *("sre/mathmaps/base", "sre/mathmaps/en"),
)
EXTENSIONS = ["abbreviations", "shown_by_fields"]  # of Sphinx, beside this file
EVERYTHING = "input/tex/extensions/all-packages.js"  # all macros in one, for pages that load nothing on demand


def stage(notebooks: Path, site: Path) -> None:
    """Fill a fresh ``site`` with all that Jupyter Book reads."""
    # Fresh every time: Sphinx repeats no warning of a page that it finds unchanged.
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["parse"]["myst_substitutions"] = facts() | reading_times() | tuning()
    config["sphinx"]["local_extensions"] = dict.fromkeys(EXTENSIONS, str(ROOT / "book"))  # where they are,
    config["sphinx"]["config"]["extensions"] += EXTENSIONS  # and that they are used
    (site / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True))
    shutil.copy(ROOT / "_toc.yml", site)
    shutil.copytree(ROOT / "book", site / "book", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    generated = site / "book" / "_generated"
    generated.mkdir()
    (generated / "tracking.html").write_text(moving_picture())
    (site / "book" / "chapters.md").write_text(chapters(notebooks))
    # Pages link to the table of scores.
    (site / "data" / "results").mkdir(parents=True)
    shutil.copy(data_dir() / "results" / "scores.csv", site / "data" / "results")
    live_page.write(site / "book" / "_static")
    # Pages quote the library.
    shutil.copytree(ROOT / "assim_lib", site / "assim_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "notebooks").mkdir()
    for notebook in notebooks.glob("*.ipynb"):
        shutil.copy(notebook, site / "notebooks")


def reading_times() -> dict[str, str]:
    """Minutes that it takes to read each page without code, as ``minutes_NAME``."""
    return {f"minutes_{path.stem}": str(reading_minutes(path.read_text())) for path in (ROOT / "book").glob("*.md")}


def tuning() -> dict[str, str]:
    """How much classical methods were tuned, by their stored trials; for pages without code."""
    trials = trial_table([one for one in choose() if one.grid])
    short = trials[trials.cycles == SEARCH_CYCLES].groupby("contender").size()
    return {
        "search_cycles": str(SEARCH_CYCLES),
        "search_finalists": str(FINALISTS),
        "search_trials": f"{short.median():.0f}",
        "search_most": str(short.max()),
    }


def prune(html: Path) -> None:
    """Take out of a rendered site what no page loads, and of the notebooks to download the outputs they print again."""
    mathjax = html / "_static" / "mathjax"
    for path in mathjax.rglob("*"):
        name = path.relative_to(mathjax).as_posix()
        if path.is_file() and (name == EVERYTHING or not name.startswith(MATHJAX)):
            path.unlink()
    shutil.rmtree(html / "_static" / "locales", ignore_errors=True)  # the theme's words in other languages
    # Source maps; and fonts that each browser of the last ten years loads as woff2.
    for path in [*(html / "_static").rglob("*.map"), *(html / "_static").rglob("*.ttf")]:
        path.unlink()
    # Works are no list items to a screen reader, so that this is no list.
    works = html / "book" / "bibliography.html"
    works.write_text(works.read_text().replace('role="list" class="citation-list"', 'class="citation-list"'))
    for path in (html / "_sources" / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False))


def render(site: Path) -> int:
    """Run Jupyter Book over a staged ``site``; its exit status."""
    # Beside this interpreter, whether or not its environment is activated.
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    return subprocess.run([jupyter_book, "build", "-W", "--keep-going", site], check=False).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render the book from executed notebooks.")
    parser.add_argument("notebooks", type=Path, help="folder of executed notebooks")
    parser.add_argument("site", type=Path, help="folder to build in; it is emptied first")
    arguments = parser.parse_args()
    stage(arguments.notebooks, arguments.site)
    status = render(arguments.site)
    prune(arguments.site / "_build" / "html")
    protect(arguments.site / "_build" / "html")
    sys.exit(status)

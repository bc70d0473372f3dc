"""Render the book: stage its sources beside a folder of executed notebooks, then run Jupyter Book.

Usage: ``python book/build_site.py NOTEBOOKS SITE``. The page is ``SITE/_build/html/index.html``. Nothing is executed
here, so the committed notebooks (in the tests) and freshly executed ones (``make book``) take the same way. Any warning
is an error.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import live_page

ROOT = Path(__file__).resolve().parent.parent


def stage(notebooks: Path, site: Path) -> None:
    """Fill a fresh ``site`` with all that Jupyter Book reads."""
    # Fresh every time: Sphinx repeats no warning of a page that it finds unchanged.
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, site)
    shutil.copytree(ROOT / "book", site / "book", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    live_page.write(site / "book" / "_static")
    # Pages quote the library.
    shutil.copytree(ROOT / "assim_lib", site / "assim_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "notebooks").mkdir()
    for notebook in notebooks.glob("*.ipynb"):
        shutil.copy(notebook, site / "notebooks")


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
    sys.exit(render(arguments.site))

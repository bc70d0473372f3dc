"""Write the public address of the repository wherever it is shown: `python .ci/address.py [URL]`.

The address is one setting, `repository: url` of `_config.yml`. With a URL it is changed, with an empty one taken out;
without an argument everything is written again as it is set. From it come the launch buttons of the book, the badges of
the README, the entry in `CITATION.cff`, and the first code cell of every notebook, which installs the library on Colab.
Nothing else in these files changes, and to run this twice is to run it once.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = re.compile(r"https://github\.com/[\w-]+/[\w.-]+")
COLAB, BINDER = "https://colab.research.google.com", "https://mybinder.org"

LAUNCH = f"""\
launch_buttons:
  colab_url: {COLAB}
  binderhub_url: {BINDER}
  notebook_interface: jupyterlab
"""

# Colab shows the title and folds the code; so does JupyterLab without the title. The book leaves the cell out.
METADATA = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["remove-cell"]}
TITLE = "# @title On Colab: install the library and its data. Elsewhere: nothing."
# Names begin with an underscore, or belong to functions: whatever else stands before the parameters is taken for one.
INSTALL = """\
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

if find_spec("google") and find_spec("google.colab"):
    import torch

    _kept = [f"{name}=={version(name)}" for name in ("numpy", "torch")]
    _book = "amortized-assimilation@EXTRA@ @ git+@URL@"
    if not find_spec("@MODULE@"):
        subprocess.check_call([sys.executable, "-mpip", "install", "-q", *_kept, _book])
    print("device:", "cuda" if torch.cuda.is_available() else "cpu")"""
NOTHING = """\
import sys
from importlib.util import find_spec

if find_spec("google") and find_spec("google.colab") and not find_spec("assim_lib"):
    sys.exit("No public address is set: run `make address URL=…` in the repository.")"""


# What a notebook names → the extra that it needs, and a module of it that Colab lacks.
EXTRAS = {"assim_lib.classical": ("baselines", "dapper"), "assim_lib.sweeps": ("sweep", "fastparquet")}


def setup(url: str, code: str) -> str:
    """The Colab cell of a notebook with this code; an extra, and all that comes with it, only where it is used."""
    extra, module = next((needed for name, needed in EXTRAS.items() if name in code), ("", "assim_lib"))
    source = INSTALL.replace("@EXTRA@", f"[{extra}]" if extra else "").replace("@MODULE@", module).replace("@URL@", url)
    return f"{TITLE}\n{source if url else NOTHING}"


def config(text: str, url: str) -> str:
    """The settings of the book: address, launch buttons, and the button that leads to the repository."""
    text = once(r'^(repository:\n  url: )".*"$', rf'\1"{url}"', text)
    text = once(r"^(  branch: .*\n)(?:launch_buttons:\n(?:  .*\n)+)?", rf"\1{LAUNCH if url else ''}", text)
    button = "  use_repository_button: true\n"
    return once(rf"^(  favicon: .*\n)(?:{button})?", rf"\1{button if url else ''}", text)


def readme(text: str, url: str) -> str:
    """The badges below the title."""
    first, path = "notebooks/00_quickstart.ipynb", url.removeprefix("https://github.com/")
    badges = (
        f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{path}/blob/main/{first})\n"
        f"[![Open in Binder]({BINDER}/badge_logo.svg)]({BINDER}/v2/gh/{path}/main?urlpath=lab/tree/{first})\n\n"
    )
    return once(r"\A(# .*\n\n)(?:(?:\[!\[Open in .*\n)+\n)?", rf"\1{badges if url else ''}", text)


def citation(text: str, url: str) -> str:
    """Where the software that is cited can be found."""
    line = f"repository-code: {url}\n" if url else ""
    return once(r"^(license: .*\n)(?:repository-code: .*\n)?", rf"\1{line}", text)


def notebook(text: str, url: str) -> str:
    """A notebook whose first code cell is the Colab cell, below its title; all others stay as they are."""
    content = json.loads(text)
    if written(content) != text:
        raise SystemExit("A notebook is not written as nbformat writes it: run .ci/refresh.py first.")
    counts = [cell["execution_count"] for cell in content["cells"] if cell["id"] == "colab"]
    title, *others = (cell for cell in content["cells"] if cell["id"] != "colab")
    code = "".join("".join(cell["source"]) for cell in others if cell["cell_type"] == "code")
    source = setup(url, code)
    cell = {
        "cell_type": "code",
        "execution_count": counts[0] if counts else None,
        "id": "colab",
        "metadata": METADATA,
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }
    return written(content | {"cells": [title, cell, *others]})


def written(content: dict) -> str:
    """The text of a notebook, as nbformat writes it."""
    return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def once(pattern: str, new: str, text: str) -> str:
    """Replace the one place where ``pattern`` is found."""
    text, places = re.subn(pattern, new, text, flags=re.MULTILINE)
    if places != 1:
        raise SystemExit(f"The place of the address, {pattern}, is there {places} times instead of once.")
    return text


def files(root: Path) -> dict[Path, Callable[[str, str], str]]:
    """All files that show the address, and how each is written."""
    documents = {root / "_config.yml": config, root / "README.md": readme, root / "CITATION.cff": citation}
    return documents | dict.fromkeys(sorted((root / "notebooks").glob("*.ipynb")), notebook)


def current(root: Path) -> str:
    """The address that is set; empty if none is."""
    found = re.search(r'^repository:\n  url: "(.*)"$', (root / "_config.yml").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit('_config.yml has no line `url: "…"` below `repository:`.')
    return found[1]


def checked(url: str) -> str:
    """An address as it is written, or one sentence about what is wrong with it."""
    url = url.strip().removesuffix("/").removesuffix(".git")
    if url and not PUBLIC.fullmatch(url):
        raise SystemExit(f"{url} is no address of a repository: it should look like https://github.com/owner/repo.")
    return url


def stamp(root: Path, url: str) -> int:
    """Write ``url`` everywhere below ``root``; the number of files that changed.

    All are written beside the files before the first of them takes its place: where one cannot be, nothing changes.
    """
    before = {path: path.read_text(encoding="utf-8") for path in files(root)}
    after = {path: write(before[path], url) for path, write in files(root).items()}
    changed = {path: path.with_name(f".{path.name}.tmp") for path in after if after[path] != before[path]}
    try:
        for path, temporary in changed.items():
            temporary.write_text(after[path], encoding="utf-8")
        for path, temporary in changed.items():
            os.replace(temporary, path)
    finally:
        for temporary in changed.values():
            temporary.unlink(missing_ok=True)
    return len(changed)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit("usage: python .ci/address.py [URL]")
    address = checked(sys.argv[1]) if len(sys.argv) == 2 else current(ROOT)
    changed = stamp(ROOT, address)
    print(f"{address or 'no address'}: {changed} files changed")

"""A page that says how long every chapter takes, to run and to read, and with which packages the book was made."""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

from assim_lib.storage import data_dir

WORDS_A_MINUTE = 150  # with formulas and figures between them
PACKAGES = ("torch", "numpy", "scipy", "pandas", "matplotlib", "dapper", "torchdiffeq", "jupyter-book", "papermill")


def reading_minutes(prose: str) -> int:
    """How long a text takes."""
    return max(1, round(len(re.findall(r"\w+", prose)) / WORDS_A_MINUTE))


def chapters(notebooks: Path) -> str:
    """The page, in MyST: one row a notebook; of those that were not executed for it, what was measured before."""
    rows, recorded = [], json.loads((data_dir() / "run_times.json").read_text())
    for path in sorted(notebooks.glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
        prose = " ".join(text for kind, text in cells if kind == "markdown")
        seconds = notebook["metadata"].get("papermill", {}).get("duration")
        ran = f"{recorded.get(path.stem, '–')} s \\*" if seconds is None else f"{seconds:.0f} s"
        rows.append(f"| {{doc}}`/notebooks/{path.stem}` | {ran} | {reading_minutes(prose)} min |")
    packages = [f"| {name} | {version(name)} |" for name in PACKAGES]
    return "\n".join(
        [
            "# Run times and packages",
            "",
            "How long each chapter ran when this copy of the book was made, with the parameters as committed, on one",
            f"thread ({platform.machine()}), and how long its text takes to read. A star: not executed for this copy,",
            "but processor time that was measured when its outputs were committed.",
            "",
            "| chapter | to run | to read |",
            "|:---|---:|---:|",
            *rows,
            "",
            f"Made with Python {platform.python_version()} and",
            "",
            "| package | version |",
            "|:---|---:|",
            *packages,
            "",
        ]
    )

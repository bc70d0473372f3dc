"""Execute notebooks in place, as they are committed: `python .ci/refresh.py [NAME ...]`, all of them by default.

Progress bars and warnings (stderr) and clocks (timings of cells) are for the moment, and are not kept. How much
processor time a notebook took is kept beside the data, where its page and a test find it.
"""

import json
import os
import resource
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

from assim_lib.storage import atomic_path

ROOT = Path(__file__).parents[1]
NOTEBOOKS, RUN_TIMES = ROOT / "notebooks", ROOT / "data" / "run_times.json"


def used() -> float:
    """Processor time in seconds of the kernels that have ended so far, and of what they started."""
    of_kernels = resource.getrusage(resource.RUSAGE_CHILDREN)
    return of_kernels.ru_utime + of_kernels.ru_stime


def refresh(path: Path) -> None:
    """Execute one notebook from a fresh kernel and write it back."""
    notebook, before = nbformat.read(path, as_version=4), used()
    # Coalesced: what a cell prints comes in pieces, of which no two runs have the same.
    how = {"kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": NOTEBOOKS}}, **how).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)
    run_times = json.loads(RUN_TIMES.read_text()) if RUN_TIMES.exists() else {}
    run_times[path.stem] = round(used() - before)
    with atomic_path(RUN_TIMES) as temporary:
        temporary.write_text(json.dumps(run_times, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    # As in the tests: for tensors this small more threads gain nothing, and on a busy machine they wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    for name in (bar := tqdm(names, unit="notebook")):
        bar.set_description(name)
        refresh(NOTEBOOKS / f"{name}.ipynb")

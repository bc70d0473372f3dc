"""One point of a sweep, where it runs: a task that imports little, for its worker has nothing else to do.

The notebook has a kernel and an empty folder of its own.
"""

import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from assim_lib.sweeps.folder import Folder


class PointError(RuntimeError):
    """A point that did not come to its end: why, in a sentence."""


def run_point(text: str, key: str, parameters: dict[str, Any], output: str, timeout: float | None, path: str) -> None:
    """Run one point where nothing else is, and write its notebook and then its metrics: a task.

    Args:
        text: the notebook.
        output: address of the sweep's folder.
        path: a folder of modules that the notebook may import.

    Raises:
        PointError: one sentence; the notebook as far as it came is in ``failed/``.
        OSError: if the folder cannot be written to.
    """
    began = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the kernel's, and with it PyTorch's
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if path not in folders:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*folders, path]))
    folder = Folder(output)
    with TemporaryDirectory() as temporary:
        source, executed, metrics = (Path(temporary) / name for name in ("in.ipynb", "out.ipynb", "metrics.json"))
        source.write_text(text, encoding="utf-8")

        def left(_: Any) -> float | None:
            return None if timeout is None else max(timeout + began - time.monotonic(), 0.01)

        error = ""
        try:
            notebook = papermill.execute_notebook(
                source,
                executed,
                {**parameters, "metrics": str(metrics)},
                progress_bar=False,
                timeout_func=left,
                resources={"metadata": {"path": temporary}},
            )
        except PapermillExecutionError as raised:
            error = f"{raised.ename}: {raised.evalue}"
        except CellTimeoutError:
            error = f"it took longer than {timeout:g} s"
        except DeadKernelError:
            error = "its kernel died"
        else:
            error = "" if metrics.exists() else "it wrote no metrics"
        if error:
            if executed.exists():
                folder.write(f"failed/{key}.ipynb", executed.read_bytes())
            raise PointError(error)
        cells = sum(cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells)
        folder.write(f"notebooks/{key}.ipynb", executed.read_bytes())
        seconds = time.monotonic() - began
        result = {"metrics": json.loads(metrics.read_text()), "seconds": seconds, "overhead": seconds - cells}
        folder.write_json(f"points/{key}.json", {"parameters": parameters, **result})
    for name in (f"failed/{key}.ipynb", f"failed/{key}.json"):
        folder.remove(name)

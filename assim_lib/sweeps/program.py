"""A notebook as a program: which parameters it takes, and what it makes of those of a point, without running it."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat

from assim_lib.storage import content_key
from assim_lib.study.notebook import NotebookParameters, notebook_parameters
from assim_lib.training.experiment import ParameterError


class Program:
    """A notebook with a cell of parameters, one of which is ``metrics``: the JSON file that it writes its numbers to.

    Where it reads them with :func:`~assim_lib.study.notebook.notebook_parameters`, this is asked about every point.
    Parameters of any other notebook must be known and of the type that is declared, or of that of the default.

    Args:
        path: of the notebook.

    Attributes:
        text: the notebook without its outputs.

    Raises:
        ParameterError: if it is no notebook, or has no such cell.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            notebook: Any = nbformat.read(self.path, as_version=4)
        except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError):
            raise ParameterError(f"notebook = {str(path)!r} is no notebook.") from None
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell in code:
            cell.outputs, cell.execution_count = [], None
        declared = [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
        if not declared:
            raise ParameterError(f"{self.path.name} has no cell tagged `parameters`.")
        sources = [cell.source for cell in code[declared[0] :]]
        reading = next((i for i, source in enumerate(sources) if "notebook_parameters(" in source), 0)
        self._beginning = sources[: reading + 1]
        self._code = [cell.source for cell in code]
        self.text = nbformat.writes(notebook)
        if "metrics" not in self._begin({}):
            raise ParameterError(
                f"{self.path.name} has no parameter `metrics`, the JSON file that it writes its numbers to."
            )

    def configuration(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """What the notebook makes of some parameters: all values that it would run with.

        Raises:
            ParameterError: if it would refuse them.
        """
        namespace = self._begin(parameters)
        read = next((value for value in namespace.values() if isinstance(value, NotebookParameters)), None)
        if read is None:
            defaults = self._begin({})
            declared = {name: type(default) for name, default in defaults.items() if not name.startswith("__")}
            known = declared | defaults.get("__annotations__", {})
            # None says nothing of its type, and may be given again.
            given = {
                k: v for k, v in parameters.items() if k not in known or not (v is None and declared[k] is type(None))
            }
            known |= {k: type(v) for k, v in given.items() if known.get(k) is type(None)}
            notebook_parameters({"__annotations__": known, **given}, **dict.fromkeys(known))
            values = {name: namespace[name] for name in declared}
        else:
            experiment = {"experiment": read.experiment.model_dump()} if read.options else {}
            values = {**read.others, **experiment}
        return {name: value for name, value in values.items() if name not in ("metrics", "folder")}

    def key(self, configuration: dict[str, Any]) -> str:
        """What a point is known by: the same for the same code with the same configuration, and for no other."""
        return content_key({"code": self._code, "configuration": configuration})

    def _begin(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The notebook's namespace once it has read its parameters."""
        namespace: dict[str, Any] = {"__name__": "__main__"}
        declaration, *others = self._beginning
        # What the notebook prints is for its readers; what it would write goes nowhere.
        with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            exec(declaration, namespace)
            if "metrics" in namespace:
                namespace["metrics"] = str(Path(folder) / "metrics.json")
            namespace |= parameters
            for source in others:
                exec(source, namespace)
        namespace.pop("__builtins__")
        return namespace

"""What every notebook of the book does first and last: read its parameters, and write its metrics.

papermill injects parameters as assignments, and only warns about names that a notebook does not have; a value may
arrive as a string. :func:`notebook_parameters`, called right after the parameters cell, refuses both before anything
is computed. In between, :func:`stored_filter` finds what the book has for the reader's setting, and for no other.
"""

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from assim_lib.filter import AmortizedFilter
from assim_lib.registry import Registry, import_plugins
from assim_lib.setting import Setting
from assim_lib.storage import why_not_writable, write_json
from assim_lib.study.publish import NothingPublishedError, best_filter
from assim_lib.training.experiment import Experiment, ParameterError, configure, refuse_unknown
from assim_lib.training.validation import run_filter
from assim_lib.twin import TwinExperiment

_INTERACTIVE = {"In", "Out", "exit", "quit", "open"}
Allowed = tuple[float | int, float | int] | list[Any] | Registry[Any] | None


class NotebookParameters:
    """The parameters of a notebook, found right.

    Attributes:
        experiment: what the options among them make of the notebook's experiment; None if it has none.
        options: these options, by name.
        others: the notebook's own parameters by name; each is an attribute as well.
    """

    def __init__(self, experiment: Experiment | None, options: dict[str, Any], others: dict[str, Any]):
        self._experiment, self.options, self.others = experiment, options, others

    @property
    def experiment(self) -> Experiment:
        """The validated experiment."""
        if self._experiment is None:
            # No AttributeError: Python would then ask __getattr__, which knows less.
            raise ParameterError("this notebook has parameters of its own, and no experiment.")
        return self._experiment

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["others"][name]
        except KeyError:
            raise AttributeError(f"this notebook has no parameter {name!r}") from None

    def write_metrics(self, **values: Any) -> None:
        """Write the metrics of the run to the file that the parameter ``metrics`` names, and say so."""
        write_json(self.metrics, values)
        print("metrics:", self.metrics.name)


class StoredFilter(NamedTuple):
    """A stored filter: its experiment, itself, and its row of the table of scores."""

    experiment: Experiment
    model: AmortizedFilter
    row: pd.Series

    def run(self, twin: TwinExperiment) -> Float[np.ndarray, "cycle member channel site"]:
        """Its analysis ensembles along a twin experiment; says whether they score as the whole did that is stored."""
        ensemble, _ = run_filter(self.experiment, self.model, twin)
        print("the 95 % intervals of both scores overlap:", twin.score(ensemble).overlaps(self.row))
        return ensemble


def stored_filter(setting: Setting, **wanted: Any) -> StoredFilter | None:
    """The stored filter that is best on validation data in exactly this setting; says which, or that there is none.

    Args:
        wanted: other columns of the table of scores and their values, e.g. ``method="amortized"``.
    """
    try:
        stored = StoredFilter(*best_filter(**setting.as_dict(), **wanted))
    except NothingPublishedError:
        print(f"No filter is stored for {setting.title}: what follows is about yours alone.")
        return None
    row = stored.row
    print(f"stored for {setting.title}: {row.label}, m = {row.m}")
    print(f"RMSE {row.rmse:.3f}, before its training {row.untrained_rmse:.3f}")
    return stored


def notebook_parameters(
    namespace: dict[str, Any], experiment: str | None = None, /, **allowed: Allowed
) -> NotebookParameters:
    """The parameters of a notebook, read from its namespace before anything is computed.

    A notebook takes the parameters that its parameters cell declares with a type, and no others. Three of them mean the
    same everywhere: ``metrics`` is the file that :meth:`NotebookParameters.write_metrics` writes, ``folder`` is where a
    training keeps its state (empty: nowhere, None for :func:`~assim_lib.training.run.train`), and ``plugins`` names
    modules, separated by commas, that are imported first, so that they can register a system, an instrument or a
    network.

    In a notebook that is already under way the two cells may be run again: what stands in its namespace by then is no
    parameter.

    Args:
        namespace: ``globals()`` of the notebook.
        experiment: the named experiment that the other parameters are options of; None if there is none.
        allowed: the notebook's own parameters: (lowest, highest), a list of values, a registry of names (that of a
            plugin included; an empty name stands for all of them), or None for any of the declared type.

    Raises:
        ParameterError: one sentence about the first that cannot be used.
    """
    declared: dict[str, Any] = namespace.get("__annotations__", {})
    values = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in _INTERACTIVE
        and not isinstance(value, ModuleType | Registry)
        and not callable(value)
    }
    if "_parameters_were_read" in namespace:
        values = {name: value for name, value in values.items() if name in declared}
    refuse_unknown(values, list(declared))
    own = {name: values.pop(name) for name in (*allowed, "metrics", "folder", "plugins") if name in values}
    for name in sorted(own, key=lambda name: name != "plugins"):  # first what may register the others
        _refuse(name, own[name], declared[name], allowed.get(name))
        if name == "plugins":
            _import(own.pop(name))
    if "metrics" in own:
        own["metrics"] = _file("metrics", own["metrics"])
    if "folder" in own:
        own["folder"] = _folder("folder", own["folder"])
    if experiment is None:
        refuse_unknown(values, list(own))
        values, configured = {}, None
    else:
        configured = configure(experiment, **values)
    namespace["_parameters_were_read"] = True
    return NotebookParameters(configured, values, own)


def _refuse(name: str, value: Any, kind: type, allowed: Allowed) -> None:
    number = kind is float and type(value) is int
    if type(value) is not kind and not number:
        raise ParameterError(
            f"{name} = {value!r} (of type {type(value).__name__}) is not allowed; {name} is of type {kind.__name__}."
        )
    if isinstance(allowed, Registry) and value:
        try:
            allowed.find(str(value))
        except ValueError as error:
            raise ParameterError(str(error)) from None
    if isinstance(allowed, list) and value not in allowed:
        known = ", ".join(repr(one) if "," in str(one) else str(one) for one in allowed if one != "")
        raise ParameterError(f"{name} = {value!r} is not known; known: {known}.")
    if isinstance(allowed, tuple) and not allowed[0] <= value <= allowed[1]:
        raise ParameterError(
            f"{name} = {value!r} is not allowed; {name} is a number from {allowed[0]:g} to {allowed[1]:g}."
        )


def _import(plugins: str) -> None:
    try:
        import_plugins(plugins)
    except ValueError as error:
        raise ParameterError(str(error)) from None


def _file(name: str, value: str) -> Path:
    path = Path(value).expanduser()
    if not value or path.is_dir():
        raise ParameterError(f"{name} = {value!r} is not allowed; {name} is the path of a file.")
    _refuse_unwritable(name, value, path)
    return path


def _folder(name: str, value: str) -> Path | None:
    path = Path(value).expanduser()
    if path.exists() and not path.is_dir():
        raise ParameterError(f"{name} = {value!r} is not allowed; {name} is the path of a folder, or empty.")
    if value:
        _refuse_unwritable(name, value, path / "state.safetensors")
    return path if value else None


def _refuse_unwritable(name: str, value: str, path: Path) -> None:
    if reason := why_not_writable(path):
        raise ParameterError(f"{name} = {value!r} cannot be written: {reason}.")

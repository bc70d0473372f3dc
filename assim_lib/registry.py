"""Named things that a notebook can add to: systems, observation configurations, networks, analyses.

Experiments refer to all of these by name. The library registers its own where they are defined; a reader
registers more from a notebook, and every name that works for the library's works for the reader's.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")
U = TypeVar("U")


class Registry(dict[str, T]):
    """A dictionary that says what it knows.

    Args:
        kind: what is registered, as the parameter that takes its names is called.
        base: class that all of them are derived from; None: they are callable.
    """

    def __init__(self, kind: str, base: type | None = None):
        super().__init__()
        self.kind, self.base = kind, base

    def register(self, name: str) -> Callable[[U], U]:
        """Decorator: make what it decorates known under ``name``.

        Running a notebook's cell again replaces what it registered before; the library's own names are taken.

        Raises:
            ValueError: if the name is one of the library's own, or none; or if what is decorated cannot be it.
        """
        if not isinstance(name, str):
            raise ValueError(f"{self.kind} is registered by a name: @register_{self.kind}('…'), with parentheses.")

        def add(item: Any) -> Any:
            taken: Any = self.get(name)
            if taken is not None and getattr(taken, "__module__", "").startswith("assim_lib."):
                raise ValueError(f"{self.kind} = {name!r} is the library's own already; choose another name.")
            derived = self.base is None or (inspect.isclass(item) and issubclass(item, self.base))
            if not (callable(item) and derived):
                wanted = "callable" if self.base is None else f"a class derived from {self.base.__name__}"
                raise ValueError(f"{self.kind} = {name!r} is {item!r}; it must be {wanted}.")
            self[name] = cast(T, item)
            return item

        return add

    def find(self, name: str) -> T:
        """What is registered under ``name``.

        Raises:
            ValueError: if there is nothing of that name; the sentence lists what there is.
        """
        if name not in self:
            close = get_close_matches(str(name), self, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{self.kind} = {name!r} is not registered{hint}; known: {', '.join(self)}.")
        return self[name]


def one_of(names: Iterable[str]) -> str:
    """Names as a sentence lists them: 'a', 'b' or 'c'."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def import_plugins(names: str) -> None:
    """Import modules that register names of their own.

    Args:
        names: of the modules, separated by commas; one may stand in the current folder.

    Raises:
        ValueError: if one cannot be imported.
    """
    if "" not in sys.path:  # as a notebook's kernel has it, and an installed command has not
        sys.path.insert(0, "")
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(f"plugins = {names!r} cannot be imported: {error}.") from None
        except Exception as error:  # whatever a module of one's own does
            raise ValueError(f"plugins = {names!r} cannot be imported: {_place(error)}.") from error


def _place(error: Exception) -> str:
    """What went wrong, and in which line of which file."""
    if isinstance(error, SyntaxError):
        file, line, said = error.filename, error.lineno, error.msg
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line, said = last.filename, last.lineno, str(error)
    return f"{type(error).__name__} in line {line} of {Path(file or '').name}: {said.rstrip('.')}"

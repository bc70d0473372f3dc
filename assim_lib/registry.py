"""Named things that a notebook can add to: systems, observation configurations, networks, analyses.

Experiments refer to all of these by name. The library registers its own where they are defined; a reader
registers more from a notebook, and every name that works for the library's works for the reader's.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Registry(dict[str, T]):
    """A dictionary that says what it knows.

    Parameters
    ----------
    kind : what is registered, as the parameter that takes its names is called.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[U], U]:
        """Decorator: make what it decorates known under ``name``.

        Running a notebook's cell again replaces what it registered before; the library's own names are taken.

        Raises
        ------
        ValueError : if the name is one of the library's own.
        """

        def add(item):
            taken = self.get(name)
            if taken is not None and getattr(taken, "__module__", "").startswith(f"{__package__}."):
                raise ValueError(f"{self.kind} = {name!r} is the library's own already; choose another name.")
            self[name] = item
            return item

        return add

    def find(self, name: str) -> T:
        """What is registered under ``name``.

        Raises
        ------
        ValueError : if there is nothing of that name; the sentence lists what there is.
        """
        if name not in self:
            close = get_close_matches(str(name), self, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{self.kind} = {name!r} is not registered{hint}; known: {', '.join(self)}.")
        return self[name]

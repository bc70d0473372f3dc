"""What is answered with a sentence: one base class, and the refusal of what code of one's own returns."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any


class Mistake(ValueError):
    """What cannot be used; its message is one sentence naming what came and what is allowed."""

    def _render_traceback_(self) -> list[str]:
        # Read by IPython: in a notebook the sentence alone says everything.
        return [f"{type(self).__name__}: {self}"]


def refuse_other(what: str, came: Any, shape: Sequence[int], dtype: Any) -> None:
    """Raise :class:`Mistake` unless it is a tensor of that shape and type, of finite numbers."""
    tensor = hasattr(came, "isfinite")
    if not tensor or tuple(came.shape) != tuple(shape) or came.dtype != dtype:
        described = f"a tensor of shape {tuple(came.shape)} and {came.dtype}" if tensor else f"a {type(came).__name__}"
        raise Mistake(f"{what} is {described}; it must be a tensor of shape {tuple(shape)} and {dtype}.")
    if not came.isfinite().all():
        raise Mistake(f"{what} holds NaN or infinity; it must be of finite numbers.")


def is_whole(value: Any, least: int, most: int) -> bool:
    """Whether it is a whole number within bounds, of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def tried(what: str | Callable[[], str], call: Callable[[], Any], when: str = "on a first, small call") -> Any:
    """What a call of a reader's own code returns; if it fails, a sentence that says whose it is."""
    try:
        return call()
    except Mistake:
        raise
    except Exception as error:
        said = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
        what = what if isinstance(what, str) else what()
        raise Mistake(f"{what} fails {when}: {type(error).__name__}: {said}.") from error

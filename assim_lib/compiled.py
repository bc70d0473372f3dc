"""Functions as compiled programs, where this machine can have them."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def can_compile() -> bool:
    """Whether PyTorch can compile on this machine; a warning says why not."""
    try:
        torch.compile(torch.square)(torch.ones(1))
    except Exception as error:  # of many kinds: no compiler, a broken one, a platform that is not supported
        warnings.warn(f"Not compiled, slower: {str(error).splitlines()[0]}", stacklevel=3)
        return False
    return True


class Compiled:
    """A function as one compiled program; where it cannot be one, the function itself, and a warning says why."""

    def __init__(self, function: Callable[..., Any]):
        self.plain, self.function = function, torch.compile(function, fullgraph=True, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.function(*arguments)
        except Exception as error:  # of many kinds; one of the function itself comes again below
            warnings.warn(f"Not compiled, slower: {str(error).splitlines()[0]}", stacklevel=4)
            self.function = self.plain
            return self.plain(*arguments)

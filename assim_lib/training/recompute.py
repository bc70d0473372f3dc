"""Memory for time: what the gradient needs of a cycle is computed again when its turn comes, and not kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], generator: torch.Generator, *arguments: Any) -> Any:
    """What a function returns; of what it computes on the way nothing is kept for the gradient.

    Args:
        generator: what the function draws from; the second time it draws the same again.
    """
    before, runs = generator.get_state(), 0

    def run(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 1:
            return function(*arguments)
        now = generator.get_state()
        generator.set_state(before)
        try:
            return function(*arguments)
        finally:
            generator.set_state(now)

    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)

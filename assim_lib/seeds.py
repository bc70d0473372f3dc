"""One seed for each purpose, so that no two purposes draw the same numbers but by chance.

:func:`seed_for` mixes the name of a purpose with the numbers that tell its uses apart (the run's own seed, the
segment, …) in a :class:`numpy.random.SeedSequence`. PyTorch's CPU generator uses the lower 32 bits of a seed: two
purposes, or two runs, draw the same numbers once in 2³² pairs. What stands in ``data/`` was drawn before that, from
plain numbers; they stay as they are, below, since every stored score refers to them.
"""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

# The frozen truths: initial states and observation errors.
FROZEN = {"validation": 2, "test": 3}
# DAPPER's methods: initial ensembles and rotations, while they are tuned and when they are scored.
SEARCH, BASELINES = 2000, 3000
# Very long runs and other settings, truths that no filter was trained, tuned or scored on.
STRESS = 4000
# Cold starts of validation on short runs.
SHORT_RUNS = 0


class Purpose(IntEnum):
    """What random numbers are drawn for."""

    TRAINING_TRUTH = 1
    TRAINING_ORDER = 2
    TRAINING = 3
    CLIMATOLOGY = 4
    WEIGHTS = 5
    NOTEBOOK = 7


def seed_for(purpose: Purpose, *numbers: int) -> int:
    """A seed for a purpose; that other purposes, or other numbers, share its lower 32 bits has a chance of 2⁻³².

    Args:
        numbers: tell the uses of one purpose apart, each ≥ 0.
    """
    # The length is part of the key: (1,) and (1, 0) are two.
    words = np.random.SeedSequence([int(purpose), len(numbers), *numbers]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def seed_of_setting(seed: int, number: int) -> int:
    """The seed of one of the settings, 10,000 at most, that a run with a seed trains one filter in.

    No two settings of runs in many settings share it; a run in one setting may have it for its own.
    """
    return 10_000 * (seed + 1) + number


def generator_for(purpose: Purpose, *numbers: int) -> torch.Generator:
    """A CPU generator for a purpose, see :func:`seed_for`."""
    return torch.Generator().manual_seed(seed_for(purpose, *numbers))


class SharedGenerator(torch.Generator):
    """A generator from which several processes draw alike, each of them for its part of a batch.

    Attributes:
        rank: number of the process.
        world: number of processes.
    """

    rank, world = 0, 1


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform random numbers from 0 to 1, on the generator's device.

    Args:
        shape: the batch comes first. From a :class:`SharedGenerator` the numbers of all processes are drawn, and those
            of this one are returned.
    """
    rank, world = (generator.rank, generator.world) if isinstance(generator, SharedGenerator) else (0, 1)
    drawn = torch.rand((world * shape[0], *shape[1:]), generator=generator, device=generator.device)
    return drawn[rank * shape[0] : (rank + 1) * shape[0]]

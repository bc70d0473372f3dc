"""What is computed again is the same, dropout included, and little of it is held."""

import pytest
import torch
from small_runs import advance, assert_same_run, ring_trainer, tiny

from assim_lib import ParameterError, train
from assim_lib.training.graphs import check_ways


@pytest.mark.parametrize("name", ["original", "recurrent", "hybrid"])
def test_updates_are_the_same_to_the_last_bit(name):
    one, other = (ring_trainer(name, 4, dropout=0.3) for _ in range(2))
    for pool in other.pools:
        pool.recompute = True
    assert advance(one, 3) == advance(other, 3)
    assert_same_run(one, other)


def held(window: int, recompute: bool) -> int:
    """Numbers that an unrolled window holds for its gradient."""
    trainer, numbers = ring_trainer("recurrent", 4, window=window), 0
    (pool,) = trainer.pools
    pool.recompute = recompute

    def counted(x: torch.Tensor) -> torch.Tensor:
        nonlocal numbers
        numbers += x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(counted, lambda x: x):
        pool.unroll(pool.window(pool.choose()))
    return numbers


def test_little_is_held():
    assert held(20, recompute=True) < 0.1 * held(20, recompute=False)


def test_neither_a_graph_nor_a_gradient_that_is_seen_can_be_computed_again():
    with pytest.raises(ParameterError, match="graphed = True and recompute = True exclude each other"):
        check_ways(tiny(), graphed=True, recompute=True)
    seeing = tiny(analysis="recurrent", lag=1, sees_gradient=True)
    with pytest.raises(ParameterError, match="recompute = True cannot be with sees_gradient = True"):
        train(seeing, recompute=True)

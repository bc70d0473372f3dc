import pytest
import torch

from assim_lib.training.muon import Muon, orthogonalized

SHAPES = [(8, 8), (20, 5), (5, 20), (1, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_singular_values_come_near_one_and_the_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ found @ right.T
    assert ((torch.diag(inner) > 0.5) & (torch.diag(inner) < 1.5)).all()
    torch.testing.assert_close(inner, torch.diag(torch.diag(inner)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_are_those_of_torch_to_its_rounding(shape):
    """torch's Muon computes the direction in bfloat16: three digits."""
    source = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=source)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.1, weight_decay=0.3),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        gradient = torch.randn(shape, generator=source)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.02)
    assert (ours - start).abs().mean() > 0.05


def test_a_weight_without_a_gradient_stays():
    still, moved = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    moved.grad = torch.eye(3)
    Muon([still, moved], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still, torch.ones(3, 3))
    assert not torch.equal(moved, torch.ones(3, 3))


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"Muon trains matrices; a weight has the shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1, weight_decay=0.0)

"""Muon in single precision: :class:`torch.optim.Muon` rounds to bfloat16, which most CPUs emulate ten times slower."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
# Of five steps x -> a x + b x^3 + c x^5 of the singular values, after which all lie near one (Jordan et al. 2024).
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Steps along the (nearly) orthogonal matrix next to the Nesterov momentum of each gradient.

    A step has the size that AdamW's would have (root mean square .2), so that one rate serves both.

    Args:
        matrices: weights of two dimensions, or groups of them.
        lr: rate.
        weight_decay: decoupled; each step takes ``lr * weight_decay`` of the weights.

    Raises:
        ValueError: for a weight that is no matrix.

    References:
        Jordan et al. (2024), https://kellerjordan.github.io/posts/muon; the size of a step: Liu et al. (2025),
        https://arxiv.org/abs/2502.16982.
    """

    def __init__(self, matrices: Iterable[Any], lr: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            if weight.ndim != 2:
                raise ValueError(f"Muon trains matrices; a weight has the shape {tuple(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step from the gradients that the weights hold."""
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                state = self.state[weight]
                average = state.setdefault("momentum_buffer", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - MOMENTUM)
                direction = orthogonalized(weight.grad.lerp(average, MOMENTUM))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(direction, alpha=0.2 * math.sqrt(max(weight.shape)) * group["lr"])


def orthogonalized(matrix: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    r""":math:`U V^T` of a matrix :math:`U S V^T`, nearly: its singular values lie between .5 and 1.5."""
    tall = matrix.shape[0] > matrix.shape[1]
    factor = matrix.T if tall else matrix
    factor = factor / factor.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = factor @ factor.T
        factor = torch.addmm(factor, torch.addmm(gram, gram, gram, beta=b, alpha=c), factor, beta=a)
    return factor.T if tall else factor

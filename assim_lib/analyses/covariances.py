"""What Kalman updates with a model's derivative stand on: differences along a covariance, and a root of one."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def central_differences(
    function: Callable[[Tensor], Tensor],
    mean: Float[Tensor, "*batch 1 channel site"],
    root: Float[Tensor, "*batch column channel site"],
    share: Float[Tensor, "*batch"],
) -> tuple[Float[Tensor, "*batch later state"], Float[Tensor, "*batch 1 channel site"]]:
    """How a function of the state answers to each entry of it.

    By central differences along the columns of a square root of the state's covariance, as far as the state is
    uncertain: where little is known they are gentler than the derivative, which chaos makes huge and of no use there.
    No gradient goes through them, which would double the time of training.

    Args:
        function: of states, one a member.
        root, share: see :meth:`~assim_lib.analyses.CovariantAnalysis.covariance_root`.

    Returns:
        The derivative, channels and sites flattened; and by how much the mean over the state's distribution lies off
        what becomes of its mean, to second order (Nørgaard et al. 2000).
    """
    moved = share[..., None, None, None] * root
    later = function(torch.cat([mean + moved, mean - moved, mean], -3))
    above, below, centre = later.split([root.shape[-3], root.shape[-3], 1], -3)
    differences = ((above - below) / (2 * share[..., None, None, None])).flatten(-2).mT
    derivative = torch.linalg.solve_triangular(root.flatten(-2).mT, differences, upper=False, left=False)
    # Not scaled up where columns were shortened: a parabola through near points is no guide to far ones.
    return derivative, (above + below - 2 * centre).sum(-3, keepdim=True) / 2


def cholesky(matrix: Tensor, otherwise: float = 1.0) -> Tensor:
    """The lower factor of a covariance; where it is none, as rounding may leave it, that of its diagonal.

    Args:
        otherwise: a factor on the latter.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    variances = matrix.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12)  # rounding makes some negative
    diagonal = otherwise * torch.diag_embed(variances.sqrt())
    return torch.where((failed > 0)[..., None, None], diagonal, factor)

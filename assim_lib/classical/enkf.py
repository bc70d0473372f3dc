"""The ensemble Kalman filter in forty lines, to be read. The comparison uses DAPPER's."""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor


def enkf(
    ensemble: Float[Tensor, "member state"],
    observations: Iterable[Float[Tensor, " observed"]],
    flow: Callable[[Tensor], Tensor],
    operator: Callable[[Tensor], Tensor],
    noise: float,
    generator: torch.Generator,
    inflation: float = 1.0,
    taper: Float[Tensor, "state state"] | None = None,
) -> Iterator[Float[Tensor, "member state"]]:
    """Stochastic EnKF (Burgers et al., 1998); yields the analysis ensemble of each cycle.

    Args:
        ensemble: at the time before the first observation; at least two members.
        observations: one vector a cycle; independent errors of deviation ``noise``.
        flow, operator: model over one cycle, what is observed; for all members at once.
        generator: of the perturbations of the observations.
        taper: multiplies covariances entry by entry; the ``operator`` then picks entries.
    """
    for y in observations:
        ensemble = flow(ensemble)
        mean = ensemble.mean(0)
        ensemble = mean + inflation * (ensemble - mean)

        # Covariances, from the ensemble: K = P Hᵀ (H P Hᵀ + R)⁻¹.
        a, seen = ensemble - mean, operator(ensemble)
        b = seen - seen.mean(0)
        cross, covariance = a.T @ b / (len(a) - 1), b.T @ b / (len(a) - 1)
        if taper is not None:
            columns = operator(taper)
            cross, covariance = columns * cross, operator(columns.T) * covariance
        r = noise**2 * torch.eye(len(y)).to(y)
        gain = torch.linalg.solve(covariance + r, cross.T).T

        # Each member sees observations with errors of its own, or the ensemble would
        # shrink too much. Their mean is zero: the mean moves by K times the innovation.
        errors = noise * torch.randn(seen.shape, generator=generator, dtype=y.dtype)
        errors = (errors - errors.mean(0)) * (len(a) / (len(a) - 1)) ** 0.5
        ensemble = ensemble + (y + errors - seen) @ gain.T
        yield ensemble

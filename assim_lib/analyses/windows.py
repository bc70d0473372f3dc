"""A large ring in overlapping windows, so that the algebra of covariances costs as the ring grows and not as its cube.

What is far away says nothing of a site. Its analysis is therefore that of a window around it, done with dense matrices
that have the window's size, and each window gives what it says of the sites in its middle, its core:

    margin | core | margin
                    margin | core | margin

The windows are one more axis of the batch: code for a ring does for windows as it is. What needs much memory on the way
is done for a few of them at a time (:meth:`Windows.parts`): for all at once it would fill no cache, and of a very large
ring the system would hand out and clear new memory for every operation.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

AT_ONCE = 8  # windows, whose matrices still fit a cache


class Windows(NamedTuple):
    """Windows of a ring; the cores cover it, and the last one may reach beyond its end.

    Args:
        sites: of the ring.
        core: number of sites in the middle of a window.
        margin: number of sites on either side of it.
        first: the first window that these are.
        last: the first window that these are not; None: all from the first on.
    """

    sites: int
    core: int
    margin: int
    first: int = 0
    last: int | None = None

    @classmethod
    def of(cls, sites: int, core: int, margin: int, least: int) -> "Windows | None":
        """None for a ring of fewer sites than ``least``: it is best done at once."""
        return cls(sites, core, margin) if sites >= max(least, core + 2 * margin) else None

    def parts(self, at_once: int = AT_ONCE) -> "list[Windows]":
        """The same windows, so many at a time."""
        number = -(-self.sites // self.core)
        return [self._replace(first=k, last=min(k + at_once, number)) for k in range(0, number, at_once)]

    def of_all(self, x: Float[Tensor, "*windows state state"]) -> Float[Tensor, "*windows state state"]:
        """Those of these windows, of what there is for each window of the ring."""
        return x[..., self.first : self.last, :, :]

    def places(self, device: torch.device) -> Int[Tensor, "window place"]:
        """Which sites are in each window."""
        cores = torch.arange(0, self.sites, self.core, device=device)[self.first : self.last]
        first = cores - self.margin
        return (first[:, None] + torch.arange(self.core + 2 * self.margin, device=device)) % self.sites

    def split(self, x: Float[Tensor, "*fields site"], axes: int = 2) -> Float[Tensor, "*windows place"]:
        """Fields on the ring as fields on each window.

        Args:
            axes: how many of the last ones are a window's; the new axis stands before them.
        """
        return x[..., self.places(x.device)].movedim(-2, -1 - axes)

    def join(self, x: Float[Tensor, "*windows place"], axes: int = 2) -> Float[Tensor, "*fields site"]:
        """Fields on the ring of the cores of fields on each window; of some windows, those on their part of it."""
        cores = x[..., self.margin : self.margin + self.core]
        return cores.movedim(-1 - axes, -2).flatten(-2)[..., : self.sites - self.first * self.core]

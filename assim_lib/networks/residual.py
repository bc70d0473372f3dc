"""Residual networks whose output starts at zero."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assim_lib.networks.base import RingConv, TrunkSizes, drop_channels, dropped, register_network


class ResidualTrunk(nn.Module):
    """The residual network that the trunks of this module are; they differ in their layers."""

    def __init__(self, embed: nn.Module, blocks: list[nn.Module], head: nn.Linear, dropout: float):
        super().__init__()
        self.embed, self.blocks, self.head, self.dropout = embed, nn.ModuleList(blocks), head, dropout
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

    def residual(self, features: Tensor, generator: torch.Generator | None) -> Tensor:
        """Embed, correct block by block, read out."""
        h = self.embed(features)
        for block in self.blocks:
            h = h + block(self._drop(F.silu(h), generator))
        return self.head(F.silu(h))

    def _drop(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        return dropped(h, h.shape, self.dropout, generator)


@register_network("conv")
class RingConvTrunk(ResidualTrunk):
    """Residual convolutional network on a ring of sites; its output starts at zero.

    Args:
        inputs, outputs: number of features and of outputs per site.
        sizes: of which ``hidden``, ``blocks``, ``kernel`` and ``dropout`` matter.
    """

    block: ClassVar[type[RingConv]] = RingConv

    def __init__(self, inputs: int, outputs: int, sizes: TrunkSizes):
        embed = RingConv(inputs, sizes.hidden, sizes.kernel)
        blocks: list[nn.Module] = [self.block(sizes.hidden, sizes.hidden, sizes.kernel) for _ in range(sizes.blocks)]
        super().__init__(embed, blocks, nn.Linear(sizes.hidden, outputs), sizes.dropout)

    def forward(
        self,
        features: Float[Tensor, "*batch site inputs"],
        phase: Int[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch site outputs"]:
        return self.residual(features, generator)

    def _drop(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        return drop_channels(h, self.dropout, generator)


class GatedRingConv(RingConv):
    """A gated linear unit: half of a convolution's outputs, each times a share between 0 and 1 that the others say."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, 2 * outputs, kernel)

    def forward(self, x: Float[Tensor, "*batch site inputs"]) -> Float[Tensor, "*batch site outputs"]:
        return F.glu(super().forward(x), -1)


@register_network("conv_glu")
class GatedConvTrunk(RingConvTrunk):
    """:class:`RingConvTrunk` of gated linear units, with twice as many weights at the same width.

    A Kalman gain is made of products of what is known and what is uncertain, and its units multiply (Dauphin et al.
    2017).
    """

    block = GatedRingConv


@register_network("ff")
class FeedForwardTrunk(ResidualTrunk):
    """Residual fully connected network over the whole ring; its output starts at zero.

    Args:
        inputs, outputs: number of features and of outputs per site.
        sizes: of which ``sites``, ``hidden``, ``blocks`` and ``dropout`` matter.
    """

    def __init__(self, inputs: int, outputs: int, sizes: TrunkSizes):
        embed = nn.Linear(sizes.sites * inputs, sizes.hidden)
        blocks: list[nn.Module] = [nn.Linear(sizes.hidden, sizes.hidden) for _ in range(sizes.blocks)]
        super().__init__(embed, blocks, nn.Linear(sizes.hidden, sizes.sites * outputs), sizes.dropout)
        self.sites = sizes.sites

    def forward(
        self,
        features: Float[Tensor, "*batch site inputs"],
        phase: Int[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch site outputs"]:
        return self.residual(features.flatten(-2), generator).unflatten(-1, (self.sites, -1))


@register_network("ff_per_operator")
class FeedForwardBank(nn.Module):
    """One :class:`FeedForwardTrunk` for each entry of the observation schedule.

    Args:
        inputs, outputs, sizes: of each of them; ``sizes.operators`` says how many there are.
    """

    def __init__(self, inputs: int, outputs: int, sizes: TrunkSizes):
        super().__init__()
        self.dropout = sizes.dropout
        self.trunks = nn.ModuleList(FeedForwardTrunk(inputs, outputs, sizes) for _ in range(sizes.operators))

    def forward(
        self,
        features: Float[Tensor, "*batch member site inputs"],
        phase: Int[Tensor, "*batch"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch member site outputs"]:
        # Each network sees its own part of the batch; put together again in the batch's order.
        flat, phase = features.reshape(-1, *features.shape[-3:]), phase.expand(features.shape[:-3]).flatten()
        order, parts = [], []
        for operator, trunk in enumerate(self.trunks):
            chosen = (phase == operator).nonzero().flatten()
            order.append(chosen)
            parts.append(trunk(flat[chosen], None, generator))
        return torch.cat(parts)[torch.cat(order).argsort()].view(*features.shape[:-1], -1)

"""The networks of McCabe & Brown (2021), with default initialization."""

from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assim_lib.networks.base import RingConv, TrunkSizes, drop_channels, dropped, register_network


@register_network("original")
class OriginalTrunk(nn.Module):
    r"""The convolutional network of McCabe & Brown (2021), with default initialization.

    .. math::

        h^0 = N(W^0 u), \qquad h^{b} = h^{b-1} + \lambda(N(W_2\,d(\lambda(N(W_1\,d(h^{b-1})))))), \qquad o = V\,d(h^B),

    where :math:`d` drops whole channels, :math:`N` normalizes over channels and sites together (without parameters of
    its own), and :math:`\lambda` is LeakyReLU. All products are windowed. The last of an odd number of hidden layers
    is a block of its own.

    Args:
        inputs, outputs: number of features and of outputs per site.
        sizes: of which ``hidden``, ``blocks`` (hidden layers, two a block), ``kernel`` and ``dropout`` matter.
    """

    def __init__(self, inputs: int, outputs: int, sizes: TrunkSizes):
        super().__init__()
        hidden, kernel = sizes.hidden, sizes.kernel
        self.dropout = sizes.dropout
        self.embed = RingConv(inputs, hidden, kernel)
        self.layers = nn.ModuleList(RingConv(hidden, hidden, kernel) for _ in range(sizes.blocks))
        self.head = RingConv(hidden, outputs, kernel)

    def forward(
        self,
        features: Float[Tensor, "*batch site inputs"],
        phase: Int[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch site outputs"]:
        return self.head(self._drop(self._hidden(_normalized(self.embed(features)), generator), generator))

    def _hidden(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        for first in range(0, len(self.layers), 2):
            change = h
            for layer in self.layers[first : first + 2]:
                change = self._layer(layer, change, generator)
            h = h + change
        return h

    def _layer(self, layer: nn.Module, h: Tensor, generator: torch.Generator | None) -> Tensor:
        return F.leaky_relu(_normalized(layer(self._drop(h, generator))))

    def _drop(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        return drop_channels(h, self.dropout, generator)


@register_network("original_early")
class OriginalEarlyTrunk(OriginalTrunk):
    """The network of the published score of .630: rectified from the start, and the last layer without a skip."""

    def _hidden(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        *block, last = self.layers
        h = F.leaky_relu(h)
        change = h
        for layer in block:
            change = self._layer(layer, change, generator)
        return self._layer(last, h + change, generator)


@register_network("ff_original")
class OriginalFeedForwardTrunk(nn.Module):
    r"""The feed-forward network of McCabe & Brown (2021): one network for what is added, another for the gates.

    Each is :math:`h^{b} = d(\lambda(N(W^b h^{b-1})))` from the features :math:`h^0` of the whole ring, and :math:`o = V
    h^B`, where :math:`N` normalizes over the hidden numbers, :math:`\lambda` is LeakyReLU and :math:`d` is dropout. The
    first half of the outputs comes from one network, the second half from the other.

    Args:
        inputs, outputs: number of features and of outputs per site.
        sizes: of which ``sites``, ``hidden``, ``blocks`` (hidden layers) and ``dropout`` matter.
    """

    def __init__(self, inputs: int, outputs: int, sizes: TrunkSizes):
        super().__init__()
        self.sites, self.dropout = sizes.sites, sizes.dropout
        widths = [sizes.sites * inputs, *[sizes.hidden] * sizes.blocks]
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths)) for _ in ("change", "gates")
        )
        halves = outputs - outputs // 2, outputs // 2
        self.heads = nn.ModuleList(nn.Linear(widths[-1], sizes.sites * half) for half in halves)

    def forward(
        self,
        features: Float[Tensor, "*batch site inputs"],
        phase: Int[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch site outputs"]:
        outputs = []
        for layers, head in zip(self.layers, self.heads, strict=True):
            h = features.flatten(-2)
            for layer in cast(nn.ModuleList, layers):
                h = layer(h)
                h = F.leaky_relu(F.layer_norm(h, h.shape[-1:]))
                h = dropped(h, h.shape, self.dropout, generator)
            outputs.append(head(h).unflatten(-1, (self.sites, -1)))
        return torch.cat(outputs, -1)


def _normalized(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-2:])

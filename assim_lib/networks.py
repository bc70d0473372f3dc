r"""From features to increments: networks that know nothing of time, ensembles or observations.

A *trunk* maps features at each site to outputs at each site. What it may use of its neighbours is the difference
between the two that are registered here (a notebook can add others, see :data:`NETWORKS`):

``conv``
    :class:`RingConvTrunk`, a residual convolution on a ring of sites, with the channels last: the window of
    ``kernel`` neighbouring sites is laid out as one long vector and multiplied by one matrix. On a CPU this
    runs several times faster than a general convolution at these sizes, and it makes every hidden weight
    a plain matrix, which is what the Muon optimizer wants.
``ff``
    :class:`FeedForwardTrunk`, the same residual network with the whole ring as one vector: every site may depend on
    every other, and nothing that is learned at one site is known at the next.
``ff_per_operator``
    :class:`FeedForwardBank`, a feed-forward network of its own for each entry of the observation schedule.
``original``, ``original_early``, ``ff_original``
    :class:`OriginalTrunk`, the normalized convolutional network of McCabe & Brown (2021), the smaller one of their
    best published score, and their feed-forward network.

All but the last three are :math:`h^0 = W^0 u`, :math:`h^{b} = h^{b-1} + W^b\,\mathrm{SiLU}(h^{b-1})`, :math:`o =
V\,\mathrm{SiLU}(h^B)`, with windowed products for ``conv``. The last matrix :math:`V` (the ``head``) starts at zero:
an untrained network changes nothing, and an analysis built on it starts from its classical part.
"""

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assim_lib.registry import Registry


class TrunkSizes(NamedTuple):
    """What a trunk may need to know to be built.

    sites : on the ring.
    operators : period of the observation schedule.
    hidden : width.
    blocks : number of residual blocks; of the original networks, number of hidden layers.
    kernel : window of each convolution, in sites, odd.
    dropout : share of hidden channels dropped, whole channels at a time; only where a generator is given.
    """

    sites: int
    operators: int = 1
    hidden: int = 32
    blocks: int = 3
    kernel: int = 5
    dropout: float = 0.0


NETWORKS: Registry[type[nn.Module]] = Registry("network")
register_network = NETWORKS.register


class RingConv(nn.Module):
    """A convolution over a ring, channels last.

    Parameters
    ----------
    inputs, outputs : number of channels.
    kernel : width of the window in sites, odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel = {kernel} must be odd, so that the window has a centre.")
        self.reach = kernel // 2
        self.linear = nn.Linear(inputs * kernel, outputs)
        self._entries: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, x: Float[Tensor, "*batch site inputs"]) -> Float[Tensor, "*batch site outputs"]:
        windows = x.index_select(-2, self._windows(x.shape[-2], x.device))
        return self.linear(windows.unflatten(-2, (x.shape[-2], -1)).flatten(-2))

    def _windows(self, sites: int, device: torch.device) -> Int[Tensor, " entry"]:
        """The sites around each site, one window after the other."""
        if (sites, device) not in self._entries:
            around = torch.arange(sites)[:, None] + torch.arange(-self.reach, self.reach + 1)
            self._entries[sites, device] = (around % sites).flatten().to(device)
        return self._entries[sites, device]


def _dropped(h: Tensor, shape: torch.Size, share: float, generator: torch.Generator | None) -> Tensor:
    if share == 0 or generator is None:
        return h
    kept = torch.rand(shape, generator=generator, device=generator.device) >= share
    return h * kept.to(h.device) / (1 - share)


def drop_channels(
    h: Float[Tensor, "*batch site hidden"], share: float, generator: torch.Generator | None
) -> Float[Tensor, "*batch site hidden"]:
    """Dropout of whole channels, at all sites alike; none without a generator."""
    return _dropped(h, torch.Size((*h.shape[:-2], 1, h.shape[-1])), share, generator)


class ResidualTrunk(nn.Module):
    """The residual network that all trunks are; they differ in their layers."""

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
        return _dropped(h, h.shape, self.dropout, generator)


@register_network("conv")
class RingConvTrunk(ResidualTrunk):
    """Residual convolutional network on a ring of sites; its output starts at zero.

    Parameters
    ----------
    inputs, outputs : number of features and of outputs per site.
    sizes : of which ``hidden``, ``blocks``, ``kernel`` and ``dropout`` matter.
    """

    def __init__(self, inputs: int, outputs: int, sizes: TrunkSizes):
        embed = RingConv(inputs, sizes.hidden, sizes.kernel)
        blocks: list[nn.Module] = [RingConv(sizes.hidden, sizes.hidden, sizes.kernel) for _ in range(sizes.blocks)]
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


@register_network("ff")
class FeedForwardTrunk(ResidualTrunk):
    """Residual fully connected network over the whole ring; its output starts at zero.

    Parameters
    ----------
    inputs, outputs : number of features and of outputs per site.
    sizes : of which ``sites``, ``hidden``, ``blocks`` and ``dropout`` matter.
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

    Parameters
    ----------
    inputs, outputs, sizes : of each of them; ``sizes.operators`` says how many there are.
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


@register_network("original")
class OriginalTrunk(nn.Module):
    r"""The convolutional network of McCabe & Brown (2021), with default initialization.

    .. math::

        h^0 = N(W^0 u), \qquad h^{b} = h^{b-1} + \lambda(N(W_2\,d(\lambda(N(W_1\,d(h^{b-1})))))), \qquad o = V\,d(h^B),

    where :math:`d` drops whole channels, :math:`N` normalizes over channels and sites together (without parameters of
    its own), and :math:`\lambda` is LeakyReLU. All products are windowed. The last of an odd number of hidden layers
    is a block of its own.

    Parameters
    ----------
    inputs, outputs : number of features and of outputs per site.
    sizes : of which ``hidden``, ``blocks`` (hidden layers, two a block), ``kernel`` and ``dropout`` matter.
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

    Parameters
    ----------
    inputs, outputs : number of features and of outputs per site.
    sizes : of which ``sites``, ``hidden``, ``blocks`` (hidden layers) and ``dropout`` matter.
    """

    def __init__(self, inputs: int, outputs: int, sizes: TrunkSizes):
        super().__init__()
        self.sites, self.dropout = sizes.sites, sizes.dropout
        widths = [sizes.sites * inputs, *[sizes.hidden] * sizes.blocks]
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths)) for _ in ("change", "gates")
        )
        self.heads = nn.ModuleList(nn.Linear(widths[-1], sizes.sites * (outputs // 2)) for _ in self.layers)

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
                h = _dropped(h, h.shape, self.dropout, generator)
            outputs.append(head(h).unflatten(-1, (self.sites, -1)))
        return torch.cat(outputs, -1)


def _normalized(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-2:])

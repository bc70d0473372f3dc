r"""What networks are, what they are built of, and the names that experiments call them by.

A *trunk* maps features at each site to outputs at each site. What it may use of its neighbours is the difference
between those that are registered here (a notebook can add others, see :data:`NETWORKS`):

``conv``
    ``RingConvTrunk``, a residual convolution on a ring of sites, with the channels last: the window of
    ``kernel`` neighbouring sites is laid out as one long vector and multiplied by one matrix. On a CPU this
    runs several times faster than a general convolution at these sizes, and it makes every hidden weight
    a plain matrix, which is what the Muon optimizer wants.
``conv_glu``
    ``GatedConvTrunk``, the same with gated linear units: an output is one sum times the sigmoid of another.
``ff``
    ``FeedForwardTrunk``, the same residual network with the whole ring as one vector: every site may depend on
    every other, and nothing that is learned at one site is known at the next.
``ff_per_operator``
    ``FeedForwardBank``, a feed-forward network of its own for each entry of the observation schedule.
``original``, ``original_early``, ``ff_original``
    ``OriginalTrunk``, the normalized convolutional network of McCabe & Brown (2021), the smaller one of their
    best published score, and their feed-forward network.

All but the originals are :math:`h^0 = W^0 u`, :math:`h^{b} = h^{b-1} + W^b\,\mathrm{SiLU}(h^{b-1})`, :math:`o =
V\,\mathrm{SiLU}(h^B)`, with windowed products for ``conv`` and gated ones
for ``conv_glu``. The last matrix :math:`V` (the ``head``) starts at zero:
an untrained network changes nothing, and an analysis built on it starts from its classical part. A module of that name
is trained as what reads out, by AdamW; all other matrices are hidden ones, for Muon. A network of your own that calls
its last layer ``head`` is trained in the same way.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assim_lib.registry import Registry
from assim_lib.seeds import uniform


class TrunkSizes(NamedTuple):
    """What a trunk may need to know to be built.

    Args:
        sites: on the ring.
        operators: period of the observation schedule.
        hidden: width.
        blocks: number of residual blocks; of the original networks, number of hidden layers.
        kernel: window of each convolution, in sites, odd.
        dropout: share of hidden channels dropped, whole channels at a time; only where a generator is given.
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

    The windows of a large ring are laid out and multiplied one stretch of sites after the other: all at once they would
    fill no cache, and of a very large ring the system would hand out and clear new memory each time.

    Args:
        inputs, outputs: number of channels.
        kernel: width of the window in sites, odd.
    """

    shortest, at_once = 256, 2**18  # sites of a stretch at least, and numbers that are laid out at a time

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel = {kernel} must be odd, so that the window has a centre.")
        self.reach = kernel // 2
        self.linear = nn.Linear(inputs * kernel, outputs)
        self._entries: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, x: Float[Tensor, "*batch site inputs"]) -> Float[Tensor, "*batch site outputs"]:
        windows, kernel = self._windows(x.shape[-2], x.device), 2 * self.reach + 1
        stretch = max(self.shortest, self.at_once // (x[..., 0, :].numel() * kernel))
        if x.shape[-2] <= stretch:
            return self._of_windows(x, windows)
        return torch.cat([self._of_windows(x, part) for part in windows.split(stretch * kernel)], -2)

    def _of_windows(self, x: Tensor, windows: Tensor) -> Tensor:
        kernel = 2 * self.reach + 1
        return self.linear(x.index_select(-2, windows).unflatten(-2, (-1, kernel)).flatten(-2))

    def _windows(self, sites: int, device: torch.device) -> Int[Tensor, " entry"]:
        """The sites around each site, one window after the other."""
        if (sites, device) not in self._entries:
            around = torch.arange(sites)[:, None] + torch.arange(-self.reach, self.reach + 1)
            self._entries[sites, device] = (around % sites).flatten().to(device)
        return self._entries[sites, device]


def dropped(h: Tensor, shape: torch.Size, share: float, generator: torch.Generator | None) -> Tensor:
    """Numbers dropped at random, as many alike as ``shape`` leaves out, and the others larger; none without a
    generator.
    """
    if share == 0 or generator is None:
        return h
    kept = uniform(shape, generator) >= share
    return h * (kept.to(h) / (1 - share))


def drop_channels(
    h: Float[Tensor, "*batch site hidden"], share: float, generator: torch.Generator | None
) -> Float[Tensor, "*batch site hidden"]:
    """Dropout of whole channels, at all sites alike; none without a generator."""
    return dropped(h, torch.Size((*h.shape[:-2], 1, h.shape[-1])), share, generator)

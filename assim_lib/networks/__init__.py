r"""From features to increments: networks that know nothing of time, ensembles or observations.

A *trunk* maps features at each site to outputs at each site. What it may use of its neighbours is the difference
between those that are registered here (a notebook can add others, see :data:`~assim_lib.networks.base.NETWORKS`):

``conv``
    ``RingConvTrunk``, a residual convolution on a ring of sites, with the channels last: the window of
    ``kernel`` neighbouring sites is laid out as one long vector and multiplied by one matrix. On a CPU this
    runs several times faster than a general convolution at these sizes, and it makes every hidden weight
    a plain matrix, which is what the Muon optimizer wants.
``ff``
    ``FeedForwardTrunk``, the same residual network with the whole ring as one vector: every site may depend on
    every other, and nothing that is learned at one site is known at the next.
``ff_per_operator``
    ``FeedForwardBank``, a feed-forward network of its own for each entry of the observation schedule.
``original``, ``original_early``, ``ff_original``
    ``OriginalTrunk``, the normalized convolutional network of McCabe & Brown (2021), the smaller one of their
    best published score, and their feed-forward network.

All but the last three are :math:`h^0 = W^0 u`, :math:`h^{b} = h^{b-1} + W^b\,\mathrm{SiLU}(h^{b-1})`, :math:`o =
V\,\mathrm{SiLU}(h^B)`, with windowed products for ``conv``. The last matrix :math:`V` (the ``head``) starts at zero:
an untrained network changes nothing, and an analysis built on it starts from its classical part.
"""

from assim_lib.networks.base import NETWORKS, RingConv, TrunkSizes, drop_channels, register_network
from assim_lib.networks.original import OriginalEarlyTrunk, OriginalFeedForwardTrunk, OriginalTrunk
from assim_lib.networks.residual import FeedForwardBank, FeedForwardTrunk, ResidualTrunk, RingConvTrunk

__all__ = [
    "NETWORKS",
    "FeedForwardBank",
    "FeedForwardTrunk",
    "OriginalEarlyTrunk",
    "OriginalFeedForwardTrunk",
    "OriginalTrunk",
    "ResidualTrunk",
    "RingConv",
    "RingConvTrunk",
    "TrunkSizes",
    "drop_channels",
    "register_network",
]

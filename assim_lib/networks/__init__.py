"""From features to increments: networks that know nothing of time, ensembles or observations."""

from assim_lib.networks.base import NETWORKS, RingConv, TrunkSizes, drop_channels, register_network
from assim_lib.networks.residual import FeedForwardBank, FeedForwardTrunk, GatedConvTrunk, ResidualTrunk, RingConvTrunk

# Lists of networks begin with the usual one.
# isort: split
from assim_lib.networks.original import OriginalEarlyTrunk, OriginalFeedForwardTrunk, OriginalTrunk

__all__ = [
    "NETWORKS",
    "FeedForwardBank",
    "FeedForwardTrunk",
    "GatedConvTrunk",
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

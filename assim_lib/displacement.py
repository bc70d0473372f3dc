r"""What lies between the truth and the analysis from which a wrong model forecasts best.

Training scores forecasts. If the model is wrong, it does not forecast best from the truth: an analysis learns to be
displaced by what makes up for the model's next error. The displacement is a function of the state, and it can be
learned from the same observations. A network :math:`d`, which sees the forecast alone, minimizes

.. math:: \frac{1}{p\,\sigma^2}\,\bigl\| H\bigl(\overline{x}^a_k + d(\overline{x}^f_k)\bigr) - y_k \bigr\|^2 .

The analysis has seen :math:`y_k`, and would lower this by repeating it; therefore nothing but :math:`d` learns from it.
The forecast knows nothing of the error of :math:`y_k`, whose mean is zero: the best :math:`d` is the mean of what lies
between truth and analysis, given the forecast.
"""

from jaxtyping import Float
from torch import Tensor, nn

from assim_lib.networks import RingConvTrunk, TrunkSizes

WIDTH = 32


class Displacement(nn.Module):
    """What to add to an analysis, from the forecast before it; nothing while it is untrained.

    Args:
        channels: of the state.
        sites: on the ring.
        kernel: window of the network, in sites, odd; it has two.
    """

    def __init__(self, channels: int, sites: int, kernel: int):
        super().__init__()
        self.trunk = RingConvTrunk(channels, channels, TrunkSizes(sites, hidden=WIDTH, blocks=1, kernel=kernel))

    def forward(self, forecast: Float[Tensor, "*batch member channel site"]) -> Float[Tensor, "*batch 1 channel site"]:
        """Both in units of the climatology; the same for all members."""
        return self.trunk(forecast.mean(-3, keepdim=True).transpose(-1, -2)).transpose(-1, -2)

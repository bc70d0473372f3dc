r"""From features to increments: networks that know nothing of time, ensembles or observations.

:class:`RingConvTrunk` is a residual convolution on a ring of sites, with the channels last: the window of
``kernel`` neighbouring sites is laid out as one long vector and multiplied by one matrix. On a CPU this
runs several times faster than a general convolution at these sizes, and it makes every hidden weight
a plain matrix, which is what the Muon optimizer wants.

.. math:: h^0 = W^0 \ast u, \qquad h^{b} = h^{b-1} + W^b \ast \mathrm{SiLU}(h^{b-1}), \qquad o = V\,\mathrm{SiLU}(h^B),

where :math:`W \ast` denotes the windowed product. The last matrix :math:`V` starts at zero: an untrained
network changes nothing, and an analysis built on it starts from its classical part.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


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

    def forward(self, x: Float[Tensor, "*batch site inputs"]) -> Float[Tensor, "*batch site outputs"]:
        windows = [x.roll(shift, -2) for shift in range(self.reach, -self.reach - 1, -1)]
        return self.linear(torch.cat(windows, -1))


class RingConvTrunk(nn.Module):
    """Residual convolutional network on a ring of sites; its output starts at zero.

    Parameters
    ----------
    inputs, outputs : number of features and of outputs per site.
    hidden : width.
    blocks : number of residual blocks.
    kernel : window of each convolution, in sites.
    dropout : share of hidden channels dropped, whole channels at a time; only where a generator is given.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, blocks: int, kernel: int, dropout: float = 0.0):
        super().__init__()
        self.embed = RingConv(inputs, hidden, kernel)
        self.blocks = nn.ModuleList(RingConv(hidden, hidden, kernel) for _ in range(blocks))
        self.head = nn.Linear(hidden, outputs)
        self.dropout = dropout
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, features: Float[Tensor, "*batch site inputs"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch site outputs"]:
        h = self.embed(features)
        for block in self.blocks:
            h = h + block(self._drop(F.silu(h), generator))
        return self.head(F.silu(h))

    def _drop(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.dropout == 0 or generator is None:
            return h
        shape = (*h.shape[:-2], 1, h.shape[-1])
        kept = torch.rand(shape, generator=generator, device=generator.device).to(h.device) >= self.dropout
        return h * kept / (1 - self.dropout)

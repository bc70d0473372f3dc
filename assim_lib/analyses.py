r"""The analysis: forecast ensemble + observation + memory → corrected ensemble + memory.

All analyses share one interface, so that the cycle, the training and the scores never ask which one runs. Here stand
what they share and the two that a network does alone; :mod:`assim_lib.kalman` has those that start from a Kalman update.

``original``
    the original method. Each member is updated on its own by one network: a gate decides how much of the
    member stays, :math:`x \leftarrow g \odot x + \delta`, and a memory is carried along with it. Members see
    each other through the local ensemble covariances among their features, and another one's forecast where nothing is observed.
``gated``
    the same update, in normalized units and with a network that is easier to train.
``recurrent``
    the same idea with an additive update, :math:`x \leftarrow x + \delta`, and a bounded memory; it needs no
    ensemble statistics, and works with a single member.

**Lag.** The state that is corrected (``base``) may lie :math:`L` cycles before the observation, as in a
fixed-lag smoother: the ensemble at :math:`t-L` is corrected by what its forecast at :math:`t` missed.
With :math:`L = 0` base and forecast are the same tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assim_lib.networks import Sizes
from assim_lib.registry import Registry


class AnalysisInput(NamedTuple):
    """What an analysis may use. ``member`` counts the ensemble; ``L`` is the lag.

    base : states to correct, at t − L.
    forecast : their forecast, at t.
    predicted : the forecast's observation, H(forecast), on the grid; zero where H is not known.
    observation, mask : what is seen at t, and where (1 or 0).
    phase : which entry of the observation schedule that is.
    tendency : of ``base``.
    memory : one vector per site (and per member, where an analysis updates members one by one).
    sensitivity : derivative of ``predicted`` with respect to ``base`` (their means, flattened), where it is needed.
    """

    base: Float[Tensor, "*batch member channel site"]
    forecast: Float[Tensor, "*batch member channel site"]
    predicted: Float[Tensor, "*batch member channel site"]
    observation: Float[Tensor, "*batch channel site"]
    mask: Float[Tensor, "*batch channel site"]
    phase: Int[Tensor, "*batch"]
    tendency: Float[Tensor, "*batch member channel site"]
    memory: Float[Tensor, "*batch memories site features"]
    sensitivity: Float[Tensor, "*batch observed state"] | None = None


class Scales(NamedTuple):
    """The units in which a network sees the world.

    mean, std : climatological, of each channel, shape (channel, 1).
    noise : standard deviation of the observation error.
    """

    mean: Float[Tensor, "channel 1"]
    std: Float[Tensor, "channel 1"]
    noise: float

    @classmethod
    def of(cls, climatology: Float[Tensor, "state channel site"], noise: float) -> "Scales":
        """The units that states of the free-running model suggest."""
        by_channel = climatology.transpose(0, 1).flatten(1)
        return cls(by_channel.mean(1, keepdim=True), by_channel.std(1, keepdim=True), noise)


class Analysis(nn.Module, ABC):
    """Base class: the sizes that every analysis shares.

    Parameters
    ----------
    channels : of the state.
    members : ensemble size.
    scales : units of the features.
    network, sizes : the trunk, see :mod:`assim_lib.networks`.
    memory : memory channels per site.
    lagged : whether ``base`` and ``forecast`` differ (lag ≥ 1).
    band : covariances between a site and its neighbours up to this distance are features.
    inflation : factor on the analysis perturbations.
    taper_length : reach of the localization in sites, where there is one.
    drift : sites by which the centre of the localization moves between base and observation; positive toward larger
        indices.
    tendency : whether the tendency is a feature of ``original``.
    mask_features : number of mask channels among the features of ``original``: none where all is seen.
    other_member : whether ``gated`` sees another member's forecast where nothing is observed.
    """

    minimum_members = 1
    memory_per_member = True
    needs_sensitivity = carries_covariance = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        members: int,
        scales: Scales,
        network: Callable[[int, int, Sizes], nn.Module],
        sizes: Sizes,
        memory: int = 6,
        lagged: bool = False,
        band: int = 0,
        inflation: float = 1.0,
        taper_length: float = 5.0,
        drift: float = 0.0,
        tendency: bool = True,
        mask_features: int = 1,
        other_member: bool = True,
    ):
        super().__init__()
        if members < self.minimum_members:
            raise ValueError(
                f"m = {members} is too small for this analysis, which uses ensemble covariances; "
                f"it needs m ≥ {self.minimum_members} (analysis = 'recurrent' works with m = 1)."
            )
        self.channels, self.members, self.noise = channels, members, scales.noise
        self.register_buffer("mean", scales.mean, persistent=False)
        self.register_buffer("std", scales.std, persistent=False)
        self.memory, self.lagged, self.band = memory, lagged, band
        self.inflation, self.taper_length, self.drift = inflation, taper_length, drift
        self.tendency, self.mask_features, self.other_member = tendency, mask_features, other_member
        self.trunk = network(self._inputs(), self._outputs(), sizes)

    def initial_memory(self, *batch: int, climatology: Float[Tensor, "state channel site"]) -> Tensor:
        """An empty memory for a batch of filters that start from states of the climatology."""
        return climatology.new_zeros(
            *batch, self.members if self.memory_per_member else 1, climatology.shape[-1], self.memory
        )

    def columns(
        self, base: Tensor, memory: Tensor
    ) -> tuple[Float[Tensor, "*batch column channel site"], Float[Tensor, "*batch"]]:
        """The expected error of the mean of ``base``: columns of a lower triangular square root of its covariance.

        Here that is diagonal, the spread. Returned with it is the share of each column that differences should go: all
        of it, or less where little is known.
        """
        spread = (base - base.mean(-3, keepdim=True)).square().mean(-3).sqrt().clamp_min(1e-3 * self.std)
        return torch.diag_embed(spread.flatten(-2)).unflatten(-1, spread.shape[-2:]), spread.new_ones(spread.shape[:-2])

    def drawn(
        self, base: Tensor, memory: Tensor, members: int, generator: torch.Generator
    ) -> Float[Tensor, "*batch member channel site"]:
        """Members that stand for the distribution of the base, from a CPU generator; here, those that there are."""
        return base

    def propagated(self, memory: Tensor, derivative: Float[Tensor, "*batch state state"]) -> Tensor:
        """The memory a cycle later; ``derivative`` is that of the base then with respect to the base now."""
        return memory

    @abstractmethod
    def _inputs(self) -> int:
        """Number of features per site."""

    @abstractmethod
    def _outputs(self) -> int:
        """Number of outputs per site."""

    def _normal(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def _innovation(self, given: AnalysisInput, predicted: Tensor) -> Tensor:
        return (given.observation.unsqueeze(-3) - predicted) * given.mask.unsqueeze(-3) / self.noise

    def _inflated(self, ensemble: Tensor) -> Tensor:
        if self.inflation == 1:
            return ensemble
        mean = ensemble.mean(-3, keepdim=True)
        return mean + self.inflation * (ensemble - mean)


ANALYSES: Registry[type[Analysis]] = Registry("analysis")
register_analysis = ANALYSES.register


def sites_last_to_channels_last(*fields: Tensor) -> Tensor:
    """Stack fields ``(…, channel, site)`` into features ``(…, site, feature)``."""
    return torch.cat(fields, -2).transpose(-1, -2)


def covariance_band(
    deviations: Float[Tensor, "*batch member channel site"], width: int
) -> Float[Tensor, "*batch fields site"]:
    """Ensemble covariances of each site with its neighbours at distance 0 … ``width``, channel by channel."""
    denominator = deviations.shape[-3] - 1
    return torch.cat([(deviations * deviations.roll(-k, -1)).sum(-3) / denominator for k in range(width + 1)], -2)


class MemberByMember(Analysis):
    """What the two gated analyses share: each member is updated on its own, and sees the others through its features."""

    minimum_members = 2

    def _outputs(self) -> int:
        return 2 * self.channels + 2 * self.memory

    def _completed(self, given: AnalysisInput, generator: torch.Generator | None) -> Tensor:
        """The observation for each member; where nothing is seen, the forecast of another one, as a constant."""
        members = given.forecast.shape[-3]
        if generator is None:
            others = given.forecast.roll(1, -3)
        else:
            order = torch.randperm(members, generator=generator)
            others = given.forecast[..., order.to(given.forecast.device), :, :]
        return torch.where(given.mask.unsqueeze(-3) > 0, given.observation.unsqueeze(-3), others.detach())


@register_analysis("original")
class OriginalAnalysis(MemberByMember):
    """The update of McCabe & Brown (2021), in raw units and with nothing added.

    Features of a site are the member's forecast; the observation, or another member's forecast where nothing is seen; the mask as ±0.1,
    unless all is seen; the tendency; ensemble covariances of its first channel with the sites around it; and the memory.
    """

    def _inputs(self) -> int:
        c = self.channels
        return c * (2 + self.lagged + self.tendency + 2 * self.band + 1) + self.mask_features + self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        c, base = self.channels, given.base
        deviations = base - base.mean(-3, keepdim=True)
        reach = range(-self.band, self.band + 1)
        around = torch.cat([deviations.roll(-k, -1) for k in reach], -2)
        covariances = (deviations[..., :1, :] * around).sum(-3, keepdim=True) / (base.shape[-3] - 1)
        mask = 0.2 * given.mask.unsqueeze(-3)[..., : self.mask_features, :] - 0.1
        fields = [
            base,
            self._completed(given, generator),
            *([given.forecast] if self.lagged else []),
            *([given.tendency] if self.tendency else []),
            *(shared.expand(*base.shape[:-2], *shared.shape[-2:]) for shared in (mask, covariances)),
        ]
        features = torch.cat([sites_last_to_channels_last(*fields), given.memory], -1)
        change, write, gate, keep = self.trunk(features, given.phase, generator).split([c, self.memory] * 2, -1)
        analysis = torch.sigmoid(gate).transpose(-1, -2) * base + change.transpose(-1, -2)
        return self._inflated(analysis), torch.sigmoid(keep) * given.memory + write


@register_analysis("gated")
class GatedAnalysis(MemberByMember):
    """The original's gated update in normalized units, with a gate that an untrained network leaves open."""

    def _inputs(self) -> int:
        return self.channels * (4 + self.lagged + 1 + self.band) + self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        c, base = self.channels, self._normal(given.base)
        covariances = covariance_band(base - base.mean(-3, keepdim=True), self.band)
        received = self._normal(self._completed(given, generator))
        if not self.other_member:
            received = received * given.mask.unsqueeze(-3)
        fields = [
            base,
            given.tendency / self.std,
            *([self._normal(given.forecast)] if self.lagged else []),
            received,
            *(
                shared.unsqueeze(-3).expand(*base.shape[:-2], *shared.shape[-2:])
                for shared in (given.mask, covariances)
            ),
        ]
        features = torch.cat([sites_last_to_channels_last(*fields), given.memory], -1)
        out = self.trunk(features, given.phase, generator)
        gate, change, forget, write = out.split([c, c, self.memory, self.memory], -1)
        # The constant 3 opens the gates: an untrained filter is close to the free forecast.
        gate = torch.sigmoid(gate + 3.0).transpose(-1, -2)
        analysis = gate * base + change.transpose(-1, -2)
        memory = torch.sigmoid(forget) * given.memory + write
        return self._inflated(self.mean + self.std * analysis), memory


@register_analysis("recurrent")
class RecurrentAnalysis(Analysis):
    """An additive update of each member from its innovation and a bounded memory; m = 1 is legal."""

    def _inputs(self) -> int:
        return self.channels * (4 + self.lagged) + self.memory

    def _outputs(self) -> int:
        return self.channels + 2 * self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        fields = [
            self._normal(given.base),
            given.tendency / self.std,
            *([self._normal(given.forecast)] if self.lagged else []),
            self._innovation(given, given.predicted),
            given.mask.unsqueeze(-3).expand_as(given.base),
        ]
        features = torch.cat([sites_last_to_channels_last(*fields), given.memory], -1)
        increment, keep, write = self.trunk(features, given.phase, generator).split(
            [self.channels, self.memory, self.memory], -1
        )
        analysis = given.base + self.std * increment.transpose(-1, -2)
        return self._inflated(analysis), remember(given.memory, keep, write)


def remember(memory: Tensor, keep: Tensor, write: Tensor) -> Tensor:
    """Gated update that stays in (−1, 1): ``z·memory + (1 − z)·tanh(write)`` with ``z = sigmoid(keep)``."""
    return torch.lerp(torch.tanh(write), memory, torch.sigmoid(keep))

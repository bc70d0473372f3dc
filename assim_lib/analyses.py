r"""The analysis: forecast ensemble + observation + memory → corrected ensemble + memory.

Three analyses share one interface, so that the cycle, the training and the scores never ask which one runs:

``original``
    the original method. Each member is updated on its own by one network: a gate decides how much of the
    member stays, :math:`x \leftarrow g \odot x + \delta`, and a memory is carried along with it. Members see
    each other through the local ensemble covariances among their features.
``recurrent``
    the same idea with an additive update, :math:`x \leftarrow x + \delta`, and a bounded memory; it needs no
    ensemble statistics, and works with a single member.
``hybrid``
    a differentiable, covariance-localized ensemble Kalman update (the deterministic EnKF of Sakov & Oke, 2008:
    the perturbations move by half the gain) makes the first increment; the network sees it, together with
    the spread, and adds a correction to the mean, a bounded inflation at each site, and a memory.

**Lag.** The state that is corrected (``base``) may lie :math:`L` cycles before the observation, as in a
fixed-lag smoother: the ensemble at :math:`t-L` is corrected by its covariance with the forecast at :math:`t`.
With :math:`L = 0` base and forecast are the same tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, cast

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
    sensitivity : derivative of the mean's ``predicted`` with respect to the mean of ``base``, channels and sites
        flattened; None for an analysis without :attr:`Analysis.needs_sensitivity`.
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


class Update(NamedTuple):
    """What the classical part of an analysis makes of an observation.

    increment : of the mean of the base.
    deviations : of the members from their mean, updated.
    spread, predicted_spread : expected errors of the updated base, and of the prediction before.
    covariance : of the updated base in units of the climatology, where an analysis carries it on.
    """

    increment: Float[Tensor, "*batch 1 channel site"]
    deviations: Float[Tensor, "*batch member channel site"]
    spread: Float[Tensor, "*batch 1 channel site"]
    predicted_spread: Float[Tensor, "*batch 1 channel site"]
    covariance: Float[Tensor, "*batch state state"] | None = None


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
        self.trunk = network(self._inputs(), self._outputs(), sizes)

    def initial_memory(self, *batch: int, climatology: Float[Tensor, "state channel site"]) -> Tensor:
        """An empty memory for a batch of filters that start from states of the climatology."""
        return climatology.new_zeros(
            *batch, self.members if self.memory_per_member else 1, climatology.shape[-1], self.memory
        )

    def uncertainty(self, base: Tensor, memory: Tensor) -> Float[Tensor, "*batch 1 channel site"]:
        """Standard deviation of the error that the mean of ``base`` is expected to have: here, the spread."""
        return (base - base.mean(-3, keepdim=True)).square().mean(-3, keepdim=True).sqrt()

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


@register_analysis("original")
class OriginalAnalysis(Analysis):
    """The original gated, member-by-member update (McCabe & Brown, 2021), in normalized units."""

    minimum_members = 2

    def _inputs(self) -> int:
        return self.channels * (4 + self.lagged + 1 + self.band) + self.memory

    def _outputs(self) -> int:
        return 2 * self.channels + 2 * self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        c, base = self.channels, self._normal(given.base)
        covariances = covariance_band(base - base.mean(-3, keepdim=True), self.band)
        fields = [
            base,
            given.tendency / self.std,
            *([self._normal(given.forecast)] if self.lagged else []),
            *(
                shared.unsqueeze(-3).expand(*base.shape[:-2], *shared.shape[-2:])
                for shared in (self._normal(given.observation) * given.mask, given.mask, covariances)
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


@register_analysis("hybrid")
class HybridAnalysis(Analysis):
    """A localized ensemble Kalman update, corrected by a network that sees it.

    Taper length (in sites) and inflation are two learned numbers, given here as they start;
    :attr:`largest_inflation` bounds what the network may add to the latter at a site.
    """

    minimum_members = 2
    memory_per_member = False
    largest_inflation = 0.2

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.log_taper_length = nn.Parameter(torch.tensor(self.taper_length).log())
        self.log_inflation = nn.Parameter(torch.tensor(self.inflation).log())

    def _inputs(self) -> int:
        return self.channels * (6 + 2 * self.lagged + self.band) + self.memory

    def _outputs(self) -> int:
        return 2 * self.channels + 2 * self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        mean, predicted = given.base.mean(-3, keepdim=True), given.predicted.mean(-3, keepdim=True)
        deviations, seen = given.base - mean, (given.predicted - predicted) * given.mask.unsqueeze(-3)
        innovation = self._innovation(given, predicted)
        learned = given.memory[..., : self.memory]
        update = self._classical(given, deviations, seen, innovation)

        std = self.std
        fields = [
            self._normal(mean),
            given.tendency.mean(-3, keepdim=True) / std,
            innovation,
            given.mask.unsqueeze(-3),
            # Errors are small against the climatology: bring them to the size of the other features.
            4 * update.increment / std,
            4 * update.spread / std,
        ]
        if self.lagged:
            fields += [self._normal(given.forecast.mean(-3, keepdim=True)), 4 * update.predicted_spread / std]
        if self.band:
            fields.append(
                16 * covariance_band(update.deviations / std, self.band)[..., self.channels :, :].unsqueeze(-3)
            )
        features = torch.cat([sites_last_to_channels_last(*fields), learned], -1)
        correction, inflation, keep, write = self.trunk(features, given.phase, generator).split(
            [self.channels, self.channels, self.memory, self.memory], -1
        )
        correction, inflation = correction.transpose(-1, -2), inflation.transpose(-1, -2)
        growth = torch.exp(self.log_inflation + self.largest_inflation * torch.tanh(inflation))
        analysis = mean + update.increment + 0.25 * std * correction + growth * update.deviations
        return analysis, self._kept(remember(learned, keep, write), update, growth)

    def _kept(self, learned: Tensor, update: Update, growth: Tensor) -> Tensor:
        return learned

    def _classical(self, given: AnalysisInput, deviations: Tensor, seen: Tensor, innovation: Tensor) -> Update:
        """What is done without any network."""
        # One solve serves the mean (first right-hand side) and the perturbations (the others, at half the gain).
        gained = self._gain(deviations, seen, torch.cat([self.noise * innovation, -0.5 * seen], -3), given.mask)
        return _of_members(gained[..., :1, :, :], deviations + gained[..., 1:, :, :], seen)

    def _gain(self, deviations: Tensor, seen: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """The localized Kalman gain applied to each of ``vectors`` (…, vector, channel, site)."""
        a, y, v = deviations.flatten(-2), seen.flatten(-2), vectors.flatten(-2)
        # What an observation says of the past is found upstream: where news travels, so does the localization.
        cross = self._taper(mask, self.drift) * (a.mT @ y) / (self.members - 1)
        covariance = self._taper(mask) * (y.mT @ y) / (self.members - 1)
        # Rows of unseen sites are zero: a unit variance there keeps the matrix regular and changes nothing.
        seen_variance = torch.full_like(mask, self.noise**2).where(mask > 0, 1.0).flatten(-2)
        factor, _ = torch.linalg.cholesky_ex(covariance + torch.diag_embed(seen_variance))
        return (cross @ torch.cholesky_solve(v.mT, factor)).mT.unflatten(-1, mask.shape[-2:])

    def _taper(self, like: Tensor, drift: float = 0.0) -> Tensor:
        sites = like.shape[-1]
        index = torch.arange(sites, device=like.device, dtype=self.log_taper_length.dtype)
        distance = (index - index[:, None] - drift + sites / 2) % sites - sites / 2
        taper = torch.exp(-0.5 * (distance / self.log_taper_length.exp()) ** 2)
        return taper.repeat(self.channels, self.channels)


@register_analysis("covariant")
class CovariantAnalysis(HybridAnalysis):
    """The hybrid analysis with a localization that the model itself carries from the base to the observation.

    The covariance is localized once, at the time of the base, where neighbours are close. From there the derivative of the
    model takes it to the observation, so that what is far downstream by then is still known to be related (covariant
    localization, Bocquet 2016). The localized covariance has full rank, and the members cannot have its analysis
    for their own: they become those whose *localized* covariance is nearest to it (Bocquet & Farchi 2019).
    """

    needs_sensitivity = True
    refits, refit_rate = 5, 0.3

    def _classical(self, given: AnalysisInput, deviations: Tensor, seen: Tensor, innovation: Tensor) -> Update:
        shape, taper = given.mask.shape[-2:], self._taper(given.mask)
        # In units of the climatology: what is nearest must not depend on how the channels are measured.
        units = self.std.expand(shape).flatten()
        x = deviations.flatten(-2) / units
        increment, gain, observing, posterior = self._smoothed(given, self._localized(taper, x), innovation)
        # Half the gain is a first guess; some steps of steepest descent on the squared distance follow.
        x = x - 0.5 * x @ observing.mT @ gain.mT
        # No step may overshoot: its length is bounded by the larger of the two covariances (their largest row sum).
        both = torch.stack([posterior, self._localized(taper, x)])
        rate = self.refit_rate / (taper * both).abs().sum(-1).amax((0, -1)).clamp_min(1e-12)[..., None, None]
        for _ in range(self.refits):
            x = x + rate * x @ (taper * (posterior - self._localized(taper, x)))
        x = x - x.mean(-2, keepdim=True)
        return _of_members(increment, (units * x).unflatten(-1, shape), seen)

    def _smoothed(
        self, given: AnalysisInput, prior: Tensor, innovation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Increment of the mean; gain, sensitivity and analysis covariance in units of the climatology."""
        shape, mask = given.mask.shape[-2:], given.mask.flatten(-2)
        units = self.std.expand(shape).flatten()
        observing = mask.unsqueeze(-1) * cast(Tensor, given.sensitivity) * units
        cross = prior @ observing.mT
        # Rows of unseen sites are zero: a unit variance there keeps the matrix regular and changes nothing.
        error = torch.diag_embed(torch.full_like(mask, self.noise**2).where(mask > 0, 1.0))
        factor, _ = torch.linalg.cholesky_ex(observing @ cross + error)
        gain = torch.cholesky_solve(cross.mT, factor).mT
        increment = units * ((self.noise * innovation.flatten(-2)) @ gain.mT)
        return increment.unflatten(-1, shape), gain, observing, prior - gain @ cross.mT

    def _localized(self, taper: Tensor, x: Tensor) -> Tensor:
        return taper * (x.mT @ x) / (self.members - 1)


def _of_members(increment: Tensor, deviations: Tensor, seen: Tensor) -> Update:
    spread, predicted = (x.square().mean(-3, keepdim=True).add(1e-12).sqrt() for x in (deviations, seen))
    return Update(increment, deviations, spread, predicted)


@register_analysis("extended")
class ExtendedAnalysis(CovariantAnalysis):
    """One state, and the covariance of its error in the memory: an extended Kalman smoother that a network corrects.

    What ten members cannot hold, a memory can. Model and derivative carry the covariance from cycle to cycle (Jazwinski 1970);
    the network varies its inflation from site to site. It is kept in units of the climatology, one row per
    channel among the features of the memory of each site, behind what the network has learned to remember.
    """

    minimum_members = 1
    carries_covariance = True
    largest_difference = 0.5  # in climatological standard deviations, for the derivatives

    def initial_memory(self, *batch: int, climatology: Tensor) -> Tensor:
        learned = super().initial_memory(*batch, climatology=climatology)
        # The error of one random state as a guess of another.
        covariance = 2 * torch.cov((climatology / self.std).flatten(1).mT)
        return self._packed(learned, covariance.expand(*batch, -1, -1))

    def uncertainty(self, base: Tensor, memory: Tensor) -> Tensor:
        variance = self._covariance(memory).diagonal(dim1=-2, dim2=-1).clamp_min(0)
        expected = variance.sqrt().unflatten(-1, base.shape[-2:]).unsqueeze(-3)
        return self.std * expected.clamp(max=self.largest_difference)

    def propagated(self, memory: Tensor, derivative: Tensor) -> Tensor:
        units = self.std.expand(self.channels, memory.shape[-2]).flatten()
        derivative = derivative * units / units.unsqueeze(-1)
        covariance = derivative @ self._covariance(memory) @ derivative.mT
        return self._packed(memory[..., : self.memory], covariance)

    def _classical(self, given: AnalysisInput, deviations: Tensor, seen: Tensor, innovation: Tensor) -> Update:
        shape = given.mask.shape[-2:]
        prior = self._taper(given.mask) * self._covariance(given.memory)
        increment, _, observing, posterior = self._smoothed(given, prior, innovation)
        predicted = ((observing @ prior) * observing).sum(-1)
        spread, predicted = (
            variance.clamp_min(1e-12).sqrt().unflatten(-1, shape).unsqueeze(-3)
            for variance in (posterior.diagonal(dim1=-2, dim2=-1), predicted)
        )
        return Update(increment, deviations, self.std * spread, predicted, posterior)

    def _kept(self, learned: Tensor, update: Update, growth: Tensor) -> Tensor:
        growth, covariance = growth.flatten(-3).unsqueeze(-2), cast(Tensor, update.covariance)
        covariance = growth * growth.mT * covariance
        return self._packed(learned, (covariance + covariance.mT) / 2)

    def _covariance(self, memory: Tensor) -> Tensor:
        rows = memory[..., 0, :, self.memory :].unflatten(-1, (self.channels, -1))
        return rows.transpose(-3, -2).flatten(-3, -2)

    def _packed(self, learned: Tensor, covariance: Tensor) -> Tensor:
        rows = covariance.unflatten(-2, (self.channels, -1)).transpose(-3, -2).flatten(-2)
        return torch.cat([learned, rows.unsqueeze(-3)], -1)

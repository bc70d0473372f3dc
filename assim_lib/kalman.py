r"""Analyses that start from a Kalman update, and learn what is missing.

``hybrid``
    a differentiable, covariance-localized ensemble Kalman update (the deterministic EnKF of Sakov & Oke, 2008:
    the perturbations move by half the gain) makes the first increment; the network sees it, together with
    the spread, and adds a correction to the mean, a bounded inflation at each site, and a memory.
``covariant``
    the same, with a covariance that is localized at the time of the base, and that the derivative of the model carries to
    the observation.
``extended``
    a single state; the covariance is in the memory, and the derivative of the model carries it from cycle to cycle as well.

With a lag the gain is that of :math:`K = P S^\top (S P S^\top + \sigma^2 I)^{-1}`, where :math:`P` is the covariance of the base and
:math:`S` the derivative of what is observed with respect to it. The ``hybrid`` estimates :math:`P S^\top` and
:math:`S P S^\top` from members; the others are given :math:`S` (:attr:`~assim_lib.analyses.AnalysisInput.sensitivity`).
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assim_lib.analyses import (
    Analysis,
    AnalysisInput,
    covariance_band,
    register_analysis,
    remember,
    sites_last_to_channels_last,
)

# Of the innovations of a cycle whose covariance is none nothing can be learned: their errors are taken to be huge.
NO_WEIGHT = 1e3


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
        analysis = mean + update.increment + self._unit(update) * correction + growth * update.deviations
        return analysis, self._kept(remember(learned, keep, write), update, growth)

    def _unit(self, update: Update) -> Tensor:
        """The unit in which the network corrects the mean."""
        return 0.25 * self.std

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
        factor = _cholesky(covariance + torch.diag_embed(seen_variance), NO_WEIGHT)
        return (cross @ torch.cholesky_solve(v.mT, factor)).mT.unflatten(-1, mask.shape[-2:])

    def _taper(self, like: Tensor, drift: float = 0.0, shorter: Tensor | None = None) -> Tensor:
        sites = like.shape[-1]
        index = torch.arange(sites, device=like.device, dtype=self.log_taper_length.dtype)
        # Through the circle and not along it: a Gaussian of the distance along a circle is no covariance.
        distance = sites / torch.pi * torch.sin((index - index[:, None] - drift) * (torch.pi / sites))
        if shorter is not None:
            distance = distance * shorter[..., None, None]
        taper = torch.exp(-0.5 * (distance / self.log_taper_length.exp()) ** 2)
        return taper.tile(self.channels, self.channels)


@register_analysis("covariant")
class CovariantAnalysis(HybridAnalysis):
    """The hybrid analysis with a localization that the model itself carries from the base to the observation.

    The covariance is localized once, at the time of the base, where neighbours are close. From there the derivative of the
    model takes it to the observation, so that what is far downstream by then is still known to be related (covariant
    localization, Bocquet 2016). The localized covariance has full rank, and the members cannot have its analysis
    for their own: they become those whose *localized* covariance is nearest to it (Farchi & Bocquet 2019).
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
        factor = _cholesky(observing @ cross + error, NO_WEIGHT)
        gain = torch.cholesky_solve(cross.mT, factor).mT
        increment = units * ((self.noise * innovation.flatten(-2)) @ gain.mT)
        return increment.unflatten(-1, shape), gain, observing, prior - gain @ cross.mT

    def _localized(self, taper: Tensor, x: Tensor) -> Tensor:
        return taper * (x.mT @ x) / (self.members - 1)


def _cholesky(matrix: Tensor, otherwise: float = 1.0) -> Tensor:
    """The lower factor of a covariance; where it is none, as rounding may leave it, that of its diagonal.

    Parameters
    ----------
    otherwise : a factor on the latter.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal = otherwise * torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1).sqrt())
    return torch.where((failed > 0)[..., None, None], diagonal, factor)


def _of_members(increment: Tensor, deviations: Tensor, seen: Tensor) -> Update:
    spread, predicted = (x.square().mean(-3, keepdim=True).add(1e-12).sqrt() for x in (deviations, seen))
    return Update(increment, deviations, spread, predicted)


@register_analysis("extended")
class ExtendedAnalysis(CovariantAnalysis):
    """One state, and the covariance of its error in the memory: an extended Kalman smoother that a network corrects.

    What ten members cannot hold, a memory can. Model and derivative carry the covariance from cycle to cycle (Jazwinski 1970);
    the network varies its inflation from site to site. It is kept in units of the climatology, one row per
    channel among the features of the memory of each site, behind what the network has learned to remember. The base
    inflation is not learned.

    The derivative is exact for small errors and says little about large ones, least of all about what is far away. The
    localization therefore follows the expected error: its reach is the taper length divided by the mean
    variance, relative to that of the climatology. And no entry is taken to be less certain than in the climatology.
    """

    minimum_members = 1
    carries_covariance = True
    largest_difference = 0.5  # in climatological standard deviations, for the derivatives
    least_variance = 1e-3  # of a direction, relative to the mean over all
    surprise, largest_growth = 3.0, 2.0  # see _growth

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The loss bounds the influence of a filter that has lost the truth, and would lower the inflation until some do.
        self.log_inflation.requires_grad_(False)

    def _unit(self, update: Update) -> Tensor:
        # There is little to correct, and where the covariance is small hardly anything.
        return update.spread

    def initial_memory(self, *batch: int, climatology: Tensor) -> Tensor:
        learned = super().initial_memory(*batch, climatology=climatology)
        # The error of one random state as a guess of another.
        covariance = 2 * torch.cov((climatology / self.std).flatten(1).mT)
        return self._packed(learned, covariance.expand(*batch, -1, -1))

    def columns(self, base: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        covariance = self._covariance(memory)
        largest = covariance.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-12).sqrt()
        columns = self.std * self._root(covariance).mT.unflatten(-1, base.shape[-2:])
        return columns, (self.largest_difference / largest).clamp(max=1.0)

    def drawn(self, base: Tensor, memory: Tensor, members: int, generator: torch.Generator) -> Tensor:
        root = self._root(self._covariance(memory))
        normal = torch.randn((*root.shape[:-2], members, root.shape[-1]), generator=generator).to(root)
        deviations = (normal @ root.mT).unflatten(-1, base.shape[-2:])
        return base + self.std * (deviations - deviations.mean(-3, keepdim=True))

    def propagated(self, memory: Tensor, derivative: Tensor) -> Tensor:
        units = self.std.expand(self.channels, memory.shape[-2]).flatten()
        derivative = derivative * units / units.unsqueeze(-1)
        covariance = derivative @ self._covariance(memory) @ derivative.mT
        return self._packed(memory[..., : self.memory], covariance)

    def _classical(self, given: AnalysisInput, deviations: Tensor, seen: Tensor, innovation: Tensor) -> Update:
        shape = given.mask.shape[-2:]
        prior = self._followed(given.mask, self._bounded(self._covariance(given.memory)))
        prior = self._growth(given, prior, innovation) * prior
        increment, _, observing, posterior = self._smoothed(given, prior, innovation)
        predicted = ((observing @ prior) * observing).sum(-1)
        spread, predicted = (
            variance.clamp_min(1e-12).sqrt().unflatten(-1, shape).unsqueeze(-3)
            for variance in (posterior.diagonal(dim1=-2, dim2=-1), predicted)
        )
        return Update(increment, deviations, self.std * spread, predicted, posterior)

    def _bounded(self, covariance: Tensor) -> Tensor:
        """The covariance with no variance above that of the climatology; correlations stay as they are."""
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        shrunk = variances.clamp_min(1.0).rsqrt()
        return shrunk.unsqueeze(-1) * shrunk.unsqueeze(-2) * covariance

    def _followed(self, like: Tensor, covariance: Tensor) -> Tensor:
        """The covariance, localized the more the larger its variances are."""
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        return self._taper(like, shorter=variance) * covariance

    @torch.no_grad()
    def _growth(self, given: AnalysisInput, prior: Tensor, innovation: Tensor) -> Float[Tensor, "*batch 1 1"]:
        """A factor on the covariance, 1 unless the innovation is larger than chance allows.

        A covariance that has become too small for the error would never learn of it: the filter would trust itself,
        and lose the truth. The sum of squared innovations says what the covariance should have been (Wang & Bishop 2003);
        it counts from :attr:`surprise` standard deviations above its expectation on.
        """
        mask, units = given.mask.flatten(-2), self.std.expand(given.mask.shape[-2:]).flatten()
        observing = mask.unsqueeze(-1) * cast(Tensor, given.sensitivity) * units
        expected = ((observing @ prior) * observing).sum(-1) / self.noise**2
        seen = innovation.flatten(-3).square().sum(-1)
        chance = (2 * mask * (1 + expected).square()).sum(-1).sqrt()
        excess = (seen - mask.sum(-1) - self.surprise * chance) / expected.sum(-1).clamp_min(1e-12)
        return excess.clamp(1.0, self.largest_growth)[..., None, None]

    def _kept(self, learned: Tensor, update: Update, growth: Tensor) -> Tensor:
        growth, covariance = growth.flatten(-3).unsqueeze(-2), cast(Tensor, update.covariance)
        covariance = growth * growth.mT * covariance
        return self._packed(learned, (covariance + covariance.mT) / 2)

    def _covariance(self, memory: Tensor) -> Tensor:
        rows = memory[..., 0, :, self.memory :].unflatten(-1, (self.channels, -1))
        return rows.transpose(-3, -2).flatten(-3, -2)

    def _root(self, covariance: Tensor) -> Tensor:
        variances = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12)
        # In single precision some direction of nearly no variance may come out with a negative one.
        floor = (self.least_variance * variances.mean(-1, keepdim=True)).expand_as(variances)
        return _cholesky(covariance + torch.diag_embed(floor))

    def _packed(self, learned: Tensor, covariance: Tensor) -> Tensor:
        rows = covariance.unflatten(-2, (self.channels, -1)).transpose(-3, -2).flatten(-2)
        return torch.cat([learned, rows.unsqueeze(-3)], -1)

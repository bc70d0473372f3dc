r"""Analyses that start from an ensemble Kalman update, and learn what is missing.

``hybrid``
    a differentiable, covariance-localized ensemble Kalman update (the deterministic EnKF of Sakov & Oke, 2008:
    the perturbations move by half the gain) makes the first increment; the network sees it, together with
    the spread, and adds a correction to the mean, a bounded inflation at each site, and a memory.
``covariant``
    the same, with a covariance that is localized at the time of the base, and that the derivative of the model carries
    to the observation.

With a lag the gain is :math:`K = P S^\top (S P S^\top + R)^{-1}`, where :math:`P` is the covariance of the base,
:math:`S` the derivative of what is observed with respect to it, and :math:`R` the observation error's covariance,
diagonal. The ``hybrid`` estimates :math:`P S^\top` and :math:`S P S^\top` from members; ``covariant`` takes :math:`S`
from differences of the model (:func:`central_differences`).
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assim_lib.analyses.base import (
    Analysis,
    AnalysisInput,
    ByExperiment,
    Corrected,
    Options,
    covariance_band,
    register_analysis,
    remember,
    sites_last_to_channels_last,
)
from assim_lib.analyses.covariances import central_differences, cholesky
from assim_lib.analyses.windows import Windows

# Of the innovations of a cycle whose covariance is none nothing can be learned: their errors are taken to be huge.
NO_WEIGHT = 1e3


class KalmanUpdate(NamedTuple):
    """What the classical part of an analysis makes of an observation.

    Args:
        increment: of the mean of the base.
        deviations: of the members from their mean, updated.
        spread: expected error of the updated base.
        predicted_spread: expected error of the prediction before.
        covariance: of the updated base in units of the climatology, where an analysis carries it on.
    """

    increment: Float[Tensor, "*batch 1 channel site"]
    deviations: Float[Tensor, "*batch member channel site"]
    spread: Float[Tensor, "*batch 1 channel site"]
    predicted_spread: Float[Tensor, "*batch 1 channel site"]
    covariance: Float[Tensor, "*windows state state"] | None = None


@register_analysis("hybrid")
class HybridAnalysis(Analysis):
    """A localized ensemble Kalman update, corrected by a network that sees it.

    Taper length (in sites) and inflation are two learned numbers, given here as they start;
    :attr:`largest_inflation` bounds what the network may add to the latter at a site.

    From :attr:`local_from` sites on the gain is that of windows (:mod:`~assim_lib.analyses.windows`), whose margins are
    so wide that nothing of the localization is lost, at the taper length that training starts with.

    Args:
        band: covariances between a site and its neighbours from distance 1 up to this one are features.
        taper_length: reach of the localization, in sites.
        drift: sites per cycle of lag by which the centre of the localization moves between base and observation;
            positive toward larger indices.
    """

    minimum_members = 2
    memory_per_member = False
    needs_operator = True
    weighs_errors = True
    local_from: ClassVar[int] = 200
    core, reaches = 40, 10  # sites, and taper lengths
    uses = ("inflation", "band", "taper_length", "drift")
    kept = ("inflation", "taper_length")
    defaults: ClassVar[Options] = {
        "hidden_size": 64,
        "blocks": 4,
        "memory": 16,
        "window": 8,
        "lag": 3,
        "inflation": 1.05,
    }
    presets: ClassVar[Mapping[str, Options]] = {"cpu": {"hidden_size": 96}, "paper": {"hidden_size": 128}}
    experiments: ClassVar[ByExperiment] = {
        "l96_conv": {"drift": 0.5},
        "l96_ff": {"drift": 0.5},
        "ks": {"inflation": 1.02, "taper_length": 12.0, "batch": 8},
        "misspec": {"inflation": 1.3, "lag": 0},
        "vl20": {"inflation": 1.1, "taper_length": 3.0, "lag": 1},
    }
    largest_inflation = 0.2

    def __init__(self, *args: Any, band: int = 0, taper_length: float = 5.0, drift: float = 0.0, **kwargs: Any):
        self.band, self.drift, self.taper_length = band, drift, taper_length
        super().__init__(*args, **kwargs)
        self.log_taper_length = nn.Parameter(torch.tensor(taper_length).log())
        self.log_inflation = nn.Parameter(torch.tensor(self.inflation).log())

    def windows(self, sites: int) -> Windows | None:
        """In which a ring of so many sites is updated; None: at once."""
        margin = math.ceil(self.reaches * self.taper_length + abs(self.drift * self.lag))
        return Windows.of(sites, self.core, margin, self.local_from)

    def inputs(self) -> int:
        return self.channels * (6 + 2 * self.lagged + self.band) + self.memory

    def outputs(self) -> int:
        return 2 * self.channels + 2 * self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> Corrected:
        mean, predicted = given.base.mean(-3, keepdim=True), given.predicted.mean(-3, keepdim=True)
        deviations, observed = given.base - mean, (given.predicted - predicted) * given.mask.unsqueeze(-3)
        innovation = self.innovation(given, predicted)
        update = self._kalman_update(given, deviations, observed, innovation)

        std = self.std
        fields = [
            self.normal(mean),
            given.tendency.mean(-3, keepdim=True) / std,
            innovation,
            given.mask.unsqueeze(-3),
            # Errors are small against the climatology: bring them to the size of the other features.
            4 * update.increment / std,
            4 * update.spread / std,
        ]
        if self.lagged:
            fields += [self.normal(given.forecast.mean(-3, keepdim=True)), 4 * update.predicted_spread / std]
        if self.band:
            fields.append(
                16 * covariance_band(update.deviations / std, self.band)[..., self.channels :, :].unsqueeze(-3)
            )
        features = torch.cat([sites_last_to_channels_last(*fields), given.memory], -1)
        correction, inflation, keep, write = self.trunk(features, given.phase, generator).split(
            [self.channels, self.channels, self.memory, self.memory], -1
        )
        correction, inflation = correction.transpose(-1, -2), inflation.transpose(-1, -2)
        inflation = torch.exp(self.log_inflation + self.largest_inflation * torch.tanh(inflation))
        analysis = mean + update.increment + self._unit(update) * correction + inflation * update.deviations
        memory = remember(given.memory, keep, write)
        return Corrected(analysis, memory, self._inflated_covariance(update.covariance, inflation))

    def _unit(self, update: KalmanUpdate) -> Tensor:
        """The unit in which the network corrects the mean."""
        return 0.25 * self.std

    def _inflated_covariance(self, covariance: Tensor | None, inflation: Tensor) -> Tensor | None:
        """The covariance that is carried on, with an inflation of its own at each site."""
        return covariance

    def _kalman_update(
        self, given: AnalysisInput, deviations: Tensor, observed: Tensor, innovation: Tensor
    ) -> KalmanUpdate:
        """What is done without any network.

        Args:
            deviations, observed: of the members from their mean, at the base and as they would be observed.
            innovation: of the mean, in standard deviations of the observation error.
        """
        # One solve serves the mean (first right-hand side) and the perturbations (the others, at half the gain).
        vectors = torch.cat([given.error * innovation, -0.5 * observed], -3)
        gained = self._gain(given, deviations, observed, vectors)
        return _of_members(gained[..., :1, :, :], deviations + gained[..., 1:, :, :], observed)

    def _gain(self, given: AnalysisInput, deviations: Tensor, observed: Tensor, vectors: Tensor) -> Tensor:
        """The localized Kalman gain applied to each of ``vectors`` (…, vector, channel, site)."""
        ring = given.mask.shape[-1]
        if windows := self.windows(ring):
            parts = [self._gain_of(part, given, deviations, observed, vectors) for part in windows.parts()]
            return torch.cat(parts, -1)
        return self._dense_gain(given, deviations, observed, vectors, ring)

    def _gain_of(self, windows: Windows, given: AnalysisInput, *fields: Tensor) -> Tensor:
        a, y, v = (windows.split(field, 3) for field in fields)
        return windows.join(self._dense_gain(in_windows(given, windows), a, y, v, given.mask.shape[-1]), 3)

    def _dense_gain(
        self, given: AnalysisInput, deviations: Tensor, observed: Tensor, vectors: Tensor, ring: int
    ) -> Tensor:
        a, y, v, mask = deviations.flatten(-2), observed.flatten(-2), vectors.flatten(-2), given.mask
        # What an observation says of the past is found upstream: where news travels, so does the localization.
        cross = self._taper(mask, self.drift * self.lag, ring=ring) * (a.mT @ y) / (self.members - 1)
        covariance = self._taper(mask, ring=ring) * (y.mT @ y) / (self.members - 1)
        factor = cholesky(covariance + received_error(given), NO_WEIGHT)
        return (cross @ torch.cholesky_solve(v.mT, factor)).mT.unflatten(-1, mask.shape[-2:])

    def _taper(
        self, like: Tensor, shift: float = 0.0, shorter: Tensor | None = None, ring: int | None = None
    ) -> Tensor:
        """The localization, (…, state, state), of all sites or of some in a row of a longer ``ring``; ``shift``
        moves its centre, in sites, ``shorter`` divides its reach, by filter.
        """
        sites, ring = like.shape[-1], ring or like.shape[-1]
        index = torch.arange(sites, device=like.device, dtype=self.log_taper_length.dtype)
        # Through the circle and not along it: a Gaussian of the distance along a circle is no covariance.
        distance = ring / torch.pi * torch.sin((index - index[:, None] - shift) * (torch.pi / ring))
        if shorter is not None:
            distance = distance * shorter[..., None, None]
        taper = torch.exp(-0.5 * (distance / self.log_taper_length.exp()) ** 2)
        return taper.tile(self.channels, self.channels)


@register_analysis("covariant")
class CovariantAnalysis(HybridAnalysis):
    """The hybrid analysis with a localization that the model itself carries from the base to the observation.

    The covariance is localized once, at the time of the base, where neighbours are close. From there the derivative of
    the model takes it to the observation, so that what is far downstream by then is still known to be related
    (covariant localization, Bocquet 2016). The localized covariance has full rank, and the members cannot have its
    analysis for their own: they become those whose *localized* covariance is nearest to it (Farchi & Bocquet 2019).

    It has no windows: a ring of any size is updated at once, with matrices of all its sites.
    """

    uses = ("inflation", "band", "taper_length")
    defaults: ClassVar[Options] = {
        "hidden_size": 64,
        "blocks": 4,
        "memory": 16,
        "window": 8,
        "lag": 5,
        "inflation": 1.02,
        "taper_length": 4.0,
        "lr": 0.001,
    }
    experiments: ClassVar[ByExperiment] = {
        "l96_any": {"lag": 1, "inflation": 1.07},
    }
    refits, refit_rate = 5, 0.3

    def windows(self, sites: int) -> Windows | None:
        return None

    def covariance_root(
        self, base: Tensor, covariance: Tensor | None
    ) -> tuple[Float[Tensor, "*batch column channel site"], Float[Tensor, "*batch"]]:
        """The expected error of the mean of ``base``: columns of a lower triangular square root of its covariance.

        Here that is diagonal, the spread. Returned with it is the share of each column that differences should go: all
        of it, or less where little is known.
        """
        spread = (base - base.mean(-3, keepdim=True)).square().mean(-3).sqrt().clamp_min(1e-3 * self.std)
        return torch.diag_embed(spread.flatten(-2)).unflatten(-1, spread.shape[-2:]), spread.new_ones(spread.shape[:-2])

    def _kalman_update(
        self, given: AnalysisInput, deviations: Tensor, observed: Tensor, innovation: Tensor
    ) -> KalmanUpdate:
        shape, taper = given.mask.shape[-2:], self._taper(given.mask)
        # In units of the climatology: what is nearest must not depend on how the channels are measured.
        units = self.std.expand(shape).flatten()
        x = deviations.flatten(-2) / units
        observing = self._observing(given)
        increment, gain, posterior = self._smoothed(given, observing, self._localized(taper, x), innovation)
        # Half the gain is a first guess; some steps of steepest descent on the squared distance follow.
        x = x - 0.5 * x @ observing.mT @ gain.mT
        # No step may overshoot: its length is bounded by the larger of the two covariances (their largest row sum).
        both = torch.stack([posterior, self._localized(taper, x)])
        rate = self.refit_rate / (taper * both).abs().sum(-1).amax((0, -1)).clamp_min(1e-12)[..., None, None]
        for _ in range(self.refits):
            x = x + rate * x @ (taper * (posterior - self._localized(taper, x)))
        x = x - x.mean(-2, keepdim=True)
        return _of_members(increment, (units * x).unflatten(-1, shape), observed)

    def _observing(self, given: AnalysisInput) -> Tensor:
        """Derivative of what is observed by the base, in units of the climatology; zero where nothing is seen."""
        root, share = self.covariance_root(given.base, given.covariance)
        sensitivity, _ = central_differences(given.predict, given.base.mean(-3, keepdim=True), root, share)
        units = self.std.expand(given.mask.shape[-2:]).flatten()
        return given.mask.flatten(-2).unsqueeze(-1) * sensitivity * units

    def _smoothed(
        self, given: AnalysisInput, observing: Tensor, prior: Tensor, innovation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Increment of the mean; gain and analysis covariance in units of the climatology."""
        shape = given.mask.shape[-2:]
        units = self.std.expand(shape).flatten()
        cross = prior @ observing.mT
        factor = cholesky(observing @ cross + received_error(given), NO_WEIGHT)
        gain = torch.cholesky_solve(cross.mT, factor).mT
        increment = units * ((given.error * innovation).flatten(-2) @ gain.mT)
        return increment.unflatten(-1, shape), gain, prior - gain @ cross.mT

    def _localized(self, taper: Tensor, x: Tensor) -> Tensor:
        return taper * (x.mT @ x) / (self.members - 1)


def in_windows(given: AnalysisInput, windows: Windows) -> AnalysisInput:
    """What a Kalman update needs, by window; a covariance that is carried is so already."""
    return given._replace(
        covariance=None if given.covariance is None else windows.of_all(given.covariance),
        base=windows.split(given.base, 3),
        mask=windows.split(given.mask),
        error=windows.split(given.error.unsqueeze(-3), 3),
        error_variance=windows.split(given.error_variance),
    )


def received_error(given: AnalysisInput) -> Float[Tensor, "*windows state state"]:
    """R of what was received. Rows of what was not are zero elsewhere: a unit variance there changes nothing."""
    variance = given.error_variance.expand(given.mask.shape).where(given.mask > 0, 1.0)
    return torch.diag_embed(variance.flatten(-2))


def _of_members(increment: Tensor, deviations: Tensor, observed: Tensor) -> KalmanUpdate:
    spread, predicted = (x.square().mean(-3, keepdim=True).add(1e-12).sqrt() for x in (deviations, observed))
    return KalmanUpdate(increment, deviations, spread, predicted)

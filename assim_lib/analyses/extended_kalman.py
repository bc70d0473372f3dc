r"""An extended Kalman smoother that a network corrects.

A single state is carried, and the covariance :math:`P` of its error. Between observations the model's derivative
:math:`M` takes it along, :math:`P \leftarrow M P M^\top`; an observation corrects the state :math:`L` cycles back with
the gain :math:`P S^\top (S P S^\top + R)^{-1}`, where :math:`S` is the derivative of what is observed with respect to
that state.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.analyses.base import AnalysisInput, ByExperiment, Options, register_analysis
from assim_lib.analyses.covariances import central_differences, cholesky
from assim_lib.analyses.ensemble_kalman import CovariantAnalysis, KalmanUpdate, in_windows
from assim_lib.analyses.windows import Windows
from assim_lib.observations import observation_model


@register_analysis("extended")
class ExtendedAnalysis(CovariantAnalysis):
    """One state, and the covariance of its error: an extended Kalman smoother that a network corrects.

    What ten members cannot hold, a covariance can. Model and derivative carry it from cycle to cycle (Jazwinski 1970),
    in units of the climatology; the network varies its inflation from site to site. The base inflation is not learned.

    The derivative is exact for small errors and says little about large ones, least of all about what is far away. The
    localization therefore follows the expected error: its reach is the taper length divided by the mean
    variance, relative to that of the climatology. And no entry is taken to be less certain than in the climatology.

    From :attr:`local_from` sites on a covariance is carried for each window of the ring
    (:mod:`~assim_lib.analyses.windows`), and no longer one of all sites. The derivative is that of the model on a ring
    of the window's sites: its seam lies in the margins, farther from the core than errors travel in a few cycles. The
    model must therefore be :attr:`~assim_lib.systems.Dynamics.homogeneous`, and what is observed of a site must be said
    by its neighbourhood.
    """

    minimum_members = maximum_members = 1
    uses = ("inflation", "taper_length")
    # Untrained, an extended filter is close to the best there is. Training first undoes some of that: it takes some
    # thousand updates, or small steps, until it has added to it.
    defaults: ClassVar[Options] = {
        "hidden_size": 64,
        "blocks": 4,
        "memory": 16,
        "window": 8,
        "lag": 8,
        "lag_warmup": 10,
        "inflation": 1.02,
        "taper_length": 0.5,
        "lr": 2e-4,
        "adamw_lr": 2e-4,
        "m": 1,
    }
    presets: ClassVar[Mapping[str, Options]] = {"cpu": {"updates": 2000}, "paper": {"hidden_size": 128}}
    experiments: ClassVar[ByExperiment] = {
        "ks": {"inflation": 1.0, "batch": 6},
        "misspec": {"inflation": 1.3, "lag": 0},
        # Between the lags that are best where much and where little is seen.
        "l96_any": {"lag": 2},
        "vl20": {"inflation": 1.08, "lag": 3},
    }
    largest_difference = 0.5  # in climatological standard deviations, for the derivatives
    least_variance = 1e-3  # of a direction, relative to the mean over all
    least_share = 1e-5  # of a variance, after an update
    surprise, largest_factor = 3.0, 2.0  # see _surprise_factor
    core, margin = 60, 40  # sites of a window

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # The loss bounds the influence of a filter that has lost the truth, and would lower the inflation until some
        # do.
        self.log_inflation.requires_grad_(False)

    @classmethod
    def problems(cls, options: Any) -> Iterator[str]:
        # Its inflation is that of a covariance, and needs no members.
        dynamics = options.forecast_model
        windows = Windows.of(dynamics.sites, cls.core, cls.margin, cls.local_from)
        if windows is None:
            return
        large = f"works in windows of a ring of {dynamics.sites} sites"
        if not dynamics.homogeneous or dynamics.depends_on_time:
            yield (
                f"analysis = {options.analysis!r} {large}, and its model, {dynamics.name!r}, must be homogeneous and "
                "must not depend on time; take 'hybrid'."
            )
        instruments = observation_model(options.obs_conf, dynamics.channels, dynamics.sites)
        if not _can_be_split(instruments.operator, windows, dynamics.rest()):
            yield (
                f"analysis = {options.analysis!r} {large}, and obs_conf = {options.obs_conf!r} has an operator of the "
                "whole ring; take 'hybrid'."
            )

    def windows(self, sites: int) -> Windows | None:
        return Windows.of(sites, self.core, self.margin, self.local_from)

    def _unit(self, update: KalmanUpdate) -> Tensor:
        # There is little to correct, and where the covariance is small hardly anything.
        return update.spread

    def initial_covariance(
        self, *batch: int, climatology: Float[Tensor, "sample channel site"]
    ) -> Float[Tensor, "*windows state state"]:
        # The error of one random state as a guess of another.
        states, windows = climatology / self.std, self.windows(climatology.shape[-1])
        if windows is None:
            return 2 * torch.cov(states.flatten(1).mT).expand(*batch, -1, -1)
        parts = windows.split(states).unbind(1)
        return 2 * torch.stack([torch.cov(part.flatten(1).mT) for part in parts]).expand(*batch, -1, -1, -1)

    def covariance_root(
        self, base: Tensor, covariance: Tensor | None
    ) -> tuple[Float[Tensor, "*batch column channel site"], Float[Tensor, "*batch"]]:
        covariance = cast(Tensor, covariance)
        largest = covariance.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-12).sqrt()
        root = self.std * self._root(covariance).mT.unflatten(-1, base.shape[-2:])
        return root, (self.largest_difference / largest).clamp(max=1.0)

    def sample_members(
        self, base: Tensor, covariance: Tensor | None, members: int, generator: torch.Generator
    ) -> Float[Tensor, "*batch member channel site"]:
        root = self._root(cast(Tensor, covariance))
        normal = torch.randn((*root.shape[:-2], members, root.shape[-1]), generator=generator).to(root)
        deviations = (normal @ root.mT).unflatten(-1, (self.channels, -1))
        if windows := self.windows(base.shape[-1]):
            # Cores next to each other are drawn independently of each other.
            deviations = windows.join(deviations, 3)
        return base + self.std * (deviations - deviations.mean(-3, keepdim=True))

    def forecast(
        self, base: Tensor, covariance: Tensor | None, flow: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "*batch member channel site"], Float[Tensor, "*windows state state"]]:
        covariance = cast(Tensor, covariance)
        if windows := self.windows(base.shape[-1]):
            parts = windows.parts()
            moved = [self._moved(part.split(base, 3), part.of_all(covariance), flow) for part in parts]
            shift = torch.cat([part.join(shift, 3) for part, (shift, _) in zip(parts, moved, strict=True)], -1)
            return flow(base) + shift, torch.cat([later for _, later in moved], -3)
        shift, later = self._moved(base, covariance, flow)
        return flow(base) + shift, later

    def _moved(self, mean: Tensor, covariance: Tensor, flow: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """How far the mean a cycle later lies off the forecast, and the covariance then."""
        derivative, shift = central_differences(flow, mean, *self.covariance_root(mean, covariance))
        units = self.std.expand(self.channels, covariance.shape[-1] // self.channels).flatten()
        derivative = derivative * units / units.unsqueeze(-1)
        return shift, derivative @ covariance @ derivative.mT

    def _kalman_update(
        self, given: AnalysisInput, deviations: Tensor, observed: Tensor, innovation: Tensor
    ) -> KalmanUpdate:
        if windows := self.windows(given.mask.shape[-1]):
            parts = [self._update_of(part, given, deviations, innovation) for part in windows.parts()]
            *fields, covariances = zip(*parts, strict=True)
            return KalmanUpdate._make([*(torch.cat(field, -1) for field in fields), torch.cat(covariances, -3)])
        return self._dense_update(given, deviations, innovation)

    def _update_of(
        self, windows: Windows, given: AnalysisInput, deviations: Tensor, innovation: Tensor
    ) -> tuple[Tensor, ...]:
        """A :class:`KalmanUpdate` of the sites that are the cores of some windows."""
        *fields, covariance = self._dense_update(
            in_windows(given, windows), windows.split(deviations, 3), windows.split(innovation, 3)
        )
        return *(windows.join(field, 3) for field in fields), cast(Tensor, covariance)

    def _dense_update(self, given: AnalysisInput, deviations: Tensor, innovation: Tensor) -> KalmanUpdate:
        shape, observing = given.mask.shape[-2:], self._observing(given)
        prior = self._localized_by_error(given.mask, self._bounded(cast(Tensor, given.covariance)))
        prior = self._surprise_factor(given, observing, prior, innovation) * prior
        increment, _, posterior = self._smoothed(given, observing, prior, innovation)
        # Below this share of the variance before, single precision knows no more than its own rounding.
        before, after = (covariance.diagonal(dim1=-2, dim2=-1) for covariance in (prior, posterior))
        posterior = posterior + torch.diag_embed((self.least_share * before - after).clamp_min(0.0))
        predicted = ((observing @ prior) * observing).sum(-1)
        spread, predicted = (
            variance.clamp_min(1e-12).sqrt().unflatten(-1, shape).unsqueeze(-3)
            for variance in (posterior.diagonal(dim1=-2, dim2=-1), predicted)
        )
        return KalmanUpdate(increment, deviations, self.std * spread, predicted, posterior)

    def _bounded(self, covariance: Tensor) -> Tensor:
        """The covariance with no variance above that of the climatology; correlations stay as they are."""
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        shrunk = variances.clamp_min(1.0).rsqrt()
        return shrunk.unsqueeze(-1) * shrunk.unsqueeze(-2) * covariance

    def _localized_by_error(self, like: Tensor, covariance: Tensor) -> Tensor:
        """The covariance, localized the more the larger its variances are."""
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        return self._taper(like, shorter=variance) * covariance

    @torch.no_grad()
    def _surprise_factor(
        self, given: AnalysisInput, observing: Tensor, prior: Tensor, innovation: Tensor
    ) -> Float[Tensor, "*batch 1 1"]:
        """A factor on the covariance, 1 unless the innovation is larger than chance allows.

        A covariance that has become too small for the error would never learn of it: the filter would trust itself,
        and lose the truth. The sum of squared innovations says what the covariance should have been (Wang & Bishop
        2003); it counts from :attr:`surprise` standard deviations above its expectation on.
        """
        mask = given.mask.flatten(-2)
        expected = ((observing @ prior) * observing).sum(-1) / given.error_variance.flatten(-2)
        squared = innovation.flatten(-3).square().sum(-1)
        chance = (2 * mask * (1 + expected).square()).sum(-1).sqrt()
        excess = (squared - mask.sum(-1) - self.surprise * chance) / expected.sum(-1).clamp_min(1e-12)
        return excess.clamp(1.0, self.largest_factor)[..., None, None]

    def _inflated_covariance(self, covariance: Tensor | None, inflation: Tensor) -> Tensor:
        if windows := self.windows(inflation.shape[-1]):
            inflation = windows.split(inflation, 3)
        inflation = inflation.flatten(-3).unsqueeze(-2)
        covariance = inflation * inflation.mT * cast(Tensor, covariance)
        return (covariance + covariance.mT) / 2

    def _root(self, covariance: Tensor) -> Tensor:
        variances = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12)
        # In single precision some direction of nearly no variance may come out with a negative one.
        floor = (self.least_variance * variances.mean(-1, keepdim=True)).expand_as(variances)
        return cholesky(covariance + torch.diag_embed(floor))


def _can_be_split(operator: Callable[[Tensor], Tensor], windows: Windows, like: Tensor) -> bool:
    """Whether an operator says of windows what it says of their ring; asked with numbers that are other everywhere."""
    x = torch.arange(like.numel()).sin().to(like).view_as(like)
    try:
        return torch.allclose(windows.join(operator(windows.split(x))), operator(x))
    except (RuntimeError, ValueError, IndexError):  # it knows a ring of that many sites only
        return False

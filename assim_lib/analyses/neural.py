r"""Analyses that a network does alone.

``original``
    the update of McCabe & Brown (2021). Each member is updated on its own by one network: a gate decides how much of
    the member stays, :math:`x \leftarrow g \odot x + \delta`, and a memory is carried along with it. Members see each
    other through the local ensemble covariances among their features, and through another one's forecast where nothing
    is observed.
``gated``
    the same update, in normalized units and with a network that is easier to train.
``recurrent``
    the same idea with an additive update, :math:`x \leftarrow x + \delta`, and a bounded memory; it needs no
    ensemble statistics, and works with a single member.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

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
from assim_lib.observations import observation_model
from assim_lib.systems.integrators import ADAPTIVE


class MemberByMember(Analysis):
    """What the two gated analyses share: each member is updated on its own, and sees the others through its features.

    Args:
        band: covariances between a site and its neighbours up to this distance are features.
    """

    minimum_members = 2

    def __init__(self, *args: Any, band: int = 0, **kwargs: Any):
        self.band = band  # before the trunk is built, which is as wide as the features
        super().__init__(*args, **kwargs)

    def outputs(self) -> int:
        return 2 * self.channels + 2 * self.memory

    def completed(self, given: AnalysisInput, generator: torch.Generator | None) -> Tensor:
        """The observation for each member; where nothing is seen, the forecast of another one, as a constant."""
        members = given.forecast.shape[-3]
        if generator is None:
            others = given.forecast.roll(1, -3)
        else:
            order = torch.randperm(members, generator=generator, device=generator.device)
            others = given.forecast[..., order.to(given.forecast.device), :, :]
        return torch.where(given.mask.unsqueeze(-3) > 0, given.observation.unsqueeze(-3), others.detach())


@register_analysis("original")
class OriginalAnalysis(MemberByMember):
    """The update of McCabe & Brown (2021), in raw units and with nothing added.

    Features of a site are the member's forecast; the observation, or another member's forecast where nothing is seen;
    the mask as ±0.1, unless all is seen; the tendency; ensemble covariances of its first channel with the sites around
    it; and the memory.

    Args:
        band: reach of the covariances, to both sides.
        tendency: whether the tendency is a feature.
        mask_features: number of mask channels among the features: none where all is seen, one where a site is seen in
            all its channels or in none.
    """

    uses = ("inflation", "band", "tendency", "mask_features")
    defaults: ClassVar[Options] = {
        "network": "original",
        "hidden_size": 64,
        "blocks": 4,
        "dropout": 0.1,
        "test_dropout": True,
        "band": 1,
        "training_m": 2,
        "order": "random",
    }
    presets: ClassVar[Mapping[str, Options]] = {
        "quick": {"updates": 150, "batch": 8},
        "cpu": {"updates": 16000},
        # As published: a long trajectory in windows of 40 from the truth, errors and masks drawn anew, AdamW as it
        # comes.
        "paper": {
            "window": 40,
            "batch": 64,
            "pool": 64,
            "restart": 1.0,
            "start": "truth",
            "noise_draws": "each",
            "segments": 1,
            "cycles": 240_000,
            "training_m": None,
            "optimizer": "adamw",
            "lr": 2.15e-3,
            "adamw_lr": 2.15e-3,
            "rates": "steps",
            "averaging": 0.0,
            "clip_norm": 1e9,
            "dropout": 0.2,
        },
    }
    experiments: ClassVar[ByExperiment] = {
        # As published; its 250 numbers of memory are six a site here.
        "l96_ff": {"network": "ff_original", "memory": 6},
        ("l96_ff", "paper"): {"window": 80, "batch": 128, "pool": 128, "lr": 5e-3, "adamw_lr": 5e-3, "dropout": 0.1},
        "ks": {"kernel": 7, "blocks": 3, "memory": 4, "band": 0, "tendency": False},
        ("ks", "paper"): {"batch": 32, "pool": 32, "lr": 1.34e-3, "adamw_lr": 1.34e-3, "dropout": 0.1},
        "unknown_operators": {"order": "schedule", "noise_draws": "once"},
    }

    def __init__(self, *args: Any, tendency: bool = True, mask_features: int = 1, **kwargs: Any):
        self.tendency, self.mask_features = tendency, mask_features
        super().__init__(*args, **kwargs)

    def inputs(self) -> int:
        covariances = 2 * self.band + 1
        return self.channels * (2 + self.lagged + self.tendency + covariances) + self.mask_features + self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> Corrected:
        base = given.base
        deviations = base - base.mean(-3, keepdim=True)
        around = torch.cat([deviations.roll(-k, -1) for k in range(-self.band, self.band + 1)], -2)
        covariances = (deviations[..., :1, :] * around).sum(-3, keepdim=True) / (base.shape[-3] - 1)
        mask = 0.2 * given.mask.unsqueeze(-3)[..., : self.mask_features, :] - 0.1
        fields = [
            base,
            self.completed(given, generator),
            *([given.forecast] if self.lagged else []),
            *([given.tendency] if self.tendency else []),
            *(shared.expand(*base.shape[:-2], *shared.shape[-2:]) for shared in (mask, covariances)),
        ]
        features = torch.cat([sites_last_to_channels_last(*fields), given.memory], -1)
        change, write, gate, keep = self.trunk(features, given.phase, generator).split(
            [self.channels, self.memory] * 2, -1
        )
        analysis = torch.sigmoid(gate).transpose(-1, -2) * base + change.transpose(-1, -2)
        return Corrected(self.inflated(analysis), torch.sigmoid(keep) * given.memory + write)


@register_analysis("gated")
class GatedAnalysis(MemberByMember):
    """The original's gated update in normalized units, with a gate that an untrained network leaves open.

    Args:
        other_member: whether another member's forecast is seen where nothing is observed.
    """

    uses = ("inflation", "band", "other_member")
    defaults: ClassVar[Options] = {"dropout": 0.1, "test_dropout": True, "band": 2, "training_m": 2, "order": "random"}
    presets: ClassVar[Mapping[str, Options]] = {
        "quick": {"updates": 150, "batch": 8},
        "cpu": {"updates": 16000, "hidden_size": 64},
        "paper": {"window": 40, "batch": 64, "hidden_size": 64},
    }
    experiments: ClassVar[ByExperiment] = {
        "unknown_operators": {"order": "schedule", "noise_draws": "once"},
    }

    def __init__(self, *args: Any, other_member: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.other_member = other_member

    def inputs(self) -> int:
        return self.channels * (4 + self.lagged + 1 + self.band) + self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> Corrected:
        base = self.normal(given.base)
        covariances = covariance_band(base - base.mean(-3, keepdim=True), self.band)
        received = self.normal(self.completed(given, generator))
        if not self.other_member:
            received = received * given.mask.unsqueeze(-3)
        fields = [
            base,
            given.tendency / self.std,
            *([self.normal(given.forecast)] if self.lagged else []),
            received,
            *(
                shared.unsqueeze(-3).expand(*base.shape[:-2], *shared.shape[-2:])
                for shared in (given.mask, covariances)
            ),
        ]
        features = torch.cat([sites_last_to_channels_last(*fields), given.memory], -1)
        gate, change, forget, write = self.trunk(features, given.phase, generator).split(
            [self.channels, self.channels, self.memory, self.memory], -1
        )
        # The constant 3 opens the gates: an untrained filter is close to the free forecast.
        gate = torch.sigmoid(gate + 3.0).transpose(-1, -2)
        analysis = gate * base + change.transpose(-1, -2)
        memory = torch.sigmoid(forget) * given.memory + write
        return Corrected(self.inflated(self.mean + self.std * analysis), memory)


@register_analysis("recurrent")
class RecurrentAnalysis(Analysis):
    """An additive update of each member from its innovation and a bounded memory; m = 1 is legal.

    Args:
        sees_error: whether the standard deviation of the errors is a feature, so that one filter can serve many. The
            innovation is then a feature in units of the climatology as well.
        sees_gradient: whether what the innovation says of the base is a feature: :math:`J^T H^T R^{-1} d`, the gradient
            that 4D-Var descends along, by the adjoint of the model over the lag. The model carries the news back in
            time, which a network would have to learn.
        sees_window: whether the same of the observations before that, since the base, is one as well: what earlier
            corrections left to be done.
    """

    uses = ("inflation", "sees_error", "sees_gradient", "sees_window")
    defaults: ClassVar[Options] = {"hidden_size": 64, "blocks": 4, "memory": 24, "window": 12}
    presets: ClassVar[Mapping[str, Options]] = {
        "quick": {"updates": 300},
        "cpu": {"updates": 8000},
        "paper": {"window": 40, "batch": 64},
    }
    experiments: ClassVar[ByExperiment] = {
        # Small enough for a browser; few filters in each setting, so that all of them are warm.
        "l96_any": {
            "m": 1,
            "sees_error": True,
            "hidden_size": 48,
            "blocks": 3,
            "memory": 16,
            "leads": 2,
            "window": 10,
            "n_settings": 72,
            "batch": 16,
            "pool": 16,
            "restart": 0.02,
        },
    }

    def __init__(
        self,
        *args: Any,
        sees_error: bool = False,
        sees_gradient: bool = False,
        sees_window: bool = False,
        **kwargs: Any,
    ):
        # Before the trunk is built, which is as wide as the features.
        self.weighs_errors, self.sees_gradient, self.sees_window = sees_error, sees_gradient, sees_window
        super().__init__(*args, **kwargs)

    @classmethod
    def problems(cls, options: Any) -> Iterator[str]:
        yield from super().problems(options)
        if options.sees_window and not options.sees_gradient:
            yield "sees_window = True adds to sees_gradient = True; set both, or neither."
        if options.sees_window and options.sees_error:
            yield "sees_window = True needs errors that stay the same, and sees_error = True is for others; choose one."
        if not options.sees_gradient:
            return
        if not options.lag:
            yield "sees_gradient = True does nothing without a lag; leave it out, or take lag ≥ 1."
        dynamics = options.forecast_model
        if dynamics.method in ADAPTIVE:
            yield (
                f"sees_gradient = True needs a model with a fixed step, and that of {dynamics.name!r} is method = "
                f"{dynamics.method!r}; set it to False."
            )
        if observation_model(options.obs_conf, dynamics.channels, dynamics.sites).unknown:
            yield (
                "sees_gradient = True needs operators that may be used, and some of obs_conf = "
                f"{options.obs_conf!r} are unknown; set it to False."
            )

    def inputs(self) -> int:
        gradients = self.sees_gradient + self.sees_window
        return self.channels * (4 + self.lagged + gradients + 2 * self.weighs_errors) + self.memory

    def outputs(self) -> int:
        return self.channels + 2 * self.memory

    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> Corrected:
        innovation = self.innovation(given, given.predicted)
        fields = [
            self.normal(given.base),
            given.tendency / self.std,
            *([self.normal(given.forecast)] if self.lagged else []),
            innovation,
            given.mask.unsqueeze(-3).expand_as(given.base),
        ]
        if self.sees_gradient:
            fields += self._gradients(given, innovation / given.error)
        if self.weighs_errors:
            error = given.error / self.std
            fields += [innovation * error, error.log().expand_as(given.base)]
        features = torch.cat([sites_last_to_channels_last(*fields), given.memory], -1)
        increment, keep, write = self.trunk(features, given.phase, generator).split(
            [self.channels, self.memory, self.memory], -1
        )
        analysis = given.base + self.std * increment.transpose(-1, -2)
        return Corrected(self.inflated(analysis), remember(given.memory, keep, write))

    def _gradients(self, given: AnalysisInput, news: Tensor) -> list[Tensor]:
        """What the newest observation says of the base and, where it is seen, what those before it say still.

        In the units of the innovation, which they are where state and prediction are the same.
        """
        if given.recent is None or given.predict_each is None:
            return [given.error * torch.func.vjp(given.predict, given.base)[1](news)[0]]
        # Both in one backward pass: as if there were twice as many members.
        predictions, adjoint = torch.func.vjp(given.predict_each, torch.cat([given.base, given.base], -3))[:2]
        nothing, missed = torch.zeros_like(news), []
        for received, predicted in zip(given.recent.unsqueeze(-3).unbind(-5), predictions[:-1], strict=True):
            observation, mask = received.unbind(-4)
            earlier = (observation - predicted[..., : news.shape[-3], :, :]) * mask / given.error_variance
            missed.append(torch.cat([nothing, earlier], -3))
        gradients = given.error * adjoint((*missed, torch.cat([news, nothing], -3)))[0]
        return list(gradients.chunk(2, -3))

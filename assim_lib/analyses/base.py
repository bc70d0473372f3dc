r"""The analysis: forecast ensemble + observation + memory → corrected ensemble + memory.

All analyses share one interface, so that the cycle, the training and the scores never ask which one runs. Here stands
what they share; :mod:`~assim_lib.analyses.neural` has those that a network does alone,
:mod:`~assim_lib.analyses.ensemble_kalman` and :mod:`~assim_lib.analyses.extended_kalman` those that start from a
Kalman update.

**Lag.** The state that is corrected (``base``) may lie :math:`L` cycles before the observation, as in a
fixed-lag smoother: the ensemble at :math:`t-L` is corrected by what its forecast at :math:`t` missed.
With :math:`L = 0` base and forecast are the same tensor.

A new analysis is one class: features and outputs per site (:meth:`Analysis.inputs`, :meth:`Analysis.outputs`),
:meth:`Analysis.forward`, and what it says of itself in class attributes (the options it uses, and those it trains well
with). Decorated with :func:`register_analysis`, also in a notebook, it is known by its name, and every preset sizes it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assim_lib.networks import TrunkSizes
from assim_lib.registry import Registry

Options = Mapping[str, Any]
ByExperiment = Mapping[str | tuple[str, str], Options]  # or by experiment and preset


class AnalysisInput(NamedTuple):
    """What an analysis may use. ``member`` counts the ensemble; ``L`` is the lag.

    Args:
        base: states to correct, at t − L.
        forecast: their forecast, at t.
        predicted: the forecast's observation, H(forecast), on the grid; zero where H is not known.
        observation: what was received at t, zero elsewhere.
        mask: where something was (1 or 0).
        error: the observation error's standard deviation, of each entry.
        error_variance: its square.
        phase: which entry of the observation schedule that is.
        tendency: of ``base``.
        memory: one vector per site (and per member, where an analysis updates members one by one).
        covariance: of the error of the base in units of the climatology, where one is carried; by window on a large
            ring.
        predict: what would be observed at t of other states at t − L.
        recent: what was received at t − L … t − 1, zero elsewhere, and where something was; where an analysis asks.
        predict_each: what would be observed of other states at t − L, at each time from then to t.
    """

    base: Float[Tensor, "*batch member channel site"]
    forecast: Float[Tensor, "*batch member channel site"]
    predicted: Float[Tensor, "*batch member channel site"]
    observation: Float[Tensor, "*batch channel site"]
    mask: Float[Tensor, "*batch channel site"]
    error: Float[Tensor, "channel site"]
    error_variance: Float[Tensor, "channel site"]
    phase: Int[Tensor, "*batch"]
    tendency: Float[Tensor, "*batch member channel site"]
    memory: Float[Tensor, "*batch memories site features"]
    covariance: Float[Tensor, "*windows state state"] | None
    predict: Callable[[Tensor], Tensor]
    recent: Float[Tensor, "*batch cycle 2 channel site"] | None = None
    predict_each: Callable[[Tensor], tuple[Tensor, ...]] | None = None


class Corrected(NamedTuple):
    """What an analysis returns: the corrected base, and what is remembered of the cycle."""

    base: Float[Tensor, "*batch member channel site"]
    memory: Float[Tensor, "*batch memories site features"]
    covariance: Float[Tensor, "*windows state state"] | None = None


class Normalization(NamedTuple):
    """The units in which a network sees the state: climatological mean and standard deviation of each channel."""

    mean: Float[Tensor, "channel 1"]
    std: Float[Tensor, "channel 1"]

    @classmethod
    def of(cls, climatology: Float[Tensor, "state channel site"]) -> "Normalization":
        """The units that states of the free-running model suggest."""
        by_channel = climatology.transpose(0, 1).flatten(1)
        return cls(by_channel.mean(1, keepdim=True), by_channel.std(1, keepdim=True))


class Analysis(nn.Module, ABC):
    """Base class of all analyses.

    Args:
        channels: of the state.
        members: ensemble size.
        normalization: units of the features.
        network, sizes: the trunk, see :mod:`assim_lib.networks`.
        memory: memory channels per site.
        lag: L, in cycles.
        inflation: factor on the analysis perturbations.

    Attributes:
        minimum_members: the smallest ensemble that it works with.
        maximum_members: the largest.
        memory_per_member: whether each member has a memory of its own.
        uses: names of the options of an experiment that are passed to the constructor, beyond those above.
        own: options that it alone has, by name, with their defaults; they are passed to the constructor as well.
        defaults: options that it trains well with, by name.
        presets: what these are in a preset, if not what that says.
        experiments: what these are in an experiment, or in an experiment and a preset; untrained, it tracks well so.
        kept: names of the options that say what training starts with: a trained filter keeps its own, learned or not.
        needs_operator: whether it must know what every instrument measures.
        weighs_errors: whether it works with other errors of the observations than those it was trained with.
        sees_gradient: whether it differentiates the model.
        sees_window: whether it asks for the observations since the base.
    """

    minimum_members: ClassVar[int] = 1
    maximum_members: ClassVar[float] = float("inf")
    memory_per_member: ClassVar[bool] = True
    needs_operator: ClassVar[bool] = False
    weighs_errors: bool = False
    sees_gradient: bool = False
    sees_window: bool = False
    uses: ClassVar[tuple[str, ...]] = ("inflation",)
    own: ClassVar[Options] = {}
    defaults: ClassVar[Options] = {}
    presets: ClassVar[Mapping[str, Options]] = {}
    experiments: ClassVar[ByExperiment] = {}
    kept: ClassVar[tuple[str, ...]] = ()
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        members: int,
        normalization: Normalization,
        network: Callable[[int, int, TrunkSizes], nn.Module],
        sizes: TrunkSizes,
        memory: int = 6,
        lag: int = 0,
        inflation: float = 1.0,
    ):
        super().__init__()
        if not self.minimum_members <= members <= self.maximum_members:
            raise ValueError(f"m = {members} does not work with this analysis; {self.allowed_members()}.")
        self.channels, self.members, self.memory, self.lag, self.inflation = channels, members, memory, lag, inflation
        self.register_buffer("mean", normalization.mean, persistent=False)
        self.register_buffer("std", normalization.std, persistent=False)
        self.trunk = network(self.inputs(), self.outputs(), sizes)

    @classmethod
    def allowed_members(cls) -> str:
        """Which ensemble sizes it works with, in words."""
        if cls.maximum_members == 1:
            return "it carries a covariance in place of members; take m = 1"
        if cls.maximum_members < float("inf"):
            return f"take m from {cls.minimum_members} to {cls.maximum_members}"
        return f"it needs ensemble covariances; take m ≥ {cls.minimum_members}, or analysis = 'recurrent'"

    @classmethod
    def problems(cls, options: Any) -> Iterator[str]:
        """Sentences about combinations of options that cannot be, beyond the ensemble size and options that it does
        not use.

        Args:
            options: an :class:`~assim_lib.training.experiment.Experiment`, whose fields are attributes.
        """
        if options.m == 1 and options.inflation != 1:
            yield f"inflation = {options.inflation} does nothing to m = 1; set it to 1."

    @property
    def lagged(self) -> bool:
        """Whether base and forecast differ."""
        return self.lag > 0

    @abstractmethod
    def inputs(self) -> int:
        """Number of features per site."""

    @abstractmethod
    def outputs(self) -> int:
        """Number of outputs of the network per site."""

    @abstractmethod
    def forward(self, given: AnalysisInput, generator: torch.Generator | None = None) -> Corrected:
        """Correct the base.

        Args:
            generator: on any device; turns dropout on, where there is any.
        """

    def initial_memory(self, *batch: int, climatology: Float[Tensor, "state channel site"]) -> Tensor:
        """An empty memory for a batch of filters."""
        memories = self.members if self.memory_per_member else 1
        return climatology.new_zeros(*batch, memories, climatology.shape[-1], self.memory)

    def initial_covariance(
        self, *batch: int, climatology: Float[Tensor, "sample channel site"]
    ) -> Float[Tensor, "*windows state state"] | None:
        """Covariance of the error of a state that is drawn from the climatology; None if none is carried."""
        return None

    def forecast(
        self, base: Tensor, covariance: Tensor | None, flow: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "*batch member channel site"], Float[Tensor, "*windows state state"] | None]:
        """The corrected base and the covariance of its error, a cycle later.

        Args:
            flow: the model over a cycle.
        """
        return flow(base), covariance

    def sample_members(
        self, base: Tensor, covariance: Tensor | None, members: int, generator: torch.Generator
    ) -> Float[Tensor, "*batch member channel site"]:
        """Members that stand for the distribution of the base, from a CPU generator; here, those that there are."""
        return base

    def normal(self, x: Tensor) -> Tensor:
        """States in units of the climatology."""
        return (x - self.mean) / self.std

    def innovation(self, given: AnalysisInput, predicted: Tensor) -> Tensor:
        """What the prediction missed, in standard deviations of the observation error; zero where nothing is seen."""
        return (given.observation.unsqueeze(-3) - predicted) * given.mask.unsqueeze(-3) / given.error

    def inflated(self, ensemble: Tensor) -> Tensor:
        """The ensemble with perturbations as many times as large as :attr:`inflation` says."""
        if self.inflation == 1:
            return ensemble
        mean = ensemble.mean(-3, keepdim=True)
        return mean + self.inflation * (ensemble - mean)


ANALYSES: Registry[type[Analysis]] = Registry("analysis", Analysis)
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


def remember(memory: Tensor, keep: Tensor, write: Tensor) -> Tensor:
    """Gated update that stays in (−1, 1): ``z·memory + (1 − z)·tanh(write)`` with ``z = sigmoid(keep)``."""
    return torch.lerp(torch.tanh(write), memory, torch.sigmoid(keep))

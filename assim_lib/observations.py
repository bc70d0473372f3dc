r"""What is seen, when, and with what error.

At cycle :math:`k` the filter receives :math:`y_k = H_k(x_k) + \sigma\,\varepsilon_k`, with independent standard
normal :math:`\varepsilon_k`. Observations live **on the grid**: ``y`` has the shape of the state, and is NaN where
nothing was received. That makes a batch in which every trajectory is at another point
of a rotating schedule an ordinary tensor, and lets one analysis serve every configuration.

Operator and error travel together: :math:`H` and :math:`R = \mathrm{diag}(\sigma^2)` are both parts of an
:class:`ObservationModel`, and :math:`\sigma` may be another for every entry. What was received of an observation is
what the schedule expects *and* what is a finite number.

An instrument may also be **unknown**: what it measures is then a linear map of the whole state that neither the
filter nor its training loss may use. Its numbers fill entries of the grid too, but say nothing of the
sites they stand at; what they mean has to be learned.

A configuration (the parameter ``obs_conf``) is a registered function from ``(channels, sites)`` to an
:class:`ObservationModel`; a notebook can add one with :func:`register_obs_conf` without touching the library.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assim_lib.mistakes import tried
from assim_lib.registry import Registry


def identity(x: Tensor) -> Tensor:
    """The state itself: a direct observation."""
    return x


@dataclass(frozen=True)
class ObservationModel:
    """A periodic schedule of masks and an operator.

    Attributes:
        schedule: ``(period, channel, site)`` boolean; entry ``k % period`` says what cycle ``k`` expects to see.
        operator: map from state to observed quantities, same shape (the identity by default): pointwise, or such that
            each entry measures mostly what is near it, see :mod:`~assim_lib.instruments`.
        error: standard deviation of the errors, a number or a tensor that broadcasts to ``(channel, site)``, in the
            observation's unit.
        unknown: by entry of the schedule, the ``(channel · site, channel · site)`` matrices that stand for ``operator``
            where the instrument is unknown. Only :meth:`observe` uses them.
    """

    schedule: Bool[Tensor, "period channel site"]
    operator: Callable[[Tensor], Tensor] = identity
    unknown: Mapping[int, Float[Tensor, "entry state"]] = field(default_factory=dict)
    error: float | Float[Tensor, "..."] = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.schedule, np.ndarray) and self.schedule.dtype == bool:
            object.__setattr__(self, "schedule", torch.from_numpy(self.schedule.copy()))
        if not isinstance(self.schedule, Tensor):
            raise ValueError(f"schedule of type {type(self.schedule).__name__} must be a boolean tensor or array.")
        if self.schedule.ndim != 3 or self.schedule.dtype != torch.bool or not self.schedule.any():
            raise ValueError(
                f"schedule of shape {tuple(self.schedule.shape)} and type {self.schedule.dtype} must be boolean, "
                "of shape (period, channel, site), and observe something."
            )
        if not set(self.unknown) < set(range(self.period)):
            raise ValueError(
                f"unknown = {sorted(self.unknown)} must be some of the {self.period} entries of the schedule, not all."
            )
        grid = tuple(self.schedule.shape[1:])
        try:
            if not isinstance(self.error, int | float | Tensor):
                object.__setattr__(self, "error", torch.as_tensor(self.error, dtype=torch.float64))
            sound = bool((self.standard_deviation > 0).all() and self.standard_deviation.isfinite().all())
        except (RuntimeError, TypeError, ValueError):
            sound = False
        if not sound:
            raise ValueError(f"error = {self.error} must be positive, and broadcast to (channel, site) = {grid}.")
        if self.unknown:
            size = grid[0] * grid[1]
            matrices = {entry: _matrix(f"unknown[{entry}]", given, size) for entry, given in self.unknown.items()}
            object.__setattr__(self, "unknown", matrices)

    @property
    def standard_deviation(self) -> Float[Tensor, "channel site"]:
        """The error's standard deviation of every entry, in double precision."""
        return torch.as_tensor(self.error, dtype=torch.float64).expand(self.schedule.shape[1:])

    def scaled(self, noise: float) -> "ObservationModel":
        """The same instruments with errors so many times as large."""
        return replace(self, error=noise * self.error)

    @property
    def period(self) -> int:
        """Number of cycles after which the schedule repeats."""
        return len(self.schedule)

    def mask(self, cycle: Int[Tensor, "*batch"] | int) -> Bool[Tensor, "*batch channel site"]:
        """Which entries exist at each cycle number."""
        return self.schedule[torch.as_tensor(cycle) % self.period]

    def known(self, cycle: Int[Tensor, "*batch"] | int) -> Bool[Tensor, "*batch channel site"]:
        """Which of them come from an operator that a filter and its loss may use."""
        return self._known_schedule[torch.as_tensor(cycle) % self.period]

    def usable(
        self, values: Float[Tensor, "*batch channel site"], cycle: Int[Tensor, "*batch"] | int
    ) -> Float[Tensor, "*batch channel site"]:
        """What a filter may use of the numbers of cycles: those of instruments it knows, where the schedule expects
        them; NaN elsewhere."""
        return torch.where(self.known(cycle), values, torch.nan)

    @property
    def _known_schedule(self) -> Tensor:
        keep = torch.tensor([phase not in self.unknown for phase in range(self.period)])
        return self.schedule & keep[:, None, None]

    def observe(
        self,
        truth: Float[Tensor, "*batch cycle channel site"],
        unit_noise: Float[Tensor, "*batch cycle channel site"],
        phase: Int[Tensor, "*phases cycle"] | None = None,
    ) -> Float[Tensor, "*batch cycle channel site"]:
        """Noisy observations of a trajectory, NaN where nothing is seen.

        Args:
            truth: the states to observe.
            unit_noise: independent standard normal numbers, shape of ``truth``.
            phase: entry of the schedule that each cycle has, broadcasts to the cycles; by default they come in turn
                from 0.
        """
        if phase is None:
            phase = torch.arange(truth.shape[-3])
        phase = (phase % self.period).expand(truth.shape[:-2])
        clean = self.operator(truth)
        for entry, matrix in self.unknown.items():
            # In double precision: the sums then round to the same single-precision numbers on every machine.
            projected = (truth[phase == entry].double().flatten(-2) @ matrix.double().mT).unflatten(
                -1, truth.shape[-2:]
            )
            clean = clean.clone()
            clean[phase == entry] = projected.to(clean)
        return torch.where(self.schedule[phase], clean + self.standard_deviation.to(unit_noise) * unit_noise, torch.nan)


def _matrix(name: str, given: Any, size: int) -> Float[Tensor, "entry state"]:
    """What an instrument measures at all entries, in double precision."""
    try:
        matrix = torch.as_tensor(given, dtype=torch.float64)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"{name} of type {type(given).__name__} must be a matrix of numbers.") from None
    if matrix.shape != (size, size):
        raise ValueError(f"{name} of shape {tuple(matrix.shape)} must be of shape ({size}, {size}), (entry, state).")
    return matrix


OBS_CONFS: Registry[Callable[[int, int], ObservationModel]] = Registry("obs_conf")
register_obs_conf = OBS_CONFS.register


def observation_model(obs_conf: str, channels: int, sites: int, noise: float = 1.0) -> ObservationModel:
    """The observation model registered under ``obs_conf``.

    Args:
        noise: the error's standard deviation; a factor on it where the configuration has errors of its own.

    Raises:
        ValueError: if there is none of that name (the sentence lists those there are), or if it is of other states.
    """
    make = OBS_CONFS.find(obs_conf)
    registered = tried(f"obs_conf = {obs_conf!r}", lambda: make(channels, sites), f"for ({channels}, {sites})")
    if not isinstance(registered, ObservationModel):
        raise ValueError(
            f"obs_conf = {obs_conf!r} returns a {type(registered).__name__}; it must return an ObservationModel."
        )
    if registered.schedule.shape[1:] != (channels, sites):
        raise ValueError(
            f"obs_conf = {obs_conf!r} has a schedule of shape {tuple(registered.schedule.shape)}; here it must be "
            f"(period, {channels}, {sites})."
        )
    return registered.scaled(noise)


def _every(stride: int, channels: int, sites: int, moving: bool) -> Tensor:
    offset = torch.arange(stride if moving else 1)[:, None, None]
    return (torch.arange(sites) % stride == offset).expand(len(offset), channels, sites).clone()


@register_obs_conf("full_obs")
def full_obs(channels: int, sites: int) -> ObservationModel:
    """Every site, every cycle."""
    return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool))


@register_obs_conf("every_4th_dim_partial_obs")
def every_4th(channels: int, sites: int) -> ObservationModel:
    """Every fourth site; the offset advances by one each cycle, so that four cycles see every site once."""
    return ObservationModel(_every(4, channels, sites, moving=True))


@register_obs_conf("every_4th_dim_partial_obs_upstream")
def every_4th_upstream(channels: int, sites: int) -> ObservationModel:
    """Every fourth site; the offset goes back by one each cycle, against the direction in which news travels.

    The original's Lorenz-96 is mirrored and its mask is not: this is the relative direction of its experiments.
    """
    return ObservationModel(_every(4, channels, sites, moving=True).flip(0))


@register_obs_conf("every_4th_fixed")
def every_4th_fixed(channels: int, sites: int) -> ObservationModel:
    """Every fourth site, the same ones each cycle."""
    return ObservationModel(_every(4, channels, sites, moving=False))


@register_obs_conf("partial_obs")
def every_2nd(channels: int, sites: int) -> ObservationModel:
    """Every second site, the odd and the even ones in turn."""
    return ObservationModel(_every(2, channels, sites, moving=True))


@register_obs_conf("unstructured_partial_obs")
def unstructured(channels: int, sites: int) -> ObservationModel:
    """Every fourth site as in ``every_4th_dim_partial_obs``, but only in every other cycle; between them four unknown
    instruments.

    Each unknown instrument measures projections of the state onto orthonormal random weights, as many as a quarter of
    the state has entries. The weights were drawn once and for all; each instrument fills a quarter of the grid of its
    own.
    """
    size = channels * sites
    turn = torch.arange(4)[:, None]
    slots = (torch.arange(size) // -(-size // 4) == turn).view(4, channels, sites)
    random, unknown = np.random.RandomState(0), {}
    for i, slot in enumerate(slots.flatten(1)):
        weights, _ = np.linalg.qr(random.standard_normal((size, int(slot.sum()))))
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix[slot] = torch.from_numpy(weights.T)
        unknown[2 * i + 1] = matrix
    return ObservationModel(_alternating(_every(4, channels, sites, moving=True), slots), unknown=unknown)


@register_obs_conf("unstructured_known_part")
def unstructured_known_part(channels: int, sites: int) -> ObservationModel:
    """``unstructured_partial_obs`` without its unknown instruments: every other cycle sees nothing."""
    known = _every(4, channels, sites, moving=True)
    return ObservationModel(_alternating(known, torch.zeros_like(known)))


def _alternating(even: Tensor, odd: Tensor) -> Tensor:
    return torch.stack([even, odd], 1).flatten(0, 1)


RANDOM_SHARES = (10, 25, 50, 75)
RANDOM_PERIOD = 20


def _register_random(percent: int, period: int, name: str) -> None:
    @register_obs_conf(name)
    def random_obs(channels: int, sites: int) -> ObservationModel:
        """So many per cent of the entries, at random places: the same ones each cycle, or other ones.

        The places were drawn once and for all; a schedule of other ones repeats after :data:`RANDOM_PERIOD` cycles.
        """
        size = channels * sites
        # The rank of each entry among random numbers: those of the lowest are seen.
        rank = np.random.RandomState(percent).random_sample((period, size)).argsort(-1).argsort(-1)
        seen = torch.from_numpy(rank < max(1, round(percent * size / 100)))
        return ObservationModel(seen.view(period, channels, sites))


for _percent in RANDOM_SHARES:
    _register_random(_percent, 1, f"random_{_percent}_fixed")
    _register_random(_percent, RANDOM_PERIOD, f"random_{_percent}_moving")


def as_observations(values: Any, channels: int, sites: int) -> Float[Tensor, "*batch cycle channel site"]:
    """Observations as a tensor, of a state with so many channels and sites.

    Args:
        values: a tensor, or what NumPy makes an array of numbers of.

    Raises:
        ValueError: if they are no real numbers, of another shape, or of no cycle at all.
    """
    kind = type(values).__name__
    if not isinstance(values, Tensor):
        try:
            values = torch.from_numpy(np.array(values, np.float64))
        except (TypeError, ValueError):
            raise ValueError(f"observations of type {kind} must be an array of numbers.") from None
    shape = tuple(values.shape)
    if values.is_complex() or len(shape) < 3 or shape[-2:] != (channels, sites) or shape[-3] == 0:
        raise ValueError(
            f"observations of type {kind}, shape {shape} and {values.dtype} must be real numbers of shape "
            f"(…, cycle, {channels}, {sites}), of one cycle or more."
        )
    return values

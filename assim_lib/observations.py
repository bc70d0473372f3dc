r"""What is seen, when, and with what error.

At cycle :math:`k` the filter receives :math:`y_k = H_k(x_k) + \sigma\,\varepsilon_k`, with independent standard
normal :math:`\varepsilon_k`. Observations live **on the grid**: ``y`` has the shape of the state, and a mask of
the same shape says which entries exist. That makes a batch in which every trajectory is at another point
of a rotating schedule an ordinary tensor, and lets one analysis serve every configuration.

A configuration (the parameter ``obs_conf``) is a registered function from ``(channels, sites)`` to an
:class:`ObservationModel`; a notebook can add one with :func:`register_obs_conf` without touching the library.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def identity(x: Tensor) -> Tensor:
    """The state itself: a direct observation."""
    return x


@dataclass(frozen=True)
class ObservationModel:
    """A periodic schedule of masks and a pointwise operator.

    Attributes
    ----------
    schedule : ``(period, channel, site)`` boolean; entry ``k % period`` says what cycle ``k`` sees.
    operator : pointwise map from state to observed quantity, same shape (the identity by default).
    """

    schedule: Bool[Tensor, "period channel site"]
    operator: Callable[[Tensor], Tensor] = identity

    def __post_init__(self) -> None:
        if self.schedule.ndim != 3 or self.schedule.dtype != torch.bool or not self.schedule.any():
            raise ValueError(
                f"schedule of shape {tuple(self.schedule.shape)} and type {self.schedule.dtype} must be boolean, "
                "of shape (period, channel, site), and observe something."
            )

    def mask(self, cycle: Int[Tensor, "*batch"] | int) -> Bool[Tensor, "*batch channel site"]:
        """What is seen at each cycle number."""
        return self.schedule[torch.as_tensor(cycle) % len(self.schedule)]

    def observe(
        self,
        truth: Float[Tensor, "*batch cycle channel site"],
        unit_noise: Float[Tensor, "*batch cycle channel site"],
        noise: float,
    ) -> Float[Tensor, "*batch cycle channel site"]:
        """Noisy observations of a trajectory whose first state is seen at cycle 0; zero where nothing is seen.

        Parameters
        ----------
        truth : the states to observe.
        unit_noise : independent standard normal numbers, shape of ``truth``.
        noise : the error's standard deviation, in the observation's unit.
        """
        mask = self.mask(torch.arange(truth.shape[-3]))
        return torch.where(mask, self.operator(truth) + noise * unit_noise, 0.0)


OBS_CONFS: dict[str, Callable[[int, int], ObservationModel]] = {}


def register_obs_conf(name: str) -> Callable:
    """Decorator: make a function ``(channels, sites) -> ObservationModel`` available as ``obs_conf=name``.

    Raises
    ------
    ValueError : if the name is taken.
    """
    if name in OBS_CONFS:
        raise ValueError(f"obs_conf {name!r} is registered already; choose another name.")

    def register(build: Callable[[int, int], ObservationModel]) -> Callable[[int, int], ObservationModel]:
        OBS_CONFS[name] = build
        return build

    return register


def observation_model(obs_conf: str, channels: int, sites: int) -> ObservationModel:
    """The observation model registered under ``obs_conf``.

    Raises
    ------
    ValueError : if there is none of that name; the sentence lists those there are.
    """
    if obs_conf not in OBS_CONFS:
        close = get_close_matches(str(obs_conf), OBS_CONFS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"obs_conf = {obs_conf!r} is not registered{hint}; known: {', '.join(OBS_CONFS)}.")
    return OBS_CONFS[obs_conf](channels, sites)


@register_obs_conf("full_obs")
def full_obs(channels: int, sites: int) -> ObservationModel:
    """Every site, every cycle."""
    return ObservationModel(torch.ones(1, channels, sites, dtype=torch.bool))


@register_obs_conf("every_4th_dim_partial_obs")
def every_4th(channels: int, sites: int) -> ObservationModel:
    """Every fourth site; the offset advances by one each cycle, so that four cycles see every site once."""
    offset = torch.arange(4)[:, None, None]
    return ObservationModel((torch.arange(sites) % 4 == offset).expand(4, channels, sites).clone())


@register_obs_conf("every_4th_fixed")
def every_4th_fixed(channels: int, sites: int) -> ObservationModel:
    """Every fourth site, the same ones each cycle."""
    return ObservationModel((torch.arange(sites) % 4 == 0).expand(1, channels, sites).clone())

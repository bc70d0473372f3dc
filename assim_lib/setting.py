"""A setting: which system is observed, where, how often and how well.

Every truth, every score and every trained filter belongs to one. Its file name and its title on a page are spelled here
and nowhere else. This module does not need PyTorch, so that tables of scores are read without it.
"""

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assim_lib.twin import TwinExperiment

SETTING_COLUMNS = ["system", "obs_conf", "step_size", "noise"]

_SYSTEMS = {"l96": "L96", "ks": "KS", "two_level": "two-level", "vl20": "VL20"}
_OBS_CONFS = {
    "full_obs": "all sites",
    "partial_obs": "moving half",
    "every_4th_dim_partial_obs": "moving quarter",
    "every_4th_dim_partial_obs_upstream": "moving quarter, upstream",
    "every_4th_fixed": "fixed quarter",
    "unstructured_partial_obs": "unknown operators",
    "unstructured_known_part": "the known part",
}
_USUAL_STEP = {"ks": 1.0}  # 0.1 elsewhere


def places(obs_conf: str) -> str:
    """What an observation configuration is called on a page: ``moving quarter``; its own name if there is no other."""
    if part := re.fullmatch(r"random_(\d+)_(fixed|moving)", obs_conf):
        return f"random {part[1]} %, {part[2]}"
    return _OBS_CONFS.get(obs_conf, obs_conf)


@dataclass(frozen=True, order=True)
class Setting:
    """What is observed, how often, how well.

    Attributes:
        system: name of the system that the truth is of.
        obs_conf: name of the observation configuration.
        step_size: observation interval, in the system's time unit.
        noise: standard deviation σ of the observation error, in the observation's unit; a factor on it where
            ``obs_conf`` has errors of its own.
    """

    system: str = "l96"
    obs_conf: str = "full_obs"
    step_size: float = 0.1
    noise: float = 1.0

    @property
    def observing(self) -> str:
        """The part of :attr:`slug` that says how the system is observed."""
        return f"{self.obs_conf}-dt{self.step_size:g}-s{self.noise:g}"

    @property
    def slug(self) -> str:
        """What the setting is called in file names."""
        return f"{self.system}-{self.observing}"

    @property
    def names(self) -> tuple[str, str, str]:
        """System, places and error as a page calls them; the interval is named where it is not the usual one."""
        usual = self.step_size == _USUAL_STEP.get(self.system, 0.1)
        interval = "" if usual else f", Δt\N{NBSP}=\N{NBSP}{self.step_size:g}"
        system, error = _SYSTEMS.get(self.system, self.system), f"σ\N{NBSP}=\N{NBSP}{self.noise:g}"
        return system, places(self.obs_conf) + interval, error

    @property
    def title(self) -> str:
        """What the setting is called on a page."""
        return ", ".join(self.names)

    def load(self, split: str = "test") -> "TwinExperiment":
        """Its truth and observations, see :func:`assim_lib.twin.load_twin`.

        Args:
            split: ``"test"`` or ``"validation"``.
        """
        from assim_lib.twin import load_twin  # late: a setting alone needs no PyTorch

        return load_twin(self, split)

    def as_dict(self) -> dict[str, Any]:
        """Its four parts by name, as files and tables hold them."""
        return asdict(self)

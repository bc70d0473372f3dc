"""The twin experiment: a frozen truth, seen only through observations.

Every :class:`~assim_lib.setting.Setting` is derived from the two fields of a trajectory file, truth and unit errors, by
arithmetic alone, so that all methods, on all machines, see the same numbers. Chaos forbids to simulate them again
elsewhere.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from assim_lib.evaluation import BLOCK, Scores, error_by_age, evaluate, lost_truth, rmse
from assim_lib.observations import ObservationModel, observation_model
from assim_lib.registry import one_of
from assim_lib.seeds import FROZEN
from assim_lib.setting import Setting
from assim_lib.storage import IntegrityError, data_dir
from assim_lib.systems import Dynamics, system_of
from assim_lib.trajectories import (
    MANIFEST,
    cached,
    load_trajectories,
    observed,
    read_manifest,
    save_trajectories,
    simulate,
)

BURN_IN = 200

CYCLES = {"test": 5000, "validation": 2000}


@dataclass(frozen=True)
class TwinExperiment:
    """One truth and its observations: what every method is scored on.

    Attributes:
        name: of the trajectories.
        initial: (channel, site) float32, the state one cycle before the first observation.
        truth: (cycle, channel, site) float32; ``truth[k]`` is what observation ``k`` sees.
        observations: (cycle, channel, site) float32, NaN where nothing was received.
        burn_in: number of first cycles that are not scored.
        frozen: whether the truth is one of the project's files; if not, it was simulated on this machine, and scores on
            it compare with nothing that was computed elsewhere.
        first_cycle: number of the first cycle in the observation schedule.
        climate: (state, channel, site), states that stand for the climatology, where they are others than those of the
            truth.
    """

    name: str
    setting: Setting
    initial: Float[np.ndarray, "channel site"]
    truth: Float[np.ndarray, "cycle channel site"]
    observations: Float[np.ndarray, "cycle channel site"]
    burn_in: int = BURN_IN
    frozen: bool = True
    first_cycle: int = 0
    climate: Float[np.ndarray, "state channel site"] | None = None

    @property
    def observation_model(self) -> ObservationModel:
        """What is observed, and with what error."""
        channels, sites = self.truth.shape[-2:]
        return observation_model(self.setting.obs_conf, channels, sites, self.setting.noise)

    @property
    def seen(self) -> Bool[np.ndarray, "cycle channel site"]:
        """What was received: what the schedule expects and is a finite number."""
        cycles = self.first_cycle + torch.arange(len(self.observations))
        return self.observation_model.mask(cycles).numpy() & np.isfinite(self.observations)

    @property
    def states(self) -> Float[np.ndarray, "time channel site"]:
        """The truth at all times, the initial state included."""
        return np.concatenate([self.initial[None], self.truth])

    @property
    def climatology(self) -> Float[np.ndarray, "state channel site"]:
        """States that stand for the climatology."""
        return self.states if self.climate is None else self.climate

    @property
    def climatology_rmse(self) -> Float[np.ndarray, "cycle"]:
        """RMSE of the climatological mean, by cycle."""
        mean = self.climatology.astype(np.float64).mean(0)
        return np.sqrt(np.square(self.truth - mean).mean((-2, -1)))

    def part(self, first: int, cycles: int) -> "TwinExperiment":
        """Some of its cycles; their numbers in the observation schedule and the climatology stay those of the whole."""
        return replace(
            self,
            first_cycle=self.first_cycle + first,
            initial=self.states[first],
            truth=self.truth[first : first + cycles],
            observations=self.observations[first : first + cycles],
            climate=self.climatology,
        )

    def score(self, ensemble: Float[np.ndarray, "cycle member channel site"]) -> Scores:
        """Scores of the analysis ensembles of its first cycles, without the burn-in.

        Raises:
            ValueError: if there are too few cycles for a confidence interval.
        """
        self._refuse_short(ensemble, 2 * BLOCK)
        return evaluate(ensemble, self.truth[: len(ensemble)], self.burn_in)

    def _refuse_short(self, ensemble: np.ndarray, least: int) -> None:
        if len(ensemble) < self.burn_in + least:
            raise ValueError(
                f"{len(ensemble)} cycles are too few: {self.burn_in} of burn-in, and at least {least} that are scored, "
                "are needed."
            )

    def loses(self, ensemble: Float[np.ndarray, "cycle member channel site"]) -> bool:
        """Whether a method with these analysis ensembles loses the truth after the burn-in.

        Raises:
            ValueError: if there is nothing after it.
        """
        self._refuse_short(ensemble, 1)
        scored = slice(self.burn_in, len(ensemble))
        return bool(lost_truth(rmse(ensemble[scored], self.truth[scored]), self.climatology_rmse[scored]))

    def by_age(self, ensemble: Float[np.ndarray, "cycle member channel site"]) -> dict[str, np.ndarray]:
        """Error and bias of the analysis by the time since an entry was seen, without the burn-in."""
        cycles = len(ensemble)
        return error_by_age(ensemble.mean(1), self.truth[:cycles], self.seen[:cycles], self.burn_in)


def trajectory_path(system: str, step_size: float, split: str) -> Path:
    """Where the frozen truth of a split is, if there is one."""
    return data_dir() / "test_sets" / f"{system}-dt{step_size:g}-{split}.nc"


def freeze(dynamics: Dynamics, step_size: float, split: str, again: bool = True) -> Path:
    """Simulate and store the trajectory file of a split (``"test"`` or ``"validation"``).

    Args:
        again: as in :func:`save_trajectories`.
    """
    path = trajectory_path(dynamics.name, step_size, split)
    dataset = simulate(dynamics, step_size, BURN_IN + CYCLES[split], 1, FROZEN[split], progress=True)
    save_trajectories(dataset.assign_attrs(burn_in=BURN_IN, split=split), path, again)
    return path


def is_frozen(setting: Setting, split: str = "test") -> bool:
    """Whether the truth of a setting is one of the project's files.

    Raises:
        IntegrityError: if its file is there without its checksum: another truth must not take its place.
    """
    path = trajectory_path(setting.system, setting.step_size, split)
    listed = path.name in read_manifest(path.parent)
    if path.exists() and not listed:
        raise IntegrityError(
            f"{path.name} has no line in {path.parent.name}/{MANIFEST}; restore that line from the repository, or "
            "remove the file to have its truth made again."
        )
    return listed


def load_twin(setting: Setting, split: str = "test") -> TwinExperiment:
    """The truth and the observations of a setting, checksum verified.

    The truth is the project's frozen file where there is one. For another system or interval it is simulated once and
    kept in the cache.

    Args:
        split: ``"test"`` or ``"validation"``.

    Raises:
        ValueError: for another split.
        IntegrityError, FileNotFoundError: if the frozen file is damaged or lost: no other truth takes its place.
    """
    if split not in CYCLES:
        raise ValueError(f"split = {split!r} must be {one_of(CYCLES)}.")
    path, frozen = trajectory_path(setting.system, setting.step_size, split), is_frozen(setting, split)
    if not frozen and any(is_frozen(setting, other) for other in CYCLES):
        raise IntegrityError(
            f"{path.name} is missing beside the other truth of its setting; restore it from the repository, or "
            "complete the two with `python -m assim_lib test-sets`."
        )
    dynamics = system_of(setting.system)
    if frozen:
        dataset = load_trajectories(path)
        _refuse_other_equation(dataset.truth.values[0], dynamics, setting, path)
    else:
        dataset = cached(dynamics, setting.step_size, BURN_IN + CYCLES[split], 1, FROZEN[split])
    states = dataset.truth.values[0]
    channels, sites = states.shape[-2:]
    truth, observations = observed(dataset, observation_model(setting.obs_conf, channels, sites, setting.noise))
    return TwinExperiment(
        name=path.stem,
        setting=setting,
        initial=states[0],
        truth=truth[0].numpy(),
        observations=observations[0].numpy(),
        frozen=frozen,
    )


def _refuse_other_equation(states: np.ndarray, dynamics: Dynamics, setting: Setting, path: Path) -> None:
    """A system that a reader registers may have changed under its name since its truth was frozen."""
    start = torch.from_numpy(states[0]).double()
    if start.shape != dynamics.rest().shape:  # a truth is a part of its states, and the others are not known
        return
    # What a rounding to single precision grows to in a cycle is what the two may differ by.
    steps, time = dynamics.steps_per_cycle(setting.step_size), dynamics.cycle_time(-1, setting.step_size)
    both = torch.stack([start, start * (1 + 1e-6) + 1e-6 * states.std()])
    here, beside = dynamics.flow_at(both, steps, time)
    allowed = 10 * (here - beside).abs().max() + 1e-4 * states.std()
    if (here - torch.from_numpy(states[1])).abs().max() > allowed:
        raise IntegrityError(
            f"{path.name} is no trajectory of system = {setting.system!r} as it is registered now; give the changed "
            "system another name, or freeze another truth with `python -m assim_lib test-sets --again`."
        )

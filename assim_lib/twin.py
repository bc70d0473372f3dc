"""The truth of a twin experiment: simulated once, stored with its checksum, seen only through observations.

A *trajectory file* (netCDF) holds a truth and the standard normal numbers of its observation errors. Every
:class:`~assim_lib.setting.Setting` is derived from these two by arithmetic alone, so that all
methods, on all machines, see exactly the same numbers. Chaos forbids to simulate them again elsewhere.

Truth is generated in float64 with the system's own integrator and step, and stored in float32: of its state, the part
that the forecast model resolves, which is all of it unless the experiment is about model error.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from filelock import FileLock
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from assim_lib.evaluation import Scores, error_by_age, evaluate, lost_truth, rmse
from assim_lib.observations import ObservationModel, observation_model
from assim_lib.seeds import FROZEN
from assim_lib.setting import Setting
from assim_lib.storage import IntegrityError, cache_dir, content_key, data_dir, netcdf_bytes, verify, write_bytes
from assim_lib.systems import Dynamics, system_of

BURN_IN = 200
CYCLES = {"test": 5000, "validation": 2000}
MANIFEST = "SHA256SUMS"


def simulate(
    dynamics: Dynamics, step_size: float, cycles: int, segments: int, seed: int, progress: bool = False
) -> xr.Dataset:
    """Simulate independent truths on the attractor, and draw their unit observation errors.

    Parameters
    ----------
    dynamics : the system; its own integrator and step are used.
    step_size : observation interval, a multiple of ``dynamics.dt``.
    cycles : number of observation times; the truth has one more, the state before the first.
    segments : number of independent trajectories.
    seed : of the initial states and of the errors. The errors come from NumPy's legacy ``RandomState``,
        whose stream never changes between versions.

    Returns
    -------
    Dataset with ``truth`` (segment, time, channel, site) and ``unit_noise`` (segment, cycle, channel, site),
    float32; ``truth[:, k + 1]`` is what observation ``k`` sees.

    Raises
    ------
    ValueError : if states do not stay finite.
    """
    steps = dynamics.steps_per_cycle(step_size)
    x = dynamics.on_attractor(segments, torch.Generator().manual_seed(seed))
    resolved = dynamics.resolved(x).shape[-2:]
    truth = np.empty((segments, cycles + 1, *resolved), dtype=np.float32)
    for k in tqdm(range(cycles + 1), desc=f"simulate {dynamics.name}", disable=not progress):
        truth[:, k] = dynamics.resolved(x).numpy()
        x = dynamics.flow(x, steps)
    dynamics.refuse_unbounded(x)  # what is not finite once remains so
    random = np.random.RandomState(seed if seed < 2**32 else [seed >> 32, seed % 2**32])
    noise = random.standard_normal((segments, cycles, *resolved)).astype(np.float32)
    return xr.Dataset(
        {
            "truth": (("segment", "time", "channel", "site"), truth, {"long_name": "state of the true system"}),
            "unit_noise": (
                ("segment", "cycle", "channel", "site"),
                noise,
                {"long_name": "observation error divided by its standard deviation"},
            ),
        },
        attrs={
            **{name: _attribute(value) for name, value in dynamics.describe().items()},
            "step_size": step_size,
            "integrator": f"{dynamics.integrator} in float64, stored as float32",
            "seed": seed,
            "software": f"torch {version('torch')}, numpy {version('numpy')}",
        },
    )


def _attribute(value: Any) -> str | int | float:
    """A setting of a system as netCDF can hold it, which knows texts and numbers alone."""
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if plain else json.dumps(value, default=repr)


def save_trajectories(dataset: xr.Dataset, path: Path, again: bool = True) -> None:
    """Write a trajectory file and its line in the folder's ``SHA256SUMS``, each atomically.

    The line is first: killed between the two, a file is missing, and is made again. A file without its line is damage.
    Whoever else writes to the folder waits, so that no line is lost.

    Parameters
    ----------
    again : whether another truth may take the place of one that has a line already.

    Raises
    ------
    IntegrityError : if it may not, and would.
    """
    content = netcdf_bytes(dataset)
    with _locked(path.parent):
        sums, checksum = read_manifest(path.parent), hashlib.sha256(content).hexdigest()
        if not again and sums.get(path.name, checksum) != checksum:
            raise IntegrityError(
                f"{path.name} is missing, and comes out otherwise on this machine than its line in {MANIFEST} says; "
                "restore it from the repository, or replace it, and all scores that refer to it, with --again."
            )
        sums[path.name] = checksum
        lines = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
        write_bytes(path.parent / MANIFEST, lines.encode())
        write_bytes(path, content)


def _locked(folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def read_manifest(folder: Path) -> dict[str, str]:
    """The checksums of a folder's files, by name.

    Raises
    ------
    IntegrityError : if a line of it is none.
    """
    manifest = folder / MANIFEST
    lines = manifest.read_text(errors="replace").splitlines() if manifest.exists() else []
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"[0-9a-f]{64}  [^/\\]+", line):
            raise IntegrityError(f"{MANIFEST}, line {number}: {line[:40]!r} is no checksum and name; restore the file.")
    return {name: checksum for checksum, name in (line.split("  ", 1) for line in lines)}


def load_trajectories(path: Path) -> xr.Dataset:
    """Read a trajectory file after verifying its checksum.

    Raises
    ------
    IntegrityError : if the file is not what the manifest says.
    FileNotFoundError : if the file or its checksum is missing.
    """
    checksum = read_manifest(path.parent).get(path.name)
    if checksum is None or not path.exists():
        raise FileNotFoundError(f"{path.name} is not among the trajectory files of {path.parent.name}/{MANIFEST}.")
    verify(path, checksum)
    with xr.open_dataset(path) as dataset:
        return dataset.load()


def observed(
    dataset: xr.Dataset, model: ObservationModel, phase: Int[Tensor, "*phases cycle"] | None = None
) -> tuple[Float[Tensor, "segment cycle channel site"], Float[Tensor, "segment cycle channel site"]]:
    """The truth that each observation sees, and the observations, NaN where nothing is seen.

    Parameters
    ----------
    dataset : trajectories as :func:`simulate` makes them.
    model : what is observed of them, and with what error.
    phase : entries of the observation schedule; by default they come in turn.
    """
    truth, unit_noise = (torch.from_numpy(dataset[name].values) for name in ("truth", "unit_noise"))
    truth = truth[:, 1:]
    return truth, model.observe(truth, unit_noise, phase)


@dataclass(frozen=True)
class TwinExperiment:
    """One truth and its observations: what every method is scored on.

    Attributes
    ----------
    name : of the trajectories.
    initial : (channel, site) float32, the state one cycle before the first observation.
    truth : (cycle, channel, site) float32; ``truth[k]`` is what observation ``k`` sees.
    observations : (cycle, channel, site) float32, NaN where nothing was received.
    burn_in : number of first cycles that are not scored.
    frozen : whether the truth is one of the project's files; if not, it was simulated on this machine, and scores on it
        compare with nothing that was computed elsewhere.
    first_cycle : number of the first cycle in the observation schedule.
    climate : (state, channel, site), states that stand for the climatology, where they are others than those of the
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

        Raises
        ------
        ValueError : if there are too few cycles for a confidence interval.
        """
        return evaluate(ensemble, self.truth[: len(ensemble)], self.burn_in)

    def loses(self, ensemble: Float[np.ndarray, "cycle member channel site"]) -> bool:
        """Whether a method with these analysis ensembles loses the truth after the burn-in."""
        scored = slice(self.burn_in, len(ensemble))
        return bool(lost_truth(rmse(ensemble[scored], self.truth[scored]), self.climatology_rmse[scored]))

    def by_age(self, ensemble: Float[np.ndarray, "cycle member channel site"]) -> dict[str, np.ndarray]:
        """Error and bias of the analysis by the time since an entry was seen, without the burn-in."""
        cycles = len(ensemble)
        return error_by_age(ensemble.mean(1), self.truth[:cycles], self.seen[:cycles], self.burn_in)


def trajectory_path(system: str, step_size: float, split: str, folder: Path | None = None) -> Path:
    """Where the frozen truth of a split is, if there is one."""
    return (folder or data_dir() / "test_sets") / f"{system}-dt{step_size:g}-{split}.nc"


def freeze(dynamics: Dynamics, step_size: float, split: str, folder: Path | None = None, again: bool = True) -> Path:
    """Simulate and store the trajectory file of a split (``"test"`` or ``"validation"``).

    Parameters
    ----------
    again : as in :func:`save_trajectories`.
    """
    path = trajectory_path(dynamics.name, step_size, split, folder)
    dataset = simulate(dynamics, step_size, BURN_IN + CYCLES[split], 1, FROZEN[split], progress=True)
    save_trajectories(dataset.assign_attrs(burn_in=BURN_IN, split=split), path, again)
    return path


def is_frozen(setting: Setting, split: str = "test") -> bool:
    """Whether the truth of a setting is one of the project's files.

    Raises
    ------
    IntegrityError : if its file is there without its checksum: another truth must not take its place.
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

    Parameters
    ----------
    split : ``"test"`` or ``"validation"``.

    Raises
    ------
    IntegrityError, FileNotFoundError : if the frozen file is damaged or lost: no other truth takes its place.
    """
    path, frozen = trajectory_path(setting.system, setting.step_size, split), is_frozen(setting, split)
    if not frozen and any(is_frozen(setting, other) for other in CYCLES):
        raise IntegrityError(
            f"{path.name} is missing beside the other truth of its setting; restore it from the repository, or "
            "complete the two with `python -m assim_lib test-sets`."
        )
    if frozen:
        dataset = load_trajectories(path)
    else:
        cycles = BURN_IN + CYCLES[split]
        dataset = cached(system_of(setting.system), setting.step_size, cycles, 1, FROZEN[split])
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


def cached(
    dynamics: Dynamics, step_size: float, cycles: int, segments: int, seed: int, progress: bool = False
) -> xr.Dataset:
    """Trajectories from the cache if they were made before, else simulated and kept there.

    The cache key is the full configuration, so that no setting can meet another's data; the checksum is
    verified on every load, and a corrupt file is reported, never used.
    """
    # A system that is defined in a notebook may change its equation under the same name: ask the equation too.
    probe = dynamics.rest() + torch.arange(dynamics.rest().numel()).sin().view_as(dynamics.rest())
    answers = (dynamics.tendency(probe), dynamics.resolved(dynamics.flow(probe, 1)))
    configuration: dict[str, Any] = {
        **dynamics.describe(),
        "equation": [f"{value:.6g}" for value in torch.cat([part.flatten() for part in answers])],
        "start": (dynamics.spinup, dynamics.perturbation),
        "step_size": step_size,
        "cycles": cycles,
        "segments": segments,
        "seed": seed,
        "format": 3,
    }
    path = cache_dir() / f"{content_key(configuration)}.nc"
    if path.name in read_manifest(path.parent) and path.exists():
        return load_trajectories(path)
    dataset = simulate(dynamics, step_size, cycles, segments, seed, progress)
    save_trajectories(dataset, path)
    return dataset

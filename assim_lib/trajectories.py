"""Simulated truths: a file each, with its checksum, and what instruments see of them.

A *trajectory file* (netCDF) holds a truth and the standard normal numbers of its observation errors. Truth is generated
in float64 with the system's own integrator and step, and stored in float32: of its state, the part that the forecast
model resolves, which is all of it unless the experiment is about model error.
"""

import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from filelock import FileLock
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from assim_lib.observations import ObservationModel
from assim_lib.storage import IntegrityError, atomic_path, cache_dir, content_key, netcdf_bytes, verify, write_bytes
from assim_lib.systems import Dynamics

MANIFEST = "SHA256SUMS"
PROBED = (0, 1, 2, 3, 7, 19, 101, 997)  # cycles at which an equation that depends on time is asked for its numbers


def simulate(
    dynamics: Dynamics, step_size: float, cycles: int, segments: int, seed: int, progress: bool = False
) -> xr.Dataset:
    """Simulate independent truths on the attractor, and draw their unit observation errors.

    Args:
        dynamics: the system; its own integrator and step are used.
        step_size: observation interval, a multiple of ``dynamics.dt``.
        cycles: number of observation times; the truth has one more, the state before the first.
        segments: number of independent trajectories.
        seed: of the initial states and of the errors. The errors come from NumPy's legacy ``RandomState``, whose stream
            never changes between versions.

    Returns:
        Dataset with ``truth`` (segment, time, channel, site) and ``unit_noise`` (segment, cycle, channel, site),
        float32; ``truth[:, k + 1]`` is what observation ``k`` sees.

    Raises:
        ValueError: if states do not stay finite.
    """
    steps = dynamics.steps_per_cycle(step_size)
    # The first observation is of cycle 0; the state before it is that of one interval earlier.
    source = torch.Generator().manual_seed(seed)
    x = dynamics.states_at(segments, source, until=-step_size)
    resolved = dynamics.resolved(x).shape[-2:]
    truth = np.empty((segments, cycles + 1, *resolved), dtype=np.float32)
    for k in tqdm(range(cycles + 1), desc=f"simulate {dynamics.name}", disable=not progress):
        truth[:, k] = dynamics.resolved(x).numpy()
        x = dynamics.flow_at(x, steps, dynamics.cycle_time(k - 1, step_size))
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
    """A parameter of a system as netCDF can hold it, which knows texts and numbers alone."""
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if plain else json.dumps(value, default=repr)


def save_trajectories(dataset: xr.Dataset, path: Path, again: bool = True) -> None:
    """Write a trajectory file and its line in the folder's ``SHA256SUMS``, each atomically.

    The line is first, and before it a file of other content goes: killed in between, a file is missing, and is made
    again. A file without its line is damage. Whoever else writes to the folder waits, so that no line is lost.

    Args:
        again: whether another truth may take the place of one that has a line already.

    Raises:
        IntegrityError: if it may not, and would.
    """
    content = netcdf_bytes(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / ".lock"):
        sums, checksum = read_manifest(path.parent), hashlib.sha256(content).hexdigest()
        if not again and sums.get(path.name, checksum) != checksum:
            raise IntegrityError(
                f"{path.name} is missing, and comes out otherwise on this machine than its line in {MANIFEST} says; "
                "restore it from the repository, or replace it, and all scores that refer to it, with --again."
            )
        replaced = sums.get(path.name, checksum) != checksum
        sums[path.name] = checksum
        lines = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)  # what there may be no room for, before anything is changed
            if replaced:
                path.unlink(missing_ok=True)
            write_bytes(path.parent / MANIFEST, lines.encode())


def read_manifest(folder: Path) -> dict[str, str]:
    """The checksums of a folder's files, by name.

    Raises:
        IntegrityError: if a line of it is none.
    """
    manifest = folder / MANIFEST
    lines = manifest.read_text(errors="replace").splitlines() if manifest.exists() else []
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"[0-9a-f]{64}  [^/\\]+", line):
            raise IntegrityError(f"{MANIFEST}, line {number}: {line[:40]!r} is no checksum and name; restore the file.")
    return {name: checksum for checksum, name in (line.split("  ", 1) for line in lines)}


def load_trajectories(path: Path) -> xr.Dataset:
    """Read a trajectory file after verifying its checksum.

    Raises:
        IntegrityError: if the file is not what the manifest says.
        FileNotFoundError: if the file or its checksum is missing.
    """
    checksum = read_manifest(path.parent).get(path.name)
    if checksum is None or not path.exists():
        raise FileNotFoundError(f"{path.name} is not among the trajectory files of {path.parent.name}/{MANIFEST}.")
    verify(path, checksum, "delete it to have it made again, or restore it from the repository")
    with xr.open_dataset(path) as dataset:
        return dataset.load()


def observed(
    dataset: xr.Dataset, model: ObservationModel, phase: Int[Tensor, "*phases cycle"] | None = None
) -> tuple[Float[Tensor, "segment cycle channel site"], Float[Tensor, "segment cycle channel site"]]:
    """The truth that each observation sees, and the observations, NaN where nothing is seen.

    Args:
        dataset: trajectories as :func:`simulate` makes them.
        model: what is observed of them, and with what error.
        phase: entries of the observation schedule; by default they come in turn.
    """
    truth, unit_noise = (torch.from_numpy(dataset[name].values) for name in ("truth", "unit_noise"))
    truth = truth[:, 1:]
    return truth, model.observe(truth, unit_noise, phase)


def cached(
    dynamics: Dynamics, step_size: float, cycles: int, segments: int, seed: int, progress: bool = False
) -> xr.Dataset:
    """Trajectories from the cache if they were made before, else simulated and kept there.

    The cache key is the full configuration, so that no setting can meet another's data; the checksum is
    verified on every load, and a corrupt file is reported, never used.
    """
    # A system that is defined in a notebook may change its equation under the same name: ask the equation too.
    probe = dynamics.rest() + torch.arange(dynamics.rest().numel()).sin().view_as(dynamics.rest())
    answers: list[Tensor] = []
    for number in PROBED if dynamics.depends_on_time else (0,):
        time = dynamics.cycle_time(number, step_size)
        answers += [dynamics.tendency_at(probe, time), dynamics.resolved(dynamics.flow_at(probe, 1, time))]
    configuration: dict[str, Any] = {
        **dynamics.describe(),
        "equation": [f"{value:.6g}" for value in torch.cat([part.flatten() for part in answers])],
        "integrator": dynamics.integrator,
        "start": (dynamics.spinup, dynamics.perturbation),
        "step_size": step_size,
        "cycles": cycles,
        "segments": segments,
        "seed": seed,
        "format": 4,
    }
    path = cache_dir() / f"{content_key(configuration)}.nc"
    if path.name in read_manifest(path.parent) and path.exists():
        return load_trajectories(path)
    dataset = simulate(dynamics, step_size, cycles, segments, seed, progress)
    save_trajectories(dataset, path)
    return dataset

"""How a twin experiment of this book becomes one of DAPPER's: model, operators, start, and what is kept of a run.

DAPPER is handed a forecast model, observation operators, and the truth and observations of a
:class:`~assim_lib.trajectories.TestSet`; importing and running it leaves no trace in the process (threads, plots,
warnings, random state).
"""

import io
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any
from unittest import mock

import matplotlib.pyplot  # noqa: F401  (before DAPPER's import, so that it finds its own folders; see import_dapper)
import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from assim_lib.dynamics import Dynamics
from assim_lib.trajectories import TestSet

# Of a large state neighbouring sites share a local analysis, as in DAPPER's own experiment with KS (four of 128).
LOCAL_ANALYSES = 32
# A method that is worse than climatology (by a little more than the climatology of one run differs from that of another),
# on average over so many cycles, has lost the truth.
LOST_AT, LOST_AFTER = 1.02, 100


def first_guess(test_set: TestSet) -> tuple[Float[np.ndarray, " state"], Float[np.ndarray, "state state"]]:
    """Mean and covariance of the state before the first cycle, given what was observed in the first four.

    Optimal interpolation: the background is the climatology of the whole test truth; each entry's first observation
    stands for the initial state, its error variance raised by the mean square change since then. From
    climatology alone an ensemble without localization may never find the truth, and nobody starts from the truth here.
    """
    truth = test_set.states.reshape(len(test_set.states), -1).astype(np.float64)
    mean, background = truth.mean(0), np.cov(truth.T)
    masks = test_set.masks[:4].reshape(-1, len(mean))
    seen = np.flatnonzero(masks.any(0))
    when = masks.argmax(0)[seen]
    change = np.array([np.mean((truth[k + 1 :] - truth[: -k - 1]) ** 2) for k in range(len(masks))])
    observations = test_set.observations.reshape(-1, len(mean))[when, seen]
    innovation_covariance = background[np.ix_(seen, seen)] + np.diag(test_set.noise**2 + change[when])
    gain = np.linalg.solve(innovation_covariance, background[seen]).T
    covariance = background - gain @ background[seen]
    return mean + gain @ (observations - mean[seen]), (covariance + covariance.T) / 2


def hidden_markov_model(test_set: TestSet, cycles: int, dynamics: Dynamics) -> Any:
    """The first cycles of a test set as DAPPER's ``HiddenMarkovModel``.

    One DAPPER step is one cycle; states are flattened to (channel · site,). There is no observation of the initial
    state, so that row ``k + 1`` of the truth belongs to observation ``k``. Distances for localization are along the
    ring; all channels of a site are analysed together, and so are neighbouring sites of a large state.
    """
    import_dapper()
    import dapper.mods as modelling
    from dapper.tools.localization import localization_setup, pairwise_distances

    shape = dynamics.channels, dynamics.sites
    steps = dynamics.steps_per_cycle(test_set.step_size)
    site = np.tile(np.arange(dynamics.sites), dynamics.channels)
    together = max(1, dynamics.sites // LOCAL_ANALYSES)
    batches = [np.flatnonzero(site // together == i) for i in range(-(-dynamics.sites // together))]

    def flow(x: torch.Tensor) -> torch.Tensor:
        return dynamics.flow(x.unflatten(-1, shape), steps).flatten(-2)

    def step(x, t, dt):
        advanced = flow(torch.from_numpy(x)).numpy()
        if not np.all(np.abs(advanced) < 1e6):
            raise FloatingPointError("the forecast left every bound")
        return advanced

    def tangent_linear(x, t, dt):
        # Right to nine digits, and for such small states several times faster than automatic differentiation.
        size = 1e-5
        moved = flow(torch.from_numpy(x + size * np.concatenate([np.eye(len(x)), -np.eye(len(x))]))).numpy()
        return (moved[: len(x)] - moved[len(x) :]).T / (2 * size)

    def operator(mask: np.ndarray) -> Any:
        seen = np.flatnonzero(mask)
        matrix = np.eye(mask.size)[seen]

        def observe(x):
            # Var4D of DAPPER 1.7.1 looks its operator up twice, as `HMM.Obs(ko)(ko)`.
            return itself if np.ndim(x) == 0 else x[..., seen]

        def distances():
            return pairwise_distances(site[seen, None], site[:, None], domain=(dynamics.sites,))

        itself = modelling.Operator(
            M=len(seen),
            model=observe,
            linear=lambda x: matrix,
            noise=test_set.noise**2,
            localizer=localization_setup(distances, batches),
        )
        return itself

    keys = [mask.tobytes() for mask in test_set.masks[:cycles]]
    operators = {key: operator(mask) for key, mask in dict(zip(keys, test_set.masks, strict=False)).items()}
    mean, covariance = first_guess(test_set)
    return modelling.HiddenMarkovModel(
        Dyn={"M": site.size, "model": step, "linear": tangent_linear, "noise": 0},
        # Smoothers ask for operators beyond the last cycle, and make nothing of them.
        Obs={"time_dependent": lambda ko: operators[keys[min(ko, cycles - 1)]]},
        tseq=modelling.Chronology(dt=test_set.step_size, dko=1, K=cycles),
        X0=modelling.GaussRV(mu=mean, C=covariance),  # pyright: ignore[reportArgumentType]
        name=test_set.name,
    )


class Recorder:
    """Stands in for DAPPER's ``Stats``, and keeps what the book scores: the analyses.

    Parameters
    ----------
    truth : (cycle, state).
    climatology : (cycle,), RMSE of the climatological mean.
    burn_in : number of first cycles in which nothing is held against a method.
    bar : is moved on at each analysis.
    """

    def __init__(self, truth: np.ndarray, climatology: np.ndarray, burn_in: int, bar: tqdm):
        self.truth, self.climatology, self.bar = truth, climatology, bar
        self.first = burn_in if burn_in < len(truth) else 0
        self.window = min(LOST_AFTER, len(truth) - self.first)
        self.mean = np.full_like(truth, np.nan)
        self.rmse, self.spread, self.crps = np.full((3, len(truth)), np.nan)
        self.trHK, self.infl, self.iters = np.empty((3, len(truth)))  # diagnostics that the methods write
        self.done, self.seconds = 0, 0.0

    def new_series(self, *args, **kwargs) -> None:
        """Part of the interface of ``Stats``; nothing is kept."""

    write = new_series

    def assess(self, k, ko=None, faus=None, E: Any = None, mu: Any = None, Cov=None) -> None:
        """Score an analysis; the forecasts and smoothed states that DAPPER reports too are passed over."""
        from dapper.stats import crps_ens

        if ko is None or "a" not in (faus or "au"):
            return
        start = time.process_time()
        members = mu[None] if E is None else E
        if not np.all(np.isfinite(members)):
            raise FloatingPointError("the analysis is not finite")
        self.mean[ko] = members.mean(0)
        self.rmse[ko] = np.sqrt(np.mean((self.mean[ko] - self.truth[ko]) ** 2))
        self.spread[ko] = np.sqrt(members.var(0, ddof=1).mean()) if len(members) > 1 else 0.0
        self.crps[ko] = crps_ens(self.truth[ko], members).mean()
        self.done += 1
        self.bar.update()
        self.seconds += time.process_time() - start
        # A mean over all cycles would hide a method that loses the truth near the end.
        last = slice(ko + 1 - self.window, ko + 1)
        if last.start >= self.first and np.mean(self.rmse[last]) > LOST_AT * np.mean(self.climatology[last]):
            raise FloatingPointError(f"worse than climatology for {self.window} cycles")


def import_dapper() -> None:
    # Importing DAPPER would limit all BLAS and OpenMP libraries of the process, PyTorch's too, to one thread for good,
    # settle Matplotlib's backend, print a warning about it, and make a folder in the user's home.
    try:
        import threadpoolctl  # noqa: F401

        with (
            tempfile.TemporaryDirectory() as home,
            mock.patch.dict(os.environ, HOME=home, USERPROFILE=home),
            mock.patch("threadpoolctl.threadpool_limits"),
            mock.patch("matplotlib.get_backend", return_value="agg"),
            redirect_stdout(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            import dapper.da_methods
            import dapper.mods  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The baselines need DAPPER, which could not be imported ({error}): install the extra `baselines`."
        ) from error


@contextmanager
def quiet_dapper(seed: int) -> Iterator[None]:
    # One thread, no bar that would switch the terminal's echo off, no warnings from a filter that diverges; and
    # DAPPER's global generator is afterwards as it was.
    import threadpoolctl
    from dapper.tools import progressbar, seeding

    state = seeding.rng.bit_generator.state
    try:
        with (
            mock.patch.multiple(progressbar, disable_progbar=True, disable_user_interaction=True),
            threadpoolctl.threadpool_limits(1),
            np.errstate(all="ignore"),
            warnings.catch_warnings(action="ignore"),
        ):
            seeding.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
            yield
    finally:
        seeding.rng.bit_generator.state = state

"""How a twin experiment of this book becomes one of DAPPER's: model, operators, start, and what is kept of a run.

DAPPER is handed a forecast model, observation operators, and the truth and observations of a
:class:`~assim_lib.twin.TwinExperiment`; importing and running it leaves no trace in the process (threads, plots,
warnings, random state).
"""

import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any
from unittest import mock

import matplotlib.pyplot  # noqa: F401  (before DAPPER's import, so that it finds its own folders; see import_dapper)
import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from assim_lib.evaluation import LOST_AFTER, lost_truth
from assim_lib.systems import Dynamics
from assim_lib.twin import TwinExperiment

# Of a large state neighbouring sites share a local analysis, as in DAPPER's own experiment with KS (four of 128).
LOCAL_ANALYSES = 32
# DAPPER's methods need an observation in every cycle. The error variance of the one that stands for none: a gain of
# 10⁻³⁰ changes no digit of a state.
NOTHING_RECEIVED = 1e30


def _errors(twin: TwinExperiment) -> tuple[Float[np.ndarray, " state"], Float[np.ndarray, " state"]]:
    """Of the observation of each entry: the error's standard deviation, and the unit in which DAPPER gets it.

    Errors that differ are handed over in units of themselves: of a diagonal covariance, DAPPER takes everything below
    10⁻⁸ of the largest entry for zero, and ignores the most accurate observations.
    """
    deviation = twin.observation_model.standard_deviation.flatten().numpy()
    return deviation, np.ones_like(deviation) if (deviation == deviation[0]).all() else deviation


def first_guess(twin: TwinExperiment) -> tuple[Float[np.ndarray, " state"], Float[np.ndarray, "state state"]]:
    """Mean and covariance of the state before the first cycle, given what was received in the first four.

    Optimal interpolation: the background is the climatology; each entry's first observation stands for the initial
    state, its error variance raised by the mean square change since then. From climatology alone an ensemble without
    localization may never find the truth.

    Mean, covariance and change are those of the very truth that the method is tuned or scored on, all of its cycles.
    No observer has them: that favours the classical methods. Learned filters have a climatology of their own, of
    another run of the model.
    """
    climate = twin.climatology.reshape(len(twin.climatology), -1).astype(np.float64)
    mean, background = climate.mean(0), np.cov(climate.T)
    received = twin.seen[:4].reshape(-1, len(mean))
    entries = np.flatnonzero(received.any(0))
    when = received.argmax(0)[entries]
    change = np.array([np.mean((climate[k + 1 :] - climate[: -k - 1]) ** 2) for k in range(len(received))])
    observations = twin.observations.reshape(-1, len(mean))[when, entries]
    deviation, _ = _errors(twin)
    innovation_covariance = background[np.ix_(entries, entries)] + np.diag(deviation[entries] ** 2 + change[when])
    gain = np.linalg.solve(innovation_covariance, background[entries]).T
    covariance = background - gain @ background[entries]
    return mean + gain @ (observations - mean[entries]), (covariance + covariance.T) / 2


def observation_vectors(twin: TwinExperiment, cycles: int) -> list[Float[np.ndarray, " received"]]:
    """What DAPPER receives in each of the first cycles, one vector a cycle; see :func:`hidden_markov_model`."""
    received, unit = twin.seen, _errors(twin)[1].reshape(twin.truth.shape[1:])
    vectors = [twin.observations[k][received[k]] / unit[received[k]] for k in range(cycles)]
    return [vector if vector.size else np.zeros(1) for vector in vectors]


def hidden_markov_model(
    twin: TwinExperiment,
    cycles: int,
    dynamics: Dynamics,
    bias: float = 0.0,
    damping: float = 0.0,
    model_noise: float = 0.0,
) -> Any:
    """The first cycles of a twin experiment as DAPPER's ``HiddenMarkovModel``.

    One DAPPER step is one cycle; states are flattened to (channel · site,). There is no observation of the initial
    state, so that row ``k + 1`` of DAPPER's truth belongs to observation ``k``. Distances for localization are along
    the ring; all channels of a site are analysed together, and so are neighbouring sites of a large state. In a cycle
    in which nothing was received, an observation without any weight stands for none.

    A model that is known to be wrong may be corrected: of each forecast of a cycle a share ``damping`` is taken, and
    ``bias`` is added; methods that know of model noise add independent random numbers to the members.

    Args:
        bias, model_noise: in units of the state, for a cycle.
    """
    import_dapper()
    import dapper.mods as modelling
    from dapper.tools.localization import localization_setup, pairwise_distances

    shape = dynamics.channels, dynamics.sites
    steps = dynamics.steps_per_cycle(twin.setting.step_size)
    site = np.tile(np.arange(dynamics.sites), dynamics.channels)
    together = max(1, dynamics.sites // LOCAL_ANALYSES)
    batches = [np.flatnonzero(site // together == i) for i in range(-(-dynamics.sites // together))]
    deviation, unit = _errors(twin)

    def flow(x: torch.Tensor) -> torch.Tensor:
        return (1 - damping) * dynamics.flow(x.unflatten(-1, shape), steps).flatten(-2) + bias

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

    def operator(received: np.ndarray) -> Any:
        entries = np.flatnonzero(received) if received.any() else np.zeros(1, dtype=int)
        matrix = np.eye(received.size)[entries] / unit[entries, None]

        def observe(x):
            # Var4D of DAPPER 1.7.1 looks its operator up twice, as `HMM.Obs(ko)(ko)`.
            return itself if np.ndim(x) == 0 else x[..., entries] / unit[entries]

        def distances():
            return pairwise_distances(site[entries, None], site[:, None], domain=(dynamics.sites,))

        itself = modelling.Operator(
            M=len(entries),
            model=observe,
            linear=lambda x: matrix,
            noise=float((deviation[0] / unit[0]) ** 2) if received.any() else NOTHING_RECEIVED,
            localizer=localization_setup(distances, batches),
        )
        return itself

    received = twin.seen[:cycles].reshape(cycles, -1)
    keys = [entries.tobytes() for entries in received]
    operators = {key: operator(entries) for key, entries in dict(zip(keys, received, strict=True)).items()}
    mean, covariance = first_guess(twin)
    return modelling.HiddenMarkovModel(
        # DAPPER's noise is that of a unit of time.
        Dyn={
            "M": site.size,
            "model": step,
            "linear": tangent_linear,
            "noise": model_noise**2 / twin.setting.step_size,
        },
        # Smoothers ask for operators beyond the last cycle, and make nothing of them.
        Obs={"time_dependent": lambda ko: operators[keys[min(ko, cycles - 1)]]},
        tseq=modelling.Chronology(dt=twin.setting.step_size, dko=1, K=cycles),
        X0=modelling.GaussRV(mu=mean, C=covariance),  # pyright: ignore[reportArgumentType]
        name=twin.name,
    )


def pause_where_nothing_was_received(
    method: Any, received: Bool[np.ndarray, "cycle channel site"]
) -> Callable[[int], None]:
    """A function to call before each analysis of a DAPPER method: inflation and rotation are parts of an analysis.

    DAPPER applies both after every analysis, also after one that had nothing to analyse.
    """
    tuned = {name: getattr(method, name) for name in ("infl", "rot") if hasattr(method, name)}
    none = {"infl": 1.0, "rot": False}

    def before_analysis(cycle: int) -> None:
        for name, value in tuned.items():
            setattr(method, name, value if received[cycle].any() else none[name])

    return before_analysis


class Recorder:
    """Stands in for DAPPER's ``Stats``, and keeps what the book scores: the analyses.

    Args:
        truth: (cycle, state).
        climatology: (cycle,), RMSE of the climatological mean.
        burn_in: number of first cycles in which nothing is held against a method.
        bar: is moved on at each analysis.
        before_analysis: is called with the number of each cycle between its forecast and its analysis.
    """

    def __init__(
        self,
        truth: np.ndarray,
        climatology: np.ndarray,
        burn_in: int,
        bar: tqdm,
        before_analysis: Callable[[int], None] = lambda cycle: None,
    ):
        self.truth, self.climatology, self.bar, self.before_analysis = truth, climatology, bar, before_analysis
        self.first = burn_in if burn_in < len(truth) else 0
        self.window = min(LOST_AFTER, len(truth) - self.first)
        self.mean = np.full_like(truth, np.nan)
        self.rmse, self.spread, self.crps = np.full((3, len(truth)), np.nan)
        self.trHK, self.infl, self.iters = np.empty((3, len(truth)))  # diagnostics that the methods write
        self.done, self.seconds = 0, 0.0

    def new_series(self, *args, **kwargs) -> None:
        """Part of the interface of ``Stats``; nothing is kept."""

    write = new_series

    def assess(self, k, ko: Any = None, faus: str | None = None, E: Any = None, mu: Any = None, Cov=None) -> None:
        """Score an analysis; the forecasts and smoothed states that DAPPER reports too are passed over."""
        from dapper.stats import crps_ens

        if ko is None:
            return
        if faus == "f":
            self.before_analysis(int(ko))
        if "a" not in (faus or "au"):
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
        # A mean over all cycles would hide a method that loses the truth near the end.
        last = slice(ko + 1 - self.window, ko + 1)
        lost = last.start >= self.first and bool(lost_truth(self.rmse[last], self.climatology[last], self.window))
        self.seconds += time.process_time() - start
        if lost:
            raise FloatingPointError(f"worse than climatology for {self.window} cycles")


def import_dapper() -> None:
    """Import DAPPER without its side effects.

    Raises:
        ImportError: if it cannot be imported; the sentence says what to install.
    """
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
def quiet_dapper(seed: int, statistics: Any) -> Iterator[None]:
    """Run DAPPER with one thread, its random numbers from a seed, and statistics of ours in place of its own.

    Each DAPPER method makes a ``dapper.stats.Stats`` for itself. That class computes what costs more than many an
    analysis (singular values, rank histograms) and opens live plots: here it makes ``statistics``. There is no
    progress bar that would switch the terminal's echo off, and no warning from a filter that diverges. Afterwards
    DAPPER's global generator is as it was.
    """
    import dapper.stats
    import threadpoolctl
    from dapper.tools import progressbar, seeding

    state = seeding.rng.bit_generator.state
    try:
        with (
            mock.patch.object(dapper.stats, "Stats", return_value=statistics),
            mock.patch.multiple(progressbar, disable_progbar=True, disable_user_interaction=True),
            threadpoolctl.threadpool_limits(1),
            np.errstate(all="ignore"),
            warnings.catch_warnings(action="ignore"),
        ):
            seeding.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
            yield
    finally:
        seeding.rng.bit_generator.state = state

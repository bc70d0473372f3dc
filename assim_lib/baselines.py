r"""The same truth and the same observations through classical methods.

A learned filter is worth its training only if it beats what needs none. The methods here are those of DAPPER
(Raanes et al., *Data Assimilation with Python: a Package for Experimental Research*); nothing of them is written
again. This file adds the fairness of the comparison: DAPPER's own twin experiment is not used, its methods are
handed the truth and observations of a :class:`~assim_lib.trajectories.TestSet` and, as forecast model, the very
:class:`~assim_lib.dynamics.Dynamics` that the learned filters have.

The methods minimise, over all states or in the space of an ensemble, the same cost function

.. math:: J(x) = \tfrac12 \lVert x - x^b \rVert^2_{B^{-1}} + \tfrac12 \lVert y - H(M(x)) \rVert^2_{R^{-1}},

and differ in two choices. *Where does* :math:`B` *come from?* 3D-Var and 4D-Var keep it fixed; LETKF, EnKF-N and
iEnKS take it from the forecast ensemble. *At which time is* :math:`x` *?* For 3D-Var, LETKF and EnKF-N at the
observation (:math:`M` is the identity); for 4D-Var and iEnKS ``Lag`` cycles earlier.

DAPPER comes with the extra ``baselines``, and is imported when a method runs, not before.
"""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tqdm import tqdm

from assim_lib.dapper_bridge import Recorder, hidden_markov_model, import_dapper, quiet_dapper
from assim_lib.dynamics import Dynamics
from assim_lib.evaluation import Scores, summarize
from assim_lib.observations import identity, observation_model
from assim_lib.systems import forecast_model_of
from assim_lib.trajectories import TestSet

# system, obs_conf, step_size, noise
Setting = tuple[str, str, float, float]

_WITHOUT_ENSEMBLE = ("Climatology", "3D-Var", "4D-Var")
_DAPPER_CLASS = {"3D-Var": "Var3D", "4D-Var": "Var4D", "EnKF-N": "EnKF_N"}  # the others have the same name there


class Baseline(BaseModel):
    """A classical method and its tuned settings.

    Attributes
    ----------
    method : name, as in the table of scores.
    m : ensemble size; 1 for the methods that carry one state.
    settings : keyword arguments of the DAPPER class, under DAPPER's names.

    Sources: LETKF, Hunt et al. (2007); iEnKS, Bocquet & Sakov (2014); EnKF-N, Bocquet (2011).

    Raises
    ------
    pydantic.ValidationError : for an unknown method, or an ensemble size that the method cannot have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["Climatology", "3D-Var", "4D-Var", "EnKF", "EnKF-N", "LETKF", "iEnKS"]
    m: int = Field(default=1, ge=1)
    settings: dict[str, bool | int | float | str] = {}

    @model_validator(mode="after")
    def _ensemble_size_fits(self) -> "Baseline":
        single = self.method in _WITHOUT_ENSEMBLE
        if (self.m == 1) != single:
            raise ValueError(f"m = {self.m}: {self.method} {'carries one state' if single else 'needs at least two'}")
        return self

    @property
    def label(self) -> str:
        """Method, size and lag in a few characters."""
        size = f" N={self.m}" if self.m > 1 else ""
        lag = f" Lag={self.settings.get('Lag', 1)}" if self.method == "iEnKS" else ""
        return self.method + size + lag


@dataclass(frozen=True)
class BaselineRun:
    """What a method did, cycle by cycle, burn-in included; NaN after a crash.

    Attributes
    ----------
    mean : (cycle, channel, site), the analysis mean.
    rmse : (cycle,), root mean square over the state of ``mean - truth`` (DAPPER's ``err.rms.a``).
    spread : (cycle,), root of the mean over the state of the analysis ensemble's unbiased variance, 0 for one state.
        When DAPPER assesses the analysis, LETKF and EnKF have inflated it, iEnKS has not yet.
    crps : (cycle,), mean over the state of the continuous ranked probability score of the analysis ensemble's
        empirical distribution; the absolute error for one state.
    ms_per_cycle : processor time of a cycle in milliseconds, scores excluded.
    diverged : whether the method lost the truth, see :func:`run_baseline`.
    survived : number of cycles until then, or of all.
    outcome : ``"completed"``, or where and why it stopped.
    """

    baseline: Baseline
    mean: Float[np.ndarray, "cycle channel site"]
    rmse: Float[np.ndarray, " cycle"]
    spread: Float[np.ndarray, " cycle"]
    crps: Float[np.ndarray, " cycle"]
    ms_per_cycle: float
    diverged: bool
    survived: int
    outcome: str


def run_baseline(
    baseline: Baseline,
    test_set: TestSet,
    cycles: int | None = None,
    seed: int = 3000,
    progress: bool = True,
    dynamics: Dynamics | None = None,
) -> BaselineRun:
    """Run a classical method over the cycles of a test set.

    The start is drawn from the first observations and the climatology, see :func:`~assim_lib.dapper_bridge.first_guess`. Divergence is a result,
    not an error: a run has *diverged* if it stopped on a numerical failure, or if over some 100 consecutive scored
    cycles its mean RMSE exceeds that of the climatological mean by 2 %; it then ends there.

    Parameters
    ----------
    baseline : the method and its settings.
    test_set : truth and observations; observed entries are seen directly, with error variance ``noise**2``.
    cycles : run this many first cycles only (burn-in included); all by default.
    seed : of the initial ensemble and of random rotations; not negative.
    progress : show a progress bar.
    dynamics : the forecast model; by default the one that filters forecast the test set's system with.

    Raises
    ------
    ImportError : if DAPPER is not installed.
    ValueError : if ``cycles`` or ``seed`` is out of range, ``dynamics`` has another state than the test set, or the
        observations are not of the state itself.
    TypeError : if DAPPER's method does not know one of the settings.
    """
    available, shape = len(test_set.observations), test_set.observations.shape[1:]
    cycles = available if cycles is None else cycles
    if not 1 <= cycles <= available:
        raise ValueError(f"cycles = {cycles} must be between 1 and the {available} cycles of {test_set.name}.")
    if seed < 0:
        raise ValueError(f"seed = {seed} must not be negative.")
    seen = observation_model(test_set.obs_conf, *shape)
    if seen.unknown or seen.operator is not identity:
        raise ValueError(
            f"obs_conf = {test_set.obs_conf!r} does not observe the state itself; the baselines here can use direct "
            "observations only."
        )
    dynamics = dynamics or forecast_model_of(test_set.system)
    if (dynamics.channels, dynamics.sites) != shape:
        state = dynamics.channels, dynamics.sites
        raise ValueError(f"dynamics = {dynamics.name}: its states are {state}, those of {test_set.name} are {shape}.")
    import_dapper()
    import dapper.da_methods

    model = hidden_markov_model(test_set, cycles, dynamics)
    truth = test_set.truth.reshape(available + 1, -1).astype(np.float64)
    observations = [test_set.observations[k][test_set.masks[k]].astype(np.float64) for k in range(cycles)]
    size = {"N": baseline.m} if baseline.m > 1 else {}
    dapper_class = getattr(dapper.da_methods, _DAPPER_CLASS.get(baseline.method, baseline.method))
    climate = test_set.states.reshape(len(test_set.states), -1).astype(np.float64)
    # DAPPER's own "clim" is the covariance of the truth it is given, which may be a part of the test set.
    background = {"B": np.cov(climate.T)} if baseline.settings.get("B") == "clim" else {}
    method = dapper_class(**size, **(baseline.settings | background))
    climatology = np.sqrt(np.mean((truth[1 : cycles + 1] - climate.mean(0)) ** 2, axis=1))
    with quiet_dapper(seed), tqdm(total=cycles, desc=baseline.label, disable=not progress) as bar:
        method.stats = recorder = Recorder(truth[1 : cycles + 1], climatology, test_set.burn_in, bar)
        outcome = "completed"
        start = time.process_time()
        try:
            # The undecorated method: DAPPER's decorator would attach its own statistics, which cost more than many
            # an analysis (singular values, rank histograms), and its live plots.
            method.assimilate.__wrapped__(method, model, truth, observations)
        except (FloatingPointError, np.linalg.LinAlgError) as error:
            outcome = f"stopped after {recorder.done} cycles: {error}"
        seconds = time.process_time() - start - recorder.seconds
    return BaselineRun(
        baseline=baseline,
        mean=recorder.mean.reshape(cycles, *shape),
        rmse=recorder.rmse,
        spread=recorder.spread,
        crps=recorder.crps,
        ms_per_cycle=1000 * seconds / max(recorder.done, 1),
        diverged=outcome != "completed",
        survived=recorder.done,
        outcome=outcome,
    )


def scores_of(run: BaselineRun, burn_in: int) -> Scores:
    """Scores of a baseline's run after the burn-in; NaN if it diverged."""
    scored = [series[burn_in:] for series in (run.rmse, run.spread, run.crps)]
    if run.diverged:
        return Scores(*[float("nan")] * 5, cycles=len(scored[0]))
    return summarize(*scored)

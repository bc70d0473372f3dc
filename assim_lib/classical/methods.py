r"""The same truth and the same observations through classical methods.

A learned filter is worth its training only if it beats what needs none. The methods here are those of DAPPER
(Raanes et al., *Data Assimilation with Python: a Package for Experimental Research*); nothing of them is written
again. This file adds the fairness of the comparison: DAPPER's own twin experiment is not used, its methods are
handed the truth and observations of a :class:`~assim_lib.twin.TwinExperiment` and, as forecast model, the very
:class:`~assim_lib.systems.Dynamics` that the learned filters have.

The methods minimise, over all states or in the space of an ensemble, the same cost function

.. math:: J(x) = \tfrac12 \lVert x - x^b \rVert^2_{B^{-1}} + \tfrac12 \lVert y - H(M(x)) \rVert^2_{R^{-1}},

and differ in two choices. *Where does* :math:`B` *come from?* 3D-Var and 4D-Var keep it fixed; LETKF, EnKF-N and
iEnKS take it from the forecast ensemble. *At which time is* :math:`x` *?* For 3D-Var, LETKF and EnKF-N at the
observation (:math:`M` is the identity); for 4D-Var and iEnKS ``Lag`` cycles earlier.

DAPPER comes with the extra ``baselines``, and is imported when a method runs, not before.
"""

import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from assim_lib.classical.baseline import Baseline
from assim_lib.classical.dapper_bridge import (
    Recorder,
    hidden_markov_model,
    import_dapper,
    observation_vectors,
    pause_where_nothing_was_received,
    quiet_dapper,
)
from assim_lib.evaluation import Scores, summarize
from assim_lib.observations import identity
from assim_lib.seeds import BASELINES
from assim_lib.systems import Dynamics, forecast_model_of
from assim_lib.twin import TwinExperiment

_DAPPER_CLASS = {"3D-Var": "Var3D", "4D-Var": "Var4D", "EnKF-N": "EnKF_N"}  # the others have the same name there


@dataclass(frozen=True)
class BaselineRun:
    """What a method did, cycle by cycle, burn-in included; NaN after a crash.

    Attributes:
        mean: (cycle, channel, site), the analysis mean.
        rmse: (cycle,), root mean square over the state of ``mean - truth`` (DAPPER's ``err.rms.a``).
        spread: (cycle,), root of the mean over the state of the analysis ensemble's unbiased variance, 0 for one state.
            When DAPPER assesses the analysis, LETKF and EnKF have inflated it, iEnKS has not yet.
        crps: (cycle,), mean over the state of the continuous ranked probability score of the analysis ensemble's
            empirical distribution; the absolute error for one state.
        ms_per_cycle: processor time of a cycle in milliseconds, scores excluded.
        diverged: whether the method lost the truth, see :func:`run_baseline`.
        survived: number of cycles until then, or of all.
        outcome: ``"completed"``, or where and why it stopped.
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
    twin: TwinExperiment,
    cycles: int | None = None,
    seed: int = BASELINES,
    progress: bool = True,
    dynamics: Dynamics | None = None,
) -> BaselineRun:
    """Run a classical method over the cycles of a twin experiment.

    The start is drawn from the first observations and the climatology, see
    :func:`~assim_lib.classical.dapper_bridge.first_guess`. That climatology, and the background covariance ``B`` of
    variational methods, are those of the truth itself, over all of its cycles, which favours these methods. A cycle in
    which nothing was received is a forecast and nothing else: its analysis is the forecast, neither inflated nor
    rotated.

    Divergence is a result, not an error: a run has *diverged* if it stopped on a numerical failure, or if it lost the
    truth after the burn-in as :func:`~assim_lib.evaluation.lost_truth` has it; it then ends there.

    Args:
        baseline: the method and its hyperparameters.
        twin: truth and observations; observed entries are seen directly.
        cycles: run this many first cycles only (burn-in included); all by default.
        seed: of the initial ensemble and of random rotations; not negative.
        progress: show a progress bar.
        dynamics: the forecast model; by default the one that filters forecast the truth's system with.

    Raises:
        ImportError: if DAPPER is not installed.
        ValueError: if ``cycles`` or ``seed`` is out of range, ``dynamics`` has another state than the truth, or the
            observations are not of the state itself.
        TypeError: if DAPPER's method does not know one of the hyperparameters.
    """
    available, shape = len(twin.observations), twin.observations.shape[1:]
    cycles = available if cycles is None else cycles
    if not 1 <= cycles <= available:
        raise ValueError(f"cycles = {cycles} must be between 1 and the {available} cycles of {twin.name}.")
    if seed < 0:
        raise ValueError(f"seed = {seed} must not be negative.")
    if twin.observation_model.unknown or twin.observation_model.operator is not identity:
        raise ValueError(
            f"obs_conf = {twin.setting.obs_conf!r} does not observe the state itself; the baselines here can use "
            "direct observations only."
        )
    dynamics = dynamics or forecast_model_of(twin.setting.system)
    if dynamics.depends_on_time:
        raise ValueError(f"dynamics = {dynamics.name} depends on time, of which the baselines here know nothing.")
    if (dynamics.channels, dynamics.sites) != shape:
        state = dynamics.channels, dynamics.sites
        raise ValueError(f"dynamics = {dynamics.name}: its states are {state}, those of {twin.name} are {shape}.")
    import_dapper()
    import dapper.da_methods

    truth, climate = (states.reshape(len(states), -1).astype(np.float64) for states in (twin.states, twin.climatology))
    size = {"N": baseline.m} if baseline.m > 1 else {}
    # DAPPER's own "clim" is the covariance of the truth it is given, which may be a part of the record.
    background = {"B": np.cov(climate.T)} if baseline.hyperparameters.get("B") == "clim" else {}
    dapper_class = getattr(dapper.da_methods, _DAPPER_CLASS.get(baseline.method, baseline.method))
    known = {name: value for name, value in baseline.hyperparameters.items() if name not in baseline.corrections}
    method = dapper_class(**size, **(known | background))
    model = hidden_markov_model(twin, cycles, dynamics, **baseline.corrections)
    observations = observation_vectors(twin, cycles)
    with tqdm(total=cycles, desc=baseline.label, disable=not progress) as bar:
        pause = pause_where_nothing_was_received(method, twin.seen)
        recorder = Recorder(truth[1 : cycles + 1], twin.climatology_rmse[:cycles], twin.burn_in, bar, pause)
        outcome = "completed"
        with quiet_dapper(seed, recorder):
            start = time.process_time()
            try:
                method.assimilate(model, truth, observations)
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

"""How well the model forecasts from analyses, and how well from the truth itself.

A model that is wrong does not forecast best from the true state. A filter that is trained on forecasts may find states
from which it does better.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from assim_lib.classical.methods import run_baseline
from assim_lib.evaluation import interval
from assim_lib.observations import identity
from assim_lib.setting import Setting
from assim_lib.storage import data_dir, provenance, refuse_uncommitted
from assim_lib.stored import Stored
from assim_lib.study.displaced import Displaced, displaced
from assim_lib.study.results import TAUGHT, Label, Provenance, Result, best_of, load_scores, read_result, results_dir
from assim_lib.study.summaries import CLASSICAL_METHODS, KALMAN
from assim_lib.study.tables import CLASSICAL_MEMBERS
from assim_lib.systems import forecast_model_of
from assim_lib.training.checkpoints import scored_filter
from assim_lib.training.validation import run_filter
from assim_lib.twin import TwinExperiment

LEADS, EVERY = 20, 5
BLOCK_OF_STARTS = 20  # starts in a block of the bootstrap: as many cycles as the scores' blocks have

Flow = Callable[[Tensor], Tensor]


class Forecasts(Stored):
    """RMSE of the forecasts from one kind of state, by lead in cycles from 0 on, with its 95 % interval.

    Attributes:
        label: what the states are, and what forecasts from them if not the model.
        file: of their scores; None for the truth.
    """

    label: Label
    file: str | None
    rmse: list[float]
    rmse_lo: list[float]
    rmse_hi: list[float]


class ForecastSkill(Stored):
    """The forecasts of a setting from all kinds of states, ``every`` so many cycles of the test set; and how much
    closer to the truth their filters are with a displacement."""

    every: int
    forecasts: list[Forecasts]
    displaced: list[Displaced] = []
    provenance: Provenance


def forecast_errors(
    analysis: Float[np.ndarray, "cycle channel site"],
    twin: TwinExperiment,
    leads: int = LEADS,
    every: int = EVERY,
    flow: Flow | None = None,
) -> Float[np.ndarray, "start lead"]:
    """Root mean square errors over the state, of forecasts by start and by lead in cycles, 0 … ``leads``.

    Args:
        analysis: the states that forecasts start from, from the first cycle of ``twin`` on; its burn-in is left out.
        every: cycles between two starts.
        flow: the model over a cycle; by default the one that filters forecast the truth's system with.

    Raises:
        ValueError: if there are too few states for one forecast after the burn-in.
    """
    least = twin.burn_in + leads + 1
    if len(analysis) < least:
        raise ValueError(f"leads = {leads} needs {least} analyses, the burn-in included; here are {len(analysis)}.")
    starts = np.arange(twin.burn_in, len(analysis) - leads, every)
    flow = flow or model_flow(twin.setting)
    x, errors = torch.from_numpy(analysis[starts]).double(), []
    for lead in range(leads + 1):
        errors.append(np.sqrt(np.square(x.numpy() - twin.truth[starts + lead]).mean((-2, -1))))
        x = flow(x) if lead < leads else x
    return np.stack(errors, 1)


def model_flow(setting: Setting, bias: float = 0.0, damping: float = 0.0) -> Flow:
    """The forecast model over a cycle, corrected as that of a classical filter may be."""
    model = forecast_model_of(setting.system)
    steps = model.steps_per_cycle(setting.step_size)
    return lambda x: (1 - damping) * model.flow(x, steps) + bias


def forecast_skill(setting: Setting) -> Path:
    """Forecast from the truth, and from the analyses of the best filter of each kind; store the errors.

    The kinds are a classical filter with at most 30 members, one with a corrected model, one that learned on a Kalman
    part, and one that learned from nothing. All forecast with the same model. The corrected one stands there twice:
    its model is its own.

    Raises:
        PermissionError: if the library has changes that are not committed.
    """
    refuse_uncommitted()
    twin, validation, moved = setting.load(), setting.load("validation"), []
    # What least squares are fitted to is the state, at one number a site.
    fits = twin.truth.shape[1] == 1 and twin.observation_model.operator is identity
    kinds = [_told("the truth", None, forecast_errors(twin.truth, twin))]
    for file in best_of_each_kind(setting).file:
        result = read_result(results_dir() / file)
        analysis = _analysis(result, twin)
        kinds.append(_told(result.label, file, forecast_errors(analysis, twin)))
        if fits:
            learned_on = _analysis(result, validation), validation
            moved.append(displaced(result.label, file, learned_on, (analysis, twin), model_flow(setting)))
        if result.baseline and result.baseline.corrections:
            own = {name: float(result.baseline.hyperparameters[name]) for name in ("bias", "damping")}
            errors = forecast_errors(analysis, twin, flow=model_flow(setting, **own))
            kinds.append(_told(f"{result.label}, which forecasts", file, errors))
    skill = ForecastSkill(every=EVERY, forecasts=kinds, displaced=moved, provenance=Provenance(**provenance()))
    return skill.write(skill_path(setting))


def _analysis(result: Result, twin: TwinExperiment) -> Float[np.ndarray, "cycle channel site"]:
    """The mean of what a scored filter forecasts from along the test set."""
    if result.baseline:
        return run_baseline(result.baseline, twin, progress=True).mean
    experiment, model = scored_filter(result.setting, str(result.checkpoint))
    return run_filter(experiment, model.undisplaced(), twin, progress=True)[0].mean(1)


def _told(label: str, file: str | None, errors: Float[np.ndarray, "start lead"]) -> Forecasts:
    low, high = zip(*(interval(column, BLOCK_OF_STARTS) for column in errors.T), strict=True)
    return Forecasts(label=label, file=file, rmse=errors.mean(0).tolist(), rmse_lo=list(low), rmse_hi=list(high))


def best_of_each_kind(setting: Setting) -> pd.DataFrame:
    """Rows of the table of scores: of each kind of filter the best on validation data that kept the truth."""
    rows = load_scores(**setting.as_dict()).query(f"not diverged and m <= {CLASSICAL_MEMBERS} and method != {TAUGHT!r}")
    classical = rows.method.isin(CLASSICAL_METHODS)
    kind = np.select(
        [rows.method == "LETKF corrected", classical, rows.analysis.isin(KALMAN)],
        ["corrected", "classical", "Kalman part"],
        "from nothing",
    )
    return best_of(rows.assign(kind=kind), ["kind"]).set_index("kind")


def skill_path(setting: Setting) -> Path:
    """Where the forecasts of a setting are stored."""
    return data_dir() / "forecasts" / f"{setting.slug}.json"


def stored_displaced(setting: Setting) -> pd.DataFrame:
    """Of each kind of filter, the error of its analyses as they are and displaced, see :class:`Displaced`."""
    return pd.DataFrame([each.model_dump() for each in ForecastSkill.read(skill_path(setting)).displaced])


def stored_skill(setting: Setting) -> pd.DataFrame:
    """The stored forecasts of a setting, one row a kind of state and lead: ``label``, ``lead``, ``rmse``, bounds."""
    stored = ForecastSkill.read(skill_path(setting)).forecasts
    frames = [pd.DataFrame(each.model_dump()).rename_axis("lead").reset_index() for each in stored]
    return pd.concat(frames, ignore_index=True)

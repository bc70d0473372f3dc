"""The table of scores: one JSON file a run under ``data/results``, one tidy row each in ``scores.csv``.

Every figure and table of the book is computed from these files. ``scores.csv`` is derived from the JSON files and
never edited; a run appears once its file does. Of a learned filter the file names the checkpoint, whose training log
says how it came about: options, learning curve, time, package versions, commit.

Nothing here needs PyTorch.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, ConfigDict

from assim_lib.classical.baseline import Baseline, Hyperparameters
from assim_lib.setting import SETTING_COLUMNS, Setting
from assim_lib.storage import IntegrityError, atomic_path, data_dir
from assim_lib.stored import Number, Stored, StoredScores

# The method of a filter whose teacher was the truth, which only a simulation has: it competes with no other.
TAUGHT = "amortized_clean_analysis"
COLUMNS = [
    *SETTING_COLUMNS, "method", "m", "label", "analysis", "rmse", "rmse_lo", "rmse_hi", "spread", "crps", "cycles",
    "ms_per_cycle", "seed", "checkpoint", "commit", "diverged", "diverged_starts", "starts", "failed", "untrained_rmse",
    "untrained_validation_rmse", "validation_rmse", "best", "file",
]  # fmt: skip


class Provenance(Stored):
    """Where a number comes from, see :func:`assim_lib.storage.provenance`; ``cpu`` is "" where it was not asked for.

    ``processes`` is how many of them trained a filter together.
    """

    commit: str
    python: str
    versions: dict[str, str | None]
    device: str
    processor: str
    cpu: str = ""
    processes: int = 1


class Failure(Stored):
    """Hyperparameters that were better on validation data, and lost the truth on the test set."""

    hyperparameters: Hyperparameters
    outcome: str


# The ensemble size is called m; older files have DAPPER's letter for it.
Label = Annotated[str, AfterValidator(lambda label: label.replace(" N=", " m="))]


class Result(Stored):
    """The scores of a run on the frozen data of a setting.

    Attributes:
        system: of the setting.
        obs_conf: of the setting.
        step_size: of the setting.
        noise: of the setting.
        method: as in the table of scores.
        m: number of members.
        label: tells apart runs with the same method and m.
        test: scores on the frozen test set.
        validation: scores on the validation set, which choices are made by.
        ms_per_cycle: processor time of a cycle of one sequence in milliseconds, as noted at the scoring, perhaps beside
            other work: :mod:`assim_lib.study.cost` compares.
        checkpoint: of a learned filter: file name of its weights.
        weights: of a learned filter: their SHA-256.
        untrained: of a learned filter: test scores of the same filter before any training.
        untrained_validation: likewise on the validation set.
        by_age: of a learned filter: :func:`~assim_lib.evaluation.error_by_age` on the test set, of the ages that at
            least one entry in a thousand has.
        diverged: whether it lost the truth on the test set.
        diverged_starts: of a classical method: how many short runs lost the truth.
        starts: of a classical method: number of short runs.
        baseline: of a classical method: what ran.
        role: of a classical method: what it is compared for.
        outcome: of a classical method: how the run ended.
        failed: of a classical method: what was tried on the test set before, and lost the truth there.
        provenance: of the scores; that of the training is in its training log.
    """

    system: str
    obs_conf: str
    step_size: float
    noise: float
    method: str
    m: int
    label: Label
    test: StoredScores
    validation: StoredScores
    ms_per_cycle: Number
    seed: int
    checkpoint: str | None = None
    diverged: bool = False
    diverged_starts: int | None = None
    starts: int | None = None
    baseline: Baseline | None = None
    role: str | None = None
    outcome: str | None = None
    failed: list[Failure] | None = None
    untrained: StoredScores | None = None
    untrained_validation: StoredScores | None = None
    by_age: dict[str, list[Number]] | None = None
    weights: str | None = None
    provenance: Provenance

    @property
    def setting(self) -> Setting:
        """What was observed, how often, how well."""
        return Setting(self.system, self.obs_conf, self.step_size, self.noise)

    @property
    def largest_bias(self) -> float:
        """The largest bias of sites of one age, as a share of their RMSE; NaN where none is stored."""
        ages = self.by_age or {"bias": [], "rmse": []}
        return max((abs(b) / e for b, e in zip(ages["bias"], ages["rmse"], strict=True)), default=math.nan)


class TrainingLog(Stored):
    """How a filter was trained, from the file beside its weights.

    Attributes:
        experiment: all options.
        provenance: of the training.
        seconds, core_seconds: wall and processor time of the updates alone.
        history: the learning curve, one point a validation.
    """

    model_config = ConfigDict(extra="ignore")

    experiment: dict[str, Any]
    provenance: Provenance
    seconds: float
    core_seconds: float
    history: list[dict[str, int | Number]]


def results_dir() -> Path:
    """Where results are stored."""
    return data_dir() / "results"


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
        IntegrityError: if something in it is wrong; the sentence names file and field.
    """
    return Result.read(path)


def write_result(name: str, result: Result) -> Path:
    """Store a result under a name, and return the path of its file."""
    return result.write(results_dir() / f"{name}.json", exclude_unset=True)


def training_log(checkpoint: str) -> TrainingLog:
    """How the filter of a checkpoint was trained.

    Args:
        checkpoint: file name of its weights, as in the table of scores.

    Raises:
        IntegrityError: if something in the log is wrong; the sentence names file and field.
    """
    return TrainingLog.read((data_dir() / "checkpoints" / checkpoint).with_suffix(".json"))


def _row(path: Path) -> dict[str, Any]:
    result = read_result(path)
    training = training_log(result.checkpoint) if result.checkpoint else None
    return {
        **{name: getattr(result, name) for name in COLUMNS if name in Result.model_fields},
        **result.test.as_dict(),
        "validation_rmse": result.validation.rmse,
        "untrained_rmse": result.untrained.rmse if result.untrained else float("nan"),
        "untrained_validation_rmse": (
            result.untrained_validation.rmse if result.untrained_validation else float("nan")
        ),
        "failed": None if result.failed is None else len(result.failed),
        "analysis": training.experiment["analysis"] if training else None,
        "commit": (training or result).provenance.commit,
        "file": path.name,
    }


def collect() -> pd.DataFrame:
    """Build the table from the JSON files.

    ``best`` marks, among runs of one method and ensemble size in one setting, that of the lowest RMSE on
    *validation* data: the test set chooses nothing.
    """
    table = pd.DataFrame([_row(path) for path in sorted(results_dir().glob("*.json"))], columns=COLUMNS)
    # A run that diverged on validation data is the best of its kind only where there is no other.
    error = table["validation_rmse"].fillna(float("inf"))
    # One of them, where two runs are equal.
    table["best"] = error.groupby([table[key] for key in (*SETTING_COLUMNS, "method", "m")]).rank(method="first") == 1
    return table.sort_values([*SETTING_COLUMNS, "method", "m", "label", "seed"], ignore_index=True)


def write_scores() -> Path:
    """Bring ``data/results/scores.csv`` up to date with the JSON files."""
    path = results_dir() / "scores.csv"
    with atomic_path(path) as temporary:
        table = collect()
        keys = table[["step_size", "noise"]].map("{:.15g}".format)  # by which rows are found again
        table.assign(**keys).to_csv(temporary, index=False, float_format="%.5g")
    return path


def load_scores(**wanted: Any) -> pd.DataFrame:
    """The rows of ``scores.csv`` that are wanted, e.g. ``load_scores(system="l96", method=["LETKF", "iEnKS"])``.

    Raises:
        IntegrityError: if the file is no table of scores.
    """
    path = results_dir() / "scores.csv"
    try:
        table = pd.read_csv(path, dtype={"step_size": float, "noise": float})
    except ValueError as error:  # whatever pandas makes of a damaged file
        raise IntegrityError(
            f"{path.name} is damaged ({str(error).splitlines()[0]}); make it again with `python -m assim_lib scores`."
        ) from None
    return select(table, **wanted)


def best_of(rows: pd.DataFrame, by: Sequence[str] = SETTING_COLUMNS) -> pd.DataFrame:
    """Of the rows that agree in these columns the one that is best on validation data, if any was scored there."""
    scored = rows.dropna(subset="validation_rmse").sort_values("validation_rmse", kind="stable")
    return pd.DataFrame(scored.drop_duplicates(list(by)))


def select(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows of a table that have a wanted value, or one of a list of them, in each of the columns named."""
    for column, values in wanted.items():
        table = table.loc[table[column].isin(values if isinstance(values, list) else [values])]
    return table.reset_index(drop=True)

"""Publishing a trained filter: its checkpoint under ``data/checkpoints``, its scores under ``data/results``."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from assim_lib.evaluation import Scores
from assim_lib.filter import AmortizedFilter
from assim_lib.setting import Setting
from assim_lib.storage import data_dir, provenance, refuse_uncommitted, sha256, why_not_writable
from assim_lib.study.results import Provenance, Result, best_of, load_scores, write_result
from assim_lib.training.build import build_filter
from assim_lib.training.checkpoints import (
    checkpoint_path,
    load_filter,
    save_checkpoint,
    scored_filter,
    stored_experiment,
    stored_log,
)
from assim_lib.training.experiment import Experiment
from assim_lib.training.many_settings import in_settings, scored_settings
from assim_lib.training.validation import run_filter, score
from assim_lib.trajectories import load_trajectories
from assim_lib.twin import CYCLES, is_frozen, trajectory_path

RAREST_AGE = 1e-3  # the share of entries from which on an age is reported


def check_publishable(experiment: Experiment, again: bool = False) -> None:
    """Ask, before a filter is trained, whether it can be published afterwards.

    Args:
        again: a filter of the same name that was trained in another way may be replaced.

    Raises:
        LookupError: if the test set of a setting is not one of the project's frozen ones.
        IntegrityError, FileNotFoundError: if one of them is damaged, or gone.
        PermissionError: if nothing can be stored, or the library has changes that are not committed.
        FileExistsError: if there is another filter of that name.
    """
    for scored in scored_settings(experiment):
        for split in CYCLES:
            if not is_frozen(scored.setting, split):
                raise LookupError(
                    f"system = {scored.system!r} with step_size = {scored.step_size:g} has no frozen {split} set; make "
                    "one with `python -m assim_lib test-sets` before publishing."
                )
            load_trajectories(trajectory_path(scored.system, scored.step_size, split))
    path = checkpoint_path(experiment.name)
    refuse_unwritable(path)
    if not again:
        refuse_other_training(experiment, path)
    refuse_uncommitted()


def refuse_unwritable(path: Path) -> None:
    """Ask whether a filter can be stored there.

    Raises:
        PermissionError: if not.
    """
    if reason := why_not_writable(path):
        raise PermissionError(
            f"{path} cannot be written ({reason}); copy {data_dir()} to a folder of your own, and name it by the "
            "environment variable ASSIM_DATA."
        )


def refuse_other_training(experiment: Experiment, path: Path) -> None:
    """Ask whether a filter of that name was trained in another way.

    Raises:
        FileExistsError: if so.
    """
    # Weights alone are what a run left that was killed before it wrote their log: they are not published.
    if path.exists() and path.with_suffix(".json").exists():
        stored = stored_experiment(stored_log(path))
        options = stored.changed(device=experiment.device).model_dump()
        differ = [f"{k} = {options[k]!r}" for k, v in experiment.model_dump().items() if options[k] != v]
        if differ:
            raise FileExistsError(
                f"{experiment.name} is published already, from a training with {', '.join(differ)}; take another "
                "seed, or replace it with --again."
            )


def publish(experiment: Experiment, model: AmortizedFilter, log: dict[str, Any]) -> Path:
    """Store a trained filter and its scores, test and validation; return the path of its weights.

    A filter of many settings has one checkpoint, and a result in each of those that it is scored in. The test set
    decides nothing: one that loses the truth there is stored as ``diverged``, as a classical method is.

    Args:
        log: of the training, as :func:`~assim_lib.training.run.train` returns it.

    Raises:
        LookupError: if the test set of a setting is not one of the project's frozen ones.
        FloatingPointError: if on the validation set the filter's analyses are not finite, or lose the truth as
            :func:`~assim_lib.evaluation.lost_truth` has it.
    """
    check_publishable(experiment, again=True)
    path = checkpoint_path(experiment.name)
    scores = []
    for scored, trained in in_settings(experiment, model, scored_settings(experiment)):
        skipped = (log.get("history") or [{}])[-1].get("skipped", 0)
        said: dict[str, Any] = {"validation": _validated(scored, trained, skipped)}
        # What the same filter does before any training: the share of its classical part.
        untrained = build_filter(scored, model.climatology)
        for name, split in (("untrained", "test"), ("untrained_validation", "validation")):
            said[name], _ = score(scored, untrained, split)
        twin = scored.setting.load()
        ensemble, said["ms_per_cycle"] = run_filter(scored, trained, twin, progress=True)
        said["test"], said["diverged"] = twin.score(ensemble), bool(twin.loses(ensemble))
        ages = twin.by_age(ensemble)
        common = ages["share"] > RAREST_AGE
        said["by_age"] = {name: values[common].tolist() for name, values in ages.items()}
        print(_by_age(said["by_age"]))
        if said["diverged"]:
            print(f"It has lost the truth on the test set: RMSE {said['test'].rmse:.2f}.")
        scores.append((scored, said))
    # Not before all is known: an interrupted scoring leaves the old weights beside the old scores.
    save_checkpoint(model, path, log)
    for scored, said in scores:
        write_result(
            f"{experiment.name}-{scored.setting.observing}" if experiment.n_settings else experiment.name,
            Result(
                **scored.setting.as_dict(),
                method=experiment.method,
                m=experiment.m,
                label=experiment.label,
                seed=experiment.seed,
                checkpoint=path.name,
                weights=sha256(path),
                provenance=Provenance(**provenance(str(experiment.torch_device))),
                **said,
            ),
        )
    return path


def _validated(experiment: Experiment, model: AmortizedFilter, skipped: int) -> Scores:
    """Scores on the validation set, of a filter that keeps the truth there."""
    twin = experiment.setting.load("validation")
    ensemble, _ = run_filter(experiment, model, twin)
    if not np.isfinite(ensemble).all():
        raise FloatingPointError(
            f"{experiment.name}: analyses that are no numbers are not published; train it otherwise."
        )
    scores = twin.score(ensemble)
    if twin.loses(ensemble):
        raise FloatingPointError(
            f"{experiment.name} has lost the truth of {experiment.setting.title} (RMSE {scores.rmse:.2f}, of the "
            f"climatology {twin.climatology_rmse.mean():.2f}; {skipped} updates were skipped), and is not "
            "published; train it otherwise."
        )
    return scores


def _by_age(ages: dict[str, list[float]]) -> str:
    lines = ["cycles since seen   RMSE    bias"]
    for age, error, bias in zip(ages["age"], ages["rmse"], ages["bias"], strict=True):
        lines.append(f"{age:17.0f}   {error:.3f}  {bias:+.3f}")
    return "\n".join(lines)


def published_filter(name: str) -> tuple[Experiment, AmortizedFilter]:
    """A filter that is scored on the frozen test sets; what it raises, :func:`publish_again` says."""
    experiment, model = load_filter(checkpoint_path(name))
    if experiment.record:
        raise LookupError(f"{name} was trained on a record of one's own, and has its scores there.")
    return experiment, model


def publish_again(name: str) -> Path:
    """Score a stored filter as the library is now, and store that; its weights stay as they are.

    Raises:
        FileNotFoundError: if there is no checkpoint of that name.
        IntegrityError: if its log is that of another filter.
        LookupError: if it was trained on a record of one's own.
    """
    experiment, model = published_filter(name)
    log = stored_log(checkpoint_path(name))
    del log["sha256"]
    return publish(experiment, model, log)


class NothingPublishedError(LookupError):
    """No stored filter is what was wanted."""


def best_filter(**wanted: Any) -> tuple[Experiment, AmortizedFilter, pd.Series]:
    """The stored filter that is best on validation data in a setting, and its row of the table of scores.

    A filter that was trained in many settings comes in that of the row.

    Args:
        wanted: columns of the table and their values, e.g. ``method="amortized", obs_conf="full_obs"``.

    Raises:
        NothingPublishedError: if no filter is published for the setting.
    """
    rows = load_scores(**wanted)
    rows = rows.loc[rows.checkpoint.notna()]
    if rows.empty:
        raise NothingPublishedError(f"no stored filter has {', '.join(f'{k} = {v!r}' for k, v in wanted.items())}.")
    row = best_of(rows, ["system"]).iloc[0]
    setting = Setting(row.system, row.obs_conf, float(row.step_size), float(row.noise))
    return *scored_filter(setting, row.checkpoint), row

"""Classical methods on the frozen test sets: one result file each, computed once.

The learned filters and these rows see the same truth, the same observations, the same burn-in and the same scores.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from assim_lib.baselines import BASELINES, Baseline, BaselineRun, run_baseline
from assim_lib.evaluation import Scores, summarize
from assim_lib.results import SETTING, results_dir, store_result
from assim_lib.storage import provenance
from assim_lib.trajectories import TestSet, load_test_set

SEED = 3000


def baseline_scores(run: BaselineRun, burn_in: int) -> Scores:
    """Scores of a baseline's run after the burn-in; of its valid cycles only, if it crashed."""
    scored = [series[burn_in:] for series in (run.rmse, run.spread, run.crps)]
    return summarize(*scored)


def result_name(test_set: TestSet, baseline: Baseline) -> str:
    """The file name of a baseline's result."""
    label = baseline.label.replace(" ", "-").replace("=", "")
    return f"{test_set.system}-{test_set.obs_conf}-dt{test_set.step_size:g}-s{test_set.noise:g}-{label}"


def compare(test_set: TestSet, baselines: Iterable[Baseline] | None = None, progress: bool = True) -> Iterator[Path]:
    """Score classical methods on a frozen test set and on its validation set; yield each result's path.

    A method that is stored with the same settings is not run again: an interrupted comparison resumes.

    Parameters
    ----------
    baselines : those of :data:`~assim_lib.baselines.BASELINES` for the setting, by default.

    Raises
    ------
    KeyError : if no baselines are listed for the setting, and none are given.
    """
    if baselines is None:
        baselines = BASELINES[test_set.system, test_set.obs_conf, test_set.step_size, test_set.noise]
    setting = {key: getattr(test_set, key) for key in SETTING}
    validation_set = load_test_set(**setting, split="validation")
    for baseline in baselines:
        name, settings = result_name(test_set, baseline), baseline.model_dump()
        path = results_dir() / f"{name}.json"
        if not (path.exists() and json.loads(path.read_text())["baseline"] == settings):
            origin = provenance()
            validation = run_baseline(baseline, validation_set, seed=SEED, progress=progress)
            test = run_baseline(baseline, test_set, seed=SEED, progress=progress)
            store_result(
                name,
                test_set,
                method=baseline.method,
                m=baseline.m,
                label=baseline.label,
                test=baseline_scores(test, test_set.burn_in),
                validation=baseline_scores(validation, validation_set.burn_in),
                ms_per_cycle=test.ms_per_cycle,
                seed=SEED,
                diverged=test.diverged,
                details={"baseline": settings, "outcome": test.outcome, "provenance": origin},
            )
        yield path

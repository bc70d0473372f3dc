"""Classical methods on the frozen test sets: tuned on validation data, scored once, one result file each.

The learned filters and these rows see the same truth, the same observations, the same burn-in and the same scores.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from assim_lib.baselines import Baseline, run_baseline, scores_of
from assim_lib.evaluation import Scores
from assim_lib.results import SETTING, results_dir, store_result
from assim_lib.storage import provenance
from assim_lib.trajectories import TestSet
from assim_lib.tuning import Contender, Search, choose

SEED = 3000
STARTS = 5
START_CYCLES = 400


def compare(contender: Contender, again: bool = False, progress: bool = True) -> Path:
    """Tune a contender, score it on the test set, and store both; return the path of the result.

    The settings that are best on validation data may still lose the truth on the test set. To be on the side of the classical
    methods, the finalist that comes next is then scored as well, and so on: the result is that of the first which
    survives, and those that did not are in its ``failed``.

    A search that was interrupted goes on; a result that is stored for the settings that were found is kept.

    Parameters
    ----------
    again : run on the test set even so.
    """
    finalists = Search(contender, contender.data("validation"), progress).finalists()
    path = results_dir() / f"{contender.name}.json"
    wanted = [trial["settings"] for trial in finalists]
    if again or not _is_stored(path, wanted):
        test_set, origin = contender.data("test"), provenance()
        failed: list[dict[str, Any]] = []
        for found in finalists:
            baseline = contender.start.model_copy(update={"settings": found["settings"]})
            run = run_baseline(baseline, test_set, seed=SEED, progress=progress)
            if not run.diverged:
                break
            failed.append({"settings": found["settings"], "outcome": run.outcome})
        # Here all have failed, or the last one tried is the first that did not.
        store_result(
            contender.name,
            test_set,
            method=baseline.method,
            m=baseline.m,
            label=baseline.label,
            test=scores_of(run, test_set.burn_in),
            validation=Scores(**found["validation"]),
            ms_per_cycle=run.ms_per_cycle,
            seed=SEED,
            diverged=run.diverged,
            details={
                "diverged_starts": _diverged_starts(baseline, test_set),
                "starts": STARTS,
                "baseline": baseline.model_dump(),
                "role": contender.role,
                "outcome": run.outcome,
                "failed": failed,
                "provenance": origin,
            },
        )
    return path


def _is_stored(path: Path, wanted: list[dict[str, Any]]) -> bool:
    """Whether a stored result is that of the first of the wanted settings, or of one after those that failed."""
    if not path.exists():
        return False
    stored = json.loads(path.read_text())
    failed = [trial["settings"] for trial in stored.get("failed", [])]
    if failed != wanted[: len(failed)]:
        return False
    if stored["diverged"]:
        return len(failed) == len(wanted)
    return len(failed) < len(wanted) and stored["baseline"]["settings"] == wanted[len(failed)]


def stored_baseline(test_set: TestSet, method: str, m: int = 1) -> Baseline:
    """A classical method with the settings that it was scored with.

    Raises
    ------
    LookupError : if it has no score in the test set's setting.
    """
    try:
        contenders = choose(**{key: [getattr(test_set, key)] for key in SETTING})
    except ValueError:  # a setting without classical methods
        contenders = []
    for contender in contenders:
        path = results_dir() / f"{contender.name}.json"
        if (contender.start.method, contender.start.m) == (method, m) and path.exists():
            return Baseline(**json.loads(path.read_text())["baseline"])
    raise LookupError(f"{method} with m = {m} has no score on {test_set.name} with {test_set.obs_conf}.")


def _diverged_starts(baseline: Baseline, test_set: TestSet) -> int:
    """How many of some short runs, each from its own start elsewhere in the test set, lose the truth."""
    apart = len(test_set.observations) // STARTS
    diverged = 0
    for index in range(STARTS):
        part = test_set.part(index * apart, START_CYCLES)
        diverged += run_baseline(baseline, part, seed=SEED + 1 + index, progress=False).diverged
    return diverged


def compare_all(contenders: Iterable[Contender], processes: int = 1, again: bool = False) -> Iterator[Path]:
    """:func:`compare` for many, in parallel processes of one thread each; yield each result's path when it is there."""
    contenders = list(contenders)
    with tqdm(total=len(contenders), desc="contenders") as bar:
        if processes == 1:
            for contender in contenders:
                yield compare(contender, again)
                bar.update()
            return
        # Not forked: a copy of PyTorch's threads would wait for each other for ever.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            jobs = [pool.submit(compare, contender, again, False) for contender in contenders]
            try:
                for job in as_completed(jobs):
                    yield job.result()
                    bar.update()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _one_thread() -> Any:
    import torch

    torch.set_num_threads(1)

"""Classical methods on the frozen test sets: tuned on validation data, scored once, one result file each.

The learned filters and these rows see the same truth, the same observations, the same burn-in and the same scores.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

from assim_lib.classical.baseline import Baseline, Hyperparameters
from assim_lib.classical.contenders import SETTINGS, Contender, contenders
from assim_lib.classical.methods import BaselineRun, run_baseline, scores_of
from assim_lib.classical.search import Search
from assim_lib.seeds import BASELINES
from assim_lib.storage import provenance, refuse_uncommitted
from assim_lib.study.results import Failure, Provenance, Result, read_result, results_dir, write_result
from assim_lib.twin import TwinExperiment

STARTS = 5
START_CYCLES = 400


def compare(
    contender: Contender, again: bool = False, progress: bool = True, run: Callable[..., BaselineRun] = run_baseline
) -> Path:
    """Tune a contender, score it on the test set, and store both; return the path of the result.

    What is best on validation data may still lose the truth on the test set. To be on the side of the classical
    methods, the finalist that comes next is then scored as well, and so on: the result is that of the first which
    survives, and those that did not are in its ``failed``.

    A search that was interrupted goes on; a result that is stored for the hyperparameters that were found is kept.

    Args:
        again: run on the test set even so.
        run: what runs a method, as :func:`~assim_lib.classical.methods.run_baseline` does.

    Raises:
        PermissionError: if the library has changes that are not committed.
    """
    refuse_uncommitted()
    finalists = Search(contender, contender.setting.load("validation"), progress, run=run).finalists()
    path = results_dir() / f"{contender.name}.json"
    if not again and is_stored(path, [trial.hyperparameters for trial in finalists]):
        return path
    twin, origin = contender.setting.load(), Provenance(**provenance())
    failed: list[Failure] = []
    for finalist in finalists:
        baseline = contender.start.tuned(finalist.hyperparameters)
        tested = run(baseline, twin, seed=BASELINES, progress=progress)
        if not tested.diverged:
            break
        failed.append(Failure(hyperparameters=finalist.hyperparameters, outcome=tested.outcome))
    # Here all have failed, or the last one tried is the first that did not.
    result = Result(
        **contender.setting.as_dict(),
        method=baseline.scored_method,
        m=baseline.m,
        label=baseline.label,
        test=scores_of(tested, twin.burn_in),
        validation=finalist.validation,
        ms_per_cycle=tested.ms_per_cycle,
        seed=BASELINES,
        checkpoint=None,
        diverged=tested.diverged,
        diverged_starts=diverged_starts(baseline, twin, run),
        starts=STARTS,
        baseline=baseline,
        role=contender.role,
        outcome=tested.outcome,
        failed=failed,
        provenance=origin,
    )
    return write_result(contender.name, result)


def is_stored(path: Path, wanted: list[Hyperparameters]) -> bool:
    """Whether a stored result is that of the first of the wanted hyperparameters, or of one after those that failed."""
    if not path.exists():
        return False
    result = read_result(path)
    failed = [failure.hyperparameters for failure in result.failed or []]
    if failed != wanted[: len(failed)]:
        return False
    if result.diverged:
        return len(failed) == len(wanted)
    return (
        len(failed) < len(wanted)
        and result.baseline is not None
        and result.baseline.hyperparameters == wanted[len(failed)]
    )


def stored_baseline(twin: TwinExperiment, method: str, m: int = 1) -> Baseline:
    """A classical method with the hyperparameters that it was scored with.

    Raises:
        LookupError: if it has no score in the setting of the twin experiment.
    """
    for contender in contenders(twin.setting) if twin.setting in SETTINGS else ():
        path = results_dir() / f"{contender.name}.json"
        stored = (contender.start.scored_method, contender.start.m) == (method, m) and path.exists()
        if stored and (baseline := read_result(path).baseline):
            return baseline
    raise LookupError(f"{method} with m = {m} has no score on {twin.name} with {twin.setting.obs_conf}.")


def diverged_starts(baseline: Baseline, twin: TwinExperiment, run: Callable[..., BaselineRun] = run_baseline) -> int:
    """How many of some short runs, each from its own start elsewhere in the truth, lose it."""
    apart = len(twin.observations) // STARTS
    parts = [twin.part(index * apart, START_CYCLES) for index in range(STARTS)]
    runs = (run(baseline, part, seed=BASELINES + 1 + index, progress=False) for index, part in enumerate(parts))
    return sum(one.diverged for one in runs)


def compare_all(
    contenders: Iterable[Contender],
    workers: int = 1,
    scheduler: str | None = None,
    again: bool = False,
    run: Callable[..., BaselineRun] = run_baseline,
) -> Iterator[Path]:
    """:func:`compare` for many; yield each result's path when it is there.

    Args:
        workers: processes of one thread on this machine; 1: this one alone.
        scheduler: address of a scheduler of dask.distributed, whose workers know the same folder of data.

    Raises:
        LookupError: if workers or a scheduler are asked for without the extra ``sweep``.
        ConnectionError: if the scheduler cannot be reached or is lost.
    """
    contenders = list(contenders)
    tasks = {contender.name: (contender, again, run) for contender in contenders}
    bar = partial(tqdm, total=len(tasks), desc="contenders")
    if workers == 1 and scheduler is None:
        for contender in bar(contenders):
            yield compare(contender, again, run=run)
        return
    with imported_engine().running(_compare, tasks, scheduler, workers, retries=1) as ended:
        for _, path, error in bar(ended):
            if error:
                raise error
            yield path


def imported_engine() -> ModuleType:
    """The module :mod:`assim_lib.workers`, which needs the extra ``sweep``.

    Raises:
        LookupError: if it is not installed.
    """
    try:
        return import_module("assim_lib.workers")
    except ModuleNotFoundError as error:
        raise LookupError(
            f"several workers need {error.name}, of the extra `sweep`: pip install '.[sweep]'; one needs nothing."
        ) from None


def _compare(contender: Contender, again: bool, run: Callable[..., BaselineRun]) -> Path:
    torch.set_num_threads(1)
    return compare(contender, again, progress=False, run=run)

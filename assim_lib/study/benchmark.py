"""Classical methods on the frozen test sets: tuned on validation data, scored once, one result file each.

The learned filters and these rows see the same truth, the same observations, the same burn-in and the same scores.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from assim_lib.classical.baseline import Baseline, Hyperparameters
from assim_lib.classical.contenders import SETTINGS, Contender, contenders
from assim_lib.classical.methods import BaselineRun, run_baseline, scores_of
from assim_lib.classical.search import Search
from assim_lib.seeds import CLASSICAL
from assim_lib.storage import provenance
from assim_lib.study.results import Failure, Provenance, Result, read_result, results_dir, write_result
from assim_lib.twin import TwinExperiment

STARTS = 5
START_CYCLES = 400


def compare(
    contender: Contender,
    again: bool = False,
    progress: bool = True,
    seed: int = CLASSICAL,
    run: Callable[..., BaselineRun] = run_baseline,
) -> Path:
    """Tune a contender, score it on the test set, and store both; return the path of the result.

    What is best on validation data may still lose the truth on the test set. To be on the side of the classical
    methods, the finalist that comes next is then scored as well, and so on: the result is that of the first which
    survives, and those that did not are in its ``failed``.

    A search that was interrupted goes on; a result that is stored for the hyperparameters that were found is kept.

    Parameters
    ----------
    again : run on the test set even so.
    seed : of the runs on the test set.
    run : what runs a method, as :func:`~assim_lib.classical.methods.run_baseline` does.
    """
    finalists = Search(contender, contender.setting.load("validation"), progress, run=run).finalists()
    path = results_dir() / f"{contender.name}.json"
    if not again and is_stored(path, [trial.hyperparameters for trial in finalists]):
        return path
    twin, origin = contender.setting.load(), Provenance(**provenance())
    failed: list[Failure] = []
    for finalist in finalists:
        baseline = contender.start.tuned(finalist.hyperparameters)
        tested = run(baseline, twin, seed=seed, progress=progress)
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
        seed=seed,
        checkpoint=None,
        diverged=tested.diverged,
        diverged_starts=diverged_starts(baseline, twin, seed, run),
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

    Raises
    ------
    LookupError : if it has no score in the setting of the twin experiment.
    """
    for contender in contenders(twin.setting) if twin.setting in SETTINGS else ():
        path = results_dir() / f"{contender.name}.json"
        stored = (contender.start.scored_method, contender.start.m) == (method, m) and path.exists()
        if stored and (baseline := read_result(path).baseline):
            return baseline
    raise LookupError(f"{method} with m = {m} has no score on {twin.name} with {twin.setting.obs_conf}.")


def diverged_starts(
    baseline: Baseline, twin: TwinExperiment, seed: int = CLASSICAL, run: Callable[..., BaselineRun] = run_baseline
) -> int:
    """How many of some short runs, each from its own start elsewhere in the truth, lose it."""
    apart = len(twin.observations) // STARTS
    parts = [twin.part(index * apart, START_CYCLES) for index in range(STARTS)]
    runs = (run(baseline, part, seed=seed + 1 + index, progress=False) for index, part in enumerate(parts))
    return sum(one.diverged for one in runs)


def compare_all(
    contenders: Iterable[Contender],
    processes: int = 1,
    again: bool = False,
    run: Callable[..., BaselineRun] = run_baseline,
) -> Iterator[Path]:
    """:func:`compare` for many, in parallel processes of one thread each; yield each result's path when it is there."""
    contenders = list(contenders)
    with tqdm(total=len(contenders), desc="contenders") as bar:
        if processes == 1:
            for contender in contenders:
                yield compare(contender, again, run=run)
                bar.update()
            return
        # Not forked: a copy of PyTorch's threads would wait for each other for ever.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            jobs = [pool.submit(compare, contender, again, progress=False, run=run) for contender in contenders]
            try:
                for job in as_completed(jobs):
                    yield job.result()
                    bar.update()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)

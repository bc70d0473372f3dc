"""The commands for what filters are compared with: variants of the recipe, classical methods, costs."""

import argparse
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from assim_lib.commands.arguments import Work, count, positive, set_threads, with_runs
from assim_lib.commands.published import scores


def ablate_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``ablate``."""
    with_runs(parser).add_argument("variant", nargs="*", help="all by default")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])


def ablate(variant: list[str], seed: list[int], runs: Path, threads: int) -> Work:
    """Train variants of the recipe under one budget."""
    from assim_lib.study import ablation

    set_threads(threads)
    wanted = [(name, number) for number in seed for name in variant or ablation.VARIANTS]
    for name, number in wanted:
        ablation.variant(name, number)
    return lambda: (ablation.ablate(name, number, runs) for name, number in wanted)


def bench_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``bench``."""
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help="cycles, scaling, simulation, training: all by default; accuracy, profile: if asked for",
    )
    parser.add_argument("--compiled", action="store_true", help="measure compiled filters as well: some minutes more")
    parser.add_argument("--repeats", type=positive, default=5, help="of which the median is taken")
    parser.add_argument(
        "--largest",
        type=partial(count, least=40, most=400_000),
        default=4000,
        help="sites of the largest ring, from 40 to 400000",
    )


def bench(sections: list[str], compiled: bool, repeats: int, largest: int) -> Work:
    """Measure what cycles, rings, simulations and trainings cost."""
    from assim_lib.study.cost import SECTIONS, USUAL, Effort, run_sections

    for section in sections:
        if section not in SECTIONS:
            raise ValueError(f"section {section!r} is not known; known: {', '.join(SECTIONS)}.")
    set_threads(1)
    return lambda: run_sections(sections or USUAL, Effort(repeats, compiled, largest))


def baselines_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``baselines``."""
    parser.description = (
        "Tune and score classical methods: those that are not scored yet, of the settings, methods and sizes that are "
        "asked for (all by default). Stop it at any time: it goes on where it was."
    )
    kinds = {"system": str, "obs_conf": str, "step_size": float, "noise": float, "method": str, "m": int}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind, nargs="+")
    parser.add_argument("--workers", type=positive, default=1, help="processes on this machine")
    parser.add_argument("--scheduler", help="address of a dask scheduler, tcp://HOST:PORT, of workers that share data/")
    parser.add_argument("--again", action="store_true", help="run on the test set even if the score is stored")


def baselines(workers: int, scheduler: str | None, again: bool, **wanted: list[Any] | None) -> Work:
    """Tune and score classical methods."""
    from assim_lib.classical.contenders import choose
    from assim_lib.classical.dapper_bridge import import_dapper
    from assim_lib.study.benchmark import compare_all, imported_engine

    chosen = choose(**{name: values for name, values in wanted.items() if values})
    import_dapper()
    if workers > 1 or scheduler is not None:
        imported_engine()
    return lambda: chain(compare_all(chosen, workers, scheduler, again), scores()())

"""The commands for filters that are published: scores, long runs, forecasts, and the table of all."""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from assim_lib.commands.arguments import Work, count, set_threads, with_plugins, with_runs
from assim_lib.registry import import_plugins


def score_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``score``."""
    with_plugins(parser).add_argument("name", nargs="+", help="of a checkpoint, without the ending")


def score(name: list[str], plugins: str) -> Work:
    """Score stored filters again."""
    from assim_lib.study.publish import publish_again, published_filter

    set_threads(1)
    import_plugins(plugins)
    for each in name:
        published_filter(each)
    return lambda: map(publish_again, name)


def verify_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``verify``."""
    with_plugins(parser).add_argument("name", nargs="*", help="of a checkpoint, without the ending; all by default")
    parser.add_argument(
        "--cycles", type=partial(count, least=200), help="scored cycles to compare, at least 200; all by default"
    )


def verify(name: list[str], cycles: int | None, plugins: str) -> Work:
    """Score stored filters again, and compare with what is stored."""
    from assim_lib.study.verify import HEADER, to_verify, verify

    set_threads(1)
    import_plugins(plugins)
    results = to_verify(name)

    def work() -> Iterator[Path]:
        print(HEADER)
        drifted = 0
        for verified in verify(results, cycles):
            print(verified, flush=True)
            drifted += verified.drifted
        print(f"{drifted} of {len(results)} scores have drifted")
        if drifted:
            sys.exit(1)
        yield from ()

    return work


def stress_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``stress``."""
    with_plugins(with_runs(parser)).add_argument("name", help="of a checkpoint, without the ending")


def stress(name: str, runs: Path, threads: int, plugins: str) -> Work:
    """Run a stored filter for very long, and in settings it was not trained on."""
    from assim_lib.study.long_runs import stress_test
    from assim_lib.training.checkpoints import checkpoint_path, load_filter

    set_threads(threads)
    import_plugins(plugins)
    load_filter(checkpoint_path(name))
    return lambda: [stress_test(name, runs / name)]


def forecasts_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``forecasts``."""
    with_plugins(parser).add_argument("--system", default="two_level")
    parser.add_argument("--obs_conf", default="full_obs")
    parser.add_argument("--step_size", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=1.0)


def forecasts(plugins: str, **setting: Any) -> Work:
    """Forecast from the analyses of the best filter of each kind."""
    from assim_lib.setting import Setting
    from assim_lib.study.forecasts import best_of_each_kind, forecast_skill

    set_threads(1)
    import_plugins(plugins)
    wanted = Setting(**setting)
    if best_of_each_kind(wanted).empty:
        raise LookupError(f"{wanted.slug} has no scores; `python -m assim_lib train` and `baselines` make them.")
    return lambda: [forecast_skill(wanted)]


def scores_parser(parser: argparse.ArgumentParser) -> None:
    """It takes no arguments."""


def scores() -> Work:
    """Collect the results into one table."""

    def table() -> Iterator[Path]:
        from assim_lib.study.results import write_scores

        yield write_scores()  # when it is its turn: after all others

    return table

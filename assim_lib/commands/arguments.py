"""What arguments of commands have in common: numbers within bounds, folders, how a record is read."""

import argparse
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

# Each command finds its arguments right before anything is computed, and returns what then writes files, one by one.
Work = Callable[[], Iterable[Path | str]]

READING = ("variable", "error", "fill_value", "interval")  # how a record is read


def count(text: str, least: int = 0, most: int = 2**32 - 1) -> int:
    """A whole number within bounds, of an argument."""
    if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} to {most}")
    return int(text)


positive = partial(count, least=1, most=1024)  # of threads, processes or repetitions


def positive_seconds(text: str) -> float:
    """A duration, of an argument."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds > 0")
    return seconds


def writable_folder(text: str) -> Path:
    """A folder that can be written to; it is made where it is missing only when something is written."""
    path = Path(text).expanduser()
    nearest = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written to: {nearest} is no folder that can")
    return path


def with_runs(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Options of a long run."""
    parser.add_argument("--runs", type=writable_folder, default=Path("runs"), help="folder for unfinished runs")
    parser.add_argument(
        "--threads", type=positive, default=1, help="processor threads (these small tensors gain little from more)"
    )
    return parser


def with_plugins(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Modules of a reader's own."""
    parser.add_argument("--plugins", default="", help="modules to import first, which register names of your own")
    return parser


def with_reading(parser: argparse.ArgumentParser) -> None:
    """Options that say how a record is read."""
    parser.add_argument("--variable", help="name of the observations, where the file holds several variables")
    parser.add_argument("--error", help="their standard deviation, a number or the name of a variable")
    parser.add_argument("--fill-value", type=float, help="a number that stands for none")
    parser.add_argument("--interval", help="between two cycles, e.g. 6h: of dates by default the smallest difference")


def own_option(text: str) -> tuple[str, Any]:
    """A name and its value: true, false, a number or a text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"own = {text!r} must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def number_or_name(text: str | None) -> float | str | None:
    """An error as it is given: its number, or the name of a variable."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def set_threads(threads: int) -> None:
    """Processor threads of PyTorch, which only a command that computes imports."""
    import torch

    torch.set_num_threads(threads)

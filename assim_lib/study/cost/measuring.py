"""How a cost is measured, and how it is stored.

A busy machine makes everything slower, and not everything alike: what is compared is measured in turns, several times,
and only ratios within one run mean anything. The time is the processor's.
"""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from tqdm import tqdm

from assim_lib.storage import cpu_model, data_dir, provenance
from assim_lib.stored import Stored
from assim_lib.study.results import Provenance

Key = TypeVar("Key", bound=Hashable)
Value = str | bool | int | float | None
REPEATS = 5


class Machine(Stored):
    """Where it was measured; ``load`` is the number of waiting processes, over a minute, before and after."""

    processor: str
    cores: int
    load: tuple[float, float]
    gpu: str | None


class Costs(Stored):
    """One section of a run: what was measured, how, and where."""

    section: str
    measured: str
    rows: list[dict[str, Value]]
    machine: Machine
    provenance: Provenance

    @property
    def table(self) -> pd.DataFrame:
        """The rows."""
        return pd.DataFrame(self.rows)


def cost_path(section: str) -> Path:
    """Where a section is stored."""
    return data_dir() / "cost" / f"{section}.json"


def costs_of(section: str, measured: str, measure: Callable[[], list[dict[str, Value]]]) -> Costs:
    """Measure a section; say on what machine, and how busy that was."""
    before = os.getloadavg()[0]
    rows = measure()
    machine = Machine(
        processor=cpu_model(),
        cores=os.cpu_count() or 1,
        load=(round(before, 1), round(os.getloadavg()[0], 1)),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )
    return Costs(section=section, measured=measured, rows=rows, machine=machine, provenance=Provenance(**provenance()))


def milliseconds(run: Callable[[], Any], times: int = 1) -> float:
    """Of processor time that a run takes, on average over so many."""
    started = time.process_time()
    for _ in range(times):
        run()
    return 1000 * (time.process_time() - started) / times


def in_turns(runs: Mapping[Key, Callable[[], float]], repeats: int, what: str) -> dict[Key, dict[str, Value]]:
    """Median and least of what each of some runs returns, one after the other, so many times."""
    found: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in tqdm(range(repeats), desc=what, unit="repeat"):
        for key, run in runs.items():
            found[key].append(run())
    return {key: {"ms": statistics.median(series), "least": min(series)} for key, series in found.items()}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, with one thread: what it holds in memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as p:
        return p.submit(function, *arguments).result()


def peak_memory() -> float:
    """The most memory that this process has held so far, in megabytes."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

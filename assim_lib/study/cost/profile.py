"""Where time and memory go, for what is slower or larger than was wished for."""

import resource
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from assim_lib.study.cost.cycles import FILTERS, Running
from assim_lib.study.cost.measuring import Value, alone
from assim_lib.study.cost.scaling import NAMES, started_on
from assim_lib.study.cost.training import RECOMPUTED, trainer_of
from assim_lib.training.checkpoints import load_filter

SMALL, TOP = (("recurrent", False), ("recurrent", True), ("original m=5", False)), 5
RINGS, WINDOWS = (4000, 40_000), (40, 400)
# What the profiler calls these: products of matrices, and everything that only moves numbers.
PRODUCT_NAMES = ("addmm", "mm", "bmm", "baddbmm", "_mkl_linear", "mkl_linear")
HOW = (
    "one thread, each in a process of its own; share: of the time of all operations, by torch.profiler, which makes "
    "small ones look longer; system: the part of the processor time of a cycle, without a profiler, in which the "
    "operating system hands out memory; held: megabytes of tensors at the end of a window, before its gradient"
)


def measure() -> list[dict[str, Value]]:
    """Profiles of a cycle at a batch of 1, of cycles on two large rings, and what a recomputed window holds."""
    rows: list[dict[str, Value]] = []
    with tqdm(total=len(SMALL) + len(NAMES) * len(RINGS) + len(WINDOWS), desc="profile") as bar:
        for name, compiled in SMALL:
            rows += alone(of_small, name, compiled)
            bar.update()
        for name in NAMES:
            for sites in RINGS:
                rows += alone(of_ring, name, sites)
                bar.update()
        for window in WINDOWS:
            rows.append({"name": f"recurrent, window {window}, recomputed", "held": alone(held, window)})
            bar.update()
    return rows


def of_small(name: str, compiled: bool) -> list[dict[str, Value]]:
    """The operations of a cycle at a batch of 1."""
    experiment, model = load_filter(FILTERS[name], device="cpu")
    run = Running(experiment, model.compiled(whole=True) if compiled else model, 1)
    run()
    return [{"name": name, "compiled": compiled, "sites": model.dynamics.sites, **row} for row in profiled(run)]


def of_ring(name: str, sites: int) -> list[dict[str, Value]]:
    """The operations of a cycle on a large ring, and the part of its time that is the operating system's."""
    cycle = started_on(FILTERS[name], sites)
    cycle()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    cycle()
    spent, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
    system = (after.ru_stime - before.ru_stime) / spent
    common: dict[str, Value] = {"name": name, "compiled": False, "sites": sites}
    return [{**common, "ms": 1000 * spent, "system": system}, *({**common, **row} for row in profiled(cycle))]


@torch.no_grad()
def profiled(run: Callable[[], object]) -> list[dict[str, Value]]:
    """The operations that take most of a run, and what all others take."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        name = named(event.key)
        times[name] = times.get(name, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    top = sorted(times, key=lambda name: -times[name])[:TOP]
    rows: list[dict[str, Value]] = [{"operation": name, "share": times[name] / total} for name in top]
    return [*rows, {"operation": "others", "share": 1 - sum(times[name] for name in top) / total}]


def named(key: str) -> str:
    """An operation by a name that a reader knows."""
    bare = key.rpartition("::")[2]
    if bare in PRODUCT_NAMES:
        return "products of matrices"
    if "graph_" in bare and bare.startswith("cpp_fused"):
        return "fused loops"
    return "calling the program" if "Compiled" in key or "Dynamo" in key or "AOT" in key else bare


def held(window: int) -> float:
    """Megabytes of tensors that a recomputed window holds when its gradient is due."""
    trainer = trainer_of({**RECOMPUTED, "window": window})
    pool = trainer.pools[0]
    filters = pool.window(pool.choose())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss, carry = pool.unroll(filters)
    del loss, carry
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages()) / 2**20


def sentence(table: pd.DataFrame, name: str, sites: int, compiled: bool = False) -> str:
    """What takes most of a cycle by its profile; "" if there is none."""
    if "operation" not in table:
        return ""
    rows = table[(table.name == name) & (table.sites == sites) & (table.compiled == compiled)]
    rows = pd.DataFrame(rows[rows.operation.notna()])
    shares = [f"{operation} {share:.0%}" for operation, share in zip(rows.operation, rows.share, strict=True)]
    if not shares:
        return ""
    form = ", compiled," if compiled else ""
    return f"Profile{form} at {sites:,} sites: {', '.join(shares)}."


def of_the_system(table: pd.DataFrame, name: str) -> str:
    """How much of a cycle on each ring goes into having memory handed out; "" where no profile says so."""
    if "system" not in table:
        return ""
    rows = table[(table.name == name) & table.system.notna()]
    parts = [
        f"{share:.0%} of the time at {sites:,.0f} sites" for sites, share in zip(rows.sites, rows.system, strict=True)
    ]
    return f"To hand out memory the operating system takes {' and '.join(parts)}." if parts else ""


def of_memory(table: pd.DataFrame) -> str:
    """What recomputed windows hold; "" where no profile says so."""
    if "held" not in table:
        return ""
    rows = table[table.held.notna()]
    parts = [f"{held:,.1f} MB ({name})" for name, held in zip(rows["name"], rows["held"], strict=True)]
    return f"Tensors hold {' and '.join(parts)}; the rest is memory between them that the process keeps."

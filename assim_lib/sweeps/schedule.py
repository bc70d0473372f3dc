"""How many workers are worth it: a sweep on many workers, simulated from the times that its points took on few."""

import heapq
from collections.abc import Sequence


def makespan(seconds: Sequence[float], workers: int, dispatch: float = 0.004, start: float = 0.0) -> float:
    """Time from the first point to the last, in seconds.

    Points are given out in their order, each to the worker that is free first. Two things do not get faster with more
    workers: one scheduler gives out one point after another, and the last point to end is waited for.

    Args:
        seconds: that each point takes on a worker.
        dispatch: seconds of the scheduler for each point.
        start: seconds until a worker is ready.
    """
    free = [start] * min(workers, len(seconds))
    given = end = 0.0
    for duration in seconds:
        given += dispatch
        ended = max(given, free[0]) + duration
        heapq.heapreplace(free, ended)
        end = max(end, ended)
    return end

"""How every benchmark takes time and memory: calls timed after a warm-up, rows in processes."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any, TypeVar

Row = dict[str, Any]
Made = TypeVar("Made")


def own_process(measure: Callable[..., Made], *arguments: Any) -> Made:
    """What ``measure(*arguments)`` gives in a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def peak_gigabytes() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of kilobytes


def seconds_of(work: Callable[[], object], seconds: float) -> float:
    """The mean time of a call, over ``seconds`` and two calls at least, after one to warm up."""
    work()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or calls < 2:
        work()
        calls += 1
    return elapsed / calls

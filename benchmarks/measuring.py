"""How every benchmark takes time and memory, on any device: warmed up, each row in a process."""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.context
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.table import text
from htm_env.weights import usable_device

Row = dict[str, Any]
REFERENCE = "plain reference"
"""The name of its rows."""
RATIO = "times the reference"
TIME = "seconds"
"""The name of a column of times."""
Made = TypeVar("Made")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark ``--device``; a name that cannot be used here is wrong usage."""

    def usable(name: str) -> str:
        try:
            usable_device(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return name

    parser.add_argument("--device", type=usable, default="cpu", help="where: cpu, cuda, ...")


def one_by_one(cases: Sequence[tuple[Any, ...]], measure: Callable[..., Row]) -> list[Row]:
    """The row that ``measure(*case)`` gives for every case; who waits sees each as soon as it is
    there."""
    rows: list[Row] = []
    for case in cases:
        rows.append(measure(*case))
        shown = "  ".join(f"{name} {text(value)}" for name, value in rows[-1].items())
        print(f"[{len(rows)}/{len(cases)}]  {shown}", file=sys.stderr, flush=True)
    return rows


def settle(device: str) -> None:
    """Wait until the device has done what it was asked for; the processor always has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def own_process(measure: Callable[..., Made], *arguments: Any) -> Made:
    """What ``measure(*arguments)`` gives in a fresh process, so that its peak memory is its own.

    Where the system can fork, it is a copy of one that has imported everything and done nothing.
    Raises what ``measure`` raises, and ``BrokenProcessPool`` where the process was killed.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload(["agents", "pytorch_optimizer", "benchmarks.table"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *arguments).result()


def peak_gigabytes(device: str = "cpu") -> float:
    """The most memory that this process has held so far: tensors on the device, if it is a GPU.

    Linux says it of the process alone; ``getrusage`` starts where the process that started this one
    stood, and is asked elsewhere.
    """
    if torch.device(device).type != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20  # of kilobytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def add_ratios(rows: list[Row], name: str, alike: Callable[[Row], object], column: str) -> None:
    """Say of every row how many times as fast as the plain reference it is.

    Its row has the same ``alike`` and :data:`REFERENCE` in the column ``name``; without one, the
    ratio is None. ``column`` holds a speed, unless it is :data:`TIME`.
    """
    references = {alike(row): row[column] for row in rows if REFERENCE in row[name]}
    for row in rows:
        reference = references.get(alike(row))
        if reference is None:
            row[RATIO] = None
        else:
            row[RATIO] = reference / row[column] if column == TIME else row[column] / reference


def seconds_of(work: Callable[[], object], seconds: float, device: str = "cpu") -> float:
    """The mean time of a call, over ``seconds`` and two calls at least, after one to warm up."""
    work()
    settle(device)
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or calls < 2:
        work()
        settle(device)
        calls += 1
    return elapsed / calls


def seconds_by_turns(
    works: dict[str, Callable[[], object]], seconds: float, device: str = "cpu"
) -> dict[str, float]:
    """The median time of a call of each, called by turns so that all meet the same machine.

    ``seconds`` are of all together; each is called once to warm up, and twice at least.
    """
    for work in works.values():
        work()
    settle(device)
    taken: dict[str, list[float]] = {name: [] for name in works}
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or rounds < 2:
        for name, work in works.items():
            before = time.perf_counter()
            work()
            settle(device)
            taken[name].append(time.perf_counter() - before)
        rounds += 1
    return {name: statistics.median(times) for name, times in taken.items()}

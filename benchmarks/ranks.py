"""One model on several processes: ``python -m benchmarks.ranks``.

Merges per second of joint updates of REINFORCE on trees of 15 tokens, embedding 64, 256 trees an
update in every rank, none of them demonstrated or searched for; one thread each. Efficiency is the
speed over that of one rank times their number. Processes of one machine share its memory, its
caches and perhaps its cores, so the row "2, each alone" is what the machine allows: two processes
at once that learn a model each and exchange nothing, the sum of their speeds. "share of each
alone" is the speed over that row's: what is left of it where the two learn one model. Messages and
bytes are what a rank gives to the others in an update, or in one of its gradient steps: gradients,
and a few counts. Then a model of ranks, each on a core of a machine that is otherwise idle: an
update takes as long as that of one rank, and its sums go around a ring,

    seconds(N) = seconds(1) + messages * 2 (N - 1) * latency + bytes * 2 (N - 1) / N / bandwidth

(Patarasu and Yuan 2009, "Bandwidth optimal all-reduce algorithms"), with the latency and the
bandwidth of sums between idle processes of this machine; ``--latency`` and ``--bandwidth`` give
those of a network instead. It leaves out that ranks wait for the slowest, and that processes which
sleep and wake compute more slowly: its row of two ranks, beside the measured one, tells how much.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from agents.optim.ranks import Processes
from benchmarks.joint_training import SIZES, Size, learner
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report

SECONDS = 20.0
MEASURED, MODELLED = (1, 2), (2, 8, 64)
ALONE = "2, each alone"
"""The row of two processes that exchange nothing."""
FIFTEEN = next(size for size in SIZES if size.tokens == 15)
SUMS = 50
"""Sums by which a latency and a bandwidth are measured."""


class Speed(NamedTuple):
    """What one rank measured."""

    merges: int
    """Of all ranks that learn one model."""
    updates: int
    steps: int
    """Gradient steps, of the policy and of the autoencoder."""
    seconds: float
    messages: int
    bytes: int
    latency: float
    """Seconds of one of the two steps in which two ranks sum a number."""
    bandwidth: float
    """Bytes a second between two ranks, that of a sum of the bytes of an update."""


def rank(
    index: int,
    count: int,
    store: str,
    seconds: float,
    size: Size = FIFTEEN,
    shares: bool = True,
) -> Speed:
    """Updates of one of ``count`` processes for so many seconds, after one to warm up.

    All begin at the same time. They learn one model, or, where ``shares`` is False, a model each,
    from samples of their own.
    """
    torch.set_num_threads(1)
    made = learner("reinforce", size, "all")
    meeting = dist.FileStore(store, count) if count > 1 else None
    processes = Processes(index, count, meeting)
    joined = meeting is not None and shares
    if joined:
        made.join(processes)
        processes.connect(torch.device("cpu"))
    else:
        made.generator.manual_seed(index)
    made.update(0.0)
    if meeting is not None:
        meeting.set(f"begins/{index}", "1")
        meeting.wait([f"begins/{each}" for each in range(count)])
    before, updates = made.merges_made, made.updates
    steps = made.trainer.steps
    messages, sent = processes.messages, processes.bytes
    started, elapsed = time.perf_counter(), 0.0
    while elapsed < seconds or made.updates == updates:
        made.update(min(1.0, elapsed / seconds) if seconds else 1.0)
        elapsed = made.ranks.first(time.perf_counter() - started)
    updates = made.updates - updates
    steps = made.trainer.steps - steps + updates  # the policy makes one an update
    # one message an update is of this loop
    messages = processes.messages - messages - (updates if joined else 0)
    sent = processes.bytes - sent - (8 * updates if joined else 0)
    latency, bandwidth = 0.0, 0.0
    if joined:
        latency = summing(processes, 1) / 2
        numbers = max(1, sent // updates // 4)
        bandwidth = 4 * numbers / max(summing(processes, numbers) - 2 * latency, 1e-9)
    merges = int(made.ranks.sums(made.merges_made - before)[0])
    return Speed(merges, updates, steps, elapsed, messages, sent, latency, bandwidth)


def summing(processes: Processes, numbers: int) -> float:
    """The median seconds of a sum of so many numbers."""
    values, times = torch.zeros(numbers), []
    for _ in range(SUMS):
        started = time.perf_counter()
        processes.sum(values)
        times.append(time.perf_counter() - started)
    return sorted(times)[SUMS // 2]


def measure(count: int, seconds: float, size: Size = FIFTEEN, shares: bool = True) -> list[Speed]:
    """What each of ``count`` processes measures; see :func:`rank`."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(count, mp_context=context) as pool,
    ):
        store = str(Path(folder) / "store")
        running = [
            pool.submit(rank, index, count, store, seconds, size, shares) for index in range(count)
        ]
        return [each.result() for each in running]


def modelled(count: int, alone: Speed, two: Speed, latency: float, bandwidth: float) -> float:
    """Seconds of an update of ``count`` ranks, as they follow from those of one, and from the
    messages of two."""
    steps = 2 * (count - 1)
    messages, sent = two.messages / two.updates, two.bytes / two.updates
    own = alone.seconds / alone.updates
    return own + messages * steps * latency + sent * steps / count / bandwidth


def rows_of(
    measured: dict[int, Speed],
    apart: Sequence[Speed],
    latency: float | None = None,
    bandwidth: float | None = None,
) -> list[Row]:
    """The table: what was measured with one rank, with two that learn a model each (``apart``) and
    with two that learn one, and what the model says of two and of more."""
    alone, two = measured[1], measured[2]
    own = alone.merges / alone.seconds
    allowed = sum(each.merges / each.seconds for each in apart)
    merges = alone.merges / alone.updates  # of a rank, an update
    latency = two.latency if latency is None else latency
    bandwidth = two.bandwidth if bandwidth is None else bandwidth

    def row(
        ranks: int | str, how: str, speed: float, efficiency: float, share: float | None = None
    ) -> Row:
        return {
            "ranks": ranks,
            "how": how,
            "merges/s": speed,
            "times one rank": speed / own,
            "efficiency": efficiency,
            "share of each alone": share,
        }

    def exchange(speed: Speed, sums: bool = False) -> Row:
        return {
            "messages an update": speed.messages / speed.updates,
            "MB an update": speed.bytes / speed.updates / 1e6,
            "MB a step": speed.bytes / speed.steps / 1e6,
            "latency, microseconds": latency * 1e6 if sums else None,
            "bandwidth, MB/s": bandwidth / 1e6 if sums else None,
        }

    speed = two.merges / two.seconds
    rows = [
        row(1, "measured", own, 1.0) | exchange(alone),
        row(ALONE, "measured", allowed, allowed / own / 2, 1.0) | exchange(apart[0]),
        row(2, "measured", speed, speed / own / 2, speed / allowed) | exchange(two, sums=True),
    ]
    for count in MODELLED:
        speed = count * merges / modelled(count, alone, two, latency, bandwidth)
        rows.append(row(count, "model", speed, speed / own / count) | exchange(two, sums=True))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each row")
    parser.add_argument("--latency", type=float, help="of the model: seconds of a message")
    parser.add_argument("--bandwidth", type=float, help="of the model: bytes a second")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    measured = {count: measure(count, options.seconds)[0] for count in MEASURED}
    apart = measure(2, options.seconds, shares=False)
    given = sys.argv[1:] if arguments is None else arguments
    rows = rows_of(measured, apart, options.latency, options.bandwidth)
    report("ranks", rows, options.out, made_by=origin("benchmarks.ranks", given))


if __name__ == "__main__":
    main()

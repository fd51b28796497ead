"""Training on shards that are read part by part, beside the same data as one array in memory:
``python -m benchmarks.shards``.

A script writes the shards; the first pass over them is measured in a process of its own. Then two
processes train by turns of some seconds, so that both meet the same machine: one of the shards, one
of the array. Both draw the same samples, and make the same updates. Speeds are per second of the
clock and of the processor; memory is the most that was resident in the process. An array takes far
more while it is read than afterwards.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import Reinforce, ReinforceConfig
from benchmarks.measuring import Row, own_process, peak_gigabytes
from benchmarks.table import RESULTS, origin, report
from htm_env import make_dataset

TOKENS = 20_000_000
OF_SHARD = 1_000_000
"""Tokens of a shard."""
SHORTEST, LONGEST = 12, 20
"""Tokens of a set."""
SECONDS, TURN = 60.0, 5.0
SHARDS_HELD = 4
READ = 2**36
"""Bytes that reading the array may take, as they are counted beforehand: 512 a line."""
EMBEDDING_DIM = 8
PARTS = 4
"""Points that the tokens of a set lie around."""


def write_shards(folder: Path, tokens: int, of_shard: int) -> int:
    """Shards of sets of 12 to 20 points, each near one of four that are drawn for the set; the
    number of sets."""
    rng = np.random.default_rng(0)
    sets = 0
    for number, start in enumerate(range(0, tokens, of_shard)):
        count = min(of_shard, tokens - start)
        lengths = rng.integers(SHORTEST, LONGEST + 1, size=count // SHORTEST + 1)
        lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), count)) + 1]
        row = np.repeat(np.arange(len(lengths)), lengths)
        centres = rng.normal(size=(len(lengths), PARTS, 2))
        values = centres[row, rng.integers(PARTS, size=len(row))]
        values += 0.1 * rng.normal(size=values.shape)
        np.savez(
            folder / f"shard_{number:04d}.npz", values=values.astype(np.float32), lengths=lengths
        )
        sets += len(lengths)
    return sets


def first_pass(folder: Path) -> Row:
    """The row of the pass over the shards."""
    started, processor = time.perf_counter(), time.process_time()
    dataset = make_dataset(str(folder), shards_held=SHARDS_HELD)
    found = dataset.fingerprint()
    assert found is not None
    return _row("first pass over the shards", time.perf_counter() - started, processor)


def begin(folder: Path, shards_held: int | None) -> Row:
    """Open the data in this process, and make the learner."""
    global _learner
    torch.set_num_threads(1)
    started, processor = time.perf_counter(), time.process_time()
    kwargs: dict[str, Any] = {"dataset": str(folder)}
    if shards_held is None:
        kwargs["memory_limit"] = READ
    else:
        kwargs["shards_held"] = shards_held
    config = ReinforceConfig(demonstration_share=((0.0, 0.0),))
    _learner = Reinforce("HTM-v0", config, env_kwargs=kwargs, embedding_dim=EMBEDDING_DIM)
    _learner.update(0.5)  # what is made at first use
    return _row("", time.perf_counter() - started, processor)


_learner: Reinforce


def turn(seconds: float) -> tuple[int, float, float]:
    """Merges made, seconds, and the processor's seconds."""
    merges, started, processor = _learner.merges_made, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        _learner.update(0.5)
    taken = time.perf_counter() - started
    return _learner.merges_made - merges, taken, time.process_time() - processor


def _row(what: str, seconds: float, processor: float) -> Row:
    return {
        "what": what,
        "seconds until it trains": seconds,
        "GB resident at most, until then": peak_gigabytes(),
    }


def train_by_turns(folder: Path, seconds: float, length: float) -> list[Row]:
    """The rows of both processes."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(2)]
        rows = [
            pool.submit(begin, folder, held).result()
            for pool, held in zip(pools, (None, SHARDS_HELD), strict=True)
        ]
        totals = np.zeros((2, 3))
        while totals[:, 1].min() < seconds:
            for number, pool in enumerate(pools):
                totals[number] += pool.submit(turn, length).result()
        peaks = [pool.submit(peak_gigabytes).result() for pool in pools]
    whats = ("array in memory", f"shards, {SHARDS_HELD} held")
    for row, what, (merges, taken, processor), peak in zip(rows, whats, totals, peaks, strict=True):
        row |= {
            "what": what,
            "GB resident at most": peak,
            "merges": int(merges),
            "merges per second": merges / taken,
            "per second of the processor": merges / processor,
        }
    for row in rows:
        for column in ("merges per second", "per second of the processor"):
            row[f"{column}, times the array"] = row[column] / rows[0][column]
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of all sets")
    parser.add_argument("--of-shard", type=int, default=OF_SHARD, help="tokens of a shard")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of training, of each")
    parser.add_argument("--turn", type=float, default=TURN, help="seconds of a turn")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sets"
        folder.mkdir()
        sets = write_shards(folder, options.tokens, options.of_shard)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 2**30
        opened = own_process(first_pass, folder)
        rows = train_by_turns(folder, options.seconds, options.turn)
    rows.append({column: opened.get(column) for column in rows[0]})
    for row in rows:
        row |= {"tokens": options.tokens, "sets": sets, "GB of files": size}
    made_by = origin("benchmarks.shards", sys.argv[1:] if arguments is None else arguments)
    report("shards", rows, options.out, made_by=made_by)


if __name__ == "__main__":
    main()

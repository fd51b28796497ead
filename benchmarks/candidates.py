"""What choosing among nearest neighbours costs and saves: ``python -m benchmarks.candidates``.

REINFORCE on Trees of 31 points, from scratch, once with all pairs and once among the k nearest of
every token, with the same merges and seeds; then the same held-out samples, merged greedily.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from agents import Reinforce, ReinforceConfig
from benchmarks.measuring import Row, add_device, own_process, peak_gigabytes, settle
from benchmarks.table import report

ENV, GEOMETRY, EMBEDDING_DIM = "HTM-Trees-v0", {"heights": (5,)}, 16
EPISODES = 500
"""Held-out samples."""
WAYS = ("all", "knn")
TARGET = 1.1
"""The error among neighbours over that among all pairs, at most."""


def measure(
    candidates: str,
    k: int,
    seed: int,
    merges: int,
    split: str,
    device: str = "cpu",
    *,
    episodes: int = EPISODES,
) -> Row:
    """One run; its row."""
    torch.set_num_threads(1)
    config = ReinforceConfig(candidates=candidates, k=k)
    learner = Reinforce(
        ENV, config, env_kwargs=GEOMETRY, embedding_dim=EMBEDDING_DIM, seed=seed, device=device
    )
    started = time.perf_counter()
    learner.train(merges=merges)
    settle(device)
    seconds = time.perf_counter() - started
    found = learner.evaluate(learner.task.dataset(split), episodes, sampled=False)
    return {
        "candidates": candidates,
        "seed": seed,
        "held-out nmse": found["nmse"],
        "clades found": found["tree_recall"],
        "merges/s": learner.merges_made / seconds,
        "peak memory, GB": peak_gigabytes(device),
    }


def ratio(rows: list[Row]) -> Row:
    """The medians over the seeds, and how they compare."""
    medians = {
        way: statistics.median(row["held-out nmse"] for row in rows if row["candidates"] == way)
        for way in WAYS
    }
    return {
        **{f"median nmse, {way}": median for way, median in medians.items()},
        "knn / all": medians["knn"] / medians["all"],
        "target, at most": TARGET,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merges", type=int, default=1_000_000, help="of each run")
    parser.add_argument("--k", type=int, default=8, help="candidates of a token")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test", help="of the samples that are merged")
    add_device(parser)
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = [
        own_process(measure, way, options.k, seed, options.merges, options.split, options.device)
        for seed in seeds
        for way in WAYS
    ]
    report("candidates", rows, device=options.device)
    report("candidates_ratio", [ratio(rows)], device=options.device)


if __name__ == "__main__":
    main()

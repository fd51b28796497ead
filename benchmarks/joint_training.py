"""Joint training of every learner, at every size: ``python -m benchmarks.joint_training``.

Merges per second of whole updates (rollout, rewards, policy, autoencoder), one thread, embedding
64, with the shipped networks, optimizers and autoencoder steps, and with the same number of trees
at a time for all, none of them demonstrated or searched for. Of replay it is a round of one fresh
batch and its replays, and the merges are those of the fresh batch. Beside it is what the
machine could do: the merges per second if an update were nothing but the products of its linear
layers, each as one large batched product (``matrix_products.py``), and the plain reference with as
many trees a step, up to 128 tokens: beyond, its table of pairs takes tens of gigabytes. Every row
has a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from agents.config.schedules import ALWAYS
from agents.learners.base import Learner
from agents.learners.replay import ReplayConfig
from agents.registry import algorithm
from benchmarks.against_reference import reference
from benchmarks.matrix_products import products, rows_seen
from benchmarks.measuring import (
    REFERENCE,
    Row,
    add_device,
    add_ratios,
    one_by_one,
    own_process,
    peak_gigabytes,
    seconds_of,
    settle,
)
from benchmarks.table import report

SECONDS = 5.0
EMBEDDING_DIM = 64
MOST_OF_REFERENCE = 128
"""Tokens."""
ALGORITHMS = (
    *("reinforce", "replay", "ppo", "maskable_ppo"),
    *("original", "original_policy", "nearest"),
)


class Size(NamedTuple):
    """Data of so many tokens, and the trees that are made at a time."""

    tokens: int
    env: str
    geometry: dict[str, Any]
    trees: int
    candidates: tuple[str, ...] = ("all",)


SIZES = [
    Size(7, "HTM-Trees-v0", {"heights": (3,)}, 256),
    Size(15, "HTM-Trees-v0", {"heights": (4,)}, 256),
    Size(31, "HTM-Trees-v0", {"heights": (5,)}, 128, ("all", "knn")),
    Size(64, "HTM-Crosses-v0", {"num_crosses": (32,)}, 64, ("all", "knn")),
    Size(128, "HTM-Crosses-v0", {"num_crosses": (64,)}, 32, ("all", "knn")),
    Size(512, "HTM-Crosses-v0", {"num_crosses": (256,)}, 8, ("knn",)),
]


def learner(algo: str, size: Size, candidates: str, device: str = "cpu") -> Learner:
    """One that makes as many trees an update as the size says, all of them its own."""
    known = algorithm(algo)
    config = known.config
    changes: dict[str, Any] = {}
    if hasattr(config, "n_envs"):
        changes["n_envs"] = size.trees
    else:
        changes["batch_size"] = size.trees // getattr(config, "trees_per_sample", 1)
    if isinstance(config, ReplayConfig):
        changes["replay_batch_size"] = size.trees
    if hasattr(config, "demonstration_share"):
        changes["demonstration_share"] = ((0.0, 0.0),)
        changes |= {"candidates": candidates, "failure": 0.0, "policy_share": ALWAYS}
    if hasattr(config, "batch_growth"):
        changes["batch_growth"] = 0.0
    return known.learner(
        size.env,
        replace(config, **changes),
        env_kwargs=size.geometry,
        embedding_dim=EMBEDDING_DIM,
        device=device,
    )


def measure(algo: str, size: Size, candidates: str, seconds: float, device: str = "cpu") -> Row:
    """One row, without its ratio."""
    torch.set_num_threads(1)
    row: Row = {"algo": algo, "tokens": size.tokens, "candidates": candidates, "trees": size.trees}
    if algo == REFERENCE:
        speed = reference(size.env, size.geometry, size.trees, seconds, device)
        return row | _speeds(speed, None, peak_gigabytes(device))
    made = learner(algo, size, candidates, device)
    rounds = 1 + made.config.replays if isinstance(made.config, ReplayConfig) else 1

    def learn(progress: float = 0.5) -> None:
        for _ in range(rounds):
            made.update(progress)
        settle(device)

    learn(0.0)
    started, before = time.perf_counter(), made.merges_made
    while (elapsed := time.perf_counter() - started) < seconds or made.merges_made == before:
        learn(min(1.0, elapsed / seconds) if seconds else 1.0)
    speed = (made.merges_made - before) / elapsed
    peak, before = peak_gigabytes(device), made.merges_made
    seen = rows_seen(learn)
    possible = (made.merges_made - before) / seconds_of(products(seen), seconds / 5, device)
    return row | _speeds(speed, possible, peak)


def _speeds(speed: float, possible: float | None, peak: float) -> Row:
    return {
        "merges/s": speed,
        "products alone, merges/s": possible,
        "share": None if possible is None else speed / possible,
        "peak memory, GB": peak,
    }


def cases(most: int) -> list[tuple[str, Size, str]]:
    """Every learner at every size; the reference and a fixed order, without candidates, once."""
    made = []
    for size in SIZES:
        if size.tokens > most:
            continue
        if size.tokens <= MOST_OF_REFERENCE:
            made.append((REFERENCE, size, "all"))
        made += [
            (algo, size, candidates)
            for candidates in size.candidates
            for algo in ALGORITHMS
            if candidates == size.candidates[0] or hasattr(algorithm(algo).config, "candidates")
        ]
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each row")
    parser.add_argument("--most", type=int, default=SIZES[-1].tokens, help="tokens, at most")
    add_device(parser)
    options = parser.parse_args(arguments)
    asked = [(measure, *case, options.seconds, options.device) for case in cases(options.most)]
    rows = one_by_one(asked, own_process)
    add_ratios(rows, "algo", lambda row: row["tokens"], "merges/s")
    report("joint_training", rows, device=options.device)


if __name__ == "__main__":
    main()

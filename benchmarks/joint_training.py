"""Merges per second and peak memory of joint training: ``python -m benchmarks.joint_training``.

Every row runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from agents import FixedOrder, FixedOrderConfig, Reinforce, ReinforceConfig
from benchmarks.measuring import own_process, peak_gigabytes
from benchmarks.table import report

SECONDS = 20.0
CASES: list[dict[str, Any]] = [
    {"tokens": 15, "env": "HTM-Trees-v0", "env_kwargs": {"heights": (4,)}, "samples": 128},
    {"tokens": 128, "env": "HTM-Crosses-v0", "env_kwargs": {"num_crosses": (64,)}, "samples": 16},
]
"""REINFORCE makes two trees of every sample; the fixed order gets as many trees."""


def measure(case: dict[str, Any], algo: str) -> dict[str, Any]:
    """One row: joint training with embedding 64 and hidden width 256 on one thread."""
    torch.set_num_threads(1)
    task = {"env_kwargs": case["env_kwargs"], "embedding_dim": 64}
    if algo == "reinforce":
        # No demonstrations: the merges that are counted are the policy's own. One step of policy
        # and autoencoder on all trees of an update: this is throughput, not quality in equal time.
        config = replace(
            ReinforceConfig(),
            batch_size=case["samples"],
            batch_growth=0.0,
            trees_per_step=2 * case["samples"],
            demonstration_share=((0.0, 0.0),),
        )
        learner: Any = Reinforce(case["env"], config, **task)
    else:
        trees = 2 * case["samples"]
        learner = FixedOrder(case["env"], FixedOrderConfig(policy=algo, batch_size=trees), **task)
    for _ in range(3):
        learner.update(0.1)
    started, merges = time.perf_counter(), learner.merges_made
    # From the beginning of the schedules to their end, as in a run of this length.
    while (elapsed := time.perf_counter() - started) < SECONDS:
        learner.update(elapsed / SECONDS)
    return {
        "algo": algo,
        "tokens": case["tokens"],
        "trees an update": 2 * case["samples"],
        "merges/s": (learner.merges_made - merges) / elapsed,
        "peak memory, GB": peak_gigabytes(),
    }


def main() -> None:
    rows = [own_process(measure, case, algo) for case in CASES for algo in ("reinforce", "random")]
    report("joint_training", rows)


if __name__ == "__main__":
    main()

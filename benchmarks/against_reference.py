"""Joint training against a plain reference: ``python -m benchmarks.against_reference``.

Merges per second of whole training steps (samples, merges, losses, gradients, optimizers), one
thread, embedding 64 and hidden width 256 everywhere, the same data and as many trees a step. The
reference is ``plain_reference.py``. Ours is REINFORCE as it is shipped (``reinforce``: two trees a
sample, residual networks of about half of the reference's multiplications), the same with Adam as
its only optimizer, and the published recipe on our machinery (``original``), whose networks and
samples are the reference's. Every row has a process of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from agents import Reinforce, ReinforceConfig
from agents.learners.original import ORIGINAL
from agents.networks.scorers import PairPolicy
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.optim.optimizers import OptimizerConfig
from benchmarks import plain_reference
from benchmarks.measuring import (
    REFERENCE,
    Row,
    add_device,
    add_ratios,
    own_process,
    peak_gigabytes,
    settle,
)
from benchmarks.table import report
from htm_env import HTMAutoencoder
from htm_env.datasets import make_dataset

SECONDS = 20.0
EMBEDDING_DIM, HIDDEN_DIM = 64, 256
CASES: list[dict[str, Any]] = [
    {"env": "HTM-Trees-v0", "geometry": {"heights": (4,)}, "trees": 64, "target": 5},
    {"env": "HTM-Trees-v0", "geometry": {"heights": (5,)}, "trees": 64, "target": 12},
    {"env": "HTM-Crosses-v0", "geometry": {"num_crosses": (64,)}, "trees": 8, "target": 150},
]
"""15, 31 and 128 tokens; trees a step; how many times the reference's merges ours should make."""
_ADAM = OptimizerConfig()
CONFIGS = {
    "reinforce": ReinforceConfig(policy_hidden_dim=HIDDEN_DIM),
    "reinforce, Adam": ReinforceConfig(
        policy_hidden_dim=HIDDEN_DIM, autoencoder=AutoencoderConfig(lifter=_ADAM, merger=_ADAM)
    ),
    "original": ORIGINAL,
}


def learner(case: dict[str, Any], algo: str, device: str = "cpu") -> Reinforce:
    """Ours, with one step of policy and autoencoder on all trees of an update.

    No demonstrations and no search where it fails: the merges that are counted are the policy's
    own, and all of them are learned from.
    """
    config = CONFIGS[algo]
    config = replace(
        config,
        batch_size=max(1, case["trees"] // config.trees_per_sample),
        batch_growth=0.0,
        trees_per_step=case["trees"],
        demonstration_share=((0.0, 0.0),),
        failure=0.0,
    )
    return Reinforce(
        case["env"],
        config,
        env_kwargs=case["geometry"],
        embedding_dim=EMBEDDING_DIM,
        device=device,
    )


def ours(case: dict[str, Any], algo: str, seconds: float, device: str) -> float:
    """Merges per second, from the beginning of the schedules to their end."""
    made = learner(case, algo, device)
    for _ in range(3):
        made.update(0.1)
    settle(device)
    started, before, updates = time.perf_counter(), made.merges_made, 0
    while (elapsed := time.perf_counter() - started) < seconds or not updates:
        made.update(min(1.0, elapsed / seconds) if seconds else 1.0)
        settle(device)
        updates += 1
    return (made.merges_made - before) / elapsed


def reference(env: str, geometry: dict[str, Any], trees: int, seconds: float, device: str) -> float:
    """Merges per second of the plain reference, drawing its samples included."""
    dataset = make_dataset(env, split="train", **geometry)
    generator = torch.Generator(device).manual_seed(0)
    autoencoder = HTMAutoencoder(
        dataset.token_dim, EMBEDDING_DIM, HIDDEN_DIM, "mlp", generator=generator
    )
    autoencoder.set_statistics(dataset.mean, dataset.std)
    autoencoder.to(device)
    policy = PairPolicy(EMBEDDING_DIM, HIDDEN_DIM).to(device)
    optimizer = torch.optim.Adam([*autoencoder.parameters(), *policy.parameters()], lr=3e-3)

    def step() -> None:
        tokens = dataset.sample(trees, generator).tokens.to(device)
        standardised = autoencoder.standardise(tokens)
        plain_reference.training_step(autoencoder, policy, optimizer, standardised, generator)
        settle(device)

    step()
    started, merges = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or not merges:
        step()
        merges += trees * (dataset.max_tokens - 1)
    return merges / elapsed


def measure(case: dict[str, Any], algo: str, seconds: float, device: str) -> Row:
    """One row, without its ratio."""
    torch.set_num_threads(1)
    if algo == REFERENCE:
        speed = reference(case["env"], case["geometry"], case["trees"], seconds, device)
    else:
        speed = ours(case, algo, seconds, device)
    tokens = make_dataset(case["env"], split="train", **case["geometry"]).max_tokens
    return {
        "algo": algo,
        "tokens": tokens,
        "trees a step": case["trees"],
        "merges/s": speed,
        "peak memory, GB": peak_gigabytes(device),
    }


def rows_of(
    case: dict[str, Any],
    seconds: float,
    device: str = "cpu",
    *,
    run: Callable[..., Row] = own_process,
) -> list[Row]:
    """The reference and ours, each with its ratio to the reference; ``run`` measures a row."""
    rows = [run(measure, case, algo, seconds, device) for algo in (REFERENCE, *CONFIGS)]
    add_ratios(rows, "algo", lambda row: row["tokens"], "merges/s")
    for row in rows:
        row["target"] = case["target"] if row["algo"] == "reinforce" else None
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each row")
    add_device(parser)
    options = parser.parse_args(arguments)
    rows = [row for case in CASES for row in rows_of(case, options.seconds, options.device)]
    report("against_reference", rows, device=options.device)


if __name__ == "__main__":
    main()

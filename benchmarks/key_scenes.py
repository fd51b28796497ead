"""Key scenes: how often the first merge is right, by context encoder: ``python -m
benchmarks.key_scenes``.

Two of a scene's items match by colour and two by shape, and only the key says which counts: without
context half is the ceiling. First supervised, on raw standardised tokens; then by REINFORCE from
the environment's own reward, on the shipped autoencoder. Both on held-out scenes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.encoders import ENCODERS, NO_ENCODER
from agents.learners.reinforce import EntropyConfig, Reinforce, ReinforceConfig
from agents.networks.base import MergePolicy
from agents.networks.context import make_policy
from agents.optim.optimizers import OptimizerConfig, ScheduledOptimizer
from benchmarks.table import report
from htm_env.autoencoder import seeded_initialisation
from htm_env.datasets import Dataset, make_dataset
from htm_env.forest import action_to_pair, are_clades, drop_diagonal
from htm_env.membership import Membership, observed_extras
from htm_env.rewards import right_merges
from htm_env.types import NONE, TokenBatch

ENV_ID = "HTM-Keys-v0"
SCENES = 1000
"""Held-out scenes of the test split."""
CHUNK = 250
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warm_up_updates=20)
REINFORCE = ReinforceConfig(
    discount=0.0,  # a right merge is right, whatever comes after it
    entropy=EntropyConfig(target=((0.0, 0.7), (1.0, 0.3))),
)
"""Exploration is held open: otherwise the policy settles on one of the two properties, which is
right in half of the scenes, before it has learned to listen to the key."""


def first_merge_accuracy(
    merges: Int64[Tensor, "B M 2"], data_clades: Bool[Tensor, "B C P"]
) -> Float[Tensor, ""]:
    """The share of the samples whose first merge joins two tokens that are a clade of the data.

    Where clades are pairs, as in Crosses and Keys, this is a policy's judgement of the whole
    population, before anything has been merged; a sample without a merge has made no right one.
    """
    pair = merges[:, 0]  # (B, 2)
    joined = data_clades.new_zeros(len(merges), data_clades.shape[2])
    joined = joined.scatter(1, pair.clamp(min=0), pair >= 0)
    return are_clades(joined[:, None], data_clades)[:, 0].float().mean()


def observation(batch: TokenBatch, data: Dataset, observes: tuple[str, ...]) -> dict[str, Tensor]:
    """The scenes before any merge, their standardised tokens in place of embeddings."""
    alone = torch.eye(batch.present.shape[1], dtype=torch.bool) & batch.present[:, None]
    membership = Membership((batch.tokens - data.mean) / data.std, batch.present, alone)
    return {
        "tokens": membership.tokens,
        "active": batch.present,
        "leaf_counts": batch.present.int(),
        **observed_extras(membership, observes),
    }


def right_actions(batch: TokenBatch) -> Bool[Tensor, "B A"]:
    """True <--> the action merges a pair that is a clade."""
    clades = batch.clades.float()
    return drop_diagonal(clades.transpose(1, 2) @ clades) > 0


def set_cross_entropy(logits: Float[Tensor, "B A"], right: Bool[Tensor, "B A"]) -> Tensor:
    """Minus the logarithm of the probability that one of the right actions is taken."""
    return -logits.log_softmax(-1).masked_fill(~right, -torch.inf).logsumexp(-1).mean()


@torch.no_grad()
def held_out_accuracy(policy: MergePolicy, data: Dataset, split: str) -> float:
    """The share of the scenes in which the likeliest first merge is right."""
    rows = []
    for batch in make_dataset(ENV_ID, split).fixed(SCENES).parts(CHUNK):
        best = policy(observation(batch, data, policy.observes))[0].argmax(-1)
        merges = torch.full_like(batch.merges, NONE)
        merges[:, 0] = torch.stack(action_to_pair(best, batch.present.shape[1]), dim=-1)
        rows.append(float(first_merge_accuracy(merges, batch.clades)))
    return statistics.mean(rows)


def supervised(
    encoder: str, seed: int, steps: int, batch_size: int, split: str = "test"
) -> dict[str, Any]:
    """Train a policy network on first merges; its accuracy, size and time."""
    generator, data = torch.Generator().manual_seed(seed), make_dataset(ENV_ID)
    with seeded_initialisation(generator):
        policy = make_policy("pointer", data.token_dim, 128, encoder, None, data.token_dim)
    optimizer = ScheduledOptimizer(policy.parameters(), OPTIMIZER)
    start = time.perf_counter()
    for step in range(steps):
        batch = data.sample(batch_size, generator)
        logits, _ = policy(observation(batch, data, policy.observes))
        optimizer.zero()
        set_cross_entropy(logits, right_actions(batch)).backward()
        optimizer.clip()
        optimizer.step(step / steps)
    return {
        "first merges right": held_out_accuracy(policy, data, split),
        "parameters": sum(weight.numel() for weight in policy.parameters()),
        "seconds": time.perf_counter() - start,
    }


def reinforced(encoder: str, seed: int, merges: int, split: str = "test") -> dict[str, Any]:
    """Learn whole episodes by REINFORCE from the share of the pairs that was found."""
    learner = Reinforce(ENV_ID, replace(REINFORCE, encoder=encoder), mode="frozen", seed=seed)
    start = time.perf_counter()
    learner.train(merges=merges)
    seconds = time.perf_counter() - start
    batch = learner.task.dataset(split).fixed(SCENES)
    made = learner.plan(batch, torch.Generator().manual_seed(seed), greedy=True)
    return {
        "first merges right": float(first_merge_accuracy(made, batch.clades)),
        "pairs found": float(right_merges(made, batch).sum(1).mean()),
        "seconds": seconds,
    }


def summary(encoder: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: the median over seeds, and the accuracy of the worst seed and of the best."""
    row = {name: statistics.median(one[name] for one in results) for name in results[0]}
    right = [one["first merges right"] for one in results]
    spread = {"worst seed": min(right), "best seed": max(right)}
    return {"encoder": encoder, "seeds": len(results), **spread, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [NO_ENCODER, *ENCODERS]
    parser.add_argument("--encoders", nargs="*", default=names, help="supervised rows")
    parser.add_argument("--reinforce", nargs="*", default=["none", "attention"], help="their rows")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row")
    parser.add_argument("--first-seed", type=int, default=0, help="of its first run")
    parser.add_argument("--steps", type=int, default=300, help="supervised steps")
    parser.add_argument("--batch-size", type=int, default=128, help="scenes of a supervised step")
    parser.add_argument("--merges", type=int, default=150_000, help="made by REINFORCE")
    parser.add_argument("--split", default="test", help="of the held-out scenes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    tables = {
        "key_scenes_supervised": (
            options.encoders,
            lambda encoder, seed: supervised(
                encoder, seed, options.steps, options.batch_size, options.split
            ),
        ),
        "key_scenes_reinforce": (
            options.reinforce,
            lambda encoder, seed: reinforced(encoder, seed, options.merges, options.split),
        ),
    }
    for name, (encoders, run) in tables.items():
        if encoders:
            rows = [
                summary(encoder, [run(encoder, seed) for seed in seeds]) for encoder in encoders
            ]
            report(name, rows)


if __name__ == "__main__":
    main()

"""Mean return of every fixed policy on each id's fixed test episodes, with the shipped weights:
``python -m benchmarks.fixed_returns``.

For samples of four tokens all 120 trees are tried, so that regret is known.
"""

from __future__ import annotations

import torch

from agents.fixed import FIXED_POLICIES, fixed_policy
from agents.search.exhaustive import best_of_all
from benchmarks.table import report
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import Dataset, make_dataset
from htm_env.forest import action_to_pair, merges_to_actions
from htm_env.population import merge_pairs, start_population
from htm_env.types import TokenBatch
from htm_env.weights import SHIPPED, pretrained_autoencoder

EPISODES = 256
FOUR_TOKENS = {
    "HTM-Crosses-v0": {"num_crosses": (2,)},
    "HTM-Trees-v0": {"heights": (1,), "num_trees": (4,)},
}
"""Geometries in which every sample has four tokens."""


def mean_return(
    autoencoder: HTMAutoencoder, batch: TokenBatch, std: torch.Tensor, merges: torch.Tensor
) -> float:
    """``E_0 - E_final``, by taking the actions of the merges one after the other."""
    population = start_population(autoencoder, batch, std)
    actions = merges_to_actions(merges, batch.num_tokens)
    for step in range(actions.shape[1]):
        running = actions[:, step] >= 0
        first, second = action_to_pair(actions[:, step].clamp(min=0), batch.present.shape[1])
        population = merge_pairs(autoencoder, population, first, second, std, where=running)
    return float((population.initial_error - population.error).mean())


def returns(dataset: Dataset, autoencoder: HTMAutoencoder, *, exhaustive: bool) -> dict[str, float]:
    """The mean return of every policy that the data allows, and of the optimum if asked for."""
    batch = dataset.fixed(EPISODES)
    rows = {}
    for name, rule in FIXED_POLICIES.items():
        flat = rule.needs_hierarchy and not batch.clades.any()
        if flat or not rule.suits(dataset, autoencoder):
            continue
        policy = fixed_policy(name, autoencoder, dataset)
        merges = policy.plan(batch, torch.Generator().manual_seed(0))
        rows[name] = mean_return(autoencoder, batch, dataset.std, merges)
    if exhaustive:
        best = best_of_all(autoencoder, batch, dataset.std)
        rows["exhaustive optimum"] = mean_return(autoencoder, batch, dataset.std, best)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    columns: dict[str, dict[str, float]] = {}
    for env_id in SHIPPED:
        autoencoder = pretrained_autoencoder(env_id)
        columns[env_id] = returns(make_dataset(env_id, split="test"), autoencoder, exhaustive=False)
    for env_id, geometry in FOUR_TOKENS.items():
        autoencoder = pretrained_autoencoder(env_id)
        dataset = make_dataset(env_id, split="test", **geometry)
        columns[f"{env_id}, four tokens"] = returns(dataset, autoencoder, exhaustive=True)
    names = [*FIXED_POLICIES, "exhaustive optimum"]
    names = [name for name in names if any(name in values for values in columns.values())]
    rows = [
        {"policy": name} | {column: values.get(name, "-") for column, values in columns.items()}
        for name in names
    ]
    hashes = {e: pretrained_autoencoder(e).weights_hash() for e in SHIPPED}
    rows.append({"policy": "weights hash"} | {c: hashes[c.split(",")[0]] for c in columns})
    report("fixed_returns", rows)


if __name__ == "__main__":
    main()

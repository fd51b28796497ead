"""Random batches and policies, and the plain replay that rollouts are held against."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from oracle import PlainForest
from torch import Tensor

from agents.encoders import ENCODERS, ContextConfig
from agents.likelihood.base import PolicyTerms
from agents.networks.base import MergePolicy
from agents.networks.context import make_policy
from agents.networks.scorers import NodePolicy
from agents.rollouts.rollout import Episodes
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import action_to_pair, merges_to_actions
from htm_env.known import KnownMerger
from htm_env.observation import observe_population
from htm_env.population import Population, merge_pairs, start_population
from htm_env.types import TokenBatch

SCORERS = ["pointer", "pair_mlp", "merged_in_order"]
"""Pair scorers; the last is the one named merged, under a merger that knows an order."""
EITHER_WAY = "merged"
"""... and under one that knows none, so that both orders of a pair tie."""
NETWORKS = [*SCORERS, *ENCODERS]
"""Pair scorers alone, and the pointer with every encoder in front of it."""
RAGGED = [4, 2, 6, 1, 3, 6]
COPIES = [2, 3, 1, 2, 1, 3]
"""Trees of each of these samples, where there are several."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Blend:
    """Embeddings are blended, the first one with this weight."""

    def __init__(self, weight: float) -> None:
        self.weight, self.commutative = weight, weight == 0.5

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return self.weight * first + (1 - self.weight) * second


def squares(first: Tensor, second: Tensor, merged: Tensor, last: Tensor) -> Tensor:
    """The cost of merges: the square of the first number of what is made, ten times for a root."""
    return merged[:, 0].square() * torch.where(last, 10.0, 1.0)


def known_merger(network: str, embedding_dim: int = 5) -> KnownMerger:
    """The merger that a scorer reads what pairs become from."""
    return KnownMerger(embedding_dim, Blend(0.8 if network == "merged_in_order" else 0.5), squares)


def random_policy(network: str, embedding_dim: int = 5, seed: int = 0) -> MergePolicy:
    """Weights that make some pairs several times as likely as others."""
    if network in (*SCORERS, EITHER_WAY):
        policy = plain_policy(network, embedding_dim, 12)
    else:
        policy = make_policy("pointer", embedding_dim, 12, network, ContextConfig(width=16), 3)
    drawn = generator(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.normal_(std=0.2 if network in ("pointer", *ENCODERS) else 0.4, generator=drawn)
    return policy


def plain_policy(network: str, embedding_dim: int, hidden_dim: int) -> MergePolicy:
    """A scorer of these names, untrained."""
    scorer, model = network.removesuffix("_in_order"), known_merger(network, embedding_dim)
    return make_policy(scorer, embedding_dim, hidden_dim, model=model)


def random_batch(sizes: list[int], slots: int | None = None, seed: int = 0) -> TokenBatch:
    """Tokens of three coordinates, without a hierarchy."""
    slots = max(2, *sizes) if slots is None else slots
    present = torch.arange(slots) < torch.tensor(sizes)[:, None]
    tokens = torch.randn(len(sizes), slots, 3, generator=generator(seed)) * present[..., None]
    return TokenBatch(
        tokens,
        present,
        torch.zeros(len(sizes), 0, slots, dtype=torch.bool),
        torch.full((len(sizes), slots - 1, 2), -1),
    )


def several_trees(batch: TokenBatch) -> TokenBatch:
    """Of RAGGED: one to three rows a sample, next to each other."""
    return batch.rows(torch.arange(len(RAGGED)).repeat_interleave(torch.tensor(COPIES)))


def scores_of(policy: NodePolicy, episodes: Episodes) -> Tensor:
    """``(B, N, N)`` of all pairs of nodes that could be merged, each node looked at by itself."""
    features = policy.features(episodes.nodes, episodes.leaf_counts)
    return policy.node_scores(features.first, features.second, lambda: episodes.coactive)


def terms_of(
    policy: MergePolicy,
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    episodes: Episodes,
    at_a_time: int,
) -> PolicyTerms:
    """The policy's terms, of which so much is evaluated at a time."""
    terms = policy.terms(autoencoder, batch, episodes)
    terms.at_a_time = at_a_time
    return terms


def replayed(
    autoencoder: HTMAutoencoder, batch: TokenBatch, merges: Tensor
) -> Iterator[tuple[Population, Tensor]]:
    """Each population before a merge, and the actions ``(B,)`` taken in it; -1 for none."""
    population = start_population(autoencoder, batch, torch.ones(batch.tokens.shape[2]))
    actions = merges_to_actions(merges, batch.num_tokens)
    for step in range(actions.shape[1]):
        action = actions[:, step]
        yield population, action
        first, second = action_to_pair(action.clamp(min=0), batch.present.shape[1])
        population = merge_pairs(autoencoder, population, first, second, torch.ones(3), action >= 0)


def replayed_log_probs(
    autoencoder: HTMAutoencoder, policy: MergePolicy, batch: TokenBatch, merges: Tensor
) -> Tensor:
    """``(B, M)``: from the policy's own forward pass on every observation; differentiable."""
    columns = []
    for population, action in replayed(autoencoder, batch, merges):
        logits, _ = policy(observe_population(autoencoder, population, policy.observes))
        chosen = logits.log_softmax(1).gather(1, action.clamp(min=0)[:, None])[:, 0]
        columns.append(torch.where(action >= 0, chosen, 0.0))
    return torch.stack(columns, dim=1)


def plain_forests(merges: Tensor, num_leaves: Tensor) -> list[PlainForest]:
    """The merges of every sample, made one at a time."""
    forests = []
    for row, n in enumerate(num_leaves.tolist()):
        forest = PlainForest(n)
        for first, second in merges[row].tolist():
            if first >= 0:
                slot = {node: slot for slot, node in forest.slots.items()}
                forest.merge(slot[first], slot[second])
        forests.append(forest)
    return forests


def active_lists(merges: Tensor, num_leaves: Tensor) -> list[list[set[int]]]:
    """The active nodes before every merge of every sample, in plain sets."""
    found = []
    for row, n in enumerate(num_leaves.tolist()):
        active, steps = set(range(n)), []
        for step, (first, second) in enumerate(merges[row].tolist()):
            if first >= 0:
                steps.append(set(active))
                active = active - {first, second} | {n + step}
            else:
                steps.append(set())
        found.append(steps)
    return found

"""The whole trees that a policy network makes of a batch of samples."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.networks.base import MergePolicy, NodePolicy
from agents.rollouts.greedy_search import merge_greedily, merge_matchings
from agents.rollouts.rollout import rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest
from htm_env.types import TokenBatch

MANY = 256
"""From so many token slots on samples are merged one by one, which then is faster than together."""


def planned_merges(
    autoencoder: HTMAutoencoder,
    policy: MergePolicy,
    batch: TokenBatch,
    nearest: Nearest | None,
    generator: torch.Generator,
    *,
    greedy: bool,
    rounds: bool = False,
) -> Int64[Tensor, "B M 2"]:
    """The merges of a whole tree for every sample, -1 in padding.

    Args:
        autoencoder: makes the embeddings that the policy looks at.
        policy: the network that scores pairs.
        batch: the samples.
        nearest: the rule for candidates; None for all pairs.
        generator: draws the merges, unless greedy.
        greedy: takes the best pair at every step instead.
        rounds: takes a whole matching of disjoint pairs at a time; only when greedy.
    """
    if greedy and rounds:
        return merge_matchings(autoencoder, policy, batch, nearest)
    many = batch.present.shape[1] >= MANY
    if greedy and many and nearest is not None and isinstance(policy, NodePolicy):
        return merge_greedily(autoencoder, policy, batch, nearest)
    return rollout(autoencoder, policy, batch, generator, greedy=greedy, nearest=nearest).merges

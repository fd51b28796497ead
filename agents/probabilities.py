"""What a policy thinks of merges and of trees that another one may have made."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from agents.losses import coactive
from agents.policy import MergePolicy, bounded
from agents.rollout import Rollout, follow
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch
from replay import (
    forest_states,
    number_of_states,
    pairwise_log_prob,
    tree_log_prob,
    tree_log_prob_by_states,
)
from replay.tree_states import MOST_MERGES

MOST_PAIRS = 8_000_000
"""Pairs whose scores are held at a time."""
MOST_STATES = 4096
"""Forests on the way to a tree whose probability is still computed exactly."""
SEQUENCES = 16
"""Merge sequences from which the probability of a larger tree is estimated."""


def sequence_log_probs(scores: Float[Tensor, "B N N"], episodes: Rollout) -> Float[Tensor, "B M"]:
    """The log-probability of every merge of every episode under these scores; 0 in padding.

    All steps at once, in as many parts as memory asks for: each looks up the scores of the pairs
    that were active before it. Differentiable.
    """
    scores = bounded(scores)
    batch, steps, slots = episodes.active.shape
    rows = torch.arange(batch, device=scores.device)[:, None]
    same = torch.eye(slots, dtype=torch.bool, device=scores.device)
    log_probs = []
    part = max(1, MOST_PAIRS // max(1, batch * slots * slots))
    for start in range(0, steps, part):
        active = episodes.active[:, start : start + part]  # (B, m, P)
        node, gone = active.clamp(min=0), active < 0
        pairs = scores[rows[..., None, None], node[..., :, None], node[..., None, :]]
        illegal = gone[..., :, None] | gone[..., None, :] | same
        illegal &= episodes.steps[:, start : start + part, None, None]  # nothing to normalise there
        total = pairs.masked_fill(illegal, -torch.inf).flatten(2).logsumexp(2)  # (B, m)
        first, second = episodes.merges[:, start : start + part].clamp(min=0).unbind(-1)
        log_probs.append(scores[rows, first, second] - total)
    return torch.cat(log_probs, dim=1).where(episodes.steps, 0.0).clamp(max=0.0)


def tree_log_probs(
    policy: MergePolicy,
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    episodes: Rollout,
    features: Float[Tensor, "B N F"],
    generator: torch.Generator,
) -> Float[Tensor, "B"]:
    """The log-probability of every ordered tree, over all merge sequences that make it.

    Exact where no more than :data:`MOST_STATES` forests lead to a tree (15 tokens have at most a
    few hundred); otherwise estimated from :data:`SEQUENCES` of its sequences: consistent, not
    unbiased. Differentiable with respect to the policy.
    """
    merges, num_tokens = episodes.merges, batch.num_tokens
    exact = (number_of_states(merges, num_tokens) <= MOST_STATES) & (merges.shape[1] <= MOST_MERGES)
    result = features.new_zeros(len(merges))
    few, many = exact.nonzero()[:, 0], (~exact).nonzero()[:, 0]
    if len(few):
        # Other sequences have other pairs active together.
        exists = episodes.exists
        pairs = exists[:, :, None] & exists[:, None]
        scores = bounded(policy.node_scores(features, lambda: pairs))[few]
        states = forest_states(merges[few], num_tokens[few])
        steps = pairwise_log_prob(states, merges[few], scores)
        result = result.index_put((few,), tree_log_prob_by_states(states, steps).to(result.dtype))
    if len(many):

        def sequence_log_prob(sequences: Tensor, episode: Tensor) -> Tensor:
            made = follow(autoencoder, batch.rows(many[episode]), sequences)
            parts = policy.features(made.nodes, made.leaf_counts)
            return sequence_log_probs(policy.node_scores(parts, lambda: coactive(made)), made).sum(
                1
            )

        estimate = tree_log_prob(
            merges[many], num_tokens[many], sequence_log_prob, generator, sequences=SEQUENCES
        )
        result = result.index_put((many,), estimate.to(result.dtype))
    return result.clamp(max=0.0)

"""Log-probabilities of whole trees, whatever sequence of merges makes them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.likelihood.base import PolicyTerms
from agents.rollouts.pair_scores import bounded
from agents.rollouts.rollout import Episodes, follow
from htm_env.autoencoder import TreeEncoder
from htm_env.types import TokenBatch
from replay import (
    forest_states,
    number_of_states,
    pairwise_log_prob,
    tree_log_prob,
    tree_log_prob_by_states,
)
from replay.tree_probability import MOST_MERGES

MOST_STATES = 4096
"""Forests on the way to a tree whose probability is still computed exactly."""
SEQUENCES = 16
"""Merge sequences from which the probability of a larger tree is estimated."""


def exact_tree_log_probs(
    scores: Float[Tensor, "B N N"],
    merges: Int64[Tensor, "B M 2"],
    num_leaves: Int64[Tensor, "B"],
    most_states: int = MOST_STATES,
) -> Float[Tensor, "B"]:
    """The log-probability of every ordered tree, over all merge sequences that make it.

    NaN where more than ``most_states`` forests lead to a tree (15 tokens have at most a few
    hundred). Differentiable.
    """
    exact = (number_of_states(merges, num_leaves) <= most_states) & (
        (merges[..., 0] >= 0).sum(1) <= MOST_MERGES
    )
    few = exact.nonzero()[:, 0]
    result = scores.new_full((len(merges),), math.nan)
    if len(few):
        states = forest_states(merges[few], num_leaves[few])
        steps = pairwise_log_prob(states, merges[few], bounded(scores)[few])
        log_probs = tree_log_prob_by_states(states, steps)
        result = result.index_put((few,), log_probs.to(result.dtype))
    return result.clamp(max=0.0)


def tree_log_probs(
    terms_of: Callable[[TreeEncoder, TokenBatch, Episodes], PolicyTerms],
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    terms: PolicyTerms,
    generator: torch.Generator,
    most_states: int = MOST_STATES,
) -> Float[Tensor, "B"]:
    """The log-probability of every ordered tree, over all merge sequences that make it, under the
    policy with these ``terms``; ``terms_of`` gives those of other episodes.

    Exact where at most ``most_states`` forests lead to a tree; otherwise, and for every tree of a
    policy with a context encoder, whose scores differ from sequence to sequence, it is estimated
    from :data:`SEQUENCES` of its sequences: consistent, not unbiased. Differentiable with respect
    to the policy.
    """
    merges, num_tokens = terms.episodes.merges, batch.num_tokens
    scores = terms.tree_scores()
    if scores is None:
        result = terms.episodes.nodes.new_full((len(merges),), math.nan)
    else:
        result = exact_tree_log_probs(scores, merges, num_tokens, most_states)
    many = result.isnan().nonzero()[:, 0]
    if not len(many):
        return result

    def sequence_log_prob(sequences: Tensor, episode: Tensor) -> Tensor:
        samples = batch.rows(many[episode])
        made = follow(autoencoder, samples, sequences)
        return terms_of(autoencoder, samples, made).log_probs.sum(1)

    estimate = tree_log_prob(
        merges[many], num_tokens[many], sequence_log_prob, generator, sequences=SEQUENCES
    )
    return result.index_put((many,), estimate.to(result.dtype)).clamp(max=0.0)

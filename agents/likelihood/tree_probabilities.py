"""The probability of a whole tree under a policy, whatever sequence of merges made it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from agents.likelihood.base import Judgement, NodeJudgement
from agents.likelihood.judging import judge
from agents.likelihood.log_probs import exact_tree_log_probs
from agents.networks.base import MergePolicy
from agents.rollouts.rollout import Rollout, follow
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch
from replay import tree_log_prob

SEQUENCES = 16
"""Merge sequences from which the probability of a larger tree is estimated."""


def tree_log_probs(
    policy: MergePolicy,
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    episodes: Rollout,
    judgement: Judgement,
    generator: torch.Generator,
) -> Float[Tensor, "B"]:
    """The log-probability of every ordered tree, over all merge sequences that make it.

    Exact where ``exact_tree_log_probs`` of ``log_probs.py`` knows it; otherwise, and for every tree
    of a policy with a context encoder, whose scores differ from sequence to sequence, it is
    estimated from :data:`SEQUENCES` of its sequences: consistent, not unbiased. Differentiable with
    respect to the policy.
    """
    merges, num_tokens = episodes.merges, batch.num_tokens
    result = episodes.nodes.new_full((len(merges),), math.nan)
    if isinstance(judgement, NodeJudgement):
        # Other sequences have other pairs active together.
        exists = episodes.exists
        nodes = judgement.nodes
        scores = judgement.policy.node_scores(
            nodes.first, nodes.second, lambda: exists[:, :, None] & exists[:, None]
        )
        result = exact_tree_log_probs(scores, merges, num_tokens)
    many = result.isnan().nonzero()[:, 0]
    if not len(many):
        return result

    def sequence_log_prob(sequences: Tensor, episode: Tensor) -> Tensor:
        samples = batch.rows(many[episode])
        made = follow(autoencoder, samples, sequences)
        return judge(policy, autoencoder, samples, made).log_probs.sum(1)

    estimate = tree_log_prob(
        merges[many], num_tokens[many], sequence_log_prob, generator, sequences=SEQUENCES
    )
    return result.index_put((many,), estimate.to(result.dtype)).clamp(max=0.0)

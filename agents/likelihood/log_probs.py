"""What a pair scorer thinks of merges and of trees that another policy may have made."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.networks.base import bounded
from agents.rollouts.rollout import Rollout, membership
from htm_env.softmax import choice_entropy, log_totals
from replay import (
    forest_states,
    number_of_states,
    pairwise_log_prob,
    tree_log_prob_by_states,
)
from replay.tree_states import MOST_MERGES

MOST_STATES = 4096
"""Forests on the way to a tree whose probability is still computed exactly."""


@torch.no_grad()
def judged(scores: Float[Tensor, "B N N"], episodes: Rollout, ordered: bool) -> Rollout:
    """The same episodes, with what a policy with these scores thinks of their merges.

    ``ordered`` says whether the order within a pair counts as a choice in the entropy.
    """
    log_prob, log_total = sequence_log_probs(scores, episodes.merges, episodes.active)
    active = membership(episodes.active, scores.shape[1])
    nats = choice_entropy(bounded(scores), active, ordered)
    entropy = nats / episodes.most_entropy(ordered)
    return replace(
        episodes,
        log_prob=log_prob.to(scores.dtype),
        log_total=log_total.to(scores.dtype),
        entropy=entropy.where(episodes.steps, 0.0).to(scores.dtype),
    )


def sequence_log_probs(
    scores: Float[Tensor, "B N N"], merges: Int64[Tensor, "B M 2"], active: Int64[Tensor, "B M P"]
) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M"]]:
    """The log-probability of every merge under these scores, and the normaliser; 0 in padding.

    In double precision, and differentiable.
    """
    scores = bounded(scores)
    rows = torch.arange(len(scores), device=scores.device)[:, None]
    first, second = merges.clamp(min=0).unbind(-1)
    made, totals = merges[..., 0] >= 0, log_totals(scores, membership(active, scores.shape[1]))
    log_probs = (scores[rows, first, second] - totals).where(made, 0.0).clamp(max=0.0)
    return log_probs, totals.where(made, 0.0)


def exact_tree_log_probs(
    scores: Float[Tensor, "B N N"], merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """The log-probability of every ordered tree, over all merge sequences that make it.

    nan where more than :data:`MOST_STATES` forests lead to a tree (15 tokens have at most a few
    hundred). Differentiable.
    """
    exact = (number_of_states(merges, num_leaves) <= MOST_STATES) & (
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

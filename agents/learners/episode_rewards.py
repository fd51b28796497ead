"""The rewards of whole episodes, all merges of a batch at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.rollouts.rollout import Rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import active_nodes, children_table
from htm_env.population import subtree_errors
from htm_env.rewards import (
    incremental_rewards,
    node_errors,
    one_step_rewards,
    right_merges_rewards,
    step_reward,
)
from htm_env.types import TokenBatch


def episode_rewards(
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    episodes: Rollout,
    std: Float[Tensor, "T"],
    reward: str,
) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B"]]:
    """The reward of every merge, 0 in padding, and the ``nmse`` where each episode ends.

    Raises ``ValueError`` for an unknown reward.
    """
    step_reward(reward)  # knows the names
    errors = node_errors(autoencoder, episodes.nodes, episodes.exists, episodes.merges, batch, std)
    coordinates = batch.num_tokens * batch.tokens.shape[2]
    rewards = incremental_rewards(errors, episodes.merges, batch.num_tokens, batch.tokens.shape[2])
    leaf_error = (errors[:, : batch.present.shape[1]] * batch.present).sum(1)
    error = leaf_error / coordinates - rewards.sum(1)
    if reward == "terminal":
        rewards = at_the_end(rewards, episodes.steps)
    elif reward == "right_merges":
        rewards = right_merges_rewards(episodes.merges, batch)
    elif reward == "one_step":
        rewards = one_step_rewards(autoencoder, episodes.nodes, episodes.merges, batch.num_tokens)
    return rewards, error


@torch.no_grad()
def final_errors(
    autoencoder: HTMAutoencoder, batch: TokenBatch, episodes: Rollout, std: Float[Tensor, "T"]
) -> Float[Tensor, "B"]:
    """The ``nmse`` where each episode ends, without the rewards on the way there."""
    children = children_table(episodes.merges, batch.num_tokens)
    last = active_nodes(episodes.merges, batch.num_tokens)
    ids = last.flatten().nonzero().squeeze(1)
    errors = subtree_errors(
        autoencoder, episodes.nodes.flatten(0, 1)[ids], ids, children, batch, std
    )
    summed = errors.new_zeros(len(last)).index_add_(0, ids // last.shape[1], errors)
    return summed / (batch.num_tokens * batch.tokens.shape[2])


def at_the_end(rewards: Float[Tensor, "B M"], steps: Bool[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """The same sum of rewards, paid with the last merge."""
    last = (steps.sum(1) - 1).clamp(min=0)[:, None]
    return torch.zeros_like(rewards).scatter_(1, last, rewards.sum(1, keepdim=True))

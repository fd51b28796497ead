"""The policy's losses: functions of tensors, with no environment, logger or optimizer inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.policy import ILLEGAL, MergePolicy
from agents.rollout import Rollout, choice_entropy

CHUNK = 2_000_000
"""Pair scores that are held at once; what bounds the memory of long episodes."""


def discounted_returns(
    rewards: Float[Tensor, "B M"], discount: float
) -> Float[Tensor, "B M"]:
    """``G_t = r_t + discount * G_{t+1}``; padding earns 0."""
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    for step in reversed(range(rewards.shape[1])):
        following = rewards[:, step] + discount * following
        returns[:, step] = following
    return returns


class StepTerms(NamedTuple):
    """Log-probability and entropy of a run of steps, differentiable."""

    steps: slice
    log_prob: Float[Tensor, "B S"]
    entropy: Float[Tensor, "B S"]
    """Over that of a uniform choice, in [0, 1]."""


def step_terms(
    scores: Float[Tensor, "B N N"], rollout: Rollout, ordered_entropy: bool = True
) -> Iterator[StepTerms]:
    """The policy's log-probabilities and entropies of all steps of an episode, a chunk at a time.

    ``scores`` are those of all pairs of nodes; memory is bounded by ``CHUNK`` pair scores.
    """
    batch, num_steps, slots = rollout.active.shape
    widths = (rollout.active >= 0).sum(2).amax(0).tolist()
    step = 0
    while step < num_steps and widths[step] > 1:
        width = widths[step]
        length = max(1, min(num_steps - step, CHUNK // (batch * width * width)))
        steps = slice(step, step + length)
        yield StepTerms(steps, *_chunk_terms(scores, rollout, steps, width, ordered_entropy))
        step += length


def _chunk_terms(
    scores: Tensor, rollout: Rollout, steps: slice, width: int, ordered_entropy: bool
) -> tuple[Tensor, Tensor]:
    batch, num_nodes, _ = scores.shape
    active = rollout.active[:, steps, :width]  # (B, S, W) node ids
    present = active >= 0
    node = active.clamp(min=0)
    pairs = node[..., :, None] * num_nodes + node[..., None, :]  # (B, S, W, W)
    logits = scores.view(batch, -1).gather(1, pairs.flatten(1)).view(pairs.shape)
    legal = present[..., :, None] & present[..., None, :]
    legal &= ~torch.eye(width, dtype=torch.bool, device=legal.device)
    logits = logits.masked_fill(~legal, ILLEGAL)  # (B, S, W, W)
    merges = rollout.merges[:, steps]
    real = merges[..., 0] >= 0
    at = merges.clamp(min=0)
    chosen = scores.view(batch, -1).gather(1, at[..., 0] * num_nodes + at[..., 1])
    log_prob = chosen - logits.flatten(2).logsumexp(dim=2)
    entropy = choice_entropy(logits, present.sum(2), ordered_entropy)
    return log_prob * real, entropy * real


def coactive(rollout: Rollout) -> Bool[Tensor, "B N N"]:
    """True <--> both nodes were active, and could be merged, before the same merge."""
    batch, steps, _ = rollout.active.shape
    members = membership(rollout).flatten(0, 1)  # (B * M, N)
    members = members.view(batch, steps, -1)
    return (members.transpose(1, 2) @ members) > 0


def membership(rollout: Rollout) -> Float[Tensor, "B M N"]:
    """1 where the node is active before the merge."""
    batch, steps, _ = rollout.active.shape
    num_nodes = rollout.nodes.shape[1]
    padded = rollout.nodes.new_zeros(batch, steps, num_nodes + 1)
    index = rollout.active % (num_nodes + 1)  # -1 lands in the pad
    return padded.scatter_(2, index, 1.0)[..., :-1]


def distance_to_target(rollout: Rollout, target: float) -> Float[Tensor, "B 1"]:
    """The sign of every episode's mean normalised entropy less the target: the gradient of
    ``|mean - target|``, the published method's loss."""
    mean = rollout.entropy.sum(1) / rollout.steps.sum(1).clamp(min=1)
    return torch.sign(mean - target)[:, None]


def policy_gradient_step(
    policy: MergePolicy,
    rollout: Rollout,
    advantages: Float[Tensor, "B M"],
    entropy_coefficient: Float[Tensor, "B 1"],
    features: Float[Tensor, "B N F"],
    ordered_entropy: bool = True,
) -> dict[str, Float[Tensor, ""]]:
    """Accumulate the gradient of REINFORCE's loss (Williams 1992); returns its parts.

    ``loss = mean over episodes of [- sum over t of advantage_t * log pi_t + coefficient * mean
    over t of entropy_t]``. Gradients go through the scores a chunk of steps at a time, so that the
    memory of all steps is never held at once.
    """
    scores = policy.node_scores(features, coactive(rollout))
    leaf = scores.detach().requires_grad_()
    lengths = rollout.steps.sum(1, keepdim=True).clamp(min=1)
    gradient_loss, entropy_loss = [], []
    for terms in step_terms(leaf, rollout, ordered_entropy):
        reinforce = -(advantages[:, terms.steps] * terms.log_prob).sum(1).mean()
        entropy = (entropy_coefficient * terms.entropy / lengths).sum(1).mean()
        (reinforce + entropy).backward()
        gradient_loss.append(reinforce.detach())
        entropy_loss.append(entropy.detach())
    if leaf.grad is not None:
        scores.backward(leaf.grad, retain_graph=True)
    return {
        "policy": torch.stack(gradient_loss).sum(),
        "entropy": torch.stack(entropy_loss).sum(),
    }


def value_loss(
    values: Float[Tensor, "B M"], returns: Float[Tensor, "B M"], steps: Bool[Tensor, "B M"]
) -> Float[Tensor, ""]:
    """Mean squared error of the state values against the returns."""
    return ((values - returns).square() * steps).sum() / steps.sum().clamp(min=1)

"""The policy's losses: functions of tensors, with no environment, logger or optimizer inside."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.likelihood.lifetimes import Lifetimes
from agents.rollouts.rollout import Rollout


def discounted_returns(rewards: Float[Tensor, "B M"], discount: float) -> Float[Tensor, "B M"]:
    """``G_t = r_t + discount * G_{t+1}``; padding earns 0."""
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    for step in reversed(range(rewards.shape[1])):
        following = rewards[:, step] + discount * following
        returns[:, step] = following
    return returns


def distance_to_target(rollout: Rollout, target: float, ordered: bool) -> Float[Tensor, "B 1"]:
    """The sign of every episode's mean normalised entropy less the target: the gradient of
    ``|mean - target|``, the published method's loss."""
    mean = rollout.entropy.sum(1) / rollout.open_steps(ordered).sum(1).clamp(min=1)
    return torch.sign(mean - target)[:, None]


def policy_gradient_step(
    scores: Float[Tensor, "B N N"],
    rollout: Rollout,
    advantages: Float[Tensor, "B M"],
    entropy_coefficient: Float[Tensor, "B 1"],
    ordered_entropy: bool = True,
) -> dict[str, Float[Tensor, ""]]:
    """Accumulate the gradient of REINFORCE's loss (Williams 1992); returns its parts.

    ``loss = mean over episodes of [- sum over t of advantage_t * log pi_t + coefficient * mean
    over t of entropy_t]``. What ``rollout`` says of its steps (log-probabilities, totals and, where
    they have a price, entropies) must follow from ``scores``, those of all pairs of nodes.
    """
    gradient, losses = episode_gradient(
        scores.detach(), rollout, advantages, entropy_coefficient, ordered_entropy
    )
    scores.backward(gradient, retain_graph=True)
    return losses


@torch.no_grad()
def episode_gradient(
    scores: Float[Tensor, "B N N"],
    rollout: Rollout,
    advantages: Float[Tensor, "B M"],
    entropy_coefficient: Float[Tensor, "B 1"],
    ordered_entropy: bool,
) -> tuple[Float[Tensor, "B N N"], dict[str, Float[Tensor, ""]]]:
    """The gradient of REINFORCE's loss with respect to the scores of all pairs of nodes.

    In closed form: that of ``log p(a)`` is ``1[a] - p``, that of the entropy ``- p (log q + H)``,
    with ``q`` the probability of the choice that the pair belongs to: itself, or both its orders.
    """
    size, steps = len(scores), rollout.steps
    advantages = advantages * steps / size
    price = entropy_coefficient / steps.sum(1, keepdim=True).clamp(min=1) * steps / size
    most = rollout.most_entropy(ordered_entropy)
    losses = {
        "policy": -(advantages * rollout.log_prob).sum(),
        "entropy": (price * rollout.entropy).sum(),
    }
    price = price / most
    lifetimes = Lifetimes(rollout.merges, rollout.exists, rollout.num_leaves)
    spread = price * (rollout.log_total - rollout.entropy * most)
    gradient = lifetimes.sums(scores, rollout.log_total, advantages + spread)
    if price.any():
        log_weight = scores if ordered_entropy else scores.logaddexp(scores.transpose(1, 2))
        gradient -= lifetimes.sums(scores, rollout.log_total, price) * log_weight
    row, _ = steps.nonzero(as_tuple=True)
    first, second = rollout.merges[steps].unbind(1)
    gradient[row, first, second] -= advantages[steps]
    return gradient, losses


def value_loss(
    values: Float[Tensor, "B M"],
    returns: Float[Tensor, "B M"],
    steps: Bool[Tensor, "B M"],
    weights: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the state values against the returns, each episode's by its weight."""
    errors = (values - returns).square() * steps
    if weights is not None:
        errors = errors * weights[:, None]
    return errors.sum() / steps.sum().clamp(min=1)

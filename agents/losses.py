"""The policy's losses: functions of tensors, with no environment, logger or optimizer inside."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.choices import add_log_prob_gradient, choices, most_entropy, score_gradient
from agents.policy import ILLEGAL, MergePolicy
from agents.positions import PairTable, Positions
from agents.rollout import Rollout


def discounted_returns(rewards: Float[Tensor, "B M"], discount: float) -> Float[Tensor, "B M"]:
    """``G_t = r_t + discount * G_{t+1}``; padding earns 0."""
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    for step in reversed(range(rewards.shape[1])):
        following = rewards[:, step] + discount * following
        returns[:, step] = following
    return returns


def coactive(rollout: Rollout) -> Bool[Tensor, "B N N"]:
    """True <--> both nodes were active, and could be merged, before the same merge."""
    members = membership(rollout)
    return (members.transpose(1, 2) @ members) > 0


def membership(rollout: Rollout) -> Float[Tensor, "B M N"]:
    """1 where the node is active before the merge."""
    batch, steps, _ = rollout.active.shape
    num_nodes = rollout.nodes.shape[1]
    padded = rollout.nodes.new_zeros(batch, steps, num_nodes + 1)
    index = rollout.active % (num_nodes + 1)  # -1 lands in the pad
    return padded.scatter_(2, index, 1.0)[..., :-1]


def distance_to_target(rollout: Rollout, target: float, ordered: bool) -> Float[Tensor, "B 1"]:
    """The sign of every episode's mean normalised entropy less the target: the gradient of
    ``|mean - target|``, the published method's loss."""
    mean = rollout.entropy.sum(1) / rollout.open_steps(ordered).sum(1).clamp(min=1)
    return torch.sign(mean - target)[:, None]


def policy_gradient_step(
    policy: MergePolicy,
    rollout: Rollout,
    advantages: Float[Tensor, "B M"],
    entropy_coefficient: Float[Tensor, "B 1"],
    features: Float[Tensor, "B N F"],
    ordered_entropy: bool = True,
    own_merges: bool = True,
) -> dict[str, Float[Tensor, ""]]:
    """Accumulate the gradient of REINFORCE's loss (Williams 1992); returns its parts.

    ``loss = mean over episodes of [- sum over t of advantage_t * log pi_t + coefficient * mean
    over t of entropy_t]``. The gradient with respect to the scores is taken in closed form, step by
    step, so that only one step's pairs are ever held. Beside the losses stands ``choice_entropy``,
    the mean normalised entropy of the choices; where it has no price and the policy drew these
    merges (``own_merges``), it is estimated from them.
    """
    scores = policy.node_scores(features, lambda: coactive(rollout))
    gradient, losses = episode_gradient(
        scores.detach(), rollout, advantages, entropy_coefficient, ordered_entropy, own_merges
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
    own_merges: bool = True,
) -> tuple[Float[Tensor, "B N N"], dict[str, Float[Tensor, ""]]]:
    """The gradient of REINFORCE's loss with respect to the scores of all pairs of nodes.

    A pair keeps its score while both nodes are active, so its gradient is summed where it stands
    and written out once, when one of the two is merged.
    """
    lengths = rollout.steps.sum(1)
    order = lengths.argsort(descending=True, stable=True)
    merges, scores = rollout.merges[order], scores[order]
    present = rollout.active[order, 0] >= 0
    size, num_nodes, _ = scores.shape
    slots = present.shape[1]
    advantages = advantages[order] / size
    price = (entropy_coefficient / lengths.clamp(min=1)[:, None])[order, 0] / size
    estimated = own_merges and not price.any()

    positions = Positions(present, lengths[order])
    table = PairTable(scores[:, :slots, :slots].clone(), present, ILLEGAL)
    summed = PairTable(torch.zeros_like(table.values), present, 0.0)
    gradient = scores.new_zeros(size, num_nodes + 1, num_nodes + 1)  # -1 lands in the pad
    policy_loss, entropy_loss = scores.new_zeros(()), scores.new_zeros(())
    choice_entropy = scores.new_zeros(())
    for step in positions.steps():
        rows, width = step.rows, step.width
        first, second = positions.find(step, merges)
        advantage, most = (
            advantages[: len(rows), step.time],
            most_entropy(step.num_active, ordered_entropy),
        )
        if estimated:
            log_prob, log_choice = add_log_prob_gradient(
                summed.view(step), table.view(step), advantage, first, second, ordered_entropy
            )
            choice_entropy -= (log_choice / most).sum()
        else:
            distribution = choices(table.view(step), ordered_entropy)
            step_price = price[: len(rows)] / most
            summed.view(step).add_(
                score_gradient(distribution, advantage, step_price, first, second)
            )
            log_prob = table.values[rows, first, second] - distribution.log_total
            entropy_loss += (step_price * distribution.entropy).sum()
            choice_entropy += (distribution.entropy / most).sum()
        policy_loss -= (advantage * log_prob).sum()

        nodes = positions.here[: len(rows), :width].clone()
        children, parent = positions.merge(step, first, second)
        at, sample = torch.stack([first, second], dim=1), rows[:, None]
        as_first = summed.values[sample, at, :width]  # (R, 2, W)
        as_second = summed.values[sample, :width, at]
        gradient[sample[..., None], children[..., None], nodes[:, None]] = as_first
        gradient[sample[..., None], nodes[:, None], children[..., None]] = as_second
        zeros = as_first.new_zeros(len(rows), width)
        summed.replace(step, zeros, zeros)
        known = positions.here[: len(rows), :width].clamp(min=0)
        table.replace(
            step, scores[sample, parent[:, None], known], scores[sample, known, parent[:, None]]
        )
    left = positions.here
    sample = torch.arange(size, device=left.device)[:, None, None]
    gradient[sample, left[:, :, None], left[:, None, :]] += summed.values
    back = order.argsort()
    return gradient[back, :-1, :-1], {
        "policy": policy_loss,
        "entropy": entropy_loss,
        "choice_entropy": choice_entropy / rollout.open_steps(ordered_entropy).sum().clamp(min=1),
    }


def value_loss(
    values: Float[Tensor, "B M"], returns: Float[Tensor, "B M"], steps: Bool[Tensor, "B M"]
) -> Float[Tensor, ""]:
    """Mean squared error of the state values against the returns."""
    return ((values - returns).square() * steps).sum() / steps.sum().clamp(min=1)

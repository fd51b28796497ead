"""Learning from episodes that somebody else made: the policy's gradient, corrected for who did."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.learners.corrections import Corrected, Limits, Replayed
from agents.likelihood.among_all import value_loss
from agents.likelihood.base import Judgement
from agents.rollouts.rollout import Rollout
from htm_env.types import TokenBatch
from replay import Trajectories, effective_sample_size, log_ratios


class Again(NamedTuple):
    """A batch of stored episodes, seen with the autoencoder and the policy as they are now."""

    stored: Trajectories
    batch: TokenBatch
    episodes: Rollout
    rewards: Float[Tensor, "B M"]
    judgement: Judgement
    """The policy's, with gradients."""
    importance: Float[Tensor, "B"]
    """What corrects for the sampling of the buffer."""
    imitated: Bool[Tensor, "B"]
    """True <--> imitated, whatever it earned, instead of weighed."""


class OffPolicy(NamedTuple):
    """What was learned; the gradients are accumulated."""

    losses: dict[str, Float[Tensor, ""]]
    advantages: Float[Tensor, "B"]
    """The mean absolute advantage of every episode, in units of the batch's."""
    weighed: dict[str, float]
    """Of what was weighed, not imitated: the effective sample size as a share of the episodes, and
    the shares of merges (or trees) whose weight was cut, and that may move no further. Empty where
    all were imitated."""


# Schulman et al. (2017), "Proximal policy optimization algorithms", equation 7: where the clipped
# objective has no gradient. There the reference is the policy a rollout ago, here the one that made
# the stored episode. Without it, replays let the noise of a critic undo what was cloned before.
def trusted(
    log_ratio: Float[Tensor, "*batch"], advantages: Float[Tensor, "*batch"], trust: float
) -> Bool[Tensor, "*batch"]:
    """True <--> the probability may still move to where the advantage asks it to.

    It may not where it is already more than ``1 + trust`` times (or less than ``1 - trust`` times)
    the behaviour policy's; ``math.inf`` lets it move anywhere.
    """
    ratio = log_ratio.exp()
    too_far = torch.where(advantages > 0, ratio > 1 + trust, ratio < 1 - trust)
    return ~too_far


def learn_sequences(
    again: Again,
    correct: Callable[[Replayed, Limits], Corrected],
    limits: Limits,
    scaled: Callable[[Tensor, Tensor], Tensor],
    ordered: bool,
    generator: torch.Generator,
) -> OffPolicy:
    """By the ratio of the probabilities of the merges, one after the other.

    ``scaled`` brings advantages to the scale of a batch, given where there are any; ``ordered``
    says whether the order within a pair counts as a choice.
    """
    stored, _, episodes, rewards, judgement, importance, imitated = again
    steps, values = episodes.steps, judgement.values
    corrected = correct(
        Replayed(stored.behaviour_log_prob, episodes.log_prob, rewards, values.detach(), steps),
        limits,
    )
    log_ratio = log_ratios(stored.behaviour_log_prob, episodes.log_prob, steps)
    advantages = scaled(corrected.advantages, steps)
    moves = trusted(log_ratio, advantages, limits.trust)
    weighed = corrected.weights * advantages * moves
    signal = torch.where(imitated[:, None], 1.0, weighed) * steps
    nothing = torch.zeros_like(rewards[:, :1])
    losses = judgement.learn(episodes, signal * importance[:, None], nothing, ordered, generator)
    del losses["entropy"]  # nothing is paid for it here
    losses["value"] = value_loss(values, corrected.targets, steps, importance)
    losses["value"].backward()
    return OffPolicy(
        losses,
        advantages.abs().sum(1) / steps.sum(1).clamp(min=1),
        _shares(~imitated, log_ratio.sum(1), steps, corrected.clipped, moves),
    )


def learn_trees(
    again: Again,
    target_log_prob: Float[Tensor, "B"],
    limits: Limits,
    scaled: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator,
) -> OffPolicy:
    """By the ratio of the probabilities of the whole trees, whatever sequence made them.

    ``target_log_prob`` is that of the policy as it is now, with gradients. Of the limits weights
    know ``rho_bar`` and ``trust``; the whole return counts as earned at the end.
    """
    log_weights = target_log_prob.detach() - again.stored.tree_log_prob
    weights = log_weights.exp().clamp(max=limits.rho_bar)
    start, importance = again.judgement.values[:, 0], again.importance
    surprise = again.rewards.sum(1) - start.detach()
    advantages = scaled(surprise[:, None], torch.ones_like(again.episodes.steps[:, :1]))[:, 0]
    moves = trusted(log_weights, advantages, limits.trust)
    weighed = weights * advantages * moves
    signal = torch.where(again.imitated, 1.0, weighed)
    gone = start.detach() + weights * surprise
    losses = {
        "policy": -(importance * signal * target_log_prob).mean(),
        "value": (importance * (start - gone).square()).mean(),
        **again.judgement.encoder_losses(generator),
    }
    torch.stack(list(losses.values())).sum().backward()
    clipped = log_weights.exp() > limits.rho_bar
    shares = _shares(~again.imitated, log_weights, torch.ones_like(clipped), clipped, moves)
    return OffPolicy(losses, advantages.abs(), shares)


def _shares(
    weighed: Bool[Tensor, "B"],
    log_weights: Float[Tensor, "B"],
    made: Bool[Tensor, "B *merges"],
    clipped: Bool[Tensor, "B *merges"],
    moves: Bool[Tensor, "B *merges"],
) -> dict[str, float]:
    """See :attr:`OffPolicy.weighed`; ``made`` is True where there is a merge (or tree)."""
    if not weighed.any():
        return {}
    number = made[weighed].sum().clamp(min=1)
    return {
        "effective_sample_share": float(
            effective_sample_size(log_weights[weighed]) / weighed.sum()
        ),
        "clipped_share": float((clipped & made)[weighed].sum() / number),
        "untrusted_share": float((~moves & made)[weighed].sum() / number),
    }

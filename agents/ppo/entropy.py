"""The entropy that every learner reports, from the logits of all actions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from agents.rollouts.sampling import TINY, most_entropy
from htm_env.forest import action_to_pair, pair_to_action
from htm_env.softmax import weights_of


def observed_entropy(
    log_probabilities: Float[Tensor, "B A"], observation: dict[str, Tensor]
) -> Float[Tensor, "B"]:
    """That of the actions that the observation allows."""
    if "candidates" in observation:
        return candidate_entropy(log_probabilities, observation["candidates"])
    active = observation["active"]
    return choice_entropy(log_probabilities, active.long().sum(1), active.shape[1])


def choice_entropy(
    log_probabilities: Float[Tensor, "B A"], num_active: Int64[Tensor, "B"], num_slots: int
) -> Float[Tensor, "B"]:
    """Entropy of *which* two slots are merged, over that of a uniform choice, in [0, 1].

    The order within a pair does not count as a choice, as in ``policy/entropy`` of REINFORCE; NaN
    where one pair is left, and so no choice.
    """
    actions = torch.arange(log_probabilities.shape[1], device=log_probabilities.device)
    first, second = action_to_pair(actions, num_slots)
    probability = weights_of(log_probabilities)
    choice = probability + probability[:, pair_to_action(second, first, num_slots)]
    share = _entropy(probability, choice) / most_entropy(num_active, ordered=False)
    return share.masked_fill(num_active <= 2, torch.nan)


def candidate_entropy(
    log_probabilities: Float[Tensor, "B A"], candidates: Int[Tensor, "B P k"]
) -> Float[Tensor, "B"]:
    """The same where the actions are candidates; there the order counts, as in REINFORCE's, since a
    token's candidates need not list the token."""
    number = (candidates >= 0).sum((1, 2))
    probability = weights_of(log_probabilities)
    entropy = _entropy(probability, probability)
    return (entropy / number.clamp(min=2).log()).masked_fill(number <= 1, torch.nan)


def _entropy(probability: Float[Tensor, "B A"], choice: Float[Tensor, "B A"]) -> Float[Tensor, "B"]:
    """In nats, of choices that are several actions each: ``choice`` has their probabilities."""
    return -(probability * choice.clamp_min(TINY).log()).sum(1)

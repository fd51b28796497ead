"""The entropy that every learner reports, from the logits of all actions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.choices import TINY, most_entropy
from htm_env.forest import action_to_pair, pair_to_action


def choice_entropy(
    log_probabilities: Float[Tensor, "B A"], num_active: Int64[Tensor, "B"], num_slots: int
) -> Float[Tensor, ""]:
    """Mean entropy of *which* two slots are merged, over that of a uniform choice, in [0, 1].

    The order within a pair does not count as a choice, and states with one pair are left out, as in
    ``policy/entropy`` of REINFORCE; 0 where there is no other state.
    """
    actions = torch.arange(log_probabilities.shape[1], device=log_probabilities.device)
    first, second = action_to_pair(actions, num_slots)
    probability = log_probabilities.exp()
    choice = probability + probability[:, pair_to_action(second, first, num_slots)]
    entropy = -(probability * choice.clamp_min(TINY).log()).sum(1)
    is_open = num_active > 2
    share = entropy / most_entropy(num_active, ordered=False)
    return (share * is_open).sum() / is_open.sum().clamp(min=1)

"""The entropy that every learner reports, from the logits of all actions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.choices import TINY, most_entropy
from htm_env.forest import action_to_pair, pair_to_action


def choice_entropy(
    log_probabilities: Float[Tensor, "B A"], num_active: Int64[Tensor, "B"], num_slots: int
) -> Float[Tensor, "B"]:
    """Entropy of *which* two slots are merged, over that of a uniform choice, in [0, 1].

    The order within a pair does not count as a choice, as in ``policy/entropy`` of REINFORCE; NaN
    where one pair is left, and so no choice.
    """
    actions = torch.arange(log_probabilities.shape[1], device=log_probabilities.device)
    first, second = action_to_pair(actions, num_slots)
    probability = log_probabilities.exp()
    choice = probability + probability[:, pair_to_action(second, first, num_slots)]
    entropy = -(probability * choice.clamp_min(TINY).log()).sum(1)
    share = entropy / most_entropy(num_active, ordered=False)
    return share.masked_fill(num_active <= 2, torch.nan)

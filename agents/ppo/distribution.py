"""The distribution over all actions that both forms of the policy share, and its entropy."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution, MaybeMasks
from torch import Tensor
from torch.distributions import Categorical

from agents.rollouts.pair_scores import ILLEGAL
from agents.rollouts.rollout import TINY, most_entropy
from htm_env.forest import action_to_pair, pair_to_action
from htm_env.softmax import weights_of


class MergeDistribution(MaskableCategoricalDistribution):
    """A categorical distribution that stays in log-probabilities.

    torch's own one checks that probabilities sum to 1 within 1e-6, which single precision misses
    at thousands of actions (sb3-contrib, issue 247). Here an illegal action's logit is -1e9: its
    probability is exactly 0, and nothing becomes NaN.
    """

    def proba_distribution(self, action_logits: Float[Tensor, "B A"]) -> MergeDistribution:
        self._logits = action_logits
        self.log_probabilities = action_logits.log_softmax(dim=1)
        return self

    def _as_torch(self) -> Categorical:
        """The same as torch has it, without its checks: for the divergence that TRPO limits."""
        return Categorical(logits=self.log_probabilities, validate_args=False)

    # It follows from the log-probabilities, so that what the base class sets, None, is not kept.
    distribution: Any = property(_as_torch, lambda self, value: None)

    def apply_masking(self, masks: MaybeMasks) -> None:
        """Forbid what ``masks`` forbids (False <--> illegal) beside what is forbidden already.

        None takes back an earlier mask.
        """
        logits = self._logits
        if masks is not None:
            legal = torch.as_tensor(masks, dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(~legal.reshape(logits.shape), ILLEGAL)
        self.log_probabilities = logits.log_softmax(dim=1)

    def log_prob(self, actions: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
        return self.log_probabilities.gather(1, actions[:, None]).squeeze(1)

    def entropy(self) -> Float[Tensor, "B"]:
        """In nats; an illegal action adds nothing, since 0 times a finite number is 0."""
        return -(weights_of(self.log_probabilities) * self.log_probabilities).sum(1)

    def sample(self) -> Int64[Tensor, "B"]:
        """Drawn with torch's global generator, as everything in Stable-Baselines3 is.

        One random number a row, where ``torch.multinomial`` takes one an action: the first action
        whose running total lies above it, which is none of weight 0.
        """
        totals = weights_of(self.log_probabilities).cumsum(1, dtype=torch.float64)
        drawn = torch.rand(len(totals), 1, dtype=totals.dtype, device=totals.device)
        return torch.searchsorted(totals, drawn * totals[:, -1:], right=True).squeeze(1)

    def mode(self) -> Int64[Tensor, "B"]:
        return self.log_probabilities.argmax(dim=1)


def observed_entropy(
    log_probabilities: Float[Tensor, "B A"], observation: dict[str, Tensor]
) -> Float[Tensor, "B"]:
    """Entropy of the actions that the observation allows."""
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

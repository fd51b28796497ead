"""Off-policy corrections: how stored episodes teach the policy that it is now.

Each is one function of a batch of replayed episodes. The policy's gradient is then
``weights * advantages * grad log pi``; V-trace is the default, and the others are there to be
compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from replay import (
    log_ratios,
    per_decision_returns,
    prefix_log_weights,
    self_normalised_returns,
    self_normalised_weights,
    truncated_log_weights,
    vtrace,
)


class Replayed(NamedTuple):
    """A batch of stored episodes, seen with the current autoencoder and the current policy."""

    behaviour_log_prob: Float[Tensor, "B M"]
    target_log_prob: Float[Tensor, "B M"]
    rewards: Float[Tensor, "B M"]
    values: Float[Tensor, "B M"]
    """The critic's, of the states before each merge."""
    steps: Bool[Tensor, "B M"]
    """True <--> a merge was made."""


class Corrected(NamedTuple):
    """What is learned from them; 0 in padding."""

    advantages: Float[Tensor, "B M"]
    weights: Float[Tensor, "B M"]
    targets: Float[Tensor, "B M"]
    """What the critic's values should become; whatever the correction, every ratio in them is cut
    at ``rho_bar``, since one large target undoes a critic."""
    clipped: Bool[Tensor, "B M"]
    """True <--> a ratio was cut in what this merge weighs in the policy's gradient."""


class Limits(NamedTuple):
    """How a correction is bounded, and how far it looks ahead."""

    discount: float
    rho_bar: float
    c_bar: float
    lambda_: float
    trust: float = math.inf
    """How far a probability may move from the behaviour policy's (see ``off_policy.trusted``)."""


def by_vtrace(episodes: Replayed, limits: Limits) -> Corrected:
    """V-trace (Espeholt et al. 2018): every ratio is cut, so the variance stays bounded."""
    found = vtrace(
        episodes.behaviour_log_prob,
        episodes.target_log_prob,
        episodes.rewards,
        episodes.values,
        torch.zeros_like(episodes.values[:, 0]),
        mask=episodes.steps,
        gamma=limits.discount,
        rho_bar=limits.rho_bar,
        c_bar=limits.c_bar,
        lambda_=limits.lambda_,
    )
    clipped = _ratios(episodes) > limits.rho_bar
    return Corrected(found.advantages, found.rho, found.targets, clipped)


def by_decision(episodes: Replayed, limits: Limits) -> Corrected:
    """Per-decision importance sampling (Precup et al. 2000): unbiased, with any variance."""
    returns = _returns(per_decision_returns, episodes, limits, episodes.target_log_prob)
    return _weighted(episodes, limits, _prefixes(episodes).exp(), returns)


def by_self_normalisation(episodes: Replayed, limits: Limits) -> Corrected:
    """The same with weights that average one over the batch: less variance, a vanishing bias."""
    prefixes = _prefixes(episodes).masked_fill(~episodes.steps, -torch.inf)
    weights = self_normalised_weights(prefixes) * episodes.steps.sum(0) / len(prefixes)
    returns = _returns(self_normalised_returns, episodes, limits, episodes.target_log_prob)
    return _weighted(episodes, limits, weights, returns)


def by_truncation(episodes: Replayed, limits: Limits) -> Corrected:
    """Per-decision importance sampling whose weights are cut at ``rho_bar`` (Ionides 2008): those
    of a merge's past as a whole, and every ratio of what follows it."""
    prefixes = _prefixes(episodes)
    cut = truncated_log_weights(prefixes, limits.rho_bar)
    above = _ratios(episodes) > limits.rho_bar
    later = above.sum(1, keepdim=True) - above.cumsum(1)  # ratios above it that follow the merge
    return _weighted(episodes, limits, cut.exp(), clipped=(cut < prefixes) | (later > 0))


def _prefixes(episodes: Replayed) -> Float[Tensor, "B M"]:
    return prefix_log_weights(episodes.behaviour_log_prob, episodes.target_log_prob, episodes.steps)


def _ratios(episodes: Replayed) -> Float[Tensor, "B M"]:
    return log_ratios(episodes.behaviour_log_prob, episodes.target_log_prob, episodes.steps).exp()


def _returns(
    returns_of: Callable[..., Tensor],
    episodes: Replayed,
    limits: Limits,
    target_log_prob: Float[Tensor, "B M"],
) -> Float[Tensor, "B M"]:
    return returns_of(
        episodes.behaviour_log_prob,
        target_log_prob,
        episodes.rewards,
        mask=episodes.steps,
        gamma=limits.discount,
    )


def _cut_returns(episodes: Replayed, limits: Limits) -> Float[Tensor, "B M"]:
    """Per decision, every ratio cut at ``rho_bar``."""
    most = episodes.behaviour_log_prob + math.log(limits.rho_bar)
    cut = torch.minimum(episodes.target_log_prob, most)
    return _returns(per_decision_returns, episodes, limits, cut)


def _weighted(
    episodes: Replayed,
    limits: Limits,
    weights: Float[Tensor, "B M"],
    returns: Float[Tensor, "B M"] | None = None,
    clipped: Bool[Tensor, "B M"] | None = None,
) -> Corrected:
    """With these returns, or with those that the critic learns from, in which ratios are cut."""
    cut = _cut_returns(episodes, limits)
    returns = cut if returns is None else returns
    moved = _ratios(episodes).clamp(max=limits.rho_bar) * (cut - episodes.values)
    return Corrected(
        (returns - episodes.values) * episodes.steps,
        weights * episodes.steps,
        (episodes.values + moved) * episodes.steps,
        torch.zeros_like(episodes.steps) if clipped is None else clipped & episodes.steps,
    )


Correction = Callable[[Replayed, Limits], Corrected]
CORRECTIONS: dict[str, Correction] = {
    "vtrace": by_vtrace,
    "per_decision": by_decision,
    "self_normalised": by_self_normalisation,
    "truncated": by_truncation,
}
"""Those that weigh merge sequences; ``tree`` weighs whole trees (see ``replay_reinforce.py``)."""

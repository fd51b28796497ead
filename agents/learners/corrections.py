"""Off-policy corrections: the policy's gradient from episodes that another policy made.

Each correction is one function of a batch of replayed episodes. The policy's gradient is then
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

from agents.learners.baselines import value_loss
from agents.likelihood.base import PolicyTerms
from agents.optim.ranks import Ranks
from agents.rollouts.rollout import Episodes, MergeTerms
from htm_env.types import TokenBatch
from replay import (
    Trajectories,
    effective_sample_size,
    log_ratios,
    per_decision_returns,
    prefix_log_weights,
    self_normalised_returns,
    self_normalised_weights,
    truncated_log_weights,
    vtrace,
)


class Replayed(NamedTuple):
    """A batch of stored episodes under the current autoencoder and the current policy."""

    behaviour_log_prob: Float[Tensor, "B M"]
    target_log_prob: Float[Tensor, "B M"]
    rewards: Float[Tensor, "B M"]
    values: Float[Tensor, "B M"]
    """The critic's, of the states before each merge."""
    steps: Bool[Tensor, "B M"]
    """True <--> a merge was made."""

    @property
    def log_ratios(self) -> Float[Tensor, "B M"]:
        """Log-ratios of the probability of every merge; 0 in padding."""
        return log_ratios(self.behaviour_log_prob, self.target_log_prob, self.steps)

    @property
    def log_prefixes(self) -> Float[Tensor, "B M"]:
        """Logarithms of the product of the ratios of every merge and all before it."""
        return prefix_log_weights(self.behaviour_log_prob, self.target_log_prob, self.steps)


class Corrected(NamedTuple):
    """Corrected targets of the policy and its critic; 0 in padding."""

    advantages: Float[Tensor, "B M"]
    weights: Float[Tensor, "B M"]
    targets: Float[Tensor, "B M"]
    """Targets of the critic's values; whatever the correction, every ratio in them is cut
    at ``rho_bar``, since one large target undoes a critic."""
    clipped: Bool[Tensor, "B M"]
    """True <--> a ratio was cut in what this merge weighs in the policy's gradient."""


class Limits(NamedTuple):
    """The bounds of a correction, and its horizon."""

    discount: float
    rho_bar: float
    c_bar: float
    lambda_: float
    trust: float = math.inf
    """Most that a probability may move from the behaviour policy's (see :func:`trusted`)."""


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
    clipped = episodes.log_ratios.exp() > limits.rho_bar
    return Corrected(found.advantages, found.rho, found.targets, clipped)


def by_decision(episodes: Replayed, limits: Limits) -> Corrected:
    """Per-decision importance sampling (Precup et al. 2000): unbiased, with any variance."""
    returns = _returns(per_decision_returns, episodes, limits, episodes.target_log_prob)
    return _weighted(episodes, limits, episodes.log_prefixes.exp(), returns)


def by_self_normalisation(episodes: Replayed, limits: Limits) -> Corrected:
    """The same with weights that average one over the batch: less variance, a vanishing bias."""
    prefixes = episodes.log_prefixes.masked_fill(~episodes.steps, -torch.inf)
    weights = self_normalised_weights(prefixes) * episodes.steps.sum(0) / len(prefixes)
    returns = _returns(self_normalised_returns, episodes, limits, episodes.target_log_prob)
    return _weighted(episodes, limits, weights, returns)


def by_truncation(episodes: Replayed, limits: Limits) -> Corrected:
    """Per-decision importance sampling whose weights are cut at ``rho_bar`` (Ionides 2008): those
    of a merge's past as a whole, and every ratio of what follows it."""
    prefixes = episodes.log_prefixes
    cut = truncated_log_weights(prefixes, limits.rho_bar)
    above = episodes.log_ratios.exp() > limits.rho_bar
    later = above.sum(1, keepdim=True) - above.cumsum(1)  # ratios above it that follow the merge
    return _weighted(episodes, limits, cut.exp(), clipped=(cut < prefixes) | (later > 0))


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
    moved = episodes.log_ratios.exp().clamp(max=limits.rho_bar) * (cut - episodes.values)
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
"""Those that weigh merge sequences; ``tree`` weighs whole trees (:func:`learn_trees`)."""


class Again(NamedTuple):
    """A batch of stored episodes under the autoencoder and the policy as they are now."""

    stored: Trajectories
    batch: TokenBatch
    episodes: Episodes
    rewards: Float[Tensor, "B M"]
    terms: PolicyTerms
    """The policy's, with gradients."""
    measured: MergeTerms
    """The same as numbers."""
    importance: Float[Tensor, "B"]
    """Weights that correct for the sampling of the buffer."""
    imitated: Bool[Tensor, "B"]
    """True <--> imitated, whatever it earned, instead of weighed."""


class OffPolicy(NamedTuple):
    """Result of an update from stored episodes; the gradients are accumulated."""

    losses: dict[str, Float[Tensor, ""]]
    advantages: Float[Tensor, "B"]
    """The mean absolute advantage of every episode, in units of the batch's."""
    weighed: dict[str, float]
    """Figures of weighed episodes, not imitated ones: effective sample size as a share of them, and
    the shares of merges (or trees) whose weight was cut, and that may move no further. Empty where
    all were imitated."""


# Schulman et al. (2017), "Proximal policy optimization algorithms", equation 7: where the clipped
# objective has no gradient. There the reference is the policy a rollout ago, here the one that made
# the stored episode. Without it, replays let the noise of a critic undo what was cloned before.
def trusted(
    log_ratio: Float[Tensor, "*batch"], advantages: Float[Tensor, "*batch"], trust: float
) -> Bool[Tensor, "*batch"]:
    """True <--> the probability may still move to where the advantage moves it.

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
    ranks: Ranks | None = None,
) -> OffPolicy:
    """By the ratio of the probabilities of the merges, one after the other.

    ``scaled`` brings advantages to the scale of a batch, given where there are any; ``ordered``
    says whether the order within a pair counts as a choice. ``ranks`` are the processes that learn
    together; this one alone if None.
    """
    stored, _, episodes, rewards, terms, measured, importance, imitated = again
    steps, values = episodes.steps, terms.values
    replayed = Replayed(
        stored.behaviour_log_prob, measured.log_prob, rewards, values.detach(), steps
    )
    corrected, log_ratio = correct(replayed, limits), replayed.log_ratios
    advantages = scaled(corrected.advantages, steps)
    moves = trusted(log_ratio, advantages, limits.trust)
    weighed = corrected.weights * advantages * moves
    signal = torch.where(imitated[:, None], 1.0, weighed) * steps
    nothing = torch.zeros_like(rewards[:, :1])
    losses = terms.backward(measured, signal * importance[:, None], nothing, ordered, generator)
    del losses["entropy"]  # nothing is paid for it here
    balance = 1.0 if ranks is None else ranks.balance(steps.sum())
    losses["value"] = value_loss(values, corrected.targets, steps, importance) * balance
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

    ``target_log_prob`` is that of the policy as it is now, with gradients. Of the limits,
    ``rho_bar`` and ``trust`` apply; the whole return counts as earned at the end.
    """
    log_weights = target_log_prob.detach() - again.stored.tree_log_prob
    weights = log_weights.exp().clamp(max=limits.rho_bar)
    start, importance = again.terms.values[:, 0], again.importance
    surprise = again.rewards.sum(1) - start.detach()
    advantages = scaled(surprise[:, None], torch.ones_like(again.episodes.steps[:, :1]))[:, 0]
    moves = trusted(log_weights, advantages, limits.trust)
    weighed = weights * advantages * moves
    signal = torch.where(again.imitated, 1.0, weighed)
    gone = start.detach() + weights * surprise
    losses = {
        "policy": -(importance * signal * target_log_prob).mean(),
        "value": (importance * (start - gone).square()).mean(),
        **again.terms.encoder_losses(generator),
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

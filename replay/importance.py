"""Off-policy corrections: estimates for one policy from the episodes of another.

All of them are functions of tensors and carry no gradient. Everywhere, ``behaviour_log_prob`` is
that of the policy ``mu`` that made the episodes and ``target_log_prob`` that of the policy ``pi``
to be evaluated, of the same actions. ``mask`` is True where a step was made; values of the other
steps have no influence, and their results are 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from htm_env.checks import at_least


class VTrace(NamedTuple):
    """The results of :func:`vtrace`; 0 in masked steps."""

    targets: Float[Tensor, "B T"]
    """``v_t``, what the value of state ``t`` should become."""
    advantages: Float[Tensor, "B T"]
    """``r_t + gamma v_{t+1} - V_t``; the policy gradient: ``rho_t * advantage_t * grad log pi``."""
    rho: Float[Tensor, "B T"]
    """``min(rho_bar, pi / mu)``."""


# Espeholt et al. (2018), "IMPALA: Scalable Distributed Deep-RL with Importance Weighted
# Actor-Learner Architectures", equation 1 and section 4.2. lambda: their remark 2.
@torch.no_grad()
def vtrace(
    behaviour_log_prob: Float[Tensor, "B T"],
    target_log_prob: Float[Tensor, "B T"],
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    bootstrap_value: Float[Tensor, "B"],
    *,
    mask: Bool[Tensor, "B T"] | None = None,
    gamma: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    lambda_: float = 1.0,
) -> VTrace:
    """V-trace targets, and the advantages of the policy gradient *before* they are weighted.

    ``values`` are those of states ``0 .. T-1``; ``bootstrap_value`` is that of the state behind an
    episode's last unmasked step (0 where the episode has ended).

    With ``rho_t = min(rho_bar, pi/mu)``, ``c_t = lambda min(c_bar, pi/mu)`` and
    ``delta_t = rho_t (r_t + gamma V_{t+1} - V_t)``::

        v_t = V_t + delta_t + gamma c_t (v_{t+1} - V_{t+1})

    ``rho_bar`` decides what is learned: the value of the policy proportional to
    ``min(rho_bar mu, pi)``; ``c_bar`` only how fast. ``math.inf`` does not clip: the targets are
    then unbiased for ``pi`` whatever the values.

    The behaviour policy comes *first* here. Beware when comparing: torchrl's
    ``vtrace_advantage_estimate`` takes ``log_pi`` before ``log_mu``, and its docstring swaps what
    the two mean.

    Raises ``ValueError`` for a negative ``gamma``, ``rho_bar``, ``c_bar`` or ``lambda_``.
    """
    at_least(0, gamma=gamma, rho_bar=rho_bar, c_bar=c_bar, lambda_=lambda_)
    mask = _mask(mask, rewards)
    ratio = log_ratios(behaviour_log_prob, target_log_prob, mask).exp()
    rho = ratio.clamp(max=rho_bar) * mask
    c = lambda_ * ratio.clamp(max=c_bar)
    targets, advantages = torch.zeros_like(values), torch.zeros_like(values)
    next_value, next_target = bootstrap_value, bootstrap_value
    for step in reversed(range(rewards.shape[1])):
        here, value = mask[:, step], values[:, step]
        error = rewards[:, step] + gamma * next_value - value
        advantage = rewards[:, step] + gamma * next_target - value
        target = value + rho[:, step] * error + gamma * c[:, step] * (next_target - next_value)
        targets[:, step] = target.where(here, 0.0)
        advantages[:, step] = advantage.where(here, 0.0)
        next_value, next_target = value.where(here, next_value), target.where(here, next_target)
    return VTrace(targets, advantages, rho)


@torch.no_grad()
def log_ratios(
    behaviour_log_prob: Float[Tensor, "B T"],
    target_log_prob: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """``log(pi / mu)`` of every step; 0 in masked ones."""
    return (target_log_prob - behaviour_log_prob).where(_mask(mask, target_log_prob), 0.0)


@torch.no_grad()
def prefix_log_weights(
    behaviour_log_prob: Float[Tensor, "B T"],
    target_log_prob: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """The logarithm of ``pi / mu`` of the episode up to and with step ``t``.

    It is the weight of ``grad log pi`` of that step in an off-policy gradient; the last column is
    the weight of the whole episode.
    """
    return log_ratios(behaviour_log_prob, target_log_prob, mask).cumsum(dim=1)


# Precup, Sutton and Singh (2000), "Eligibility Traces for Off-Policy Policy Evaluation", section 3.
@torch.no_grad()
def per_decision_returns(
    behaviour_log_prob: Float[Tensor, "B T"],
    target_log_prob: Float[Tensor, "B T"],
    rewards: Float[Tensor, "B T"],
    *,
    mask: Bool[Tensor, "B T"] | None = None,
    gamma: float = 1.0,
) -> Float[Tensor, "B T"]:
    """The return that follows every action, each reward weighted by the decisions before it.

    ``G_t = r_t + gamma (pi/mu)_{t+1} G_{t+1}``: unbiased for ``Q(s_t, a_t)`` of the target policy,
    and ``(pi/mu)_t G_t`` for ``V(s_t)``. At ``pi = mu`` these are the discounted returns.
    """
    mask = _mask(mask, rewards)
    ratio = log_ratios(behaviour_log_prob, target_log_prob, mask).exp()
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))  # (pi/mu)_{t+1} G_{t+1}
    for step in reversed(range(rewards.shape[1])):
        here = mask[:, step]
        now = rewards[:, step] + gamma * following
        returns[:, step] = now.where(here, 0.0)
        following = (ratio[:, step] * now).where(here, following)
    return returns


# The weighted estimator of the same paper; normalised at each step as in Thomas (2015), "Safe
# Reinforcement Learning", section 3.10 (consistent weighted per-decision importance sampling).
@torch.no_grad()
def self_normalised_returns(
    behaviour_log_prob: Float[Tensor, "B T"],
    target_log_prob: Float[Tensor, "B T"],
    rewards: Float[Tensor, "B T"],
    *,
    mask: Bool[Tensor, "B T"] | None = None,
    gamma: float = 1.0,
) -> Float[Tensor, "B T"]:
    """As :func:`per_decision_returns`, with weights that average one over the batch.

    The weight of the reward at ``k`` in the return from ``t`` is divided by the mean of these
    weights over the episodes that have a step ``k``. That bounds it by the batch size, at the price
    of a bias that vanishes as the batch grows. Costs ``O(T)`` times as much.

    How long an episode is must not depend on its actions (here it depends on the sample alone).
    """
    mask = _mask(mask, rewards)
    log_ratio = log_ratios(behaviour_log_prob, target_log_prob, mask)
    returns = torch.zeros_like(rewards)
    since = torch.zeros_like(rewards)  # column t: log-weight of the decisions t+1 .. k
    for step in range(rewards.shape[1]):
        since[:, :step] += log_ratio[:, step, None]
        here = mask[:, step, None]
        weights = self_normalised_weights(since[:, : step + 1].masked_fill(~here, -math.inf))
        weights = weights * here.sum() / len(mask)  # the mean over those that have this step
        discounts = gamma ** torch.arange(step, -1, -1).to(rewards)
        earned = weights * discounts * rewards[:, step, None]
        returns[:, : step + 1] += earned.where(here, 0.0)
    return returns * mask


@torch.no_grad()
def self_normalised_weights(log_weights: Float[Tensor, "N *rest"]) -> Float[Tensor, "N *rest"]:
    """``w_i / mean(w)`` along the first axis: weights that average one. Zero where all are zero."""
    return log_weights.softmax(dim=0).nan_to_num(0.0) * len(log_weights)


# Ionides (2008), "Truncated Importance Sampling", J. of Computational and Graphical Statistics 17.
@torch.no_grad()
def truncated_log_weights(
    log_weights: Float[Tensor, "N *rest"], limit: float | None = None
) -> Float[Tensor, "N *rest"]:
    """``log min(w, limit)``; by default the paper's ``sqrt(N)``, in units of the mean weight.

    Biased towards zero, with a variance that is finite. The mean is taken along the first axis.
    Raises ``ValueError`` for a ``limit`` that is not positive.
    """
    if limit is not None:
        if not limit > 0:
            raise ValueError(f"limit is {limit}; expected more than 0")
        return log_weights.clamp(max=math.log(limit))
    count = len(log_weights)
    log_mean = log_weights.logsumexp(dim=0, keepdim=True) - math.log(max(1, count))
    return torch.minimum(log_weights, log_mean + math.log(max(1, count)) / 2)


# Kong (1992), "A note on importance sampling using standardized weights".
@torch.no_grad()
def effective_sample_size(log_weights: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """``(sum w)^2 / sum(w^2)``, in [1, N], for weights of any size.

    Raises ``ValueError`` for no weights at all, nan or infinite ones, or only zero ones.
    """
    largest = log_weights.max() if len(log_weights) else torch.tensor(math.nan)
    if not largest.isfinite():
        raise ValueError(
            f"the largest of {len(log_weights)} log-weights is {float(largest)}; expected at least "
            "one, and a finite one"
        )
    shares = log_weights.double().softmax(dim=0)
    size = 1 / shares.square().sum()
    return size.clamp(1, len(log_weights)).to(log_weights.dtype)


def _mask(mask: Bool[Tensor, "B T"] | None, like: Float[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask

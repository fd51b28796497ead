"""Choosing a pair by its score: sampling, log-probability, entropy, and their gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

TINY = 1e-30
"""Below every probability that matters; keeps the logarithm of an illegal pair's finite."""


class Choices(NamedTuple):
    """The distribution over the ordered pairs of each sample."""

    probability: Float[Tensor, "R W W"]
    log_choice: Float[Tensor, "R W W"]
    """Log-probability of the choice that the pair belongs to: itself, or both of its orders."""
    log_total: Float[Tensor, "R"]
    """Logarithm of the sum of the exponentials of the scores."""
    entropy: Float[Tensor, "R"]
    """In nats."""


def choices(scores: Float[Tensor, "R W W"], ordered: bool) -> Choices:
    """``ordered`` counts ``(i, j)`` and ``(j, i)`` as two choices; otherwise they are one.

    Which tokens to merge is then worth exploring, which of them comes first is not.
    """
    probability, best = pair_weights(scores)
    total = probability.sum(dim=(1, 2), keepdim=True)
    probability /= total
    choice = probability if ordered else probability + probability.transpose(1, 2)
    log_choice = choice.clamp_min(TINY).log_()
    entropy = -torch.linalg.vecdot(probability.flatten(1), log_choice.flatten(1))
    return Choices(probability, log_choice, (best + total.log())[:, 0, 0], entropy)


def pair_weights(
    scores: Float[Tensor, "R W W"],
) -> tuple[Float[Tensor, "R W W"], Float[Tensor, "R 1 1"]]:
    """Weights proportional to the probabilities, the largest 1, and the score of the largest."""
    best = scores.amax(dim=(1, 2), keepdim=True)
    return (scores - best).exp_(), best


def choose_pairs(
    weights: Float[Tensor, "R W W"], generator: torch.Generator, greedy: bool
) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"], Float[Tensor, "R"]]:
    """An ordered pair of positions a sample, drawn by weight, and its log-probability.

    Sampled in two stages, the first position and then the second given the first, so that a step
    draws ``2 W`` random numbers a sample instead of ``W^2``.
    """
    rows = torch.arange(len(weights), device=weights.device)
    by_first = weights.sum(2)
    if greedy:
        pair, width = weights.flatten(1).argmax(1), weights.shape[2]
        first, second = pair // width, pair % width
    else:
        first = torch.multinomial(by_first, 1, generator=generator).squeeze(1)
        second = torch.multinomial(weights[rows, first], 1, generator=generator).squeeze(1)
    return first, second, (weights[rows, first, second] / by_first.sum(1)).log()


def most_entropy(num_active: Int64[Tensor, "*batch"], ordered: bool) -> Float[Tensor, "*batch"]:
    """The entropy of choosing uniformly, in nats; 1 where there is only one choice."""
    pairs = num_active * (num_active - 1) // (1 if ordered else 2)
    return torch.where(pairs > 1, pairs.clamp(min=2).log(), 1.0)


def score_gradient(
    distribution: Choices,
    advantage: Float[Tensor, "R"],
    entropy_price: Float[Tensor, "R"],
    first: Int64[Tensor, "R"],
    second: Int64[Tensor, "R"],
) -> Float[Tensor, "R W W"]:
    """``d/dscores [- advantage * log p(first, second) + entropy_price * entropy]``, in closed form.

    The gradient of ``log p(a)`` is ``1[a] - p``; that of the entropy is ``- p (log q + H)``, with
    ``q`` the probability of the choice that the pair belongs to.
    """
    price = entropy_price[:, None, None]
    slope = advantage[:, None, None] - price * distribution.entropy[:, None, None]
    gradient = torch.addcmul(slope, -price, distribution.log_choice) * distribution.probability
    gradient[torch.arange(len(first), device=first.device), first, second] -= advantage
    return gradient


def add_log_prob_gradient(
    gradient: Float[Tensor, "R W W"],
    scores: Float[Tensor, "R W W"],
    advantage: Float[Tensor, "R"],
    first: Int64[Tensor, "R"],
    second: Int64[Tensor, "R"],
    ordered: bool,
) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"]]:
    """Add ``d/dscores [- advantage * log p(first, second)]`` to ``gradient``, in place.

    What :func:`score_gradient` gives where entropy has no price, in a third of the time: nothing is
    computed of pairs that were not chosen but their weight. Returns ``log p(first, second)`` and
    the log-probability of the choice that the pair belongs to, whose mean over choices that the
    policy drew is minus its entropy.
    """
    rows = torch.arange(len(first), device=first.device)
    weights, _ = pair_weights(scores)
    total = weights.sum(dim=(1, 2))
    gradient.addcmul_(weights, (advantage / total)[:, None, None])
    gradient[rows, first, second] -= advantage
    pair = weights[rows, first, second]
    choice = pair if ordered else pair + weights[rows, second, first]
    return (pair / total).clamp_min(TINY).log(), (choice / total).clamp_min(TINY).log()

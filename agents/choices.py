"""Choosing a pair by its score: sampling, log-probability and entropy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from replay.exponential import weights_of

TINY = 1e-30
"""Below every probability that matters; keeps the logarithm of an illegal pair's finite."""


class Choices(NamedTuple):
    """The distribution over the ordered pairs of each sample; a token's are a row."""

    probability: Float[Tensor, "R W C"]
    entropy: Float[Tensor, "R"]
    """In nats."""


def choices(scores: Float[Tensor, "R W C"], ordered: bool) -> Choices:
    """Of the scores of every token with all others (C = W), or with its candidates (C = k).

    ``ordered`` counts ``(i, j)`` and ``(j, i)`` as two choices. Otherwise they are one, which needs
    all pairs: which tokens to merge is then worth exploring, which of them comes first is not.
    """
    probability = pair_weights(scores)
    probability /= probability.sum(dim=(1, 2), keepdim=True)
    choice = probability if ordered else probability + probability.transpose(1, 2)
    log_choice = choice.clamp_min(TINY).log_()
    entropy = -torch.linalg.vecdot(probability.flatten(1), log_choice.flatten(1))
    return Choices(probability, entropy)


def pair_weights(scores: Float[Tensor, "R W C"]) -> Float[Tensor, "R W C"]:
    """Weights proportional to the probabilities, the largest 1."""
    return weights_of(scores - scores.amax(dim=(1, 2), keepdim=True))


def choose_pairs(
    weights: Float[Tensor, "R W C"], generator: torch.Generator, greedy: bool
) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"], Float[Tensor, "R"]]:
    """A row and a column of the weights a sample, drawn by weight, and its log-probability.

    Sampled in two stages, the first position and then the second given the first, so that a step
    draws ``2 W`` random numbers a sample instead of ``W^2``.
    """
    rows = torch.arange(len(weights), device=weights.device)
    by_first = weights.sum(2)
    if greedy:
        pair, width = weights.flatten(1).argmax(1), weights.shape[2]
        first, second = pair // width, pair % width
    else:
        first = _drawn(by_first, generator)
        second = _drawn(weights[rows, first], generator)
    return first, second, (weights[rows, first, second] / by_first.sum(1)).log()


def _drawn(weights: Float[Tensor, "R C"], generator: torch.Generator) -> Int64[Tensor, "R"]:
    """A column a row, by weight: of clocks with these rates, the one that rings first.

    What ``torch.multinomial`` does, without its checks, which take longer than the draw.
    """
    clocks = torch.empty_like(weights).exponential_(generator=generator)
    return weights.div(clocks).argmax(1)


def most_entropy(num_active: Int64[Tensor, "*batch"], ordered: bool) -> Float[Tensor, "*batch"]:
    """The entropy of choosing uniformly, in nats; 1 where there is only one choice."""
    pairs = num_active * (num_active - 1) // (1 if ordered else 2)
    return torch.where(pairs > 1, pairs.clamp(min=2).log(), 1.0)

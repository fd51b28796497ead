"""Choosing a pair by its score: sampling, log-probability and entropy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

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
    probability = probabilities(scores)
    choice = probability if ordered else probability + probability.transpose(1, 2)
    log_choice = choice.clamp_min(TINY).log_()
    entropy = -torch.linalg.vecdot(probability.flatten(1), log_choice.flatten(1))
    return Choices(probability, entropy)


def probabilities(scores: Float[Tensor, "R W C"]) -> Float[Tensor, "R W C"]:
    """Of all pairs of a sample together; exactly 0 where they are too small to matter.

    Numbers so small that they are no normal ones would make everything that follows slow.
    """
    probability = scores.flatten(1).softmax(1)
    return torch.nn.functional.threshold(probability, TINY, 0.0, inplace=True).view_as(scores)


def choose_pairs(
    probability: Float[Tensor, "R W C"], generator: torch.Generator, greedy: bool
) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"], Float[Tensor, "R"]]:
    """A row and a column a sample, drawn by probability, and its logarithm.

    Sampled in two stages, the first position and then the second given the first, so that a step
    draws ``2 W`` random numbers a sample instead of ``W^2``.
    """
    rows = torch.arange(len(probability), device=probability.device)
    if greedy:
        pair, width = probability.flatten(1).argmax(1), probability.shape[2]
        first, second = pair // width, pair % width
    else:
        first = _drawn(probability.sum(2), generator)
        second = _drawn(probability[rows, first], generator)
    return first, second, probability[rows, first, second].log()


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

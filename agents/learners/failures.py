"""Samples that a policy fails, though it is sure of itself: a better tree is found, and imitated.

Policy gradients learn nothing from a failure that is made every time. All trees of the sample are
the same one, so none is better than another; and the gradient of a choice whose probability is 1 is
0 anyway. So the sample is merged again with one *deviation*: at one merge the second, third, ...
best pair is taken, and the best one everywhere else. If a tree of these is much better, that one
choice is imitated, whose gradient does not vanish. (Imitating what a search found better: Anthony,
Tian and Barber 2017, "Thinking fast and slow with deep learning and tree search"; own episodes that
went better than expected: Oh et al. 2018, "Self-imitation learning".)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.rollouts.deviation import Deviation
from agents.rollouts.rollout import Rollout
from htm_env.types import TokenBatch

RANKS = 5
"""Pairs that are tried at a merge, the second best first."""
MOST_SAMPLES, MOST_TREES = 4, 256
"""That are searched for in an update, and that are made."""
MUCH_BETTER = 0.1
"""The error of a tree that is imitated, over that of the failure, at most."""


class Lesson(NamedTuple):
    """Better trees, and the merge of each that made it better."""

    batch: TokenBatch
    episodes: Rollout
    step: Int64[Tensor, "B"]


def failures(errors: Float[Tensor, "S"], factor: float) -> Int64[Tensor, "F"]:
    """The samples with the largest errors, of those above ``factor`` times the median."""
    bad = (errors > factor * errors.median()) & errors.isfinite()
    largest = errors.where(bad, 0.0).topk(min(MOST_SAMPLES, len(errors)))
    return largest.indices[largest.values > 0]


def deviations(
    num_tokens: Int64[Tensor, "F"], generator: torch.Generator
) -> tuple[Int64[Tensor, "D"], Deviation]:
    """Which sample deviates where: every merge and rank of all, or as many as may be made."""
    steps = torch.arange(int(num_tokens.max()) - 1, device=num_tokens.device)
    ranks = torch.arange(1, RANKS + 1, device=num_tokens.device)
    sample = torch.arange(len(num_tokens), device=num_tokens.device)
    sample, step, rank = torch.cartesian_prod(sample, steps, ranks).unbind(1)
    order = torch.randperm(len(sample), generator=generator, device=generator.device)
    order = order.to(sample.device)
    order = order[step[order] < num_tokens[sample[order]] - 1][:MOST_TREES].sort().values
    return sample[order], Deviation(step[order], rank[order])


def lesson(
    batch: TokenBatch,
    errors: Float[Tensor, "F"],
    roll: Callable[[TokenBatch, Deviation], Rollout],
    errors_of: Callable[[TokenBatch, Rollout], Float[Tensor, "D"]],
    generator: torch.Generator,
) -> Lesson | None:
    """What can be learned from failures with these errors; None where nothing much better was
    found."""
    sample, deviation = deviations(batch.num_tokens, generator)
    tried = batch.rows(sample)
    episodes = roll(tried, deviation)
    found = errors_of(tried, episodes).nan_to_num(torch.inf)
    best = torch.full_like(errors, torch.inf).scatter_reduce_(0, sample, found, "amin")
    better = (found == best[sample]) & (found <= MUCH_BETTER * errors[sample])
    rows = better.nonzero()[:, 0]
    if not len(rows):
        return None
    return Lesson(tried.rows(rows), episodes.rows(rows), deviation.step[rows])

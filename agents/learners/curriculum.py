"""Curricula: begin with few merges, or with small populations."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from htm_env.datasets import Dataset
from htm_env.types import TokenBatch

DRAWS = 8
"""How often small samples are looked for before larger ones are taken as well."""


def merges_to_make(
    num_tokens: Int64[Tensor, "B"], progress: float, share: float
) -> Int64[Tensor, "B"]:
    """The merges of each episode: from one to ``n - 1`` over the first ``share`` of the budget."""
    everything = num_tokens - 1
    if progress >= share:
        return everything
    return (everything * (progress / share)).ceil().long().clamp(min=1)


def sample_up_to(
    dataset: Dataset, batch: int, generator: torch.Generator, progress: float, share: float
) -> TokenBatch:
    """A batch whose populations grow from two tokens to the largest over ``share`` of the budget.

    Of several draws, the samples within the limit are kept, then the smallest of the others: data
    whose samples are all alike is not changed.
    """
    if progress >= share:
        return dataset.sample(batch, generator)
    limit = math.ceil(2 + (dataset.max_tokens - 2) * progress / share)
    drawn = dataset.sample(batch * DRAWS, generator)
    excess = (drawn.num_tokens - limit).clamp(min=0)
    return drawn.rows(excess.argsort(stable=True)[:batch])

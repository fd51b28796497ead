"""Curricula: few merges at first, or small populations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from htm_env.datasets import Dataset
from htm_env.types import TokenBatch

DRAWS = 8
"""Draws in which small samples are searched for before larger ones are taken as well."""


@dataclass(frozen=True)
class Curriculum:
    """Episodes and samples that grow over the first part of the budget."""

    merges_share: float = 0.0
    """Share of the budget over which episodes grow from one merge to all of them."""
    population_share: float = 0.0
    """Share of the budget over which samples grow from two tokens to the largest number."""

    def num_merges(self, num_tokens: Int64[Tensor, "B"], progress: float) -> Int64[Tensor, "B"]:
        """The merges to make in each episode, from 1 to ``n - 1``."""
        everything = num_tokens - 1
        if progress >= self.merges_share:
            return everything
        return (everything * (progress / self.merges_share)).ceil().long().clamp(min=1)

    def sample(
        self, dataset: Dataset, batch: int, generator: torch.Generator, progress: float
    ) -> TokenBatch:
        """A batch of ``batch`` samples.

        Of several draws, the samples within the limit are kept, then the smallest of the others:
        data whose samples are all alike is not changed.
        """
        if progress >= self.population_share:
            return dataset.sample(batch, generator)
        limit = math.ceil(2 + (dataset.max_tokens - 2) * progress / self.population_share)
        drawn = dataset.sample(batch * DRAWS, generator)
        excess = (drawn.num_tokens - limit).clamp(min=0)
        return drawn.rows(excess.argsort(stable=True)[:batch])

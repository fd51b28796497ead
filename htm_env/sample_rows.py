"""Which rows of a batch are trees of one sample: they share leaves and first merges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.types import TokenBatch


@dataclass(frozen=True)
class SampleRows:
    """Neighbouring rows with the same tokens."""

    first_row: Int64[Tensor, "B"]
    """The first of the neighbours that have the sample of each row."""

    @classmethod
    def of(cls, batch: TokenBatch) -> SampleRows:
        """Every row is compared with the one before it."""
        tokens, present = batch.tokens, batch.present
        new = torch.ones_like(present[:, 0])
        new[1:] = (tokens[1:] != tokens[:-1]).flatten(1).any(1)
        new[1:] |= (present[1:] != present[:-1]).any(1)
        rows = torch.arange(len(new), device=new.device)
        return cls(torch.where(new, rows, 0).cummax(0).values)

    @cached_property
    def begins(self) -> Bool[Tensor, "B"]:
        """True <--> the row before has another sample."""
        rows = torch.arange(len(self.first_row), device=self.first_row.device)
        return self.first_row == rows

    @cached_property
    def first_rows(self) -> Int64[Tensor, "S"]:
        """One row for each sample."""
        return self.begins.nonzero()[:, 0]

    def spread(self, values: Float[Tensor, "S ..."]) -> Float[Tensor, "B ..."]:
        """Its sample's values for every row; the argument itself where no row shares its sample."""
        if len(values) == len(self.first_row):
            return values
        return values.index_select(0, self.begins.cumsum(0) - 1)

    def repeated(
        self, merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
    ) -> Bool[Tensor, "B N"]:
        """True <--> the first row with that sample has the same node in the same place.

        These are the leaves, and what was merged before the first merge that is another one.
        """
        alike = ((merges == merges[self.first_row]) & (merges >= 0)).all(2)
        common = num_leaves + alike.cumprod(1).sum(1)
        nodes = torch.arange(2 * merges.shape[1] + 1, device=merges.device)
        return (nodes < common[:, None]) & ~self.begins[:, None]

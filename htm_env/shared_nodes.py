"""What several trees of one sample share: their leaves and first merges, which are done once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.types import TokenBatch


class SharedNodes(NamedTuple):
    """Which rows of a batch are trees of the same sample: neighbours with the same tokens."""

    first: Int64[Tensor, "S"]
    """The first row of each sample."""
    sample: Int64[Tensor, "B"]
    """The sample of each row."""

    @classmethod
    def of(cls, batch: TokenBatch) -> SharedNodes:
        """Of these rows."""
        tokens, present = batch.tokens, batch.present
        new = torch.ones_like(present[:, 0])
        new[1:] = (tokens[1:] != tokens[:-1]).flatten(1).any(1)
        new[1:] |= (present[1:] != present[:-1]).any(1)
        return cls(new.nonzero()[:, 0], new.cumsum(0) - 1)

    def spread(self, values: Float[Tensor, "S ..."]) -> Float[Tensor, "B ..."]:
        """A copy of its sample's values for every row."""
        return values.index_select(0, self.sample)

    @property
    def same(self) -> Int64[Tensor, "B"]:
        """The first row with the sample of each row."""
        return self.first[self.sample]

    def repeated(
        self, merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
    ) -> Bool[Tensor, "B N"]:
        """True <--> the first row with that sample has the same node in the same place.

        These are the leaves, and what was merged before the first merge that is another one.
        """
        same, nodes = self.same, torch.arange(2 * merges.shape[1] + 1, device=merges.device)
        alike = ((merges == merges[same]) & (merges >= 0)).all(2)
        common = num_leaves + alike.cumprod(1).sum(1)
        later = same != torch.arange(len(same), device=same.device)
        return (nodes < common[:, None]) & later[:, None]

"""What a pair scorer has to know of the nodes of episodes: every node is looked at once."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from agents.networks.base import Features, NodePolicy
from agents.rollouts.rollout import Rollout
from htm_env.types import SampleRows, TokenBatch


class NodeFeatures:
    """Of all nodes of episodes of these samples, row by row; with gradients.

    Padding is not looked at, and what several trees of a sample share only once: their embeddings
    must be one function of tokens and merges. (On CUDA the gradients of three trees and more are
    summed in no fixed order.)
    """

    def __init__(self, policy: NodePolicy, batch: TokenBatch, episodes: Rollout) -> None:
        rows, counts = SampleRows.of(batch), episodes.leaf_counts
        repeated = rows.repeated(episodes.merges, episodes.num_leaves)
        looked_at = (counts > 0) & ~repeated
        place = (looked_at.flatten().cumsum(0) - 1).view(counts.shape)
        nodes = looked_at.flatten().nonzero()[:, 0]
        self.place = torch.where(repeated, place[rows.first_row], place)
        """(B, N) where every node's are; where there is no node, those of one that is there."""
        self.known: Features = policy.features(
            episodes.nodes.flatten(0, 1)[nodes], counts.flatten()[nodes]
        )
        """Of the nodes that were looked at, in one axis."""

    @cached_property
    def first(self) -> Float[Tensor, "B N H"]:
        """What a score needs of each node when it comes first in a pair."""
        return self._table(self.known.first)

    @cached_property
    def second(self) -> Float[Tensor, "B N H"]:
        """... and when it comes second."""
        return self._table(self.known.second)

    @cached_property
    def pooled(self) -> Float[Tensor, "B N V"]:
        """What is averaged over the nodes of a state for its value."""
        return self._table(self.known.pooled)

    def _table(self, values: Float[Tensor, "R F"]) -> Float[Tensor, "B N F"]:
        if len(values) < self.place.numel():
            values = values.index_select(0, self.place.flatten())
        return values.unflatten(0, self.place.shape)

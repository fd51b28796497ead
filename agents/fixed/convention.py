"""Conventions: orders drawn at random, of which one may suit the data.

A convention is what many fixed orders are, with its numbers drawn: the nearest two tokens are
merged, in a metric in which some coordinates count more than others and larger tokens lie farther
away, and of a pair the one that lies first along some direction comes first. It was written for no
data; which one an autoencoder learns well is found by successive halving
(:class:`agents.learners.imitation.Halving`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.fixed.linkage import centroid_update, linked
from agents.fixed.order import TIE, pairs_of_centroids, turned
from agents.fixed.slot_trees import in_slots
from htm_env.autoencoder import TreeEncoder
from htm_env.types import TokenBatch

SPREAD = 1.5
"""Standard deviation of the logarithm of a coordinate's weight."""
PRICES = (0.01, 100.0)
"""Limits of the price of a token, in squared standard deviations of coordinates: the logarithm is
uniform between them, so that nothing, or everything, may depend on size."""


@dataclass(frozen=True)
class Convention:
    """The convention of a number, the seed that it is drawn from; the same for all samples."""

    seed: int

    def __call__(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        """One tree a sample; the pairs are in no order that means anything."""
        weights, direction, price = self.drawn(batch.tokens.shape[-1])
        tokens = autoencoder.standardise(batch.tokens).double()
        # Along the direction, so that where distances tie no tree depends on the slots.
        places = (tokens @ direction.to(tokens)).masked_fill(~batch.present, torch.inf)
        order = places.argsort(dim=1, stable=True)
        rows = torch.arange(len(order), device=order.device)[:, None]
        weighted = (tokens * weights.to(tokens))[rows, order]
        distances = (weighted[:, :, None] - weighted[:, None]).square().sum(dim=-1)
        present = batch.present[rows, order]
        merges = linked(distances, present, centroid_update, price)
        return in_slots(merges, order, batch.num_tokens)

    def drawn(self, token_dim: int) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"], float]:
        """Its weights of the coordinates, the direction of its order, and the price of a token."""
        generator = torch.Generator().manual_seed(self.seed)
        weights, direction, sizes = torch.randn(3, token_dim, generator=generator)
        low, high = (math.log(price) for price in PRICES)
        price = math.exp(low + (high - low) * float(torch.rand((), generator=generator)))
        return (SPREAD * weights).exp(), direction * (SPREAD * sizes).exp(), price

    def order(
        self,
        merges: Int64[Tensor, "B M 2"],
        batch: TokenBatch,
        autoencoder: TreeEncoder,
        generator: torch.Generator,
    ) -> Int64[Tensor, "B M 2"]:
        """The child first whose centroid lies first along the direction."""
        centroids = pairs_of_centroids(merges, batch, autoencoder)
        direction = self.drawn(batch.tokens.shape[-1])[1]
        first, second = (centroids @ direction.to(centroids)).unbind(-1)
        return turned(merges, first > second + TIE)

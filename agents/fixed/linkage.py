"""Agglomerative clustering of the standardised coordinates: nearest centroids, average, Ward.

Each is scipy's ``linkage`` of that method (``nearest``: ``"centroid"``), merge by merge, for a
whole batch at once: scipy takes one sample a call, which costs more than the clustering of it.
``even`` is this project's: it looks at sizes before distances, so all samples of one size get
trees of one shape, which an autoencoder learns far better than a mixture of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.fixed.agglomeration import agglomerate
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch

SIZE = 1e6
"""Distance that one token more is worth where sizes go first: far above any squared distance of
standardised coordinates, and in double precision those still count to ten digits behind it."""

Update = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Distances from the parent, of those of its children ``(B, P)``, of the two ``(B, 1)``, and of the
token counts of both children ``(B, 1)`` and of all nodes ``(B, P)``."""


@dataclass(frozen=True)
class Linkage:
    """Merges the two clusters that are nearest, by the update of Lance and Williams (1967)."""

    update: Update
    squared: bool
    """True <--> the update is one of squared Euclidean distances."""
    smallest_first: bool = False
    """True <--> the pair with the fewest tokens is merged; distances decide where sizes tie."""

    def __call__(
        self, batch: TokenBatch, autoencoder: HTMAutoencoder, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        """One tree a sample; the pairs are in no order that means anything."""
        # Double precision: the updates subtract, and near ties should fall as they do in scipy.
        tokens = autoencoder.standardise(batch.tokens).double()
        distances = (tokens[:, :, None] - tokens[:, None]).square().sum(dim=-1)  # (B, P, P)
        if not self.squared:
            distances = distances.sqrt()
        rows = torch.arange(len(tokens), device=tokens.device)
        counts = batch.present.double()
        step = SIZE if self.smallest_first else 0.0
        sizes = step * (counts[:, :, None] + counts[:, None])  # (B, P, P)

        def joined(current: Tensor, first: Tensor, second: Tensor) -> Tensor:
            count_first, count_second = counts[rows, first], counts[rows, second]
            # Without the sizes, which the update would mix.
            to_first = current[rows, first] - sizes[rows, first]
            new = self.update(
                to_first,
                current[rows, second] - sizes[rows, second],
                to_first[rows, second][:, None],
                count_first[:, None],
                count_second[:, None],
                counts,
            )
            counts[rows, first] = count_first + count_second
            together = step * (counts[rows, first][:, None] + counts)
            sizes[rows, first], sizes[rows, :, first] = together, together
            return new + together

        return agglomerate(distances + sizes, batch, joined)


def centroid_update(
    to_first: Float[Tensor, "B P"],
    to_second: Float[Tensor, "B P"],
    between: Float[Tensor, "B 1"],
    first: Float[Tensor, "B 1"],
    second: Float[Tensor, "B 1"],
    others: Float[Tensor, "B P"],
) -> Float[Tensor, "B P"]:
    """Squared distance of centroids; a parent can be nearer to others than its children were."""
    both = first + second
    return (first * to_first + second * to_second - first * second / both * between) / both


def average_update(
    to_first: Float[Tensor, "B P"],
    to_second: Float[Tensor, "B P"],
    between: Float[Tensor, "B 1"],
    first: Float[Tensor, "B 1"],
    second: Float[Tensor, "B 1"],
    others: Float[Tensor, "B P"],
) -> Float[Tensor, "B P"]:
    """Mean distance of the tokens of one cluster to those of the other."""
    return (first * to_first + second * to_second) / (first + second)


def ward_update(
    to_first: Float[Tensor, "B P"],
    to_second: Float[Tensor, "B P"],
    between: Float[Tensor, "B 1"],
    first: Float[Tensor, "B 1"],
    second: Float[Tensor, "B 1"],
    others: Float[Tensor, "B P"],
) -> Float[Tensor, "B P"]:
    """Twice the variance, summed over tokens, that merging the two clusters adds (Ward 1963)."""
    grown = (first + others) * to_first + (second + others) * to_second - others * between
    return grown / (first + second + others)


nearest_tree = Linkage(centroid_update, squared=True)
average_tree = Linkage(average_update, squared=False)
even_tree = Linkage(centroid_update, squared=True, smallest_first=True)
ward_tree = Linkage(ward_update, squared=True)

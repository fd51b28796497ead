"""Agglomerative clustering: of the standardised coordinates by nearest centroids, average or Ward,
by the least distance between the things that the tokens stand for, and by what recurs.

Each is scipy's ``linkage`` of that method (``nearest``: ``"centroid"``), merge by merge, for a
whole batch at once: scipy takes one sample a call, which costs more than the clustering of it.
``even`` is this project's: it compares sizes before distances, so all samples of one size get
trees of one shape, which an autoencoder learns far better than a mixture of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from agents.fixed.slot_trees import in_slots, only_real, sorted_slots
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset
from htm_env.datasets.kinds import polyline_distances
from htm_env.forest import legal_pairs
from htm_env.types import NONE, TokenBatch

Joined = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``joined(distances (B, P, P), first (B,), second (B,)) -> (B, P)``: from the parent to all."""

FEW = 256
"""Slots up to which reading all distances is as fast as finding those that changed."""
PAIRS = 2**24
"""Distances that are held at a time, or those of one sample."""
UNKNOWN = 1e30
"""Replaces a distance that is not a number: farthest of all, but still a legal pair."""


def agglomerate(
    distances: Float[Tensor, "B P P"],
    present: Bool[Tensor, "B P"],
    joined: Joined,
    turn: torch.Generator | None = None,
) -> Int64[Tensor, "B M 2"]:
    """Merge the pair with the smallest of the symmetric ``distances`` until one root is left.

    The parent takes the place of the first of the pair, which is the one in the lower place unless
    a generator is given: then each pair is turned with probability 1/2 *before* ``joined`` sees it.
    The leaves are numbered in the order of the slots that are present, which need not be the first
    ones.
    Each step reads all distances of few slots, ``O(P^3)`` a sample; of many only those of the rows
    whose nearest was one of the pair, which are few, and mostly ``O(P^2)`` a sample.
    """
    samples, slots, _ = distances.shape
    num_leaves, device = present.sum(dim=1), distances.device
    rows = torch.arange(samples, device=device)
    active = present.clone()
    distances = _known(distances).masked_fill(~legal_pairs(active), torch.inf)
    nodes = present.cumsum(dim=1) - 1
    merges = nodes.new_full((samples, slots - 1, 2), NONE)
    coins = None
    if turn is not None:
        coins = torch.rand(slots - 1, samples, generator=turn, device=turn.device).to(device) < 0.5
    least = distances.amin(dim=2)  # many times faster than an argmin of the same values
    for step in range(slots - 1):
        first = least.argmin(dim=1)
        second = distances[rows, first].argmin(dim=1)
        if coins is not None:
            coin = coins[step]
            first, second = torch.where(coin, second, first), torch.where(coin, first, second)
        merges[:, step, 0], merges[:, step, 1] = nodes[rows, first], nodes[rows, second]
        nodes[rows, first] = num_leaves + step
        active[rows, second] = False
        new = _known(joined(distances, first, second)).masked_fill(~active, torch.inf)
        new[rows, first] = torch.inf
        gone = distances[rows, first], distances[rows, second]
        distances[rows, second], distances[rows, :, second] = torch.inf, torch.inf
        distances[rows, first], distances[rows, :, first] = new, new
        if slots <= FEW:
            least = distances.amin(dim=2)
            continue
        stale = active & ((least == gone[0]) | (least == gone[1]))
        stale[rows, first] = True
        least = least.minimum(new)
        least[rows, second] = torch.inf
        row, slot = stale.nonzero(as_tuple=True)
        least[row, slot] = distances[row, slot].amin(dim=1)
    return only_real(merges, num_leaves)


def _known(distances: Tensor) -> Tensor:
    return distances.nan_to_num(nan=UNKNOWN, posinf=UNKNOWN, neginf=-UNKNOWN)


SIZE = 1e6
"""Distance that one token more is worth where sizes go first: far above any squared distance of
standardised coordinates, and in double precision those still count to ten digits behind it."""


class Distances(NamedTuple):
    """Terms of the distances from a parent to all nodes."""

    to_first: Float[Tensor, "B P"]
    to_second: Float[Tensor, "B P"]
    """From its children."""
    between: Float[Tensor, "B 1"]
    """From one child to the other."""
    first: Float[Tensor, "B 1"]
    second: Float[Tensor, "B 1"]
    others: Float[Tensor, "B P"]
    """Tokens under the children, and under every node."""


@dataclass(frozen=True)
class Linkage:
    """Merges the two clusters that are nearest, by the update of Lance and Williams (1967)."""

    update: Callable[[Distances], Tensor]
    squared: bool
    """True <--> the update is one of squared Euclidean distances."""
    smallest_first: bool = False
    """True <--> the pair with the fewest tokens is merged; distances decide where sizes tie."""

    def __call__(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        """One tree a sample; the pairs are in no order that means anything."""
        at_once = max(1, PAIRS // batch.present.shape[1] ** 2)
        return torch.cat([self._trees(part, autoencoder) for part in batch.parts(at_once)])

    def _trees(self, batch: TokenBatch, autoencoder: TreeEncoder) -> Int64[Tensor, "B M 2"]:
        # Double precision: the updates subtract, and near ties should fall as they do in scipy.
        tokens = autoencoder.standardise(batch.tokens).double()
        distances = (tokens[:, :, None] - tokens[:, None]).square().sum(dim=-1)  # (B, P, P)
        if not self.squared:
            distances = distances.sqrt()
        step = SIZE if self.smallest_first else 0.0
        return linked(distances, batch.present, self.update, step)


def linked(
    distances: Float[Tensor, "B P P"],
    present: Bool[Tensor, "B P"],
    update: Callable[[Distances], Tensor],
    step: float = 0.0,
) -> Int64[Tensor, "B M 2"]:
    """The trees of distances between tokens and the update of those from a parent; every token of
    a pair counts as ``step`` more of its distance."""
    rows = torch.arange(len(distances), device=distances.device)
    counts = present.double()
    sizes = step * (counts[:, :, None] + counts[:, None])  # (B, P, P)

    def joined(current: Tensor, first: Tensor, second: Tensor) -> Tensor:
        count_first, count_second = counts[rows, first], counts[rows, second]
        # Without the sizes, which the update would mix.
        to_first = current[rows, first] - sizes[rows, first]
        to_second = current[rows, second] - sizes[rows, second]
        between = to_first[rows, second][:, None]
        old = Distances(
            to_first, to_second, between, count_first[:, None], count_second[:, None], counts
        )
        new = update(old)
        counts[rows, first] = count_first + count_second
        together = step * (counts[rows, first][:, None] + counts)
        sizes[rows, first], sizes[rows, :, first] = together, together
        return new + together

    return agglomerate(distances + sizes, present, joined)


def centroid_update(old: Distances) -> Float[Tensor, "B P"]:
    """Squared distance of centroids; a parent can be nearer to others than its children were."""
    both = old.first + old.second
    apart = old.first * old.to_first + old.second * old.to_second
    return (apart - old.first * old.second / both * old.between) / both


def average_update(old: Distances) -> Float[Tensor, "B P"]:
    """Mean distance of the tokens of one cluster to those of the other."""
    return (old.first * old.to_first + old.second * old.to_second) / (old.first + old.second)


def single_update(old: Distances) -> Float[Tensor, "B P"]:
    """Least distance of a token of one cluster to one of the other."""
    return old.to_first.minimum(old.to_second)


def ward_update(old: Distances) -> Float[Tensor, "B P"]:
    """Twice the variance, summed over tokens, that merging the two clusters adds (Ward 1963)."""
    grown = (old.first + old.others) * old.to_first + (old.second + old.others) * old.to_second
    return (grown - old.others * old.between) / (old.first + old.second + old.others)


nearest_tree = Linkage(centroid_update, squared=True)
average_tree = Linkage(average_update, squared=False)
even_tree = Linkage(centroid_update, squared=True, smallest_first=True)
ward_tree = Linkage(ward_update, squared=True)


TIED = 1e-9
"""Weight of the distance of centres beside the least distance: it decides where the latter tie."""


@dataclass(frozen=True)
class Closest:
    """Merges the two clusters whose things are closest: points, segments, strokes as they lie in
    the plane, not their coordinates.

    Things that cross or touch are at distance 0; where distances tie, those whose centres are
    nearer come first, then the tokens that come first in sorted order. So the trees do not depend
    on the slots.
    """

    update: Callable[[Distances], Tensor]
    polylines: Callable[[Tensor], Tensor] | None = None
    """``(B, P, T) -> (B, P, K, C)``: the points that each token's line goes through (see
    :meth:`htm_env.datasets.Dataset.polylines`)."""

    def on(self, dataset: Dataset) -> Closest:
        """The same for tokens of that data."""
        return replace(self, polylines=dataset.polylines)

    def __call__(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        """One tree a sample; the pairs are in no order that means anything.

        Raises ``ValueError`` without ``polylines``.
        """
        if self.polylines is None:
            raise ValueError(
                "the closest policies expected the dataset, which says what its tokens are; "
                "polylines is None"
            )
        order = sorted_slots(batch)  # (B, P), the tokens of a sample in front
        rows = torch.arange(len(order), device=order.device)[:, None]
        lines = self.polylines(batch.tokens[rows, order].double())  # (B, P, K, C)
        at_once = max(1, PAIRS // (4 * lines[0, ..., 0].numel() ** 2))
        parts = zip(lines.split(at_once), batch.present.split(at_once), strict=True)
        merges = torch.cat([self._trees(*part) for part in parts])
        return in_slots(merges, order, batch.num_tokens)

    def _trees(
        self, lines: Float[Tensor, "B P K C"], present: Bool[Tensor, "B P"]
    ) -> Int64[Tensor, "B M 2"]:
        centres = lines.mean(dim=2)
        apart = (centres[:, :, None] - centres[:, None]).square().sum(-1).sqrt()  # (B, P, P)
        return linked(polyline_distances(lines) + TIED * apart, present, self.update)


@dataclass(frozen=True)
class Recurrent:
    """Average linkage by the affinities of :class:`htm_env.recurrence.Recurrence`.

    It is estimated from the tokens of the training split, without labels, hierarchy or order.
    """

    dataset: Dataset | None = None

    def on(self, dataset: Dataset) -> Recurrent:
        """The same for tokens of that data."""
        return replace(self, dataset=dataset)

    def __call__(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator, /
    ) -> Int64[Tensor, "B M 2"]:
        """One tree a sample; the pairs are in no order that means anything.

        Raises ``ValueError`` without the data, and where its training split has too few samples.
        """
        from htm_env.recurrence import recurrence  # it loads much, and most learners need none

        if self.dataset is None:
            raise ValueError(
                "the recurrent policies expected the dataset, whose training split says what "
                "recurs; dataset is None"
            )
        order = sorted_slots(batch)  # (B, P), the tokens of a sample in front
        rows = torch.arange(len(order), device=order.device)[:, None]
        affinities = recurrence(self.dataset).affinities(batch).double()
        distances = -affinities[rows[..., None], order[:, :, None], order[:, None]]
        at_once = max(1, PAIRS // batch.present.shape[1] ** 2)
        parts = zip(distances.split(at_once), batch.present.split(at_once), strict=True)
        merges = torch.cat([linked(*part, average_update) for part in parts])
        return in_slots(merges, order, batch.num_tokens)


closest_tree = Closest(average_update)
closest_single_tree = Closest(single_update)
recurrent_tree = Recurrent()


@torch.no_grad()
def cosine_tree(
    batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """At each step the two active embeddings with the largest cosine similarity.

    The order within the pair is random, and drawn here: the parent's embedding depends on it.
    """
    embeddings = autoencoder.lifter(autoencoder.standardise(batch.tokens))  # (B, P, D)
    rows = torch.arange(len(embeddings), device=embeddings.device)
    directions = normalize(embeddings, dim=-1)

    def joined(distances: Tensor, first: Tensor, second: Tensor) -> Tensor:
        pair = torch.cat([embeddings[rows, first], embeddings[rows, second]], dim=-1)
        parent = autoencoder.merger(pair)
        embeddings[rows, first] = parent
        directions[rows, first] = normalize(parent, dim=-1)
        return -torch.einsum("bpd,bd->bp", directions, directions[rows, first])

    similarities = torch.einsum("bpd,bqd->bpq", directions, directions)
    return agglomerate(-similarities, batch.present, joined, turn=generator)

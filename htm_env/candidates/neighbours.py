"""The candidate lists of episodes in progress: near in which space, and how they follow merges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.candidates.lists import Candidates, merged_candidates, nearest_candidates
from htm_env.forest import leftmost_leaves

CANDIDATES = ("all", "knn")
NEIGHBOURS = ("embeddings", "centroids")


@dataclass(frozen=True)
class Nearest:
    """Every token may come before its ``k`` nearest in a merge."""

    k: int
    by_centroids: bool = False
    """True <--> near in the data's standardised coordinates, False <--> in embedding space."""


def check_candidates(candidates: str, k: int, neighbours: str = "embeddings") -> Nearest | None:
    """What the environment's arguments ask for; None for all pairs.

    Raises ``ValueError`` with the choices for an unknown name, and for ``k`` below 1.
    """
    if candidates not in CANDIDATES:
        raise ValueError(f"unknown candidates {candidates!r}; choose from {list(CANDIDATES)}")
    if neighbours not in NEIGHBOURS:
        raise ValueError(f"unknown neighbours {neighbours!r}; choose from {list(NEIGHBOURS)}")
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}; expected a whole number of at least 1")
    return Nearest(int(k), neighbours == "centroids") if candidates == "knn" else None


@dataclass(frozen=True)
class Neighbourhood:
    """Who may be merged with whom in ``B`` populations, and where their tokens stand."""

    candidates: Candidates
    sums: Float[Tensor, "B P T"] | None
    """The standardised coordinates of the tokens under each slot, summed; None <--> tokens stand
    where their embeddings do."""

    @classmethod
    def of(
        cls,
        nearest: Nearest,
        standardised: Float[Tensor, "B P T"],
        embeddings: Float[Tensor, "B P D"],
        present: Bool[Tensor, "B P"],
    ) -> Neighbourhood:
        """That of populations before their first merge."""
        if not nearest.by_centroids:
            return cls(nearest_candidates(embeddings, present, nearest.k), None)
        sums = standardised.masked_fill(~present[..., None], 0.0)
        return cls(nearest_candidates(sums, present, nearest.k), sums)

    def merged(
        self,
        rows: Int64[Tensor, "R"],
        first: Int64[Tensor, "R"],
        second: Int64[Tensor, "R"],
        embeddings: Float[Tensor, "B P D"],
        leaf_counts: Int64[Tensor, "B P"],
    ) -> Neighbourhood:
        """After merging slots ``(first, second)`` in the samples ``rows``.

        The samples stand in order, each at most once. Embeddings and leaf counts, 0 in empty slots,
        are those after it.
        """
        if len(rows) < len(leaf_counts):
            some = self.rows(rows)._all_merged(first, second, embeddings[rows], leaf_counts[rows])
            return self.with_rows(rows, some)
        return self._all_merged(first, second, embeddings, leaf_counts)

    def _all_merged(
        self, first: Tensor, second: Tensor, places: Tensor, leaf_counts: Tensor
    ) -> Neighbourhood:
        sums = None
        if self.sums is not None:
            rows = torch.arange(len(first), device=first.device)
            sums = self.sums.clone()
            sums[rows, first] += sums[rows, second]
            sums[rows, second] = 0.0
            places = sums / leaf_counts.clamp(min=1)[..., None]
        after = merged_candidates(self.candidates, places, leaf_counts > 0, first, second)
        return Neighbourhood(after, sums)

    def followed(
        self,
        nodes: Float[Tensor, "B N D"],
        merges: Int64[Tensor, "B M 2"],
        num_leaves: Int64[Tensor, "B"],
    ) -> Neighbourhood:
        """After whole sequences of merges, one at a time, of which this is the beginning.

        ``nodes`` are the embeddings of all nodes.
        """
        slot = leftmost_leaves(merges, num_leaves)  # a parent takes the slot of its first child
        slots = slot.gather(1, merges.clamp(min=0).flatten(1)).view_as(merges)
        size = merges.shape[1] + 1
        embeddings = nodes[:, :size].clone()
        counts = (torch.arange(size, device=merges.device) < num_leaves[:, None]).long()
        made = self
        for step in range(int((merges[..., 0] >= 0).sum(1).max())):
            rows = (merges[:, step, 0] >= 0).nonzero()[:, 0]
            first, second = slots[rows, step].unbind(1)
            embeddings[rows, first] = nodes[rows, num_leaves[rows] + step]
            counts[rows, first] += counts[rows, second]
            counts[rows, second] = 0
            made = made.merged(rows, first, second, embeddings, counts)
        return made

    def rows(self, index: Int64[Tensor, "R"]) -> Neighbourhood:
        """That of some samples."""
        sums = None if self.sums is None else self.sums[index]
        return Neighbourhood(self.candidates.rows(index), sums)

    def with_rows(self, index: Int64[Tensor, "R"], other: Neighbourhood) -> Neighbourhood:
        """This one with the samples of ``index`` replaced by the ``R`` of another."""
        sums = self.sums
        if sums is not None and other.sums is not None:
            sums = sums.index_copy(0, index, other.sums)
        return Neighbourhood(self.candidates.with_rows(index, other.candidates), sums)

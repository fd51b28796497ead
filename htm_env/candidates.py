"""Candidate pairs where all pairs would be too many: every token with its nearest neighbours.

A list of at most ``k`` partners a slot, O(P k) a sample instead of O(P^2). A merge costs one pass
over the population, O(P (D + k)):

- every list that names one of the two children drops it;
- the parent's list is its ``k`` nearest;
- the parent enters every list that has an empty entry, or whose farthest partner is farther.

Lists in crowded regions run short that way, so that all are made anew whenever half of the tokens
have been merged away. Every active token has a partner until one is left, and with ``k >= P - 1``
the lists always name all of the others. Populations of fewer than 256 slots are compared in
one table each when lists are made anew; beyond, a sixteenth of all pairs at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from htm_env.checks import check_choice, whole_number
from htm_env.forest import leftmost_leaves, legal_pairs
from htm_env.types import LARGE, NONE, Batched

FARTHEST = 1e30
"""Points that are not finite count as this far away: still nearer than an empty entry."""
BLOCK, FEWEST_ROWS = 2**20, 16
"""Distances that are held at a time; of large populations at most those of a sixteenth of the
tokens, or of so few."""
TREE_DIMENSIONS, TREE_TOKENS = 4, 256
"""Up to so many coordinates, and from so many tokens on, a KD-tree is faster (measured: 4,096
tokens of two coordinates in 5 ms instead of 170, of eight in 150)."""


def advice_on_pairs(num_slots: int, nearest: Nearest | None, trees: int = 1) -> str | None:
    """One line for a person where all pairs of large sets may be merged: what they cost, and what
    costs less; None where there is nothing to say.

    Scores of all pairs are a table of ``P^2`` numbers of four bytes for each of ``trees`` trees at
    a time, and what is computed from it is held beside it.
    """
    if nearest is not None or num_slots <= LARGE:
        return None
    pairs, k = num_slots * (num_slots - 1), 8
    megabytes = trees * num_slots**2 * 4 / 1e6
    at_once = "a tree" if trees == 1 else f"for {trees} trees at a time"
    return (
        f"sets of {num_slots:,} tokens have {pairs:,} pairs to score at the first merge, in tables "
        f"of {megabytes:,.1f} MB {at_once}; candidates knn with k={k} scores {num_slots * k:,}"
    )


@dataclass(frozen=True)
class Candidates(Batched):
    """Candidate pairs of ``B`` populations: a list of partners for every slot."""

    partners: Int64[Tensor, "B P k"]
    """The slots that a slot may come before in a merge; -1 <--> the entry of its list is empty."""
    distances: Float[Tensor, "B P k"]
    """Squared; inf in empty entries."""
    fresh: Bool[Tensor, "B P k"]
    """True <--> the partner was not there, or was another node, before the latest merge."""
    renewal: Int64[Tensor, "B"]
    """So few active tokens make all lists anew."""


@torch.no_grad()
def nearest_candidates(
    points: Float[Tensor, "B P D"], active: Bool[Tensor, "B P"], k: int
) -> Candidates:
    """The lists of populations whose tokens are at ``points``: the ``k`` nearest of each.

    ``active``: True <--> a token is in the slot. Raises ``ValueError`` for ``k`` out of range.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 candidate a token")
    size, slots = active.shape
    partners = torch.full((size, slots, k), NONE, device=points.device)
    if slots < TREE_TOKENS:
        for part in torch.arange(size, device=points.device).split(max(1, BLOCK // slots**2)):
            found = _nearest_slots(points[part], active[part], min(k, slots))
            partners[part, :, : found.shape[2]] = found
    else:
        for row in range(size):
            here = active[row].nonzero()[:, 0]
            if len(here) > 1:
                found = here[_nearest_others(points[row, here], min(k, len(here) - 1))]
                partners[row, here, : found.shape[1]] = found
    rows = torch.arange(len(points), device=points.device)[:, None, None]
    distances = squared_distances(points[rows, partners.clamp(min=0)], points[:, :, None])
    distances.masked_fill_(partners < 0, torch.inf)
    return Candidates(partners, distances, partners >= 0, active.sum(1) // 2)


@torch.no_grad()
def merged_candidates(
    candidates: Candidates,
    points: Float[Tensor, "B P D"],
    active: Bool[Tensor, "B P"],
    first: Int64[Tensor, "B"],
    second: Int64[Tensor, "B"],
) -> Candidates:
    """The lists after a merge in every sample: the parent is in slot ``first`` by now, and slot
    ``second`` is empty; ``points`` and ``active`` are those after it."""
    size, slots, k = candidates.partners.shape
    rows = torch.arange(size, device=points.device)
    partners = candidates.partners
    gone = (partners == first[:, None, None]) | (partners == second[:, None, None])
    gone[rows, second] = True
    partners = partners.masked_fill(gone, NONE)
    distances = candidates.distances.masked_fill(gone, torch.inf)
    apart = squared_distances(points, points[rows, first, None])  # (B, P)
    others = active.clone()
    others[rows, first] = False
    apart.masked_fill_(~others, torch.inf)
    near, nearest = apart.topk(min(k, slots), dim=1, largest=False)
    partners[rows, first, : near.shape[1]] = nearest.masked_fill(near.isinf(), NONE)
    distances[rows, first, : near.shape[1]] = near
    farthest, entry = distances.max(2)
    row, slot = (apart < farthest).nonzero(as_tuple=True)
    partners[row, slot, entry[row, slot]] = first[row]
    distances[row, slot, entry[row, slot]] = apart[row, slot]
    fresh = partners == first[:, None, None]
    fresh[rows, first] = partners[rows, first] >= 0
    made = Candidates(partners, distances, fresh, candidates.renewal)
    again = (active.sum(1) <= candidates.renewal).nonzero()[:, 0]
    if len(again):
        made = made.with_rows(again, nearest_candidates(points[again], active[again], k))
    return made


def candidate_pair(action: Any, candidates: Any) -> tuple[Any, Any]:
    """The ordered pair of slots that an action ``slot * k + entry`` merges.

    ``candidates`` is the observation's ``(P, k)`` for one action, or ``(B, P, k)`` for ``(B,)`` of
    them; the second slot is -1 where the entry is empty.
    """
    slot, entry = action // candidates.shape[-1], action % candidates.shape[-1]
    if candidates.ndim == 2:
        return slot, candidates[slot, entry]
    count = len(candidates)
    is_array = isinstance(candidates, np.ndarray)
    rows = np.arange(count) if is_array else torch.arange(count, device=candidates.device)
    return slot, candidates[rows, slot, entry]


def candidate_action(first: Any, second: Any, candidates: Any) -> Any:
    """The action that merges the ordered pair of slots, given the observation's ``(P, k)``.

    An int, or ``(B,)`` of them for ``(B,)`` slots and lists ``(B, P, k)``. Raises ``ValueError``
    where ``second`` is no candidate of ``first``.
    """
    if candidates.ndim == 3:
        each = zip(first, second, candidates, strict=True)
        actions = [candidate_action(*one) for one in each]
        if isinstance(candidates, np.ndarray):
            return np.array(actions, dtype=np.int64)
        return torch.tensor(actions, dtype=torch.int64, device=candidates.device)
    choices = [int(slot) for slot in candidates[first]]
    if second < 0 or second not in choices:
        raise ValueError(
            f"slot {second} is no candidate of slot {first}, which has "
            f"{[slot for slot in choices if slot >= 0]}"
        )
    return int(first) * len(choices) + choices.index(second)


def candidate_mask(candidates: Int[Tensor, "B P k"]) -> Bool[Tensor, "B A"]:
    """True <--> the action ``slot * k + entry`` is legal."""
    return (candidates >= 0).flatten(1)


def squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """Between points, over the last axis; those that are no numbers are :data:`FARTHEST` away."""
    apart = (one - other).square().sum(-1)
    return apart.nan_to_num(FARTHEST, posinf=FARTHEST).clamp_max_(FARTHEST)


def _nearest_slots(
    points: Float[Tensor, "B P D"], active: Bool[Tensor, "B P"], k: int
) -> Int64[Tensor, "B P k"]:
    """The same in small populations, all samples at once; -1 where there are fewer."""
    # In float32 the difference of squares would order by rounding what is nearly equally far.
    clean = points.masked_fill(~active[..., None], 0.0).double()
    apart = torch.baddbmm(clean.square().sum(2)[:, None], clean, clean.transpose(1, 2), alpha=-2.0)
    apart = apart.nan_to_num(FARTHEST, posinf=FARTHEST, neginf=FARTHEST)
    apart.masked_fill_(~legal_pairs(active), torch.inf)
    near, found = apart.topk(k, dim=2, largest=False)
    return found.masked_fill(near.isinf(), NONE)


def _nearest_others(points: Float[Tensor, "n D"], k: int) -> Int64[Tensor, "n k"]:
    """The ``k < n`` nearest others of every point, a block of points at a time."""
    count, dimensions = points.shape
    if dimensions <= TREE_DIMENSIONS and count >= TREE_TOKENS and points.isfinite().all():
        return _by_tree(points, k)
    points = points.double()
    squares = points.square().sum(1)
    step = max(1, min(BLOCK // count, max(FEWEST_ROWS, count // 16)))
    found = torch.empty(count, k, dtype=torch.int64, device=points.device)
    # One table for all blocks: results between new ones would keep the allocator from reusing them.
    table = points.new_empty(min(step, count), count)
    for start in range(0, count, step):
        block = points[start : start + step]
        # Less the own square, which is the same for all that are compared.
        apart = torch.addmm(squares, block, points.T, alpha=-2.0, out=table[: len(block)])
        apart.nan_to_num_(FARTHEST, posinf=FARTHEST, neginf=FARTHEST)
        apart.diagonal(offset=start).fill_(torch.inf)
        found[start : start + step] = apart.topk(k, dim=1, largest=False).indices
    return found


def _by_tree(points: Float[Tensor, "n D"], k: int) -> Int64[Tensor, "n k"]:
    from scipy.spatial import cKDTree  # takes longer to import than all of htm_env

    values = points.double().cpu().numpy()
    _, found = cKDTree(values).query(values, k=k + 1)
    # A point need not be the first that it finds: others may be at the same point.
    own = found == np.arange(len(found))[:, None]
    own[~own.any(1), -1] = True
    return torch.as_tensor(found[~own].reshape(len(found), k), device=points.device)


# ---------------------------------------------------------------- of episodes in progress

CANDIDATES = ("all", "knn")
NEIGHBOURS = ("embeddings", "centroids")
MOST_PARTNERS = 2**16
"""Candidates of a slot, at most; so many columns are made, however few tokens there are."""


@dataclass(frozen=True)
class Nearest:
    """Every token may come before its ``k`` nearest in a merge."""

    k: int
    by_centroids: bool = False
    """True <--> near in the data's standardised coordinates, False <--> in embedding space."""


def check_candidates(candidates: str, k: int, neighbours: str = "embeddings") -> Nearest | None:
    """Candidates as the environment's arguments define them; None for all pairs.

    Raises ``ValueError`` with the choices for an unknown name, and for ``k`` below 1.
    """
    check_choice("candidates", candidates, CANDIDATES)
    check_choice("neighbours", neighbours, NEIGHBOURS)
    k = whole_number("k", k, 1, MOST_PARTNERS)
    return Nearest(k, neighbours == "centroids") if candidates == "knn" else None


@dataclass(frozen=True)
class Neighbourhood(Batched):
    """Candidate pairs of ``B`` episodes in progress, and the points that distances are between."""

    candidates: Candidates
    sums: Float[Tensor, "B P T"] | None
    """The standardised coordinates of the tokens under each slot, summed; None <--> their
    embeddings are the points."""

    @classmethod
    def of(
        cls,
        nearest: Nearest,
        standardised: Float[Tensor, "B P T"],
        embeddings: Float[Tensor, "B P D"],
        present: Bool[Tensor, "B P"],
    ) -> Neighbourhood:
        """Candidates of populations before their first merge."""
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

        The samples are in order, each at most once. Embeddings and leaf counts, 0 in empty slots,
        are those after it.
        """
        if len(rows) < len(leaf_counts):
            some = self.rows(rows)._all_merged(first, second, embeddings[rows], leaf_counts[rows])
            return self.with_rows(rows, some)
        return self._all_merged(first, second, embeddings, leaf_counts)

    def _all_merged(
        self, first: Tensor, second: Tensor, points: Tensor, leaf_counts: Tensor
    ) -> Neighbourhood:
        sums = None
        if self.sums is not None:
            rows = torch.arange(len(first), device=first.device)
            sums = self.sums.clone()
            sums[rows, first] += sums[rows, second]
            sums[rows, second] = 0.0
            points = sums / leaf_counts.clamp(min=1)[..., None]
        after = merged_candidates(self.candidates, points, leaf_counts > 0, first, second)
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


@dataclass(frozen=True)
class CandidatePairs:
    """The ordered pairs of ``B`` episodes, one behind the other.

    An episode of 64 tokens has about 7 k a token and one of 256 tokens 9 k (measured, k = 4): lists
    that are made anew count anew.

    Neighbours in embedding space move as the autoencoder learns, so that these are kept with the
    episodes: probabilities are exact within them.
    """

    size: int
    """``B``."""
    steps: int
    """``M``."""
    row: Int64[Tensor, "E"]
    """The episode, in rising order."""
    nodes: Int64[Tensor, "E 2"]
    """The nodes of the pair; the first comes first in the merge."""
    times: Int64[Tensor, "E 2"]
    """The first and the last merge of the episode at which it could be made."""

    @cached_property
    def starts(self) -> Int64[Tensor, "bounds"]:
        """The index of the first pair of each episode."""
        bounds = torch.arange(self.size + 1, device=self.row.device)
        return torch.searchsorted(self.row, bounds)

    @cached_property
    def numbers(self) -> Int64[Tensor, "B M"]:
        """The number of pairs that could be merged before each merge; 0 in padding."""
        change = self.row.new_zeros(self.size, self.steps + 1)
        one = torch.ones_like(self.row)
        change.index_put_((self.row, self.times[:, 0]), one, accumulate=True)
        change.index_put_((self.row, self.times[:, 1] + 1), -one, accumulate=True)
        return change.cumsum(1)[:, :-1]

    def rows(self, index: Tensor | slice) -> CandidatePairs:
        """Pairs of the episodes that ``index`` (of integers, or True) selects, in this order."""
        chosen = torch.arange(self.size, device=self.row.device)[index]
        row, pair = self._of(chosen)
        return CandidatePairs(len(chosen), self.steps, row, self.nodes[pair], self.times[pair])

    def at(
        self, episode: Int64[Tensor, "S"], time: Int64[Tensor, "S"]
    ) -> tuple[Int64[Tensor, "C"], Int64[Tensor, "C"]]:
        """The candidates before some merges: an index into ``episode``, and one into the pairs."""
        state, pair = self._of(episode)
        first, last = self.times[pair].unbind(1)
        there = (first <= time[state]) & (time[state] <= last)
        return state[there], pair[there]

    def chosen(self, merges: Int64[Tensor, "B M 2"]) -> Bool[Tensor, "B M"]:
        """True <--> the merge was one of the candidates before it."""
        last = self.times[:, 1]
        right = (self.nodes == merges[self.row, last]).all(1)
        made = self.row.new_zeros(self.size, self.steps, dtype=torch.bool)
        made[self.row[right], last[right]] = True
        return made

    @classmethod
    def listed(cls, pairs: Int[Tensor, "E 4"], counts: Sequence[int], steps: int) -> CandidatePairs:
        """The pairs and their times, one episode behind the other; ``counts`` are the
        numbers of each episode. Raises ``ValueError`` where the counts do not add up."""
        if sum(counts) != len(pairs) or min(counts, default=0) < 0:
            raise ValueError(
                f"there are {len(pairs)} candidates, and the counts of {len(counts)} episodes add "
                f"up to {sum(counts)}"
            )
        row = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        pairs = pairs.long()
        return cls(len(counts), steps, row.to(pairs.device), pairs[:, :2], pairs[:, 2:])

    def joined(self, other: CandidatePairs) -> CandidatePairs:
        """These episodes and then those of ``other``."""
        return CandidatePairs(
            self.size + other.size,
            self.steps,
            torch.cat([self.row, self.size + other.row]),
            torch.cat([self.nodes, other.nodes]),
            torch.cat([self.times, other.times]),
        )

    def to(self, device: torch.device | str) -> CandidatePairs:
        """The same on another device."""
        moved = (values.to(device) for values in (self.row, self.nodes, self.times))
        return CandidatePairs(self.size, self.steps, *moved)

    def check(
        self,
        merges: Int64[Tensor, "B M 2"],
        num_tokens: Int64[Tensor, "B"],
        name: Callable[[int], str],
    ) -> None:
        """Raise ``ValueError`` naming the first episode whose pairs are not of two nodes that it
        has, at merges that it makes."""
        if (self.size, self.steps) != merges.shape[:2]:
            raise ValueError(
                f"the candidates are of {self.size} episodes of {self.steps} merges; expected "
                f"those of {merges.shape[0]} episodes of {merges.shape[1]}"
            )
        made = (merges[..., 0] >= 0).sum(1)
        first, last = self.times.unbind(1)
        nodes = num_tokens[self.row] + first  # that there are by then
        wrong = (self.nodes < 0).any(1) | (self.nodes >= nodes[:, None]).any(1)
        wrong |= self.nodes[:, 0] == self.nodes[:, 1]
        wrong |= (first < 0) | (first > last) | (last >= made[self.row])
        if wrong.any():
            pair = int(wrong.nonzero()[0])
            raise ValueError(
                f"a candidate of {name(int(self.row[pair]))} is the pair of nodes "
                f"{self.nodes[pair].tolist()} at merges {self.times[pair].tolist()}; expected two "
                "of its nodes, at merges that it makes while both are there"
            )

    def _of(self, episode: Int64[Tensor, "S"]) -> tuple[Int64[Tensor, "C"], Int64[Tensor, "C"]]:
        """All pairs of some episodes: an index into ``episode``, and one into the pairs."""
        start = self.starts[episode]
        count = self.starts[episode + 1] - start
        which = torch.arange(len(episode), device=start.device).repeat_interleave(count)
        before = count.cumsum(0) - count
        return which, torch.arange(len(which), device=start.device) + (start - before)[which]

"""Batched forests of ordered binary merges: the state of an episode, without any embedding.

Everything here is a pure function of integer tensors. A forest is dense in token slots (``B x P``),
never in pairs, except for the mask of legal pairs that small populations ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.functional import pad

from htm_env.types import NONE, Batched


@dataclass(frozen=True)
class Forest(Batched):
    """The active nodes of ``B`` samples and the merges that made them."""

    slots: Int64[Tensor, "B P"]
    """The node in each slot; -1 where the slot is empty."""
    merges: Int64[Tensor, "B M 2"]
    """The ordered merges so far, in node ids; -1 pads."""
    num_leaves: Int64[Tensor, "B"]
    num_merges: Int64[Tensor, "B"]

    @classmethod
    def start(cls, present: Bool[Tensor, "B P"]) -> Forest:
        """The forest before the first merge: every present token is a tree of its own."""
        batch, slots = present.shape
        nodes = torch.arange(slots, device=present.device).expand(batch, slots)
        num_leaves = present.sum(dim=1)
        return cls(
            slots=nodes.masked_fill(~present, NONE),
            merges=nodes.new_full((batch, slots - 1, 2), NONE),
            num_leaves=num_leaves,
            num_merges=torch.zeros_like(num_leaves),
        )

    @property
    def active(self) -> Bool[Tensor, "B P"]:
        """True <--> the slot holds the root of a tree of this forest."""
        return self.slots >= 0

    @cached_property
    def num_active(self) -> Int64[Tensor, "B"]:
        return self.num_leaves - self.num_merges

    def merge(
        self,
        first: Int64[Tensor, "B"],
        second: Int64[Tensor, "B"],
        where: Bool[Tensor, "B"] | None = None,
    ) -> Forest:
        """The forest after merging slots ``(first, second)``: the parent goes to ``first``.

        The pairs must be legal wherever ``where`` is True (everywhere by default); the other
        samples stay as they are. This forest is not changed.
        """
        rows = torch.arange(len(first), device=first.device)
        if where is not None:
            rows, first, second = rows[where], first[where], second[where]
        slots, merges, num_merges = self.slots.clone(), self.merges.clone(), self.num_merges.clone()
        step = self.num_merges[rows]
        merges[rows, step, 0] = self.slots[rows, first]
        merges[rows, step, 1] = self.slots[rows, second]
        slots[rows, first] = self.num_leaves[rows] + step
        slots[rows, second] = NONE
        num_merges[rows] = step + 1
        return Forest(slots, merges, self.num_leaves, num_merges)


# ---------------------------------------------------------------- pairs of slots, as actions


def pair_to_action(first: Any, second: Any, num_slots: int) -> Any:
    """The action that merges the ordered pair of slots ``(first, second)``, ``first != second``.

    Works on integers and on arrays or tensors of them. There are ``P (P - 1)`` actions: the
    diagonal is left out, so ``action = first * (P - 1) + second - (second > first)``.
    """
    return first * (num_slots - 1) + second - (second > first) * 1


def action_to_pair(action: Any, num_slots: int) -> tuple[Any, Any]:
    """The ordered pair of slots that an action merges; the inverse of :func:`pair_to_action`."""
    first = action // (num_slots - 1)
    second = action % (num_slots - 1)
    return first, second + (second >= first) * 1


def legal_pairs(active: Bool[Tensor, "B P"]) -> Bool[Tensor, "B P P"]:
    """True <--> both slots are active and different: ``n (n - 1)`` pairs a sample."""
    pairs = active[:, :, None] & active[:, None, :]  # (B, P, P)
    return pairs & ~torch.eye(active.shape[1], dtype=torch.bool, device=active.device)


def drop_diagonal(pairs: Tensor) -> Tensor:
    """``(B, P, P)`` pair values as ``(B, P (P - 1))`` action values: the diagonal left out.

    Row-major order without the diagonal is a shifted view: dropping the first element and reading
    rows of ``P + 1`` puts every diagonal element last.
    """
    batch, slots, _ = pairs.shape
    shifted = pairs.reshape(batch, slots * slots)[:, 1:]  # (B, P^2 - 1)
    return shifted.reshape(batch, slots - 1, slots + 1)[:, :, :-1].reshape(batch, -1)


def action_mask(active: Bool[Tensor, "B P"]) -> Bool[Tensor, "B A"]:
    """True <--> the action is legal."""
    return drop_diagonal(legal_pairs(active))


def merges_to_actions(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B M"]:
    """The actions that make these merges, step by step; -1 where a sample has no more."""
    slot = leftmost_leaves(merges, num_leaves)  # a parent takes the slot of its first child
    slots = slot.gather(1, merges.clamp(min=0).flatten(1)).view_as(merges)
    actions: Tensor = pair_to_action(slots[..., 0], slots[..., 1], merges.shape[1] + 1)
    return actions.masked_fill(merges[..., 0] < 0, NONE)


# ---------------------------------------------------------------- merges, as trees


def check_present(present: Bool[Tensor, "B P"]) -> None:
    """Raise ``ValueError`` naming the first sample whose tokens do not fill its first slots."""
    gaps = (present[:, 1:] & ~present[:, :-1]).any(dim=1)
    if gaps.any():
        row = int(gaps.nonzero()[0])
        raise ValueError(
            f"the tokens of sample {row} leave a gap in its slots: {present[row].int().tolist()}; "
            "expected them in the slots 0 .. n-1"
        )


def check_merges(
    merges: Int64[Tensor, "B M 2"],
    num_leaves: Int64[Tensor, "B"],
    name: Callable[[int], str] = "sample {}".format,
) -> None:
    """Raise ``ValueError`` naming the first sample whose merges are not a forest, and the merge.

    A merge joins two different nodes that exist by then and that no other merge has used; padding
    is at the end. ``name`` is how the error names a row.
    """
    batch, steps, _ = merges.shape
    made = num_leaves[:, None] + torch.arange(steps, device=merges.device)  # (B, M)
    real = merges >= 0
    wrong = (merges >= made[..., None]).any(-1) | (merges < NONE).any(-1)
    wrong |= real[..., 0] != real[..., 1]
    wrong[:, 1:] |= real[:, 1:, 0] & ~real[:, :-1, 0]
    nodes = int(made.max()) + 1 if made.numel() else 1
    uses = merges.new_zeros(batch, nodes + 1)
    index = torch.where(real, merges.clamp(max=nodes - 1), nodes).flatten(1)
    uses.scatter_add_(1, index, torch.ones_like(index))
    bad = wrong.any(1) | (uses[:, :nodes] > 1).any(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        used: list[int] = []
        for step, pair in enumerate(merges[row].tolist()):
            used += [node for node in pair if node >= 0]
            if wrong[row, step] or len(set(used)) < len(used):
                break
        raise ValueError(
            f"the merges of {name(row)} are not a forest over its {int(num_leaves[row])} tokens: "
            f"merge {step} is {pair}; expected pairs of different nodes, each made before and used "
            "once, and -1 only after the last merge"
        )


def pad_merges(merges: Int64[Tensor, "B K 2"], num_slots: int) -> Int64[Tensor, "B M 2"]:
    """The same merges, padded to the ``M = P - 1`` that the functions below expect."""
    missing = num_slots - 1 - merges.shape[1]
    if missing < 0:
        raise ValueError(
            f"{merges.shape[1]} merges do not fit {num_slots} token slots; "
            f"expected at most {num_slots - 1}"
        )
    return torch.cat([merges, merges.new_full((len(merges), missing, 2), NONE)], dim=1)


def children_table(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B N 2"]:
    """The two children of every node; -1 for leaves and for nodes that do not exist."""
    batch, steps, _ = merges.shape
    table = merges.new_full((batch, 2 * steps + 1, 2), NONE)
    made = num_leaves[:, None] + torch.arange(steps, device=merges.device)  # (B, M)
    return table.scatter_(1, made[..., None].expand(-1, -1, 2), merges)


def active_nodes(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Bool[Tensor, "B N"]:
    """True <--> the node exists and has no parent: a root of the forest."""
    num_nodes = 2 * merges.shape[1] + 1
    made = num_leaves + (merges[..., 0] >= 0).sum(1)
    active = torch.arange(num_nodes, device=merges.device) < made[:, None]  # (B, N)
    padded = torch.cat([active, active.new_zeros(len(active), 1)], dim=1)  # -1 lands in the pad
    return padded.scatter_(1, merges.flatten(1) % (num_nodes + 1), False)[:, :-1]


def _ancestors(merges: Tensor, num_leaves: Tensor) -> Iterator[Tensor]:
    """``(B, N + 1)`` the ancestor 1, 2, 4, ... merges above every node, until all are reached
    (pointer doubling, Hillis and Steele 1986, "Data parallel algorithms").

    Node ``N`` is above the roots, above nodes that do not exist, and above itself.
    """
    size, steps, _ = merges.shape
    top = 2 * steps + 1
    made = num_leaves[:, None] + torch.arange(steps, device=merges.device)  # (B, M)
    above = merges.new_full((size, top + 1), top)
    above.scatter_(1, merges.flatten(1) % (top + 1), made.repeat_interleave(2, dim=1))
    above[:, top] = top  # padding went there
    for _ in range(steps.bit_length()):
        yield above
        above = above.gather(1, above)


def _summed_down(values: Tensor, merges: Tensor, num_leaves: Tensor) -> Tensor:
    """``(B, N)`` the values of every node and of all its ancestors, summed."""
    values = pad(values, (0, 1))
    for above in _ancestors(merges, num_leaves):
        values = values + values.gather(1, above)
    return values[:, :-1]


def leaf_counts(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B N"]:
    """The number of leaves under every node: 1 for a leaf, 0 for a node that does not exist."""
    nodes = torch.arange(2 * (merges.shape[1] + 1), device=merges.device)  # and node N
    counts = (nodes < num_leaves[:, None]).long()
    for above in _ancestors(merges, num_leaves):
        counts = counts.scatter_add(1, above, counts)
    return counts[:, :-1]


def leftmost_leaves(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B N"]:
    """The first leaf under every node, following first children: the slot that the node is in.

    A node that does not exist is its own.
    """
    below = children_table(merges, num_leaves)[..., 0]
    below = torch.where(below >= 0, below, torch.arange(below.shape[1], device=merges.device))
    for _ in range(merges.shape[1].bit_length()):  # 1, 2, 4, ... merges down
        below = below.gather(1, below)
    return below


def leaf_sets(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Bool[Tensor, "B N P"]:
    """The clade of every node: True <--> the leaf is under the node.

    With the trees side by side, and first children before second ones, they are runs of leaves.
    """
    counts, roots = leaf_counts(merges, num_leaves), active_nodes(merges, num_leaves)
    whole = counts * roots
    offset = pad((whole.cumsum(1) - whole) * roots, (0, 1))  # (B, N + 1): after what is beside it
    first, second = (merges % offset.shape[1]).unbind(2)
    offset.scatter_(1, second, pad(counts, (0, 1)).gather(1, first))
    start = _summed_down(offset[:, :-1], merges, num_leaves)
    leaf = start[:, : merges.shape[1] + 1].clone()  # (B, P): its place in that order
    leaf[torch.arange(leaf.shape[1], device=leaf.device) >= num_leaves[:, None]] = NONE
    start, end, leaf = start[:, :, None], (start + counts)[:, :, None], leaf[:, None]
    return (start <= leaf) & (leaf < end)


def are_clades(sets: Bool[Tensor, "B K P"], clades: Bool[Tensor, "B C P"]) -> Bool[Tensor, "B K"]:
    """True <--> the set of leaves is one of the clades; empty sets are none."""
    shared = sets.float() @ clades.float().transpose(1, 2)  # (B, K, C), exact up to 2^24 leaves
    same = (shared == sets.sum(2)[:, :, None]) & (shared == clades.sum(2)[:, None])
    return (same & (shared > 0)).any(2)


def same_trees(
    planned: Int64[Tensor, "B M 2"],
    merges: Int64[Tensor, "B M 2"],
    num_leaves: Int64[Tensor, "B"],
    either_order: bool,
) -> Bool[Tensor, "B"]:
    """True <--> both are the same trees, whatever the sequence in which they were merged.

    With ``either_order``, pairs may be turned.
    """
    sets, listed = leaf_sets(planned, num_leaves), leaf_sets(merges, num_leaves)
    same = (merges >= 0).sum((1, 2)) == (planned >= 0).sum((1, 2))
    same &= (are_clades(sets, listed) | ~sets.any(2)).all(1)
    if not either_order:  # the same clades come first in their pairs
        rows = torch.arange(len(merges), device=merges.device)[:, None]
        first, others = (
            sets_of[rows, made[..., 0].clamp(min=0)] & (made[..., :1] >= 0)
            for sets_of, made in ((sets, planned), (listed, merges))
        )
        same &= (are_clades(first, others) | ~first.any(2)).all(1)
    return same


def depths(merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]) -> Int64[Tensor, "B N"]:
    """The number of merges above every node: 0 for the roots of the forest."""
    ones = merges.new_ones(len(merges), 2 * merges.shape[1] + 1)
    return _summed_down(ones, merges, num_leaves) - 1


def tree_height(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B"]:
    """The height of the highest tree of each forest: merges from its root to its deepest leaf."""
    return depths(merges, num_leaves).amax(dim=1)


# ---------------------------------------------------------------- level by level


class Level(NamedTuple):
    """All nodes of one depth below the starting nodes, across the batch.

    ``nodes`` and ``origin`` of the next level hold, for every internal node of this one in turn,
    its first child and then its second: the two children of a node are neighbours, so that
    ``(2 I, D)`` states of the next level are ``(I, 2 D)`` pairs without a copy.
    """

    nodes: Int64[Tensor, "K"]
    """Flat node ids, ``sample * N + node``."""
    internal: Int64[Tensor, "I"]
    """Positions in ``nodes`` of those that have children."""
    leaves: Int64[Tensor, "L"]
    """Positions in ``nodes`` of those that have none."""
    origin: Int64[Tensor, "K"]
    """The position of the starting node above each one."""


def descend(children: Int64[Tensor, "B N 2"], start: Int64[Tensor, "S"]) -> list[Level]:
    """Walk from the flat node ids ``start`` down to the leaves, one level at a time.

    A node under several starting nodes appears once for each of them, so the same walk
    serves a whole forest (start: its roots) and the errors of all its subtrees (start: every node).
    """
    num_nodes = children.shape[1]
    flat = children.reshape(-1, 2)
    nodes, origin = start, torch.arange(len(start), device=start.device)
    levels: list[Level] = []
    while len(nodes):
        below = flat[nodes]  # (K, 2)
        has_children = below[:, 0] >= 0
        internal = has_children.nonzero().squeeze(1)
        leaves = (~has_children).nonzero().squeeze(1)
        levels.append(Level(nodes, internal, leaves, origin))
        sample = nodes[internal] // num_nodes
        nodes = (below[internal] + (sample * num_nodes)[:, None]).reshape(-1)  # (2 I,)
        origin = origin[internal].repeat_interleave(2)
    return levels


def forest_levels(merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]) -> list[Level]:
    """The walk from the roots of every forest down to its leaves."""
    start = active_nodes(merges, num_leaves).flatten().nonzero().squeeze(1)
    return descend(children_table(merges, num_leaves), start)

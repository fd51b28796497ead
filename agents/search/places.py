"""Whole trees as what is in which place, and moves of local search as exchanges of places.

The two children of node ``i`` are in the places ``2 i`` and ``2 i + 1``, the root is in the last
place, ``2 N``. Every move then takes the contents of two or three places around, whatever they are:
leaves, subtrees or the root. Nodes keep their numbers, so that a parent's may be below its child's;
:func:`merges_in` numbers them as merges again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from htm_env.forest import children_table
from htm_env.types import NONE

Places = Int64[Tensor, "B Q"]
"""The node in every place, ``Q = 2 N + 1``; -1 where there is none."""


class Move(NamedTuple):
    """Three places of each tree: the first takes what is in the second, the second what is in the
    third, and the third what is in the first."""

    places: Int64[Tensor, "B 3"]
    """The last two are the same where only two places are exchanged."""
    legal: Bool[Tensor, "B"]
    """False <--> the tree would be none, or the same one."""

    def applied(self, trees: Places) -> Places:
        """The trees after the move; all moves have to be legal."""
        first, second, third = self.places.unbind(1)
        source = torch.stack([second, third, first], dim=1)
        two = (second == third)[:, None]
        source = torch.where(two, torch.stack([second, first, first], dim=1), source)
        return trees.scatter(1, self.places, trees.gather(1, source))

    def changed(self, num_nodes: int) -> Bool[Tensor, "B N"]:
        """True <--> the node has other children after it."""
        nodes = torch.zeros_like(self.legal)[:, None].repeat(1, num_nodes + 1)  # N is over the root
        return nodes.scatter_(1, self.places // 2, True)[:, :-1]

    def rows(self, index: Tensor) -> Move:
        """Moves of some trees."""
        return Move(self.places[index], self.legal[index])


def places_of(merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]) -> Places:
    """Whole trees, given by their merges, of at least one token each."""
    root = 2 * num_leaves - 2
    return torch.cat([children_table(merges, num_leaves).flatten(1), root[:, None]], dim=1)


def merges_in(trees: Places, num_leaves: Int64[Tensor, "B"]) -> Int64[Tensor, "B M 2"]:
    """The merges of whole trees, lower ones first, and of equal height those of lower numbers."""
    children = trees[:, :-1].unflatten(1, (-1, 2))  # (B, N, 2)
    num_nodes = children.shape[1]
    node = torch.arange(num_nodes, device=trees.device)
    internal = children[..., 0] >= 0
    height = torch.where(node < num_leaves[:, None], 0, num_nodes)  # of nodes that do not exist
    height = torch.where(internal, 1, height)
    below = children.clamp(min=0).flatten(1)
    while True:
        higher = 1 + height.gather(1, below).view_as(children).amax(2)
        higher = torch.where(internal, higher, height)
        if torch.equal(higher, height):
            break
        height = higher
    order = height.argsort(dim=1, stable=True)
    number = pad(order.argsort(dim=1), (0, 1), value=NONE)  # -1 is read from behind
    moved = order[..., None].expand_as(children)
    named = number.gather(1, (children.gather(1, moved) % (num_nodes + 1)).flatten(1))
    first = num_leaves[:, None] + torch.arange(num_nodes // 2, device=trees.device)
    first = first.clamp(max=num_nodes - 1)[..., None].expand(-1, -1, 2)
    return named.view_as(children).gather(1, first)


def place_of(trees: Places) -> Int64[Tensor, "B N"]:
    """The place of every node; -1 for nodes that do not exist."""
    size, places = trees.shape
    num_nodes = places // 2
    found = trees.new_full((size, num_nodes + 1), NONE)
    every = torch.arange(places, device=trees.device).expand(size, places)
    return found.scatter_(1, trees % (num_nodes + 1), every)[:, :-1]


def turned(trees: Places, num_leaves: Int64[Tensor, "B"], draws: Float[Tensor, "B 2"]) -> Move:
    """The two children of a node in each other's place."""
    merges = num_leaves - 1
    node = num_leaves + (draws[:, 0] * merges).long()
    first = 2 * node.clamp(min=0)
    legal = merges > 0
    first = first.where(legal, 0)
    return Move(torch.stack([first, first + 1, first + 1], dim=1), legal)


def exchanged(trees: Places, num_leaves: Int64[Tensor, "B"], draws: Float[Tensor, "B 2"]) -> Move:
    """Two subtrees in each other's place; legal where neither is in the other."""
    places, (one, other) = place_of(trees), _nodes(num_leaves, draws)
    here, there = _at(places, one), _at(places, other)
    legal = (here >= 0) & (here // 2 != there // 2)  # else turned
    legal &= ~_is_under(places, one, other) & ~_is_under(places, other, one)
    return Move(torch.stack([here, there, there], dim=1).where(legal[:, None], 0), legal)


def regrafted(trees: Places, num_leaves: Int64[Tensor, "B"], draws: Float[Tensor, "B 2"]) -> Move:
    """A subtree pruned, and merged with another one instead of its sibling; of the new pair it is
    on the side on which it was of the old one.

    Legal where the other is not in it, and is neither its sibling nor its parent.
    """
    places, (one, other) = place_of(trees), _nodes(num_leaves, draws)
    here, last = _at(places, one), trees.shape[1] - 1
    legal = (here >= 0) & (here < last)
    parent, sibling = here // 2, here ^ 1  # a node, and a place
    over, there = _at(places, parent.clamp(max=places.shape[1] - 1)), _at(places, other)
    legal &= (other != parent) & (there != sibling) & ~_is_under(places, other, one)
    cycle = torch.stack([over, sibling, there], dim=1)
    return Move(cycle.where(legal[:, None], 0), legal)


MOVES = (turned, exchanged, regrafted)


def _nodes(num_leaves: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Two nodes of each tree, perhaps the same."""
    drawn = (draws * (2 * num_leaves - 1)[:, None]).long()
    return drawn[:, 0], drawn[:, 1]


def _at(places: Tensor, node: Tensor) -> Tensor:
    return places.gather(1, node[:, None])[:, 0]


def _is_under(
    places: Int64[Tensor, "B N"], node: Int64[Tensor, "B"], other: Int64[Tensor, "B"]
) -> Bool[Tensor, "B"]:
    """True <--> the node is the other, or is in the tree under it."""
    top = places.shape[1]
    above = pad(places.clamp(min=0) // 2, (0, 1), value=top)  # above the root, and above itself
    found = node == other
    while (node < top).any():
        node = _at(above, node)
        found |= node == other
    return found

"""Walking trees down level by level: what lets a whole level of a batch be one network call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from htm_env.forest import active_nodes, children_table


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
    """The position of the starting node that each one stands under."""


def descend(children: Int64[Tensor, "B N 2"], start: Int64[Tensor, "S"]) -> list[Level]:
    """Walk from the flat node ids ``start`` down to the leaves, one level at a time.

    A node that stands under several starting nodes appears once for each of them, so the same walk
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

"""A tree as a dendrogram: its leaves side by side in the order within the pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from htm_env.drawing.glyphs import MANY
from htm_env.trees.merge_tree import MergeTree

Numbers = NDArray[np.floating[Any]]


def dendrogram_places(tree: MergeTree) -> Numbers:
    """(n + M,) where each node stands along the leaves ``0 .. n-1``: over the middle of its two.

    As scipy's ``dendrogram`` lays it out, in units of leaves; without recursion, so a chain may be
    deep.
    """
    order: list[int] = []
    pairs = {parent: (first, second) for parent, first, second in tree.children()}
    pending = tree.roots()[::-1]
    while pending:
        node = pending.pop()
        if node in pairs:
            pending += reversed(pairs[node])
        else:
            order.append(node)
    places = np.zeros(tree.num_nodes)
    places[order] = np.arange(tree.num_leaves)
    for parent, first, second in tree.children():
        places[parent] = (places[first] + places[second]) / 2
    return places


def draw_dendrogram(
    axes: Axes, tree: MergeTree, heights: Numbers, colours: Any, *, sideways: bool = False
) -> Numbers:
    """The links of all merges, and the numbers of the tokens as ticks.

    Args:
        axes: empty ones; their limits are set.
        tree: a whole tree, or a forest.
        heights: (M,) of the merges; the leaves are at 0.
        colours: one for all links, or one for each merge.
        sideways: the leaves on the left and the root on the right, instead of upwards.

    Returns:
        (M, 2) where the merges are in the axes.
    """
    along = dendrogram_places(tree)
    of_node = np.concatenate([np.zeros(tree.num_leaves), heights])
    parents = np.arange(tree.num_leaves, tree.num_nodes)
    first, second = tree.merges.T
    corners = [(first, first), (first, parents), (second, parents), (second, second)]
    lines = np.stack(
        [np.column_stack([along[place], of_node[height]]) for place, height in corners], axis=1
    )  # (M, 4, 2)
    spots = np.column_stack([along, of_node])[tree.num_leaves :]
    if sideways:
        lines, spots = lines[..., ::-1], spots[:, ::-1]
    width = 1.6 if tree.num_leaves <= MANY else 0.8
    axes.add_collection(
        LineCollection(list(lines), colors=colours, linewidths=width, joinstyle="miter")
    )
    across, highest = (-0.6, tree.num_leaves - 0.4), float(max(heights, default=1.0)) or 1.0
    ticks = along[: tree.num_leaves]
    names = [str(leaf) for leaf in range(tree.num_leaves)]
    size = 7 if tree.num_leaves <= MANY else 4
    if sideways:
        axes.set_ylim(across[::-1])  # the first leaf on top
        axes.set_xlim(-0.015 * highest, 1.06 * highest)
        axes.set_yticks(ticks, names, fontsize=size)
        axes.set_ylabel("token", fontsize=8)
    else:
        axes.set_xlim(across)
        axes.set_ylim(-0.015 * highest, 1.06 * highest)
        axes.set_xticks(ticks, names, fontsize=size)
        axes.set_xlabel("token", fontsize=8)
    axes.tick_params(labelsize=7, length=2)
    (axes.yaxis if sideways else axes.xaxis).set_tick_params(labelsize=size, length=0)
    axes.spines[["top", "right", "left" if sideways else "bottom"]].set_visible(False)
    return spots

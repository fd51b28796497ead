"""The tree over the tokens in the plane, and its dendrogram beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from htm_env.drawing.figures.plane import ROUND, draw_numbered_forest, plain_numbers, shown_names
from htm_env.drawing.glyphs import MANY
from htm_env.drawing.rendering import merge_colours, new_figure, plain
from htm_env.drawing.trace import Numbers, Trace
from htm_env.trees.merge_tree import MergeTree


def tree_figure(trace: Trace, heights: str = "order") -> Figure:
    """Tokens, numbered, under their tree; beside them the dendrogram, in the same colours.

    ``heights`` of the dendrogram: ``order``, the merge's number, or ``error``, as
    :func:`charged_heights`. Raises ``ValueError`` for anything else.
    """
    what = "cost" if trace.reconstructions is None else "error (nmse)"
    labels = {"order": "merge", "error": f"{what} charged up to here"}
    if heights not in labels:
        raise ValueError(f"there are no heights {heights!r}: choose from {', '.join(labels)}.")
    tree = trace.tree
    figure = new_figure((7.2, 3.5))
    plane, dendrogram = figure.subplots(1, 2)
    longest = max(map(len, shown_names(trace)))
    bottom = 0.14 if longest <= ROUND else 0.1 + 0.018 * longest  # turned names need room
    figure.subplots_adjust(left=0.07, right=0.98, bottom=bottom, top=0.92, wspace=0.24)
    draw_numbered_forest(plane, trace)
    of_merge = np.arange(1.0, tree.num_leaves) if heights == "order" else charged_heights(trace)
    colours = merge_colours(tree.num_leaves)[: len(tree.merges)]
    spots = draw_dendrogram(dendrogram, trace, of_merge, colours)
    dendrogram.scatter(*spots.T, s=16, c=colours, linewidths=0, zorder=3)
    if heights == "order":
        dendrogram.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    plain_numbers(dendrogram.yaxis)
    dendrogram.set_ylabel(labels[heights], fontsize=8)
    what = f"{plain(trace.title)}: " if trace.title else ""
    plane.set_title(f"{what}{tree.num_leaves} tokens and their tree", fontsize=9)
    dendrogram.set_title("dark: early merges, bright: late ones", fontsize=9)
    return figure


def charged_heights(trace: Trace) -> Numbers:
    """(n - 1,) the error that the merges under each node, and its own, were charged for.

    A merge that lowered the error counts as nothing here, so that no node is lower than its child.
    """
    heights = np.zeros(trace.tree.num_nodes)
    charges = trace.charges.clip(min=0.0)
    for charge, (parent, first, second) in zip(charges, trace.tree.children(), strict=True):
        heights[parent] = charge + heights[first] + heights[second]
    return heights[trace.tree.num_leaves :]


def dendrogram_places(tree: MergeTree) -> Numbers:
    """(n + M,) the place of each node along the leaves ``0 .. n-1``: over the middle of its two.

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


def draw_links(
    axes: Axes, tree: MergeTree, heights: Numbers, colours: Any, *, sideways: bool = False
) -> Numbers:
    """The links of all merges alone; arguments and result are those of :func:`draw_dendrogram`."""
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
    return spots


def draw_dendrogram(
    axes: Axes, trace: Trace, heights: Numbers, colours: Any, *, sideways: bool = False
) -> Numbers:
    """The links of all merges, and the names of the tokens as ticks.

    Args:
        axes: empty ones; their limits are set.
        trace: of a sample, with its tree.
        heights: (M,) of the merges; the leaves are at 0.
        colours: one for all links, or one for each merge.
        sideways: the leaves on the left and the root on the right, instead of upwards.

    Returns:
        (M, 2) where the merges are in the axes.
    """
    tree = trace.tree
    spots = draw_links(axes, tree, heights, colours, sideways=sideways)
    across, highest = (-0.6, tree.num_leaves - 0.4), float(max(heights, default=1.0)) or 1.0
    ticks = dendrogram_places(tree)[: tree.num_leaves]
    names = shown_names(trace)[: tree.num_leaves]
    size = 7 if tree.num_leaves <= MANY else 4
    if sideways:
        axes.set_ylim(across[::-1])  # the first leaf on top
        axes.set_xlim(-0.015 * highest, 1.06 * highest)
        axes.set_yticks(ticks, names, fontsize=size)
        axes.set_ylabel("token", fontsize=8)
    else:
        axes.set_xlim(across)
        axes.set_ylim(-0.015 * highest, 1.06 * highest)
        turned = 90 if max(map(len, names)) > ROUND else 0
        axes.set_xticks(ticks, names, fontsize=size, rotation=turned)
        axes.set_xlabel("token", fontsize=8)
    axes.tick_params(labelsize=7, length=2)
    (axes.yaxis if sideways else axes.xaxis).set_tick_params(labelsize=size, length=0)
    axes.spines[["top", "right", "left" if sideways else "bottom"]].set_visible(False)
    return spots

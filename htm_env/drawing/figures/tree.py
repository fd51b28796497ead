"""The tree over the tokens in the plane, and its dendrogram beside it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from htm_env.drawing.figures.dendrogram import Numbers, draw_dendrogram
from htm_env.drawing.figures.plane import draw_numbered_forest
from htm_env.drawing.figures.ticks import plain_numbers
from htm_env.drawing.rendering import merge_colours, new_figure
from htm_env.drawing.trace import Trace


def tree_figure(trace: Trace, heights: str = "order") -> Figure:
    """Tokens, numbered, under their tree; beside them the dendrogram, in the same colours.

    ``heights`` of the dendrogram: ``order``, the merge's number, or ``error``, as
    :func:`charged_heights`. Raises ``ValueError`` for anything else.
    """
    labels = {"order": "merge", "error": "error charged up to here (nmse)"}
    if heights not in labels:
        raise ValueError(f"there are no heights {heights!r}: choose from {', '.join(labels)}.")
    tree = trace.tree
    figure = new_figure((7.2, 3.5))
    plane, dendrogram = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.14, top=0.92, wspace=0.24)
    draw_numbered_forest(plane, trace)
    of_merge = np.arange(1.0, tree.num_leaves) if heights == "order" else charged_heights(trace)
    colours = merge_colours(tree.num_leaves)[: len(tree.merges)]
    spots = draw_dendrogram(dendrogram, tree, of_merge, colours)
    dendrogram.scatter(*spots.T, s=16, c=colours, linewidths=0, zorder=3)
    if heights == "order":
        dendrogram.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    plain_numbers(dendrogram.yaxis)
    dendrogram.set_ylabel(labels[heights], fontsize=8)
    plane.set_title(f"{tree.num_leaves} tokens and their tree", fontsize=9)
    dendrogram.set_title("dark: early merges, bright: late ones", fontsize=9)
    return figure


def charged_heights(trace: Trace) -> Numbers:
    """(n - 1,) the error that the merges under each node, and its own, were charged for.

    A merge that lowered the error counts as nothing here, so that no node stands under its child.
    """
    heights = np.zeros(trace.tree.num_nodes)
    charges = trace.charges.clip(min=0.0)
    for charge, (parent, first, second) in zip(charges, trace.tree.children(), strict=True):
        heights[parent] = charge + heights[first] + heights[second]
    return heights[trace.tree.num_leaves :]

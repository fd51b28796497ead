"""The plane of the tokens, as the figures of one episode share it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from htm_env.drawing.figures.badges import draw_badges, token_anchors
from htm_env.drawing.glyphs import INK, Tokens, draw_tokens, frame_axes, kind_named
from htm_env.drawing.rendering import draw_forest, forest_lines, merge_colours, node_places
from htm_env.drawing.trace import Trace
from htm_env.trees.merge_tree import MergeTree

MUTED = "#8c8c8c"
"""Of a forest that is not what the figure is about."""


def draw_numbered_forest(axes: Axes, trace: Trace) -> None:
    """The forest over the tokens, whose numbers have rims in the colour of their merge."""
    tree = trace.tree
    draw_forest(axes, trace.tokens, tree.merges, trace.kind)
    name_coordinates(axes, trace)
    edges = np.tile(np.array([0.2, 0.2, 0.2, 1.0]), (tree.num_nodes, 1))
    edges[tree.merges] = merge_colours(tree.num_leaves)[: len(tree.merges), None]
    look = kind_named(trace.kind, trace.tokens.shape[1])
    merged = node_places(tree, look.positions(trace.tokens))[tree.num_leaves :]
    draw_badges(
        axes,
        token_anchors(trace.tokens, trace.kind),
        [str(leaf) for leaf in range(tree.num_leaves)],
        edges=edges[: tree.num_leaves],
        fixed=merged,
    )


def name_coordinates(axes: Axes, trace: Trace) -> None:
    """Name the axes where they show two numbers of a vector, and not a place."""
    token_dim = trace.tokens.shape[1]
    if not kind_named(trace.kind, token_dim).in_the_plane:
        axes.set_xlabel("first coordinate" if token_dim > 1 else "token", fontsize=8, color=INK)
        axes.set_ylabel(
            "second coordinate" if token_dim > 1 else "coordinate",
            fontsize=8,
            color=INK,
            labelpad=1,
        )


def draw_muted_forest(axes: Axes, trace: Trace, made: int) -> Tokens:
    """The tokens and the first ``made`` merges, in grey; returns (n + made, 2) node places."""
    look = kind_named(trace.kind, trace.tokens.shape[1])
    tree = MergeTree(trace.tree.merges[:made], trace.tree.num_leaves)
    places = node_places(tree, look.positions(trace.tokens))
    frame_axes(axes, trace.tokens, trace.kind)
    name_coordinates(axes, trace)
    draw_tokens(axes, trace.tokens, trace.kind, alpha=0.45 if look.image else 1.0, colours=MUTED)
    lines = forest_lines(tree, places)
    if look.image:  # white rims keep the lines apart from the ink
        axes.add_collection(LineCollection(lines, colors="white", linewidths=2.6), autolim=False)
    colour = INK if look.image else MUTED
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=1.2), autolim=False)
    return places

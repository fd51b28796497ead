"""The merges of one sample one after another: side by side, and moving."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from htm_env.drawing.glyphs import kind_named, no_ticks
from htm_env.drawing.rendering import (
    draw_forest,
    draw_reconstruction,
    forest_figure,
    forest_lines,
    merge_colours,
    new_figure,
    node_places,
    repeating_gif,
)
from htm_env.drawing.trace import Trace
from htm_env.trees.merge_tree import MergeTree

PANELS = 24
"""Most panels of a filmstrip; longer episodes show evenly spaced merges, from first to last."""
GIF_DOTS_PER_INCH = 150
FRAME_MILLISECONDS, LAST_MILLISECONDS = 800, 3000


def filmstrip_figure(trace: Trace) -> Figure:
    """The forest after every merge, the newest in bold, and the reconstruction from the root if
    there is one."""
    merges = len(trace.tree.merges)
    made = np.unique(np.linspace(0, merges, min(merges + 1, PANELS)).round().astype(int))
    panels = len(made) + (trace.reconstruction is not None)
    columns = min(panels, max(4, int(np.ceil(np.sqrt(1.5 * panels)))))
    rows = -(-panels // columns)
    width, height = 0.1 + 1.55 * columns, 0.1 + 1.8 * rows
    figure = new_figure((width, height))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    figure.subplots_adjust(0.1 / width, 0.1 / height, 1 - 0.1 / width, 1 - 0.28 / height, 0.06, 0.2)
    for axes, count in zip(grid, made.tolist(), strict=False):
        _draw_step(axes, trace, count)
    if trace.reconstruction is not None:
        last = grid[len(made)]
        draw_reconstruction(last, trace.tokens, trace.reconstruction, trace.kind)
        last.set_title("from the root alone", fontsize=7.5, pad=3)
    for axes in grid[:panels]:
        no_ticks(axes)
        if not kind_named(trace.kind, trace.tokens.shape[1]).in_the_plane:
            axes.set_box_aspect(1)
    for axes in grid[panels:]:
        axes.set_visible(False)
    return figure


def merges_gif(trace: Trace) -> bytes:
    """An animated GIF that repeats: the forest after every merge beside what it decodes to, or the
    tokens where nothing is decoded."""

    def after(made: int) -> Figure:
        merges = trace.tree.merges[:made]
        reconstruction = None if trace.reconstructions is None else trace.reconstructions[made]
        title = f"{trace.error_name} {trace.errors[made]:.3g}"
        return forest_figure(trace.tokens, merges, reconstruction, trace.kind, title)

    figures = map(after, range(len(trace.errors)))
    return repeating_gif(figures, GIF_DOTS_PER_INCH, FRAME_MILLISECONDS, LAST_MILLISECONDS)


def _draw_step(axes: Axes, trace: Trace, made: int) -> None:
    tree = MergeTree(trace.tree.merges[:made], trace.tree.num_leaves)
    draw_forest(axes, trace.tokens, tree.merges, trace.kind)
    name = f"merge {made}" if made else "tokens"
    axes.set_title(f"{name}: {trace.error_name} {trace.errors[made]:.3g}", fontsize=7.5, pad=3)
    if made:
        look = kind_named(trace.kind, trace.tokens.shape[1])
        newest = forest_lines(tree, node_places(tree, look.positions(trace.tokens)))[-2:]
        colour = merge_colours(tree.num_leaves)[made - 1]
        bold = LineCollection(newest, colors=[colour], linewidths=3.5, capstyle="round", zorder=3)
        axes.add_collection(bold, autolim=False)

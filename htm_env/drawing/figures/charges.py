"""The reconstruction error that each merge was charged for."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from htm_env.drawing.figures.plane import (
    MUTED,
    draw_badges,
    draw_muted_forest,
    plain_numbers,
    shown_names,
)
from htm_env.drawing.figures.tree import draw_dendrogram
from htm_env.drawing.glyphs import BLUE, VERMILION, token_anchors
from htm_env.drawing.rendering import new_figure
from htm_env.drawing.trace import Trace

LARGEST, ROOM = 260.0, 16
"""The area of the largest charge's mark, in square points; less for more tokens than have room."""


def charges_figure(trace: Trace) -> Figure:
    """A bar a merge; over the bars the dendrogram, beside them the plane, with marks of that area.

    A charge is the error after a merge minus the error before it, so all of them and the error of
    the leaves add up to that of the root. Raises ``ValueError`` for a sample of one token, which
    has no merges.
    """
    if not len(trace.tree.merges):
        raise ValueError("the charges of merges need at least 2 tokens, but the sample has 1.")
    charges, tree = trace.charges, trace.tree
    colours = np.where(charges > 0, VERMILION, BLUE)
    largest = LARGEST * min(1.0, ROOM / tree.num_leaves)
    areas = largest * np.abs(charges) / max(float(np.abs(charges).max()), 1e-300)
    marks: dict[str, Any] = {"s": areas, "c": colours, "alpha": 0.85, "linewidths": 0}
    figure = new_figure((7.2, 4.0))
    grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1.0])
    grid.update(left=0.07, right=0.98, bottom=0.19, top=0.92, wspace=0.26, hspace=0.08)
    plane = figure.add_subplot(grid[:, 0])
    dendrogram, bars = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])

    places = draw_muted_forest(plane, trace, len(charges))[tree.num_leaves :]
    plane.scatter(*places.T, zorder=5, **marks)
    names = shown_names(trace)[: tree.num_leaves]
    draw_badges(plane, token_anchors(trace.tokens, trace.kind), names, fixed=places)

    steps = np.arange(1, tree.num_leaves)
    spots = draw_dendrogram(dendrogram, trace, steps.astype(float), MUTED, sideways=True)
    dendrogram.scatter(*spots.T, zorder=3, clip_on=False, **marks)
    bars.bar(steps, charges, color=colours, width=0.7)
    bars.axhline(0.0, color="black", linewidth=0.6)
    for axes in (dendrogram, bars):
        axes.set_xlim(0.0, tree.num_leaves - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    dendrogram.tick_params(labelbottom=False)
    bars.tick_params(labelsize=7, length=2)
    bars.spines[["top", "right"]].set_visible(False)
    plain_numbers(bars.yaxis)
    bars.set_xlabel("merge", fontsize=8)
    bars.set_ylabel(f"charge ({trace.error_name})", fontsize=8)
    figure.align_ylabels([dendrogram, bars])
    what = "cost" if trace.reconstructions is None else "error"
    plane.set_title(f"where the {what} came in", fontsize=9)
    first, last = trace.errors[0], trace.errors[-1]
    dendrogram.set_title(f"{trace.error_name}: leaves {first:.2g}, root {last:.3g}", fontsize=9)
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 7}
    handles = [
        Line2D([], [], color=VERMILION, label=f"the merge added {what} (area: how much)", **dot),
        Line2D([], [], color=BLUE, label=f"it took {what} away", **dot),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=7.5, frameon=False)
    return figure

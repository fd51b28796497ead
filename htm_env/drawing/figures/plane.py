"""The plane of the tokens with numbered nodes, as the figures of one episode share it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba_array
from matplotlib.ticker import FuncFormatter

from htm_env.drawing.glyphs import (
    INK,
    MANY,
    Tokens,
    draw_tokens,
    frame_axes,
    kind_named,
    token_anchors,
)
from htm_env.drawing.rendering import (
    draw_forest,
    forest_lines,
    merge_colours,
    node_places,
    plain,
)
from htm_env.drawing.trace import Trace
from htm_env.trees.merge_tree import MergeTree

MUTED = "#8c8c8c"
"""Colour of a forest in the background of a figure."""
LETTERS = 12
"""Letters of a name in a figure, at most."""
ROUND = 3
"""Letters of the longest name in a circle."""
GOLDEN_ANGLE = 2.399963
ROUNDS = 200
"""Iterations of pushing apart, at most."""


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
        shown_names(trace)[: tree.num_leaves],
        edges=edges[: tree.num_leaves],
        fixed=merged,
    )


def shown_names(trace: Trace) -> list[str]:
    """What a figure calls the nodes: their names, the long ones shortened."""
    return [
        plain(name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}")
        for name in trace.names
    ]


def name_coordinates(axes: Axes, trace: Trace) -> None:
    """Name the axes where they show two numbers of a vector, and not a place."""
    token_dim = trace.tokens.shape[1]
    if not kind_named(trace.kind, token_dim).in_the_plane:
        axes.set_xlabel("first coordinate" if token_dim > 1 else "token", fontsize=8, color=INK)
        second = "second coordinate" if token_dim > 1 else "coordinate"
        axes.set_ylabel(second, fontsize=8, color=INK, labelpad=1)


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


def badge_points(count: int) -> float:
    """The diameter of a badge in points, where so many nodes are numbered."""
    return 11.0 if count <= MANY // 2 else 9.0 if count <= MANY else 6.0


def draw_badges(
    axes: Axes,
    places: Tokens,
    names: list[str],
    *,
    edges: Any = INK,
    fixed: Tokens | None = None,
    gap: float = 1.0,
) -> Tokens:
    """Circles with names (k,) at the places (k, 2), or as near as they do not overlap.

    Longer names than three letters are in boxes of their width.

    Between two there are at least ``gap`` points. They also keep clear of the ``fixed`` places
    (m, 2), and a thin line joins one that had to move to where it belongs. The limits and the place
    of the axes must be final. Returns (k, 2) where the badges are.
    """
    size = badge_points(len(places))
    axes.apply_aspect()
    figure = axes.get_figure(root=True)
    assert figure is not None  # the axes are drawn, so they have one
    points = 72.0 / figure.dpi  # of a pixel
    to_points = axes.transData.transform
    wanted = to_points(places) * points
    obstacles = np.empty((0, 2)) if fixed is None else to_points(fixed) * points
    frame = axes.bbox.get_points() * points
    found = spread(wanted, obstacles, size + gap, size / 2 + 4.0)
    found = found.clip(frame[0] + size / 2 + 1, frame[1] - size / 2 - 1)
    spots = axes.transData.inverted().transform(found / points)
    moved = np.linalg.norm(found - wanted, axis=1) > size / 2
    leaders = list(np.stack([places, spots], axis=1)[moved])
    axes.add_collection(
        LineCollection(leaders, colors=INK, linewidths=0.6, zorder=6), autolim=False
    )
    disc: dict[str, Any] = {"s": size**2, "facecolors": "white", "linewidths": 1.0, "zorder": 7}
    look: dict[str, Any] = {"fontsize": 0.58 * size, "color": INK, "zorder": 8, "clip_on": True}
    look |= {"ha": "center", "va": "center_baseline"}
    if max(map(len, names), default=0) <= ROUND:
        axes.scatter(*spots.T, edgecolors=edges, **disc)
    else:
        look["bbox"] = {"boxstyle": "round,pad=0.2", "facecolor": "white", "linewidth": 0.8}
    rims = np.broadcast_to(to_rgba_array(edges), (len(names), 4))
    for (x, y), name, rim in zip(spots, names, rims, strict=True):
        box = axes.text(x, y, name, **look).get_bbox_patch()
        if box is not None:
            box.set_edgecolor(tuple(rim))
    return spots


def spread(wanted: Tokens, fixed: Tokens, between: float, from_fixed: float) -> Tokens:
    """(k, 2) places near the wanted ones: ``between`` apart, and ``from_fixed`` from the fixed.

    Places that fall together go apart in different directions, always the same ones.
    """
    angles = GOLDEN_ANGLE * np.arange(len(wanted))
    places = wanted + 1e-3 * np.column_stack([np.cos(angles), np.sin(angles)])
    for _ in range(ROUNDS):
        pushes = _pushes(places, places, between) / 2 + _pushes(places, fixed, from_fixed)
        if not pushes.any():
            break
        places = places + pushes
    return places


def _pushes(places: Tokens, others: Tokens, distance: float) -> Tokens:
    """(k, 2) away from all others that are nearer than the distance, as far as is missing."""
    away = places[:, None] - others  # (k, m, 2)
    lengths = np.linalg.norm(away, axis=2, keepdims=True)
    missing = np.where(lengths > 0, (distance - lengths).clip(min=0), 0.0)
    missing[missing < 1e-6] = 0.0
    moves: np.ndarray = (away / np.where(lengths > 0, lengths, 1.0) * missing).sum(axis=1)
    return moves


def plain_numbers(axis: Axis) -> None:
    """Every number for itself, as in 0.0002 or 5e−05: no factor at the end of the axis."""
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    )

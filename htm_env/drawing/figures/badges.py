"""Numbers of nodes in the plane, moved apart where they would cover each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from htm_env.drawing.glyphs import INK, MANY, Tokens, kind_named

GOLDEN_ANGLE = 2.399963
ROUNDS = 200
"""Of pushing apart; what is crowded beyond that stays so."""


def token_anchors(tokens: Tokens, kind: str) -> Tokens:
    """(n, 2) where the number of a token belongs: at an end of a segment, else on the token.

    The segments of a cross share their midpoint, but no end.
    """
    return (
        tokens[:, :2] if kind == "segments" else kind_named(kind, tokens.shape[1]).positions(tokens)
    )


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

    Between two there are at least ``gap`` points. They also keep clear of the ``fixed`` places
    (m, 2), and a thin line joins one that had to move to where it belongs. The limits and the place
    of the axes must be final. Returns (k, 2) where the badges are.
    """
    size = badge_points(len(places))
    axes.apply_aspect()
    figure = axes.get_figure(root=True)
    assert figure is not None  # the axes are drawn, so they stand in one
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
    axes.scatter(
        spots[:, 0],
        spots[:, 1],
        s=size**2,
        facecolors="white",
        edgecolors=edges,
        linewidths=1.0,
        zorder=7,
    )
    for (x, y), name in zip(spots, names, strict=True):
        axes.text(
            x,
            y,
            name,
            fontsize=0.58 * size,
            color=INK,
            zorder=8,
            ha="center",
            va="center_baseline",
            clip_on=True,
        )
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

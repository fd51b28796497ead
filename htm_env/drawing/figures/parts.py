"""Pictures of parts and of samples that are alike: islands of nodes, nearest neighbours, maps, and
trees beside the groups that the data has.

Tokens are numpy arrays ``(n, T)`` in raw units without padding, as in ``rendering.py``; a part is a
mask of the tokens. Vermilion and blue say what is right and what is not where a figure compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from htm_env.drawing.figures.roots import apart
from htm_env.drawing.figures.tree import dendrogram_places
from htm_env.drawing.glyphs import (
    COLOURS,
    FAINT,
    INK,
    VERMILION,
    Tokens,
    draw_tokens,
    frame_axes,
    kind_named,
    no_ticks,
)
from htm_env.drawing.rendering import new_figure, plain
from htm_env.trees.merge_tree import MergeTree

MOST_COLOURS = len(COLOURS)
"""Labels that have a colour, of data with many."""
FORMS = "o^"
"""Of the dots of the first labels, and of as many more with the same colours."""
PANEL = 0.95
"""Side of the panel of a sample, in inches."""
OTHER = "#d5d5d5"
"""Dots of what has no colour of its own."""
LETTERS = 14
"""Of a title over a panel."""
RIGHT = "#009e73"
"""Frames of what has the same label (bluish green of Okabe and Ito)."""
MAP = 4.6
THUMBNAIL = 0.32


class Part(NamedTuple):
    """Some tokens of a sample."""

    tokens: Tokens
    members: Bool[np.ndarray, "n"]
    name: str = ""
    """Its label, or that of the sample."""


class Neighbours(NamedTuple):
    """A row of :func:`neighbours_figure`."""

    query: Part
    nearest: Sequence[Part]
    same: Sequence[bool]
    """True <--> a neighbour has the label of the query."""


class SampleWithGroups(NamedTuple):
    """A sample of :func:`trees_beside_groups_figure`."""

    tokens: Tokens
    tree: MergeTree
    groups: Bool[np.ndarray, "C n"]
    """The clades of the data."""
    title: str = ""


def neighbours_figure(rows: Sequence[Neighbours], kind: str, title: str) -> Figure:
    """A row for each query, its nearest first; green frames are those with its label.

    Raises ``ValueError`` without rows.
    """
    if not rows:
        raise ValueError("a figure of neighbours needs at least 1 row, but got none.")
    columns = 1 + max(len(row.nearest) for row in rows)
    width, height = 0.1 + (PANEL + 0.07) * columns + 0.25, 0.55 + (PANEL + 0.3) * len(rows)
    figure = new_figure((width, height), dpi=150)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=0.05 / width,
        right=1 - 0.2 / width,
        bottom=0.05 / height,
        top=1 - 0.6 / height,
        wspace=0.12,
        hspace=0.34,
    )
    for axes_of_row, row in zip(grid, rows, strict=True):
        shown = [(row.query, "query"), *zip(row.nearest, row.same, strict=True)]
        for axes, (part, same) in zip(axes_of_row, shown, strict=False):
            colour = INK if same == "query" else RIGHT if same else FAINT
            draw_part(axes, part, kind, INK if part.members.all() else VERMILION, PANEL)
            _frame(axes, colour, 2.2 if same == "query" or same else 0.8)
            axes.set_title(_short(part.name), fontsize=6.5, pad=2, color=INK)
        for axes in axes_of_row[len(shown) :]:
            axes.set_visible(False)
    # The query is apart from what was found.
    for axes in grid[:, 1:].flatten():
        place = axes.get_position()
        axes.set_position((place.x0 + 0.12 / width, place.y0, place.width, place.height))
    figure.suptitle(title, fontsize=9, y=1 - 0.12 / height, va="top")
    return figure


def label_map_figure(
    places: Float[np.ndarray, "N 2"],
    labels: Int64[np.ndarray, "N"],
    names: Sequence[str],
    draw: Callable[[list[int]], UInt8[np.ndarray, "_ pixels pixels 3"]],
    title: str,
) -> Figure:
    """Samples in the plane: the most frequent labels in colours, and thumbnails with their rims.

    Args:
        places: of the samples.
        labels: numbers of ``names``.
        names: of the labels.
        draw: makes the thumbnails of the samples with these numbers.
        title: over the figure.
    """
    every = len(FORMS) * MOST_COLOURS
    frequent = _frequent(labels, every if len(np.unique(labels)) <= every else MOST_COLOURS)
    figure = new_figure((2 * MAP + 0.3, MAP + 0.75), dpi=150)
    marked, pictured = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.09, top=0.88, wspace=0.03)
    for axes in (marked, pictured):
        _fit(axes, places)
    _draw_labels(marked, places, labels, frequent)
    pictured.scatter(places[:, 0], places[:, 1], s=3, color=OTHER, linewidths=0)
    first = np.argsort(~np.isin(labels, frequent), kind="stable")  # those with a colour
    units = np.ptp([pictured.get_xlim(), pictured.get_ylim()], axis=1) / MAP  # of an inch
    chosen = first[apart(places[first] / units, 1.35 * THUMBNAIL)].tolist()
    for row, picture in zip(chosen, draw(chosen), strict=True):
        number = frequent.index(labels[row]) if labels[row] in frequent else None
        colour = OTHER if number is None else COLOURS[number % MOST_COLOURS]
        _thumbnail(pictured, picture, (float(places[row, 0]), float(places[row, 1])), colour)
    most = "" if len(np.unique(labels)) == len(frequent) else f"{len(frequent)} most frequent "
    marked.set_title(f"colours: the {most}labels", fontsize=8)
    pictured.set_title("some of the samples, framed in the colour of their label", fontsize=8)
    _legend(figure, frequent, names)
    figure.suptitle(title, fontsize=9, y=0.985)
    return figure


def islands_of_parts_figure(
    places: Float[np.ndarray, "M 2"],
    labels: Int64[np.ndarray, "M"],
    names: Sequence[str],
    samples: Sequence[tuple[Tokens, Int64[np.ndarray, "n"]]],
    kind: str,
    title: str,
) -> Figure:
    """Nodes of all samples in the plane, and samples whose tokens have the colours of their parts.

    Args:
        places: of the inner nodes.
        labels: of the nodes, -1 for none; the most frequent ones get a colour.
        names: of the labels.
        samples: tokens, and of each token the label of the part that it is drawn as, or -1.
        kind: of the tokens.
        title: over the figure.
    """
    frequent = _frequent(labels[labels >= 0], len(COLOURS))
    columns = 6
    rows = -(-len(samples) // columns)
    figure = new_figure((MAP + columns * (PANEL + 0.06) + 0.3, MAP + 0.65), dpi=150)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.1 / width, 0.4 / height, (MAP - 0.1) / width, (MAP - 0.1) / height))
    _fit(axes, places)
    _draw_labels(axes, places, labels, frequent)
    room = (MAP - 0.1) / max(rows, 1)
    side = min(PANEL, room - 0.06)
    for number, (tokens, parts) in enumerate(samples):
        row, column = divmod(number, columns)
        left, bottom = MAP + 0.2 + column * (PANEL + 0.06), 0.4 + MAP - 0.1 - (row + 1) * room
        panel = figure.add_axes((left / width, bottom / height, side / width, side / height))
        frame_axes(panel, tokens, kind)
        chosen = [
            COLOURS[frequent.index(label)] if label in frequent else "#b8b8b8"
            for label in parts.tolist()
        ]
        draw_tokens(panel, tokens, kind, colours=chosen)
        _scale_dots(panel, side)
        no_ticks(panel)
        _frame(panel, "#e4e4e4", 0.6)
    _legend(figure, frequent, names)
    figure.suptitle(title, fontsize=9, y=0.985)
    return figure


def trees_beside_groups_figure(
    samples: Sequence[SampleWithGroups], kind: str, columns: int = 3
) -> Figure:
    """Each sample with its tokens in the colours of the data's groups, beside its merge tree as
    pictures: every node of the tree is drawn as the tokens under it, and framed in green where
    these are one of the groups.

    Raises ``ValueError`` without samples.
    """
    if not samples:
        raise ValueError("a figure of trees needs at least 1 sample, but got none.")
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    panel_width, panel_height = 4.0, 2.7
    figure = new_figure((columns * panel_width, rows * panel_height + 0.3), dpi=150)
    height = rows * panel_height + 0.3
    for number, sample in enumerate(samples):
        row, column = divmod(number, columns)
        left, bottom = column / columns, (height - (row + 1) * panel_height) / height
        box = (left, bottom, 1 / columns, panel_height / height)
        _draw_beside(figure, box, sample, kind, (panel_width, panel_height))
    handles = [
        Line2D(
            [],
            [],
            color=RIGHT,
            linewidth=2,
            label="a node that is one of the groups of the data, which are in colours on the left",
        ),
        Line2D([], [], color="#999999", linewidth=1, label="any other node"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=8, frameon=False)
    return figure


# ---------------------------------------------------------------- pieces


def draw_part(
    axes: Axes, part: Part, kind: str, colour: str, inches: float, faint: str = "#c8c8c8"
) -> None:
    """The tokens of a part in a colour, over the faint others; of images the part alone.

    ``inches`` is the side of the panel, to which dots are scaled.
    """
    tokens, members = part.tokens, part.members
    frame_axes(axes, tokens, kind)
    if kind_named(kind, tokens.shape[1]).image:
        if members.any():
            draw_tokens(axes, tokens[members], kind, reference=tokens)
    else:  # all at once, since the place of a token may depend on the others
        order = np.argsort(members, kind="stable")
        colours = [colour if member else faint for member in members[order].tolist()]
        draw_tokens(axes, tokens[order], kind, colours=colours)
    _scale_dots(axes, inches)
    no_ticks(axes)


def _scale_dots(axes: Axes, inches: float) -> None:
    """Make dots smaller in panels of less than two inches."""
    for drawn in axes.collections:
        if isinstance(drawn, PathCollection):
            drawn.set_sizes(drawn.get_sizes() * inches / 2)


def group_colours(groups: Bool[np.ndarray, "C n"], count: int) -> list[Any]:
    """A colour for each token: that of the largest group it is in; ink for tokens in none."""
    sizes = groups.sum(axis=1)
    colours: list[Any] = [INK] * count
    number = 0
    for row in np.argsort(-sizes, kind="stable").tolist():
        members = np.flatnonzero(groups[row])
        if len(members) and all(colours[token] == INK for token in members):
            for token in members:
                colours[token] = COLOURS[number % len(COLOURS)]
            number += 1
    return colours


def _draw_beside(
    figure: Figure,
    box: tuple[float, float, float, float],
    sample: SampleWithGroups,
    kind: str,
    inches: tuple[float, float],
) -> None:
    left, bottom, width, height = box
    wide, high = inches
    tree, count = sample.tree, len(sample.tokens)

    def place(x: float, y: float, side: float) -> tuple[float, float, float, float]:
        """A square around a point, all in inches of the box, as shares of the figure."""
        x, y = x - side / 2, y - side / 2
        return (
            left + x / wide * width,
            bottom + y / high * height,
            side / wide * width,
            side / high * height,
        )

    whole = figure.add_axes(place(0.62, high / 2, 1.1))
    frame_axes(whole, sample.tokens, kind)
    draw_tokens(whole, sample.tokens, kind, colours=group_colours(sample.groups, count))
    _scale_dots(whole, 1.1)
    no_ticks(whole)
    _frame(whole, "#e4e4e4", 0.8)
    whole.set_title(plain(sample.title), fontsize=8, pad=3)

    heights = tree.heights()
    top, from_left, to_right = max(int(heights.max()), 1), 1.35, wide - 0.1
    side = min(0.36, (to_right - from_left) / count - 0.03, (high - 0.3) / (top + 1) - 0.06)
    step = (to_right - from_left) / count
    x = from_left + (dendrogram_places(tree) + 0.5) * step
    y = 0.15 + side / 2 + heights / top * (high - 0.3 - side)
    lines = figure.add_axes((left, bottom, width, height))
    lines.set_xlim(0, wide)
    lines.set_ylim(0, high)
    lines.set_axis_off()
    for parent, *children in tree.children():
        for child in children:
            lines.plot(
                [x[parent], x[child], x[child]],
                [y[parent], y[parent], y[child]],
                color="#999999",
                linewidth=0.8,
                zorder=0,
            )
    clades = [*(frozenset([leaf]) for leaf in range(count)), *tree.clades()]
    groups = {frozenset(np.flatnonzero(group).tolist()) for group in sample.groups}
    for node, clade in enumerate(clades):
        axes = figure.add_axes(place(float(x[node]), float(y[node]), side))
        members = np.isin(np.arange(count), list(clade))
        _draw_small(axes, Part(sample.tokens, members), kind, side)
        right = clade in groups and len(clade) > 1
        _frame(axes, RIGHT if right else "#999999", 1.8 if right else 0.5)


def _draw_small(axes: Axes, part: Part, kind: str, inches: float) -> None:
    """A part in a panel of a third of an inch, with thin lines."""
    draw_part(axes, part, kind, INK, inches, faint="#dddddd")
    for drawn in axes.collections:
        drawn.set_linewidth((0.45 * np.asarray(drawn.get_linewidth())).tolist())


def _frequent(labels: Int64[np.ndarray, "N"], most: int) -> list[int]:
    values, counts = np.unique(labels, return_counts=True)
    found: list[int] = values[np.argsort(-counts, kind="stable")][:most].tolist()
    return found


def _fit(axes: Axes, places: Float[np.ndarray, "N 2"]) -> None:
    """Limits around these places, in a square without ticks: distances have no unit here."""
    low, high = places.min(axis=0), places.max(axis=0)
    margin = 0.05 * np.where(high > low, high - low, 1.0)
    (left, lower), (right, upper) = low - margin, high + margin
    axes.set_xlim(left, right)
    axes.set_ylim(lower, upper)
    axes.set_box_aspect(1)
    no_ticks(axes)
    axes.spines[:].set_color(FAINT)


def _draw_labels(
    axes: Axes,
    places: Float[np.ndarray, "N 2"],
    labels: Int64[np.ndarray, "N"],
    frequent: Sequence[int],
) -> None:
    others = ~np.isin(labels, frequent)
    x, y = places.T
    axes.scatter(x[others], y[others], s=5, color=OTHER, linewidths=0)
    for label, (colour, form) in zip(frequent, _looks(), strict=False):
        here = labels == label
        axes.scatter(x[here], y[here], s=13, color=colour, marker=form, linewidths=0, zorder=3)


def _looks() -> list[tuple[str, str]]:
    """Colours and forms of labels."""
    return [(colour, form) for form in FORMS for colour in COLOURS]


def _legend(figure: Figure, labels: Sequence[int], names: Sequence[str]) -> None:
    """The colours of the labels under a figure."""
    dot: dict[str, Any] = {"linestyle": "none", "markersize": 5}
    handles = [
        Line2D([], [], color=colour, marker=form, label=_short(names[label]), **dot)
        for label, (colour, form) in zip(labels, _looks(), strict=False)
    ]
    place: dict[str, Any] = {"loc": "lower center", "ncols": max(len(handles), 1)}
    figure.legend(handles=handles, fontsize=7, frameon=False, **place)


def _thumbnail(axes: Axes, picture: np.ndarray, place: tuple[float, float], colour: str) -> None:
    image = OffsetImage(
        picture[1:-1, 1:-1], zoom=72 * THUMBNAIL / len(picture), interpolation="antialiased"
    )
    rim = {"edgecolor": colour, "linewidth": 1.0 if colour != OTHER else 0.5}
    axes.add_artist(AnnotationBbox(image, place, pad=0.1, bboxprops=rim))


def _frame(axes: Axes, colour: str, width: float) -> None:
    axes.spines[:].set_color(colour)
    axes.spines[:].set_linewidth(width)


def _short(name: str) -> str:
    shown = plain(name)
    return shown if len(shown) <= LETTERS else f"{shown[: LETTERS - 1]}…"

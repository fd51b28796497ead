"""The policy's probabilities of all ordered pairs before one merge."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle

from htm_env.drawing.figures.plane import (
    ROUND,
    badge_points,
    draw_badges,
    draw_muted_forest,
    plain_numbers,
    shown_names,
)
from htm_env.drawing.glyphs import BLUE, VERMILION, Tokens, token_anchors
from htm_env.drawing.rendering import new_figure
from htm_env.drawing.trace import Considered, Trace

LEAST = 1e-3
"""Probabilities below have the palest colour, and no arrow."""
ARROWS = 6
"""The most probable pairs that are drawn over the tokens; the chosen one always is."""
INCHES_A_LETTER = 0.055
GAP = 13.0
"""Points between the numbers of nodes, for an arrow to be seen."""
NUMBERED = 8
"""Nodes, up to which the cells of the map carry their numbers."""
ARROW: dict[str, Any] = {
    "arrowstyle": "-|>",
    "connectionstyle": "arc3,rad=0.22",
    "mutation_scale": 8,
    "joinstyle": "miter",
    "zorder": 6.5,
}
NO_PAIR = "#d9d9d9"
COLOURS = colormaps["Blues"]


def probabilities_figure(trace: Trace, step: int) -> Figure:
    """The policy's choice of merge ``step`` (from 0): a map of all ordered pairs, and the plane.

    The map's rows are the first node of a pair and its columns the second, by the names of the
    nodes. In the plane, arrows run from first to second, wider and darker for what is more
    probable; active nodes have their names.

    Raises ``ValueError`` where the trace has no probabilities, or no such merge.
    """
    merges = len(trace.tree.merges)
    _check_considered(trace)
    if not 0 <= step < merges:
        raise ValueError(f"there is no merge {step}: the merges are 0 to {merges - 1}.")
    considered, names = trace.considered[step], shown_names(trace)
    first, second = trace.tree.merges[step].tolist()
    longest = max(len(names[node]) for node in considered.nodes)
    room = INCHES_A_LETTER * max(longest - ROUND, 0)  # beside and under the map, and in the legend
    width, height = 8.4 + 3 * room, 3.9 + room
    figure = new_figure((width, height))
    low, high = (0.51 + room) / height, 3.02 / height
    table = figure.add_axes(((0.5 + room) / width, low, 3.1 / width, high))
    plane = figure.add_axes(((4.33 + room) / width, low, 2.56 / width, high))
    plane.set_anchor("N")
    _draw_map(figure, table, names, considered, (first, second))
    places = draw_muted_forest(plane, trace, step)
    anchors = np.concatenate([token_anchors(trace.tokens, trace.kind), places[len(trace.tokens) :]])
    badges = [names[node] for node in considered.nodes]
    spots = draw_badges(plane, anchors[considered.nodes], badges, gap=GAP)
    _draw_arrows(figure, plane, names, considered, (first, second), spots)
    table.set_title(f"choice of merge {step + 1} of {merges}", fontsize=9)
    plane.set_title("the most probable pairs", fontsize=9)
    return figure


def least_certain_step(trace: Trace) -> int:
    """The step (from 0) whose merge had the least probability.

    Raises ``ValueError`` where the trace has no probabilities.
    """
    _check_considered(trace)
    chosen = [
        considered.probabilities[tuple(np.searchsorted(considered.nodes, pair))]
        for considered, pair in zip(trace.considered, trace.tree.merges, strict=True)
    ]
    return int(np.argmin(chosen))


def _check_considered(trace: Trace) -> None:
    if not trace.considered:
        raise ValueError("this trace has no probabilities: no policy network chose its merges.")


def _draw_map(
    figure: Figure, axes: Axes, names: list[str], considered: Considered, chosen: tuple[int, int]
) -> None:
    nodes, probabilities = considered
    count = len(nodes)
    shown = np.ma.masked_array(probabilities.clip(min=LEAST), mask=np.eye(count, dtype=bool))
    image = axes.imshow(shown, cmap=COLOURS, norm=LogNorm(LEAST, 1.0), aspect="equal")
    axes.set_facecolor(NO_PAIR)
    ticks = [names[node] for node in nodes]
    size = 7 if count <= 16 else max(2.5, 7 * 16 / count)
    turned = 90 if max(map(len, ticks)) > ROUND else 0
    axes.set_xticks(range(count), ticks, fontsize=size, rotation=turned)
    axes.set_yticks(range(count), ticks, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("second node of the pair", fontsize=8)
    axes.set_ylabel("first node of the pair", fontsize=8)
    if count <= NUMBERED:
        for (row, column), value in np.ndenumerate(probabilities):
            if row != column and value >= LEAST:
                share = float(value)
                dark = share > LEAST**0.45  # the middle of the logarithmic colours
                look: dict[str, Any] = {"fontsize": 6.5, "color": "white" if dark else "black"}
                axes.text(column, row, _percent(share), ha="center", va="center_baseline", **look)
    column, row = np.searchsorted(nodes, chosen[1]), np.searchsorted(nodes, chosen[0])
    mark = Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.2
    )
    mark.set_clip_on(False)
    axes.add_patch(mark)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, extend="min")
    bar.ax.set_title("probability", fontsize=7.5, pad=5)
    plain_numbers(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=7)


def _draw_arrows(
    figure: Figure,
    axes: Axes,
    names: list[str],
    considered: Considered,
    chosen: tuple[int, int],
    spots: Tokens,
) -> None:
    nodes, probabilities = considered
    picked = tuple(int(place) for place in np.searchsorted(nodes, chosen))
    order = np.argsort(-probabilities, axis=None, kind="stable")[: ARROWS + 1]
    pairs = [(int(flat) // len(nodes), int(flat) % len(nodes)) for flat in order]
    likely = [pair for pair in pairs if probabilities[pair] >= LEAST and pair != picked]
    handles = []
    gap = badge_points(len(nodes)) / 2 + 1
    for pair in [picked, *likely[: ARROWS - 1]]:
        share = float(probabilities[pair])
        colour = VERMILION if pair == picked else BLUE
        look: dict[str, Any] = {
            "color": colour,
            "linewidth": 0.7 + 3.3 * share,
            "alpha": 0.35 + 0.65 * share,
        }
        start, end = (tuple(spots[place]) for place in pair)
        axes.add_patch(FancyArrowPatch(start, end, **ARROW, shrinkA=gap, shrinkB=gap, **look))
        first, second = (names[nodes[place]] for place in pair)
        label = f"{first} \N{RIGHTWARDS ARROW} {second}   {_percent(share)} %"
        handles.append(Line2D([], [], label=label, **look))
    handles[0].set_label(f"{handles[0].get_label()}\n(chosen)")
    title: dict[str, Any] = {"title": "first \N{RIGHTWARDS ARROW} second", "title_fontsize": 8}
    place: dict[str, Any] = {
        "loc": "center left",
        "bbox_to_anchor": (axes.get_position().x1 + 0.01, 0.5),
    }
    figure.legend(handles=handles, fontsize=7.5, frameon=False, **place, **title)


def _percent(share: float) -> str:
    """As short as it can be and still tell: 97, 3.2, 0.4."""
    percent = 100 * share
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"

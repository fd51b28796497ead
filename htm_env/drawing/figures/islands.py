"""Pictures of islands of agreement (Hinton 2021): one colour an island, a panel a level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from htm_env.drawing.glyphs import no_ticks
from htm_env.drawing.rendering import new_figure, repeating_gif

PANEL = 1.35
"""Side of a panel, in inches."""
DOTS_PER_INCH = 80
"""Of an animation."""
FRAME_MILLISECONDS, LAST_MILLISECONDS = 500, 2000

Labels = Int64[np.ndarray, "L P"]


def islands_figure(
    scenes: Sequence[tuple[Float[np.ndarray, "P 2"], Labels, np.ndarray | None]],
    titles: Sequence[str] = (),
) -> Figure:
    """A row for each scene: the image if there is one, then a panel for every level from the lowest
    to the top.

    Args:
        scenes: places ``(x, y)`` of the columns, y downwards; the number of each one's island at
            every level (-1: none); and the image ``(H, W)`` or ``(H, W, 3)`` or None, which the
            places are spread over evenly, row by row.
        titles: one a row.
    """
    levels, given = len(scenes[0][1]), any(image is not None for _, _, image in scenes)
    columns = levels + given
    figure = new_figure((PANEL * columns, (PANEL + 0.2) * len(scenes)), dpi=150, constrained=True)
    grid = figure.subplots(len(scenes), columns, squeeze=False)
    for number, (row, (places, labels, image)) in enumerate(zip(grid, scenes, strict=True)):
        if given and image is not None:
            row[0].imshow(image, cmap="gray_r", interpolation="nearest")
        for level, axes in enumerate(row[given:]):
            _draw(axes, places, labels[level], image is not None)
            count = len(set(labels[level].tolist()) - {-1})
            axes.set_title(f"level {level + 1}: {count}", fontsize=7, pad=3)
        for axes in row:
            no_ticks(axes)
        if number < len(titles):
            row[0].set_ylabel(titles[number], fontsize=7)
    return figure


def islands_gif(
    places: Float[np.ndarray, "P 2"],
    states: Sequence[Labels],
    image: np.ndarray | None = None,
) -> bytes:
    """An animated GIF that repeats: the islands of one scene after every iteration."""
    figures = (
        islands_figure([(places, labels, image)], [f"iteration {iteration}"])
        for iteration, labels in enumerate(states)
    )
    return repeating_gif(figures, DOTS_PER_INCH, FRAME_MILLISECONDS, LAST_MILLISECONDS)


def island_colours(labels: Int64[np.ndarray, "P"]) -> Float[np.ndarray, "P 4"]:
    """One colour an island, that of columns alone a light grey; none of what is no column."""
    table = colormaps["tab20"].colors  # type: ignore[attr-defined]  # of a listed colour map
    colours = np.zeros((len(labels), 4))
    number = 0
    for label in dict.fromkeys(labels[labels >= 0].tolist()):
        here = labels == label
        colours[here] = (0.88, 0.88, 0.88, 1.0) if here.sum() == 1 else (*table[number % 20], 1.0)
        number += here.sum() > 1
    return colours


def _draw(
    axes: Axes, places: Float[np.ndarray, "P 2"], labels: Int64[np.ndarray, "P"], tiled: bool
) -> None:
    colours = island_colours(labels)
    if tiled:
        rows = len(np.unique(places[:, 1]))
        axes.imshow(colours.reshape(rows, -1, 4), interpolation="nearest")
        return
    axes.scatter(places[:, 0], places[:, 1], c=colours, s=18, edgecolors="0.5", linewidths=0.3)
    axes.set_aspect("equal", "datalim")
    axes.invert_yaxis()
    axes.margins(0.12)

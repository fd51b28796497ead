"""A map of embeddings along two principal components, and thumbnails of the samples on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from htm_env.drawing.glyphs import COLOURS, draw_tokens, frame_axes
from htm_env.drawing.rendering import figure_to_array, new_figure, plain

FEW = 12
"""Different values that are drawn as numerals; more of them are dots on a scale of colours."""
NUMERALS = 2
"""Letters of a name that is drawn in the place of a dot."""
FORMS = ("o", "^", "s")
NAMED = len(FORMS) * len(COLOURS)
"""Different names of a legend, at most."""
PANEL = 4.3
THUMBNAIL = 0.3
"""Inches."""
PIXELS = 48
RIM = 0xC4
"""Grey of the outermost pixels, so that thumbnails beside each other can be told apart."""
NO_COMPONENT = 1e-12
"""A share of the variance below which an axis has nothing to show."""


class Plane(NamedTuple):
    """Embeddings along their first two principal components."""

    places: Float[np.ndarray, "N 2"]
    shares: Float[np.ndarray, "2"]
    """Shares of the variance, in [0, 1]."""


def principal_plane(embeddings: Float[np.ndarray, "N D"]) -> Plane:
    """The two directions in which embeddings vary most; a second one that is missing is all zeros.

    Raises ``ValueError`` for fewer than two embeddings, or numbers that are not finite.
    """
    if len(embeddings) < 2:
        raise ValueError(f"a plane needs at least 2 embeddings, not {len(embeddings)}")
    if not np.isfinite(embeddings).all():
        raise ValueError("the embeddings are not all finite")
    from sklearn.decomposition import PCA  # takes a second, and only this needs it

    pca = PCA(min(2, embeddings.shape[1]), svd_solver="full")
    with np.errstate(invalid="ignore"):  # equal embeddings: no variance to share
        found = pca.fit_transform(embeddings.astype(np.float64))
    missing = 2 - found.shape[1]
    shares = np.nan_to_num(np.pad(pca.explained_variance_ratio_, (0, missing)))
    return Plane(np.pad(found, ((0, 0), (0, missing))), shares)


def root_figure(
    embeddings: Float[np.ndarray, "N D"],
    shows: Int64[np.ndarray, "N"],
    what: str,
    pictures: UInt8[np.ndarray, "N pixels pixels 3"],
    title: str,
    names: Sequence[str] | None = None,
) -> Figure:
    """The same map twice: with a value of every sample, and with thumbnails where there is room.

    ``shows`` is a number a sample, such as its label, and ``what`` the value's name; ``names`` are
    those of the numbers from 0, if they have some. Both axes have the same scale, so that distances
    can be compared. Raises ``ValueError`` where
    :func:`principal_plane` does.
    """
    plane = principal_plane(embeddings)
    figure = new_figure((2 * PANEL + 1.0, PANEL + 0.85), dpi=150, constrained=True)
    marked, pictured = figure.subplots(1, 2)
    for axes in (marked, pictured):
        _frame(axes, plane)
    _draw_values(marked, plane.places, shows, what, names)
    x, y = plane.places.T
    pictured.scatter(x, y, s=4, color="#bbbbbb", linewidths=0)
    _draw_thumbnails(pictured, plane.places, pictures)
    pictured.set_title("some of the samples", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _frame(axes: Axes, plane: Plane) -> None:
    low, high = plane.places.min(axis=0), plane.places.max(axis=0)
    half = 0.56 * max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_box_aspect(1)
    names = [
        f"principal component {number} ({share:.0%} of the variance)"
        if share > NO_COMPONENT
        else f"principal component {number} (nothing varies)"
        for number, share in enumerate(plane.shares, start=1)
    ]
    axes.set_xlabel(names[0], fontsize=8)
    axes.set_ylabel(names[1], fontsize=8)
    axes.tick_params(labelsize=7, color="#999999")
    axes.locator_params(nbins=5)
    axes.spines[:].set_color("#999999")


def _draw_values(
    axes: Axes,
    places: Float[np.ndarray, "N 2"],
    shows: Int64[np.ndarray, "N"],
    what: str,
    names: Sequence[str] | None,
) -> None:
    values = np.unique(shows).tolist()
    called = {value: str(value) if names is None else plain(names[value]) for value in values}
    if len(values) == 1:  # nothing to tell apart
        axes.scatter(places[:, 0], places[:, 1], s=9, color=COLOURS[0], linewidths=0)
        axes.set_title(f"all samples ({what}: {called[values[0]]})", fontsize=9)
        return
    short = all(len(name) <= NUMERALS and name.isalnum() for name in called.values())
    if names is not None and not short and len(values) <= NAMED:
        _draw_named(axes, places, shows, called)
        axes.set_title(f"colour: {what}", fontsize=9)
        return
    if len(values) > FEW:
        dots = axes.scatter(places[:, 0], places[:, 1], s=9, c=shows, cmap="viridis", linewidths=0)
        axes.figure.colorbar(dots, ax=axes, label=what, shrink=0.8)
        axes.set_title(f"colour: {what}", fontsize=9)
        return
    for index, value in enumerate(values):
        x, y = places[shows == value].T
        colour, size = COLOURS[index % len(COLOURS)], 34 * len(called[value])
        axes.scatter(x, y, marker=f"${called[value]}$", s=size, color=colour, linewidths=0.2)
    axes.set_title(f"numerals: {what}", fontsize=9)


def _draw_named(
    axes: Axes,
    places: Float[np.ndarray, "N 2"],
    shows: Int64[np.ndarray, "N"],
    called: Mapping[int, str],
) -> None:
    """Dots in the colour, and beyond the palette the form, of their value, with a legend."""
    for index, (value, name) in enumerate(called.items()):
        x, y = places[shows == value].T
        colour, form = COLOURS[index % len(COLOURS)], FORMS[index // len(COLOURS)]
        axes.scatter(x, y, s=14, color=colour, marker=form, linewidths=0, label=name)
    axes.legend(fontsize=7, markerscale=1.5, framealpha=0.8)


def _draw_thumbnails(
    axes: Axes, places: Float[np.ndarray, "N 2"], pictures: UInt8[np.ndarray, "N pixels pixels 3"]
) -> None:
    zoom = 72 * THUMBNAIL / pictures.shape[1]  # a picture's pixel at zoom 1 is a point
    for row in apart(places, (np.ptp(axes.get_xlim()) / PANEL) * 1.25 * THUMBNAIL):
        image = OffsetImage(pictures[row], zoom=zoom, interpolation="antialiased")
        place = float(places[row, 0]), float(places[row, 1])
        axes.add_artist(AnnotationBbox(image, place, frameon=False))  # thumbnails have a rim


def apart(places: Float[np.ndarray, "N 2"], side: float) -> list[int]:
    """The first rows whose squares of that side, around their places, do not overlap."""
    taken: list[int] = []
    for row, place in enumerate(places):
        if (np.abs(places[taken] - place).max(axis=1, initial=0.0) >= side).all():
            taken.append(row)
    return taken


def thumbnails(
    tokens: Float[np.ndarray, "N P T"],
    present: Bool[np.ndarray, "N P"],
    kind: str,
    pixels: int = PIXELS,
) -> UInt8[np.ndarray, "N pixels pixels 3"]:
    """One picture a sample, each fitted to its own tokens, dark on white, within a grey rim.

    Raises ``ValueError`` for an unknown kind, or one that has no such token dimension.
    """
    figure = new_figure((1.0, 1.0), dpi=pixels)  # an inch: dots and lines keep a thumbnail's size
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    made = np.empty((len(tokens), pixels, pixels, 3), dtype=np.uint8)
    for row, (sample, here) in enumerate(zip(tokens, present, strict=True)):
        axes.clear()
        frame_axes(axes, sample[here], kind)
        axes.set_axis_off()
        draw_tokens(axes, sample[here], kind)
        made[row] = RIM
        made[row, 1:-1, 1:-1] = figure_to_array(figure)[1:-1, 1:-1]
    return made

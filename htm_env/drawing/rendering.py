"""Pictures and text of a token set, the forest over it, and its reconstruction.

Tokens are numpy arrays ``(n, T)`` in raw units without padding, merges ``(M, 2)`` node ids (rows of
-1 pad), and a kind is one of ``KINDS`` in ``glyphs.py``. Figures have their own Agg canvas, so
nothing here touches pyplot, except :class:`Window`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from htm_env.checks import brief
from htm_env.drawing.glyphs import (
    FAINT,
    INK,
    MANY,
    VERMILION,
    Tokens,
    draw_tokens,
    frame_axes,
    kind_named,
    no_ticks,
)
from htm_env.trees.merge_tree import MergeTree

Merges = NDArray[np.integer[Any]]

MERGE_COLOURS = matplotlib.colormaps["viridis"]
LAST_MERGE = 0.88  # the end of viridis is too light for lines on white
FRAME_SIZE, DOTS_PER_INCH = (6.4, 3.2), 100  # 640 x 320 pixels: video encoders need even numbers


class Sample(NamedTuple):
    """One column of :func:`samples_figure`."""

    tokens: Tokens
    merges: Merges
    reconstruction: Tokens | None
    """None where nothing is decoded."""
    title: str = ""


# ---------------------------------------------------------------- forests and figures


def node_places(tree: MergeTree, leaves: Tokens) -> Tokens:
    """(n + M, 2) places of all nodes: the mean over the leaves (n, 2) under each."""
    inner = [leaves[list(clade)].mean(axis=0) for clade in tree.clades()]
    return np.concatenate([leaves, np.reshape(inner, (-1, 2))])


def forest_lines(tree: MergeTree, places: Tokens) -> list[Tokens]:
    """2 M lines (2, 2), two for each merge: from its children to it, by the nodes' places."""
    parents = np.repeat(places[tree.num_leaves :, None], 2, axis=1)
    return list(np.stack([places[tree.merges], parents], axis=2).reshape(-1, 2, 2))


def draw_forest(axes: Axes, tokens: Tokens, merges: Merges, kind: str) -> None:
    """Tokens (n, T) and the forest over them.

    Every merge is a pair of lines that join its two children, each at the centroid of its leaves,
    to the parent. Its colour tells the first merge from the last of a whole tree; tokens take the
    colour of the merge that used them. Rings mark the active nodes.
    """
    look = kind_named(kind, tokens.shape[1])
    tree = MergeTree(merges, len(tokens))
    places = node_places(tree, look.positions(tokens))
    colours = merge_colours(len(tokens))[: len(tree.merges)]
    token_colours = np.tile(to_rgba(INK), (tree.num_nodes, 1))
    token_colours[tree.merges] = colours[:, None]
    frame_axes(axes, tokens, kind)
    draw_tokens(
        axes, tokens, kind, colours=token_colours[: len(tokens)], alpha=0.45 if look.image else 1.0
    )

    many = len(tokens) > MANY
    width, dot, ring = (1.0, 4, 14) if many else (1.5, 18, 60)
    if len(tree.merges):
        parents = places[tree.num_leaves :]
        lines = forest_lines(tree, places)
        coloured = LineCollection(lines, colors=colours.repeat(2, 0), linewidths=width, zorder=3)
        if look.image:  # white rims keep the lines apart from the ink
            rims = LineCollection(lines, colors="white", linewidths=width + 1.4, zorder=2)
            axes.add_collection(rims, autolim=False)
        axes.add_collection(coloured, autolim=False)
        axes.scatter(parents[:, 0], parents[:, 1], s=dot, c=colours, linewidths=0, zorder=5)
    x, y = places[tree.roots()].T
    axes.scatter(x, y, s=ring, facecolors="none", edgecolors="black", linewidths=1, zorder=6)


def merge_colours(num_leaves: int) -> Tokens:
    """(n - 1, 4) the RGBA colour of each merge of a whole tree, so that none changes later."""
    return MERGE_COLOURS(np.linspace(0.0, LAST_MERGE, max(num_leaves - 1, 1)))


def draw_reconstruction(axes: Axes, tokens: Tokens, reconstruction: Tokens, kind: str) -> None:
    """The reconstruction (n, T) over the faint original (n, T); dots are joined to theirs."""
    look = kind_named(kind, tokens.shape[1])
    frame_axes(axes, tokens, kind)
    if look.dots:
        moves = np.stack([look.positions(tokens), look.positions(reconstruction)], axis=1)
        axes.add_collection(LineCollection(list(moves), colors=FAINT, linewidths=1), autolim=False)
    if not look.image:
        draw_tokens(axes, tokens, kind, colours=FAINT)
    draw_tokens(axes, reconstruction, kind, colours=VERMILION, reference=tokens)


def forest_figure(
    tokens: Tokens,
    merges: Merges,
    reconstruction: Tokens | None,
    kind: str,
    title: str | None = None,
) -> Figure:
    """A frame of 640 x 320 pixels: tokens and forest on the left, the reconstruction beside it, or
    the tokens alone where nothing is decoded."""
    figure = new_figure(FRAME_SIZE)
    look = kind_named(kind, tokens.shape[1])
    forest, copy = figure.subplots(1, 2)
    top = 0.92 if title is None else 0.85
    bottom = 0.12 if look.in_the_plane else 0.17  # ticks need room
    figure.subplots_adjust(left=0.06, right=0.98, bottom=bottom, top=top, wspace=0.05)
    draw_forest(forest, tokens, merges, kind)
    if reconstruction is None:
        frame_axes(copy, tokens, kind)
        draw_tokens(copy, tokens, kind)
    else:
        draw_reconstruction(copy, tokens, reconstruction, kind)
    tree = MergeTree(merges, len(tokens))
    forest.set_title(f"{len(tree.merges)} of {len(tokens) - 1} merges", fontsize=8, pad=4)
    copy.set_title("tokens" if reconstruction is None else "reconstruction", fontsize=8, pad=4)
    copy.tick_params(labelleft=False)  # the same as on the left
    if title is not None:
        figure.suptitle(title, fontsize=9, y=0.98)
    colours = merge_colours(len(tokens))
    ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": "none"}
    handles = [
        Line2D([], [], color="black", label="active node", markersize=6, **ring),
        Line2D([], [], color=colours[0], label="first merge"),
        Line2D([], [], color=colours[-1], label="last merge"),
    ]
    if not look.image and reconstruction is not None:
        handles.append(Line2D([], [], color=FAINT, linewidth=3.5, label="original"))
        handles.append(Line2D([], [], color=VERMILION, linewidth=3, label="reconstruction"))
    figure.legend(handles=handles, loc="lower center", ncols=5, fontsize=7, frameon=False)
    return figure


def samples_figure(samples: Sequence[Sample], kind: str) -> Figure:
    """A column for each sample: the original, its merge tree, and its reconstruction if any has
    one.

    Raises ``ValueError`` without samples.
    """
    if not samples:
        raise ValueError("a figure of samples needs at least 1 sample, but got none.")
    rows: tuple[str, ...] = ("original", "merge tree", "reconstruction")
    if all(sample.reconstruction is None for sample in samples):
        rows = rows[:2]
    figure = new_figure((0.3 + 1.7 * len(samples), 0.25 + 1.75 * len(rows)))
    grid = figure.subplots(len(rows), len(samples), squeeze=False)
    left = 0.3 / (0.3 + 1.7 * len(samples))
    figure.subplots_adjust(left=left, right=0.99, bottom=0.01, top=0.95, wspace=0.05, hspace=0.05)
    for column, sample in zip(grid.T, samples, strict=True):
        frame_axes(column[0], sample.tokens, kind)
        draw_tokens(column[0], sample.tokens, kind)
        draw_forest(column[1], sample.tokens, sample.merges, kind)
        if sample.reconstruction is not None:
            draw_reconstruction(column[2], sample.tokens, sample.reconstruction, kind)
        for axes in column:
            no_ticks(axes)
        column[0].set_title(sample.title, fontsize=8, pad=4)
    for axes, label in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(label, fontsize=9)
    return figure


def plain(name: str) -> str:
    """A name as figures show it: in one line, and as no formula."""
    return brief(name).replace("$", r"\$")


def new_figure(
    inches: tuple[float, float], dpi: int = DOTS_PER_INCH, *, constrained: bool = False
) -> Figure:
    """An empty figure with an Agg canvas; ``constrained`` leaves the layout to matplotlib."""
    figure = Figure(figsize=inches, dpi=dpi, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)  # attaches itself
    return figure


def figure_to_array(figure: Figure) -> NDArray[np.uint8]:
    """(H, W, 3) pixels."""
    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def repeating_gif(
    figures: Iterable[Figure], dots_per_inch: int, frame_milliseconds: int, last_milliseconds: int
) -> bytes:
    """An animated GIF that repeats, with a figure a frame; the last one stays longer."""
    frames = []
    for figure in figures:
        figure.set_dpi(dots_per_inch)
        frames.append(Image.fromarray(figure_to_array(figure)))
    content = BytesIO()
    frames[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[frame_milliseconds] * (len(frames) - 1) + [last_milliseconds],
        loop=0,
    )
    return content.getvalue()


# ---------------------------------------------------------------- text and windows


def tree_text(
    tokens: Tokens, merges: Merges, kind: str, error: float, error_name: str = "nmse"
) -> str:
    """The forest as indented text: every active node, and under it its children in order.

    ``error`` is the forest's, in the first line.
    """
    tree = MergeTree(merges, len(tokens))
    describe = kind_named(kind, tokens.shape[1]).describe
    pairs = {parent: (first, second) for parent, first, second in tree.children()}
    roots = tree.roots()
    lines = [
        f"active {len(roots)}  tokens {len(tokens)}  merges {len(tree.merges)}  "
        f"{error_name} {error:.4g}"
    ]
    # (node, prefix of its own line, prefix of its descendants' lines)
    pending = [(root, "", "") for root in reversed(roots)]
    while pending:
        node, start, indent = pending.pop()
        if node in pairs:
            lines.append(f"{start}node {node}")
            first, second = pairs[node]
            pending.append((second, indent + "└─ ", indent + "   "))
            pending.append((first, indent + "├─ ", indent + "│  "))
        else:
            lines.append(f"{start}token {node} {describe(tokens[node])}")
    return "\n".join(lines)


class Window:
    """A window of its own for frames, on a machine that can open one.

    Without a display, or with a matplotlib backend that opens no windows, it logs that once and
    then only keeps the last frame. Not a warning: Gymnasium's ``check_env`` draws in every render
    mode, on any machine, and must pass without one.
    """

    def __init__(self) -> None:
        from matplotlib import pyplot  # choosing a backend is left until a window is wanted

        self.frame: NDArray[np.uint8] | None = None
        """The frame shown last, (H, W, 3)."""
        self._figure: Any = None
        self._pyplot = pyplot
        self._can_open = _backend_opens_windows()
        if not self._can_open:
            logging.getLogger(__name__).warning(
                "matplotlib's backend %r opens no window here, so render_mode 'human' shows "
                "nothing: set a display, or render 'rgb_array'.",
                matplotlib.get_backend(),
            )

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Show a frame (H, W, 3); a window that was closed opens again."""
        self.frame = frame
        if not self._can_open:
            return
        if self._figure is None or not self._pyplot.fignum_exists(self._figure.number):
            height, width = frame.shape[:2]
            inches = (width / DOTS_PER_INCH, height / DOTS_PER_INCH)
            self._figure = self._pyplot.figure("HTM", figsize=inches, dpi=DOTS_PER_INCH)
        self._figure.clear()
        self._figure.figimage(frame)
        self._pyplot.figure(self._figure.number)  # pause() draws the current figure
        self._pyplot.pause(0.001)

    def close(self) -> None:
        """Close the window, if one is open."""
        if self._figure is not None:
            self._pyplot.close(self._figure)
            self._figure = None


def _backend_opens_windows() -> bool:
    """True <--> pyplot's backend is interactive and can be loaded here."""
    from matplotlib import pyplot

    try:
        pyplot.switch_backend(matplotlib.get_backend())
    except ImportError:  # chosen by name, but there is no display or no toolkit
        return False
    names = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    return matplotlib.get_backend().lower() in names

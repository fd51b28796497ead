"""Pictures of generation: how the mixture was chosen, samples with their trees, the way between two
samples, and noise that does not survive.

Tokens are numpy arrays ``(n, T)`` in raw units without padding, as in ``rendering.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from htm_env.drawing.figures.tree import dendrogram_places, draw_links
from htm_env.drawing.glyphs import COLOURS, INK, KINDS, Tokens, draw_tokens, frame_axes, no_ticks
from htm_env.drawing.rendering import draw_forest, draw_reconstruction, merge_colours, new_figure
from htm_env.generation.generate import Generated
from htm_env.generation.mixture import Candidate
from htm_env.trees.merge_tree import MergeTree

PANEL = 1.35
"""Side of a panel, in inches."""
TREE = 0.6
"""Width of the tree beside a sample, as a share of the sample's."""
MARKS = "osD^"
"""Markers of the covariance types."""


def criteria_figure(candidates: Sequence[Candidate], chosen: Candidate) -> Figure:
    """BIC and AIC over the number of components, a line for each covariance type."""
    figure = _figure(7.2, 3.2)
    panels = figure.subplots(1, 2, sharex=True)
    types = list(dict.fromkeys(candidate.covariance_type for candidate in candidates))
    for axes, name in zip(panels, ("bic", "aic"), strict=True):
        for number, covariance_type in enumerate(types):
            rows = sorted(row for row in candidates if row.covariance_type == covariance_type)
            look: dict[str, Any] = {
                "color": COLOURS[number],
                "marker": MARKS[number],
                "ms": 4,
                "lw": 1.5,
            }
            values = [getattr(row, name) for row in rows]
            axes.plot([row.components for row in rows], values, label=covariance_type, **look)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({row.components for row in candidates})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("components")
        axes.set_ylabel(f"{name.upper()} (nats, doubled)")
        axes.grid(alpha=0.3)
    ring: dict[str, Any] = {
        "ms": 13,
        "mfc": "none",
        "mec": "black",
        "label": f"chosen: {chosen.components}",
    }
    panels[0].plot([chosen.components], [chosen.bic], "o", **ring)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def generated_figure(
    generated: Generated, kind: str, titles: Sequence[str], real: Tokens, columns: int = 6
) -> Figure:
    """The first samples, one for each title, each with its tree beside it; images have the size of
    a real one's (n, T) parts. A token has the colour of the merge that used it."""
    rows = -(-len(titles) // columns)
    figure = _figure(PANEL * (1 + TREE) * columns, (PANEL + 0.2) * rows)
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, TREE] * columns)
    pairs = grid.reshape(-1, 2)
    for number, (axes, beside) in enumerate(pairs):
        if number < len(titles):
            _draw_beside(axes, beside, generated, number, kind, real)
            axes.set_title(titles[number], fontsize=7, pad=3)
            no_ticks(axes)
        else:
            axes.set_visible(False)
            beside.set_visible(False)
    return figure


def interpolation_figure(ways: Sequence[Generated], kind: str, real: Tokens) -> Figure:
    """A row for each way between two roots, a column for each step; a row has one scale, that of
    images is a real one's (n, T)."""
    steps = len(ways[0].tokens)
    figure = _figure(PANEL * steps, PANEL * len(ways) + 0.2)
    grid = figure.subplots(len(ways), steps, squeeze=False)
    for number, (row, way) in enumerate(zip(grid, ways, strict=True)):
        everything = real if KINDS[kind].image else way.tokens[way.present].cpu().numpy()
        for step, axes in enumerate(row):
            _draw_sample(axes, way, step, kind, real)
            frame_axes(axes, everything, kind)
            no_ticks(axes)
            share = f"{step / (steps - 1):.0%}" if number == 0 else ""
            cut = "cut" if way.truncated[step] else ""
            axes.set_title(", ".join(filter(None, (share, cut))), fontsize=8, pad=3)
    return figure


class NoisySample(NamedTuple):
    """One column of :func:`denoising_figure`."""

    clean: Tokens
    noisy: Tokens
    reconstruction: Tokens
    noisy_error: float
    """``nmse`` against the clean tokens; so is the next."""
    error: float


def denoising_figure(samples: Sequence[NoisySample], kind: str, noise_std: float) -> Figure:
    """A column for each sample: clean, noisy, and the reconstruction of the noisy one."""
    figure = _figure(PANEL * len(samples) + 0.3, (PANEL + 0.2) * 3)
    grid = figure.subplots(3, len(samples), squeeze=False)
    for (clean, noisy, restored), sample in zip(grid.T, samples, strict=True):
        frame_axes(clean, sample.clean, kind)
        draw_tokens(clean, sample.clean, kind)
        draw_reconstruction(noisy, sample.clean, sample.noisy, kind)
        draw_reconstruction(restored, sample.clean, sample.reconstruction, kind)
        others = [] if KINDS[kind].image else [sample.noisy, sample.reconstruction]
        everything = np.concatenate([sample.clean, *others])
        for axes in (clean, noisy, restored):
            frame_axes(axes, everything, kind)
            no_ticks(axes)
        noisy.set_title(f"nmse {sample.noisy_error:.2g}", fontsize=7, pad=3)
        restored.set_title(f"nmse {sample.error:.2g}", fontsize=7, pad=3)
    below = "" if KINDS[kind].image else "\n(grey: clean)"
    labels = ("clean", f"noise of {noise_std:g} std{below}", f"reconstruction{below}")
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label, fontsize=8)
    return figure


def _draw_beside(
    axes: Axes, beside: Axes, generated: Generated, row: int, kind: str, real: Tokens
) -> None:
    """The tokens, and their tree with the leaves on the left in the axes ``beside``."""
    tokens = generated.tokens[row][generated.present[row]].cpu().numpy()
    tree = MergeTree(generated.merges[row].cpu().numpy(), len(tokens))
    merges = merge_colours(len(tokens))[: len(tree.merges)]
    colours = np.tile(to_rgba(INK), (tree.num_nodes, 1))
    colours[tree.merges] = merges[:, None]
    frame = real if KINDS[kind].image else tokens
    frame_axes(axes, frame, kind)
    draw_tokens(axes, tokens, kind, colours=colours[: len(tokens)], reference=frame)
    draw_links(beside, tree, np.arange(1.0, len(tree.merges) + 1), merges, sideways=True)
    leaves = dendrogram_places(tree)[: len(tokens)]
    beside.scatter(np.zeros(len(tokens)), leaves, s=6, c=colours[: len(tokens)], linewidths=0)
    beside.set_xlim(-1, len(tree.merges) + 1)
    beside.set_ylim(len(tokens) - 0.4, -0.6)
    beside.axis("off")


def _draw_sample(axes: Axes, generated: Generated, row: int, kind: str, real: Tokens) -> None:
    tokens = generated.tokens[row][generated.present[row]].cpu().numpy()
    draw_forest(axes, tokens, generated.merges[row].cpu().numpy(), kind)
    if KINDS[kind].image:  # generated parts are on no grid that gives their size
        draw_tokens(axes, tokens, kind, alpha=0.6, reference=real)
        frame_axes(axes, real, kind)


def _figure(width: float, height: float) -> Figure:
    return new_figure((width, height), dpi=150, constrained=True)

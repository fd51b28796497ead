"""Figures of an episode: what is where, for every kind of token, few tokens and many."""

from __future__ import annotations

import warnings
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image
from scipy.cluster import hierarchy

from htm_env.drawing.figures import (
    charged_heights,
    charges_figure,
    filmstrip_figure,
    least_certain_step,
    merges_gif,
    probabilities_figure,
    tree_figure,
)
from htm_env.drawing.figures.filmstrip import FRAME_MILLISECONDS, LAST_MILLISECONDS, PANELS
from htm_env.drawing.figures.plane import spread
from htm_env.drawing.figures.tree import dendrogram_places
from htm_env.drawing.glyphs import BLUE, KINDS, VERMILION
from htm_env.drawing.letters import make_readable
from htm_env.drawing.rendering import figure_to_array, merge_colours
from htm_env.drawing.trace import Considered, Trace
from htm_env.trees.merge_tree import MergeTree

TOKEN_DIM = {
    "points": 2,
    "segments": 4,
    "strokes": 8,
    "patches": 6,
    "items": 5,
    "particles": 4,
    "vectors": 3,
}
TREE = MergeTree([[3, 1], [0, 5], [2, 4], [7, 6]], 5)
CHARGES = np.array([0.1, 0.3, -0.2, 0.4])


def made_up(kind="points", tree=TREE, charges=CHARGES, probabilities=True):
    """A trace with random tokens; at each step the pairs after the chosen one share 30 %."""
    rng = np.random.default_rng(0)
    count = tree.num_leaves
    tokens = rng.uniform(0, 10, size=(count, TOKEN_DIM[kind]))
    if kind == "patches":
        tokens[:, :2] = np.column_stack(np.divmod(np.arange(count), 4)) * 2
    steps, active = [], list(range(count))
    for parent, first, second in tree.children():
        nodes = np.array(sorted(active))
        shares = np.full((len(nodes), len(nodes)), 0.3 / max(len(nodes) * (len(nodes) - 1) - 1, 1))
        np.fill_diagonal(shares, 0.0)
        shares[np.searchsorted(nodes, first), np.searchsorted(nodes, second)] = 0.7
        steps.append(Considered(nodes, shares))
        active = [node for node in active if node not in (first, second)] + [parent]
    errors = 0.05 + np.concatenate([[0.0], np.cumsum(charges)])
    return Trace(
        tokens,
        kind,
        tree,
        np.repeat(tokens[None], count, axis=0) + 0.3,
        errors,
        tuple(steps) if probabilities else (),
    )


def chain(count):
    return MergeTree([[0, 1]] + [[count + step, step + 2] for step in range(count - 2)], count)


def all_figures(trace):
    yield tree_figure(trace)
    yield tree_figure(trace, "error")
    yield filmstrip_figure(trace)
    yield charges_figure(trace)
    yield probabilities_figure(trace, 0)


def texts_inside(figure):
    """Draws the figure; every text that shows lies on the page, and no two labels overlap."""
    height, width, _ = figure_to_array(figure).shape
    boxes = []
    for axes in figure.axes:
        labels = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for text in [*labels, *axes.get_xticklabels(), *axes.get_yticklabels()]:
            if not axes.get_visible() or not text.get_visible() or not text.get_text():
                continue
            box = text.get_window_extent()
            if box.width and (text in labels or _in_view(axes, text)):
                assert box.x0 >= 0 and box.x1 <= width, text
                assert box.y0 >= 0 and box.y1 <= height, text
            if text in labels[:3]:
                assert not any(box.overlaps(other) for other in boxes), text
                boxes.append(box)
    return True


def _in_view(axes, tick):
    """Ticks outside the limits have labels that are never drawn."""
    x, y = tick.get_position()
    low, high = sorted(axes.get_xlim())
    bottom, top = sorted(axes.get_ylim())
    along_x = tick in axes.get_xticklabels()
    return low <= x <= high if along_x else bottom <= y <= top


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_draws_every_kind_within_the_page(kind):
    for figure in all_figures(made_up(kind)):
        assert texts_inside(figure)


@pytest.mark.parametrize("count", [2, 33])
def test_two_tokens_and_many_can_be_drawn(count):
    trace = made_up(tree=chain(count), charges=np.linspace(-0.1, 0.2, count - 1))
    for figure in all_figures(trace):
        assert texts_inside(figure)


def test_a_single_token_has_a_tree_and_no_charges():
    alone = made_up(tree=MergeTree([], 1), charges=np.empty(0))
    for figure in (tree_figure(alone), filmstrip_figure(alone)):
        assert texts_inside(figure)
    assert Image.open(BytesIO(merges_gif(alone))).n_frames == 1
    with pytest.raises(ValueError, match="at least 2 tokens"):
        charges_figure(alone)


# ---------------------------------------------------------------- tree and dendrogram


@pytest.mark.parametrize("tree", [TREE, chain(9), MergeTree([[1, 0]], 2)])
def test_the_dendrogram_is_laid_out_as_scipys(tree):
    drawn = hierarchy.dendrogram(tree.to_linkage(), no_plot=True)
    along = dendrogram_places(tree)
    leaves = np.argsort(along[: tree.num_leaves])
    assert [str(leaf) for leaf in leaves] == drawn["ivl"]
    # scipy puts leaf k at 10 k + 5; a merge's height, its step, tells which link it is
    middles = {
        dcoord[1]: np.mean(x[1:3])
        for x, dcoord in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    }
    for step, place in enumerate(along[tree.num_leaves :], start=1):
        assert middles[step] == pytest.approx(10 * place + 5)


def test_a_deep_chain_is_laid_out_without_recursion():
    assert dendrogram_places(chain(3000))[-1] > 2900


def test_plane_and_dendrogram_share_numbers_and_colours():
    plane, dendrogram = tree_figure(made_up()).axes
    assert [text.get_text() for text in plane.texts] == ["0", "1", "2", "3", "4"]
    ticks = {tick.get_text(): tick.get_position()[0] for tick in dendrogram.get_xticklabels()}
    assert sorted(ticks, key=ticks.get) == ["2", "4", "0", "3", "1"]  # ((2, 4), (0, (3, 1)))
    expected = [to_hex(colour) for colour in merge_colours(5)]
    (links,) = [one for one in dendrogram.collections if isinstance(one, LineCollection)]
    assert [to_hex(colour) for colour in links.get_colors()] == expected
    in_plane = {
        to_hex(c)
        for one in plane.collections
        if isinstance(one, LineCollection)
        for c in one.get_colors()
    }
    assert set(expected) <= in_plane


def test_heights_are_steps_or_the_error_charged_below():
    trace = made_up()
    # node 5 costs 0.1, node 6 over it 0.3 more, node 7 is free (it took away), the root 0.4
    assert charged_heights(trace) == pytest.approx([0.1, 0.4, 0.0, 0.8])
    assert hierarchy.is_valid_linkage(trace.tree.to_linkage(charged_heights(trace)))
    for heights, expected in (("order", [1, 2, 3, 4]), ("error", [0.1, 0.4, 0.0, 0.8])):
        dendrogram = tree_figure(trace, heights).axes[1]
        (links,) = [one for one in dendrogram.collections if isinstance(one, LineCollection)]
        tops = [segment[:, 1].max() for segment in links.get_segments()]
        assert tops == pytest.approx(expected)
    with pytest.raises(ValueError, match="no heights 'size': choose from order, error"):
        tree_figure(trace, "size")


# ---------------------------------------------------------------- badges


def test_what_falls_together_is_spread_and_nothing_else_moves():
    wanted = np.array([[0.0, 0.0], [0.0, 0.0], [50.0, 0.0], [80.0, 0.0]])
    fixed = np.array([[50.0, 1.0]])
    found = spread(wanted, fixed, 10.0, 8.0)
    apart = np.linalg.norm(found[:, None] - found, axis=2)[np.triu_indices(4, 1)]
    assert apart.min() > 9.99
    assert np.linalg.norm(found[2] - fixed[0]) > 7.99
    assert np.linalg.norm(found[3] - wanted[3]) < 0.01
    assert np.array_equal(spread(wanted, fixed, 10.0, 8.0), found)


# ---------------------------------------------------------------- filmstrip


def test_a_filmstrip_has_a_panel_a_merge_and_the_reconstruction():
    figure = filmstrip_figure(made_up())
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == [
        "tokens: nmse 0.05",
        "merge 1: nmse 0.15",
        "merge 2: nmse 0.45",
        "merge 3: nmse 0.25",
        "merge 4: nmse 0.65",
        "from the root alone",
    ]


def test_a_long_filmstrip_leaves_merges_out_but_not_the_last():
    figure = filmstrip_figure(made_up(tree=chain(60), charges=np.full(59, 0.01)))
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert len(titles) == PANELS + 1
    assert titles[0].startswith("tokens:") and titles[-2].startswith("merge 59:")


def test_the_animation_has_a_frame_a_merge_and_rests_on_the_last():
    trace = made_up()
    content = merges_gif(trace)
    assert merges_gif(trace) == content
    animation = Image.open(BytesIO(content))
    assert (animation.format, animation.n_frames, animation.info["loop"]) == ("GIF", 5, 0)
    durations, frames = [], []
    for frame in range(5):
        animation.seek(frame)
        durations.append(animation.info["duration"])
        frames.append(np.array(animation.convert("RGB")))
    assert durations == [FRAME_MILLISECONDS] * 4 + [LAST_MILLISECONDS]
    for before, after in pairwise(frames):
        assert (before != after).any()


# ---------------------------------------------------------------- charges


def marks_of_merges(axes):
    """Four dots of different sizes; there are five tokens."""
    dots = [one for one in axes.collections if isinstance(one, PathCollection)]
    (marks,) = [one for one in dots if len(one.get_sizes()) == 4]
    return marks


def test_bars_are_the_charges_and_marks_have_their_areas():
    plane, dendrogram, bars = charges_figure(made_up()).axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(CHARGES)
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars.patches] == pytest.approx(
        [1, 2, 3, 4]
    )
    colours = [to_hex(bar.get_facecolor()) for bar in bars.patches]
    assert colours == [VERMILION.lower(), VERMILION.lower(), BLUE.lower(), VERMILION.lower()]
    for axes in (plane, dendrogram):
        areas = marks_of_merges(axes).get_sizes()
        assert areas / areas.max() == pytest.approx([0.25, 0.75, 0.5, 1.0])
    # each mark of the dendrogram stands over its bar
    assert marks_of_merges(dendrogram).get_offsets()[:, 0].tolist() == [1, 2, 3, 4]
    assert bars.get_xlim() == dendrogram.get_xlim()


def test_charges_of_nothing_can_be_drawn():
    assert texts_inside(charges_figure(made_up(charges=np.zeros(4))))


# ---------------------------------------------------------------- probabilities


def test_the_map_shows_every_ordered_pair_and_marks_the_chosen_one():
    trace = made_up()
    table, plane, _ = probabilities_figure(trace, 2).axes
    nodes = ["2", "4", "6"]  # after ((0, (3, 1)) was made
    assert [tick.get_text() for tick in table.get_xticklabels()] == nodes
    assert [tick.get_text() for tick in table.get_yticklabels()] == nodes
    shown = table.images[0].get_array()
    assert shown.mask.diagonal().all() and shown.mask.sum() == 3
    assert shown[0, 1] == 0.7  # the row is first: 2 before 4
    mark = [patch for patch in table.patches if isinstance(patch, Rectangle)][-1]
    assert (mark.get_x(), mark.get_y()) == (0.5, -0.5)
    assert [text.get_text() for text in table.texts] == ["70", "6.0", "6.0", "6.0", "6.0", "6.0"]
    assert [text.get_text() for text in plane.texts] == nodes


def test_arrows_are_wider_and_darker_for_what_is_more_probable():
    figure = probabilities_figure(made_up(), 1)
    plane = figure.axes[1]
    arrows = [patch for patch in plane.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 6  # of twelve ordered pairs
    chosen, *others = arrows
    assert all(chosen.get_linewidth() > one.get_linewidth() for one in others)
    assert all(chosen.get_alpha() > one.get_alpha() for one in others)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "0 → 5   70 %\n(chosen)"
    assert all(label.endswith(" 2.7 %") for label in labels[1:])  # 30 % over eleven pairs


def test_the_least_certain_merge():
    trace = made_up()
    shares = trace.considered[1].probabilities
    chosen = np.unravel_index(shares.argmax(), shares.shape)
    shares[chosen] = 0.4
    assert least_certain_step(trace) == 1


def test_probabilities_that_do_not_exist_are_refused():
    fixed = made_up(probabilities=False)
    with pytest.raises(ValueError, match="no probabilities"):
        probabilities_figure(fixed, 0)
    with pytest.raises(ValueError, match="no probabilities"):
        least_certain_step(fixed)
    for step in (-1, 4):
        with pytest.raises(ValueError, match=f"no merge {step}: the merges are 0 to 3"):
            probabilities_figure(made_up(), step)


def test_letters_that_no_font_has_become_their_code_points(monkeypatch):
    """A private letter, which no font has, among letters that each has."""
    monkeypatch.setattr("htm_env.drawing.letters._installed", list)
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_title("caf\u00e9 \U000f0041 \u2192 x")
    make_readable(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure_to_array(figure)
    assert axes.get_title() == "caf\u00e9 U+F0041 \u2192 x"

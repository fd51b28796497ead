"""Figures of parts: what is framed and coloured in them."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import same_color, to_rgba

from htm_env.drawing.figures.parts import (
    RIGHT,
    Neighbours,
    Part,
    SampleWithGroups,
    draw_part,
    group_colours,
    islands_of_parts_figure,
    label_map_figure,
    neighbours_figure,
    trees_beside_groups_figure,
)
from htm_env.drawing.glyphs import COLOURS, INK, VERMILION
from htm_env.drawing.rendering import figure_to_array, new_figure
from htm_env.trees.merge_tree import MergeTree

SEGMENTS = np.array([[0, 0, 1, 0], [0, 1, 1, 1], [2, 0, 3, 0], [2, 1, 3, 1]], dtype=float)
TREE = MergeTree([[0, 1], [2, 3], [4, 5]], 4)


def framed(figure) -> int:
    """Panels with a green frame."""
    return sum(same_color(axes.spines["left"].get_edgecolor(), RIGHT) for axes in figure.axes)


def groups(*members) -> np.ndarray:
    return np.array([np.isin(np.arange(4), group) for group in members])


def test_a_node_that_is_a_group_is_framed():
    """Of 01, 23 and 0123 only 01 is a group: 012 is no node, and 3 alone is a token."""
    sample = SampleWithGroups(SEGMENTS, TREE, groups([0, 1], [0, 1, 2], [3]), "name")
    assert framed(trees_beside_groups_figure([sample] * 2, "segments")) == 2
    both = SampleWithGroups(SEGMENTS, TREE, groups([0, 1], [2, 3]))
    assert framed(trees_beside_groups_figure([both], "segments")) == 2
    with pytest.raises(ValueError, match="at least 1 sample"):
        trees_beside_groups_figure([], "segments")


def test_the_largest_groups_give_tokens_their_colours():
    colours = group_colours(groups([0, 1], [0], [2]), 4)
    assert colours == [COLOURS[0], COLOURS[0], COLOURS[1], INK]


def test_neighbours_with_the_label_of_the_query_are_framed():
    part = Part(SEGMENTS, np.array([True, True, False, False]), "one")
    row = Neighbours(part, [part, part, part], [True, False, True])
    figure = neighbours_figure([row, row._replace(same=[False] * 3)], "segments", "title")
    assert framed(figure) == 2
    with pytest.raises(ValueError, match="at least 1 row"):
        neighbours_figure([], "segments", "title")


def test_a_part_is_drawn_over_the_others():
    axes = new_figure((1.0, 1.0)).subplots()
    draw_part(
        axes, Part(SEGMENTS, np.array([False, True, False, True])), "segments", VERMILION, 1.0
    )
    (lines,) = axes.collections
    colours = [same_color(colour, VERMILION) for colour in lines.get_edgecolors()]
    assert colours == [False, False, True, True]
    assert [segment[0].tolist() for segment in lines.get_segments()[2:]] == [[0, 1], [2, 1]]


def test_many_labels_leave_colours_to_the_most_frequent():
    labels = np.repeat(np.arange(20), np.arange(20, 0, -1))
    places = np.random.default_rng(0).normal(size=(len(labels), 2))
    names = [f"label {label}" for label in range(20)]
    drawn: list[int] = []

    def draw(rows):
        drawn.extend(rows)
        return np.zeros((len(rows), 8, 8, 3), dtype=np.uint8)

    figure = label_map_figure(places, labels, names, draw, "title")
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [f"label {label}" for label in range(7)]
    assert 0 < len(drawn) < len(labels)
    few = label_map_figure(places, labels % 10, names, draw, "title")
    assert len(few.legends[0].get_texts()) == 10


def test_tokens_have_the_colour_of_their_part():
    places = np.random.default_rng(0).normal(size=(6, 2))
    labels = np.array([1, 1, 0, -1, -1, -1])
    sample = SEGMENTS, np.array([1, 1, 0, -1])
    names = ["b", "a"]
    figure = islands_of_parts_figure(places, labels, names, [sample], "segments", "title")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    (lines,) = figure.axes[1].collections
    expected = [to_rgba(colour) for colour in (COLOURS[0], COLOURS[0], COLOURS[1], "#b8b8b8")]
    assert np.allclose(lines.get_edgecolors(), expected)
    assert figure_to_array(figure).shape[2] == 3

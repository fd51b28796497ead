"""Pictures of islands."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from agents import islands_figure, islands_gif
from htm_env.drawing.figures.islands import island_colours

PLACES = np.stack([np.arange(4) % 2, np.arange(4) // 2], axis=1).astype(np.float64)
LABELS = np.array([[0, 1, 2, 3], [0, 0, 1, 1]])


def test_an_island_has_a_colour_of_its_own_and_what_is_alone_is_grey():
    colours = island_colours(np.array([0, 1, 1, 2, 2, -1]))
    assert len({tuple(row) for row in colours}) == 4
    assert (colours[1] == colours[2]).all() and (colours[3] == colours[4]).all()
    assert colours[0, 0] == colours[0, 1] == colours[0, 2] and colours[5, 3] == 0


def test_a_row_is_a_scene_and_a_panel_a_level():
    scene = (PLACES, LABELS, np.zeros((4, 4)))
    figure = islands_figure([scene, scene], ["one", "other"])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["", "level 1: 4", "level 2: 2"] * 2
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["one", "other"]
    points = islands_figure([(PLACES, LABELS, None)])
    assert len(points.axes) == 2 and len(points.axes[0].collections) == 1


def test_an_animation_has_a_frame_for_every_iteration():
    content = islands_gif(PLACES, [LABELS, LABELS[::-1], LABELS], np.zeros((4, 4)))
    assert Image.open(BytesIO(content)).n_frames == 3

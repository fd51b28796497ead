import subprocess
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from htm_env.drawing import rendering
from htm_env.drawing.glyphs import (
    KINDS,
    VERMILION,
    draw_tokens,
    frame_axes,
    grey_range,
    kind_named,
    token_anchors,
)
from htm_env.drawing.rendering import (
    Sample,
    Window,
    figure_to_array,
    forest_figure,
    new_figure,
    samples_figure,
    tree_text,
)

LEFT, RIGHT = np.s_[:, :320], np.s_[:, 320:]  # forest and reconstruction
PLACES = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0], [1.0, 9.0]])
TOKENS = {
    "points": PLACES,
    "segments": np.concatenate([PLACES, PLACES + np.array([2.0, 1.0])], axis=1),
    "strokes": np.concatenate([PLACES, PLACES + 1, PLACES + np.array([2.0, 1.0])], axis=1),
    "space": np.concatenate([PLACES, PLACES[:, :1] + PLACES[:, 1:]], axis=1),
    "patches": np.concatenate([PLACES, np.arange(20.0).reshape(5, 4) % 17], axis=1),
    "items": np.array(
        [
            [0, 1, 0.1, 1, 0.1],
            [0, 1, 0.1, -1, 0.1],
            [0, -1, 0.1, 1, 0.1],
            [0, -1, 0.1, -1, 0.1],
            [1, 0, 0, 0, 0],
        ]
    ),
    "vectors": np.concatenate([PLACES, PLACES[:, ::-1]], axis=1),
    "numbers": PLACES[:, 1:],  # a single coordinate, drawn over the token's index
}
KIND = {name: name for name in TOKENS} | {"numbers": "vectors", "space": "points"}
MERGES = np.array([[0, 1], [3, 2], [5, 6], [4, 7]])
NO_MERGES = MERGES[:0]


def frame(name, merges, reconstruction=None, title=None):
    copy = TOKENS[name] if reconstruction is None else reconstruction
    return figure_to_array(forest_figure(TOKENS[name], merges, copy, KIND[name], title))


def pixels_like(image, colour, tolerance=12):
    """How many pixels nearly have a colour such as "#D55E00"."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image.astype(int) - wanted).max(axis=-1) <= tolerance).sum())


@pytest.mark.parametrize("name", TOKENS)
def test_a_frame_has_the_same_even_size_whatever_it_shows(name):
    for merges, title in ((NO_MERGES, None), (MERGES[:2], "one line"), (MERGES, "another")):
        image = frame(name, merges, title=title)
        assert image.shape == (320, 640, 3)
        assert image.dtype == np.uint8
        assert image.flags.owndata and image.flags.writeable


@pytest.mark.parametrize("name", TOKENS)
def test_every_merge_shows_on_the_left_and_only_there(name):
    images = [frame(name, MERGES[:count]) for count in range(len(MERGES) + 1)]
    for before, after in pairwise(images):
        picture = slice(35, 280)  # without the title and the legend
        changed = (before[picture] != after[picture]).any(axis=-1)
        assert changed[LEFT].sum() > 20
        assert changed[RIGHT].sum() == 0


@pytest.mark.parametrize("name", TOKENS)
def test_the_reconstruction_shows_on_the_right_and_only_there(name):
    shift = np.zeros(TOKENS[name].shape[1])
    shift[-1] = -0.5
    exact, shifted = frame(name, MERGES), frame(name, MERGES, TOKENS[name] + shift)
    changed = (exact != shifted).any(axis=-1)
    assert changed[LEFT].sum() == 0
    if name != "vectors":  # of which only the first two coordinates are drawn
        assert changed[RIGHT].sum() > 20


def test_items_stand_in_columns_of_a_colour_and_rows_of_a_shape():
    places = KINDS["items"].positions(TOKENS["items"])
    assert places[0, 0] == places[1, 0] != places[2, 0] == places[3, 0]
    assert places[0, 1] == places[2, 1] != places[1, 1] == places[3, 1]
    right_angles = np.array([[0.0, 0, 1, -1, 0], [0, -1, 0, 0, -1]])
    assert KINDS["items"].positions(right_angles) == pytest.approx(
        np.array([[0.25, 0.5], [0.5, 0.75]])
    )
    assert (places[4, 0] < places[:4, 0]).all()  # the key stands beside them


def test_a_stroke_stands_at_the_mean_of_its_points_and_is_named_at_its_start():
    stroke = np.array([[0.0, 0, 4, 0, 5, 3]])
    assert kind_named("strokes", 6).positions(stroke).tolist() == [[3, 1]]
    assert token_anchors(stroke, "strokes").tolist() == [[0, 0]]
    assert kind_named("strokes", 6).describe(stroke[0]) == "(0, 0)-(5, 3), 3 points"


def test_space_is_seen_from_the_side_of_small_y_with_z_upwards():
    axes = kind_named("points", 3).positions(np.eye(3))
    across, away, up = axes  # of x, y and z
    assert across[0] > away[0] > 0 == pytest.approx(up[0])
    assert up[1] > away[1] > 0 > across[1] - 0.5
    assert up[1] == pytest.approx(np.cos(np.deg2rad(25)))


def test_space_is_drawn_as_large_dots_before_small_ones_in_a_box():
    axes = new_figure((2.0, 2.0)).add_subplot()
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]])
    for _ in range(2):
        frame_axes(axes, corners, "points")
    (box,) = axes.collections  # one, however often the axes are framed
    lines = np.array(box.get_segments())
    assert lines.shape == (12, 2, 2)
    assert len(np.unique(lines.reshape(-1, 2).round(9), axis=0)) == 8
    draw_tokens(axes, corners, "points")
    sizes = axes.collections[-1].get_sizes()
    assert sizes[1] == sizes.max() and sizes[2] == sizes.min()


@pytest.mark.parametrize(
    ("intensities", "expected"),
    [([0, 0.4, 1], (0, 1)), ([0, 9, 17], (0, 16)), ([3, 200], (0, 255)), ([-2, 400], (-2, 400))],
)
def test_white_and_black_are_those_of_a_usual_scale(intensities, expected):
    assert grey_range(np.array([intensities], dtype=float)) == expected


def test_a_large_patch_has_its_pixels_row_by_row():
    token = np.zeros((1, 11))
    token[0, 2 + 5] = 255.0  # the last pixel of the middle row
    image = frame_of_original(token, "patches")
    ink = np.argwhere((image < 60).all(axis=-1))
    height, width = image.shape[:2]
    assert ink[:, 1].min() > width / 2
    assert abs(ink[:, 0].mean() - height / 2) < 3
    assert kind_named("patches", 11).describe(token[0]) == "(0, 0) [3x3, mean 28.3]"


def test_items_have_their_own_colour_and_the_key_says_which_way_to_look():
    images = {}
    for key in (1.0, -1.0):
        tokens = TOKENS["items"].copy()
        tokens[:4, 1:3] = [0, 1]  # a quarter of a turn: yellowish green
        tokens[4, 0] = key
        images[key] = frame_of_original(tokens, "items")
    green = [pixels_like(image, "#80d32c") for image in images.values()]
    assert green[0] == green[1] > 20
    assert (images[1.0] != images[-1.0]).any()


@pytest.mark.parametrize("name", ["points", "segments", "vectors", "numbers"])
def test_the_reconstruction_is_vermilion_over_the_grey_original(name):
    far_off = TOKENS[name] + 100.0  # outside the limits, which the original sets
    for copy, drawn in ((TOKENS[name], True), (far_off, False)):
        picture = frame(name, MERGES, copy)[35:280]
        assert (pixels_like(picture[RIGHT], VERMILION) > 50) == drawn
        assert pixels_like(picture[LEFT], VERMILION) == 0
        if not drawn:
            assert pixels_like(picture[RIGHT], rendering.FAINT) > 900  # dots or lines, and the box


def test_a_patch_is_four_pixels_row_by_row_and_y_grows_downwards():
    tokens = np.array([[0, 0, 16.0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]])
    image = frame_of_original(tokens)
    rows, columns = np.nonzero((image < 40).all(axis=-1))
    # only the top left of the top left patch is black: a solid square left of and over the centre
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert len(rows) == height * width > 400
    assert abs(height - width) <= 1
    assert rows.max() < image.shape[0] / 2 and columns.max() < image.shape[1] / 2


def frame_of_original(tokens, kind="patches"):
    figure = rendering.Figure(figsize=(2, 2), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    rendering.frame_axes(axes, tokens, kind)
    rendering.draw_tokens(axes, tokens, kind)
    axes.set_axis_off()
    return figure_to_array(figure)


def test_unfit_tokens_and_merges_are_refused():
    with pytest.raises(ValueError, match="choose from points, segments, strokes, patches, items"):
        forest_figure(PLACES, MERGES, PLACES, "dots")
    with pytest.raises(ValueError, match="dimension 2 cannot be drawn as patches"):
        forest_figure(PLACES, MERGES, PLACES, "patches")
    with pytest.raises(ValueError, match="merge 1 joins node 0"):
        forest_figure(PLACES, np.array([[0, 1], [0, 2]]), PLACES, "points")
    with pytest.raises(ValueError, match="at least 1 sample"):
        samples_figure([], "points")


@pytest.mark.parametrize("name", TOKENS)
def test_samples_stand_in_columns(name):
    sample = Sample(TOKENS[name], MERGES, TOKENS[name], "a title")
    one, three = (samples_figure([sample] * count, KIND[name]) for count in (1, 3))
    assert len(one.axes) == 3 and len(three.axes) == 9
    assert figure_to_array(one).shape == (550, 200, 3)
    assert figure_to_array(three).shape == (550, 540, 3)
    assert [axes.get_title() for axes in three.axes[:3]] == ["a title"] * 3


def test_many_tokens_and_a_single_one_can_be_drawn():
    merges = np.array([[0, 1]] + [[128 + step, step + 2] for step in range(126)])
    many = np.random.default_rng(0).normal(size=(128, 2))
    for tokens, steps in ((many, merges), (many[:1], merges[:0])):
        image = figure_to_array(forest_figure(tokens, steps, tokens, "points"))
        assert image.shape == (320, 640, 3)


def test_text_indents_the_children_under_every_active_node():
    assert tree_text(PLACES, MERGES[:3], "points", 0.01234567) == (
        "active 2  tokens 5  merges 3  nmse 0.01235\n"
        "token 4 (1, 9)\n"
        "node 7\n"
        "├─ node 5\n"
        "│  ├─ token 0 (0, 0)\n"
        "│  └─ token 1 (2, 0)\n"
        "└─ node 6\n"
        "   ├─ token 3 (2, 4)\n"
        "   └─ token 2 (0, 4)"
    )


def test_text_names_each_active_node_of_a_padded_forest():
    padded = np.concatenate([MERGES[:1], np.full((3, 2), -1)])
    lines = tree_text(PLACES, padded, "points", 0.5).splitlines()
    assert lines[0] == "active 4  tokens 5  merges 1  nmse 0.5"
    active = [
        " ".join(line.split()[:2]) for line in lines[1:] if line.startswith(("node", "token"))
    ]
    assert active == ["token 2", "token 3", "token 4", "node 5"]


@pytest.mark.parametrize(
    ("kind", "token", "words"),
    [
        ("segments", [1, 2, 3.5, 4], "token 0 (1, 2)-(3.5, 4)"),
        ("patches", [3, 0, 16, 0, 7.6, 1], "token 0 (3, 0) [16 0 / 8 1]"),
        ("items", [0, 0, 1, -1, 0], "token 0 colour 90°, shape 180°"),
        ("items", [1, 0, 0, 0, 0], "token 0 key: colours match"),
        ("items", [-0.9, 0.1, 0.3, 0.2, 0.1], "token 0 key: shapes match"),
        ("vectors", [1.23456], "token 0 (1.235)"),
        ("vectors", [1, 2, 3, 4, 5, 6, 7], "token 0 (1, 2, 3, 4, 5, 6, ...)"),
    ],
)
def test_text_describes_each_kind_of_token(kind, token, words):
    text = tree_text(np.array([token], dtype=float), NO_MERGES, kind, 0.0)
    assert text.splitlines()[1] == words


# ---------------------------------------------------------------- windows


def test_without_a_display_a_window_logs_it_once_and_keeps_the_frame(monkeypatch, caplog):
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    image = np.full((320, 640, 3), 7, dtype=np.uint8)
    before = pyplot.get_fignums()
    window = Window()
    window.show(image)
    window.show(image)
    window.close()
    (line,) = caplog.messages
    assert "opens no window here" in line
    assert window.frame is image
    assert pyplot.get_fignums() == before


def test_a_window_shows_each_frame_pixel_by_pixel_and_closes(frames_shown):
    before = pyplot.get_fignums()
    window = Window()
    for seed in (0, 1):
        image = np.random.default_rng(seed).integers(0, 256, (320, 640, 3), dtype=np.uint8)
        window.show(image)
        (number,) = set(pyplot.get_fignums()) - set(before)
        np.testing.assert_array_equal(figure_to_array(pyplot.figure(number)), image)
        np.testing.assert_array_equal(frames_shown[-1], image)
    window.close()
    window.close()
    assert pyplot.get_fignums() == before


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys, numpy\n"
        "from htm_env.drawing.rendering import forest_figure, figure_to_array\n"
        "tokens = numpy.eye(2)\n"
        "figure_to_array(forest_figure(tokens, numpy.array([[0, 1]]), tokens, 'points'))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

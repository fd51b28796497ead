"""Outlines of glyphs: points along a polygon by hand, and what a learner reads of the file."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.glyph_outlines import FEWEST, LETTERS, MOST, along, main
from htm_env import make_dataset


def test_points_divide_a_closed_polygon_into_equal_parts():
    square = np.array([[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]], dtype=float)
    assert along(square, 4).tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
    assert along(square, 8)[1::2].tolist() == [[1, 0], [2, 1], [1, 2], [0, 1]]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("glyphs") / "glyphs.npz"
    main([str(path)])
    return path


def test_no_font_is_in_two_splits_and_every_letter_is_in_all(written):
    fonts, letters = {}, {}
    for split in ("train", "validation", "test"):
        data = make_dataset(str(written), split)
        names = [name.split(" of ") for name in data.row_names]
        fonts[split] = {font for _, font in names}
        letters[split] = {letter for letter, _ in names}
        counts = data.fixed(200).num_tokens
        assert counts.min() >= FEWEST and counts.max() <= MOST and data.token_dim == 2
    assert not fonts["train"] & (fonts["validation"] | fonts["test"])
    assert not fonts["validation"] & fonts["test"]
    assert all(found == set(LETTERS) for found in letters.values())

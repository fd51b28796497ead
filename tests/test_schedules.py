"""Schedules by hand."""

from __future__ import annotations

import pytest

from agents.config.schedules import cosine_decay, piecewise_linear, warm_up


@pytest.mark.parametrize(
    ("progress", "value"),
    [
        (0.0, 1.0),
        (0.05, 1.0),
        (0.125, 0.65),
        (0.2, 0.3),
        (0.35, 0.3),
        (0.6, 0.15),
        (0.7, 0.0),
        (1.0, 0.0),
    ],
)
def test_the_published_entropy_target(progress, value):
    """Constant before its first point and after its last."""
    points = ((0.05, 1.0), (0.2, 0.3), (0.5, 0.3), (0.7, 0.0))
    assert piecewise_linear(points, progress) == pytest.approx(value)


def test_one_point_is_a_constant():
    assert [piecewise_linear(((0.4, 7.0),), progress) for progress in (0.0, 0.4, 1.0)] == [7.0] * 3


def test_two_points_at_one_place_are_a_jump():
    points = ((0.0, 1.0), (0.5, 1.0), (0.5, 0.0), (1.0, 0.0))
    assert piecewise_linear(points, 0.5) == 1.0
    assert piecewise_linear(points, 0.5000001) == pytest.approx(0.0)


def test_cosine_decay_by_hand():
    assert cosine_decay(0.0) == 1.0
    assert cosine_decay(0.5) == pytest.approx(0.5)
    assert cosine_decay(1.0) == pytest.approx(0.0)
    assert cosine_decay(1 / 3) == pytest.approx(0.75)  # (1 + cos 60 degrees) / 2
    assert cosine_decay(0.5, floor=0.2) == pytest.approx(0.6)
    assert cosine_decay(1.0, floor=0.2) == pytest.approx(0.2)
    assert cosine_decay(-0.5) == 1.0
    assert cosine_decay(1.5, floor=0.2) == pytest.approx(0.2)


def test_warm_up_by_hand():
    assert [warm_up(updates, 4) for updates in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0, 0) == 1.0


@pytest.mark.parametrize("points", [(), ((0.5, 1.0), (0.1, 0.0))])
def test_points_that_make_no_line_are_refused(points):
    with pytest.raises(ValueError, match="shares rising"):
        piecewise_linear(points, 0.3)

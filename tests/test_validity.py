"""Real samples are valid whatever their geometry; what breaks a rule is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htm_env import make_dataset
from htm_env.datasets import TreesGeometry
from htm_env.generation.search import find_trees, forests
from htm_env.generation.validity import check_validity, plausible_lengths, plausible_strokes

GEOMETRIES = [
    ("HTM-Crosses-v0", {}),
    ("HTM-Crosses-v0", {"num_crosses": (5, 12), "segment_length": 300}),
    ("HTM-Crosses-v0", {"segment_length": 1e-5, "angle_range": (90, 90)}),
    ("HTM-Trees-v0", {}),
    ("HTM-Trees-v0", {"heights": (1, 2, 3), "num_trees": (2, 3)}),
    ("HTM-Trees-v0", {"heights": (2, 3), "num_trees": (1, 4), "centre_fraction": 0.05}),
    ("HTM-Trees-v0", {"angle_jitter": 25}),
    ("HTM-Trees-v0", {"angle_jitter": 180, "heights": (3,)}),
    ("HTM-Trees-v0", {"separation_angle": 0, "deviation_angle": 0}),
    ("HTM-Trees-v0", {"separation_angle": 360, "deviation_angle": -30, "distance_factor": 0.7}),
    ("HTM-Trees-v0", {"separation_angle": 200, "distance_factor": 2, "initial_distance": 3}),
    ("HTM-Trees-v0", {"initial_distance": 1e-4, "heights": (4,)}),
    ("HTM-Trees-v0", {"heights": (5,), "distance_factor": 0.3}),
]


def verdict(dataset, tokens, tolerance=0.1) -> bool:
    """Of a single sample without padding."""
    tokens = np.asarray(tokens, dtype=np.float32)[None]
    return bool(
        check_validity(dataset, tokens, np.ones(tokens.shape[:2], dtype=bool), tolerance).valid[0]
    )


@pytest.mark.parametrize(("env_id", "geometry"), GEOMETRIES, ids=str)
def test_real_samples_are_valid(env_id, geometry):
    dataset = make_dataset(env_id, split="test", **geometry)
    batch = dataset.fixed(30)
    for tolerance in (0.0, 0.1):
        found = check_validity(dataset, batch.tokens.numpy(), batch.present.numpy(), tolerance)
        assert found.valid.all() and found.token_count.all()
        assert not found.undecided.any()


def test_data_without_rules_has_no_validity(own_data):
    digits = make_dataset("HTM-Digits-v0", split="test")
    batch = digits.fixed(2)
    assert check_validity(digits, batch.tokens.numpy(), batch.present.numpy()) is None
    own = make_dataset(own_data)
    assert check_validity(own, own_data[:2], np.ones((2, 5), dtype=bool)) is None


def test_strokes_have_plausible_lengths_between_two_percentiles_of_training_ones():
    """Training strokes of lengths 0 to 100 in two legs: 1 and 99 are the limits."""
    lengths = np.arange(101.0)
    bent = np.stack([0 * lengths, 0 * lengths, 0 * lengths, lengths / 2, lengths / 2, lengths / 2])
    tokens = bent.T.reshape(101, 1, 6).repeat(2, axis=1)
    split_of = ["train"] * 101 + ["validation", "test"]
    data = make_dataset(
        np.concatenate([tokens, tokens[:2]]), "test", kind="strokes", split_of=split_of
    )
    asked = tokens[[0, 1, 50, 99, 100]]
    assert plausible_lengths(data, asked, np.ones((5, 2), dtype=bool)) == pytest.approx(3 / 5)
    first = np.eye(5, 2, dtype=bool)  # strokes of lengths 0 and 1
    assert plausible_lengths(data, asked, first) == 0.5
    assert plausible_lengths(data, asked, first & False) is None
    points = make_dataset("HTM-Trees-v0", "test")
    assert plausible_lengths(points, np.zeros((1, 2, 2)), np.ones((1, 2), dtype=bool)) is None


def test_strokes_are_plausible_near_training_ones():
    """Training strokes lie on a line, a tenth apart from each other in every coordinate.

    So each is as far from its neighbour as any other, which is the limit.
    """
    line = np.arange(100.0)[:, None, None] / 10 * np.ones((1, 1, 4))
    rows = line.reshape(50, 2, 4)
    split_of = ["train"] * 50 + ["validation", "test"]
    data = make_dataset(np.concatenate([rows, rows[:2]]), "test", kind="strokes", split_of=split_of)
    asked = line[:4] + np.array([0.0, 0.05, -0.05, -0.15])[:, None, None]
    asked[0, 0, 0] += 0.3  # off the line by more than the limit, 0.2
    present = np.ones((4, 1), dtype=bool)
    found = [plausible_strokes(data, asked[row:][:1], present[:1]) for row in range(4)]
    assert found == [0.0, 1.0, 1.0, 1.0]
    assert plausible_strokes(data, asked - 0.5, present) == 0.0
    assert plausible_strokes(data, asked, present) == 0.75
    points = make_dataset("HTM-Trees-v0", "test")
    assert plausible_strokes(points, np.zeros((1, 2, 2)), np.ones((1, 2), dtype=bool)) is None


def test_a_tolerance_that_makes_no_sense_is_refused():
    dataset = make_dataset("HTM-Crosses-v0")
    for tolerance in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="tolerance"):
            check_validity(dataset, np.zeros((1, 2, 4)), np.ones((1, 2), dtype=bool), tolerance)


# ---------------------------------------------------------------- crosses


CROSSES = make_dataset("HTM-Crosses-v0")


def segment(middle, direction=0.0, length=40.0):
    half = length / 2 * np.array([math.cos(direction), math.sin(direction)])
    return [*(middle + half), *(middle - half)]


def cross(middle, second_middle=None, lengths=(40.0, 40.0)):
    second = middle if second_middle is None else second_middle
    return [segment(np.array(middle), 0.3, lengths[0]), segment(np.array(second), 1.7, lengths[1])]


@pytest.mark.parametrize(
    ("shift", "expected"), [(3.9, True), (4.1, False)], ids=["within", "beyond"]
)
def test_midpoints_may_be_a_tenth_of_the_length_apart(shift, expected):
    moved = (60 + shift * 0.6, 60 + shift * 0.8)
    assert verdict(CROSSES, cross((60, 60), moved)) is expected
    # One bad cross spoils the sample.
    assert verdict(CROSSES, cross((0, 0)) + cross((60, 60), moved)) is expected


@pytest.mark.parametrize(
    ("length", "expected"), [(36.1, True), (35.9, False), (43.9, True), (44.1, False)]
)
def test_lengths_may_be_off_by_a_tenth(length, expected):
    assert verdict(CROSSES, cross((60, 60), lengths=(40, length))) is expected


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(0, False), (17.5, False), (18.5, True), (90, True), (161.5, True), (162.5, False)],
)
def test_angles_are_asked_for_separately(degrees, expected):
    """The data's are 20 to 160 degrees; a tenth of 20 more is allowed on both sides."""
    middle = np.array([60.0, 60.0])
    pair = np.array([segment(middle, 0.3), segment(middle, 0.3 + math.radians(degrees))])
    found = check_validity(CROSSES, pair[None], np.ones((1, 2), dtype=bool))
    assert found.valid[0]
    assert found.valid_with_angles[0] == expected
    turned = np.array([pair[0], pair[1][[2, 3, 0, 1]]])  # the same segment from its other end
    found = check_validity(CROSSES, turned[None], np.ones((1, 2), dtype=bool))
    assert found.valid_with_angles[0] == expected


def test_the_number_of_crosses_is_one_that_the_data_has():
    crosses = [cross((40 * k, 10)) for k in range(4)]

    def joined(some):
        return [segment for pair in some for segment in pair]

    assert verdict(CROSSES, joined(crosses[:3]))
    assert not verdict(CROSSES, joined(crosses))  # at most three
    assert not verdict(CROSSES, joined(crosses[:2])[:3])  # odd
    assert verdict(make_dataset("HTM-Crosses-v0", num_crosses=4), joined(crosses))


def test_pairs_are_found_wherever_some_pairing_is_right():
    # On a line at 0, 3, 6, 9: 3 and 6 are near too, but pairing them leaves 0 and 9 alone.
    segments = [segment(np.array([x, 0.0]), 0.4 * x) for x in (3.0, 6.0, 0.0, 9.0)]
    assert verdict(CROSSES, segments)
    # 0, 3, 6 and 20: one of them is left over whatever the pairs.
    segments[3] = segment(np.array([20.0, 0.0]))
    assert not verdict(CROSSES, segments)
    # All at one place: any pairing is right.
    assert verdict(CROSSES, [segment(np.array([5.0, 5.0]), angle) for angle in (0, 1, 2, 3, 4, 5)])


def test_tokens_that_are_not_numbers_are_not_valid():
    assert not verdict(CROSSES, np.full((2, 4), np.nan))
    assert not verdict(make_dataset("HTM-Trees-v0"), np.full((3, 2), np.nan))


# ---------------------------------------------------------------- trees


TREES = make_dataset("HTM-Trees-v0")


def tree(height=4, angles=None, stretch=None, geometry=None, heading=0.9):
    """A heap of points, grown one by one: ``angles`` (degrees) and ``stretch`` change single nodes
    together with all below them."""
    geometry = TreesGeometry() if geometry is None else geometry
    angles, stretch = angles or {}, stretch or {}
    points, headings = [np.array([128.0, 120.0])], [heading]
    half, turn = math.radians(geometry.separation_angle) / 2, math.radians(geometry.deviation_angle)
    for node in range(1, 2**height - 1):
        parent, side = (node - 1) // 2, 1 if node % 2 == 0 else -1
        level = (node + 1).bit_length() - 1
        direction = headings[parent] + side * half + math.radians(angles.get(node, 0.0))
        distance = geometry.initial_distance * geometry.distance_factor ** (level - 1)
        way = (
            distance * stretch.get(node, 1.0) * np.array([math.cos(direction), math.sin(direction)])
        )
        points.append(points[parent] + way)
        headings.append(direction + side * turn)
    return np.array(points)


@pytest.mark.parametrize("node", [1, 2, 4, 9, 14])
def test_every_angle_may_be_off_by_a_tenth_of_the_separation(node):
    for degrees, expected in [(4.4, True), (-4.4, True), (4.6, False), (-4.6, False)]:
        assert verdict(TREES, tree(angles={node: degrees})) is expected


@pytest.mark.parametrize("node", [1, 2, 4, 9, 14])
def test_every_distance_may_be_off_by_a_tenth(node):
    for factor, expected in [(1.09, True), (0.91, True), (1.11, False), (0.89, False)]:
        assert verdict(TREES, tree(stretch={node: factor})) is expected


@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0, 2 * math.pi))
def test_neither_order_nor_heading_nor_a_root_in_the_middle_matters(seed, height, heading):
    points = tree(height, heading=heading)
    assert verdict(TREES, np.random.default_rng(seed).permutation(points))


def test_a_mirrored_deviation_another_size_or_a_lost_node_is_not_valid():
    inwards = TreesGeometry(deviation_angle=-20)
    assert not verdict(TREES, tree(geometry=inwards))
    assert verdict(make_dataset("HTM-Trees-v0", deviation_angle=-20), tree(geometry=inwards))
    assert not verdict(TREES, tree()[:14])
    assert not verdict(TREES, tree(5))
    assert not verdict(TREES, 1.2 * tree())
    assert not verdict(TREES, np.random.default_rng(0).uniform(0, 256, size=(15, 2)))
    assert not verdict(TREES, np.zeros((7, 2)))


def test_jitter_of_the_data_is_allowed_for():
    jittered = make_dataset("HTM-Trees-v0", angle_jitter=10)
    for degrees, expected in [(14.4, True), (14.6, False)]:
        assert verdict(jittered, tree(angles={4: degrees})) is expected
    # Both children of the root may be turned: 4.5 degrees and twice the jitter.
    assert verdict(jittered, tree(angles={1: -12.2, 2: 12.2}))
    assert not verdict(jittered, tree(angles={1: -12.3, 2: 12.3}))


def test_the_nodes_that_were_found_are_the_trees():
    points = np.concatenate([tree(2, heading=4.0) + 9, tree(3), [[5.0, 5.0]]])
    order = np.random.default_rng(0).permutation(len(points))
    found = find_trees(points[order], TreesGeometry(heights=(1, 2, 3), num_trees=(3,)), 0.1)
    places = [order[nodes].tolist() for nodes in found.trees]
    assert places == [[3, 4, 5, 6, 7, 8, 9], [0, 1, 2], [10]]
    two = TreesGeometry(heights=(1, 2, 3), num_trees=(2,))
    assert find_trees(points[order], two, 0.1) == (None, False)


def test_forests_of_a_size():
    assert list(forests(15, (2, 3, 4), (1,))) == [[4]]
    assert list(forests(10, (1, 2, 3), (2, 3, 4))) == [[3, 2], [3, 1, 1, 1], [2, 2, 2, 1]]
    assert list(forests(8, (2, 3), (1, 2, 3))) == []


@pytest.mark.slow
def test_a_search_that_gives_up_says_so():
    """A cloud of 31 points has many beginnings of trees, where nearly all angles are allowed."""
    dataset = make_dataset("HTM-Trees-v0", split="test", heights=(5,))
    points = np.random.default_rng(0).normal(scale=30.0, size=(1, 31, 2))
    for tolerance, gives_up in ((0.9, True), (0.1, False)):
        found = check_validity(dataset, points, np.ones((1, 31), dtype=bool), tolerance)
        assert (found.valid.tolist(), found.undecided.tolist()) == ([False], [gives_up])
        assert found.token_count.all()

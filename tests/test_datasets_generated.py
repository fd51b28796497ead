"""Trees and Crosses: geometry and hierarchy; all generated data: shuffle and splits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htm_env.datasets import (
    KEY_LIMIT,
    SPLITS,
    CrossesDataset,
    CrossesGeometry,
    Dataset,
    KeysDataset,
    TreesDataset,
    TreesGeometry,
)
from htm_env.datasets.base import empty_merges, write_balanced_joins
from htm_env.datasets.jets import JetsDataset
from htm_env.types import TokenBatch

Nested = int | tuple["Nested", "Nested"]


class Sample:
    """One row of a batch in plain Python."""

    def __init__(self, batch: TokenBatch, row: int = 0) -> None:
        self.count = int(batch.num_tokens[row])
        self.tokens = batch.tokens[row, : self.count].double().numpy()
        self.merges = [tuple(pair) for pair in batch.merges[row].tolist()]
        self.clades = {
            frozenset(np.flatnonzero(clade).tolist()) for clade in batch.clades[row].numpy()
        } - {frozenset()}

    def nodes(self) -> list[Nested]:
        """Every node as nested pairs of slots; fails where a merge is not one of two free nodes."""
        nodes: list[Nested] = list(range(self.count))
        free = set(range(self.count))
        for first, second in self.merges[: self.count - 1]:
            free -= {first, second}
            free.add(len(nodes))
            assert len(free) == 2 * self.count - 1 - len(nodes)  # both were free
            nodes.append((nodes[first], nodes[second]))
        assert self.merges[self.count - 1 :] == [(-1, -1)] * (len(self.merges) - self.count + 1)
        return nodes


def leaves(node: Nested) -> list[int]:
    return [node] if isinstance(node, int) else [*leaves(node[0]), *leaves(node[1])]


def top(tree: Nested) -> int:
    """The slot of a tree's root token: ``(v, (L, R))`` has ``v`` on top."""
    if isinstance(tree, int):
        return tree
    assert isinstance(tree[0], int)
    return tree[0]


def subtrees(tree: Nested) -> list[Nested]:
    """The data's subtrees of two tokens or more, in canonical order."""
    if isinstance(tree, int):
        return []
    _, (left, right) = tree
    return [*subtrees(left), *subtrees(right), tree]


def direction(sample: Sample, start: int, end: int) -> tuple[float, float]:
    """Length and angle in degrees of the way from one token to another."""
    x, y = sample.tokens[end] - sample.tokens[start]
    return float(np.hypot(x, y)), float(np.rad2deg(np.arctan2(y, x)))


def turn(start: float, end: float) -> float:
    """Degrees from one direction to another, -180 to 180."""
    return (end - start + 180) % 360 - 180


def trees(split: str = "train", **geometry: Any) -> TreesDataset:
    return TreesDataset(split, TreesGeometry(**geometry))


def crosses(split: str = "train", **geometry: Any) -> CrossesDataset:
    return CrossesDataset(split, CrossesGeometry(**geometry))


# --- Trees -----------------------------------------------------------------------------------


def test_tree_of_height_three_by_hand() -> None:
    for row in range(20):
        sample = Sample(trees(heights=(3,)).fixed(20), row)
        (d, e), (b, de), (f, g), (c, fg), (bde, cfg), (a, x) = sample.merges
        assert sorted([a, b, c, d, e, f, g]) == list(range(7))
        assert (de, fg, bde, cfg, x) == (7, 9, 8, 10, 11)
        assert sample.clades == {
            frozenset({b, d, e}),
            frozenset({c, f, g}),
            frozenset(range(7)),
        }
        (length_b, to_b), (length_c, to_c) = direction(sample, a, b), direction(sample, a, c)
        (length_d, to_d), (length_e, to_e) = direction(sample, b, d), direction(sample, b, e)
        assert [length_b, length_c, length_d, length_e] == pytest.approx([50, 50, 25, 25], abs=1e-3)
        assert turn(to_b, to_c) == pytest.approx(45, abs=1e-2)
        assert turn(to_d, to_e) == pytest.approx(45, abs=1e-2)
        # A heading halves the angle of the children, and turns 20 outwards from its own direction.
        assert turn(to_b, to_d + 22.5) == pytest.approx(-20, abs=1e-2)
        _, to_f = direction(sample, c, f)
        assert turn(to_c, to_f + 22.5) == pytest.approx(20, abs=1e-2)
        assert ((sample.tokens[a] >= 96) & (sample.tokens[a] <= 160)).all()


@settings(max_examples=40, deadline=None)
@given(
    heights=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    num_trees=st.lists(st.integers(2, 5), min_size=1, max_size=2),
    separation=st.floats(1, 179),
    factor=st.floats(0.25, 2),
    distance=st.floats(1, 100),
    jitter=st.sampled_from([0.0, 7.0]),
    key=st.integers(0, KEY_LIMIT - 1),
)
def test_trees_of_any_geometry(
    heights: list[int],
    num_trees: list[int],
    separation: float,
    factor: float,
    distance: float,
    jitter: float,
    key: int,
) -> None:
    dataset = trees(
        heights=heights,
        num_trees=num_trees,
        separation_angle=separation,
        distance_factor=factor,
        initial_distance=distance,
        angle_jitter=jitter,
    )
    assert dataset.max_tokens == (2 ** max(heights) - 1) * max(num_trees)
    sample = Sample(dataset.episodes(np.array([key])))
    nodes = sample.nodes()
    assert sorted(leaves(nodes[-1])) == list(range(sample.count))

    # Whole trees come first, one after another: cut the merges where the joins begin.
    whole: list[Nested] = []
    depth_first = [nodes[-1]]
    while depth_first:
        node = depth_first.pop()
        if isinstance(node, int) or not is_join(sample, node):
            whole.append(node)
        else:
            depth_first += [node[1], node[0]]
    assert len(whole) in num_trees
    expected_clades = {frozenset(leaves(tree)) for one in whole for tree in subtrees(one)}
    assert sample.clades == expected_clades
    canonical = [tree for one in whole for tree in subtrees(one)]
    written = [pair for tree in canonical for pair in (tree[1], tree)]  # type: ignore[index]
    assert nodes[sample.count : sample.count + len(written)] == written
    for one in whole:
        assert len(leaves(one)) in [2**height - 1 for height in heights]
        check_tree_geometry(sample, one, distance, separation, factor, jitter)


def is_join(sample: Sample, node: Nested) -> bool:
    """True where a node joins whole trees: its leaves are no clade."""
    return frozenset(leaves(node)) not in sample.clades


def check_tree_geometry(
    sample: Sample, tree: Nested, distance: float, separation: float, factor: float, jitter: float
) -> None:
    if isinstance(tree, int):
        return
    parent, (left, right) = tree
    (left_length, to_left), (right_length, to_right) = (
        direction(sample, parent, top(child)) for child in (left, right)
    )
    close = 1e-3 + 1e-5 * np.abs(sample.tokens).max()  # float32 coordinates
    assert left_length == pytest.approx(distance, abs=close)
    assert right_length == pytest.approx(distance, abs=close)
    if distance > 1:
        degrees = np.rad2deg(close / distance) * 4
        assert abs(turn(separation, turn(to_left, to_right))) <= 2 * jitter + degrees
    check_tree_geometry(sample, left, distance * factor, separation, factor, jitter)
    check_tree_geometry(sample, right, distance * factor, separation, factor, jitter)


def test_jitter_turns_a_child_and_all_below_it() -> None:
    turned = set()
    for row in range(50):
        sample = Sample(trees(heights=(3,), angle_jitter=10).fixed(50), row)
        (d, e), (b, _), _, (c, _), _, (a, _) = sample.merges
        between_children = turn(direction(sample, a, b)[1], direction(sample, a, c)[1])
        assert 25 - 1e-2 <= between_children <= 65 + 1e-2
        turned.add(round(between_children, 3))
        # The heading of child b turns 20 outwards: without the children's own jitter d lies at
        # -20 - 22.5 from b, e at -20 + 22.5.
        _, to_b = direction(sample, a, b)
        assert abs(turn(to_b - 42.5, direction(sample, b, d)[1])) <= 10 + 1e-2
        assert abs(turn(to_b + 2.5, direction(sample, b, e)[1])) <= 10 + 1e-2
    assert len(turned) == 50


def test_trees_choose_heights_and_numbers_evenly() -> None:
    counts = Counter(trees(heights=(2, 3, 4)).fixed(3000).num_tokens.tolist())
    assert set(counts) == {3, 7, 15}
    # Binomial(3000, 1/3): five standard deviations are 129.
    assert all(abs(count - 1000) < 129 for count in counts.values())
    # Heights are drawn for each tree: two trees of one or three nodes, 1 : 2 : 1.
    pairs = Counter(trees(heights=(1, 2), num_trees=(2,)).fixed(2000).num_tokens.tolist())
    assert set(pairs) == {2, 4, 6}
    assert abs(pairs[4] - 1000) < 112
    trios = Counter(trees(heights=(1,), num_trees=(2, 3)).fixed(2000).num_tokens.tolist())
    assert set(trios) == {2, 3}
    assert abs(trios[2] - 1000) < 112


def test_headings_go_all_round() -> None:
    batch = trees(heights=(2,)).fixed(2000)
    angles = []
    for row in range(2000):
        sample = Sample(batch, row)
        (left, _), (root, _) = sample.merges
        angles.append(direction(sample, root, left)[1])
    counts = np.histogram(angles, bins=8, range=(-180, 180))[0]
    assert np.abs(counts - 250).max() < 5 * np.sqrt(2000 / 8 * 7 / 8)


def test_whole_trees_of_one_node_are_no_clades() -> None:
    sample = Sample(trees(heights=(1,), num_trees=(3,)).fixed(1))
    assert sample.clades == set()
    assert sorted(leaves(sample.nodes()[-1])) == [0, 1, 2]
    assert sample.merges[1][0] == 3  # the first two, then the third


# --- Crosses ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    num_crosses=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    length=st.floats(1, 100),
    angles=st.tuples(st.floats(5, 175), st.floats(5, 175)),
    key=st.integers(0, KEY_LIMIT - 1),
)
def test_crosses_of_any_geometry(
    num_crosses: list[int], length: float, angles: tuple[float, float], key: int
) -> None:
    low, high = sorted(angles)
    dataset = crosses(num_crosses=num_crosses, segment_length=length, angle_range=(low, high))
    assert dataset.max_tokens == 2 * max(num_crosses)
    sample = Sample(dataset.episodes(np.array([key])))
    number, odd = divmod(sample.count, 2)
    assert odd == 0
    assert number in num_crosses

    pairs = sample.merges[:number]
    assert sample.clades == {frozenset(pair) for pair in pairs}
    assert sorted(slot for pair in pairs for slot in pair) == list(range(sample.count))
    assert sorted(leaves(sample.nodes()[-1])) == list(range(sample.count))
    for first, second in pairs:
        ends = sample.tokens[[first, second]].reshape(2, 2, 2)  # segment, end, (x, y)
        middle = ends.mean(axis=1)
        assert middle[0] == pytest.approx(middle[1], abs=1e-4)
        assert (middle >= -1e-4).all()
        assert (middle <= 128 + 1e-4).all()
        ways = ends[:, 0] - ends[:, 1]
        assert np.hypot(*ways.T) == pytest.approx([length, length], abs=1e-3)
        first_angle, second_angle = np.rad2deg(np.arctan2(ways[:, 1], ways[:, 0]))
        slack = np.rad2deg(1e-4 / length)
        assert low - slack <= turn(first_angle, second_angle) <= high + slack


def test_five_crosses_are_joined_in_balance_by_hand() -> None:
    sample = Sample(crosses(num_crosses=(5,)).fixed(1))
    assert sample.merges[5:] == [(10, 11), (12, 13), (15, 16), (17, 14)]


def test_one_cross_is_a_legal_sample() -> None:
    batch = crosses(num_crosses=1).fixed(3)
    assert batch.tokens.shape == (3, 2, 4)
    assert batch.clades.tolist() == [[[True, True]]] * 3
    assert {tuple(row[0]) for row in batch.merges.tolist()} <= {(0, 1), (1, 0)}


def test_cross_angles_fill_their_range() -> None:
    batch = crosses(num_crosses=(1,), angle_range=(20, 160)).fixed(1000)
    angles = []
    for row in range(1000):
        sample = Sample(batch, row)
        ways = [sample.tokens[slot, :2] - sample.tokens[slot, 2:] for slot in sample.merges[0]]
        first, second = (float(np.rad2deg(np.arctan2(y, x))) for x, y in ways)
        angles.append(turn(first, second))
    counts = np.histogram(angles, bins=7, range=(20, 160))[0]
    assert counts.sum() == 1000
    assert np.abs(counts - 1000 / 7).max() < 5 * np.sqrt(1000 / 7 * 6 / 7)


def test_balanced_joins_of_rows_with_different_parts() -> None:
    merges = empty_merges(4, 7)
    parts = np.tile(np.array([0, 1, 2, 3, 4, 5, 6]), (4, 1))
    number = np.array([1, 2, 4, 7])
    write_balanced_joins(merges, parts, number, number, np.zeros(4, dtype=np.int64))
    none = [-1, -1]
    assert merges.tolist() == [
        [none] * 6,
        [[0, 1], *[none] * 5],
        [[0, 1], [2, 3], [4, 5], *[none] * 3],
        [[0, 1], [2, 3], [4, 5], [7, 8], [9, 6], [10, 11]],
    ]


# --- All ------------------------------------------------------------------------------------

ALL = [
    trees,
    crosses,
    KeysDataset,
    JetsDataset,
    lambda split="train": trees(split, heights=(1, 3), num_trees=(2, 3), angle_jitter=5.0),
]


@pytest.mark.parametrize("make", ALL)
def test_batches_keep_their_contract(make: Any) -> None:
    dataset: Dataset = make()
    assert dataset.size is None
    assert dataset.has_hierarchy
    batch = dataset.fixed(200)
    places = dataset.max_tokens
    assert batch.tokens.shape == (200, places, dataset.token_dim)
    assert batch.tokens.dtype == torch.float32
    assert batch.present.dtype == batch.clades.dtype == torch.bool
    assert batch.clades.shape[2] == places
    assert batch.merges.shape == (200, places - 1, 2)
    assert batch.merges.dtype == torch.int64
    slots = torch.arange(places)
    assert torch.equal(batch.present, slots < batch.num_tokens[:, None])
    assert (batch.tokens[~batch.present] == 0).all()
    assert not (batch.clades & ~batch.present[:, None]).any()
    assert (batch.clades.sum(dim=2) != 1).all()
    for row in range(200):
        node_sets = {frozenset(leaves(node)) for node in Sample(batch, row).nodes()}
        assert Sample(batch, row).clades <= node_sets


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("split", SPLITS)
def test_an_episode_alone_equals_its_row(make: Any, split: str) -> None:
    dataset = make(split)
    keys = np.array([0, 1, 2, 3, 5, 8, 2**40, KEY_LIMIT - 1] * 8)
    together = dataset.episodes(keys)
    for row, key in enumerate(keys):
        alone = dataset.episodes(np.array([key]))
        for one, all_rows in zip(alone[:4], together[:4], strict=True):
            assert torch.equal(one[0], all_rows[row])


@pytest.mark.parametrize("make", ALL)
def test_no_sample_is_in_two_splits(make: Any) -> None:
    seen: set[bytes] = set()
    for split in SPLITS:
        batch = make(split).fixed(2000)
        for tokens in batch.tokens.numpy():
            seen.add(tokens[np.lexsort(tokens.T)].tobytes())  # whatever the shuffle
    assert len(seen) == 3 * 2000


@pytest.mark.parametrize("make", ALL)
def test_samples_depend_on_the_generator_alone(make: Any) -> None:
    first, second = (make().sample(5, torch.Generator().manual_seed(3)) for _ in range(2))
    generator = torch.Generator().manual_seed(4)
    other, later = make().sample(5, generator), make().sample(5, generator)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.merges, second.merges)
    assert not torch.equal(first.tokens, other.tokens)
    assert not torch.equal(other.tokens, later.tokens)


@pytest.mark.parametrize("make", ALL)
def test_fixed_episodes_are_a_prefix(make: Any) -> None:
    dataset = make("test")
    few, many = dataset.fixed(3), dataset.fixed(10)
    for short, long in zip(few[:4], many[:4], strict=True):
        assert torch.equal(short, long[:3])
    assert torch.equal(many.tokens, dataset.episodes(np.arange(10)).tokens)


def test_the_root_token_may_be_in_any_slot() -> None:
    batch = trees(heights=(3,)).fixed(3500)
    slots = Counter(batch.merges[:, -1, 0].tolist())  # the last merge is (root, x)
    assert set(slots) == set(range(7))
    # Binomial(3500, 1/7): five standard deviations are 104.
    assert all(abs(count - 500) < 104 for count in slots.values())


@pytest.mark.parametrize("make", ALL)
def test_statistics_are_the_training_tokens(make: Any) -> None:
    batch = make("train").fixed(4096)
    tokens = batch.tokens[batch.present].double()
    for split in SPLITS:
        dataset = make(split)
        assert torch.allclose(dataset.mean.double(), tokens.mean(dim=0), rtol=1e-6)
        spread = tokens.std(dim=0, correction=0)
        assert torch.allclose(dataset.std.double(), spread, rtol=1e-6)
        assert dataset.mean.shape == dataset.std.shape == (dataset.token_dim,)
        assert dataset.mean.dtype == torch.float32


def test_trees_spread_evenly_about_the_centre() -> None:
    dataset = trees()
    assert dataset.mean == pytest.approx(np.array([128, 128]), abs=2)
    # One tree of height 2 by hand: a uniform root (64^2 / 12) and, for two tokens of three, a way
    # of 50 in a uniform direction (50^2 / 2).
    small = trees(heights=(2,))
    assert small.std == pytest.approx(np.full(2, np.sqrt(64**2 / 12 + 2 / 3 * 1250)), rel=0.02)


def test_statistics_cannot_be_changed_from_outside() -> None:
    dataset = crosses()
    mean, std = dataset.mean.tolist(), dataset.std.tolist()
    dataset.mean.zero_()
    dataset.std.zero_()
    assert (dataset.mean.tolist(), dataset.std.tolist()) == (mean, std)


# --- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"heights": ()}, r"heights is \(\): expected at least one choice"),
        ({"heights": (0, 2)}, "heights is 0: expected a whole number from 1 to 10"),
        ({"heights": (11,)}, "heights is 11.* from 1 to 10"),
        ({"heights": (2.5,)}, "heights is 2.5: expected a whole number"),
        ({"heights": "34"}, "heights is '34': expected a whole number"),
        ({"heights": (True,)}, "heights is True"),
        ({"heights": (1, 3)}, r"heights \(1, 3\) with num_trees \(1,\) allow a sample of one"),
        ({"num_trees": (0,)}, "num_trees is 0"),
        ({"num_trees": []}, r"num_trees is \[\]"),
        ({"separation_angle": 361}, "separation_angle is 361: .* from 0 to 360"),
        ({"deviation_angle": float("nan")}, "deviation_angle is nan"),
        ({"distance_factor": 0}, "distance_factor is 0: expected a number above 0"),
        ({"initial_distance": -50}, "initial_distance is -50"),
        ({"initial_distance": "far"}, "initial_distance is 'far': expected a number"),
        ({"initial_distance": None}, "initial_distance is None: expected a number"),
        ({"image_size": float("inf")}, "image_size is inf"),
        ({"centre_fraction": 1.5}, "centre_fraction is 1.5: .* from 0 to 1"),
        ({"angle_jitter": -1}, "angle_jitter is -1"),
    ],
)
def test_impossible_trees_are_named(geometry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreesGeometry(**geometry)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"num_crosses": (2, 0)}, "num_crosses is 0"),
        ({"num_crosses": ()}, r"num_crosses is \(\)"),
        ({"segment_length": 0}, "segment_length is 0"),
        ({"segment_length": -40}, "segment_length is -40"),
        ({"angle_range": (160, 20)}, r"angle_range is \(160, 20\): expected 0 < least <= most"),
        ({"angle_range": (0, 90)}, r"angle_range is \(0, 90\): expected 0 < least"),
        ({"angle_range": (90, 180)}, r"angle_range is \(90, 180\): expected 0 < least"),
        ({"angle_range": (20, 200)}, "angle_range is 200: .* from 0 to 180"),
        ({"angle_range": (20,)}, r"angle_range is \(20,\): expected two angles"),
        ({"angle_range": 20}, "angle_range is 20: expected two angles"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_impossible_crosses_are_named(geometry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossesGeometry(**geometry)


@pytest.mark.parametrize("make", ALL)
def test_counts_below_one_and_bad_keys_are_refused(make: Any) -> None:
    dataset = make()
    with pytest.raises(ValueError, match="count is 0; expected at least 1"):
        dataset.fixed(0)
    with pytest.raises(ValueError, match="batch is -2; expected at least 1"):
        dataset.sample(-2, torch.Generator())
    with pytest.raises(ValueError, match="from -1 to -1: expected 0 <= key"):
        dataset.episodes(np.array([-1]))
    with pytest.raises(ValueError, match="unknown split 'dev': expected one of train, validation"):
        make("dev")

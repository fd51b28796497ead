"""Spans that come with the user's own data: trees, clades, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htm_env.datasets import SPLITS, ArrayDataset
from htm_env.datasets.sets import joined_spans
from htm_env.datasets.spans import SpanHierarchy, checked_levels, cut_spans
from htm_env.forest import check_merges, leaf_sets
from htm_env.measures.metrics import clade_scores

Nested = int | tuple["Nested", "Nested"]
Row = list[list[tuple[int, int]]]


@st.composite
def span_lists(draw: Any, count: int) -> list[tuple[int, int]]:
    """Any spans over ``count`` things, none among them."""
    spans, start = [], 0
    while start < count and draw(st.booleans()):
        start += draw(st.integers(0, count - start - 1))
        end = start + draw(st.integers(1, count - start))
        spans.append((start, end))
        start = end
    return spans


@st.composite
def sentences(draw: Any) -> tuple[int, Row]:
    """Two to twelve tokens, and spans in up to three levels."""
    count = length = draw(st.integers(2, 12))
    row: Row = []
    for _ in range(draw(st.integers(0, 3))):
        row.append(draw(span_lists(count)))
        count = len(row[-1])
    return length, row


def balanced(nodes: list[Nested]) -> list[Nested]:
    """Neighbours joined until one node is left."""
    while len(nodes) > 1:
        pairs: list[Nested] = [(one, two) for one, two in zip(nodes[::2], nodes[1::2])]  # noqa: B905
        nodes = pairs + nodes[2 * len(pairs) :]
    return nodes


def leaves(tree: Nested) -> list[int]:
    return [tree] if isinstance(tree, int) else [leaf for child in tree for leaf in leaves(child)]


def by_loops(length: int, row: Row) -> tuple[Nested, list[set[int]]]:
    """The tree as nested pairs, and the tokens of every span."""
    nodes: list[Nested] = list(range(length))
    waiting: list[Nested] = []
    clades = []
    for spans in row:
        inside = {place for start, end in spans for place in range(start, end)}
        waiting += [node for place, node in enumerate(nodes) if place not in inside]
        nodes = [balanced(nodes[start:end])[0] for start, end in spans]
        clades += [set(leaves(node)) for node in nodes]
    top = sorted(waiting + nodes, key=lambda node: min(leaves(node)))
    return balanced(top)[0], clades


def nested(merges: np.ndarray, length: int) -> Nested:
    nodes: list[Nested] = list(range(length))
    for first, second in merges[: length - 1].tolist():
        nodes.append((nodes[first], nodes[second]))
    return nodes[-1]


@given(rows=st.lists(sentences(), min_size=1, max_size=5), extra=st.integers(0, 2))
def test_trees_and_members_equal_the_plain_loop(rows: list[tuple[int, Row]], extra: int) -> None:
    lengths = np.array([length for length, _ in rows])
    checked = [checked_levels("row", row, length) for length, row in rows]
    if not any(len(spans) for row in checked for spans in row):
        return
    places = int(lengths.max()) + extra
    hierarchy = SpanHierarchy.build(lengths, checked, places)
    check_merges(torch.from_numpy(hierarchy.merges), torch.from_numpy(lengths))
    for index, (length, row) in enumerate(rows):
        tree, clades = by_loops(length, row)
        assert nested(hierarchy.merges[index], length) == tree
        found = [
            set(np.flatnonzero(members == span).tolist())
            for members, spans in zip(hierarchy.members[index], row, strict=False)
            for span in range(len(spans))
        ]
        assert found == clades
        assert (hierarchy.merges[index, length - 1 :] == -1).all()


def test_levels_by_hand() -> None:
    """Seven tokens: words 0 1 2, 3 4, 5 (6 is in none), sentences of the first two and the last."""
    spans = [[(0, 3), (3, 5), (5, 6)], [(0, 2), (2, 3)]]
    hierarchy = SpanHierarchy.build(np.array([7]), [checked_levels("row", spans, 7)], 7)
    assert hierarchy.merges[0].tolist() == [
        [0, 1],
        [7, 2],  # 8: the first word
        [3, 4],  # 9: the second
        [8, 9],  # 10: the first sentence; the second is token 5
        [10, 5],
        [11, 6],  # whatever is left, by its first token
    ]
    assert hierarchy.members[0].tolist() == [[0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 0, 1, -1]]


def numbered(lengths: list[int]) -> list[np.ndarray]:
    """Rows whose tokens are (row, place)."""
    return [
        np.stack([np.full(length, row), np.arange(length)], axis=1).astype(float)
        for row, length in enumerate(lengths)
    ]


LENGTHS = [7, 4, 2, 6, 5, 3, 8, 4, 2, 5]
SPANS: list[Row] = [
    [[(0, length // 2), (length // 2, length)], [(0, 2)]] if row % 4 else []
    for row, length in enumerate(LENGTHS)
]
"""Two halves and the whole; nothing is known of rows 0, 4 and 8."""


@settings(max_examples=10)
@given(key=st.integers(0, 2**40))
def test_shuffled_tokens_keep_their_spans(key: int) -> None:
    for split in SPLITS:
        dataset = ArrayDataset(numbered(LENGTHS), split, spans=SPANS)
        assert dataset.has_hierarchy
        batch = dataset.episodes(key + np.arange(dataset.size))
        rows = dataset.rows[(key + np.arange(dataset.size)) % dataset.size]
        check_merges(batch.merges, batch.num_tokens)
        for index, row in enumerate(rows):
            place = batch.tokens[index, :, 1].long().tolist()  # of the token in each slot
            length = LENGTHS[row]
            tree, clades = by_loops(length, SPANS[row])
            merges = batch.merges[index].clone()
            is_leaf = (merges >= 0) & (merges < length)
            merges[is_leaf] = torch.tensor(place)[merges[is_leaf]]
            assert nested(merges.numpy(), length) == tree
            found = [
                {place[slot] for slot in clade.nonzero().ravel().tolist()}
                for clade in batch.clades[index]
                if clade.any()
            ]
            assert found == clades
            assert not (batch.clades[index] & ~batch.present[index]).any()


def test_the_canonical_trees_find_every_clade() -> None:
    """Recall 1 where there is a clade of 2 to n-1 tokens, nothing to find where there is none."""
    dataset = ArrayDataset(numbered(LENGTHS), spans=SPANS)
    batch = dataset.fixed(10)
    trees = leaf_sets(batch.merges, batch.num_tokens)
    recall = clade_scores(trees, batch.clades, batch.present).recall
    known = [bool(SPANS[row]) and LENGTHS[row] > 2 for row in dataset.rows]
    assert recall.nan_to_num(-1.0).tolist() == [1.0 if one else -1.0 for one in known]
    assert True in known and False in known


def test_all_splits_have_room_for_the_same_spans() -> None:
    shapes = {
        ArrayDataset(numbered(LENGTHS), split, spans=SPANS).fixed(2).clades.shape[1:]
        for split in SPLITS
    }
    assert shapes == {(3, 8)}


def test_a_file_holds_spans_too(tmp_path: Path) -> None:
    rows = numbered(LENGTHS)
    lengths = np.array(LENGTHS)
    arrays = joined_spans(SPANS)
    assert arrays["span_counts"].tolist() == [[2, 1] if row % 4 else [0, 0] for row in range(10)]
    np.savez(tmp_path / "own.npz", values=np.concatenate(rows), lengths=lengths, **arrays)
    expected = ArrayDataset(rows, spans=SPANS).fixed(10)
    found = ArrayDataset(tmp_path / "own.npz").fixed(10)
    assert all(torch.equal(one, other) for one, other in zip(found[:4], expected[:4], strict=True))
    dense = np.stack(numbered([4] * 10))
    halves = [[[(0, 2), (2, 4)]]] * 10
    np.savez(tmp_path / "dense.npz", tokens=dense, **joined_spans(halves))
    expected = ArrayDataset(dense, spans=np.array(halves)).fixed(10)
    found = ArrayDataset(tmp_path / "dense.npz").fixed(10)
    assert all(torch.equal(one, other) for one, other in zip(found[:4], expected[:4], strict=True))


@given(rows=st.lists(sentences(), min_size=1, max_size=5))
def test_spans_survive_the_arrays_of_a_file(rows: list[tuple[int, Row]]) -> None:
    given_spans = [row for _, row in rows]
    levels = max(len(row) for row in given_spans)
    found = cut_spans("file", **joined_spans(given_spans))
    padded = [[*row, *[[]] * (levels - len(row))] for row in given_spans]
    assert [[list(map(tuple, spans.tolist())) for spans in row] for row in found] == padded


def test_data_without_a_span_have_no_hierarchy() -> None:
    for spans in (None, [[]] * 10, [[[]]] * 10):
        dataset = ArrayDataset(numbered(LENGTHS), spans=spans)
        assert not dataset.has_hierarchy
        assert (dataset.fixed(3).merges == -1).all()


def spoiled(row: int, levels: Any) -> list[Any]:
    return [*SPANS[:row], levels, *SPANS[row + 1 :]]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (spoiled(3, [[(0, 3), (3, 3)]]), r"row 3, level 0, span 1, \(3, 3\), is empty"),
        (spoiled(3, [[(0, 3), (3, 7)]]), r"row 3, level 0, span 1, \(3, 7\), is out of range"),
        (spoiled(3, [[(0, 3), (2, 6)]]), r"row 3, level 0, span 1, \(2, 6\), overlaps span 0"),
        (spoiled(3, [[(0, 3), (0, 6)]]), r"row 3, level 0, span 1, \(0, 6\), overlaps span 0"),
        (spoiled(3, [[(3, 6), (0, 3)]]), r"row 3, level 0, span 1, \(0, 3\), is unordered"),
        (spoiled(3, [[(0, 6)], [(0, 2)]]), r"row 3, level 1, span 0, \(0, 2\), is out of range"),
        (spoiled(3, [(0, 3), (3, 6)]), r"row 3, level 0 has int64 numbers of shape \(2,\)"),
        (spoiled(3, 5), "row 3 is 5: expected levels, each a list of spans"),
        (SPANS[:9], "dataset has spans of 9 rows: expected those of its 10 rows"),
        (7, "spans is 7: expected the levels of each row of dataset"),
    ],
)
def test_unusable_spans_are_named(spans: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(numbered(LENGTHS), spans=spans)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"spans": np.zeros((2, 2), dtype=int)}, "has 'spans', but no 'span_counts' beside it"),
        ({"span_counts": np.zeros((10, 1), dtype=int)}, "has 'span_counts', but no 'spans'"),
        (
            {"spans": np.array([[0, 2]]), "span_counts": np.full((10, 1), 1)},
            "'span_counts' add up to 10, but 'spans' has 1 rows",
        ),
        (
            {"spans": np.array([[0, 2.0]]), "span_counts": np.eye(10, 1, dtype=int)},
            r"'spans' is float64 \(1, 2\)",
        ),
        (
            {"spans": np.array([[0, 2]]), "span_counts": np.array([1])},
            r"'span_counts' is int64 \(1,\), expected whole numbers \(N, levels\)",
        ),
        (
            {"spans": np.array([[0, 2]]), "span_counts": np.eye(9, 1, dtype=int)},
            "has spans of 9 rows: expected those of its 10 rows",
        ),
        (
            {"spans": np.array([[0, 9]]), "span_counts": np.eye(10, 1, dtype=int)},
            r"row 0, level 0, span 0, \(0, 9\), is out of range: .* end <= 3",
        ),
    ],
)
def test_unusable_span_arrays_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "own.npz", tokens=np.zeros((10, 3, 2)), **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message) as error:
        ArrayDataset(tmp_path / "own.npz")
    assert "own.npz" in str(error.value)


def test_spans_beside_a_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", tokens=np.zeros((10, 3, 2)))
    with pytest.raises(ValueError, match="spans= goes with an array or a list, not with the file"):
        ArrayDataset(tmp_path / "own.npz", spans=[[]] * 10)

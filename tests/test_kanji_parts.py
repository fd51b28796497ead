"""Trees and scores of ``benchmarks.kanji_parts``, on characters that a person can draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.kanji_parts import adjacent_trees, agreement, compatible, facts
from htm_env.datasets.kanjivg import Character, Characters, Group
from htm_env.types import TokenBatch


def on_a_line(*places: float) -> torch.Tensor:
    """Distances of points of a line, one sample."""
    line = torch.tensor(places, dtype=torch.float64)
    return (line[:, None] - line).abs()[None]


def sample(num_tokens: int, *groups: set[int]) -> TokenBatch:
    """One sample with these clades; an empty one pads."""
    clades = torch.zeros(1, len(groups), num_tokens, dtype=torch.bool)
    for row, group in enumerate(groups):
        clades[0, row, list(group)] = True
    present = torch.ones(1, num_tokens, dtype=torch.bool)
    merges = torch.full((1, num_tokens - 1, 2), -1)
    return TokenBatch(torch.zeros(1, num_tokens, 2), present, clades, merges)


def test_only_neighbours_in_the_order_of_writing_are_joined():
    """Strokes at 0, 5, 1, 7, written in this order: 0 and 1 are nearest, but not neighbours. The
    neighbours are 5, 4 and 6 apart, so 5 and 1 are joined first. Then 0 is 3 from them in the mean,
    and 7 is 4."""
    merges = adjacent_trees(on_a_line(0, 5, 1, 7), torch.tensor([[0, 1, 2, 3]]))
    assert merges.tolist() == [[[1, 2], [0, 4], [5, 3]]]
    # the same strokes in other slots, and one that is empty
    merges = adjacent_trees(on_a_line(7, 1, 0, 5, 9), torch.tensor([[3, 2, 0, 1, -1]]))
    assert merges.tolist() == [[[3, 1], [2, 4], [5, 0], [-1, -1]]]


def test_facts_by_hand():
    """Of four strokes the groups 01 (two strokes) and 012 (a group and a stroke) are binary, of the
    next character 012 is not."""
    stroke = np.zeros((1, 4, 2))
    first = [Group(0b0011, "A"), Group(0b0111, "")]
    characters = Characters.of(
        [
            Character(0x4E00, "A", [stroke] * 4, ["㇐", "㇐", "㇑", ""], first, frozenset("A")),
            Character(0x4E01, "A", [stroke] * 4, ["㇐"] * 4, [Group(0b0111, "A")], frozenset("A")),
        ]
    )
    found = facts(characters)
    assert found["characters"] == 2 and found["groups"] == 3
    assert found["share of binary groups"] == pytest.approx(2 / 3)
    assert found["names of groups"] == 1 and found["names of 20 groups or more"] == 0
    assert found["radicals"] == 1 and found["types of strokes"] == 2


def test_scores_by_hand():
    """The tree ((01)2)((34)5) has the clades 01, 012, 34, 345 beside the whole."""
    merges = torch.tensor([[[0, 1], [6, 2], [3, 4], [8, 5], [7, 9]]])
    batch = sample(6, {0, 1, 2}, {2, 3}, set())
    # 23 is crossed by 012, 34 and 345; 01 lies in 012, and shares nothing with 23
    assert compatible(batch, merges).item() == pytest.approx(1 / 4)
    found = agreement(batch, merges)
    assert found["recall"] == 1 / 2
    assert found["F1"] == pytest.approx(1 / 3)  # 2 / (2 + 4)
    assert found["tree_f1"] == pytest.approx(1 / 3)

"""Curricula by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from episodes import generator, random_batch

from agents.learners.reinforce import Curriculum
from htm_env.datasets import Dataset, make_dataset

SIZES = torch.tensor([2, 5, 9])


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, [1, 1, 1]),
        (0.125, [1, 1, 2]),
        (0.25, [1, 2, 4]),
        (0.375, [1, 3, 6]),
        (0.5, [1, 4, 8]),
        (0.9, [1, 4, 8]),
    ],
)
def test_episodes_grow_over_half_of_the_budget(progress, expected):
    assert Curriculum(merges_share=0.5).num_merges(SIZES, progress).tolist() == expected


def test_no_curriculum_makes_every_merge():
    assert Curriculum().num_merges(SIZES, 0.0).tolist() == [1, 4, 8]


class Sizes(Dataset):
    """Samples of ``first``, ``first + 1`` ... tokens in turn, and a note of what was asked for."""

    name, kind, max_tokens, token_dim, has_hierarchy, size = "sizes", "points", 9, 3, False, None

    def __init__(self, first: int = 2, kinds: int = 8) -> None:
        super().__init__("train")
        self.first, self.kinds = first, kinds
        self.asked: list[int] = []

    def episodes(self, keys):
        self.asked.append(len(keys))
        return random_batch([self.first + row % self.kinds for row in range(len(keys))], slots=9)

    def training_tokens(self):
        return np.ones((1, 3), np.float32)


@pytest.mark.parametrize(
    ("progress", "largest"), [(0.0, 2), (0.1, 4), (0.25, 6), (0.4, 8), (0.499, 9)]
)
def test_populations_grow_over_half_of_the_budget(progress, largest):
    """2 + 7 x progress / 0.5, rounded up: 2, 3.4, 5.5, 7.6, 8.99."""
    data = Sizes()
    batch = Curriculum(population_share=0.5).sample(data, 10, generator(), progress)
    assert len(batch.tokens) == 10
    assert int(batch.num_tokens.max()) == largest
    assert data.asked == [80]


@pytest.mark.parametrize(("progress", "share"), [(0.5, 0.5), (0.7, 0.5), (0.0, 0.0)])
def test_after_the_curriculum_samples_come_as_they_are(progress, share):
    data = Sizes()
    batch = Curriculum(population_share=share).sample(data, 10, generator(), progress)
    assert data.asked == [10]
    assert batch.num_tokens.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 2, 3]


def test_the_smallest_of_the_others_fill_up():
    """With 24 samples of 8 sizes drawn for a batch of 3, exactly three have two tokens."""
    batch = Curriculum(population_share=0.5).sample(Sizes(), 3, generator(), 0.0)
    assert batch.num_tokens.tolist() == [2, 2, 2]

    batch = Curriculum(population_share=0.5).sample(Sizes(first=5, kinds=5), 3, generator(), 0.0)
    assert batch.num_tokens.tolist() == [5, 5, 5]


def test_data_of_one_size_is_left_alone():
    data = make_dataset("HTM-Trees-v0", heights=(3,))
    batch = Curriculum(population_share=0.5).sample(data, 6, generator(), 0.0)
    assert batch.num_tokens.tolist() == [7] * 6

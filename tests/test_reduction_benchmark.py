"""The benchmark of the hierarchy reduction, at small sizes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import reduction


@pytest.mark.parametrize("count", [2**19, 2**21])
def test_spans_of_seven_levels_cover_everything_below_them(count):
    levels = reduction.spans_over(count)
    assert [len(spans) for spans in levels] == [*(count // 8**up for up in range(1, 7)), 1]
    for spans, below in zip(levels, [count, *map(len, levels)], strict=False):
        assert spans[0, 0] == 0 and spans[-1, 1] == below
        assert torch.equal(spans[1:, 0], spans[:-1, 1])


def test_many_vectors_are_reduced_to_one():
    row = reduction.large("none", 2**19)
    assert (row["vectors"], row["spans"]) == (2**19, 74_899)
    model, levels = reduction.network("none"), reduction.spans_over(2**19)
    *_, root = model(torch.ones(2**19, 16), levels)
    assert root.tolist() == [[2.0**19] * 16]


def test_ragged_samples_are_independent():
    row = reduction.ragged(7, 1)
    assert row["others move"] == 0 and row["sample 5 moves"] > 0.01
    assert row["largest difference"] < 1e-5

"""Rows and columns of equal points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.wholes import WholesDataset, WholesGeometry
from htm_env.datasets import KEY_LIMIT
from htm_env.forest import check_merges, leaf_sets


def wholes(split: str = "train", **geometry: Any) -> WholesDataset:
    return WholesDataset(split, WholesGeometry(**geometry))


@settings(max_examples=30)
@given(
    num_wholes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    num_parts=st.integers(2, 6),
    key=st.integers(0, KEY_LIMIT - 1),
)
def test_wholes_are_lines_with_the_stated_steps(num_wholes, num_parts, key):
    dataset = wholes(num_wholes=num_wholes, num_parts=num_parts, jitter=0)
    assert dataset.max_tokens == max(num_wholes) * num_parts
    batch = dataset.episodes(np.array([key]))
    count = int(batch.num_tokens)
    clades = [clade.nonzero().flatten().tolist() for clade in batch.clades[0] if clade.any()]
    assert sorted(slot for clade in clades for slot in clade) == list(range(count))
    assert len(clades) in num_wholes and all(len(clade) == num_parts for clade in clades)
    spread = batch.tokens[0, clades[0]].std(0)
    along = int(spread.argmax())
    lines = []
    for clade in clades:
        points = batch.tokens[0, clade]
        assert points[:, along].sort().values.diff().numpy() == pytest.approx(16, abs=1e-3)
        assert points[:, 1 - along].numpy() == pytest.approx(float(points[0, 1 - along]), abs=1e-3)
        lines.append(float(points[0, 1 - along]))
    assert np.diff(sorted(lines)) == pytest.approx(24, abs=1e-3)
    if len(clades) * num_parts > 1:
        check_merges(batch.merges, batch.num_tokens)


def test_the_canonical_tree_has_every_whole():
    batch = wholes(num_wholes=(2, 3, 4)).fixed(50)
    found = leaf_sets(batch.merges, batch.num_tokens)
    for clades, nodes in zip(batch.clades, found, strict=True):
        sets = {tuple(row) for row in nodes.int().tolist()}
        assert all(tuple(clade) in sets for clade in clades.int().tolist() if any(clade))


def test_rows_and_columns_are_equally_likely_and_points_say_nothing():
    """Points of rows and of columns are spread alike about their sample's centre's square: over
    many samples their means agree, and each kind is half of them (five standard deviations)."""
    batch = wholes(jitter=0).fixed(2000)
    first = batch.clades[:, 0]
    points = torch.stack([row[clade] for row, clade in zip(batch.tokens, first, strict=True)])
    rows = points[:, :, 0].std(1) > points[:, :, 1].std(1)
    assert abs(int(rows.sum()) - 1000) < 112
    means = [batch.tokens[kind].mean((0, 1)) for kind in (rows, ~rows)]
    # A centre is uniform in a square of 128, so its mean over 1000 is off by 37 / 32 at most so.
    assert means[0].numpy() == pytest.approx(means[1].numpy(), abs=8)


def test_a_row_of_a_batch_depends_on_its_own_key():
    dataset = wholes("test", num_wholes=(1, 3))
    alone, many = dataset.episodes(np.array([7])), dataset.fixed(10)
    for one, all_of_them in zip(alone[:4], many[:4], strict=True):
        assert torch.equal(one[0], all_of_them[7])


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"num_wholes": 0}, "num_wholes is 0"),
        ({"num_parts": 1}, r"num_parts is 1"),
        ({"gap": 16.0}, "gap is 16.0: expected more than the spacing, 16.0"),
        ({"jitter": -1}, "jitter is -1"),
        ({"spacing": 0}, "spacing is 0"),
    ],
)
def test_impossible_wholes_are_named(geometry, message):
    with pytest.raises(ValueError, match=message):
        WholesGeometry(**geometry)

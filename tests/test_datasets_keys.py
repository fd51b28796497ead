"""Key scenes: two matchings, and nothing but the key to tell which of them is right."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_datasets_generated import Sample, leaves

from htm_env.datasets import KEY_LIMIT, KeysDataset, KeysGeometry
from htm_env.types import TokenBatch

COLOUR, SHAPE = slice(1, 3), slice(3, 5)


def keys(split: str = "train", **geometry: Any) -> KeysDataset:
    return KeysDataset(split, KeysGeometry(**geometry))


def pairs_alike(sample: Sample, property_: slice) -> set[frozenset[int]]:
    """The pairs of items whose colour, or shape, is the same to the last bit."""
    items = np.flatnonzero(sample.tokens[:, 0] == 0)
    return {
        frozenset({int(one), int(two)})
        for one, two in combinations(items, 2)
        if (sample.tokens[one, property_] == sample.tokens[two, property_]).all()
    }


def turns(angles: np.ndarray) -> np.ndarray:
    """Cosines and sines ``(..., 2)`` as shares of a turn."""
    return np.arctan2(angles[..., 1], angles[..., 0]) / (2 * np.pi) % 1.0


@given(
    half=st.integers(2, 9),
    spare=st.integers(0, 5),
    key=st.integers(0, KEY_LIMIT - 1),
)
def test_scenes_of_any_size(half: int, spare: int, key: int) -> None:
    """Every item has one partner of its colour and one, another, of its shape."""
    dataset = keys(num_items=2 * half, palette=half + spare)
    sample = Sample(dataset.episodes(np.array([key])))
    assert sample.count == dataset.max_tokens == 2 * half + 1
    (the_key,) = np.flatnonzero(sample.tokens[:, 0]).tolist()
    assert sample.tokens[the_key].tolist() in ([1, 0, 0, 0, 0], [-1, 0, 0, 0, 0])

    same_colour, same_shape = pairs_alike(sample, COLOUR), pairs_alike(sample, SHAPE)
    for matching in (same_colour, same_shape):
        assert len(matching) == half
        assert frozenset.union(*matching) == set(range(sample.count)) - {the_key}
    assert not same_colour & same_shape
    assert sample.clades == (same_colour if sample.tokens[the_key, 0] == 1 else same_shape)

    # Canonical: the pairs first, then all items, and the key at the very end.
    assert {frozenset(pair) for pair in sample.merges[:half]} == sample.clades
    assert sample.merges[-1] == (4 * half - 1, the_key)
    assert sorted(leaves(sample.nodes()[-1])) == list(range(sample.count))
    # Colours and shapes stand on a palette: equal steps of a turn apart.
    items = np.delete(sample.tokens, the_key, axis=0)
    assert np.hypot(*items[:, COLOUR].T) == pytest.approx(1, abs=1e-6)
    for place in (COLOUR, SHAPE):
        steps = (turns(items[:, place]) - turns(items[0, place])) * dataset.geometry.palette
        assert steps == pytest.approx(steps.round(), abs=1e-4)


def test_four_items_are_merged_by_hand() -> None:
    """Two pairs (5, 6), both together (7), and the key."""
    sample = Sample(keys(num_items=4).fixed(1))
    (a, b), (c, d), fifth, (joined, key) = sample.merges
    assert sample.clades == {frozenset({a, b}), frozenset({c, d})}
    assert (fifth, joined) == ((5, 6), 7)
    assert sorted([a, b, c, d, key]) == [0, 1, 2, 3, 4]


def test_either_rule_holds_as_often_and_the_key_is_in_any_slot() -> None:
    tokens = keys().fixed(4500).tokens
    row, slot = tokens[..., 0].nonzero(as_tuple=True)
    # Binomial(4500, 1/2) and Binomial(4500, 1/9): five standard deviations are 168 and 106.
    assert abs(int((tokens[row, slot, 0] == 1).sum()) - 2250) < 168
    assert (slot.bincount(minlength=9) - 500).abs().max() < 106


def by_rule(batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The items ``(scenes, n, 4)`` where colours match, and where shapes do; slots in order."""
    is_key = batch.tokens[..., 0] != 0
    items = batch.tokens[~is_key][:, 1:].reshape(len(is_key), -1, 4)
    colours_match = batch.tokens[..., 0].sum(1) > 0
    return items[colours_match], items[~colours_match]


def test_nothing_but_the_key_tells_the_rule() -> None:
    """Three colours and three shapes on six items: all nine combinations but those of a perfect
    matching, one of six; each comes equally often, whichever rule holds."""
    for items in by_rule(keys(num_items=6, palette=3).fixed(6000)):
        places = (turns(items.numpy().reshape(len(items), 6, 2, 2)) * 3).astype(int)  # 0, 1 or 2
        missing = Counter()
        for scene in places:
            there = {(int(colour), int(shape)) for colour, shape in scene}
            assert len(there) == 6
            missing[frozenset((c, s) for c in range(3) for s in range(3)) - there] += 1
        assert len(missing) == 6
        # Binomial(about 3000, 1/6): five standard deviations are 102.
        assert all(abs(count - len(items) / 6) < 102 for count in missing.values())


def test_the_slots_of_items_say_nothing_of_the_rule() -> None:
    """Two slots hold one colour as often as one shape: in 1 of 7 scenes, under either rule."""
    for items in by_rule(keys().fixed(8000)):
        for place in (slice(0, 2), slice(2, 4)):
            same = (items[:, :1, place] == items[:, 1:, place]).all(-1).float().mean(0)  # (7,)
            assert (same - 1 / 7).abs().max() < 5 * np.sqrt(1 / 7 * 6 / 7 / len(items))


def test_colours_and_shapes_go_all_round() -> None:
    tokens = keys().fixed(1000).tokens.numpy()
    items = tokens[tokens[..., 0] == 0]
    for place in (COLOUR, SHAPE):
        for bins in (5, 16):  # 16: two for each angle of the palette
            shares = np.histogram(turns(items[:, place]), bins, range=(0, 1))[0] / len(items)
            assert shares == pytest.approx(np.full(bins, 1 / bins), abs=0.02)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"num_items": 7}, "num_items is 7: expected an even number"),
        ({"num_items": 2}, "num_items is 2: expected a whole number from 4 to 2048"),
        ({"num_items": 8.0}, "num_items is 8.0: expected a whole number"),
        ({"num_items": True}, "num_items is True"),
        ({"num_items": (8,)}, r"num_items is \(8,\)"),
        ({"palette": 3}, "palette is 3: expected a whole number from 4 to 2048"),
        ({"num_items": 20}, "palette is 8: expected a whole number from 10"),
    ],
)
def test_impossible_scenes_are_named(geometry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KeysGeometry(**geometry)

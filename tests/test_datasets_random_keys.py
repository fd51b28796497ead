"""Keys, streams and shuffles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htm_env.datasets.base import (
    KEY_LIMIT,
    SPLITS,
    check_keys,
    mix,
    shuffled,
    split_keys,
    uniforms,
)

KEYS = st.integers(0, KEY_LIMIT - 1)
WORD = 2**64 - 1


def unmix(word: int) -> int:
    """The inverse of ``mix`` in plain integers, so that ``mix`` must be a bijection."""

    def unshift(value: int, bits: int) -> int:
        result = value
        for _ in range(64 // bits + 1):
            result = value ^ (result >> bits)
        return result

    word = unshift(word, 31)
    word = word * pow(0x94D049BB133111EB, -1, 2**64) & WORD
    word = unshift(word, 27)
    word = word * pow(0xBF58476D1CE4E5B9, -1, 2**64) & WORD
    return unshift(word, 30)


@given(st.integers(0, WORD))
def test_mix_can_be_undone(word: int) -> None:
    assert unmix(int(mix(np.array([word], dtype=np.uint64))[0])) == word


@given(KEYS, st.sampled_from(SPLITS))
def test_a_seed_names_its_key_and_its_split(key: int, split: str) -> None:
    seed = int(split_keys(np.array([key]), split)[0])
    assert divmod(unmix(seed), 3) == (key, SPLITS.index(split))


def test_streams_are_splitmix64() -> None:
    # The first outputs of splitmix64 from seed 1234567, as its authors' C program prints them.
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    drawn = uniforms(np.array([1234567], dtype=np.uint64), 3)
    assert drawn.tolist() == [[(word >> 11) / 2**53 for word in words]]


def test_uniforms_fill_the_unit_interval() -> None:
    drawn = uniforms(split_keys(np.arange(2000), "train"), 50)
    assert drawn.shape == (2000, 50)
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    counts = np.histogram(drawn, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(100_000 * 0.1 * 0.9)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.1  # within a stream
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.1  # from key to key


def test_uniforms_of_a_key_stand_alone() -> None:
    seeds = split_keys(np.arange(7), "test")
    together = uniforms(seeds, 9)
    for row, seed in enumerate(seeds):
        assert (uniforms(np.array([seed]), 9)[0] == together[row]).all()
    assert (uniforms(seeds, 4) == together[:, :4]).all()


def test_shuffled_puts_the_present_places_first() -> None:
    order = shuffled(np.array([[0.9, 0.1, 0.5, 0.2]]), np.array([[True, False, True, True]]))
    assert order.tolist() == [[3, 2, 0, 1]]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ([0, 1], "list"),
        (np.arange(3, dtype=np.int32), r"int32 \(3,\)"),
        (np.zeros((2, 2), dtype=np.int64), r"int64 \(2, 2\)"),
        (np.array([4, -1]), "from -1 to 4"),
        (np.array([2**62]), f"to {2**62}"),
    ],
)
def test_bad_keys_are_named(keys: object, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        check_keys(keys)
    check_keys(np.array([0, 2**62 - 1]))

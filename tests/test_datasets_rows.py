"""Where an episode comes from: rows, places, labels and names of the data as it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from htm_env.datasets import SPLITS, ArrayDataset, DigitsDataset, make_dataset

KEYS = np.array([0, 1, 2, 3, 2**40, 2**62 - 1])


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(2, 6), min_size=10, max_size=20),
    keys=st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=8),
)
def test_places_give_back_the_rows_as_given(lengths: list[int], keys: list[int]) -> None:
    numbers = np.random.default_rng(0)
    given_rows = [numbers.normal(size=(length, 3)).astype(np.float32) for length in lengths]
    for split in SPLITS:
        dataset = ArrayDataset(given_rows, split)
        drawn = np.array(keys)
        batch, places = dataset.episodes(drawn), dataset.places(drawn)
        assert places.dtype == np.int64
        assert ((places >= 0) == batch.present.numpy()).all()
        for tokens, place, key in zip(batch.tokens.numpy(), places, keys, strict=True):
            row = given_rows[dataset.rows[key % dataset.size]]
            there = place >= 0
            assert sorted(place[there]) == list(range(len(row)))
            assert (tokens[there] == row[place[there]]).all()


def test_digits_know_their_rows_and_their_labels() -> None:
    dataset = DigitsDataset("test")
    digits = load_digits()
    assert dataset.label_names == [str(digit) for digit in range(10)]
    assert (dataset.labels(KEYS) == digits.target[dataset.rows[KEYS % dataset.size]]).all()
    for tokens, place in zip(dataset.episodes(KEYS).tokens, dataset.places(KEYS), strict=True):
        # Patch p is at column p % 4 of row p // 4.
        assert (tokens[:, 0].numpy() == place % 4).all()
        assert (tokens[:, 1].numpy() == place // 4).all()
    assert (dataset.row_names, dataset.token_names) == (None, None)


@pytest.mark.parametrize("env_id", ["HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Keys-v0"])
def test_generated_data_has_no_rows(env_id: str) -> None:
    dataset = make_dataset(env_id)
    assert dataset.places(KEYS) is None
    assert dataset.fingerprint() is None
    names = dataset.row_names, dataset.token_names, dataset.label_names
    assert (dataset.rows, *names) == (None,) * 4


def test_the_fingerprint_is_of_the_numbers_and_not_of_their_container(tmp_path: Path) -> None:
    rows = [np.full((2 + row % 3, 2), row, dtype=np.float32) for row in range(12)]
    values, lengths = np.concatenate(rows), np.array([len(row) for row in rows])
    np.savez(tmp_path / "one.npz", values=values, lengths=lengths)
    found = ArrayDataset(rows).fingerprint()
    assert {name: found[name] for name in ("rows", "tokens", "token_dim", "name")} == {
        "rows": 12,
        "tokens": 4,
        "token_dim": 2,
        "name": "array",
    }
    assert len(found["sha256"]) == 64
    for same in (
        ArrayDataset([row.tolist() for row in rows], "test"),
        ArrayDataset(tmp_path / "one.npz"),
    ):
        assert same.fingerprint()["sha256"] == found["sha256"]
    assert ArrayDataset(tmp_path / "one.npz").fingerprint()["name"] == "one.npz"

    moved = [row.copy() for row in rows]
    moved[7][1, 0] += 1e-3
    spans = [[[(0, 2)]]] * 12
    for other in (
        ArrayDataset(moved),
        ArrayDataset(rows[:-1]),
        ArrayDataset(rows[::-1]),
        ArrayDataset(rows, spans=spans),
    ):
        assert other.fingerprint()["sha256"] != found["sha256"]
